"""docs/results.md, made from recorded reproductions and the files of the experiments; nothing in it is typed.

gentrain reproduce experiment=NAME record=true    # docs/results/NAME.json, its picture, and the page
python -m gentrain.tasks.results                  # the page alone
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from gentrain import config
from gentrain.console import rounded
from gentrain.errors import DataError, UsageError
from gentrain.files import read_json, write_atomic, write_json
from gentrain.settings import Expectation, says_where
from gentrain.tasks.reproduce import NAME, SCHEMA, Reproduction

LOCAL = ("output=", "traceback=", "device")
"""Overrides that belong to one machine, as do those of where data lie: a record leaves them out, and names its device
in words."""

INTRODUCTION = """# Results

What gentrain reaches of published results, and of its own goals, on real data. This page is made from the records in
[results/](results) and the files in `conf/experiment/`: `gentrain reproduce experiment=NAME record=true` adds to it,
`make results` writes it anew. ± after a measured value is its standard error over examples, after an expected one the
tolerance. How fast gentrain is stands in [speed.md](speed.md), what was tried on the way in [LOG.md](LOG.md).
"""


def documents() -> Path:
    """The `docs` folder of the checkout that gentrain lies in.

    Raises:
        UsageError: it was installed without one.
    """
    folder = config.conf_dir().parent / "docs"
    if not folder.is_dir():
        raise UsageError("record=true: results are kept in a checkout of gentrain, and this is an installed package")
    return folder


def record(found: Reproduction) -> None:
    """Keep a reproduction's numbers and picture, or text, in `docs/results`, and make the page anew.

    Raises:
        UsageError: the recipe was changed, or there is no checkout.
    """
    if found.verdict == "smoke":
        raise UsageError(
            f"record=true: {found.experiment} was run with a changed recipe; only the declared one is kept"
        )
    docs = documents()
    folder = docs / "results"
    folder.mkdir(exist_ok=True)
    content = read_json(found.run / NAME)
    words = [w for w in content["command"].split() if not (w.startswith(LOCAL) or says_where(w.partition("=")[0]))]
    content |= {"command": " ".join(words), "run": "/".join(found.run.parts[-3:]), "picture": None}
    drawn = sorted(path for kind in ("png", "txt") for path in (found.run / "samples").glob(f"samples-*.{kind}"))
    if drawn:
        content["picture"] = f"{found.experiment}{drawn[-1].suffix}"
        shutil.copyfile(drawn[-1], folder / content["picture"])
    write_json(folder / f"{found.experiment}.json", content)
    write(docs)


def write(docs: Path) -> None:
    """Make `docs/results.md` anew."""
    write_atomic(docs / "results.md", render(docs / "results").encode())


def render(folder: Path) -> str:
    """The page, from the records in `folder`."""
    records = {name: _read(folder / f"{name}.json") for name in experiments() if (folder / f"{name}.json").exists()}
    parts = [INTRODUCTION, "\n".join(_overview(records))]
    parts += ["\n".join(_section(name, content, folder)) for name, content in records.items()]
    waiting = [name for name in experiments() if name not in records]
    if waiting:
        parts.append("\n".join(_waiting(waiting)))
    return "\n".join(parts)


def experiments() -> list[str]:
    """The names of those that expect something."""
    return [name for name in config.groups()["experiment"] if expectations(name)]


def expectations(name: str) -> list[Expectation]:
    """What an experiment's file expects."""
    return [Expectation(**item) for item in _node(name).get("expect", [])]


def _node(name: str) -> Mapping[str, Any]:
    node = OmegaConf.to_container(OmegaConf.load(_file(name)), resolve=False)
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()}


def _file(name: str) -> Path:
    return config.conf_dir() / "experiment" / f"{name}.yaml"


def comments(name: str) -> tuple[str, str]:
    """Title and description: the comment at the head of an experiment's file."""
    lines = _file(name).read_text(encoding="utf-8").split("\n")
    head = [line.removeprefix("# ") for line in lines[1 : next(i for i, s in enumerate(lines) if s[:1] != "#")]]
    return head[0], "\n".join(head[1:])


