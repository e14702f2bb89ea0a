"""Random command lines: never a traceback, always one line, and no run folder unless something was trained."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from conftest import runs

from gentrain import config
from gentrain.cli import main

GROUPS = config.groups()
KEYS = [
    "seed", "output", "trust", "traceback", "data.batch_size", "data.validation", "data.binarization", "data.shape",
    "data.support", "data.root", "trainer.steps", "trainer.epochs", "trainer.ema", "trainer.clip", "trainer.keep",
    "model.latent_dim", "model.hidden", "model.shape", "model.likelihood", "model._target_", "model", "data", "optim",
    "objective.k", "objective.beta", "objective", "optim.lr", "optim.betas", "optim.schedule", "optim.parts",
    "optim.parts.generator", "device.name", "device.precision", "device.threads", "hydra.run.dir", "hydra.job.name",
    "experiment", "run", "x", "model.x.y", "", "=", ".", "a.b.c", "trainer", "_target_", "data.n", "hydra/launcher",
]  # fmt: skip
VALUES = [
    "", "null", "true", "no", "-1", "0", "1", "1.5", "1e400", "nan", "-inf", "010", "12:30", "0x10", "[]", "[1]",
    "[1,[2]]", "[1", "{}", "{a: 1}", "{a", "'", '"', "\\", "x", "é", "日本", "${x}", "${data.shape}", "${model}",
    "${oc.env:NO}", "${", "a b", "a,b", "a=b", "???", "*", "&x", "!!python/object:os.system", "range(1,3)", "glob(*)",
    "choice(1,2)", "\t", "%s", "vae", "rbm", "os.system", "gentrain.models.vae.VAE", "../..", "/dev/null",
    "99999999999999999999", "\x00", "-m",
]  # fmt: skip
FLAGS = [
    "--cfg",
    "--resolve",
    "--info",
    "-x",
    "--multirun=3",
    "--config-dir",
    "--config-name",
    "-h=1",
    "--",
    "-c",
    "@",
    "~",
]


def word(chance: random.Random) -> str:
    kind = chance.random()
    if kind < 0.08:
        return chance.choice(FLAGS)
    if kind < 0.25:
        group = chance.choice(list(GROUPS))
        return f"{group}={chance.choice([*GROUPS[group], chance.choice(VALUES)])}"
    prefix = chance.choice(["", "", "", "", "+", "++", "~"])
    return f"{prefix}{chance.choice(KEYS)}={chance.choice(VALUES)}"


FOUND = [  # what random words have broken once
    ["model=[1]"], ["model=null"], ["objective=[1,[2]]"], ["trust=1"], ["+=\\"], ["hydra.run.dir=/dev/null"],
    ["optim.lr=${optim.rate}"], ["experiment=[1,[2]]", "~device.name=x"], ["sample", "run=x", "fromat=png"],
]  # fmt: skip


@pytest.mark.parametrize("seed", [*range(60), *FOUND], ids=str)
def test_no_command_line_ends_in_a_traceback(seed: int | list[str], tmp_path: Path, capsys, monkeypatch):
    """What passes all checks is trained, for a hundredth of a second."""
    chance = random.Random(str(seed))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENTRAIN_DATA", str(tmp_path / "none"))
    words = seed if isinstance(seed, list) else [word(chance) for _ in range(chance.choice([1, 1, 2, 3]))]
    mentioned = {w.lstrip("+~").partition("=")[0].partition(".")[0] for w in words}
    guard = ["trainer.max_time=0.01", "trainer.sample_every=0", "device=cpu"] if words[0] != "sample" else []
    args = [*words, *(g for g in guard if g.partition("=")[0].partition(".")[0] not in mentioned)]
    code = main(args)
    out, complaint = capsys.readouterr()
    if "traceback=true" not in words:
        assert "Traceback" not in out + complaint, args
        assert code == 0 or complaint.splitlines()[-1].startswith("gentrain: "), args
        assert "Error: " not in complaint.split("(traceback in")[0] or code == 1, args
    assert code in (0, 1, 2, 74), args
    assert "traceback in /tmp/gentrain-" not in complaint, f"{args}: an error nobody has put into words: {complaint}"
    if code == 2:
        assert not runs(tmp_path / "outputs"), args
