"""What every model promises, tested for every YAML file in conf/model, and for every objective that fits it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from helpers import MODELS, OBJECTIVES, bare_trainer, data_for, differences, fit, fitting_pairs, learned, resumed
from torch import Tensor

import gentrain
from gentrain.models.base import Generative

PAIRS = fitting_pairs()


def assert_within(x: Tensor, model: Generative, levels: int | None, n: int) -> None:
    """n examples of the model's shape, every value in its support, and not all the same."""
    assert x.shape == (n, *model.shape)
    assert x.isfinite().all()
    if model.support == "binary":
        assert ((x == 0) | (x == 1)).all()
    elif model.support == "unit":
        assert x.min() >= 0 and x.max() <= 1
    elif model.support == "signed":
        assert x.min() >= -1 and x.max() <= 1
    elif model.support in ("levels", "tokens"):
        assert levels is not None
        assert (x == x.round()).all() and x.min() >= 0 and x.max() <= levels - 1
    else:
        assert model.support == "real"
    assert not torch.equal(x, x[:1].expand_as(x)), "every sample is the same"


def seeded_sample(model: Generative, n: int) -> Tensor:
    torch.manual_seed(5)
    return model.sample(n)


@pytest.mark.parametrize("name", MODELS)
def test_two_updates_move_every_part_and_the_file_gives_the_model_back(name: str, tmp_path: Path):
    trainer = bare_trainer(tmp_path, f"model={name}", *data_for(name), "trainer.steps=2")
    model = trainer.model
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    fit(trainer)
    assert trainer.step == 2
    (filed,) = trainer.report.filed
    assert [key for key in filed if key.startswith("train/")] and all(map(math.isfinite, filed.values()))
    for part in trainer.parts.values():
        assert part.norm.isfinite() and part.norm > 0
        prefix = f"{part.name}." if part.name else ""
        moved = {key for key, p in part.parameters.items() if not torch.equal(p, before[prefix + key])}
        pulled = {key for key, p in part.parameters.items() if p.grad is not None and p.grad.any()}
        assert moved and pulled <= moved
    model.eval()
    assert_within(seeded_sample(model, 6), model, trainer.pipeline.spec.levels, 6)
    loaded = gentrain.load(tmp_path / "step-00000002.pt")
    assert not loaded.training and type(loaded) is type(model)
    assert differences(loaded.state_dict(), model.state_dict()) == []
    assert torch.equal(seeded_sample(loaded, 6), seeded_sample(model, 6))
    assert type(model).__name__ in repr(model)


@pytest.mark.parametrize(("name", "objective"), PAIRS)
def test_stopped_and_resumed_is_the_same_training_bit_for_bit(name: str, objective: str, tmp_path: Path):
    overrides = [f"model={name}", f"objective={objective}", *data_for(name), "trainer.steps=6", "trainer.log_every=4"]
    overrides += ["trainer.ema=0.9", "optim.schedule=cosine"]
    whole = fit(bare_trainer(tmp_path / "whole", *overrides))
    first = fit(bare_trainer(tmp_path / "parts", *overrides), until=3)
    second = fit(resumed(bare_trainer(tmp_path / "parts", *overrides)))
    assert (whole.step, first.step, second.step) == (6, 3, 6)
    assert differences(learned(whole.state_dict()), learned(second.state_dict())) == []
    assert first.report.filed + second.report.filed == whole.report.filed
    assert differences(learned(whole.state_dict()), learned(first.state_dict())), (
        "the comparison can't see a difference"
    )


def test_no_model_and_no_objective_is_left_out():
    assert {model for model, _ in PAIRS} == set(MODELS)
    assert {objective for _, objective in PAIRS} == set(OBJECTIVES)
