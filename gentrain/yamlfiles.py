"""What is wrong with a user's YAML files, said before Hydra reads them.

YAML 1.1 reads `no` as false, `010` as 8 and `12:30` as 750, the last of two equal keys used to win silently, and a
`_target_` under `hydra` is called as soon as Hydra starts. None of that is what its writer meant; all of it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from omegaconf._utils import get_yaml_loader

from gentrain.errors import UsageError

_TAG = "tag:yaml.org,2002:"


def check_folder(folder: Path, groups: list[str]) -> None:
    """Check the files of a `--config-dir`: those at its top and in the folders of configuration groups.

    Raises:
        UsageError: the first thing that is wrong, with file and line.
    """
    for group in ("", "hydra", *groups):
        home = folder / group
        for file in sorted(home.glob("**/*.yaml" if group else "*.yaml")):
            _check_file(file, in_hydra=group == "hydra")


def _check_file(file: Path, in_hydra: bool) -> None:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise UsageError(f"{file}: can't be read: {error}") from error
    package = re.search(r"^\s*#\s*@package\s+(\S+)", text, re.MULTILINE)
    path = ["hydra"] if in_hydra or (package and package[1].split(".")[0] == "hydra") else []
    try:
        for root in yaml.compose_all(text, Loader=get_yaml_loader()):
            for where, problem in _problems(root, path):
                raise UsageError(f"{file}, line {where.start_mark.line + 1}: {problem}")
    except yaml.YAMLError as error:
        raise explain(error, file) from error


def explain(error: Exception, file: object = "") -> UsageError:
    """A parser's complaint as one line: it knows the place, but says it on several."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).strip().split("\n", 1)[0]
    line = f", line {mark.line + 1}" if mark is not None else ""
    return UsageError(f"{file or getattr(mark, 'name', '')}{line}: {problem}")


def _problems(node: yaml.Node | None, path: list[str]) -> Iterator[tuple[yaml.Node, str]]:
    if isinstance(node, yaml.ScalarNode):
        if (trap := _trap(node)) is not None:
            yield node, trap
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _problems(item, path)
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield key, f"the key {key.value!r} stands there twice; keep one"
            seen.add(key.value)
            yield from _problems(key, path)
            inside = [*path, str(key.value)]
            if inside[0].split(".")[0] == "hydra" and key.value == "_target_" and not _of_hydra(value):
                yield (
                    key,
                    f"_target_: {value.value}: Hydra would call that when it starts; only Hydra's own may stand here",
                )
            yield from _problems(value, inside)


def _of_hydra(value: yaml.Node) -> bool:
    return isinstance(value, yaml.ScalarNode) and value.value.startswith(
        ("hydra._internal.core_plugins.", "hydra_plugins.")
    )


def _trap(node: yaml.ScalarNode) -> str | None:
    """What an unquoted word means to YAML, if that is not what it looks like."""
    word, tag = node.value, node.tag.removeprefix(_TAG)
    if node.style is not None:  # in quotes
        return None
    if tag == "bool" and word.lower() not in ("true", "false"):
        means = "true" if word.lower() in ("yes", "on") else "false"
        return f"YAML reads {word} as {means}: write {means}, or '{word}' in quotes for the word"
    if tag == "int" and re.fullmatch(r"[-+]?0[0-7_]+", word):
        decimal = word.replace("_", "").lstrip("+-").lstrip("0") or "0"
        return (
            f"YAML reads {word} as {int(word.replace('_', ''), 8)}, in base 8: write {decimal}, or '{word}' in quotes"
        )
    if tag in ("int", "float") and ":" in word:
        return f"YAML reads {word} as a number in base 60: write '{word}' in quotes, or the number itself"
    return None
