"""A comparison as one HTML file that loads nothing: tables, learning curves, samples side by side."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from gentrain import __version__
from gentrain.comparison.plot import COLOURS, DASHES, Line, curves, interval, stroke
from gentrain.comparison.runs import Record
from gentrain.comparison.table import Block, Comparison, Entry, Group
from gentrain.comparison.text import HEADINGS, LEGEND, OTHERS, cells, clean, count_of, others, title

PICTURES = 8 << 20  # bytes; a larger file is named, not embedded
TEXT = 2000  # characters shown of what a run wrote
HERE = Path(__file__).parent


@dataclass
class Chapter:
    """What there is on one data set: its tables, its runs, and the style in which each group of them is drawn."""

    name: str
    blocks: list[Block]
    members: list[tuple[Group, Record]]

    def __post_init__(self) -> None:
        groups = {id(group): group for group, _ in self.members}
        self.groups = sorted(groups.values(), key=lambda group: group.label)
        self.styles = {id(group): i for i, group in enumerate(self.groups)}


def chapters(comparison: Comparison) -> list[Chapter]:
    members: dict[str, list[tuple[Group, Record]]] = {}
    for group in comparison.groups:
        for record in group.records:
            members.setdefault(comparison.titles.get(record.data, record.data), []).append((group, record))
    return [Chapter(name, [b for b in comparison.blocks if b.data == name], members[name]) for name in sorted(members)]


def page(comparison: Comparison) -> str:
    """The whole document."""
    style = (HERE / "page.css").read_text(encoding="utf-8")
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    runs = sum(len(group.records) for group in comparison.groups)
    heading = "1 run" if runs == 1 else f"{runs:,} runs compared"
    parts = list(_warnings(comparison))
    every = chapters(comparison)
    for i, chapter in enumerate(every):
        parts.append(f'<h2 id="data{i}">{escape(clean(chapter.name))}</h2>')
        parts += [*_blocks(chapter), *_curves(chapter), *_samples(chapter)]
    parts += _others(comparison)
    links = [f'<a href="#data{i}">{escape(clean(chapter.name))}</a>' for i, chapter in enumerate(every)]
    links += ['<a href="#others">failed, unfinished or without numbers</a>'] if comparison.others else []
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{heading}</title>",
            f"<style>{style}</style></head><body>",
            f"<header><h1>{heading}</h1>",
            f"<p>{LEGEND}. Numbers stand in one table only if they were made in the same way; the bar beside a value is"
            " two standard errors to each side. A click on a heading sorts.</p>",
            f"<nav>{' · '.join(links)}</nav>" if len(links) > 1 else "",
            "</header><main>",
            *parts,
            f"</main><footer>gentrain {escape(__version__)}</footer>",
            f"<script>{script}</script></body></html>",
            "",
        ]
    )


def _section(heading: str, body: str, note: str = "") -> str:
    return f"<section><h3>{heading}</h3>{note}{body}</section>"


def _swatch(style: int) -> str:
    line = f'<line {stroke(style)} x1="1" x2="27" y1="5" y2="5"/>'
    return f'<svg class="swatch" viewBox="0 0 28 10" aria-hidden="true">{line}</svg>'


def _warnings(comparison: Comparison) -> Iterator[str]:
    if comparison.warnings:
        yield _section("Warnings", f"<ul>{''.join(f'<li>{escape(clean(w))}</li>' for w in comparison.warnings)}</ul>")


# --- tables ---------------------------------------------------------------------------------------------------------


def _blocks(chapter: Chapter) -> Iterator[str]:
    for block in chapter.blocks:
        what, _, rest = title(block).partition(" on ")
        notes = "".join(f'<p class="note">{escape(clean(note))}</p>' for note in block.notes)
        yield _section(escape(what), _table(block, chapter.styles) + notes, f'<p class="sub">{escape(rest)}</p>')


def _table(block: Block, styles: Mapping[int, int]) -> str:
    low = min(entry.value - 2 * entry.error for entry in block.entries)
    high = max(entry.value + 2 * entry.error for entry in block.entries)
    place = len(block.columns) + 1
    heads = [f"<th><button>{escape(clean(h))}</button></th>" for h in (*block.columns, *HEADINGS)]
    drawn = len(block.entries) > 1
    if drawn:
        heads.insert(place, "<th></th>")
    lines = []
    for entry in block.entries:
        style = styles[id(entry.group)]
        line = [f'<td data-v="{escape(key)}">{escape(text)}</td>' for text, key in _keyed(block, entry)]
        line[0] = line[0].replace(">", f">{_swatch(style)} ", 1)
        if drawn:
            line.insert(place, f"<td>{interval(entry.value, entry.error, low, high, style)}</td>")
        kind = entry.mark or ("" if entry.group.done else "unfinished")
        lines.append(f'<tr class="{kind}">{"".join(line)}</tr>')
    head = "".join(heads)
    body = "".join(lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _keyed(block: Block, entry: Entry) -> list[tuple[str, str]]:
    """What each cell shows, and what it is sorted by."""
    shown = cells(block, entry)
    settings = [entry.cells[column] for column in block.columns]
    order = [entry.value, count_of(entry), {"best": 0, "tied": 1}.get(entry.mark, 2)]
    order += [entry.mean(name) for name in ("parameters", "seconds", "rate", "step")]
    keys = ["" if v is None else clean(v) for v in (*settings, *order)]
    return list(zip(shown, keys, strict=True))


def _others(comparison: Comparison) -> Iterator[str]:
    if comparison.others:
        head = "".join(f"<th><button>{name}</button></th>" for name in OTHERS)
        body = ""
        for record, line in zip(comparison.others, others(comparison), strict=True):
            tds = "".join(f'<td data-v="{escape(cell)}">{escape(cell)}</td>' for cell in line)
            body += f'<tr class="{"" if record.done else "bad"}">{tds}</tr>'
        table = f'<table class="others"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        yield f'<h2 id="others">Failed, unfinished or without numbers</h2><div class="scroll">{table}</div>'


# --- curves ---------------------------------------------------------------------------------------------------------


def _curves(chapter: Chapter) -> Iterator[str]:
    """A plot for each quantity; runs share one if the protocol and, for what training reports, the objective agree."""
    panels: dict[tuple[str, str, str], list[Line]] = {}
    shown: set[int] = set()
    protocols = {_treatment(r): r.rows[0].protocol for _, r in chapter.members if r.rows}
    for group, record in chapter.members:
        protocol = protocols.get(_treatment(record), str(record.settings.get("data.binarization", "")))
        for name, points in _series(record).items():
            where = (name, protocol, _objective(record) if name.startswith("train/") else "")
            line = Line(f"{clean(group.label)}, seed {record.seed}", chapter.styles[id(group)], points)
            panels.setdefault(where, []).append(line)
            shown.add(id(group))
    if not panels:
        return
    several = len({protocol for _, protocol, _ in panels}) > 1
    figures = []
    for where in sorted(panels, key=lambda p: (p[0].startswith("train/"), p)):
        name, protocol, objective = where
        words = clean(", ".join(part for part in (objective, protocol if several else "") if part))
        caption = f"<figcaption><b>{escape(clean(name))}</b> {escape(words)}</figcaption>"
        figures.append(f"<figure>{caption}{curves(panels[where], clean(name))}</figure>")
    key = _key([group for group in chapter.groups if id(group) in shown], chapter.styles)
    yield _section("Learning curves", f'{key}<div class="panels">{"".join(figures)}</div>')


def _key(groups: Sequence[Group], styles: Mapping[int, int]) -> str:
    items = "".join(f"<li>{_swatch(styles[id(g)])} {escape(clean(g.label))}</li>" for g in groups)
    note = ""
    if len(groups) > COLOURS * len(DASHES):
        note = '<p class="note">There are more lines than styles, so some share one; hovering over a line names it.</p>'
    return f'<ul class="key">{items}</ul>{note}'


def _series(record: Record) -> dict[str, list[tuple[float, float]]]:
    series: dict[str, list[tuple[float, float]]] = {}
    for line in record.metrics:
        for name, value in line.items():
            known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if known and name.startswith(("train/", "validation/")):
                series.setdefault(name, []).append((line["step"], value))
    return series


def _treatment(record: Record) -> tuple[object, ...]:
    """What decides how the data of a set are turned into the model's."""
    return tuple(record.settings.get(key) for key in ("model", "data.binarization", "data.dequantize"))


