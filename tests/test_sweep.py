"""Sweeps as real processes: jobs that fail, die or are stopped, and the same command again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import command, runs

SMALL = ["data=bars", "data.size=3", "data.batch_size=16", "model.hidden=[8]", "model.latent_dim=2", "device=cpu"]
SMALL += ["trainer.log_every=1", "trainer.evaluate_every=0", "trainer.sample_every=0", "trainer.checkpoint_every=0"]
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


class Sweep:
    """`gentrain -m …` in a folder, in a process group of its own, as a shell starts a foreground command."""

    def __init__(self, folder: Path, *args: str, env: dict[str, str] | None = None):
        self.folder = folder
        self.output = folder / "output.txt"
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                command("-m", *SMALL, *args), cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True
            )

    def wait(self, timeout: float = 100) -> int:
        return self.process.wait(timeout)

    @property
    def text(self) -> str:
        return self.output.read_text()

    def table(self) -> list[list[str]]:
        """The rows of the closing table, by words."""
        lines = self.text.splitlines()
        (start,) = [i for i, line in enumerate(lines) if line.startswith("sweep outputs")]
        return [line.split() for line in lines[start + 2 :] if line and not line.startswith("gentrain:")]

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Callable[..., Sweep]]:
    """sweep("seed=0,1", …) starts one in tmp_path; whatever is left of it is killed at the test's end."""
    started: list[Sweep] = []

    def start(*args: str, env: dict[str, str] | None = None) -> Sweep:
        started.append(Sweep(tmp_path, *args, env=env))
        return started[-1]

    yield start
    for one in started:
        one.kill()
    for run in runs(tmp_path / "outputs"):  # jobs are in groups of their own
        with contextlib.suppress(ProcessLookupError, TypeError, KeyError):
            os.kill(status(run)["pid"], signal.SIGKILL)


def eventually(condition: Callable[[], Any], timeout: float = 60) -> Any:
    """The first true value of `condition`, asked again and again."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)
    return value


def status(run: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return json.loads((run / "status.json").read_text())
    return {}


def training(root: Path, **settings: str) -> list[Path]:
    """The runs under `root` that have these lines in their configuration and have trained a step in this process."""

    def has(run: Path) -> bool:
        text = (run / "config.yaml").read_text()
        return all(f"{key}: {value}\n" in text for key, value in settings.items())

    return [
        run for run in runs(root / "outputs") if has(run) and (run / "metrics.jsonl").exists() and alive(status(run))
    ]


def alive(record: dict[str, Any]) -> bool:
    if record.get("state") != "running":
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(record["pid"], 0)
        return True
    return False


def steps(run: Path) -> list[int]:
    """The steps whose training was recorded, in the order of the file."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    return [record["step"] for record in records if "epoch" in record]


def test_jobs_that_fail_or_are_killed_stop_no_other_and_are_tried_again(
    sweep: Callable[..., Sweep], tmp_path: Path
) -> None:
    arguments = ["trainer.steps=12,9999999", "optim.lr=1e-3,1e30,-1"]
    first = sweep(*arguments, *JOBLIB)
    (long,) = eventually(lambda: training(tmp_path, steps="9999999", lr="0.001"))
    os.kill(status(long)["pid"], signal.SIGKILL)
    assert first.wait() == 1
    states = {(row[0], row[1]): row[2] for row in first.table()}
    assert states == {
        ("12", "0.001"): "done", ("12", "1e+30"): "nan", ("12", "-1"): "failed",
        ("9999999", "0.001"): "failed", ("9999999", "1e+30"): "nan", ("9999999", "-1"): "failed",
    }  # fmt: skip
    assert "killed by SIGKILL" in first.text and "optim.lr=-1: must be" in first.text
    (done,) = [row for row in first.table() if row[2] == "done"]
    assert float(done[3]) < 0 and Path(tmp_path, done[-1]).is_dir()  # a test ELBO, and where the run lies
    before = runs(tmp_path / "outputs")

    again = sweep(*arguments)  # with the basic launcher: it is the same sweep
    eventually(lambda: training(tmp_path, steps="9999999", lr="0.001"))
    eventually(lambda: len(steps(long)) > 20)
    again.process.send_signal(signal.SIGTERM)
    assert again.wait(30) == 143
    assert runs(tmp_path / "outputs") == before
    for line in ("skip  trainer.steps=12 optim.lr=0.001: done", "resume  trainer.steps=12 optim.lr=1e+30"):
        assert line in again.text
    assert [row[2] for row in again.table()] == ["done", "nan", "failed", "interrupted", "nan", "failed"]
    assert "the same command goes on with it" in again.text
    assert status(long)["state"] == "interrupted" and status(long)["step"] == steps(long)[-1] > 0


