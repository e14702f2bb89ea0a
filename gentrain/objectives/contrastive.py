"""Contrastive divergence and its persistent form, with closed-form gradients.

The gradient of the mean negative log-likelihood is E_data[∂F(v)] - E_model[∂F(v)], and ∂F(v) = E_{h|v}[∂E(v, h)]:
hidden probabilities enter the statistics, hidden samples drive the chain (Hinton 2010, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gentrain import noise
from gentrain.batch import Batch
from gentrain.models.base import Enumerable, Harmonium, PseudoLikelihood
from gentrain.types import PositiveInt
from gentrain.update import Objective, Score, Update

INSTANT = 12
"""Units of the smaller layer up to which validation takes the exact likelihood: 4,096 states are no work."""
BITS = 8
"""Bits an example that validation's pseudo-likelihood is estimated from."""


class _Contrastive(Objective):
    """What CD and PCD share: the gradient from two ends of a chain, and the quantities watched on held-out data."""

    needs = Harmonium
    monitor = "pseudo_log_likelihood"

    @torch.no_grad()
    def validate(self, model: Harmonium, batch: Batch) -> dict[str, Score]:
        x = batch.x
        scores = {"free_energy": Score(model.free_energy(x), "free-energy")}
        if isinstance(model, PseudoLikelihood):
            bits = None if x[0].numel() <= 4 * BITS else BITS
            scores["pseudo_log_likelihood"] = Score(model.pseudo_log_likelihood(x, bits), "pseudo")
        if isinstance(model, Enumerable) and model.enumeration_bits <= INSTANT:
            scores["log_likelihood"] = Score(model.log_prob(x), "exact")
        return scores


class CD(_Contrastive):
    """CD-k: the model's expectation is taken k Gibbs steps from the data (Hinton 2002).

    Metrics: `chain_distance`, the share of bits (mean distance, for reals) by which the chain's end differs from
    its start. It is no measure of learning by itself: a chain that mixes better moves further (Hinton 2010, section 5).

    Args:
        k: Gibbs steps.
    """

    def __init__(self, k: PositiveInt = 1):
        super().__init__()
        self.k = k

    @torch.no_grad()
    def forward(self, model: Harmonium, batch: Batch, progress: float) -> Iterator[Update]:
        x = v = model.units(batch.x, batch.y)
        probability = p = model.hidden_probability(x)
        for _ in range(self.k):
            v = model.sample_visible(model.sample_hidden(p))
            p = model.hidden_probability(v)
        metrics = {"chain_distance": (x - v).abs_().mean()}
        yield Update(grads=model.energy_gradient((x, probability), (v, p)), metrics=metrics)


class PCD(_Contrastive):
    """PCD-k: the model's expectation is taken over chains that go on from update to update (Tieleman 2008).

    A particle is kept as its hidden state, which saves a product a step; all are advanced by k Gibbs steps an update.
    Every process of a distributed run holds and advances all of them, with the same draws.

    Args:
        hidden: hidden units of the model, `${model.hidden}`.
        k: Gibbs steps an update.
        particles: chains.
    """

    particles: Tensor

    def __init__(self, hidden: PositiveInt, k: PositiveInt = 1, particles: PositiveInt = 100):
        super().__init__()
        self.k = k
        self.register_buffer("particles", torch.rand(particles, hidden).round())

    @torch.no_grad()
    def forward(self, model: Harmonium, batch: Batch, progress: float) -> Iterator[Update]:
        x = model.units(batch.x, batch.y)
        probability = model.hidden_probability(x)
        h = self.particles
        with noise.whole():
            for _ in range(self.k):
                v = model.sample_visible(h)
                p = model.hidden_probability(v)
                h = model.sample_hidden(p)
        self.particles.copy_(h)
        metrics = {"hidden_activity": probability.mean()}
        yield Update(grads=model.energy_gradient((x, probability), (v, p)), metrics=metrics)
