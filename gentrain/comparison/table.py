"""From runs to tables: seeds become one line, numbers of one sort one block, and the best is marked within error."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import yaml

from gentrain.comparison.ranking import Measure, differ, direction, measure, rank
from gentrain.comparison.runs import Record, untold
from gentrain.config import conf_dir
from gentrain.errors import UsageError, nearest
from gentrain.evaluation.ledger import Row

KINDS = ("exact", "ais", "reverse-ais", "decoder-ais", "iwae", "elbo", "dbn-bound", "dbm-bound", "parzen", "pseudo")
SORTS = ("value", "time", "name")
NAMED = ("model", "objective")  # what a run's name says already


@dataclass
class Group:
    """Runs that agree in all settings but the seed, or in those that the user named. One that isn't done is alone."""

    key: tuple[Any, ...]
    settings: dict[str, Any]
    records: list[Record]
    label: str = ""

    @property
    def done(self) -> bool:
        return self.records[0].done


@dataclass
class Entry:
    """One line of a block.

    Args:
        cells: what tells this line from the others, by column.
        members: the runs and their rows, one a seed.
        value: the mean over runs. spread: their sample standard deviation, or the standard error over examples where
            there is one run. error: the standard error of `value`, √(deviation²/runs + mean square of the rows'
            standard errors): the runs are judged on the same examples, so more of them don't lessen the second term.
        made: the settings of the estimator, the same for all members. mark: "best", "tied" with the best, or "".
    """

    group: Group
    cells: dict[str, Any]
    members: list[tuple[Record, Row]]
    value: float
    spread: float
    error: float
    made: dict[str, Any]
    mark: str = ""

    @property
    def over(self) -> str:
        """What `spread` is over: examples, seeds, or runs that differ in more than the seed."""
        if len(self.members) == 1:
            return "examples"
        return "seeds" if len({record.seed for record, _ in self.members}) == len(self.members) else "runs"

    def mean(self, name: str) -> float | None:
        """The mean over the runs of what they know of `seconds`, `rate`, `parameters` or `step`."""
        values = [v for record, _ in self.members if (v := getattr(record, name)) is not None]
        return statistics.fmean(values) if values else None


@dataclass
class Block:
    """Numbers that may be held against each other: one measure on one data set."""

    measure: Measure
    data: str
    columns: list[str]
    entries: list[Entry]
    notes: list[str] = field(default_factory=list)

    @property
    def direction(self) -> int:
        return direction(self.measure)

    @property
    def n(self) -> list[int]:
        """The numbers of examples that occur."""
        return sorted({row.n for entry in self.entries for _, row in entry.members})


@dataclass
class Comparison:
    """Blocks of comparable numbers; all groups; the runs that failed, aren't finished or have no number; what couldn't
    be read; short names of the data sets."""

    blocks: list[Block]
    groups: list[Group]
    others: list[Record]
    warnings: list[str]
    titles: dict[str, str]

    def __str__(self) -> str:
        from gentrain.comparison.text import plain

        return plain(self)


def tabulate(
    records: Sequence[Record], group_by: Sequence[str] = (), sort: str = "value", metrics: Sequence[str] = ()
) -> Comparison:
    """All there is to say about `records`.

    Raises:
        UsageError: no run has a setting or metric of such a name.
    """
    settings = {key for record in records for key in record.settings}
    for key in group_by:
        _require("group_by", key, settings)
    if sort not in SORTS:
        _require("sort", sort, settings, SORTS)
    _require_metrics(metrics, [row for record in records for row in record.rows])
    groups = _group(records, group_by)
    _label(groups, group_by)
    titles = _titles(records)
    found: dict[tuple[Measure, str], list[Entry]] = {}
    for group in groups:
        for (what, data, _), members in _members(group, metrics).items():
            found.setdefault((what, data), []).append(_entry(group, members))
    blocks = []
    for (what, data), entries in sorted(found.items(), key=lambda item: _order(*item[0])):
        block = Block(what, titles.get(data, data), [], entries)
        _columns(block, group_by)
        _mark(block)
        block.notes = list(_notes(block, group_by))
        block.entries = _sorted(block, sort)
        blocks.append(block)
    others = [r for r in records if not r.done or not r.settings or not any(_wanted(row, metrics) for row in r.rows)]
    warnings = [problem for record in records for problem in record.problems]
    return Comparison(blocks, groups, others, warnings, titles)


