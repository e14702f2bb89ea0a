"""Compare runs: what their folders say, in tables of numbers that may be compared."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from gentrain import config
from gentrain.comparison import runs as folders
from gentrain.comparison import text
from gentrain.comparison.table import Comparison, tabulate
from gentrain.console import console
from gentrain.errors import UsageError
from gentrain.files import disk_error, write_atomic
from gentrain.settings import CompareSettings

ENDINGS = {".csv": "csv", ".json": "json", ".md": "md", ".html": "html", ".htm": "html"}


def compare(
    runs: str | Path | Sequence[str | Path],
    group_by: str | Sequence[str] = (),
    sort: str = "value",
    metrics: str | Sequence[str] = (),
) -> Comparison:
    """Compare from Python as `gentrain compare runs=…` does from a shell; printed, the result is its tables.

    Args:
        runs: a folder that is searched for runs, or several.
        group_by: the settings that make a line; empty is all of them but the seed.
        sort: "value" (the best first), "time", "name" or any setting. metrics: only these metrics or kinds.

    Raises:
        UsageError: there are no runs, or none has a setting or metric of such a name.
    """
    places = [runs] if isinstance(runs, str | Path) else list(runs)
    records = [folders.read(path) for path in folders.find([Path(p).expanduser() for p in places])]
    folders.shorten(records)
    named = [[option] if isinstance(option, str) else list(option) for option in (group_by, metrics)]
    return tabulate(records, named[0], sort, named[1])


def main(cfg: DictConfig, overrides: Sequence[str] = ()) -> Comparison:
    """Carry out `cfg`, a composed `compare` configuration: print the comparison or write it to a file."""
    settings = config.record(CompareSettings, cfg)
    out = Path(settings.out).expanduser() if settings.out else None
    kind = settings.format or (ENDINGS.get(out.suffix.lower(), "table") if out else "table")
    if kind == "html" and out is None and sys.stdout.isatty():
        raise UsageError("format=html: is for a browser; say where to write it, e.g. out=compare.html")
    comparison = compare(settings.runs, settings.group_by, settings.sort, settings.metrics)
    for warning in comparison.warnings:
        console(stderr=True).print(f"warning: {text.clean(warning)}", markup=False, highlight=False, soft_wrap=True)
    if kind == "table" and out is None:
        text.show_tables(comparison)
        return comparison
    content = render(comparison, kind)
    if out is None:
        print(content, end="")
        return comparison
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out) from error
    write_atomic(out, content.encode("utf-8", "replace"))
    console().print(str(out), markup=False, highlight=False, soft_wrap=True)
    return comparison


def render(comparison: Comparison, kind: str) -> str:
    """The comparison as a document: table | csv | json | md | html."""
    if kind == "html":
        from gentrain.comparison.page import page

        return page(comparison)
    return {"table": text.plain, "csv": text.as_csv, "json": text.as_json, "md": text.markdown}[kind](comparison)
