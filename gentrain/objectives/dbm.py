"""Joint training of a deep Boltzmann machine, and the greedy pretraining before it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gentrain import noise
from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.dbm import DBM
from gentrain.objectives.refinements import batch_mean, centred
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

    Refinements are those of an RBM's training, for all layers: see `Refinements`. Machines without pretraining need
    centering (Montavon & Müller 2012).

    Args:
        shape: of one example, `${data.shape}`. hidden: units of the layers, `${model.hidden}`.
        particles: chains. k: Gibbs sweeps an update.
        sweeps: of mean field, at most. tolerance: it ends when no μ moves by more; 0 never looks, which a GPU likes.
        centering: share of a batch's means in the offsets of all layers, which begin at 1/2; None doesn't center.
        sparsity: target of each hidden layer, [0.2, 0.1] for instance, or None. sparsity_cost: of being off.
        sparsity_damping: share of the mean activities that is kept.
        max_norm: largest norm of the weights of a unit to the layer below, or None.

    Raises:
        UsageError: there isn't one target for each layer.
    """

    needs = DBM
    leaves = ("classifier",)
    chains: Tensor
    offsets: Tensor
    targets: Tensor
    activity: Tensor

    def __init__(
        self,
        shape: Shape,
        hidden: Sequence[PositiveInt],
        particles: PositiveInt = 100,
        k: PositiveInt = 5,
        sweeps: PositiveInt = 10,
        tolerance: NonNegativeFloat = 1e-7,
        centering: Fraction | None = None,
        sparsity: Sequence[OpenFraction] | None = None,
        sparsity_cost: NonNegativeFloat = 0.001,
        sparsity_damping: OpenFraction = 0.9,
        max_norm: PositiveFloat | None = None,
    ):
        super().__init__()
        if sparsity is not None and len(sparsity) != len(hidden):
            raise UsageError(
                f"objective.sparsity={list(sparsity)}: {len(sparsity)} targets for {len(hidden)} hidden layers; give"
                " one for each, or null"
            )
        self.k, self.sweeps, self.tolerance = k, sweeps, tolerance
        self.centering, self.max_norm = centering, max_norm
        self.sparsity, self.cost, self.damping = sparsity, sparsity_cost, sparsity_damping
        self.sizes = [math.prod(shape), *hidden]
        self.register_buffer("chains", torch.rand(particles, sum(self.sizes)).round())
        if centering is not None:
            self.register_buffer("offsets", torch.full((sum(self.sizes),), 0.5))
        if sparsity is not None:
            targets = [torch.full((n,), float(target)) for n, target in zip(hidden, sparsity, strict=True)]
            self.register_buffer("targets", torch.cat(targets), persistent=False)
            self.register_buffer("activity", torch.cat(targets))

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
        weights, biases = self.refine(*model.energy_gradient(data, p), data)
        metrics = {f"activity{i}": layer.mean() for i, layer in enumerate(data[1:], 1)}
        yield Update(grads=model.by_name(weights, biases), metrics=metrics)
        if self.max_norm is not None:
            for i in range(1, model.depth + 1):
                model.rbm(i).weight.copy_(torch.renorm(model.rbm(i).weight, 2, 0, self.max_norm))

    def refine(
        self, weights: list[Tensor], biases: list[Tensor], data: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The gradient to step by, from that of the bound and the layers' means on data."""
        if self.sparsity is None and self.centering is None:
            return weights, biases
        means = [batch_mean(layer) for layer in data]
        if self.sparsity is not None:
            self.activity.lerp_(torch.cat(means[1:]), 1 - self.damping)
            pull = (self.cost * (self.activity - self.targets)).split(self.sizes[1:])
            weights = [g + torch.outer(p, below) for g, p, below in zip(weights, pull, means, strict=False)]
            biases = [biases[0], *(g + p for g, p in zip(biases[1:], pull, strict=True))]
        if self.centering is not None:
            self.offsets.lerp_(torch.cat(means), self.centering)
            weights, biases = centred(weights, biases, self.offsets.split(self.sizes))
        return weights, biases

    def fantasies(self, model: DBM) -> Tensor:
        return model.chain_example(self.chains)

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


class PretrainDBM(Stages):
    """The layers of a DBM one after the other, then all together, then perhaps the classifier that it is unrolled into
    (Salakhutdinov & Hinton 2009, section 3).

    Args:
        stages: as in `Stages`.
    """

    needs = DBM

    def __init__(self, stages: Mapping[str, Any]):
        super().__init__(stages)
        self.leaves = () if "classifier" in self.parts else ("classifier",)