# --- groups ---------------------------------------------------------------------------------------------------------


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of settings in which some differ, those of a section only where its class is the same.

    >>> differing([{"model": "rbm", "model.hidden": 25}, {"model": "rbm", "model.hidden": 500}, {"model": "vae"}])
    ['model', 'model.hidden']
    >>> differing([{"model": "rbm", "model.hidden": 25}, {"model": "vae", "model.hidden": "[400]"}])
    ['model']
    """
    found = []
    for key in dict.fromkeys(key for s in settings for key in s):
        if key == "seed" or untold(key):
            continue
        section = key.split(".")[0]
        values: dict[Any, set[Any]] = {}
        for s in settings:
            values.setdefault(None if key == section else s.get(section), set()).add(_same(s.get(key)))
        if any(len(v) > 1 for v in values.values()):
            found.append(key)
    return found


def _same(value: Any) -> Any:
    """What equal settings have in common: 1 is 1.0, but not true."""
    return (type(value) is bool, value)


def _group(records: Sequence[Record], group_by: Sequence[str]) -> list[Group]:
    groups: dict[tuple[Any, ...], Group] = {}
    for record in records:
        if not record.settings:
            continue
        key = _key(record, group_by)
        if not record.done:
            key = (*key, str(record.path))
        shown = {k: v for k, v in record.settings.items() if k in group_by} if group_by else record.settings
        groups.setdefault(key, Group(key, shown, [])).records.append(record)
    return list(groups.values())


def _key(record: Record, group_by: Sequence[str] = (), seed: bool = False) -> tuple[Any, ...]:
    names = group_by or sorted(k for k in record.settings if not untold(k) and (seed or k != "seed"))
    return tuple((name, _same(record.settings.get(name))) for name in names)


def _label(groups: Sequence[Group], group_by: Sequence[str]) -> None:
    """A name for each group that tells it from others on its data: its run's, and what differs among that name's."""
    alike: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        alike.setdefault((group.records[0].name, group.records[0].data), []).append(group)
    for (name, _), several in alike.items():
        keys = group_by or [k for k in differing([g.settings for g in several]) if k not in (*NAMED, "data")]
        for group in several:
            words = [f"{k}={show(group.settings[k])}" for k in keys if k in group.settings]
            group.label = " ".join(words if group_by else [name, *words])
            if not group.done:
                group.label += f" ({group.records[0].state} at {group.records[0].step:,})"


def show(value: Any) -> str:
    """A setting as text, as YAML would have it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _titles(records: Sequence[Record]) -> dict[str, str]:
    """Data sets by short names that still tell them apart."""
    words = {record.data: record.data.split(" ") for record in records}
    titles = {}
    for data, own in words.items():
        rivals = [set(other) for other in words.values() if other[0] == own[0]]
        common = set.intersection(*rivals)
        rest = [word for word in own[1:] if word not in common]
        titles[data] = f"{own[0]} ({' '.join(rest)})" if rest else own[0]
    return titles


# --- entries --------------------------------------------------------------------------------------------------------


def _members(group: Group, metrics: Sequence[str]) -> dict[tuple[Measure, str, str], list[tuple[Record, Row]]]:
    """A group's rows by what they measure and how, by seed; of runs with the same settings and seed the newest counts:
    a mean is over numbers that were made alike."""
    newest: dict[tuple[Measure, str], dict[Any, tuple[Record, Row]]] = {}
    for record in sorted(group.records, key=lambda r: r.path.name):
        for row in record.rows:
            if _wanted(row, metrics):
                newest.setdefault((measure(row), record.data), {})[_key(record, seed=True)] = (record, row)
    found: dict[tuple[Measure, str, str], dict[Any, tuple[Record, Row]]] = {}
    for (what, data), members in newest.items():
        for key, (record, row) in members.items():
            made = json.dumps(_made_by(row), sort_keys=True)
            found.setdefault((what, data, made), {})[key] = (record, row)
    return {what: sorted(members.values(), key=lambda m: str(m[0].seed).zfill(20)) for what, members in found.items()}


def _wanted(row: Row, metrics: Sequence[str]) -> bool:
    return not metrics or row.metric in metrics or row.kind in metrics


def _entry(group: Group, members: list[tuple[Record, Row]]) -> Entry:
    values = [row.value for _, row in members]
    within, made = math.sqrt(statistics.fmean(row.stderr**2 for _, row in members)), _made_by(members[0][1])
    if len(values) == 1:
        return Entry(group, {}, members, values[0], within, within, made)
    deviation = statistics.stdev(values)
    error = math.hypot(deviation / math.sqrt(len(values)), within)
    return Entry(group, {}, members, statistics.fmean(values), deviation, error, made)


def _columns(block: Block, group_by: Sequence[str]) -> None:
    """What tells the lines of a block apart: the settings asked for, else name and those that differ among them; and
    the settings of the estimator where one group has several lines, as `metric.…`."""
    if group_by:
        block.columns = list(group_by)
    else:
        keys = differing([entry.group.settings for entry in block.entries])
        block.columns = ["run", *[k for k in keys if k not in (*NAMED, "data")]]
    own: dict[int, list[dict[str, Any]]] = {}
    for entry in block.entries:
        own.setdefault(id(entry.group), []).append(entry.made)
    unlike = dict.fromkeys(key for made in own.values() for key in _unlike(made))
    block.columns += [f"metric.{key}" for key in unlike]
    for entry in block.entries:
        made = {f"metric.{key}": value for key, value in entry.made.items()}
        entry.cells = {"run": entry.group.records[0].name, **entry.group.settings, **made}
        entry.cells = {column: entry.cells.get(column) for column in block.columns}


