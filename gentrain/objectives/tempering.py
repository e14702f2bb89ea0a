"""Learning with chains at several temperatures that change places."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gentrain import noise
from gentrain.batch import Batch
from gentrain.models.energies import Tempers
from gentrain.objectives.contrastive import INSTANT, ClosedForm
from gentrain.objectives.refinements import Refinements
from gentrain.types import NonNegativeInt, OpenFraction, PositiveInt
from gentrain.update import Update


class Tempering(ClosedForm):
    """PCD with parallel tempering (Desjardins, Courville, Bengio, Vincent & Delalleau 2010, AISTATS).

    Every particle has replicas at inverse temperatures 1 = β_1 > … > β_R, of distributions p_β ∝ exp(-β E(v, h)). An
    update takes k Gibbs steps in each; then neighbours i and i + 1 change places with probability
    min(1, exp((β_i - β_i+1)(E_i - E_i+1))), first of the pairs that begin at odd i, then of the others. What is learned
    from is what then stands at β = 1. At β = 0 bits are coin tosses: such a replica goes anywhere in one step, and what
    it finds wanders up, so chains change modes that Gibbs steps alone never leave.

    Metrics: `swaps`, the share of neighbours that change places. Below 0.2 or so there are too few replicas.

    Args:
        hidden: hidden units of the model, `${model.hidden}`.
        k: Gibbs steps an update. particles: chains at β = 1.
        replicas: R, temperatures, evenly spaced in β; 1 is plain PCD. lowest: β_R.
        exact, refine: as in `ClosedForm`.
    """

    needs = Tempers
    particles: Tensor
    betas: Tensor

    def __init__(
        self,
        hidden: PositiveInt,
        k: PositiveInt = 1,
        particles: PositiveInt = 50,
        replicas: PositiveInt = 10,
        lowest: OpenFraction = 0.0,
        exact: NonNegativeInt = INSTANT,
        refine: Refinements | None = None,
    ):
        super().__init__(exact, refine)
        self.k = k
        self.register_buffer("particles", torch.rand(replicas, particles, hidden).round())
        self.register_buffer("betas", torch.linspace(1, lowest, replicas), persistent=False)

    def advance(self, model: Tempers) -> tuple[Tensor, Tensor]:
        """Move all replicas and let them change places; the visible units at β = 1, (particles, D), and `swaps`."""
        replicas, n, _ = self.particles.shape
        h, beta = self.particles.flatten(0, 1), self.betas.repeat_interleave(n)[:, None]
        with noise.whole():
            for _ in range(self.k):
                v, h, energy = model.step_at(h, beta)
            place, swaps = self.exchange(energy.view(replicas, n))
        h, column = h.view(replicas, n, -1), torch.arange(n, device=h.device)
        self.particles.copy_(h[place, column])
        return v[place[0] * n + column], swaps

    def exchange(self, energy: Tensor) -> tuple[Tensor, Tensor]:
        """Which replica each place takes, given their energies, both (R, n), and the share of pairs that swapped."""
        replicas, n = energy.shape
        place = torch.arange(replicas, device=energy.device)[:, None].repeat(1, n)
        swapped = torch.zeros((), device=energy.device)
        for first in (0, 1):
            i, j = slice(first, replicas - 1, 2), slice(first + 1, replicas, 2)
            gain = (self.betas[i] - self.betas[j])[:, None] * (energy[i] - energy[j])
            swap = noise.uniform(*gain.shape, device=energy.device) < gain.exp()
            for values in (energy, place):
                values[i], values[j] = torch.where(swap, values[j], values[i]), torch.where(swap, values[i], values[j])
            swapped += swap.sum()
        return place, swapped / max(1, (replicas - 1) * n)

    @torch.no_grad()
    def forward(self, model: Tempers, batch: Batch, progress: float) -> Iterator[Update]:
        x = model.units(batch.x, batch.y)
        probability = model.hidden_probability(x)
        v, swaps = self.advance(model)
        grads = self.gradient(model, (x, probability), (v, model.hidden_probability(v)))
        yield from self.step(model, grads, {"hidden_activity": probability.mean(), "swaps": swaps})

    def fantasies(self, model: Tempers) -> Tensor:
        """x ~ p(x | h) of each chain at β = 1."""
        return model.examples(model.sample_visible(self.particles[0]))
