"""device.compile: the same mathematics as one graph, and the same bits after a resume."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY
from helpers import build, differences, learned

import gentrain
from gentrain import checkpoint
from gentrain.files import write_json
from gentrain.run import read_metrics
from gentrain.tasks.resume import resume
from gentrain.tasks.train import Outcome

VAE = ["model=vae", "model.hidden=[8]", "model.latent_dim=2"]


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_the_elbo_is_one_graph(network: str):
    """A break in the middle would leave half of a step as slow as it was."""
    assembly = build("data=digits", "model=vae", f"model.network={network}", "model.hidden=[8]")
    torch.compiler.reset()
    terms = torch.compile(assembly.objective.terms, fullgraph=True, backend="eager")  # type: ignore[arg-type]
    reconstruction, kl = terms(assembly.model, assembly.pipeline.batch(0).x)  # raises where the graph breaks
    assert reconstruction.shape == kl.shape == (20,)


@pytest.mark.parametrize("model", [VAE, ["model=gan", "model.hidden=[8]"]], ids=["objective", "networks"])
def test_compiled_training_learns_the_same_and_resumes_bit_for_bit(model: list[str], tmp_path: Path):
    """The graph draws its noise in its own way, so only what no noise enters agrees with the uncompiled run."""
    torch.compiler.reset()
    settings = ["trainer.log_every=1", "trainer.steps=6", "trainer.checkpoint_every=3", "data=bars", *model]
    plain = gentrain.train([*TINY, *settings, f"output={tmp_path}/plain"])
    compiled = gentrain.train([*TINY, *settings, "device.compile=true", f"output={tmp_path}/compiled"])
    first = [read_metrics(run.path)[0] for run in (plain, compiled)]
    name = "train/kl" if model is VAE else "optim/lr/generator"
    assert first[0][name] == pytest.approx(first[1][name], rel=1e-5)

    half = tmp_path / "half"
    shutil.copytree(compiled.path, half)
    (half / "checkpoints" / "step-00000006.pt").unlink()
    write_json(half / "status.json", {"state": "failed", "step": 3, "reason": "killed"})
    resume(half)
    a, b = (checkpoint.find(run)[1] for run in (compiled.path, half))
    assert differences(learned(a), learned(b)) == []


def test_a_look_compiles_nothing(train: Callable[..., Outcome]):
    """Validation's last batch is smaller than the others: compiling for it would take longer than looking."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    train(*VAE, "data=digits", "device.compile=true")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
