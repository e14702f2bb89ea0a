"""Checking composed settings against the records and constructors themselves, before torch is imported."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf

from gentrain.config.building import HOMES, require_trusted
from gentrain.config.composing import groups
from gentrain.config.plain import resolve, stored
from gentrain.errors import UsageError, nearest
from gentrain.settings import (
    CompareSettings,
    DataSettings,
    DeviceSettings,
    EvaluateSettings,
    Expectation,
    Judges,
    OtherData,
    RunSettings,
    SampleSettings,
    TrainerSettings,
    split_data,
)
from gentrain.signatures import Unreadable, check_value, parameters

T = TypeVar("T")

_MODEL = re.compile(r"\$\{(model\.\w+|oc\.select:model\.\w+,null)\}")
_FACT = re.compile(r"\$\{data\.(shape|levels|classes|support|vocabulary)\}")


def check(cfg: DictConfig) -> dict[str, Any]:
    """Check a composed `train` configuration; return it as plain, resolved data.

    Raises:
        UsageError: the first thing that is wrong, with key, value and remedy.
    """
    plain = resolve(cfg)
    sections = ("data", "model", "objective", "optim")
    top = {f.name for f in fields(RunSettings)} | {"trainer", "device", "expect", "evaluate", *sections}
    _known_keys("", plain, top)
    _check_record(RunSettings, {k: v for k, v in plain.items() if k in RunSettings.__dataclass_fields__}, "")
    for section in (*sections, "trainer", "device"):
        if not isinstance(plain.get(section), dict):
            raise UsageError(f"{section}={plain.get(section)}: choose one of {', '.join(groups().get(section, []))}")
    _check_record(TrainerSettings, plain["trainer"], "trainer.")
    TrainerSettings(**plain["trainer"])
    _check_record(DeviceSettings, plain["device"], "device.")
    shared, own = split_data(plain["data"])
    _check_record(DataSettings, shared, "data.")
    raw = stored(cfg)
    _check_target("data", own, raw["data"], plain["trust"], also=shared)
    for section in sections[1:]:
        _check_target(section, plain[section], raw[section], plain["trust"])
    _check_expectations(plain)
    return plain


def _check_expectations(plain: Mapping[str, Any]) -> None:
    """Check `expect` and `evaluate`, which an experiment's file brings: they say how it is judged and train nothing."""
    expect = plain.get("expect", [])
    check_value(list[dict], expect, "expect")
    for i, item in enumerate(expect):
        _check_record(Expectation, item, f"expect.{i}.")
    if "evaluate" in plain:
        check_value(dict, plain["evaluate"], "evaluate")
        _check_record(Judges, plain["evaluate"], "evaluate.")


def check_evaluation(cfg: DictConfig) -> dict[str, Any]:
    """Check a composed `evaluate` configuration; return it as plain, resolved data.

    Raises:
        UsageError: the first thing that is wrong, with key, value and remedy.
    """
    plain = _settings(EvaluateSettings, cfg, "data", "device", "metric")
    _check_record(DeviceSettings, plain["device"], "device.")
    _check_record(OtherData, plain["data"], "data.")
    metrics = plain.setdefault("metric", {})
    if not metrics:
        raise UsageError(f"metrics=[]: name at least one of {', '.join(groups()['metrics'])}")
    for name, node in metrics.items():
        _check_target(f"metric.{name}", node, node, plain["trust"])
    return plain


def check_sampling(cfg: DictConfig) -> dict[str, Any]:
    """Check a composed `sample` configuration; return it as plain, resolved data.

    Raises:
        UsageError: the first thing that is wrong, with key, value and remedy.
    """
    plain = _settings(SampleSettings, cfg, "kind")
    if not isinstance(plain.get("kind"), dict):
        raise UsageError(f"kind={plain.get('kind')}: choose one of {', '.join(groups()['kind'])}")
    _check_target("kind", plain["kind"], plain["kind"], plain["trust"])
    return plain


