"""Configuration: composed by Hydra, checked against the constructors themselves, built into objects.

`check` refuses unknown keys, wrong types and ranges before torch is imported; `build` is the only place where a
`_target_` becomes an object. Hydra is known here and in `gentrain.cli` alone.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from traceback import walk_tb
from typing import Any, TypeVar, get_type_hints

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from gentrain import yamlfiles
from gentrain.errors import GentrainError, UsageError, nearest
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

HOMES = {
    "data": "gentrain.data.",
    "model": "gentrain.models.",
    "objective": "gentrain.objectives.",
    "optim": "gentrain.optim.",
    "metric": "gentrain.evaluation.",
    "kind": "gentrain.uses.",
}
"""Where gentrain's own targets for each section live; a target of ours from anywhere else is refused."""

_MODEL = re.compile(r"\$\{(model\.\w+|oc\.select:model\.\w+,null)\}")
_FACT = re.compile(r"\$\{data\.(shape|levels|classes|support|vocabulary)\}")


def conf_dir() -> Path:
    """The folder of YAML files: beside the package in a checkout, inside it in a wheel."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def groups(folder: Path | None = None) -> dict[str, list[str]]:
    """Configuration group -> its options.

    >>> "vae" in groups()["model"]
    True
    """
    root = folder or conf_dir()
    return {d.name: sorted(f.stem for f in d.glob("*.yaml")) for d in sorted(root.iterdir()) if d.is_dir()}


def compose(name: str, overrides: Sequence[str] = (), folders: Sequence[Path] = ()) -> DictConfig:
    """The configuration `name` with `overrides` applied, as the command line composes it.

    Raises:
        UsageError: an override names a group, option or key that doesn't exist, or can't be read.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    for folder in folders:
        check_folder(folder)
    others = GlobalHydra.instance().hydra  # a notebook may have its own
    GlobalHydra.instance().clear()
    search = [f"hydra.searchpath=[{','.join(f'file://{f}' for f in folders)}]"] if folders else []
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return hydra_compose(name, [*search, *overrides])
    except Exception as error:
        raise explain(error, overrides, name, folders) from error
    finally:
        GlobalHydra.instance().hydra = others


def check_folder(folder: Path) -> None:
    """Refuse in a `--config-dir` what YAML would misread, what Hydra would call, and what it would pass over.

    Raises:
        UsageError: the first thing that is wrong, with the file.
    """
    known = groups()
    yamlfiles.check_folder(folder, list(known))
    if folder.resolve() == conf_dir().resolve():
        return
    for group, options in groups(folder).items():
        for option in options:
            if option in known.get(group, []):
                file = folder / group / f"{option}.yaml"
                raise UsageError(f"{file}: gentrain has a {group} {option} of its own, which goes first; rename yours")


def said() -> list[str]:
    """The overrides of the command line that Hydra is carrying out, as they were typed: `${oc.env:SECRET}` stays."""
    from hydra.core.hydra_config import HydraConfig

    return [str(o) for o in OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)]  # type: ignore


