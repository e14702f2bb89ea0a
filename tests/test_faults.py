"""What a machine does to a training: a full disk, a folder that can't be written or is gone, broken libraries."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TINY, command, runs

import gentrain
from gentrain import checkpoint, config
from gentrain.cli import main
from gentrain.run import read_metrics
from gentrain.tasks import train as task
from gentrain.trainer import Trainer

VAE = [*TINY, "model=vae", "model.latent_dim=2", "trainer.evaluate_every=0", "trainer.sample_every=0"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"needs the right to mount a small file system: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(place: Path, leave: int = 0) -> Path:
    """Fill the file system up to `leave` bytes."""
    ballast = place / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        while (free := shutil.disk_usage(place).free) > leave:
            file.write(bytes(min(free - leave, 1 << 16)))
    return ballast


def short_of_disk(run: Path, code: int, complaint: str) -> None:
    """The command said what was missing, the checkpoint of step 4 is intact and nothing half-written stays."""
    assert code == 74
    assert complaint.count("\n") == 1 and "step-00000008.pt: can't be written" in complaint
    assert "needs " in complaint and " are free)" in complaint and "free some space" in complaint
    found = checkpoint.newest(run / "checkpoints")
    assert found is not None and found[1]["step"] == 4
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["last.json", "step-00000004.pt"]
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"]) == ("failed", 4) and "step-00000008.pt" in status["reason"]


def test_a_full_disk_ends_a_real_training_with_its_last_checkpoint_intact(disk: Path):
    run = gentrain.train([*VAE, "trainer.steps=4", f"output={disk}"]).path
    ballast = fill(disk, leave=300_000)  # a checkpoint takes 900,000
    done = subprocess.run(command("resume", f"run={run}", "trainer.steps=12"), capture_output=True, text=True)
    short_of_disk(run, done.returncode, done.stderr)
    assert "No space left" in done.stderr
    ballast.unlink()
    assert main(["resume", f"run={run}", "trainer.steps=12"]) == 0
    assert checkpoint.find(run)[1]["step"] == 12


def test_a_limit_on_file_sizes_is_a_full_disk(tmp_path: Path, capsys):
    run = gentrain.train([*VAE, "trainer.steps=4", f"output={tmp_path}"]).path
    capsys.readouterr()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        code = main(["resume", f"run={run}", "trainer.steps=12"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    short_of_disk(run, code, capsys.readouterr().err)


def test_a_disk_that_is_full_for_the_logs_alone_is_said_once_and_training_goes_on(
    disk: Path, tmp_path: Path, capsys, monkeypatch
):
    """The checkpoints lie elsewhere; the disk of the logs is full from step 4 to step 11."""
    overrides = [*VAE, "trainer.log_every=1", "trainer.sample_every=5", f"output={disk}"]
    advance, ballast = Trainer._train_step, disk / "ballast"

    def step(self: Trainer) -> None:
        advance(self)
        if self.step == 4:
            self.report.flush()
            fill(disk)
            assert self.report.folder is not None
            with open(self.report.folder / "metrics.jsonl", "a") as file:  # what is left of its last page
                file.write("\n" * (-file.tell() % resource.getpagesize()))
        if self.step == 12:
            ballast.unlink()

    def made(run: Path) -> None:
        (run / "checkpoints").rmdir()
        (tmp_path / "elsewhere").mkdir()
        (run / "checkpoints").symlink_to(tmp_path / "elsewhere")

    monkeypatch.setattr(Trainer, "_train_step", step)
    outcome = task.main(config.compose("train", overrides), overrides, made)
    said = [line for line in capsys.readouterr().out.splitlines() if "can't be written" in line]
    assert outcome.step == 12 and checkpoint.find(outcome.path)[1]["step"] == 12
    assert json.loads((outcome.path / "status.json").read_text())["state"] == "done"
    for what in ("metrics.jsonl", "samples"):
        assert len([line for line in said if what in line and "No space left" in line]) == 1
    assert len(said) == len(set(said)) <= 3
    steps = [record["step"] for record in read_metrics(outcome.path) if "epoch" in record]
    assert steps[:3] == [1, 2, 3] and steps[-1] == 12 and len(steps) < 12


def test_an_output_folder_that_cant_be_written_is_said_at_the_start(disk: Path, tmp_path: Path, capsys):
    (tmp_path / "file").write_text("")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for place, reason in ((tmp_path / "file", "Not a directory"), (disk, "Read-only"), (Path("/proc/1"), "")):
        assert main([*VAE, f"output={place}"]) == 74
        out, complaint = capsys.readouterr()
        assert complaint.count("\n") == 1 and str(place) in complaint and reason in complaint
        assert "output=FOLDER" in complaint and "step" not in out


def test_an_output_folder_that_vanishes_is_never_a_silent_no_save(tmp_path: Path, capsys, monkeypatch):
    advance = Trainer._train_step

    def step(self: Trainer) -> None:
        advance(self)
        if self.step == 5:
            shutil.rmtree(tmp_path / "outputs")

    monkeypatch.setattr(Trainer, "_train_step", step)
    assert main([*VAE, f"output={tmp_path}/outputs"]) == 74
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1 and "step-00000008.pt: can't be written" in complaint
    assert not (tmp_path / "outputs").exists() or not runs(tmp_path / "outputs")


# --- libraries ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["broken", "absent"])
def test_without_torchvision_and_tensorboard_the_core_trains(how: str, tmp_path: Path):
    """A broken installation raises whatever it likes on import; both stand in for the real ones."""
    error = "RuntimeError('operator torchvision::nms does not exist')" if how == "broken" else "ImportError('gone')"
    for package in ("torchvision", "tensorboard"):
        (tmp_path / "fake" / package).mkdir(parents=True)
        (tmp_path / "fake" / package / "__init__.py").write_text(f"raise {error}\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "fake"), "GENTRAIN_DATA": str(tmp_path / "none")}

    def cli(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command(*args), capture_output=True, text=True, env=env, cwd=tmp_path)

    done = cli(*VAE, "trainer.steps=4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pip install tensorboard") == 1 and "test elbo" in done.stdout
    (run,) = runs(tmp_path / "outputs")
    assert read_metrics(run)[-1]["step"] == 4 and not list(run.glob("events.*"))
    if how == "broken":
        done = cli(*VAE, "data=mnist")
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert "torchvision" in done.stderr and "install" in done.stderr
        assert len(runs(tmp_path / "outputs")) == 1
