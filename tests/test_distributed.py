"""Two processes under torchrun follow one process with the whole batch; they stop, fail and resume together."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import runs

import gentrain
from gentrain.run import read_metrics
from gentrain.tasks.resume import resume

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
STORY = str(Path(__file__).parent / "torchrun_story.py")
SMALL = ["device=cpu", "data.batch_size=32", "trainer.log_every=1", "trainer.evaluate_every=4"]
SMALL += ["trainer.sample_every=4", "trainer.checkpoint_every=5", "data=digits", "trainer.steps=12"]
CASES = {
    "vae": ["model=vae", "model.hidden=[32]"],
    "vae-samples": ["model=vae", "model.hidden=[32]", "objective.samples=3", "trainer.ema=0.9", "trainer.clip=1"],
    "gan": ["model=gan"],
    "gan-ring": ["model=gan", "data=ring", "objective.discriminator_steps=2"],
    "unrolled": ["model=gan", "data=ring", "objective=unrolled", "objective.k=3", "optim=sgd", "optim.lr=0.05"],
    "cd": ["model=rbm", "model.hidden=20", "objective=cd", "objective.k=2"],
    "pcd": ["model=rbm", "model.hidden=20", "objective=pcd", "objective.particles=10", "optim.schedule=constant"],
    "counting": ["model=factorial", "trainer.epochs=1"],
    "em": ["model=bernoulli_mixture", "objective.batches=2"],
    "reverse_kl": ["model=gaussian", "data=ring", "objective=reverse_kl", "optim.schedule=constant"],
    "flow": [
        "model=flow_matching",
        "model.network=mlp",
        "model.hidden=[16]",
        "model.conditional=true",
        "objective.coupling=batch_ot",
    ],
    "tbptt": ["model=char_rnn", "model.hidden=16", "model.dropout=0.2", "data=pydoc", "data.length=20"],
}


def training(run: Path) -> dict[int, dict[str, float]]:
    """The losses and other means of each step, without clocks."""
    return {
        record["step"]: {k: v for k, v in record.items() if k.startswith(("train/", "optim/"))}
        for record in read_metrics(run)
        if "epoch" in record
    }


def follows(run: Path, other: Path, first: int = 1, last: int = 12) -> None:
    mine, others = training(run), training(other)
    assert sorted(mine) == list(range(1, last + 1))
    for step in range(first, last + 1):
        assert mine[step] == pytest.approx(others[step], rel=2e-4, abs=2e-5), step


def torchrun(tasks: Sequence[Any], folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "tasks.json").write_text(json.dumps(tasks))
    command = [*TORCHRUN, STORY, str(folder / "tasks.json")]
    with subprocess.Popen(
        command, cwd=folder, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            out, err = process.communicate(timeout=150)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun then ends its processes; killed it would leave them
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Every case by one process and by two, and a VAE that changes hands in the middle, in both directions."""
    root = tmp_path_factory.mktemp("ranks")
    one = {name: gentrain.train([*SMALL, *case, f"output={root}/one/{name}"]).path for name, case in CASES.items()}
    half = {name: [*SMALL, *CASES[name], "trainer.steps=6"] for name in ("vae", "pcd")}
    begun = {name: gentrain.train([*case, f"output={root}/onetwo/{name}"]).path for name, case in half.items()}
    tasks: list[Any] = [["train", [*SMALL, *case, f"output={root}/two/{name}"]] for name, case in CASES.items()]
    tasks += [["train", [*case, f"output={root}/twoone/{name}"]] for name, case in half.items()]
    tasks += [["resume", str(path), ["trainer.steps=12"]] for path in begun.values()]
    result = torchrun(tasks, root)
    assert result.returncode == 0, result.stderr
    found = {"one": one}
    for kind in ("two", "onetwo", "twoone"):
        found[kind] = {}
        for folder in (root / kind).iterdir():
            (found[kind][folder.name],) = runs(folder)  # two processes, one run folder
    for run in found["twoone"].values():
        resume(run, ["trainer.steps=12"])
    return found


@pytest.mark.parametrize("case", CASES)
def test_two_processes_follow_one(story: dict[str, dict[str, Path]], case: str) -> None:
    follows(story["two"][case], story["one"][case])


def test_two_processes_write_what_one_writes(story: dict[str, dict[str, Path]]) -> None:
    one, two = story["one"]["vae"], story["two"]["vae"]
    names = {str(p.relative_to(one)) for p in one.rglob("*") if "tfevents" not in p.name}
    assert {str(p.relative_to(two)) for p in two.rglob("*") if "tfevents" not in p.name} == names
    assert "2 processes" in json.loads((two / "run.json").read_text())["device"]
    assert json.loads((two / "status.json").read_text())["state"] == "done"
    rows = [json.loads((run / "evaluation.json").read_text())["rows"][0] for run in (one, two)]
    assert rows[0]["n"] == rows[1]["n"] and rows[0]["value"] == pytest.approx(rows[1]["value"], rel=1e-5)


@pytest.mark.parametrize("kind", ["twoone", "onetwo"])
@pytest.mark.parametrize("case", ["vae", "pcd"])
def test_a_run_goes_on_in_another_number_of_processes(story: dict[str, dict[str, Path]], case: str, kind: str) -> None:
    run = story[kind][case]
    assert "resumed at step 6" in (run / "train.log").read_text()
    follows(run, story["one"][case])


def test_sigterm_to_torchrun_saves_and_stops(tmp_path: Path) -> None:
    arguments = [*SMALL, "model=rbm", "model.hidden=20", "trainer.steps=9999999", "trainer.checkpoint_every=0"]
    process = subprocess.Popen([*TORCHRUN, "-m", "gentrain", *arguments], cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (found := runs(tmp_path / "outputs")) or len(training(found[0])) < 20:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) != 0
    finally:
        process.terminate()
        process.wait(60)
    (run,) = runs(tmp_path / "outputs")
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "interrupted" and status["step"] >= 20
    assert (run / "checkpoints" / f"step-{status['step']:08d}.pt").exists()


def test_a_batch_that_does_not_divide_is_one_clear_line(tmp_path: Path) -> None:
    arguments = [*SMALL, "data.batch_size=31"]
    result = subprocess.run(
        [*TORCHRUN, "-m", "gentrain", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert result.returncode != 0
    (line,) = re.findall(r"^gentrain: .*$", result.stderr, re.MULTILINE)
    assert "data.batch_size=31" in line and "2 processes" in line
    assert not (tmp_path / "outputs").exists()


def test_an_error_in_one_process_ends_all_quickly(tmp_path: Path) -> None:
    began = time.monotonic()
    result = torchrun([["train", [*SMALL, "trainer.steps=9999999"]]], tmp_path, FAIL="1")
    assert result.returncode != 0 and time.monotonic() - began < 40
    assert "something that only this process met with" in result.stderr
    (run,) = runs(tmp_path / "outputs")
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