def require_said(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse trust in code that isn't on the command line itself: a YAML file must not vouch for its own `_target_`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    said: list[str] = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.key_or_group == "trust":
            value = override.value()
            said = value if isinstance(value, list) else []
    trusted = cfg.get("trust") or []
    if not isinstance(trusted, ListConfig | list):
        raise UsageError(f"trust={trusted}: must be a list of packages, e.g. trust=[my_pkg]")
    unsaid = [package for package in trusted if package not in said]
    if unsaid:
        packages = ",".join(unsaid)
        raise UsageError(f"trust: {packages} stands in a YAML file; if you trust that code, say trust=[{packages}]")


def read(path: Path) -> DictConfig:
    """A configuration from a YAML file.

    Raises:
        UsageError: it isn't YAML, or no mapping.
    """
    try:
        cfg = OmegaConf.load(path)
    except (yaml.YAMLError, OSError, UnicodeError, OmegaConfBaseException) as error:
        raise yamlfiles.explain(error, path) from error
    if not isinstance(cfg, DictConfig) or not cfg:
        raise UsageError(f"{path}: must hold keys and values, e.g. seed: 0")
    OmegaConf.set_struct(cfg, True)
    return cfg


def apply(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Set `key=value` overrides on an already composed configuration, in place; the keys must exist."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except Exception as error:
        raise explain(error, overrides, "train") from error
    for override in parsed:
        key = override.key_or_group
        if override.is_sweep_override() or override.is_add() or override.is_delete():
            raise UsageError(f"{override.input_line}: only key=value can change a stored configuration")
        _require_key(cfg, key, override.input_line or key)
        OmegaConf.update(cfg, key, override.value(), merge=False)


# --- checking -------------------------------------------------------------------------------------------------------


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
    require_given(cfg)
    plain = resolve(cfg)
    own = EvaluateSettings.__dataclass_fields__
    _known_keys("", plain, {*own, "data", "device", "metric"})
    _check_record(EvaluateSettings, {k: v for k, v in plain.items() if k in own}, "")
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
    require_given(cfg)
    plain = resolve(cfg)
    own = SampleSettings.__dataclass_fields__
    _known_keys("", plain, {*own, "kind"})
    _check_record(SampleSettings, {k: v for k, v in plain.items() if k in own}, "")
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
    require_given(cfg)
    plain = resolve(cfg)
    _check_record(kind, plain, "")
    return kind(**plain)


CHECKS: dict[str, Callable[[DictConfig], Any]] = {
    "evaluate": check_evaluation,
    "sample": check_sampling,
    "compare": lambda cfg: record(CompareSettings, cfg),
}
"""Verb -> what refuses a bad `conf/<verb>.yaml` configuration, without torch."""


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Plain data with every interpolation resolved."""
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UsageError(f"{error.full_key}: must be given: {error.full_key}=…") from error
    except OmegaConfBaseException as error:
        raise UsageError(f"configuration: {_first_line(error)}") from error
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}


def stored(cfg: DictConfig) -> dict[str, Any]:
    """Plain data as it goes into files: interpolations stay unresolved, so ${oc.env:SECRET} stays a name."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name.

    >>> flat({"seed": 0, "model": {"hidden": [400]}})
    {'seed': 0, 'model.hidden': [400]}
    """
    if isinstance(node, Mapping):
        return {k: v for key, value in node.items() for k, v in flat(value, f"{prefix}{key}.").items()}
    return {prefix[:-1]: node}


def shown(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Stored data with interpolations resolved, for tables: what comes from the environment stays a name."""

    def masked(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: masked(value) for key, value in node.items()}
        if isinstance(node, list):
            return [masked(value) for value in node]
        return node.replace("${", "\\${") if isinstance(node, str) and "oc.env" in node else node

    cfg = OmegaConf.create(masked(stored))
    assert isinstance(cfg, DictConfig)
    return resolve(cfg)


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


def require_trusted(target: str, trust: Sequence[str], path: str = "_target_") -> None:
    """Refuse a target outside gentrain and the packages that the user named."""
    package = target.split(".")[0]
    if package == "gentrain":
        if not target.startswith(tuple(HOMES.values())) or target.rpartition(".")[2].startswith("_"):
            raise UsageError(f"{path}={target}: in gentrain it must lie in {', '.join(h[:-1] for h in HOMES.values())}")
    elif package not in trust:
        raise UsageError(f"{path}={target}: lies outside gentrain; if you trust that code, say trust=[{package}]")


# --- building -------------------------------------------------------------------------------------------------------


def build(node: Mapping[str, Any], trust: Sequence[str], expected: type | None = None) -> Any:
    """Call what `_target_` names with the node's other keys; nested targets are built first.

    Raises:
        UsageError: the target is not trusted, doesn't exist, is no `expected`, or refuses its arguments.
    """
    target = str(node["_target_"])
    factory = locate(target, trust)
    if expected is not None and not (isinstance(factory, type) and issubclass(factory, expected)):
        raise UsageError(f"_target_={target}: must be a subclass of {expected.__module__}.{expected.__name__}")
    return factory(**{key: _built(value, trust) for key, value in node.items() if key != "_target_"})


def _built(value: Any, trust: Sequence[str]) -> Any:
    """A value in which every mapping with a `_target_` has become what it names."""
    if not isinstance(value, Mapping):
        return value
    return build(value, trust) if "_target_" in value else {key: _built(v, trust) for key, v in value.items()}


def locate(target: str, trust: Sequence[str]) -> Any:
    """The class or function that `target` names, if it was really defined in a trusted package."""
    require_trusted(target, trust)
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"_target_={target}: can't be imported: {_first_line(error)}") from error
    origin = getattr(found, "__module__", "")
    if not callable(found) or str(origin).split(".")[0] not in {"gentrain", *trust}:
        raise UsageError(f"_target_={target}: is not defined in gentrain or a trusted package but in {origin!r}")
    return found


# --- explaining -----------------------------------------------------------------------------------------------------


def explain(error: Exception, overrides: Sequence[str], name: str, folders: Sequence[Path] = ()) -> Exception:
    """Hydra's complaint about overrides as one line with the nearest valid word; other errors come back as they are."""
    from hydra.errors import HydraException

    if isinstance(error, yaml.YAMLError):
        return yamlfiles.explain(error)
    if isinstance(error, GentrainError) or not (isinstance(error, HydraException) or _is_of_hydra(error)):
        return error
    known = _options(folders)
    for override in overrides:
        key, _, value = override.partition("=")
        key = key.lstrip("+~")
        listed = value.strip("[]") if key == "metrics" else value  # the one group of which several are chosen
        choices = listed.split(",") if key in known and not re.search(r"[(\[]", listed) else []  # of a sweep: several
        for choice in choices:
            if choice and choice not in (*known[key], *(["null"] if key == "experiment" else [])):
                nearby = nearest(choice, known[key])
                return UsageError(
                    f"{override}: there is no {key} {choice!r}.{nearby} Available: {', '.join(known[key])}"
                )
        if not override.startswith(("+", "~", "hydra")) and key not in known:
            try:
                _require_key(_bare(name, overrides, folders), key, override)
            except UsageError as problem:
                return problem
    cause = f" {_first_line(error.__cause__)}" if error.__cause__ else ""
    return UsageError(f"{' '.join(overrides) or name}: {_first_line(error)}{cause}")


def _options(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Groups and their options, those in a user's own folders included."""
    places = [groups(), *map(groups, folders)]
    return {group: sorted({o for p in places for o in p.get(group, [])}) for p in places for group in p}


def _is_of_hydra(error: Exception) -> bool:
    """Whether it was raised while Hydra had the word: strange overrides surprise it into errors of every type."""
    frames = [(frame.f_globals.get("__name__", ""), frame.f_code.co_name) for frame, _ in walk_tb(error.__traceback__)]
    ours = [function for module, function in frames if module.split(".")[0] == "gentrain"]
    return bool(ours) and ours[-1] in ("compose", "apply", "through_hydra")


def _bare(name: str, overrides: Sequence[str], folders: Sequence[Path]) -> DictConfig:
    """The configuration with only the valid choices of groups applied, of a sweep's the first: which keys there are."""
    known = _options(folders)
    choices = [(key, value.split(",")[0]) for key, _, value in (o.partition("=") for o in overrides)]
    return compose(name, [f"{key}={value}" for key, value in choices if value in known.get(key, [])], folders)


def _require_key(cfg: DictConfig, key: str, override: str) -> None:
    node: Any = cfg
    prefix = ""
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node.keys():  # noqa: SIM118 -- `in node` skips missing values
            valid = [str(k) for k in node] if isinstance(node, DictConfig) else []
            valid += list(groups()) if not prefix and "trainer" in node else []
            listed = f" Valid: {', '.join(sorted(set(valid) - {'hydra'}))}" if valid else ""
            raise UsageError(f"{override}: there is no key '{prefix}{part}'.{nearest(part, valid)}{listed}")
        node = node._get_node(part)
        prefix += f"{part}."


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "use +" not in line]
    return lines[0] if lines else type(error).__name__
