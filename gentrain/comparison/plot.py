"""Line plots and intervals as inline SVG: axes, ticks, a series a line. Text from files comes in escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 12, 40
POINTS = 300  # of a line; more than its pixels show nothing more
COLOURS = 6
DASHES = ("", "7 3", "2 3", "9 3 2 3")


@dataclass(frozen=True)
class Line:
    """A series of (step, value): `style` counts through colours, then dashes; `name` is shown on hovering."""

    name: str
    style: int
    points: Sequence[tuple[float, float]]


def stroke(style: int) -> str:
    """The attributes of a line of the given style: a colour of the page's palette, then a dash pattern.

    >>> stroke(0), stroke(7)
    ('class="c0"', 'class="c1" stroke-dasharray="7 3"')
    """
    dash = DASHES[style // COLOURS % len(DASHES)]
    return f'class="c{style % COLOURS}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers within [low, high], 1, 2 or 5 times a power of ten apart.

    >>> ticks(0, 1000), ticks(-0.31, 0.27)
    ([0.0, 200.0, 400.0, 600.0, 800.0, 1000.0], [-0.3, -0.2, -0.1, 0.0, 0.1, 0.2])
    """
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next((m for m in (1, 2, 5, 10) if m * power >= raw * 0.999), 10)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) + 0.0 for k in range(first, last + 1)]


def written(value: float, spacing: float) -> str:
    """A tick's number with as many decimals as the spacing asks for.

    >>> written(20000, 5000), written(0.25, 0.05), written(-3e-7, 1e-7)
    ('20,000', '0.25', '-3e-07')
    """
    if abs(value) >= 1e7 or 0 < spacing < 1e-4:
        return f"{value:.3g}"
    return f"{value:,.{max(0, -math.floor(math.log10(spacing) + 1e-9))}f}"


def thin(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most about POINTS of them, evenly chosen, the last among them."""
    every = math.ceil(len(points) / POINTS)
    return points if every <= 1 else [*points[:-1:every], points[-1]]


def curves(lines: Sequence[Line], label: str) -> str:
    """A plot of `lines` over the step, as an <svg>; `label` says what it is to those who can't see it."""
    points = [p for line in lines for p in line.points]
    x0, x1 = _range([x for x, _ in points], pad=0.0)
    y0, y1 = _range([y for _, y in points], pad=0.04)

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    marks = ticks(x0, x1)
    for x in marks:
        px, _ = at(x, y0)
        parts.append(
            f'<line class="tick" x1="{px:.1f}" x2="{px:.1f}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 4}"/>'
        )
        text = written(x, marks[1] - marks[0] if len(marks) > 1 else 1)
        parts.append(f'<text x="{px:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{text}</text>')
    marks = ticks(y0, y1)
    for y in marks:
        _, py = at(x0, y)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py:.1f}" y2="{py:.1f}"/>')
        text = written(y, marks[1] - marks[0] if len(marks) > 1 else 1)
        parts.append(f'<text x="{LEFT - 6}" y="{py + 4:.1f}" text-anchor="end">{text}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 5}" text-anchor="middle">step</text>')
    for line in lines:
        placed = [at(x, y) for x, y in thin(line.points)]
        inside = f"<title>{escape(line.name)}</title>"
        if len(placed) == 1:
            x, y = placed[0]
            parts.append(f'<circle {stroke(line.style)} cx="{x:.1f}" cy="{y:.1f}" r="3">{inside}</circle>')
        else:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
            parts.append(f'<polyline {stroke(line.style)} points="{path}">{inside}</polyline>')
    return "".join([*parts, "</svg>"])


def interval(value: float, error: float, low: float, high: float, style: int) -> str:
    """A dot with a bar of two standard errors to each side, on a scale from `low` to `high`."""
    width, height = 130, 16

    def at(v: float) -> float:
        return 4 + (v - low) / max(high - low, 1e-300) * (width - 8)

    a, b = at(value - 2 * error), at(value + 2 * error)
    return (
        f'<svg class="interval" viewBox="0 0 {width} {height}" aria-hidden="true">'
        f'<line class="c{style % COLOURS}" x1="{a:.1f}" x2="{b:.1f}" y1="8" y2="8"/>'
        f'<circle class="c{style % COLOURS}" cx="{at(value):.1f}" cy="8" r="3.5"/></svg>'
    )


def _range(values: Sequence[float], pad: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-6):
        half = abs(high) * 0.05 or 0.5
        return low - half, high + half
    return low - pad * (high - low), high + pad * (high - low)
