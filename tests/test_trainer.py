"""The loop itself: what looking changes (nothing), what it does about NaN, interruption and memory."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from helpers import bare_trainer, build, differences, fit, learned, resumed
from torch import nn
from torch.nn.utils import parametrizations

import gentrain
from gentrain import checkpoint
from gentrain.average import RunningAverage
from gentrain.device import own_randomness
from gentrain.errors import Interrupted
from gentrain.evaluation.estimator import seeded
from gentrain.evaluation.heldout import SEED, held_out
from gentrain.models.energies import EnergyBased
from gentrain.objectives.contrastive import PCD
from gentrain.pictures import draw
from gentrain.run import read_metrics
from gentrain.signals import Stop
from gentrain.trainer import Trainer

DCGAN = ["model=dcgan", "model.channels=4", "model.latent_dim=4", "trainer.ema=0.9"]
VAE = ["model=vae", "model.hidden=[8]", "model.latent_dim=2"]
RBM = ["model=rbm", "model.hidden=6", "model.burn_in=5"]
STEADY = ["trainer.evaluate_every=0", "trainer.sample_every=0"]


def looking(trainer: Trainer, what: str):
    """A look that really validates or draws."""
    if what == "sample":
        draw(trainer.averaged, 10, seed=1)
        return lambda: None
    found = held_out(trainer.objective, trainer.averaged, trainer.pipeline, "validation")
    trainer.report.scalars(trainer.step, {name: e.mean for name, e in found.items()})
    return lambda: None


@pytest.mark.parametrize("overrides", [VAE, [*RBM, "objective=pcd"], DCGAN], ids=lambda o: o[0])
def test_how_often_one_looks_changes_nothing_that_is_learned(overrides: list[str], tmp_path: Path):
    overrides = [*overrides, "trainer.steps=6", "trainer.log_every=6", "trainer.checkpoint_every=0"]
    never = fit(bare_trainer(tmp_path / "never", *overrides, *STEADY))
    often = [*overrides, "trainer.evaluate_every=1", "trainer.sample_every=1", "trainer.checkpoint_every=2"]
    always = fit(bare_trainer(tmp_path / "always", *often, look=looking))
    assert differences(learned(never.state_dict()), learned(always.state_dict())) == []
    assert never.report.filed == [record for record in always.report.filed if "epoch" in record]
    assert len(always.report.filed) == 7


@pytest.mark.parametrize("overrides", [VAE, RBM, DCGAN], ids=lambda o: o[0])
@pytest.mark.parametrize("cut", [("evaluate", 2), ("sample", 2), ("sample", 4)], ids=str)
def test_a_look_cut_short_by_a_signal_is_taken_again(overrides: list[str], cut: tuple[str, int], tmp_path: Path):
    """The checkpoint is of that very step, and the numbers of both halves are those of the uninterrupted training."""
    overrides = [*overrides, "trainer.steps=4", "trainer.log_every=2", "trainer.checkpoint_every=0"]
    overrides += ["trainer.evaluate_every=2", "trainer.sample_every=2"]

    def hit(trainer: Trainer, what: str):
        if (what, trainer.step) == cut:
            with own_randomness(1):
                torch.rand(1)
                os.kill(os.getpid(), signal.SIGTERM)
                raise AssertionError("the signal did not end the look")
        return looking(trainer, what)

    whole = fit(bare_trainer(tmp_path / "whole", *overrides, look=looking))
    first = bare_trainer(tmp_path / "parts", *overrides, look=hit)
    with Stop() as stop, pytest.raises(Interrupted) as stopped:
        first.fit(stop)
    assert stopped.value.code == 143
    assert first.step == cut[1] and (tmp_path / f"parts/step-{cut[1]:08d}.pt").exists()
    second = fit(resumed(bare_trainer(tmp_path / "parts", *overrides, look=looking)))
    assert differences(learned(whole.state_dict()), learned(second.state_dict())) == []
    assert first.report.filed + second.report.filed == whole.report.filed


def test_a_second_signal_ends_the_training_at_once_and_the_last_checkpoint_stands(tmp_path: Path):
    trainer = bare_trainer(tmp_path, *VAE, *STEADY, "trainer.steps=50", "trainer.checkpoint_every=3")
    advance = trainer._train_step

    def step() -> None:
        advance()
        if trainer.step == 8:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the second signal did not end the training")

    trainer._train_step = step  # type: ignore[method-assign]
    with Stop() as stop, pytest.raises(Interrupted) as stopped:
        trainer.fit(stop)
    assert stopped.value.code == 130
    found = checkpoint.newest(tmp_path)
    assert found is not None and found[1]["step"] == 6


def test_chains_are_looked_at_beside_the_data(tmp_path: Path):
    """The free energies of data and particles, the particles' pictures, and what is learned as if nobody had looked."""
    words = ["model=rbm", "objective=pcd", "data=bars", "data.validation=100", "model.hidden=6", "trainer.steps=8"]
    words += ["trainer.log_every=8", "device=cpu", f"output={tmp_path}"]
    run = gentrain.train([*words, "trainer.evaluate_every=4", "trainer.sample_every=4"]).path
    states = []
    for path in (run, gentrain.train([*words, *STEADY]).path):
        found = checkpoint.newest(path / "checkpoints")
        assert found is not None
        states.append({key: found[1][key] for key in ("model", "objective", "rng")})
    assert differences(*states) == []
    values = {k: v for record in read_metrics(run) if record["step"] == 8 for k, v in record.items()}
    model, objective = gentrain.load(run), PCD(hidden=6)
    assert isinstance(model, EnergyBased)
    objective.load_state_dict(states[0]["objective"])
    data = next(build(*words[:-1]).pipeline.evaluation("train", 1000, 1000)).x
    with seeded(SEED):
        places = {"train": data, "particles": objective.fantasies(model)}
        energies = {name: float(model.free_energy(x).mean()) for name, x in places.items()}
    for name, energy in energies.items():
        assert values[f"{name}/free_energy"] == pytest.approx(energy, rel=1e-5)
    assert abs(energies["train"] - energies["particles"]) > 1e-3
    names = sorted(path.name for path in (run / "samples").glob("particles*"))
    assert names == ["particles-00000004.png", "particles-00000008.png", "particles.gif"]


def test_a_running_average_counts_as_the_model_does_and_keeps_its_directions():
    """AdaGAN keeps by a buffer which generators have begun; spectral normalisation keeps unit vectors."""
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(5, 3)), nn.BatchNorm1d(3))
    average = RunningAverage(model, 0.9)
    for _ in range(20):
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn_like(p))
        model(torch.randn(8, 5))
        average.update_parameters(model)
    made = average.module
    assert made[1].num_batches_tracked == model[1].num_batches_tracked == 20
    assert made[0].parametrizations.weight[0]._u.norm() == pytest.approx(1, abs=1e-5)
    by_hand = made[0].parametrizations.weight.original
    assert not torch.equal(by_hand, model[0].parametrizations.weight.original), "parameters are averaged"
