"""The command as its users meet it: help, verbs, samples, terminals of all kinds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, command, runs
from PIL import Image

import gentrain
from gentrain import __version__, config
from gentrain.cli import VERBS, _let_go, main
from gentrain.errors import Interrupted

QUICK = [*TINY, "trainer.sample_every=0", "trainer.evaluate_every=0", "trainer.steps=4"]
WITHOUT_TORCH = """
import contextlib, io, sys
from gentrain.cli import main
for words in sys.argv[1:]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main(words.split())
    print(code, *[m for m in ("torch", "torchvision", "tensorboard", "sklearn") if m in sys.modules])
"""


def test_help_and_mistakes_dont_wait_for_torch(tmp_path: Path):
    calls = {
        "--help": 0, "train --help": 0, "sample -h": 0, "--version": 0, "--cfg job": 0, "model=vea": 2,
        "model.latent_dim=-1": 2, "optim.lr=abc": 2, "modle=vae": 2, "trainer.stesp=1": 2, "smaple run=x": 2,
        "model._target_=os.system": 2, "sample kind=x run=y": 2, "resume": 2, "-m model=vea,vae": 2,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *calls], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert dict(zip(calls, done.stdout.splitlines(), strict=True)) == {call: str(code) for call, code in calls.items()}
    assert not list(tmp_path.glob("outputs/*/*/*")), "a run folder was left behind"


def test_help_lists_every_option_with_its_meaning(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    described = {line.split()[0] for line in text.splitlines() if len(line.split()) > 2}
    for options in config.groups().values():
        assert set(options) <= described
    for key in ("seed", "batch_size", "steps", "ema", *VERBS):
        assert f"{key}" in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_help(verb: str, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    for key in ("seed", "data=") if verb == "train" else config.compose(verb):
        assert str(key) in text


def test_version_and_configuration_are_shown(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gentrain {__version__}\n"
    assert main(["--cfg", "job", "model=rbm", "model.hidden=7"]) == 0
    text = capsys.readouterr().out
    assert "_target_: gentrain.models.rbm.RBM" in text and "hidden: 7" in text and "objectives.contrastive.CD" in text


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_the_real_command_trains_where_there_is_no_terminal_to_speak_of(encoding: str, tmp_path: Path):
    """Not a terminal, TERM=dumb, NO_COLOR, 20 columns, a code page without half of our letters."""
    hard = {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "20", "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}

    def cli(*args: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, **hard}
        return subprocess.run(command(*args), capture_output=True, encoding=encoding, cwd=tmp_path, env=env)

    done = cli(*QUICK, "model.hidden=[8]")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout and "\r" not in done.stdout and done.stderr == ""
    (run,) = runs(tmp_path / "outputs")
    assert "test elbo" in done.stdout and run.name in done.stdout.replace("\n", "")
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    for words, code in ((["--help"], 0), (["model=vea"], 2)):
        done = cli(*words)
        assert done.returncode == code and "Traceback" not in done.stderr and "\x1b" not in done.stdout + done.stderr


def test_traceback_is_shown_when_asked_for_and_always_in_the_log(tmp_path: Path, capsys, monkeypatch):
    def fail(*args: object) -> None:
        raise ZeroDivisionError("the objective's own mistake")

    monkeypatch.setattr("gentrain.objectives.elbo.ELBO.forward", fail)
    for words in ([], ["traceback=true"]):
        folder = tmp_path / f"outputs{len(words)}"
        assert main([*QUICK, f"output={folder}", *words]) == 1
        complaint = capsys.readouterr().err
        [run] = runs(folder)
        assert "gentrain: ZeroDivisionError: the objective's own mistake" in complaint
        assert ("Traceback" in complaint) == bool(words) and (complaint.count("\n") == 1) != bool(words)
        if not words:
            assert str(run / "train.log") in complaint
        text = (run / "train.log").read_text()
        assert "Traceback" in text and "in fail" in text
        status = json.loads((run / "status.json").read_text())
        assert status["state"] == "failed" and status["reason"] in complaint
    assert main(["model=vea", "traceback=true"]) == 2
    assert "Traceback" in capsys.readouterr().err


# --- sampling -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of a model that encodes and decodes, one that only decodes, one that does neither, one of points."""
    output = tmp_path_factory.mktemp("trained")
    small = [*QUICK, f"output={output}"]
    return {
        "vae": gentrain.train([*small, "model=vae", "model.hidden=[8]", "model.latent_dim=2"]).path,
        "gan": gentrain.train([*small, "model=gan", "model.hidden=[8]", "model.latent_dim=2"]).path,
        "rbm": gentrain.train([*small, "model=rbm", "model.hidden=6", "model.burn_in=5"]).path,
        "ring": gentrain.train([*small, "model=gan", "model.hidden=[8]", "data=ring"]).path,
    }


