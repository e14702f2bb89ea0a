"""Evaluate a trained model: every estimator that its base classes allow, into the ledger of its run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from gentrain import checkpoint, config
from gentrain import device as devices
from gentrain.console import console, print_table, track
from gentrain.data.pipeline import Pipeline
from gentrain.data.source import Source
from gentrain.errors import GentrainError, UsageError
from gentrain.evaluation import health, ledger
from gentrain.evaluation.estimator import Estimator, Finding, Picture, Subject, seeded
from gentrain.evaluation.ledger import Row
from gentrain.evaluation.standard import standard
from gentrain.report import Aside
from gentrain.run import require_run
from gentrain.settings import DeviceSettings, EvaluateSettings, split_data
from gentrain.tasks.assemble import make_pipeline
from gentrain.tasks.load import restore, stored_config
from gentrain.update import Objective


@dataclass(frozen=True)
class Trained:
    """A run's model as it was at one checkpoint, with all that is needed to judge it."""

    run: Path
    step: int
    checkpoint: str
    subject: Subject
    ema: bool
    objective: Objective


def evaluate(run: str | Path, overrides: Sequence[str] = (), folders: Sequence[str | Path] = ()) -> list[Row]:
    """Evaluate from Python as `gentrain evaluate run=… <overrides>` does from a shell; the rows, old ones included.

    Raises:
        GentrainError: as the command line reports it.
    """
    cfg = config.compose("evaluate", [f"run={run}", *overrides], [Path(f).resolve() for f in folders])
    return main(cfg, overrides)


def main(cfg: DictConfig, overrides: Sequence[str] = ()) -> list[Row]:
    """Carry out `cfg`, a composed `evaluate` configuration; print and return the rows."""
    plain = config.check_evaluation(cfg)
    settings = EvaluateSettings(**{k: plain[k] for k in EvaluateSettings.__dataclass_fields__})
    trained = prepare(settings, DeviceSettings(**plain["device"]))
    existing = ledger.read(trained.run)
    nodes = plain["metric"].items()
    estimators = {name: config.build(node, settings.trust, Estimator, f"metric.{name}") for name, node in nodes}
    insist = any(o.split("=")[0] == "metrics" for o in overrides)
    chosen = choose(estimators, trained.subject, insist)
    rows: list[Row] = []
    with Aside(trained.run) as report:
        for name, estimator in chosen.items():
            call = {"estimator": name, **{k: v for k, v in plain["metric"][name].items() if k != "_target_"}}
            call |= {} if settings.n is None else {"first": settings.n}
            call |= {"sampling": settings.sampling} if settings.sampling else {}
            made = [r for r in existing if r.made_by(call, settings.split, settings.seed, trained.checkpoint)]
            if made and not settings.again:
                rows += made
                continue
            with config.speaking_of(f"metric.{name}", plain["metric"][name]):
                fresh, pictures = measure(estimator, trained, call)
            ledger.add(trained.run, fresh)  # at once: what is done stays done, whatever becomes of the next
            report.file(
                trained.step,
                {r.tag: r.value for r in fresh},
                {p.name: p.pixels for p in pictures},
            )
            rows += fresh
    show(rows)
    signs = health.examine(trained.subject, settings.seed, thorough=True, objective=trained.objective)
    for complaint in health.complaints(signs):
        console().print(f"health: {complaint.line}", markup=False, highlight=False, soft_wrap=True)
    return rows


def prepare(settings: EvaluateSettings, device_settings: DeviceSettings) -> Trained:
    """Load what `settings.run` names.

    Raises:
        UsageError: it is no run. CheckpointError: it has no usable checkpoint.
    """
    source = Path(settings.run).expanduser()
    run = require_run(source.parent.parent if source.is_file() else source)
    path, state = checkpoint.find(source)
    device = devices.setup(device_settings)
    model = restore(path, state, settings.trust, settings.sampling).to(device.torch)
    plain = config.resolve(stored_config(state))
    plain["trust"] = settings.trust  # not the one that came with the run
    _, own = split_data(plain["data"])
    data = config.build(own, settings.trust, path="data")
    pipeline = make_pipeline(plain, data, model, device)

    def elsewhere(named: str | Mapping[str, Any]) -> Pipeline:
        return make_pipeline(plain, _other_source(named, plain["data"], settings.trust), model, device)

    subject = Subject(
        model, pipeline, settings.split, settings.n, settings.seed, data.fingerprint(), track=track, elsewhere=elsewhere
    )
    subject.size()
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    objective = config.build(plain["objective"], settings.trust, Objective)
    return Trained(run, state["step"], sha256, subject, state["ema"] is not None, objective)


