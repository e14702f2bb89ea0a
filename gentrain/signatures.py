"""What a `_target_` takes, read from its source: names, annotations, defaults. Nothing is imported.

Importing a model means importing torch, which takes longer than everything else a mistyped command does. So the
constructor's signature is parsed, and its annotations are evaluated against the names of `gentrain.types`, builtins
and `typing` alone. Annotations that use other names are left unchecked here; the class checks them itself.
"""

from __future__ import annotations

import ast
import importlib.util
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import gentrain.types
from gentrain.errors import UsageError, nearest
from gentrain.types import Range

_NAMES = {**vars(typing), **{name: getattr(gentrain.types, name) for name in gentrain.types.__all__}}


@dataclass(frozen=True)
class Parameter:
    annotation: Any
    required: bool


class Unreadable(Exception):
    """The signature can't be read from source (a C extension, a class built at run time)."""


@cache
def parameters(target: str) -> Mapping[str, Parameter]:
    """Argument name -> `Parameter` of the class or function `package.module.name`.

    Raises:
        UsageError: there is no such module or name.
        Unreadable: it exists but its signature can't be read without running it.
    """
    module, _, name = target.rpartition(".")
    tree, source = _parse(module, target)
    return _of_name(tree, name, target, source)


def _parse(module: str, target: str) -> tuple[ast.Module, str]:
    try:
        spec = importlib.util.find_spec(module) if module else None
    except ImportError as error:
        raise UsageError(f"_target_: {target}: can't import {module!r}: {error}") from error
    if spec is None:
        raise UsageError(f"_target_: {target}: there is no module {module!r}")
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise Unreadable(target)
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8")), spec.origin


def _of_name(tree: ast.Module, name: str, target: str, source: str) -> Mapping[str, Parameter]:
    found: dict[str, ast.AST] = {
        node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    node = found.get(name)
    if isinstance(node, ast.FunctionDef):
        return _of_function(node, skip=0)
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and not node.level
        for alias in node.names
    }
    if isinstance(node, ast.ClassDef):
        package = target.partition(".")[0]  # other packages' modules can't be found without running them
        near = {name: origin for name, origin in imported.items() if origin.partition(".")[0] == package}
        return _of_class(node, found, near)
    if name in imported:
        raise Unreadable(target)
    raise UsageError(f"_target_: {target}: {source} defines no {name!r}.{nearest(name, found)}")


def _of_class(node: ast.ClassDef, found: Mapping[str, ast.AST], imported: Mapping[str, str]) -> Mapping[str, Parameter]:
    """Its constructor's, or that of its bases in the same file and, by `imported`, in others of the package."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _of_function(item, skip=1)
    names = [base.id for base in node.bases if isinstance(base, ast.Name)]
    bases = [found.get(name, imported.get(name)) for name in names]
    inherited: dict[str, Parameter] = {}
    for base in bases:
        if isinstance(base, ast.ClassDef):
            inherited |= _of_class(base, found, imported)
        elif isinstance(base, str) and not inherited:
            with suppress(Unreadable, UsageError):  # of what is no class there, or comes from elsewhere
                inherited |= parameters(base)
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        own = {
            item.target.id: Parameter(_evaluate(item.annotation), item.value is None)
            for item in node.body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        }
        return inherited | own
    if any(not isinstance(base, ast.AST) for base in bases) and not inherited:
        raise Unreadable(node.name)  # the constructor comes from a class in another package
    return inherited


def _of_function(node: ast.FunctionDef, skip: int) -> Mapping[str, Parameter]:
    args = node.args
    if args.kwarg or args.vararg:
        raise Unreadable(node.name)
    positional = [*args.posonlyargs, *args.args]
    optional = len(args.defaults)
    result = {}
    for i, arg in enumerate(positional):
        if i >= skip:
            result[arg.arg] = Parameter(_evaluate(arg.annotation), i < len(positional) - optional)
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        result[arg.arg] = Parameter(_evaluate(arg.annotation), default is None)
    return result


def _evaluate(annotation: ast.expr | None) -> Any:
    if annotation is None:
        return Any
    try:
        return eval(ast.unparse(annotation), dict(_NAMES))  # names of types only: no name of the module is visible
    except (NameError, TypeError, AttributeError, SyntaxError):
        return Any


def check_value(annotation: Any, value: Any, path: str) -> None:
    """Raise UsageError unless `value` (plain YAML data) fits `annotation`.

    >>> from gentrain.types import PositiveInt
    >>> check_value(PositiveInt, 0, "model.latent_dim")
    Traceback (most recent call last):
    gentrain.errors.UsageError: model.latent_dim=0: must be a whole number of at least 1
    """
    if not _fits(annotation, value):
        raise UsageError(f"{path}={_show(value)}: must be {describe(annotation)}{_hint(annotation, value)}")


def _fits(annotation: Any, value: Any) -> bool:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        ranges = [extra for extra in args[1:] if isinstance(extra, Range)]
        return _fits(args[0], value) and all(value in r for r in ranges)
    if origin in (Union, types.UnionType):
        return any(_fits(a, value) for a in args)
    if origin is Literal:
        return any(value == a and type(value) is type(a) for a in args)
    if origin in (list, Sequence) or (origin is tuple and args[1:] == (...,)):
        return isinstance(value, list | tuple) and all(_fits(args[0], v) for v in value)
    if origin is tuple:
        fits = isinstance(value, list | tuple) and len(value) == len(args)
        return fits and all(_fits(a, v) for a, v in zip(args, value, strict=True))
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(_fits(args[0], k) and _fits(args[1], v) for k, v in value.items())
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str, dict, list):
        return isinstance(value, annotation)
    return True


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def describe(annotation: Any) -> str:
    """The annotation in words.

    >>> from gentrain.types import PositiveInt
    >>> describe(list[PositiveInt] | None)
    'a list, each a whole number of at least 1, or null'
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        ranges = " and ".join(str(r) for r in args[1:] if isinstance(r, Range))
        return f"{describe(args[0])} of {ranges}" if ranges.startswith("at") else f"{describe(args[0])} {ranges}"
    if origin in (Union, types.UnionType):
        return ", or ".join(describe(a) for a in args)
    if origin is Literal:
        return " | ".join(str(a) for a in args)
    if origin in (list, Sequence) or (origin is tuple and args[1:] == (...,)):
        return f"a list, each {describe(args[0])}"
    if origin is tuple:
        return f"a list of {len(args)}: {'; '.join(describe(a) for a in args)}"
    if origin in (dict, Mapping):
        return f"a mapping to {describe(args[1])}"
    return _WORDS.get(annotation, str(getattr(annotation, "__name__", annotation)))


def _show(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "null")
    return f"'{value}'" if isinstance(value, str) and not value.strip() else str(value)


def _hint(annotation: Any, value: Any) -> str:
    options = [str(a) for option in _flatten(annotation) if get_origin(option) is Literal for a in get_args(option)]
    if isinstance(value, str) and options:
        return f".{nearest(value, options)}".rstrip(".")
    if isinstance(value, bool) and options:
        return " (YAML reads yes, no, on and off as true and false: write it in quotes)"
    return ""


def _flatten(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [leaf for a in get_args(annotation) for leaf in _flatten(a)]
    return [annotation]
