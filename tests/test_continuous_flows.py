"""Flows in continuous time: what is said of their estimates, and the faults that the truth tests find."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import build, shaken
from torch import Tensor

from gentrain.batch import Batch
from gentrain.comparison.ranking import measure, rank
from gentrain.data.pipeline import Pipeline
from gentrain.data.source import Split, make_source
from gentrain.device import own_randomness
from gentrain.errors import UsageError
from gentrain.evaluation.divergence import Divergence
from gentrain.evaluation.estimator import Subject
from gentrain.evaluation.ledger import Row
from gentrain.evaluation.ode import ODE
from gentrain.models.flow_matching import FlowMatching
from gentrain.objectives.flow_matching import ConditionalFlowMatching
from gentrain.optim import Adam
from gentrain.truth.base import Case, prove

# --- what is said of the numbers --------------------------------------------------------------------------------------


def subject(model: FlowMatching, dequantize: bool = True) -> Subject:
    torch.manual_seed(14)
    x = torch.randint(256, (60, *model.shape)).to(torch.uint8)
    split = Split(x, torch.randint(3, (60,)))
    source = make_source("levels", "levels", {"train": split, "test": split}, levels=256, classes=3)
    return Subject(model, Pipeline(source, "signed", 20, 0, dequantize=dequantize))


@torch.no_grad()
def test_estimates_have_a_kind_of_their_own_and_bits():
    model = shaken(FlowMatching((1, 1, 3), levels=256, network="mlp", hidden=[8]))
    of = subject(model)
    x, size = of.examples()[:50], 3
    found = {row.unit: row for row in ODE(examples=50)(of)}
    exact = model.log_prob(x).double().mean().item()
    assert found["nats"].value == pytest.approx(exact, abs=1e-3)
    # x = 2 (l + u)/256 - 1: a level is a bin of width 1/128
    assert found["bits/dim"].value == pytest.approx(-(exact / size - math.log(128)) / math.log(2), abs=1e-3)
    assert {row.kind for row in found.values()} == {"ode"} and found["nats"].n == 50
    assert found["nats"].settings["by"] == "the trace" and found["nats"].settings["evaluations"] > 10
    with own_randomness(0):
        guess = {row.unit: row for row in ODE(probes=2)(of)}
    assert {row.kind for row in guess.values()} == {"ode-hutchinson"} and guess["nats"].settings["by"] == "2 probes"
    assert guess["nats"].n == 60 and guess["nats"].value != found["nats"].value
    rows = [
        Row("log_likelihood", kind, -1.0, 0.1, "nats", "signed", "p", "test", 60, {}, 0, "", 0.0)
        for kind in ("exact", "ode", "ode-hutchinson")
    ]
    assert len({measure(row) for row in rows}) == 3
    with pytest.raises(UsageError, match="differ in kind"):
        rank(rows[:2])


def test_levels_as_they_are_have_no_density_and_many_elements_no_trace():
    model = shaken(FlowMatching((1, 5, 5), levels=256, network="mlp", hidden=[8]))
    assert "data.dequantize=true" in (ODE().unfit(subject(model, dequantize=False)) or "")
    assert ODE().unfit(subject(model)) is None
    [nats, _] = ODE(examples=5, rtol=1e-3, atol=1e-3)(subject(model))
    assert nats.kind == "ode-hutchinson" and nats.settings["by"] == "1 probe"
    labelled = shaken(FlowMatching((1, 1, 3), levels=256, network="mlp", hidden=[8], conditional=True, classes=3))
    of = subject(labelled)
    [nats, _] = ODE(examples=20)(of)
    x, y = of.labelled()
    with torch.no_grad():
        assert nats.value == pytest.approx(labelled.log_prob(x[:20], y[:20]).mean().item(), abs=1e-3)
    assert nats.kind == "ode given y"


@torch.no_grad()
def test_divergences_from_a_known_density_say_how_they_were_had():
    assembly = build("model=flow_matching", "data=ring", "data.n=200", "model.hidden=[8]")
    of = Subject(assembly.model.eval(), assembly.pipeline, n=50)
    with own_randomness(0):
        assert [row.kind for row in Divergence(n_fake=50)(of)] == ["forward-kl by ode", "reverse-kl by ode"]


# --- faults that the truth tests find ---------------------------------------------------------------------------------


class Shrinking(FlowMatching):
    """Volume counted the wrong way round."""

    def transform(self, x: Tensor, y: Tensor | None = None, **options: object) -> tuple[Tensor, Tensor]:
        z, log_det = super().transform(x, y, **options)  # type: ignore[arg-type]
        return z, -log_det


class Astray(FlowMatching):
    """The way back takes the times in the wrong order."""

    def invert(self, z: Tensor, y: Tensor | None = None, *, solver: object = None) -> Tensor:
        return self.outward(self.precise(lambda x, t: self.velocity(x, 1 - t), z, 0.0, 1.0).x)


class Lopsided(FlowMatching):
    """Probes that add a little of their own."""

    def transform(self, x: Tensor, y: Tensor | None = None, *, probes: int | None = None, **options: object):
        z, log_det = super().transform(x, y, probes=probes, **options)  # type: ignore[arg-type]
        return z, log_det if probes is None else log_det + 0.1


@pytest.mark.parametrize(
    ("kind", "claim"),
    [
        (Shrinking, "log |det| is the Jacobian's"),
        (Astray, "the flow can be undone"),
        (Lopsided, "probes estimate log |det| without bias"),
    ],
)
def test_a_flow_that_is_wrong(kind: type[FlowMatching], claim: str):
    batches = [Batch(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))]
    adam = Adam(1e-2, 0.0, "constant", 0.0, 0.0, None, (0.9, 0.999), 1e-8)
    for tried, held in ((FlowMatching, True), (kind, False)):

        def make(tried: type[FlowMatching] = tried) -> FlowMatching:
            torch.manual_seed(15)
            return shaken(tried((2,), hidden=[8]), 0.1)

        [found] = prove(Case(make(), ConditionalFlowMatching(), adam, batches, make, None), {claim})
        assert found.held is held, found
