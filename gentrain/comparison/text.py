"""A comparison as text: lines for a terminal, CSV, JSON, Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

from gentrain.comparison.runs import Record
from gentrain.comparison.table import Block, Comparison, Entry, show
from gentrain.console import aligned, clock, console, print_table, rounded

SCHEMA = 1
HEADINGS = ("value", "± over", "rank", "parameters", "time", "examples/s", "steps")
OTHERS = ("run", "state", "step", "reason", "folder")
LEGEND = (
    "± is the standard deviation over seeds or runs, or of one run the standard error over examples;"
    " tied: within two combined standard errors of the best"
)


# --- words ----------------------------------------------------------------------------------------------------------


def clean(text: object) -> str:
    """Text from a file without what would steer a terminal or break a line.

    >>> clean("a\\x1b[31mb\\nc")
    'a�[31mb�c'
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def duration(seconds: float | None) -> str:
    """Seconds in words; what isn't known is a dash.

    >>> duration(8.64), duration(75), duration(None)
    ('8.6 s', '1:15', '–')
    """
    if seconds is None:
        return "–"
    return f"{seconds:.1f} s" if seconds < 60 else clock(seconds)


def title(block: Block) -> str:
    m, n = block.measure, block.n
    support = "" if m.protocol.startswith(m.support) else f"{m.support}, "
    better = {1: "higher is better", -1: "lower is better", 0: "not ranked"}[block.direction]
    count = m.drawn or (f"n = {n[0]:,}" if len(n) == 1 else f"n = {n[0]:,} to {n[-1]:,}")
    return clean(
        f"{m.metric} ({m.kind}, {m.unit}) on {block.data}, {m.split} split, {support}{m.protocol}, {count}: {better}"
    )


def headings(block: Block) -> list[str]:
    return [clean(column) for column in (*block.columns, *HEADINGS)]


def cells(block: Block, entry: Entry) -> list[str]:
    """One line of the table."""
    missing = "–"
    over = f"{count_of(entry):,} {entry.over}"
    record = entry.group.records[0]
    mark = entry.mark if entry.group.done else f"{record.state} at {record.step:,}"
    seconds, rate, count = entry.mean("seconds"), entry.mean("rate"), entry.mean("parameters")
    line = [missing if (v := entry.cells[c]) is None else show(v) for c in block.columns]
    line += [rounded(entry.value, entry.spread), over, mark]
    line += [f"{count:,.0f}" if count is not None else missing, duration(seconds)]
    line += [f"{rate:,.0f}" if rate is not None else missing, f"{entry.mean('step') or 0:,.0f}"]
    return [clean(cell) for cell in line]


def count_of(entry: Entry) -> int:
    """How many examples, seeds or runs its ± is over."""
    return entry.members[0][1].n if entry.over == "examples" else len(entry.members)


def reason(record: Record) -> str:
    if record.problems:
        return " ".join([record.reason, *record.problems]).strip()
    if record.done and record.rows:
        return "has other numbers than those asked for"
    if record.done:
        return f"no number to show; make some: gentrain evaluate run={record.path}"
    return record.reason


def others(comparison: Comparison) -> list[list[str]]:
    """Lines on the runs that failed, aren't finished, or have no number to show."""
    return [[clean(c) for c in (r.name, r.state, f"{r.step:,}", reason(r) or "–", r.path)] for r in comparison.others]


def _tables(comparison: Comparison) -> Iterator[tuple[str, list[str], list[list[str]], list[str]]]:
    """Title, headings, lines and footnotes of each table."""
    for block in comparison.blocks:
        lines = [cells(block, entry) for entry in block.entries]
        yield title(block), headings(block), lines, [clean(note) for note in block.notes]
    if comparison.others:
        yield "failed, unfinished or without numbers", list(OTHERS), others(comparison), []


# --- formats --------------------------------------------------------------------------------------------------------


def show_tables(comparison: Comparison) -> None:
    """Print the tables; in colour and folded to the width on a terminal, as aligned lines elsewhere."""
    screen = console()

    def say(line: str) -> None:
        screen.print(line, markup=False, highlight=False, soft_wrap=True)

    for i, (name, heads, lines, notes) in enumerate(_tables(comparison)):
        if i:
            say("")
        print_table(name, heads, lines)
        for note in notes:
            say(f"note: {note}")
    if comparison.blocks:
        say(f"\n{LEGEND}")


