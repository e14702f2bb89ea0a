"""Reproduce a published result: train what an experiment declares, evaluate it, hold it against what it expects."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig

from gentrain import config
from gentrain.console import rounded
from gentrain.errors import Interrupted, UsageError, nearest
from gentrain.evaluation.ledger import Row
from gentrain.files import read_json, write_json
from gentrain.run import Run, environment
from gentrain.settings import Expectation, Judges, ReproduceSettings, says_where

SCHEMA = 1
NAME = "reproduction.json"
OWN = tuple(ReproduceSettings.__dataclass_fields__)

JUDGED = ("expect", "evaluate")
FREE = ("output", "traceback", "trust", "seed", "device.", *JUDGED)
FREE += tuple(f"trainer.{key}" for key in ("log_every", "evaluate_every", "sample_every", "checkpoint_every", "keep"))
FREE += ("trainer.watch",)
BOUND = ("device.precision",)
"""Settings under FREE, except BOUND, and where data lie, say where, how often and how judged; all others are what is
trained. A recipe is those and JUDGED."""
FACTS = tuple(f"data.{fact}" for fact in ("shape", "levels", "classes", "support", "vocabulary", "centres", "captions"))
FOLLOWS = "data.dequantize"
"""A setting that is null until the model is known."""

Verdict = Literal["pass", "fail", "smoke"]


@dataclass(frozen=True)
class Plan:
    """An experiment with the changes asked for, checked.

    Args:
        overrides: that train it, `experiment=…` first. changes: key -> (declared, asked for), where the recipe differs.
        judging: overrides of the evaluation.
    """

    name: str
    overrides: list[str]
    folders: list[Path]
    config: DictConfig
    changes: Mapping[str, tuple[Any, Any]]
    expectations: list[Expectation]
    judging: list[str]


@dataclass(frozen=True)
class Judgement:
    """An expectation and the ledger's row that it was held against; `reason` says why it doesn't hold."""

    expectation: Expectation
    row: Row | None
    holds: bool
    reason: str = ""


@dataclass(frozen=True)
class Reproduction:
    """What came out: `verdict` is `smoke`, which is none, where the recipe was changed."""

    experiment: str
    run: Path
    verdict: Verdict
    changes: Mapping[str, tuple[Any, Any]]
    judgements: list[Judgement]
    rows: list[Row]
    minutes: Mapping[str, float]


def reproduce(
    experiment: str,
    overrides: Sequence[str] = (),
    folders: Sequence[str | Path] = (),
    reuse: bool = True,
    record: bool = False,
) -> Reproduction:
    """Reproduce from Python as `gentrain reproduce experiment=… <overrides>` does from a shell.

    Raises:
        GentrainError: as the command line reports it; `UsageError` before anything is trained.
    """
    one = plan(experiment, overrides, [Path(f).resolve() for f in folders])
    _require_recordable([one] if record else [])
    return _carry_out(one, reuse, record)


def main(args: list[str], folder: Path | None = None) -> int:
    """Carry out the command line `args` of `gentrain reproduce`; 0 if all is reproduced or a smoke run, else 1."""
    several = {"-m", "--multirun"} & set(args)
    words = [a for a in args if a not in ("-m", "--multirun", "traceback=true")]
    for word in words:
        if word.startswith("-") or "=" not in word:
            raise UsageError(f"{word}: gentrain reproduce takes key=value; see gentrain reproduce --help")
    own = {key: value for key, _, value in (w.partition("=") for w in words) if key in OWN}
    names = own.get("experiment", "").split(",")
    if len(names) > 1 and not several:
        raise UsageError(f"experiment={own['experiment']}: for several, say gentrain reproduce -m experiment=…")
    folders = [folder] if folder else []
    plans = [plan(name, [w for w in words if w.partition("=")[0] not in OWN], folders) for name in names]
    cfg = config.compose("reproduce", [f"{key}={value}" for key, value in own.items() if key != "experiment"])
    cfg.experiment = own["experiment"]  # to Hydra the word is a group, of `train` alone
    settings = config.record(ReproduceSettings, cfg)
    _require_recordable(plans if settings.record else [])
    outcomes: list[Reproduction | str] = []
    for one in plans:
        try:
            outcomes.append(_carry_out(one, settings.reuse, settings.record))
        except Interrupted:
            raise
        except Exception as error:
            if not several:
                raise
            outcomes.append(f"{type(error).__name__}: {error}".removeprefix("GentrainError: ").splitlines()[0])
            _say(f"{one.name}: {outcomes[-1]}")
    if several:
        _summarise([one.name for one in plans], outcomes)
    return 0 if all(isinstance(o, Reproduction) and o.verdict != "fail" for o in outcomes) else 1


# --- before ---------------------------------------------------------------------------------------------------------


def plan(name: str, overrides: Sequence[str] = (), folders: Sequence[Path] = ()) -> Plan:
    """Compose and check an experiment and its evaluation, without torch.

    Raises:
        UsageError: there is no such experiment, it expects nothing, or something in it or the overrides is wrong.
    """
    known = sorted({o for place in (None, *folders) for o in config.groups(place).get("experiment", [])})
    if name not in known:
        what = f"there is no experiment {name!r}.{nearest(name, known)}" if name else "must be given."
        raise UsageError(f"experiment={name}: {what} Available: {', '.join(known)}")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError("gentrain reproduce is one process: train the experiment under torchrun, then evaluate it")
    words = [f"experiment={name}", *overrides]
    cfg = config.compose("train", words, folders)
    config.require_said(cfg, words)
    plain = config.check(cfg)
    if not plain.get("expect") or "evaluate" not in plain:
        raise UsageError(
            f"experiment={name}: its file has no `expect:` and `evaluate:`, so there is nothing to reproduce;"
            f" gentrain experiment={name} trains it"
        )
    expectations = [Expectation(**item) for item in plain["expect"]]
    judging = Judges(**plain["evaluate"]).overrides
    judging += [o for o in overrides if o.partition("=")[0] in ("device", "trust") or o.startswith("device.")]
    config.check_evaluation(config.compose("evaluate", ["run=.", *judging], folders))
    changed = _differences(config.compose("train", words[:1], folders), cfg) if overrides else {}
    changes = {k: v for k, v in changed.items() if not _free(k) or k.startswith(JUDGED)}
    return Plan(name, words, list(folders), cfg, changes, expectations, judging)


def _differences(before: DictConfig, after: DictConfig) -> dict[str, tuple[Any, Any]]:
    old, new = config.flat(config.stored(before)), config.flat(config.stored(after))
    return {key: (old.get(key), new.get(key)) for key in [*old, *new] if old.get(key) != new.get(key)}


def _free(key: str) -> bool:
    return says_where(key) or (key.startswith(FREE) and not key.startswith(BOUND))


def earlier(plan: Plan) -> tuple[Path, str] | None:
    """The newest run of the same experiment, configuration and seed under its `output`, and its state.

    Runs that became NaN are passed over: they would do so again.
    """
    wanted = _recipe(config.stored(plan.config))
    output = Path(config.stored(plan.config)["output"]).expanduser()
    for run in sorted((p.parent for p in output.glob("*/*/*/config.yaml")), key=lambda p: p.name, reverse=True):
        file = run / ".hydra" / "overrides.yaml"
        said = file.read_text(encoding="utf-8") if file.is_file() else ""
        if f"experiment={plan.name}" not in said:
            continue
        state = (read_json(run / "status.json") or {}).get("state")
        made = _recipe(config.stored(config.read(run / "config.yaml")))
        if wanted[FOLLOWS] is None and FOLLOWS not in said:  # the run notes what the model needed
            made[FOLLOWS] = None
        if state and state != "nan" and made == wanted:
            return run, state
    return None


def _recipe(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs must share to be the same: what is learned from what, and the seed."""
    return {k: v for k, v in config.flat(stored).items() if (not _free(k) or k == "seed") and k not in FACTS}


