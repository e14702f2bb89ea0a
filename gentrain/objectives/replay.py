"""Contrastive learning by autograd, with chains that are kept in a buffer of examples."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gentrain import noise
from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.energies import EnergyBased
from gentrain.objectives.contrastive import Contrastive
from gentrain.types import Fraction, NonNegativeFloat, PositiveInt, Shape
from gentrain.update import Update


class Replay(Contrastive):
    """E_data[F(x)] - E_chains[F(x)] and its gradient, that of the mean of -log p(x) where the chains follow p(x): for
    any energy model that has a chain, networks too (Tieleman 2008; Du & Mordatch 2019, arXiv:1903.08689; Nijkamp et al.
    2019, arXiv:1904.09770).

    An update takes `chains` examples from the buffer at random, begins a share of them anew, runs k steps of the
    model's chain, and puts them back. With `size` = `chains` and `reinit` 0 that is persistent contrastive divergence.
    Every process of a distributed run advances all chains, with the same draws.

    Metrics: `free_energy` of data, `chain_free_energy`, and `gap`, their difference, whose value measures nothing by
    itself: as the chains reach the data it goes to zero.

    Args:
        shape: of one example, `${data.shape}`.
        k: steps of the chain an update.
        chains: that are advanced in an update. size: of the buffer, in examples.
        reinit: probability that a chain begins anew, where the model's chains do.
        alpha: weight of the mean of F(x)² over data and chains, which keeps a network's energies small
            (arXiv:1903.08689, section 3.3).
        noise: standard deviation of Gaussian noise added to real data, in their unit.

    Raises:
        UsageError: the buffer holds fewer examples than there are chains; or noise is to be added to bits.
    """

    needs = EnergyBased
    buffer: Tensor

    def __init__(
        self,
        shape: Shape,
        k: PositiveInt = 1,
        chains: PositiveInt = 100,
        size: PositiveInt = 1000,
        reinit: Fraction = 0.05,
        alpha: NonNegativeFloat = 0.0,
        noise: NonNegativeFloat = 0.0,
    ):
        super().__init__()
        if size < chains:
            raise UsageError(f"objective.size={size}: the buffer holds the {chains} chains of an update at least")
        self.k, self.chains, self.reinit, self.alpha, self.noise = k, chains, reinit, alpha, noise
        # NaN stands where no chain has begun yet: what a model's chains begin at is known once there is a model
        self.register_buffer("buffer", torch.full((size, *shape), torch.nan))

    def require(self, model: EnergyBased) -> None:
        if self.noise and model.support != "real":
            raise UsageError(f"objective.noise={self.noise:g}: takes real data, and these are {model.support}; say 0")

    def fantasies(self, model: EnergyBased) -> Tensor | None:
        """The chains that have begun."""
        begun = self.buffer[~self.buffer.flatten(1).isnan().any(1)]
        return begun if len(begun) else None

    @torch.no_grad()
    def advance(self, model: EnergyBased) -> Tensor:
        """The chains' new states, (chains, *shape), which are in the buffer too."""
        with noise.whole():
            device, size = self.buffer.device, len(self.buffer)
            rows = torch.arange(size, device=device)
            if size > self.chains:
                rows = torch.randperm(size, device=device)[: self.chains]
            x = self.buffer[rows]
            anew = x.flatten(1).isnan().any(1)
            if self.reinit:
                anew |= noise.uniform(self.chains, device=device) < self.reinit
            x = torch.where(anew.view(-1, *[1] * (x.dim() - 1)), model.start(self.chains), x)
            x = model.gibbs(x, self.k)
        self.buffer[rows] = x
        return x

    def forward(self, model: EnergyBased, batch: Batch, progress: float) -> Iterator[Update]:
        chain, x = self.advance(model), batch.x
        if self.noise:
            x = x + self.noise * noise.normal(*x.shape, device=x.device)
        on_data, on_chain = model.free_energy(x), model.free_energy(chain)
        gap = on_data.mean() - on_chain.mean()
        loss = gap
        if self.alpha:
            loss = gap + self.alpha * (on_data.square().mean() + on_chain.square().mean())
        metrics = {"free_energy": on_data.mean(), "chain_free_energy": on_chain.mean(), "gap": gap}
        yield Update(loss, metrics={name: value.detach() for name, value in metrics.items()})