def _read(path: Path) -> Mapping[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise DataError(f"{path}: is no record of schema {SCHEMA} (damaged?); reproduce it again with record=true")
    return content


def _overview(records: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "| experiment | metric (kind) | expected | measured | |"
    yield "|---|---|---|---|---|"
    for name, content in records.items():
        for item in content["expectations"]:
            yield f"| [{name}](#{name}) | {_what(item)} | {item['goal']} | {_found(item)} | {_word(item)} |"
    yield ""


LINES = 16
"""Of a text that a model wrote, on the page."""


def _section(name: str, content: Mapping[str, Any], folder: Path) -> Iterator[str]:
    title, text = comments(name)
    yield f"## {name}"
    yield ""
    yield f"**{title}**" + (f"\n\n{text}" if text else "")
    yield ""
    yield f"```sh\n{content['command']}\n```"
    yield ""
    yield "| metric (kind) | expected | measured | protocol | source | |"
    yield "|---|---|---|---|---|---|"
    for item in content["expectations"]:
        cells = [_what(item), item["goal"], _found(item), item["protocol"], item["source"], _word(item)]
        yield f"| {' | '.join(cells)} |"
    judged = {(item["metric"], item["kind"], item["unit"]) for item in content["expectations"]}
    for row in content["rows"]:
        if (row["metric"], row["kind"], row["unit"]) not in judged:
            measured = _found({**row, "found": row["value"]})
            yield f"| {_what(row)} | | {measured} | {row['protocol']} | | |"
    yield ""
    yield "".join(_provenance(content))
    yield ""
    if (content["picture"] or "").endswith(".txt"):
        lines = (folder / content["picture"]).read_text(encoding="utf-8").split("\n")[:LINES]
        yield from (f"    {line}".rstrip() for line in lines)
        yield ""
    elif content["picture"]:
        yield f"![Samples of {name}](results/{content['picture']})"
        yield ""


def _provenance(content: Mapping[str, Any]) -> Iterator[str]:
    machine, trained, minutes = content["machine"], content["trained"], content["minutes"]
    yield f"{content['steps']:,} steps in {_minutes(minutes['training'])}, "
    yield f"evaluation {_minutes(minutes['evaluation'])}; "
    yield f"{trained['device']} ({machine['processor']}, {machine['cores']} cores), "
    yield f"torch {trained['versions']['torch']}"
    if git := trained["git"]:
        yield f", commit {git['commit'][:10]}" + (" with changes" if git["dirty"] else "")
    yield f", {content['date']}."


def _waiting(names: list[str]) -> Iterator[str]:
    yield "## Not run yet"
    yield ""
    yield "No run of these is recorded. Where a status says more, it was measured before results were recorded."
    yield ""
    yield "| experiment | metric (kind) | expected | source | takes | declared status |"
    yield "|---|---|---|---|---|---|"
    for name in names:
        for e in expectations(name):
            takes = ", ".join(f"{value:g} min on {_PLACE[place]}" for place, value in e.minutes.items())
            status = e.status + ("" if e.measured is None else f": {e.measured:g}")
            goal = f"{e.goal} {e.unit}"
            link = f"[{name}](../conf/experiment/{name}.yaml)"
            yield f"| {link} | {e.metric} ({e.kind}) | {goal} | {e.source} | {takes} | {status} |"
    yield ""


_PLACE = {"cores2": "two cores", "gpu": "a GPU"}


def _what(item: Mapping[str, Any]) -> str:
    return f"{item['metric']} ({item['kind']})"


def _found(item: Mapping[str, Any]) -> str:
    if item["found"] is None:
        return "missing"
    value, plus_minus, error = rounded(item["found"], item["stderr"]).partition(" ± ")
    return f"**{value}**{plus_minus}{error} {item['unit']}"


def _word(item: Mapping[str, Any]) -> str:
    return "pass" if item["holds"] else "fail"


def _minutes(value: float) -> str:
    return f"{value:.1f} min" if value >= 1 else f"{60 * value:.0f} s"


if __name__ == "__main__":
    write(documents())
    print(documents() / "results.md")