def _require_recordable(plans: Sequence[Plan]) -> None:
    """Refuse before hours of training what can't be recorded after them."""
    from gentrain.tasks import results

    for one in plans:
        results.documents()
        if one.changes:
            raise UsageError(f"record=true: {'; '.join(_listed(one.changes))}: only the declared recipe is recorded")
        if one.name not in config.groups()["experiment"]:
            raise UsageError(
                f"record=true: {one.name} is an experiment of your own, docs/results.md is about gentrain's"
            )


def _listed(changes: Mapping[str, tuple[Any, Any]], most: int = 4) -> list[str]:
    listed = [f"{key} {old} -> {new}" for key, (old, new) in changes.items()]
    return listed if len(listed) <= most else [*listed[:most], f"and {len(listed) - most} more"]


# --- training and evaluating ----------------------------------------------------------------------------------------


def _carry_out(plan: Plan, reuse: bool, record: bool) -> Reproduction:
    from gentrain import checkpoint
    from gentrain.tasks import results
    from gentrain.tasks.evaluate import evaluate

    if plan.changes:
        changed = "; ".join(_listed(plan.changes))
        _say(f"{plan.name}: not the declared recipe: {changed}: numbers without a verdict")
    run = _trained(plan, earlier(plan) if reuse else None)
    rows = evaluate(run, plan.judging, plan.folders)
    judgements = [judge(expectation, rows) for expectation in plan.expectations]
    verdict: Verdict = "pass" if all(j.holds for j in judgements) else "fail"
    state = checkpoint.find(run)[1]
    seconds = {row.settings.get("estimator"): row.seconds for row in rows}
    minutes = {"training": state["elapsed"] / 60, "evaluation": sum(seconds.values()) / 60}
    found = Reproduction(
        plan.name, run, "smoke" if plan.changes else verdict, plan.changes, judgements, rows, minutes
    )  # fmt: skip
    write_json(run / NAME, describe(found, plan.overrides, state["step"]))
    _show(found)
    if record:
        results.record(found)
    return found


