"""Joint training of a deep Boltzmann machine, and the greedy pretraining before it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gentrain import noise
from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.dbm import DBM
from gentrain.objectives.stages import Stages
from gentrain.types import Fraction, NonNegativeFloat, OpenFraction, PositiveFloat, PositiveInt, Shape
from gentrain.update import Objective, Score, Update

INSTANT = 12
"""Units of the odd layers up to which validation takes exact numbers: 4,096 states are no work."""


class JointDBM(Objective):
    """All layers of a DBM at once: mean field for the data, persistent chains for the model (Salakhutdinov & Hinton
    2009, section 2).

    The gradient of the mean bound, E_data,q[∂E] - E_model[∂E], at q's fixed point: mean field is its expectation given
    v, and the chains', of which the odd layers enter with their probabilities given the even ones, that of the model.
    Every process of a distributed run holds and advances all chains, with the same draws.

    With `centering` the statistics are taken about the layers' mean activities λ, which are running means of mean
    field: ∇W = ⟨(h - λ)(g - λ')ᵀ⟩_data - ⟨…⟩_model, and biases give way by as much as λ and λ' do (Montavon & Müller
    2012; for the usual parameters Melchior et al. 2016, JMLR 17:99). Machines without pretraining learn by it.

    With `sparsity` the mean activities q of a hidden layer's units, running means too, are drawn to a target p: cost
    (q - p) is added to the gradient with respect to the field that comes from below (Salakhutdinov's code).

    Args:
        shape: of one example, `${data.shape}`. hidden: units of the layers, `${model.hidden}`.
        particles: chains. k: Gibbs sweeps an update.
        sweeps: of mean field, at most. tolerance: it ends when no μ moves by more; 0 never looks, which a GPU likes.
        centering: about mean activities.
        sparsity: target of each hidden layer, [0.2, 0.1] for instance, or None. sparsity_cost: of being off.
        damping: of the running means: m <- damping m + (1 - damping) (the batch's mean).
        max_norm: largest norm of the weights of a unit to the layer below, or None.

    Raises:
        UsageError: there isn't one target for each layer.
    """

    needs = DBM
    chains: Tensor
    means: Tensor

    def __init__(
        self,
        shape: Shape,
        hidden: Sequence[PositiveInt],
        particles: PositiveInt = 100,
        k: PositiveInt = 5,
        sweeps: PositiveInt = 10,
        tolerance: NonNegativeFloat = 1e-7,
        centering: bool = False,
        sparsity: Sequence[Fraction] | None = None,
        sparsity_cost: NonNegativeFloat = 0.001,
        damping: OpenFraction = 0.9,
        max_norm: PositiveFloat | None = None,
    ):
        super().__init__()
        if sparsity is not None and len(sparsity) != len(hidden):
            raise UsageError(
                f"objective.sparsity={list(sparsity)}: {len(sparsity)} targets for {len(hidden)} hidden layers; give"
                " one for each, or null"
            )
        self.k, self.sweeps, self.tolerance = k, sweeps, tolerance
        self.centering, self.damping, self.max_norm = centering, damping, max_norm
        self.sparsity, self.sparsity_cost = sparsity, sparsity_cost
        self.sizes = [math.prod(shape), *hidden]
        self.register_buffer("chains", torch.rand(particles, sum(self.sizes)).round())
        self.register_buffer("means", torch.full((sum(self.sizes),), 0.5))

    def require(self, model: DBM) -> None:
        if model.sizes != self.sizes:
            raise UsageError(
                f"objective.hidden={self.sizes[1:]}: the model has layers of {model.sizes[1:]} units; leave it"
                " ${model.hidden}"
            )

    @torch.no_grad()
    def forward(self, model: DBM, batch: Batch, progress: float) -> Iterator[Update]:
        data = [batch.x.flatten(1), *model.mean_field(batch.x, self.sweeps, self.tolerance)]
        h = p = model.layers_of(self.chains)
        with noise.whole():
            for _ in range(self.k):
                h, p = model.gibbs(h)
        self.chains.copy_(torch.cat(h, 1))
        weights, biases = model.energy_gradient(data, p)
        now = torch.cat([noise.of_all_processes(layer).float().mean(0) for layer in data])
        self.means.lerp_(now, 1 - self.damping)
        means = self.means.split(self.sizes)
        if self.sparsity is not None:
            for i, (target, below) in enumerate(zip(self.sparsity, now.split(self.sizes), strict=False)):
                pull = self.sparsity_cost * (means[i + 1] - target)
                biases[i + 1] = biases[i + 1] + pull
                weights[i] = weights[i] + torch.outer(pull, below)
        if self.centering:
            weights, biases = centred(weights, biases, means)
        metrics = {f"activity{i}": layer.mean() for i, layer in enumerate(data[1:], 1)}
        yield Update(grads=model.by_name(weights, biases), metrics=metrics)
        if self.max_norm is not None:
            for i in range(1, model.depth + 1):
                model.rbm(i).weight.copy_(torch.renorm(model.rbm(i).weight, 2, 0, self.max_norm))

    def particles(self, model: DBM) -> Tensor:
        return model.layers_of(self.chains)[0].view(-1, *model.shape)

    @torch.no_grad()
    def validate(self, model: DBM, batch: Batch) -> dict[str, Score]:
        bound = model.log_bound(batch.x)
        scores = {"variational_free_energy": Score(-bound, "variational-free-energy")}
        if sum(self.sizes[1::2]) <= INSTANT:
            log_z = model.log_partition()
            assert log_z is not None
            scores["bound"] = Score(bound - log_z.to(bound), model.bound_kind)
            scores["log_likelihood"] = Score(model.log_prob(batch.x), "exact")
        return scores


def centred(
    weights: Sequence[Tensor], biases: Sequence[Tensor], means: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """A gradient with respect to W and c such that a step along it is one of the machine whose energy is written in
    h - λ, E = -Σ (h_l - λ_l)ᵀ W_l (h_{l-1} - λ_{l-1}) - Σ c'_lᵀ (h_l - λ_l).

    c_l = c'_l - W_l λ_{l-1} - W_{l+1}ᵀ λ_{l+1}, so ∂W' = ∂W - ∂c_l λ_{l-1}ᵀ - λ_l ∂c_{l-1}ᵀ and ∂c' = ∂c; then what
    c changes by as W does is taken from ∂c.

    Args:
        weights: ∂W_1 … ∂W_L. biases: ∂c_0 … ∂c_L. means: λ_0 … λ_L.
    """
    pairs = zip(weights, pairwise(biases), pairwise(means), strict=True)
    moved = [g - torch.outer(above, low) - torch.outer(high, below) for g, (below, above), (low, high) in pairs]
    shifted = list(biases)
    for i, g in enumerate(moved):
        shifted[i] = shifted[i] - means[i + 1] @ g
        shifted[i + 1] = shifted[i + 1] - g @ means[i]
    return moved, shifted


class PretrainDBM(Stages):
    """The layers of a DBM one after the other, then all together (Salakhutdinov & Hinton 2009, section 3).

    Args:
        stages: as in `Stages`.
    """

    needs = DBM

    def __init__(self, stages: Mapping[str, Any]):
        super().__init__(stages)