def _unlike(made: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The estimators' settings in which some differ, with their values as JSON.

    >>> _unlike([{"k": 1, "chains": 10}, {"k": 5, "chains": 10}])
    {'k': ['1', '5']}
    """
    keys = dict.fromkeys(key for settings in made for key in settings)
    values = {key: list(dict.fromkeys(json.dumps(settings.get(key)) for settings in made)) for key in keys}
    return {key: found for key, found in values.items() if len(found) > 1}


def _mark(block: Block) -> None:
    done = [entry for entry in block.entries if entry.group.done]
    sign = block.direction
    if sign == 0 or len(done) < 2:
        return
    rank([row for entry in done for _, row in entry.members])  # refuses a mixture
    best = max(done, key=lambda entry: sign * entry.value)
    equal = [entry for entry in done if not differ(entry.value, entry.error, best.value, best.error)]
    for entry in equal:
        entry.mark = "best" if len(equal) == 1 else "tied"


def _sorted(block: Block, sort: str) -> list[Entry]:
    def key(entry: Entry) -> tuple[Any, ...]:
        if sort == "value" and block.direction:
            return (not entry.group.done, -block.direction * entry.value)
        if sort == "time":
            seconds = entry.mean("seconds")
            return (seconds is None, seconds or 0.0)
        if sort in SORTS:
            return ()
        value = entry.members[0][0].settings.get(sort)
        number = isinstance(value, int | float)
        return (value is None, not number, value if number else str(value))

    return sorted(block.entries, key=lambda entry: (key(entry), entry.group.label))


def _order(what: Measure, data: str) -> tuple[Any, ...]:
    kind = what.kind.split("-")[0] if what.kind.startswith("iwae") else what.kind
    split = ("test", "validation", "train").index(what.split) if what.split in ("test", "validation", "train") else 3
    place = KINDS.index(kind) if kind in KINDS else len(KINDS)
    return (data, split, direction(what) == 0, place, what)


# --- footnotes ------------------------------------------------------------------------------------------------------


def _notes(block: Block, group_by: Sequence[str]) -> Iterable[str]:
    """What a reader must know before trusting the block's order."""
    members = [member for entry in block.entries for member in entry.members]
    if len(block.n) > 1:
        yield f"made on different numbers of examples: {', '.join(f'{n:,}' for n in block.n)}"
    for key, values in _unlike([entry.made for entry in block.entries]).items():
        yield f"made with different settings of the estimator: {key} {', '.join(values)}"
    if len({r.fingerprint for r, _ in members if r.fingerprint}) > 1:
        yield "the training data differ (data.validation, or the files themselves)"
    counted = {id(record) for record, _ in members}
    grouped = [record for entry in block.entries for record in entry.group.records if id(record) not in counted]
    repeats = [str(r.path) for r in grouped if any(measure(row) == block.measure for row in r.rows)]
    if repeats:
        yield f"of runs with the same settings and seed the newest counts; left out: {', '.join(repeats)}"
    if group_by:
        for entry in block.entries:
            keys_within = differing([record.settings for record, _ in entry.members])
            mixed = [k for k in keys_within if k not in group_by]
            if mixed:
                yield f"{entry.group.label}: a mean over runs that differ in {', '.join(mixed)}"


def _made_by(row: Row) -> dict[str, Any]:
    """The settings of a row's estimator without what it found on the way: those that its YAML file lists."""
    name = row.settings.get("estimator")
    known = _arguments(name) if isinstance(name, str) else None
    kept = {k: v for k, v in row.settings.items() if known is None or k in known}
    return {k: v for k, v in kept.items() if k not in ("ema", "seed", "chunk")}


@cache
def _arguments(estimator: str) -> frozenset[str] | None:
    """The arguments of an estimator that comes with gentrain; None where there is no such one."""
    if estimator == "objective":
        return frozenset({"estimator"})
    path = conf_dir() / "metrics" / f"{estimator}.yaml"
    if not estimator.isidentifier() or not path.is_file():
        return None
    return frozenset({"estimator", "first", *yaml.safe_load(path.read_text(encoding="utf-8"))})


# --- complaints -----------------------------------------------------------------------------------------------------


def _require(option: str, key: str, settings: Iterable[str], also: Sequence[str] = ()) -> None:
    valid = [*also, *sorted(settings)]
    if key not in valid:
        raise UsageError(
            f"{option}={key}: no run has such a setting.{nearest(key, valid)} Valid: {', '.join(also) or 'settings'}"
            f"{', or any setting' if also else ''}, e.g. model, objective, optim.lr"
        )


def _require_metrics(metrics: Sequence[str], rows: Iterable[Row]) -> None:
    valid = sorted({name for row in rows for name in (row.metric, row.kind)})
    for name in metrics:
        if name not in valid:
            have = ", ".join(valid) or "none: gentrain evaluate run=… makes some"
            raise UsageError(f"metrics=[{name}]: no run has such a number.{nearest(name, valid)} There are: {have}")
