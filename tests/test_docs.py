"""What the documents say works: the guide's files run as printed, and the README's commands compose."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from gentrain import config
from gentrain.cli import VERBS

ROOT = Path(__file__).parent.parent


def blocks(document: str, language: str) -> Iterator[tuple[str, str]]:
    """(what follows the language on the fence, content) of each fenced block."""
    text = (ROOT / document).read_text(encoding="utf-8")
    yield from re.findall(rf"^```{language}[ ]*(.*?)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_guide_to_a_model_of_ones_own_works_as_printed(cli, tmp_path):
    for language in ("python", "yaml"):
        for name, content in blocks("docs/adding-a-model.md", language):
            if name:
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(content)
    training, checking = (shlex.split(command) for _, command in blocks("docs/adding-a-model.md", "sh"))
    words = training
    assert words[0] == checking[0] == "gentrain"
    done = cli(*words[1:], "trainer.checkpoint_every=100")
    assert done.returncode == 0, done.stderr
    assert re.search(r"test log_likelihood \(exact\) +-\d", done.stdout)
    [run] = (tmp_path / "outputs").glob("digits/pixels-lasso/*")
    checked = cli(*checking[1:])
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert re.search(r"probabilities sum to one +held", checked.stdout) and " 0 failed" in checked.stdout
    trust = "trust=[my_models,my_objectives]"
    assert cli("sample", f"run={run}", trust).returncode == 0
    refused = cli(*words[1:], "model.temperature=-1")
    assert refused.returncode == 2
    assert "model.temperature=-1: must be a number above 0" in refused.stderr


def readme_commands() -> list[list[str]]:
    lines = [line for _, block in blocks("README.md", "sh") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [w[1:] for w in words if w[:1] == ["gentrain"]]


@pytest.mark.parametrize("words", readme_commands(), ids=" ".join)
def test_the_readmes_commands_compose(words):
    verb = words[0] if words and words[0] in VERBS else "train"
    overrides = [w for w in words if "=" in w and not w.startswith("hydra")]
    if verb == "compare":
        cfg = config.read(config.conf_dir() / "compare.yaml")
        config.apply(cfg, [re.sub(r"=(.*,.*)", r"=[\1]", o) for o in overrides])
        config.CHECKS[verb](cfg)
    elif verb in ("evaluate", "sample"):
        config.CHECKS[verb](config.compose(verb, overrides))
    elif verb == "resume":
        config.compose(verb, overrides)
    else:  # a sweep, or several experiments: the first of each
        config.check(config.compose("train", [o.split(",")[0] if "-m" in words else o for o in overrides]))


def test_there_are_commands_in_the_readme():
    assert len(readme_commands()) >= 12
