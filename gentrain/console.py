"""What is shown in a terminal: one console, tables, progress. Free of torch: what only reads files answers at once."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

T = TypeVar("T")

QUIET = 5.0  # seconds between two plain lines where there is no terminal
PATIENCE = 2.0  # seconds that work may take before its progress is shown


def console(stderr: bool = False) -> Console:
    """A console that never fails on what a terminal can't show."""
    stream = sys.stderr if stderr else sys.stdout
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
    return Console(stderr=stderr)


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table with a line a row; where there is no terminal, lines that no width folds and other programs can read."""
    screen = console()
    if screen.is_terminal:
        table = Table(*headings, title=Text(title), title_justify="left")
        for row in rows:
            table.add_row(*[Text(cell, overflow="fold") for cell in row])
        screen.print(table)
        return
    print(title)
    for line in aligned(headings, rows):
        print(line, flush=True)


def aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Headings and rows as lines in columns.

    >>> aligned(("run", "value"), [("vae", "-86.8")])
    ['run  value', 'vae  -86.8']
    """
    lines = [headings, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    return ["  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]


def track(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Pass `items` on, showing how far they are: a bar on a terminal, elsewhere a line every few seconds."""
    screen = console(stderr=True)
    began = spoke = time.monotonic()
    bar: Progress | None = None
    task = None
    try:
        for done, item in enumerate(items):
            now = time.monotonic()
            if now - began > PATIENCE and screen.is_terminal:
                if bar is None:
                    columns = TextColumn("{task.description}"), BarColumn(bar_width=20), TimeRemainingColumn()
                    bar = Progress(*columns, console=screen, transient=True)
                    task = bar.add_task(label, total=total)
                    bar.start()
                assert task is not None
                bar.update(task, completed=done)
            elif now - spoke > QUIET:
                spoke = now
                left = (now - began) / max(done, 1) * (total - done)
                screen.print(f"{label}: {done:,} of {total:,}, {clock(left)} left", markup=False, highlight=False)
            yield item
    finally:
        if bar is not None:
            bar.stop()


def rounded(value: float, spread: float) -> str:
    """A value and its uncertainty, both to the second figure of the uncertainty.

    >>> rounded(-86.3127, 0.1234), rounded(13.8664, 0), rounded(-12345.6, 1234.5)
    ('-86.31 ± 0.12', '13.866 ± 0', '-12346 ± 1234')
    """
    if not 0 < spread < math.inf:
        return f"{value:.5g} ± {spread:g}"
    places = min(max(1 - math.floor(math.log10(spread)), 0), 8)
    return f"{value:.{places}f} ± {spread:.{places}f}"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss.

    >>> clock(75), clock(3700)
    ('1:15', '1:01:40')
    """
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