def _objective(record: Record) -> str:
    return str(record.settings.get("objective", ""))


# --- samples --------------------------------------------------------------------------------------------------------


def _samples(chapter: Chapter) -> Iterator[str]:
    """The newest samples of each group's first run that has any."""
    figures = {}
    for group, record in chapter.members:
        pictures = sorted(p for p in (record.path / "samples").glob("samples-*") if p.suffix in (".png", ".txt"))
        if pictures and id(group) not in figures:
            figures[id(group)] = _picture(group, record, pictures[-1], chapter.styles[id(group)])
    if figures:
        inside = "".join(figures[id(group)] for group in chapter.groups if id(group) in figures)
        yield _section("Samples", f'<div class="panels">{inside}</div>')


def _picture(group: Group, record: Record, path: Path, style: int) -> str:
    words = f"{_swatch(style)} <b>{escape(clean(group.label))}</b>"
    words += f'<br><span class="sub">seed {escape(clean(record.seed))}, {escape(clean(record.path.name))}</span>'
    try:
        content = path.read_bytes() if path.stat().st_size <= PICTURES else b""
    except OSError:
        content = b""
    if path.suffix == ".txt" and content:
        lines = content.decode("utf-8", "replace")[:TEXT].split("\n")
        text = "\n".join(clean(line) for line in lines)
        return f"<figure><figcaption>{words}</figcaption><pre>{escape(text)}</pre></figure>"
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        note = f'<p class="note">{escape(clean(path))} can\'t be shown</p>'
        return f"<figure><figcaption>{words}</figcaption>{note}</figure>"
    data = base64.b64encode(content).decode()
    alt = escape(f"samples of {clean(group.label)}")
    return f'<figure><figcaption>{words}</figcaption><img alt="{alt}" src="data:image/png;base64,{data}"></figure>'
