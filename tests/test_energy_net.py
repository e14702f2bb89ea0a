"""Langevin dynamics against densities known in closed form, and energies that are networks."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import build
from torch import Tensor

from gentrain import noise
from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.energy_net import EnergyNet, Langevin
from gentrain.objectives.replay import Replay
from gentrain.truth.spaces import around, follow

PRECISION = torch.tensor([[2.0, 0.9], [0.9, 1.0]])
CENTRE = torch.tensor([0.5, -1.0])


class Quadratic(Langevin):
    """E(z) = (z - c)ᵀP(z - c)/2: a Gaussian with the covariance P⁻¹."""

    def __init__(self, step: float, adjusted: bool, steps: int = 5, noise: float | None = None):
        super().__init__((2,), True, step, steps, adjusted, noise, 40)

    def energy(self, z: Tensor) -> Tensor:
        away = z - CENTRE
        return 0.5 * ((away @ PRECISION) * away).sum(1)


def deviations(model: Langevin, n: int = 10_000) -> tuple[float, float]:
    """The largest distance of the chain's means and covariances from those of the Gaussian, in standard errors."""
    torch.manual_seed(0)
    z = model.inward(model.sample(n)).double()
    covariance = torch.linalg.inv(PRECISION.double())
    mean = ((z.mean(0) - CENTRE).abs() / (covariance.diagonal() / n).sqrt()).max()
    spread = covariance.diagonal()
    error = ((covariance**2 + torch.outer(spread, spread)) / n).sqrt()
    return float(mean), float(((torch.cov(z.t()) - covariance).abs() / error).max())


@pytest.mark.parametrize("step", [0.3, 1.8])
def test_adjusted_steps_sample_a_gaussian_exactly(step: float):
    model = Quadratic(step, adjusted=True)
    model.standardise(torch.tensor([3.0, 4.0]), torch.tensor([2.0, 0.5]))
    assert max(deviations(model)) < 5


def test_unadjusted_steps_sample_it_in_the_limit():
    """A step of z <- (I - ε/2 P) z + √ε ξ has the stationary covariance P⁻¹ (I - ε/4 P)⁻¹, which is too wide."""
    assert max(deviations(Quadratic(0.05, adjusted=False, steps=15))) < 5
    rough = Quadratic(0.8, adjusted=False)
    assert deviations(rough)[1] > 10
    torch.manual_seed(0)
    z = rough.sample(20_000).double()
    P = PRECISION.double()
    wider = torch.linalg.inv(P) @ torch.linalg.inv(torch.eye(2) - 0.2 * P)
    torch.testing.assert_close(torch.cov(z.t()), wider, atol=0.05, rtol=0.05)


def test_less_noise_is_colder():
    """z <- z - ε/2 ∂E + s ξ is Langevin dynamics at the temperature s²/ε, for small ε."""
    model = Quadratic(0.05, adjusted=False, steps=15, noise=0.5 * math.sqrt(0.05))
    covariance = torch.cov(model.sample(20_000).double().t())
    torch.testing.assert_close(covariance, 0.25 * torch.linalg.inv(PRECISION.double()), atol=0.02, rtol=0.05)


def test_a_move_is_its_formula():
    model, x = Quadratic(0.1, adjusted=False, steps=1), torch.randn(4, 2)
    torch.manual_seed(1)
    found = model.gibbs(x, 1)
    torch.manual_seed(1)
    expected = x - 0.05 * (x - CENTRE) @ PRECISION + math.sqrt(0.1) * noise.normal(4, 2)
    torch.testing.assert_close(found, expected)
    assert torch.equal(model.gibbs(x, 0), x) and not found.requires_grad


def test_hopeless_moves_are_refused():
    model = Quadratic(1e6, adjusted=True)
    x = torch.zeros(50, 2) + CENTRE
    torch.testing.assert_close(model.gibbs(x, 3), x)


