"""An energy network and a generator against each other."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gentrain import noise
from gentrain.batch import Batch
from gentrain.models import deep_energy
from gentrain.types import NonNegativeFloat
from gentrain.update import Objective, Score, Update


class DeepEnergy(Objective):
    """The energy is taught to be low at data and high at what the generator makes, which stands for samples of the
    model; the generator is taught to sample the model (Kim & Bengio 2016, arXiv:1606.03439).

    The energy minimises E_data[E(x)] - E_z[E(G(z))], the gradient of -log p(x) where G samples p(x). The generator
    minimises KL(p_G ‖ p) = E_z[E(G(z))] - H(p_G) and a constant, its entropy approximated by the model's `entropy`.

    Metrics: `free_energy` of data, `generated_free_energy`, `entropy`.

    Args:
        entropy: weight of the generator's entropy; 1 is the divergence.
        alpha: weight of the mean of E(x)² over data and generated examples in the energy's loss. It is not the paper's
            (it is Du & Mordatch's, arXiv:1903.08689): with 0 both energies run away from 0 before G has learned.
    """

    needs = deep_energy.DeepEnergy
    parts = ("energy", "generator")

    def __init__(self, entropy: NonNegativeFloat = 1.0, alpha: NonNegativeFloat = 1e-3):
        super().__init__()
        self.weight, self.alpha = entropy, alpha

    def forward(self, model: deep_energy.DeepEnergy, batch: Batch, progress: float) -> Iterator[Update]:
        x = batch.x
        fakes = model.decode(noise.sample(model.prior, len(x)))
        on_data, on_fakes = model.free_energy(x), model.free_energy(fakes.detach())
        loss = on_data.mean() - on_fakes.mean()
        if self.alpha:
            loss = loss + self.alpha * (on_data.square().mean() + on_fakes.square().mean())
        metrics = {"free_energy": on_data.detach().mean(), "generated_free_energy": on_fakes.detach().mean()}
        yield Update(loss, "energy", metrics=metrics)
        entropy = model.entropy()
        loss = model.free_energy(fakes).mean() - self.weight * entropy
        yield Update(loss, "generator", metrics={"entropy": entropy.detach()})

    @torch.no_grad()
    def validate(self, model: deep_energy.DeepEnergy, batch: Batch) -> dict[str, Score]:
        return {"free_energy": Score(model.free_energy(batch.x), "free-energy")}