def _other_source(named: str | Mapping[str, Any], own: Mapping[str, Any], trust: list[str]) -> Source:
    """Another data set at the settings of its file but those that `named` changes; a root is the run's own."""
    options = {"set": named} if isinstance(named, str) else dict(named)
    name = options.pop("set", None)
    if name is None:
        raise UsageError(f"data.anomaly={options}: says no set; e.g. data.anomaly={{set: npz, path: other.npz}}")
    words = [f"data.{key}={json.dumps(value)}" for key, value in options.items()]
    try:
        node = config.check(config.compose("train", [f"data={name}", *words]))["data"]
    except UsageError as error:
        raise UsageError(f"data.anomaly: {error}") from error
    if "root" in node and "root" not in options:
        node["root"] = own.get("root")
    return config.build(split_data(node)[1], trust, None)


def choose(estimators: Mapping[str, Estimator], subject: Subject, insist: bool) -> dict[str, Estimator]:
    """The estimators that can judge the subject; all of them must, if the user named them.

    Raises:
        UsageError: a named one can't, or none can.
    """
    why = {name: estimator.unfit(subject) for name, estimator in estimators.items()}
    fitting = {name: estimators[name] for name in estimators if why[name] is None}
    refused = [name for name in estimators if why[name] is not None]
    if (insist and refused) or not fitting:
        can = [name for name, estimator in standard().items() if estimator.unfit(subject) is None]
        raise UsageError(
            f"metrics=[{','.join(refused)}]: {type(subject.model).__name__} {why[refused[0]]};"
            f" what can judge it: {', '.join(can) or 'nothing'}"
        )
    return fitting


def measure(estimator: Estimator, trained: Trained, call: Mapping[str, Any]) -> tuple[list[Row], list[Picture]]:
    """Run one estimator: its numbers as rows of the ledger, and what it drew."""
    subject = trained.subject
    began = time.monotonic()
    with seeded(subject.seed):
        found = list(estimator(subject))
    seconds = round(time.monotonic() - began, 3)
    rows = [
        row_of(finding, subject, {**call, **finding.settings, "ema": trained.ema}, trained.checkpoint, seconds)
        for finding in found
        if isinstance(finding, Finding)
    ]
    return rows, [picture for picture in found if isinstance(picture, Picture)]


def row_of(finding: Finding, subject: Subject, settings: dict[str, Any], checkpoint: str, seconds: float) -> Row:
    """A finding as a row.

    Raises:
        GentrainError: it is NaN or infinite.
    """
    if not torch.isfinite(torch.tensor([finding.value, finding.stderr])).all():
        raise GentrainError(
            f"metric {finding.metric} ({finding.kind}): came out as {finding.value} ± {finding.stderr};"
            " nothing was recorded: the model may have diverged, look at its samples"
        )
    return Row(
        metric=finding.metric,
        kind=finding.kind,
        value=finding.value,
        stderr=finding.stderr,
        unit=finding.unit,
        support=subject.model.support,
        protocol=subject.pipeline.protocol,
        split=subject.split,
        n=finding.n,
        settings=settings,
        seed=subject.seed,
        checkpoint=checkpoint,
        seconds=seconds,
    )


def show(rows: Sequence[Row]) -> None:
    """Print the rows."""
    cells = [
        (r.metric, r.kind, f"{r.value:.4g}" if abs(r.value) < 10 else f"{r.value:.2f}", f"{r.stderr:.2g}", r.unit,
         _over(r), r.protocol, f"{r.seconds:.1f} s")
        for r in rows
    ]  # fmt: skip
    if not cells:
        console().print("nothing to report")
        return
    print_table("evaluation", ("metric", "kind", "value", "± stderr", "unit", "over", "protocol", "took"), cells)


def _over(row: Row) -> str:
    """What the n of a row counts."""
    for key, word in (("n_fake", "samples"), ("chains", "chains")):
        if row.n == row.settings.get(key) and (key == "n_fake" or row.metric == "log_partition"):
            return f"{row.n:,} {word}"
    return f"{row.n:,} of {row.split}"
