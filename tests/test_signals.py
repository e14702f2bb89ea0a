"""Asked to stop, at any moment: a checkpoint of that very step, what it says, and the exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import TINY, command, runs

from gentrain import checkpoint
from gentrain.cli import main
from gentrain.trainer import Trainer

BARS = [*TINY, "data=bars", "data.n=40", "data.batch_size=10", "model.hidden=[8]", "model.latent_dim=2"]
QUIET = ["trainer.sample_every=0", "trainer.evaluate_every=0"]


def status(run: Path) -> dict:
    return json.loads((run / "status.json").read_text())


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """start(folder, "model=rbm", …): the command as a real process, which doesn't outlive the test."""
    processes = []

    def popen(folder: Path, *args: str) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command(*args), cwd=folder, text=True, **pipes))
        return processes[-1]

    yield popen
    for process in processes:
        process.kill()


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138), ("SIGUSR2", 140)])
def test_a_signal_stops_at_that_step_after_a_checkpoint(name: str, code: int, tmp_path: Path, capsys, monkeypatch):
    """SIGUSR1 and SIGUSR2 are what a batch system sends ahead of its limit; a job that ends so can be queued again."""
    advance = Trainer._train_step

    def step(self: Trainer) -> None:
        advance(self)
        if self.step == 5:
            send(getattr(signal, name))

    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    monkeypatch.setattr(Trainer, "_train_step", step)
    assert main([*BARS, *QUIET, f"output={tmp_path}"]) == code
    assert {s: signal.getsignal(s) for s in before} == before
    (run,) = runs(tmp_path)
    complaint = capsys.readouterr().err
    assert complaint == f"gentrain: stopped at step 5 by {name}; go on with: gentrain resume run={run}\n"
    assert (status(run)["state"], status(run)["step"]) == ("interrupted", 5)
    found = checkpoint.newest(run / "checkpoints")
    assert found is not None and found[1]["step"] == 5


def test_sigterm_during_a_save_lets_it_finish(tmp_path: Path, monkeypatch):
    sync = os.fsync

    def hit(handle: int) -> None:
        if list(tmp_path.glob("*/*/*/checkpoints/.step-00000004.pt.tmp.*")):
            send(signal.SIGTERM)
        sync(handle)

    monkeypatch.setattr("gentrain.files.os.fsync", hit)
    assert main([*BARS, *QUIET, f"output={tmp_path}"]) == 143
    (run,) = runs(tmp_path)
    assert status(run)["step"] == 4
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["last.json", "step-00000004.pt"]
    assert checkpoint.find(run)[1]["step"] == 4


def test_two_signals_during_a_save_leave_the_old_checkpoint(tmp_path: Path, monkeypatch):
    sync = os.fsync

    def hit(handle: int) -> None:
        if list(tmp_path.glob("*/*/*/checkpoints/.step-00000008.pt.tmp.*")):
            send(signal.SIGINT)
            send(signal.SIGINT)
        sync(handle)

    monkeypatch.setattr("gentrain.files.os.fsync", hit)
    assert main([*BARS, *QUIET, f"output={tmp_path}"]) == 130
    (run,) = runs(tmp_path)
    assert (status(run)["state"], status(run)["step"]) == ("interrupted", 4)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["last.json", "step-00000004.pt"]
    assert checkpoint.find(run)[1]["step"] == 4


def test_sigterm_before_the_first_step_saves_nothing_and_the_run_can_be_started_again(tmp_path: Path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", lambda self: send(signal.SIGTERM))
        assert main([*BARS, *QUIET, f"output={tmp_path}"]) == 143
    (run,) = runs(tmp_path)
    assert (status(run)["state"], status(run)["step"]) == ("interrupted", 0)
    assert not list((run / "checkpoints").iterdir())
    assert main(["resume", f"run={run}"]) == 0
    assert (status(run)["state"], status(run)["step"]) == ("done", 12)


def test_sigterm_during_the_closing_evaluation_is_heard_too(tmp_path: Path, monkeypatch):
    def hit(*args: object) -> None:
        send(signal.SIGTERM)
        raise AssertionError("the signal was not heard")

    with monkeypatch.context() as patch:
        patch.setattr("gentrain.tasks.train.test_rows", hit)
        assert main([*BARS, *QUIET, f"output={tmp_path}"]) == 143
    (run,) = runs(tmp_path)
    assert (status(run)["state"], status(run)["step"]) == ("interrupted", 12)
    assert main(["resume", f"run={run}"]) == 0
    assert status(run)["state"] == "done" and (run / "evaluation.json").exists()


@pytest.mark.parametrize("seconds", [0.2, 1.0, 2.0])
def test_sigterm_during_the_first_compilation(seconds: float, tmp_path: Path, start, monkeypatch):
    """The compiler catches every Exception, whoever raised it; compiling to the end would take longer than is given."""
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    args = ["data=bars", "device=cpu", "model.hidden=[8]", "device.compile=true", "trainer.steps=100000000"]
    process = start(tmp_path, *args)
    while not process.stdout.readline().startswith("run "):
        assert process.poll() is None, process.communicate()
    time.sleep(seconds)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, complaint = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode == 143, complaint
    assert "by SIGTERM; go on with: gentrain resume" in complaint
    (run,) = runs(tmp_path / "outputs")
    assert status(run)["state"] == "interrupted"


def test_sigterm_to_a_real_process_that_samples(tmp_path: Path, start):
    """The chains of this RBM would take hours: the signal must not wait for them."""
    args = [*TINY, "data=bars", "model=rbm", "model.hidden=4", "model.burn_in=1000000000", "trainer.sample_every=6"]
    process = start(tmp_path, *args)
    until = time.monotonic() + 120
    while not list(tmp_path.glob("outputs/*/*/*/checkpoints/step-00000004.pt")) and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(0.5)  # steps take a millisecond: by now it has long begun to sample
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, complaint = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode == 143 and "stopped at step 6 by SIGTERM" in complaint
    (run,) = runs(tmp_path / "outputs")
    assert (status(run)["state"], status(run)["step"]) == ("interrupted", 6)
    assert checkpoint.find(run)[1]["step"] == 6


def test_sigterm_to_a_real_process_that_starts_up(tmp_path: Path, start):
    process = start(tmp_path, *BARS, "trainer.steps=1000000")
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, complaint = process.communicate(timeout=10)
    assert process.returncode == 143
    assert complaint.startswith("gentrain: stopped ") and complaint.count("\n") == 1
