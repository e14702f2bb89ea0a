"""Composing by Hydra: which groups and options there are, what the command line said, and what was wrong with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from traceback import walk_tb
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gentrain import yamlfiles
from gentrain.config.plain import first_line
from gentrain.errors import GentrainError, UsageError, nearest


def conf_dir() -> Path:
    """The folder of YAML files: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


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
        group, at, place = key.partition("@")  # data@data.of=mnist takes an option of data to another place
        listed = value.strip("[]") if key == "metrics" else value  # the one group of which several are chosen
        choices = listed.split(",") if group in known and not re.search(r"[(\[]", listed) else []  # of a sweep: several
        for choice in choices:
            if choice and choice not in (*known[group], *(["null"] if at or group == "experiment" else [])):
                nearby = nearest(choice, known[group])
                return UsageError(
                    f"{override}: there is no {group} {choice!r}.{nearby} Available: {', '.join(known[group])}"
                )
        if not override.startswith(("+", "~", "hydra")) and (at or group not in known):
            try:
                others = [o for o in overrides if o != override]  # which compose, or what is wrong with them is said
                _require_key(_bare(name, others, folders), place if group in known else group, override)
            except UsageError as problem:
                return problem
    cause = f" {first_line(error.__cause__)}" if error.__cause__ else ""
    return UsageError(f"{' '.join(overrides) or name}: {first_line(error)}{cause}")


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
    valid = [f"{key}={value}" for key, value in choices if value in known.get(key.partition("@")[0], [])]
    return compose(name, valid, folders)


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