def plain(comparison: Comparison) -> str:
    """The tables as aligned lines, warnings last."""
    parts = []
    for name, heads, lines, notes in _tables(comparison):
        parts.append("\n".join([name, *aligned(heads, lines), *[f"note: {note}" for note in notes]]))
    parts += [LEGEND] if comparison.blocks else []
    parts += ["\n".join(f"warning: {clean(w)}" for w in comparison.warnings)] if comparison.warnings else []
    return "\n\n".join(parts) + "\n"


def markdown(comparison: Comparison) -> str:
    """GitHub's tables, the best in bold."""

    def escape(cell: str) -> str:
        for letter in "\\`*_[]|<>&":
            cell = cell.replace(letter, f"&#{ord(letter)};" if letter in "|<>&" else f"\\{letter}")
        return cell

    def row(line: Sequence[str]) -> str:
        return "| " + " | ".join(escape(cell) for cell in line) + " |"

    parts = []
    for name, heads, lines, notes in _tables(comparison):
        body = [row(heads), "|" + " --- |" * len(heads)]
        for line in lines:
            marked = [cell in ("best", "tied") for cell in line]
            body.append(row(line).replace("| best |", "| **best** |") if any(marked) else row(line))
        parts.append("\n".join([f"**{escape(name)}**", "", *body]))
        parts += [f"Note: {escape(note)}." for note in notes]
    parts += [f"{LEGEND}."] if comparison.blocks else []
    parts += [f"Warning: {escape(clean(w))}" for w in comparison.warnings]
    return "\n\n".join(parts) + "\n"


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """One record for each line of each block, then one for each run that failed, isn't finished or has no number."""
    made = []
    for block in comparison.blocks:
        better = {1: "higher", -1: "lower", 0: None}[block.direction]
        for entry in block.entries:
            rows = [row for _, row in entry.members]
            first = entry.group.records[0]
            made.append(
                {
                    **block.measure._asdict(),
                    "data": block.data,
                    "better": better,
                    "run": entry.group.label,
                    "value": entry.value,
                    "spread": entry.spread,
                    "spread_over": entry.over,
                    "stderr": entry.error,
                    "mark": entry.mark,
                    "seeds": [record.seed for record, _ in entry.members],
                    "values": [row.value for row in rows],
                    "n": [row.n for row in rows],
                    "parameters": entry.mean("parameters"),
                    "seconds": entry.mean("seconds"),
                    "examples_per_second": entry.mean("rate"),
                    "steps": entry.mean("step"),
                    "state": "done" if entry.group.done else first.state,
                    "reason": first.reason,
                    "folders": [str(record.path) for record, _ in entry.members],
                    "settings": entry.cells,
                }
            )
    return made


def as_json(comparison: Comparison) -> str:
    unfinished = [
        {"run": r.name, "state": r.state, "step": r.step, "reason": reason(r), "folder": str(r.path), "seed": r.seed}
        for r in comparison.others
    ]
    notes = {title(block): block.notes for block in comparison.blocks if block.notes}
    content = {
        "schema": SCHEMA, "rows": records(comparison), "others": unfinished, "notes": notes,
        "warnings": comparison.warnings,
    }  # fmt: skip
    return json.dumps(content, indent=1) + "\n"


def as_csv(comparison: Comparison) -> str:
    """A line for each record; lists are separated by blanks, settings have columns of their own."""
    made = records(comparison)
    made += [
        {"run": r.name, "state": r.state, "steps": r.step, "reason": reason(r), "folders": [str(r.path)]}
        for r in comparison.others
        if r.done or not any(str(r.path) in record["folders"] for record in made)
    ]
    flat = [_flat(record) for record in made]
    keys = list(dict.fromkeys(key for record in flat for key in record))
    file = io.StringIO()
    writer = csv.DictWriter(file, keys, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return file.getvalue()


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if key == "settings":
            flat |= {f"settings.{name}": "" if v is None else v for name, v in value.items() if name != "run"}
        elif isinstance(value, list):
            flat[key] = " ".join(str(v) for v in value)
        else:
            flat[key] = "" if value is None else value
    return flat
