"""Numbers that go wrong: NaN, infinity, memory. Training stops before the step, and the last checkpoint is sound."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY, runs
from helpers import bare_trainer, differences, fit

from gentrain import checkpoint
from gentrain.cli import main
from gentrain.errors import NonFiniteError
from gentrain.trainer import Trainer
from gentrain.update import Update

VAE = ["model=vae", "model.hidden=[8]", "model.latent_dim=2", "optim.lr=0.002"]
BAD = 5  # the step, counted from 1, at which something becomes NaN


def nan_loss(trainer: Trainer) -> None:
    forward = trainer.objective.forward

    def poisoned(model, batch, progress):
        for update in forward(model, batch, progress):
            bad = trainer.step == BAD - 1 and update.loss is not None
            yield Update(update.loss * math.nan, update.part, metrics=update.metrics) if bad else update

    trainer.objective.forward = poisoned


def nan_gradient(trainer: Trainer) -> None:
    parameter = next(iter(trainer.parts.values())).parameters["encoder.1.weight"]
    parameter.register_hook(lambda g: torch.full_like(g, math.inf) if trainer.step == BAD - 1 else g)


def nan_data(trainer: Trainer) -> None:
    batch = trainer.pipeline.batch

    def poisoned(step: int):
        good = batch(step)
        return good._replace(x=good.x * math.nan) if step == BAD - 1 else good

    trainer.pipeline.batch = poisoned  # type: ignore[method-assign]


@pytest.mark.parametrize("lazy", [False, True], ids=["asked each step", "asked later"])
@pytest.mark.parametrize("poison", [nan_loss, nan_gradient, nan_data], ids=lambda f: f.__name__)
def test_training_stops_before_a_bad_step(poison: Callable[[Trainer], None], lazy: bool, tmp_path: Path):
    """`lazy` is how a GPU is asked: its optimizer skips steps by itself until the report comes round."""
    overrides = [*VAE, "trainer.steps=20", "trainer.log_every=4", "trainer.checkpoint_every=2", "trainer.clip=1"]
    overrides += ["trainer.evaluate_every=0", "trainer.sample_every=0"]
    good = fit(bare_trainer(tmp_path / "good", *overrides, "trainer.steps=4"))
    trainer = bare_trainer(tmp_path / "bad", *overrides)
    trainer.parts[""].lazy = lazy
    poison(trainer)
    with pytest.raises(NonFiniteError) as stopped:
        fit(trainer)
    message = str(stopped.value)
    indices = ", ".join(str(i) for i in trainer.pipeline.indices(BAD - 1)[:8].tolist())
    assert message.startswith(f"step {BAD}: ")
    assert "learning rate 0.002" in message and f"(examples {indices}, …" in message
    if not lazy:
        bad = "encoder.1.weight" if poison is nan_gradient else next(iter(trainer.parts[""].parameters))
        assert f"first bad gradient '{bad}'" in message and ("loss nan" in message) == (poison is not nan_gradient)
    assert differences(good.model.state_dict(), trainer.model.state_dict()) == [], "the bad step was taken"
    found = checkpoint.newest(tmp_path / "bad")
    assert found is not None and found[1]["step"] == 4
    assert all(value.isfinite().all() for value in found[1]["model"].values())


def test_the_part_of_a_game_that_went_wrong_is_named(tmp_path: Path):
    trainer = bare_trainer(tmp_path, "model=gan", "model.hidden=[8]", "model.latent_dim=2", "trainer.steps=9")
    nan_loss(trainer)
    with pytest.raises(NonFiniteError, match=f"step {BAD}: part 'discriminator', loss nan"):
        fit(trainer)


def test_a_run_that_diverges_says_so_in_one_line_and_keeps_a_finite_checkpoint(tmp_path: Path, capsys):
    args = [*TINY, f"output={tmp_path}", *VAE, "trainer.checkpoint_every=1", "optim=sgd", "optim.lr=1e30"]
    assert main(args) == 1
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1 and "learning rate 1e+30" in complaint and "optim.lr" in complaint
    (run,) = runs(tmp_path)
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "nan" and status["reason"] in complaint
    assert "Traceback" in (run / "train.log").read_text()
    path, state = checkpoint.find(run)
    assert state["step"] == status["step"] >= 1 and path.exists()
    assert all(value.isfinite().all() for value in state["model"].values())


def test_nan_is_never_the_best(tmp_path: Path):
    values = iter([math.nan, -3.0, math.nan, -2.0, -5.0, math.nan])
    trainer = bare_trainer(
        tmp_path, *VAE, "trainer.steps=6", "trainer.evaluate_every=1", "trainer.sample_every=0",
        "trainer.checkpoint_every=0", look=lambda trainer, what: lambda: ("elbo", next(values)),
    )  # fmt: skip
    fit(trainer)
    best = json.loads((tmp_path / "best.json").read_text())
    assert (best["step"], best["value"]) == (4, -2.0)
    assert checkpoint.load(tmp_path / best["file"], best["sha256"])["step"] == 4


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), None],
    ids=["host", "GPU", "allocator"],
)
def test_out_of_memory_names_the_batch_size(error: BaseException | None, tmp_path: Path, capsys, monkeypatch):
    def full(self, model, batch, progress):
        if error is None:
            torch.empty(1 << 62, dtype=torch.uint8)
        raise error or AssertionError("the allocation succeeded")

    monkeypatch.setattr("gentrain.objectives.elbo.ELBO.forward", full)
    assert main([*TINY, f"output={tmp_path}", *VAE]) == 1
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1 and "data.batch_size=32" in complaint and "data.batch_size=16" in complaint
    (run,) = runs(tmp_path)
    assert json.loads((run / "status.json").read_text())["state"] == "oom"


def test_a_model_too_large_for_memory_is_refused_before_a_run_folder_exists(tmp_path: Path, capsys):
    assert main([*TINY, f"output={tmp_path}/out", "model=vae", f"model.hidden=[{1 << 50}]"]) == 1
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1 and "out of memory" in complaint and "smaller model" in complaint
    assert not (tmp_path / "out").exists()
