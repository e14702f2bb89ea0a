"""Composed settings as plain data: resolved, as they are stored, or by dotted name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from gentrain.errors import UsageError


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Plain data with every interpolation resolved."""
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UsageError(f"{error.full_key}: must be given: {error.full_key}=…") from error
    except OmegaConfBaseException as error:
        raise UsageError(f"configuration: {first_line(error)}") from error
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


def first_line(error: BaseException) -> str:
    """What an error says, as one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "use +" not in line]
    return lines[0] if lines else type(error).__name__
