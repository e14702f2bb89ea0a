"""A comparison as one HTML file that loads nothing: tables, learning curves, samples side by side."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from gentrain import __version__
from gentrain.comparison.plot import COLOURS, DASHES, Line, curves, interval, stroke
from gentrain.comparison.runs import Record
from gentrain.comparison.table import Block, Comparison, Entry, Group
from gentrain.comparison.text import HEADINGS, LEGEND, OTHERS, cells, clean, others, title

PICTURES = 8 << 20  # bytes; a larger file is named, not embedded
HERE = Path(__file__).parent


def page(comparison: Comparison) -> str:
    """The whole document."""
    styles = {id(group): i for i, group in enumerate(sorted(comparison.groups, key=lambda g: g.label))}
    style = (HERE / "page.css").read_text(encoding="utf-8")
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    runs = sum(len(group.records) for group in comparison.groups)
    sections = [
        *_warnings(comparison),
        *_blocks(comparison, styles),
        *_others(comparison),
        *_curves(comparison, styles),
        *_samples(comparison, styles),
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{runs} runs compared</title>",
            f"<style>{style}</style></head><body>",
            f"<header><h1>{runs} runs compared</h1>",
            f"<p>{LEGEND}. Numbers stand in one table only if they were made in the same way.</p>",
            "</header><main>",
            *sections,
            f"</main><footer>gentrain {escape(__version__)}</footer>",
            f"<script>{script}</script></body></html>",
            "",
        ]
    )


def _section(heading: str, body: str, note: str = "") -> str:
    return f"<section><h2>{heading}</h2>{note}{body}</section>"


def _swatch(style: int) -> str:
    line = f'<line {stroke(style)} x1="1" x2="27" y1="5" y2="5"/>'
    return f'<svg class="swatch" viewBox="0 0 28 10" aria-hidden="true">{line}</svg>'


def _warnings(comparison: Comparison) -> Iterator[str]:
    if comparison.warnings:
        yield _section("Warnings", f"<ul>{''.join(f'<li>{escape(clean(w))}</li>' for w in comparison.warnings)}</ul>")


# --- tables ---------------------------------------------------------------------------------------------------------


def _blocks(comparison: Comparison, styles: Mapping[int, int]) -> Iterator[str]:
    for block in comparison.blocks:
        what, _, rest = title(block).partition(" on ")
        notes = "".join(f'<p class="note">{escape(clean(note))}</p>' for note in block.notes)
        yield _section(escape(what), _table(block, styles) + notes, f'<p class="sub">{escape(rest)}</p>')


def _table(block: Block, styles: Mapping[int, int]) -> str:
    low = min(entry.value - 2 * entry.error for entry in block.entries)
    high = max(entry.value + 2 * entry.error for entry in block.entries)
    settings = len(block.columns)
    heads = [*block.columns, *HEADINGS]
    heads.insert(settings + 1, "")
    head = "".join(f"<th>{f'<button>{escape(clean(h))}</button>' if h else ''}</th>" for h in heads)
    lines = []
    for entry in block.entries:
        style = styles[id(entry.group)]
        line = [f'<td data-v="{escape(key)}">{escape(text)}</td>' for text, key in _keyed(block, entry)]
        line[0] = line[0].replace(">", f">{_swatch(style)} ", 1)
        line.insert(settings + 1, f"<td>{interval(entry.value, entry.error, low, high, style)}</td>")
        kind = entry.mark or ("" if entry.group.done else "unfinished")
        lines.append(f'<tr class="{kind}">{"".join(line)}</tr>')
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _keyed(block: Block, entry: Entry) -> list[tuple[str, str]]:
    """What each cell shows, and what it is sorted by."""
    shown = cells(block, entry)
    settings = [entry.cells[column] for column in block.columns]
    n = entry.members[0][1].n
    order = [entry.value, n if entry.seeds == 1 else entry.seeds, {"best": 0, "tied": 1}.get(entry.mark, 2)]
    order += [entry.mean(name) for name in ("parameters", "seconds", "rate", "step")]
    keys = ["" if v is None else clean(v) for v in (*settings, *order)]
    return list(zip(shown, keys, strict=True))


def _others(comparison: Comparison) -> Iterator[str]:
    if comparison.others:
        head = "".join(f"<th><button>{name}</button></th>" for name in OTHERS)
        lines = [[f'<td data-v="{escape(cell)}">{escape(cell)}</td>' for cell in line] for line in others(comparison)]
        body = "".join(f"<tr>{''.join(line)}</tr>" for line in lines)
        table = f'<table class="others"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        yield _section("Failed, unfinished or without numbers", f'<div class="scroll">{table}</div>')


# --- curves ---------------------------------------------------------------------------------------------------------


def _curves(comparison: Comparison, styles: Mapping[int, int]) -> Iterator[str]:
    """A plot for each quantity; runs share one where data, protocol and, in training, the objective are the same."""
    panels: dict[tuple[str, ...], list[Line]] = {}
    shown: set[int] = set()
    for group in comparison.groups:
        for record in group.records:
            for name, points in _series(record).items():
                where = (record.data, _protocol(record), name, _objective(record) if name.startswith("train/") else "")
                line = Line(f"{clean(group.label)}, seed {record.seed}", styles[id(group)], points)
                panels.setdefault(where, []).append(line)
                shown.add(id(group))
    if not panels:
        return
    several = len({where[:2] for where in panels}) > 1
    figures = []
    for data, protocol, name, objective in sorted(panels, key=lambda p: (p[0], p[1], p[2].startswith("train/"), p[2:])):
        place = ", ".join(part for part in (data.split(" ")[0], protocol) if part) if several else ""
        words = ", ".join(part for part in (objective, place) if part)
        caption = f"<b>{escape(clean(name))}</b>" + (f" {escape(clean(words))}" if words else "")
        plot = curves(panels[data, protocol, name, objective], clean(name))
        figures.append(f"<figure><figcaption>{caption}</figcaption>{plot}</figure>")
    yield _section(
        "Learning curves", f'{_key(comparison.groups, shown, styles)}<div class="panels">{"".join(figures)}</div>'
    )


def _key(groups: Sequence[Group], shown: set[int], styles: Mapping[int, int]) -> str:
    items = [
        f"<li>{_swatch(styles[id(g)])} {escape(clean(g.label))}</li>"
        for g in sorted(groups, key=lambda g: g.label)
        if id(g) in shown
    ]
    note = ""
    if len(groups) > COLOURS * len(DASHES):
        note = '<p class="note">More lines than there are styles: some share one; hovering names them.</p>'
    return f'<ul class="key">{"".join(items)}</ul>{note}'


def _series(record: Record) -> dict[str, list[tuple[float, float]]]:
    series: dict[str, list[tuple[float, float]]] = {}
    for line in record.metrics:
        for name, value in line.items():
            known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if known and name.startswith(("train/", "validation/")):
                series.setdefault(name, []).append((line["step"], value))
    return series


def _protocol(record: Record) -> str:
    """How the data were turned into the model's: as the ledger says, else by the settings."""
    if record.rows:
        return record.rows[0].protocol
    return str(record.settings.get("data.binarization", ""))


