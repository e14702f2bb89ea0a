"""Checkpoint files: whole or not there, verified, never executed; which ones are kept."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import pickle
import random
import resource
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY
from helpers import bare_trainer, fit, resumed

import gentrain
from gentrain import checkpoint
from gentrain.cli import main
from gentrain.errors import CheckpointError, DiskError
from gentrain.files import remove_temporaries, write_atomic

VAE = ["model=vae", "model.hidden=[8]", "model.latent_dim=2", "trainer.sample_every=0", "trainer.evaluate_every=0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with checkpoints of steps 8 and 12."""
    return gentrain.train([*TINY, *VAE, f"output={tmp_path_factory.mktemp('run')}"]).path


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    """A copy of the run's checkpoints, to be damaged."""
    for file in (run / "checkpoints").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


# --- damage -------------------------------------------------------------------------------------------------------


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    """One bit of the middle of the largest tensor."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    middle = largest.header_offset + len(largest.FileHeader()) + 64 + largest.file_size // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": truncate,
    "flipped": flip,
    "empty": lambda content: b"",
    "text": lambda content: b"these are not the weights you are looking for\n",
    "random": lambda content: random.Random(0).randbytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("recorded", [True, False], ids=["by sha256", "by the zip's own checksums"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_is_taken(
    damage: str, recorded: bool, folder: Path, caplog: pytest.LogCaptureFixture
):
    last = folder / "step-00000012.pt"
    last.write_bytes(DAMAGE[damage](last.read_bytes()))
    if not recorded:
        (folder / "last.json").unlink()
    with caplog.at_level(logging.WARNING):
        found = checkpoint.newest(folder)
    assert found is not None and found[0].name == "step-00000008.pt" and found[1]["step"] == 8
    assert str(last) in caplog.text and "the one before it" in caplog.text
    with pytest.raises(CheckpointError, match=r"step-00000012\.pt: (damaged|not a gentrain checkpoint)"):
        gentrain.load(last)


def test_where_every_checkpoint_is_damaged_the_newest_is_named(folder: Path):
    for file in folder.glob("*.pt"):
        file.write_bytes(truncate(file.read_bytes()))
    with pytest.raises(CheckpointError, match=r"step-00000012\.pt"):
        checkpoint.newest(folder)


class Exploit:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("form", ["pickle", "torch", "torch, dressed up"])
def test_a_hostile_checkpoint_executes_nothing(form: str, tmp_path: Path):
    canary, file = tmp_path / "canary", tmp_path / "evil.pt"
    if form == "pickle":
        file.write_bytes(pickle.dumps(Exploit(canary)))
    else:
        dress = {"format": "gentrain", "schema": 1, "version": "0.1.0"} if "dressed" in form else {}
        torch.save({**dress, "model": Exploit(canary)}, file)
    with pytest.raises(CheckpointError, match=r"evil\.pt: not a gentrain checkpoint"):
        gentrain.load(file)
    assert not canary.exists()
    torch.load(file, weights_only=False) if form != "pickle" else pickle.loads(file.read_bytes())
    assert canary.exists(), "the exploit does nothing: the test proves nothing"


@pytest.mark.parametrize(
    "state",
    [{}, [1, 2], {"format": "gentrain"}, {"format": "gentrain", "schema": 1}, {"format": "gentrain", "schema": "x"}],
)
def test_a_file_of_another_program_is_refused_in_words(state: object, tmp_path: Path):
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other\.pt: not a gentrain checkpoint"):
        gentrain.load(tmp_path / "other.pt")


def test_a_newer_format_asks_for_a_newer_gentrain(folder: Path):
    state = checkpoint.load(folder / "step-00000012.pt")
    torch.save({**state, "schema": 2, "version": "9.1.0"}, folder / "new.pt")
    with pytest.raises(CheckpointError, match=r"gentrain 9\.1\.0"):
        gentrain.load(folder / "new.pt")


def test_weights_of_another_model_are_listed_by_name(folder: Path):
    state = checkpoint.load(folder / "step-00000012.pt")
    weights = dict(state["model"])
    del weights["encoder.1.weight"]
    weights["encoder.1.bias"] = torch.zeros(9)
    weights["stranger"] = torch.zeros(1)
    checkpoint.save(folder / "other.pt", {**state, "model": weights})
    with pytest.raises(CheckpointError) as refused:
        gentrain.load(folder / "other.pt")
    for part in (
        "other.pt",
        "missing encoder.1.weight",
        "encoder.1.bias is (9,) there, (8,) here",
        "unexpected stranger",
    ):
        assert part in str(refused.value)


# --- writing ------------------------------------------------------------------------------------------------------


def save_for_ever(folder: Path, acknowledge: int) -> None:
    """The life of a training that only saves: go on from the newest checkpoint, tell which steps are safe."""
    remove_temporaries(folder)
    keeper = checkpoint.Keeper(folder, keep=2)
    found = checkpoint.newest(folder)
    step = 0
    if found is not None:
        step = found[1]["step"]
        keeper.load_state_dict(found[1]["keeper"], step)
    while True:
        step += 1
        best = ("elbo", float(step)) if step % 3 == 0 else None
        keeper.save(step, {"step": step, "config": {}, "model": {"w": torch.full((300_000,), float(step))}}, best)
        os.write(acknowledge, step.to_bytes(4))


def test_killed_at_any_moment_every_checkpoint_is_whole_and_no_acknowledged_one_is_lost(tmp_path: Path):
    """Twenty kill -9 at random moments, almost all of them inside a save."""
    moments = random.Random(4)
    stale, safe = 0, 0
    for _ in range(20):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                save_for_ever(tmp_path, write)
            finally:
                os._exit(1)
        os.close(write)
        heard = os.read(read, 4)  # it has begun
        time.sleep(moments.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        heard += b"".join(iter(lambda read=read: os.read(read, 4096), b""))
        os.close(read)
        safe = int.from_bytes(heard[-4:])
        stale += len(list(tmp_path.glob(".*.tmp.*")))
        for file in tmp_path.glob("step-*.pt"):
            assert (checkpoint.load(file)["model"]["w"] == int(file.stem[5:])).all()
        found = checkpoint.newest(tmp_path)
        assert found is not None and found[1]["step"] in (safe, safe + 1)
        best = json.loads((tmp_path / "best.json").read_text()) if (tmp_path / "best.json").exists() else None
        assert best is None or (tmp_path / best["file"]).exists()
    assert stale > 0, "no kill hit a write: the test proves nothing"
    remove_temporaries(tmp_path)
    assert not list(tmp_path.glob(".*"))
    assert len(list(tmp_path.glob("step-*.pt"))) <= 5


def test_a_crash_before_last_json_was_written_loses_nothing(folder: Path):
    record = json.loads((folder / "last.json").read_text())
    assert record["file"] == "step-00000012.pt"
    del record["files"]["step-00000012.pt"]
    (folder / "last.json").write_text(json.dumps({**record, "file": "step-00000008.pt", "step": 8}))
    found = checkpoint.newest(folder)
    assert found is not None and found[1]["step"] == 12


def test_a_full_disk_keeps_the_old_file_and_says_how_much_is_missing(tmp_path: Path):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(DiskError, match=r"needs 123,456 bytes, [\d,]+ are free") as refused:
            write_atomic(path, bytes(123_456))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert refused.value.code == 74
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EIO, errno.EROFS])
def test_a_rename_that_fails_is_said_and_leaves_the_old_file(number: int, tmp_path: Path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, "replace", lambda a, b: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
    with pytest.raises(DiskError, match=os.strerror(number)):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


# --- which ones stay ----------------------------------------------------------------------------------------------


def test_the_newest_few_and_the_best_stay_also_over_a_resume(tmp_path: Path):
    scores = {2: -5.0, 4: -1.0, 6: -3.0, 8: -2.0, 10: -4.0, 12: -0.5, 14: -9.0}
    overrides = [*VAE, "trainer.evaluate_every=2", "trainer.checkpoint_every=2", "trainer.keep=2"]

    def look(trainer, what):
        return lambda: ("elbo", scores[trainer.step])

    def files() -> list[int]:
        return sorted(int(p.stem[5:]) for p in tmp_path.glob("step-*.pt"))

    fit(bare_trainer(tmp_path, *overrides, "trainer.steps=14", look=look), until=8)
    assert files() == [4, 6, 8]
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 4
    fit(resumed(bare_trainer(tmp_path, *overrides, "trainer.steps=14", look=look)), until=10)
    assert files() == [4, 8, 10]
    best = json.loads((tmp_path / "best.json").read_text())
    assert (best["step"], best["value"], best["metric"]) == (4, -1.0, "elbo")
    assert checkpoint.load(tmp_path / best["file"], best["sha256"])["step"] == 4
    fit(resumed(bare_trainer(tmp_path, *overrides, "trainer.steps=14", look=look)))
    assert files() == [12, 14]
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 12


def test_going_back_past_a_damaged_checkpoint_forgets_the_future_it_belonged_to(folder: Path):
    last = folder / "step-00000012.pt"
    last.write_bytes(truncate(last.read_bytes()))
    overrides = [*TINY, *VAE, "trainer.steps=12"]
    trainer = resumed(bare_trainer(folder, *overrides))
    assert trainer.step == 8 and not last.exists()
    fit(trainer)
    found = checkpoint.newest(folder)
    assert found is not None and found[0] == last and found[1]["step"] == 12


def test_a_checkpoint_of_the_first_schema_is_read_for_ever(tmp_path: Path):
    """The file was written once and is never made anew; what it means is written here: a decoder, averaged weights."""
    file = Path(__file__).parent / "fixtures" / "checkpoint-schema-1.pt"
    model = gentrain.load(file)
    mean = model.decode(torch.tensor([[0.5, -1.0]])).mean.flatten()  # type: ignore[attr-defined]
    known = [0.536275, 0.481084, 0.494091, 0.496305, 0.495928, 0.541060, 0.518823, 0.555964, 0.462649]
    assert mean.tolist() == pytest.approx(known, abs=2e-6)
    out = tmp_path / "drawn.npz"
    assert main(["sample", f"run={file}", "n=3", "format=npz", f"out={out}"]) == 0
    assert out.exists()
