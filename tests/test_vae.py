"""The VAE's truth tests: bounds against quadrature, likelihoods against one, the loss against its definition."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Independent, Normal, kl_divergence

from gentrain import noise
from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.likelihoods import DiscretizedLogistic, choose
from gentrain.models.vae import VAE
from gentrain.objectives.elbo import ELBO
from gentrain.truth.latent import bounds
from gentrain.truth.spaces import chi_square, critical, discrete, quadrature

OVER_LEVELS = ("bernoulli", "categorical", "discretized_logistic")


def tiny(scale: float = 2.0) -> VAE:
    """Four bits, one latent dimension, weights so large that q is far from the posterior."""
    torch.manual_seed(0)
    vae = VAE((1, 2, 2), levels=2, latent_dim=1, hidden=[8], likelihood="bernoulli")
    with torch.no_grad():
        for p in vae.decoder.parameters():
            p.mul_(scale)
    return vae


def test_closed_form_kl_against_monte_carlo():
    vae = VAE((5,), latent_dim=3, hidden=[7])
    torch.manual_seed(1)
    with torch.no_grad():
        q = vae.encode(3 * torch.randn(4, 5))
        z = q.sample(torch.Size([100_000]))
        ratio = q.log_prob(z) - vae.prior.log_prob(z)
        closed = kl_divergence(q, vae.prior)
    assert ((ratio.mean(0) - closed).abs() < 5 * ratio.std(0) / len(ratio) ** 0.5).all()
    same = kl_divergence(Independent(Normal(q.loc, q.scale), 1), Independent(Normal(torch.zeros(3), torch.ones(3)), 1))
    torch.testing.assert_close(closed, same)


def test_bounds_are_ordered_below_the_exact_likelihood():
    vae, x = tiny(), discrete((1, 2, 2), 2).points
    found = quadrature(vae, x)
    assert not isinstance(found, str) and found.unsure < 1e-3
    exact = found.log_p
    assert exact.exp().sum().item() == pytest.approx(1, abs=1e-5)

    means, errors = [], []
    for k in (1, 5, 50):
        draws = bounds(vae, x, k, 20_000 // k)
        means.append(draws.mean(0))
        errors.append(draws.std(0) / len(draws) ** 0.5)
    for (lower, higher), error in zip(pairwise(means), errors[:2], strict=True):
        assert (lower <= higher + 4 * error).all()
        assert (higher - lower).mean() > 0.01, "the bounds coincide: this model can't tell them apart"
    assert (means[-1] <= exact + 4 * errors[-1]).all()

    torch.manual_seed(2)
    with torch.no_grad():
        reconstruction, kl = ELBO(samples=20_000).terms(vae, x)
    assert ((reconstruction - kl - means[0]).abs() < 6 * errors[0] + 1e-4).all()


@pytest.mark.parametrize("levels", [2, 5, 256])
@pytest.mark.parametrize("name", OVER_LEVELS)
def test_a_mass_function_sums_to_one_samples_itself_and_knows_its_mean(name: str, levels: int):
    levels = 2 if name == "bernoulli" else levels
    torch.manual_seed(3)
    likelihood = choose(name, (1, 1, 1), levels)
    raw = torch.randn(3, likelihood.per_element) * (0.3 if name == "discretized_logistic" else 1.0)
    with torch.no_grad():
        p = likelihood(raw)
        mass = torch.stack([p.log_prob(torch.full((3, 1, 1, 1), float(k))).exp() for k in range(levels)])
        torch.testing.assert_close(mass.sum(0), torch.ones(3), atol=2e-5, rtol=0)
        mean = (mass * torch.arange(levels)[:, None]).sum(0)
        torch.testing.assert_close(p.mean.flatten(), mean, rtol=1e-4, atol=1e-4)

        n = 20_000
        draws = p.sample(torch.Size([n])).view(n, 3)
    for i in range(3):
        observed = torch.bincount(draws[:, i].long(), minlength=levels)
        expected = mass[:, i] * n
        statistic, freedom = chi_square(observed, expected)
        assert statistic < critical(freedom)
        assert observed[expected < 1e-3].sum() == 0


@settings(deadline=None, max_examples=50)
@given(st.floats(-3, 3), st.floats(-7, 3), st.integers(2, 300))
def test_discretized_logistic_is_normalised_and_differentiable_everywhere(loc: float, log_scale: float, levels: int):
    parameters = torch.tensor([loc, log_scale], dtype=torch.float64, requires_grad=True)
    p = DiscretizedLogistic(*parameters.unbind(), levels=levels)
    log_mass = p.log_prob(torch.arange(levels))
    assert log_mass.exp().sum().item() == pytest.approx(1, abs=1e-9)
    assert torch.isfinite(torch.autograd.grad(log_mass.sum(), parameters)[0]).all()


def test_the_gaussian_integrates_to_one():
    likelihood = choose("gaussian", (1,), None)
    with torch.no_grad():
        likelihood.log_scale.fill_(-0.7)
        grid = torch.linspace(-10, 10, 5001)[:, None]
        p = likelihood(torch.tensor([[0.4]]))
        mass = p.log_prob(grid).exp().sum() * (20 / 5000)
        assert mass.item() == pytest.approx(1, abs=1e-4)
        assert p.stddev.item() == pytest.approx(math.exp(-0.7), rel=2e-3)  # the learned scale is the one in use
        likelihood.log_scale.fill_(-100.0)
        assert likelihood(torch.zeros(1, 1)).stddev.item() == pytest.approx(math.exp(-7), rel=1e-3)


@pytest.mark.parametrize("name", [*OVER_LEVELS, "gaussian"])
def test_the_bias_starts_at_the_base_rate(name: str):
    levels = 2 if name == "bernoulli" else 7
    vae = VAE((1, 2, 2), levels=levels, latent_dim=2, hidden=[4], likelihood=name)  # type: ignore[arg-type]
    rate = torch.tensor([[[0.0, 0.2], [0.7, 1.0]]]) * (levels - 1)
    vae.start_from_mean(rate)
    with torch.no_grad():
        mean = vae.likelihood(torch.zeros(1, 4 * vae.likelihood.per_element)).mean[0]
    if name == "discretized_logistic":  # its location is the mean; tails cut off at the edges pull the mean inwards
        assert (mean - rate).abs().max() < 0.13 * (levels - 1)
        assert mean.flatten().diff().gt(0).all()
    else:
        inside = rate if name == "gaussian" else rate.clamp(0.001 * (levels - 1), 0.999 * (levels - 1))
        torch.testing.assert_close(mean, inside, atol=1e-3, rtol=1e-3)


def test_the_loss_is_minus_the_elbo_and_beta_weighs_the_kl():
    vae, x = tiny(), discrete((1, 2, 2), 2).points
    for beta in (1.0, 4.0):
        objective = ELBO(beta=beta)
        torch.manual_seed(4)
        (update,) = objective(vae, Batch(x), 0.5)
        torch.manual_seed(4)
        scores = objective.validate(vae, Batch(x))
        elbo, kl = scores["elbo"].values.mean(), scores["kl"].values.mean()
        torch.testing.assert_close(update.loss, -elbo + (beta - 1) * kl)
        torch.testing.assert_close(update.metrics["elbo"], elbo.detach())
        assert scores["elbo"].kind == "elbo"
        assert not any(m.requires_grad for m in update.metrics.values())


def test_warmup_raises_beta_linearly():
    vae, x = tiny(), discrete((1, 2, 2), 2).points
    for progress, weight in ((0.0, 0.0), (0.1, 1.0), (0.2, 2.0), (0.7, 2.0)):
        (update,) = ELBO(beta=2.0, warmup=0.2)(vae, Batch(x), progress)
        m = update.metrics
        torch.testing.assert_close(m["loss"], weight * m["kl"] - m["reconstruction"])


def test_more_samples_average_the_same_expectation():
    vae, x = tiny(), discrete((1, 2, 2), 2).points[5:6]
    torch.manual_seed(5)
    with torch.no_grad():
        one = ELBO().terms(vae, x.expand(4000, 1, 2, 2))[0]
        many = torch.stack([ELBO(samples=16).terms(vae, x)[0][0] for _ in range(250)])
    error = (one.var() / len(one) + many.var() / len(many)).sqrt()
    assert (one.mean() - many.mean()).abs() < 4 * error
    assert many.var() < one.var() / 8


def test_two_halves_of_a_batch_see_the_noise_of_the_whole():
    vae, x = tiny(), discrete((1, 2, 2), 2).points
    losses = []
    try:
        for rank, world in ((0, 1), (0, 2), (1, 2)):
            noise.shard(rank, world)
            torch.manual_seed(6)
            half = x.view(world, -1, 1, 2, 2)[rank]
            losses.append(next(ELBO()(vae, Batch(half), 0.0)).loss)
    finally:
        noise.shard(0, 1)
    torch.testing.assert_close((losses[1] + losses[2]) / 2, losses[0])


def bars() -> torch.Tensor:
    """Bars and stripes, 3x3: 14 pictures."""
    rows = discrete((3, 1), 2).points.expand(-1, 3, 3)
    return torch.unique(torch.cat([rows, rows.transpose(1, 2)]), dim=0)[:, None]


def test_training_approaches_the_entropy_and_never_passes_it():
    torch.manual_seed(7)
    x = bars()
    vae = VAE((1, 3, 3), levels=2, latent_dim=2, hidden=[64])
    vae.start_from_mean(x.mean(0))
    objective, optimizer = ELBO(), torch.optim.Adam(vae.parameters(), 1e-2)
    batch = Batch(x.repeat(8, 1, 1, 1))
    first = None
    for _ in range(600):
        (update,) = objective(vae, batch, 0.0)
        first = first if first is not None else update.metrics["elbo"].item()
        optimizer.zero_grad()
        update.loss.backward()
        optimizer.step()
    elbo = objective.validate(vae, Batch(x.repeat(200, 1, 1, 1)))["elbo"].values
    entropy = math.log(len(x))
    assert first is not None and first < -5.5
    assert -entropy - 1.2 < elbo.mean().item() < -entropy + 3 * elbo.std().item() / len(elbo) ** 0.5


@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize(
    ("shape", "levels"), [((1, 8, 8), 17), ((1, 28, 28), 256), ((3, 32, 32), 256), ((1, 9, 63), 4)]
)
def test_every_part_learns_and_samples_lie_in_the_support(shape: tuple[int, ...], levels: int, network: str):
    torch.manual_seed(8)
    vae = VAE(shape, levels=levels, network=network, latent_dim=3, hidden=[16])  # type: ignore[arg-type]
    x = vae.sample(4)
    top = 1 if vae.support == "binary" else levels - 1
    assert x.shape == (4, *shape) and ((x == x.round()) & (x >= 0) & (x <= top)).all()
    (update,) = ELBO()(vae, Batch(x), 0.0)
    update.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vae.parameters())
    assert vae.reconstruct(x).shape == x.shape and vae.codes(x).shape == (4, 3)


def test_points_are_gaussian_with_a_learned_scale():
    vae = VAE((2,), latent_dim=2, hidden=[8])
    assert vae.support == "real" and vae.sample(5).shape == (5, 2)
    (update,) = ELBO()(vae, Batch(torch.randn(6, 2)), 0.0)
    update.loss.backward()
    assert vae.likelihood.get_parameter("log_scale").grad is not None


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"shape": (2,), "network": "conv"}, "model.network=conv"),
        ({"shape": (1, 7, 7), "levels": 2, "network": "conv"}, "model.network=conv"),
        ({"shape": (1, 8, 8), "levels": 2, "channels": 4}, "model.channels=4"),
        ({"shape": (2,), "likelihood": "bernoulli"}, "model.likelihood=bernoulli"),
    ],
)
def test_what_does_not_fit_is_named(arguments: dict, named: str):
    with pytest.raises(UsageError, match=named):
        VAE(**arguments)
