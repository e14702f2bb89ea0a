"""Building: the only place where a `_target_` becomes an object, and which targets may."""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from gentrain.config.plain import first_line
from gentrain.errors import GentrainError, UsageError

HOMES = {
    "data": "gentrain.data.",
    "model": "gentrain.models.",
    "objective": "gentrain.objectives.",
    "optim": "gentrain.optim.",
    "metric": "gentrain.evaluation.",
    "kind": "gentrain.uses.",
}
"""Where gentrain's own targets for each section live; a target of ours from anywhere else is refused."""


def require_trusted(target: str, trust: Sequence[str], path: str = "_target_") -> None:
    """Refuse a target outside gentrain and the packages that the user named."""
    package = target.split(".")[0]
    if package == "gentrain":
        if not target.startswith(tuple(HOMES.values())) or target.rpartition(".")[2].startswith("_"):
            raise UsageError(f"{path}={target}: in gentrain it must lie in {', '.join(h[:-1] for h in HOMES.values())}")
    elif package not in trust:
        raise UsageError(f"{path}={target}: lies outside gentrain; if you trust that code, say trust=[{package}]")


def build(node: Mapping[str, Any], trust: Sequence[str], expected: type | None = None, path: str = "") -> Any:
    """Call what `_target_` names with the node's other keys; nested targets are built first.

    Args:
        node: plain data with a `_target_`. trust: packages besides gentrain. expected: what it must be a subclass of.
        path: where in the configuration the node stands; what is nested in it then complains under its full name.

    Raises:
        UsageError: the target is not trusted, doesn't exist, is no `expected`, or refuses its arguments.
    """
    target = str(node["_target_"])
    factory = locate(target, trust)
    if expected is not None and not (isinstance(factory, type) and issubclass(factory, expected)):
        raise UsageError(f"_target_={target}: must be a subclass of {expected.__module__}.{expected.__name__}")
    arguments = {key: _built(value, trust, f"{path}.{key}") for key, value in node.items() if key != "_target_"}
    with speaking_of(path, arguments):
        return factory(**arguments)


def _built(value: Any, trust: Sequence[str], path: str) -> Any:
    """A value in which every mapping with a `_target_` has become what it names."""
    if not isinstance(value, Mapping):
        return value
    if "_target_" in value:
        return build(value, trust, path=path)
    return {key: _built(v, trust, f"{path}.{key}") for key, v in value.items()}


@contextmanager
def speaking_of(path: str, options: Collection[str]) -> Iterator[None]:
    """Let complaints of what stands at `path`, which doesn't know where that is, name these options of it in full."""
    try:
        yield
    except GentrainError as error:
        error.args = (_in_full(str(error), path, options), *error.args[1:])
        raise


def _in_full(message: str, path: str, options: Collection[str]) -> str:
    """A complaint with its options by their full names: it may know them alone, or as those of a whole section.

    >>> _in_full("data.path=images is not a folder", "data.to", ["path", "size"])
    'data.to.path=images is not a folder'
    >>> _in_full("level=2 is the probability of mask: at most 1", "kind", ["noise", "level"])
    'kind.level=2 is the probability of mask: at most 1'
    """
    if not path or not options:
        return message
    if message.partition("=")[0] in options:
        return f"{path}.{message}"
    section, nested, _ = path.partition(".")
    if not nested:
        return message
    return re.sub(rf"\b{section}\.(?=(?:{'|'.join(map(re.escape, options))})\b)", f"{path}.", message)


def locate(target: str, trust: Sequence[str]) -> Any:
    """The class or function that `target` names, if it was really defined in a trusted package."""
    require_trusted(target, trust)
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"_target_={target}: can't be imported: {first_line(error)}") from error
    origin = getattr(found, "__module__", "")
    if not callable(found) or str(origin).split(".")[0] not in {"gentrain", *trust}:
        raise UsageError(f"_target_={target}: is not defined in gentrain or a trusted package but in {origin!r}")
    return found