def test_a_sweep_that_is_killed_leaves_its_job_saved_and_goes_on_in_the_same_run(
    sweep: Callable[..., Sweep], tmp_path: Path
) -> None:
    mine = tmp_path / "mine" / "optim"
    mine.mkdir(parents=True)
    yaml = (Path(__file__).parent.parent / "conf" / "optim" / "adam.yaml").read_text()
    (mine / "own.yaml").write_text(yaml + "\n# edited below\n")
    arguments = ["--config-dir", "mine", "optim=own", "seed=0,1", "trainer.steps=9999999", "trainer.max_time=3"]
    first = sweep(*arguments)
    (run,) = eventually(lambda: training(tmp_path, seed="0"))
    busy = sweep(*arguments)
    assert busy.wait() == 1 and "still running" in busy.text
    first.process.kill()
    eventually(lambda: status(run)["state"] == "interrupted", 20)
    at = status(run)["step"]
    assert at > 0 and (run / "checkpoints" / f"step-{at:08d}.pt").exists()

    second = sweep(*arguments)
    eventually(lambda: status(run)["state"] == "running")
    (mine / "own.yaml").write_text(yaml.replace("lr: 1e-3", "lr: 0.5").replace("lr: 0.001", "lr: 0.5"))
    assert "lr: 0.5" in (mine / "own.yaml").read_text()
    assert second.wait() == 0
    assert f"resumed at step {at:,}" in (run / "train.log").read_text()
    assert steps(run) == sorted(set(steps(run))) and steps(run)[-1] > at
    assert [row[:2] for row in second.table()] == [["0", "done"], ["1", "done"]]
    other = runs(tmp_path / "outputs")[1:]
    assert len(other) == 1 and "lr: 0.001" in (other[0] / "config.yaml").read_text()


def test_joblib_sweep_shares_the_cores_and_survives_ctrl_c_and_sigkill(
    sweep: Callable[..., Sweep], tmp_path: Path
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    arguments = ["seed=0,1,2", "trainer.steps=9999999", *JOBLIB]
    first = sweep(*arguments, env=environment)
    pair = eventually(lambda: len(found := training(tmp_path)) == 2 and found)
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    for run in pair:
        assert f"{share} thread" in json.loads((run / "run.json").read_text())["device"]
    os.killpg(first.process.pid, signal.SIGINT)  # Ctrl-C reaches the whole foreground group, joblib's workers too
    assert first.wait(30) == 130
    assert [status(run)["state"] for run in pair] == ["interrupted", "interrupted"]
    assert [row[:2] for row in first.table()] == [["0", "interrupted"], ["1", "interrupted"], ["2", "waiting"]]
    at = [status(run)["step"] for run in pair]

    second = sweep(*arguments, env=environment)
    eventually(lambda: len(training(tmp_path)) == 2)
    workers = children(second.process.pid)
    second.process.kill()
    eventually(lambda: all(status(run)["state"] == "interrupted" for run in pair), 20)
    assert all(status(run)["step"] >= step for run, step in zip(pair, at, strict=True))
    assert runs(tmp_path / "outputs") == sorted(pair)
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 30)


def children(pid: int) -> list[int]:
    return [int(p) for task in Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()]


def test_a_command_line_that_makes_no_sense_leaves_nothing_behind(sweep: Callable[..., Sweep], tmp_path: Path) -> None:
    wrong = sweep("model=vae,vea")
    assert wrong.wait() == 2
    assert "Did you mean 'vae'?" in wrong.text and len(wrong.text.splitlines()) == 1
    assert not (tmp_path / "outputs").exists()