def _objective(record: Record) -> str:
    return str(record.settings.get("objective", ""))


# --- samples --------------------------------------------------------------------------------------------------------


def _samples(comparison: Comparison, styles: Mapping[int, int]) -> Iterator[str]:
    """The newest samples of each group's first run."""
    figures = []
    for group in sorted(comparison.groups, key=lambda g: g.label):
        for record in group.records:
            pictures = sorted((record.path / "samples").glob("samples-*.png"))
            if pictures:
                figures.append(_picture(group, record, pictures[-1], styles[id(group)]))
                break
    if figures:
        yield _section("Samples", f'<div class="panels">{"".join(figures)}</div>')


def _picture(group: Group, record: Record, path: Path, style: int) -> str:
    words = f"{_swatch(style)} <b>{escape(clean(group.label))}</b>"
    words += f'<br><span class="sub">{escape(clean(record.path.name))}, {escape(clean(path.stem))}</span>'
    try:
        content = path.read_bytes() if path.stat().st_size <= PICTURES else b""
    except OSError:
        content = b""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        note = f'<p class="note">{escape(clean(path))} can\'t be shown</p>'
        return f"<figure><figcaption>{words}</figcaption>{note}</figure>"
    data = base64.b64encode(content).decode()
    alt = escape(f"samples of {clean(group.label)}")
    return f'<figure><figcaption>{words}</figcaption><img alt="{alt}" src="data:image/png;base64,{data}"></figure>'
