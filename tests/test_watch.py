"""Metrics that a training is watched by: filed with the validation numbers, refused in time, without a trace in what is
learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import gentrain
from gentrain import checkpoint
from gentrain.cli import main
from gentrain.truth.base import differences

RING = [
    "model=gan", "data=ring", "data.n=500", "data.batch_size=50", "model.hidden=[8]", "model.latent_dim=2",
    "device=cpu", "trainer.steps=4", "trainer.evaluate_every=2",
]  # fmt: skip


def filed(run: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found: dict[int, dict[str, float]] = {}
    for line in lines:
        found.setdefault(line["step"], {}).update(line)
    return found


def test_a_training_is_watched_and_learns_the_same(tmp_path: Path):
    plain = gentrain.train([*RING, f"output={tmp_path}/plain"]).path
    watched = gentrain.train([*RING, f"output={tmp_path}/watched", "trainer.watch=[modes,swd]"]).path
    steps = filed(watched)
    for step in (2, 4):
        assert {"validation/modes_hit", "validation/high_quality", "validation/swd"} <= set(steps[step])
    assert all("validation/swd" not in line for line in filed(plain).values())
    states = [torch.load(checkpoint.find(run)[0], weights_only=True) for run in (plain, watched)]
    assert differences(states[0]["model"], states[1]["model"]) == []
    assert differences(states[0]["rng"], states[1]["rng"]) == []


def test_classifiers_of_the_data_watch_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("gentrain.evaluation.classifier.STEPS", 3)  # of the classifier that judges samples
    words = [
        "model=gan",
        "data=digits",
        "model.hidden=[8]",
        "device=cpu",
        "trainer.steps=2",
        "trainer.evaluate_every=2",
    ]
    run = gentrain.train([*words, "trainer.watch=[modes,fid]", f"output={tmp_path}/out"]).path
    assert {"validation/classes_covered", "validation/label_kl", "validation/fid"} <= set(filed(run)[2])


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("trainer.watch=[mode]", "trainer.watch=[mode]: there is no such metric. Did you mean 'modes'"),
        ("trainer.watch=[ais]", "trainer.watch=[ais]: GAN is no"),
        ("trainer.watch=modes", "trainer.watch=modes"),
    ],
)
def test_what_can_not_be_watched_is_refused_before_there_is_a_run(words: str, complaint: str, tmp_path: Path, capsys):
    assert main([*RING, f"output={tmp_path}/out", words]) == 2
    said = capsys.readouterr().err
    assert complaint in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