RANGE = {"vae": {0.0, 1.0}, "rbm": {0.0, 1.0}}
LACKS = {("gan", "reconstruct"), ("ring", "reconstruct"), ("rbm", "interpolate")}


@pytest.mark.parametrize("kind", ["prior", "reconstruct", "interpolate"])
@pytest.mark.parametrize("name", ["vae", "gan", "rbm", "ring"])
def test_what_is_sampled_can_be_read_back(name: str, kind: str, trained: dict[str, Path], capsys):
    run = trained[name]
    words = ["sample", f"run={run}", f"kind={kind}", "n=20"]
    if (name, kind) in LACKS:
        assert main(words) == 2
        complaint = capsys.readouterr().err
        assert complaint.count("\n") == 1 and f"kind={kind}" in complaint and "try kind=prior" in complaint
        return
    assert main([*words, "format=npz"]) == 0 and main([*words, "format=png"]) == 0
    assert capsys.readouterr().out.split() == [str(run / f"samples/{kind}.{end}") for end in ("npz", "png")]
    content = np.load(run / f"samples/{kind}.npz")
    x, support = content["x"], str(content["support"])
    n = 40 if kind == "reconstruct" else 20  # each example and what became of it
    assert str(content["kind"]) == kind and x.shape == (n, *((2,) if name == "ring" else (1, 8, 8)))
    assert np.isfinite(x).all()
    low, high = {"binary": (0, 1), "unit": (0, 1), "signed": (-1, 1), "real": (-np.inf, np.inf)}[support]
    assert x.min() >= low and x.max() <= high and x.std() > 0
    if kind == "prior" and support == "binary":
        assert set(np.unique(x)) == {0.0, 1.0}
    picture = np.asarray(Image.open(run / f"samples/{kind}.png"))
    assert picture.ndim == 3 and picture.std() > 0


def test_samples_follow_the_seed_and_go_where_they_are_asked_to(trained: dict[str, Path], tmp_path: Path):
    drawn = []
    for i, seed in enumerate((1, 1, 2)):
        out = tmp_path / f"new folder/{i}.npz"
        assert main(["sample", f"run={trained['vae']}", "format=npz", f"seed={seed}", f"out='{out}'"]) == 0
        drawn.append(np.load(out)["x"])
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any() and len(drawn[0]) == 64


def test_a_checkpoint_file_can_be_sampled_as_well_as_its_run(trained: dict[str, Path], tmp_path: Path, capsys):
    file = trained["rbm"] / "checkpoints/step-00000004.pt"
    assert main(["sample", f"run={file}", f"out={tmp_path}/a.npz", "format=npz"]) == 0
    assert main(["sample", f"run={trained['rbm']}", f"out={tmp_path}/b.npz", "format=npz"]) == 0
    assert (np.load(tmp_path / "a.npz")["x"] == np.load(tmp_path / "b.npz")["x"]).all()
    capsys.readouterr()
    assert main(["sample", f"run={trained['vae']}", "kind=reconstruct", "n=100000"]) == 2
    assert "test examples" in capsys.readouterr().err
    blocked = tmp_path / "a.npz" / "x.png"
    assert main(["sample", f"run={trained['rbm']}", f"out={blocked}"]) == 74
    assert str(tmp_path / "a.npz") in capsys.readouterr().err


def test_objects_that_a_signal_left_half_made_go_in_silence(monkeypatch: pytest.MonkeyPatch):
    complaints: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    gone: list[str] = []

    class Half:
        def __init__(self) -> None:
            raise Interrupted("stopped at once by SIGTERM", 15)

        def __del__(self) -> None:
            gone.append("gone")
            raise AttributeError("pos")

    def caught() -> Interrupted:
        try:
            Half()
        except Interrupted as error:
            return Interrupted("reported", 15).with_traceback(error.__traceback__)
        raise AssertionError

    error = caught()
    assert not gone
    _let_go(error)
    assert gone == ["gone"] and complaints == []


def test_errors_that_caused_each_other_are_let_go():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__context__ = second, first
    _let_go(first)