def _trained(plan: Plan, found: tuple[Path, str] | None) -> Path:
    """The run folder of the experiment, trained to its end."""
    if found is not None:
        run, state = found
        Run.open(run).close()  # raises RunBusyError where another process is at work in it
        if state == "done":
            _say(f"{plan.name}: evaluating the finished run {run}; to train anew, say reuse=false")
            return run
        if any((run / "checkpoints").glob("step-*.pt")):
            from gentrain.tasks.resume import resume

            _say(f"{plan.name}: going on with the run {run} ({state}); to train anew, say reuse=false")
            keys = [(o, o.partition("=")[0]) for o in plan.overrides]
            resume(run, [o for o, key in keys if key == "trust" or ("." in key and _free(key))])
            return run
    from gentrain.tasks import train

    return train.main(plan.config, plan.overrides).path


def judge(expectation: Expectation, rows: Sequence[Row]) -> Judgement:
    """Hold the row that an expectation speaks of against it."""
    e = expectation
    same = [r for r in rows if (r.metric, r.kind, r.unit, r.split) == (e.metric, e.kind, e.unit, e.split)]
    if not same:
        have = ", ".join(sorted({f"{r.metric} ({r.kind}, {r.unit}, {r.split})" for r in rows})) or "none"
        return Judgement(e, None, False, f"no row of {e.metric} ({e.kind}, {e.unit}, {e.split}) among: {have}")
    row = same[-1]
    if row.protocol != e.protocol:
        return Judgement(e, row, False, f"measured under another protocol: {row.protocol}")
    holds = e.holds(row.value)
    return Judgement(e, row, holds, "" if holds else f"{row.value:.4g} is not {e.goal}")


# --- after ----------------------------------------------------------------------------------------------------------


def describe(found: Reproduction, overrides: Sequence[str], steps: int) -> dict[str, Any]:
    """The content of reproduction.json: everything that is needed to believe the verdict, or not."""
    here = environment()
    trained = read_json(found.run / "run.json") or {}
    facts = ("git", "versions", "python", "platform", "device", "data")
    return {
        "schema": SCHEMA,
        "experiment": found.experiment,
        "verdict": found.verdict,
        "command": shlex.join(["gentrain", "reproduce", *overrides]),
        "changes": {key: list(change) for key, change in found.changes.items()},
        "date": datetime.datetime.now().astimezone().date().isoformat(),
        "run": str(found.run),
        "steps": steps,
        "minutes": {key: round(value, 2) for key, value in found.minutes.items()},
        "machine": machine(),
        "git": here["git"],
        "versions": here["versions"],
        "trained": {key: trained.get(key) for key in facts},
        "expectations": [
            {
                **{key: value for key, value in asdict(j.expectation).items() if key not in ("status", "measured")},
                "goal": j.expectation.goal,
                "found": j.row and j.row.value,
                "stderr": j.row and j.row.stderr,
                "holds": None if found.verdict == "smoke" else j.holds,
                "reason": j.reason,
            }
            for j in found.judgements
        ],
        "rows": [asdict(row) for row in found.rows],
    }


def machine() -> dict[str, Any]:
    """The processor's name and the number of cores that this process may use."""
    names = (line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": next(names, "") or platform.processor() or platform.machine(), "cores": cores}


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return


def _say(line: str) -> None:
    from gentrain.console import console

    console().print(line, markup=False, highlight=False, soft_wrap=True)


def cells(judgement: Judgement, verdict: Verdict) -> list[str]:
    """An expectation as a row of a table: what, expected, measured, protocol, source, verdict."""
    e, row = judgement.expectation, judgement.row
    measured = f"{rounded(row.value, row.stderr)} {row.unit}" if row else "missing"
    word = "no verdict" if verdict == "smoke" else "pass" if judgement.holds else "fail"
    return [f"{e.metric} ({e.kind})", e.goal, measured, e.protocol, e.source, word]


HEAD = ("metric (kind)", "expected", "measured", "protocol", "source", "verdict")


def _show(found: Reproduction) -> None:
    from gentrain.console import print_table

    print_table(found.experiment, HEAD, [cells(j, found.verdict) for j in found.judgements])
    for j in found.judgements:
        if j.reason and found.verdict != "smoke":
            _say(f"{found.experiment}: {j.reason}")
    took = ", ".join(f"{what} {value:.1f} min" for what, value in found.minutes.items())
    _say(f"{found.experiment}: {found.verdict} ({took}; {found.run / NAME})")


def _summarise(names: Sequence[str], outcomes: Sequence[Reproduction | str]) -> None:
    from gentrain.console import print_table

    rows: list[Sequence[str]] = []
    for name, outcome in zip(names, outcomes, strict=True):
        if isinstance(outcome, str):
            rows.append([name, "", "", "", outcome])
            continue
        for j in outcome.judgements:
            metric, expected, measured, *_ = cells(j, outcome.verdict)
            rows.append([name, metric, expected, measured, outcome.verdict])
    print_table("reproduced", ("experiment", "metric (kind)", "expected", "measured", "verdict"), rows)
