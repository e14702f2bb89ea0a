"""Contrastive divergence and its persistent form, with closed-form gradients.

The gradient of the mean negative log-likelihood is E_data[∂F(v)] - E_model[∂F(v)], and ∂F(v) = E_{h|v}[∂E(v, h)]:
hidden probabilities enter the statistics, hidden samples drive the chain (Hinton 2010, section 3). Where a machine has
label units, v is an example together with its label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from gentrain import noise
from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.energies import EnergyBased, Enumerable, Harmonium, PseudoLikelihood
from gentrain.models.harmonium import Bilinear
from gentrain.objectives.classify import own_class_scores
from gentrain.objectives.refinements import Refinements
from gentrain.types import NonNegativeInt, PositiveInt
from gentrain.update import Objective, Score, Update

INSTANT = 12
"""Units of the smaller layer up to which validation takes the exact likelihood: 4,096 states are no work."""
BITS = 8
"""Bits an example that validation's pseudo-likelihood is estimated from."""


class Contrastive(Objective):
    """What learning from data against chains of the model has in common: the quantities watched on held-out data."""

    needs = EnergyBased
    monitor = "pseudo_log_likelihood"
    exact = INSTANT

    @torch.no_grad()
    def validate(self, model: EnergyBased, batch: Batch) -> dict[str, Score]:
        x = batch.x
        scores = {"free_energy": Score(model.free_energy(x), "free-energy")}
        if isinstance(model, PseudoLikelihood):
            bits = None if x[0].numel() <= 4 * BITS else BITS
            scores["pseudo_log_likelihood"] = Score(model.pseudo_log_likelihood(x, bits), "pseudo")
        if isinstance(model, Enumerable) and model.enumeration_bits <= self.exact:
            scores["log_likelihood"] = Score(model.log_prob(x), "exact")
        return scores | own_class_scores(model, batch)


class ClosedForm(Contrastive):
    """What CD, PCD and their relatives share: the gradient from two sets of states, and its refinements.

    Args:
        exact: validation takes the exact likelihood where the smaller layer has no more units than this; 12 are no
            work, 25 are ten seconds each time.
        refine: centering, sparsity and a bound on weights; None changes nothing.
    """

    needs = Harmonium

    def __init__(self, exact: NonNegativeInt = INSTANT, refine: Refinements | None = None):
        super().__init__()
        self.exact, self.refine = exact, refine

    def require(self, model: Harmonium) -> None:
        if self.refine is not None:
            self.refine.require(model)

    def gradient(
        self, model: Harmonium, data: tuple[Tensor, Tensor], chain: tuple[Tensor, Tensor]
    ) -> Mapping[str, Tensor]:
        """The gradient to step by, from pairs (v, E[h | v]) of data and of chains."""
        grads = model.energy_gradient(data, chain)
        return grads if self.refine is None else self.refine.gradient(grads, *data)

    def step(self, model: Harmonium, grads: Mapping[str, Tensor], metrics: Mapping[str, Tensor]) -> Iterator[Update]:
        """The update, and what is due once it has been carried out."""
        yield Update(grads=grads, metrics=metrics)
        if self.refine is not None and isinstance(model, Bilinear):
            self.refine.project(model)


