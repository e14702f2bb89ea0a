"""What every model promises, tested for every YAML file in conf/model, and for every objective that fits it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from helpers import MODELS, OBJECTIVES, SMALL, bare_trainer, build, data_for, differences, fit, fitting_pairs

import gentrain
from gentrain import config
from gentrain.tasks.check import exact_resume
from gentrain.truth.models import misfits, seeded_sample

PAIRS = fitting_pairs()


@pytest.mark.parametrize("name", MODELS)
def test_a_few_updates_move_every_part_and_the_file_gives_the_model_back(name: str, tmp_path: Path):
    overrides = [f"model={name}", *data_for(name)]
    steps = 2 * max(1, len(build(*overrides).objective.parts))  # some are trained one after the other
    trainer = bare_trainer(tmp_path, *overrides, f"trainer.steps={steps}")
    model = trainer.model
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    fit(trainer)
    assert trainer.step == steps
    (filed,) = trainer.report.filed
    assert [key for key in filed if key.startswith("train/")] and all(map(math.isfinite, filed.values()))
    for part in trainer.parts.values():
        assert part.norm.isfinite() and part.norm > 0
        prefix = f"{part.name}." if part.name else ""
        moved = {key for key, p in part.parameters.items() if not torch.equal(p, before[prefix + key])}
        pulled = {key for key, p in part.parameters.items() if p.grad is not None and p.grad.any()}
        assert moved and pulled <= moved
    model.eval()
    assert misfits(seeded_sample(model, 6), model, trainer.pipeline.spec.levels, 6) == []
    loaded = gentrain.load(tmp_path / f"step-{steps:08}.pt")
    assert not loaded.training and type(loaded) is type(model)
    assert differences(loaded.state_dict(), model.state_dict()) == []
    assert torch.equal(seeded_sample(loaded, 6), seeded_sample(model, 6))
    assert type(model).__name__ in repr(model)


@pytest.mark.parametrize(("name", "objective"), PAIRS)
def test_stopped_and_resumed_is_the_same_training_bit_for_bit(name: str, objective: str):
    data = data_for(name, f"objective={objective}")
    overrides = [*SMALL, f"model={name}", f"objective={objective}", *data, "optim.schedule=cosine"]
    differing, _, words = exact_resume(config.compose("train", overrides))
    assert differing == 0, words


def test_no_model_and_no_objective_is_left_out():
    assert {model for model, _ in PAIRS} == set(MODELS)
    assert {objective for _, objective in PAIRS} == set(OBJECTIVES)
