"""What a `_target_` takes, read from its source: names, annotations, defaults. Nothing is imported.

Importing a model means importing torch, which takes longer than everything else a mistyped command does. So the
constructor's signature is parsed, and its annotations are evaluated against the names of `gentrain.types`, builtins,
`typing`, and what a module of the package calls such types itself (`Loss = Literal["auto", "cross_entropy"]`), there or
where it is imported from. Annotations that use other names are left unchecked here; the class checks them itself.
"""

from __future__ import annotations

import ast
import importlib.util
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
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
    try:
        return _module(module).parameters(name)
    except UsageError as error:
        raise UsageError(f"_target_: {target}: {error}") from error.__cause__


@cache
def _module(name: str) -> _Module:
    try:
        spec = importlib.util.find_spec(name) if name else None
    except ImportError as error:
        raise UsageError(f"can't import {name!r}: {error}") from error
    if spec is None:
        raise UsageError(f"there is no module {name!r}")
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise Unreadable(name)
    return _Module(name, spec.origin)


class _Module(Mapping[str, Any]):
    """The source of a module; as a mapping, the types it has names for."""

    def __init__(self, name: str, source: str):
        self.source = source
        tree = ast.parse(Path(source).read_text(encoding="utf-8"))
        self.defined = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        self.assigned = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        self.imported = {
            alias.asname or alias.name: (node.module, alias.name)
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module and not node.level
            for alias in node.names
        }
        package = name.partition(".")[0]  # other packages' modules can't be found without running them
        self.near = {name: at for name, at in self.imported.items() if at[0].partition(".")[0] == package}

    def parameters(self, name: str) -> Mapping[str, Parameter]:
        node = self.defined.get(name)
        if isinstance(node, ast.FunctionDef):
            return self._of_function(node, skip=0)
        if isinstance(node, ast.ClassDef):
            return self._of_class(node)
        if name in self.imported:
            raise Unreadable(name)
        raise UsageError(f"{self.source} defines no {name!r}.{nearest(name, self.defined)}")

    def _of_class(self, node: ast.ClassDef) -> Mapping[str, Parameter]:
        """Its constructor's, or that of its bases in the same file and in others of the package."""
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                return self._of_function(item, skip=1)
        bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
        inherited: dict[str, Parameter] = {}
        for base in bases:
            if isinstance(of := self.defined.get(base), ast.ClassDef):
                inherited |= self._of_class(of)
            elif base in self.near and not inherited:
                module, name = self.near[base]
                with suppress(Unreadable, UsageError):  # of what is no class there, or comes from elsewhere
                    inherited |= _module(module).parameters(name)
        if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
            own = {
                item.target.id: Parameter(self._evaluate(item.annotation), item.value is None)
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            }
            return inherited | own
        if any(base not in self.defined for base in bases) and not inherited:
            raise Unreadable(node.name)  # the constructor comes from a class in another package
        return inherited

    def _of_function(self, node: ast.FunctionDef, skip: int) -> Mapping[str, Parameter]:
        args = node.args
        if args.kwarg or args.vararg:
            raise Unreadable(node.name)
        positional = [*args.posonlyargs, *args.args]
        optional = len(args.defaults)
        result = {}
        for i, arg in enumerate(positional):
            if i >= skip:
                result[arg.arg] = Parameter(self._evaluate(arg.annotation), i < len(positional) - optional)
        for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
            result[arg.arg] = Parameter(self._evaluate(arg.annotation), default is None)
        return result

    def _evaluate(self, annotation: ast.expr | None) -> Any:
        if annotation is None:
            return Any
        try:
            return self._type(annotation)
        except (NameError, TypeError, AttributeError, SyntaxError):
            return Any

    def _type(self, expression: ast.expr) -> Any:
        return eval(ast.unparse(expression), dict(_NAMES), self)  # sees names of types only

    def __getitem__(self, name: str) -> Any:
        """The type that the module calls `name`; KeyError where that is none, or none of the package."""
        value = self.assigned.get(name)
        if isinstance(value, ast.Subscript) or (isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr)):
            return self._type(value)
        if name not in _NAMES and name in self.near:
            module, original = self.near[name]
            with suppress(Unreadable, UsageError):
                return _module(module)[original]
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.assigned)

    def __len__(self) -> int:
        return len(self.assigned)


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