def random_net(scale: float = 1.0, **options: object) -> EnergyNet:
    torch.manual_seed(0)
    model = EnergyNet((2,), hidden=[16, 16], **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn_like(p) / (p.shape[-1] ** 0.5 if p.dim() > 1 else 2))
    return model


def test_its_chain_keeps_and_finds_the_density_on_a_grid():
    model = random_net(step=0.3, steps=5, burn_in=30)
    model.standardise(torch.tensor([1.0, -2.0]), torch.tensor([2.0, 2.0]))
    draws = model.sample(10_000)
    space = around(draws)
    assert not isinstance(space, str)
    with torch.no_grad():
        log_p = -model.free_energy(space.points)
    assert space.uncertainty(log_p) < 1e-3
    for x in (draws, model.gibbs(space.draw(log_p, 10_000), 1)):
        statistic, allowed, words = follow(x, space, log_p)
        assert statistic < allowed, words
    network_off = model.width, model.energy(torch.zeros(1, 2)) - model.network(torch.zeros(1, 2))[:, 0]
    torch.testing.assert_close(network_off[1], torch.tensor([-1.0]))


def test_a_chain_leaves_no_gradient_and_no_graph():
    model, x = random_net(), torch.randn(5, 2)
    x.requires_grad_()
    moved = model.gibbs(x, 2)
    assert not moved.requires_grad and x.grad is None and all(p.grad is None for p in model.parameters())
    model.free_energy(moved).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_spectral_normalisation_bounds_the_slope_of_the_network():
    model = random_net(scale=3, spectral_norm=True)
    for _ in range(50):
        model.network(torch.randn(2, 2))  # in training each pass comes nearer to the singular values
    z = torch.randn(500, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(model.eval().network(z).sum(), z)
    assert 0 < slope.norm(dim=1).max() < 1.1**3 * 1.01, "silu rises by at most 1.1"


def test_convolutions_see_images():
    model = EnergyNet((1, 8, 8), network="conv", hidden=[8], channels=4, burn_in=1, steps=1)
    x = model.sample(3)
    assert x.shape == (3, 1, 8, 8) and model.free_energy(x).shape == (3,)
    assert not any(name.endswith("bias") and p.numel() == 1 for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noise": 0.1}, "model.noise=0.1: .*model.adjusted=false"),
        ({"channels": 8}, "model.channels=8: .*model.network=conv"),
        ({"network": "conv"}, "model.network=conv takes images"),
    ],
)
def test_what_has_no_effect_is_refused(options: dict[str, object], words: str):
    with pytest.raises(UsageError, match=words):
        random_net(**options)


def test_it_learns_a_ring():
    """Of four Gaussians, whose entropy is known, by the log-likelihood on a grid: half way from one Gaussian."""
    assembly = build(
        "model=energy_net",
        "data=ring",
        "data.modes=4",
        "data.std=0.4",
        "model.hidden=[32,32]",
        "model.step=0.1",
        "objective.size=200",
        "data.batch_size=200",
    )
    model, objective = assembly.model, assembly.objective
    assert isinstance(model, EnergyNet) and isinstance(objective, Replay)
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    test = torch.cat([batch.x for batch in assembly.pipeline.evaluation("test", 1000, 4000)])

    def log_likelihood() -> float:
        space = around(torch.cat([test, model.start(1000)]))
        assert not isinstance(space, str)
        with torch.no_grad():
            log_z = space.log_total(-model.free_energy(space.points))
            return float((-model.free_energy(test).double() - log_z).mean())

    before = log_likelihood()
    for step in range(400):
        (update,) = objective(model, Batch(assembly.pipeline.batch(step).x), 0.0)
        assert update.loss is not None
        optimizer.zero_grad()
        update.loss.backward()
        optimizer.step()
    best = -math.log(4) - math.log(2 * math.pi * math.e * 0.4**2)  # the entropy, but for the overlap
    assert before < best - 0.9 and (before + best) / 2 < log_likelihood() < best + 0.05