class CD(ClosedForm):
    """CD-k: the model's expectation is taken k Gibbs steps from the data (Hinton 2002).

    With `k_final` the number of steps rises from k to it, one by one in equal shares of training. So k=1, k_final=25
    over 250 epochs is ⌈epoch/10⌉, the CD25 of Salakhutdinov & Murray (2008), whose rate of 0.05/k is
    `optim.schedule=harmonic optim.final=0.04`.

    Metrics: `chain_distance`, the share of bits (mean distance, for reals) by which the chain's end differs from
    its start. It is no measure of learning by itself: a chain that mixes better moves further (Hinton 2010, section 5).

    Args:
        k: Gibbs steps. k_final: those at the end of training; None is k.
        exact, refine: as in `ClosedForm`.

    Raises:
        UsageError: k_final is smaller than k.
    """

    def __init__(
        self,
        k: PositiveInt = 1,
        k_final: PositiveInt | None = None,
        exact: NonNegativeInt = INSTANT,
        refine: Refinements | None = None,
    ):
        super().__init__(exact, refine)
        if k_final is not None and k_final < k:
            raise UsageError(f"objective.k_final={k_final}: k rises to it, and begins at objective.k={k}; give more")
        self.k, self.k_final = k, k if k_final is None else k_final

    def steps(self, progress: float) -> int:
        """k at this point of training.

        >>> [CD(k=1, k_final=4).steps(t) for t in (0.0, 0.24, 0.26, 0.5, 0.99)]
        [1, 1, 2, 3, 4]
        """
        return self.k + int(progress * (self.k_final - self.k + 1))

    @torch.no_grad()
    def forward(self, model: Harmonium, batch: Batch, progress: float) -> Iterator[Update]:
        x = v = model.units(batch.x, batch.y)
        probability = p = model.hidden_probability(x)
        for _ in range(self.steps(progress)):
            v = model.sample_visible(model.sample_hidden(p))
            p = model.hidden_probability(v)
        metrics = {"chain_distance": (x - v).abs_().mean()}
        yield from self.step(model, self.gradient(model, (x, probability), (v, p)), metrics)


class Persistent(ClosedForm):
    """What PCD and FPCD share: chains that go on from update to update.

    A particle is kept as its hidden state, which saves a product a step; all are advanced by k Gibbs steps an update.
    Every process of a distributed run holds and advances all of them, with the same draws.

    Args:
        hidden: hidden units of the model, `${model.hidden}`.
        k: Gibbs steps an update.
        particles: chains.
        exact, refine: as in `ClosedForm`.

    Raises:
        UsageError: the model has another number of hidden units.
    """

    particles: Tensor

    def __init__(
        self, hidden: PositiveInt, k: PositiveInt, particles: PositiveInt, exact: int, refine: Refinements | None
    ):
        super().__init__(exact, refine)
        self.k = k
        self.register_buffer("particles", torch.rand(particles, hidden).round())

    def require(self, model: Harmonium) -> None:
        super().require(model)
        hidden = self.particles.shape[1]
        if isinstance(model, Bilinear) and model.hidden != hidden:
            raise UsageError(
                f"objective.hidden={hidden}: the chains of {type(self).__name__} have the model's hidden units, which"
                f" are {model.hidden}; leave it ${{model.hidden}}, or of the top of a stack say its number"
            )

    def advance(self, model: Harmonium) -> tuple[Tensor, Tensor]:
        """Move the chains by k steps; their visible units' states v and E[h | v]."""
        h = self.particles
        with noise.whole():
            for _ in range(self.k):
                v = model.sample_visible(h)
                p = model.hidden_probability(v)
                h = model.sample_hidden(p)
        self.particles.copy_(h)
        return v, p

    def fantasies(self, model: Harmonium) -> Tensor:
        """x ~ p(x | h) of each chain."""
        return model.examples(model.sample_visible(self.particles))


class PCD(Persistent):
    """PCD-k: the model's expectation is taken over chains that go on from update to update (Tieleman 2008).

    Args:
        hidden: hidden units of the model, `${model.hidden}`.
        k: Gibbs steps an update.
        particles: chains.
        exact, refine: as in `ClosedForm`.
    """

    def __init__(
        self,
        hidden: PositiveInt,
        k: PositiveInt = 1,
        particles: PositiveInt = 100,
        exact: NonNegativeInt = INSTANT,
        refine: Refinements | None = None,
    ):
        super().__init__(hidden, k, particles, exact, refine)

    @torch.no_grad()
    def forward(self, model: Harmonium, batch: Batch, progress: float) -> Iterator[Update]:
        x = model.units(batch.x, batch.y)
        probability = model.hidden_probability(x)
        grads = self.gradient(model, (x, probability), self.advance(model))
        yield from self.step(model, grads, {"hidden_activity": probability.mean()})