def require_given(cfg: DictConfig) -> None:
    """Refuse a configuration in which something stands as ??? still."""
    missing = [str(key) for key in cfg if OmegaConf.is_missing(cfg, str(key))]
    if missing:
        raise UsageError(
            f"{missing[0]}=…: must be given, e.g. {missing[0]}=outputs/digits/vae-elbo/20260131-120000-1a2b"
        )


def record(kind: type[T], cfg: DictConfig) -> T:
    """A composed configuration as the record that describes it.

    Raises:
        UsageError: a key is missing or unknown, a value of the wrong type or out of range.
    """
    return kind(**_settings(kind, cfg))


def _settings(kind: type, cfg: DictConfig, *sections: str) -> dict[str, Any]:
    """A composed configuration as plain data: the settings of a record, which are checked, and further sections."""
    require_given(cfg)
    plain = resolve(cfg)
    own = kind.__dataclass_fields__
    _known_keys("", plain, {*own, *sections})
    _check_record(kind, {k: v for k, v in plain.items() if k in own}, "")
    return plain


CHECKS: dict[str, Callable[[DictConfig], Any]] = {
    "evaluate": check_evaluation,
    "sample": check_sampling,
    "compare": lambda cfg: record(CompareSettings, cfg),
}
"""Verb -> what refuses a bad `conf/<verb>.yaml` configuration, without torch."""


def _check_record(record: type, values: Mapping[str, Any], prefix: str) -> None:
    hints = get_type_hints(record, include_extras=True)
    _known_keys(prefix, values, hints)
    for f in fields(record):
        if f.name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise UsageError(f"{prefix}{f.name}: missing from the configuration")
        if f.name in values:
            check_value(hints[f.name], values[f.name], prefix + f.name)


def _known_keys(prefix: str, values: Iterable[str], valid: Iterable[str]) -> None:
    for key in values:
        if key not in valid:
            raise UsageError(
                f"{prefix}{key}: there is no such key.{nearest(key, valid)} Valid: {', '.join(sorted(valid))}"
            )


def _check_target(
    path: str, node: Mapping[str, Any], raw: Any, trust: Sequence[str], also: Mapping[str, Any] | None = None
) -> None:
    """Check one `_target_` node, and those nested in it, against the signature of what it names."""
    target = node.get("_target_")
    if not isinstance(target, str):
        raise UsageError(f"{path}._target_={target}: must name a class, e.g. {HOMES.get(path, 'gentrain.')}…")
    require_trusted(target, trust, f"{path}._target_")
    try:
        takes = parameters(target)
    except Unreadable:
        takes = None
    for key, value in node.items():
        given = raw.get(key) if isinstance(raw, Mapping) else None
        for where, nested, origin in _targets(f"{path}.{key}", value, given):
            _check_target(where, nested, origin, trust)
        if isinstance(value, Mapping) and "_target_" in value:
            continue
        if key != "_target_" and takes is not None:
            _known_keys(f"{path}.", [key], {**takes, **(also or {})})
            unknown_yet = value is None and isinstance(given, str) and _FACT.fullmatch(given)
            # what follows the model is judged once the two are known to fit: else the complaint would be about this
            if not unknown_yet and not (isinstance(given, str) and _MODEL.fullmatch(given)):
                check_value(takes[key].annotation, value, f"{path}.{key}")
    missing = [key for key, parameter in (takes or {}).items() if parameter.required and key not in node]
    if missing:
        raise UsageError(f"{path}.{missing[0]}: {target} needs it; set {path}.{missing[0]}=…")


def _targets(path: str, node: Any, raw: Any) -> Iterator[tuple[str, Mapping[str, Any], Any]]:
    """The outermost nodes with a `_target_` in a node, itself included: (path, node, the same uninterpolated)."""
    if isinstance(node, Mapping) and "_target_" in node:
        yield path, node, raw
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _targets(f"{path}.{key}", value, raw.get(key) if isinstance(raw, Mapping) else None)
