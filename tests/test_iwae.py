"""Importance-weighted objectives: values and gradients against the formulas written out, limits, exact likelihoods."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Beta, Independent, Laplace, MultivariateNormal, Normal, kl_divergence
from torch.nn.functional import softplus

from gentrain import noise
from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.evaluation.likelihood import IWAE as Estimator
from gentrain.models.base import LatentVariable
from gentrain.models.latent import draw
from gentrain.models.vae import VAE
from gentrain.objectives.elbo import ELBO
from gentrain.objectives.iwae import CIWAE, IWAE, MIWAE, log_mean
from gentrain.truth.spaces import discrete

X = discrete((1, 2, 2), 2).points


def tiny() -> VAE:
    torch.manual_seed(0)
    vae = VAE((1, 2, 2), levels=2, latent_dim=2, hidden=[8], likelihood="bernoulli")
    with torch.no_grad():
        for p in vae.parameters():
            p.mul_(2.0)
    return vae


def by_hand(vae: VAE, k: int) -> Tensor:
    """log w (k, B), from the definition, with the draws that the objective takes next."""
    mean, log_variance = vae.encoder(X).chunk(2, -1)
    rows = []
    for epsilon in torch.randn(len(X), k, 2).unbind(1):
        z = mean + (0.5 * log_variance).exp() * epsilon
        logits = vae.decoder(z) + vae.likelihood.bias
        log_p = (X.flatten(1) * logits - softplus(logits)).sum(1)
        log_prior = -0.5 * (z**2 + math.log(2 * math.pi)).sum(1)
        log_q = -0.5 * ((z - mean) ** 2 / log_variance.exp() + log_variance + math.log(2 * math.pi)).sum(1)
        rows.append(log_p + log_prior - log_q)
    return torch.stack(rows)


def gradient(loss: Tensor, vae: VAE) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(vae.parameters()))])


@pytest.mark.parametrize(
    ("objective", "formula"),
    [
        (IWAE(1), lambda w: w.log().mean(0)),
        (IWAE(6), lambda w: w.mean(0).log()),
        (MIWAE(2, 3), lambda w: (w[[0, 2, 4]].mean(0).log() + w[[1, 3, 5]].mean(0).log()) / 2),
        (CIWAE(0.3, 6), lambda w: 0.3 * w.log().mean(0) + 0.7 * w.mean(0).log()),
    ],
    ids=["iwae-1", "iwae", "miwae", "ciwae"],
)
def test_loss_and_gradient_are_those_of_the_formula(objective: IWAE, formula) -> None:
    vae = tiny()
    torch.manual_seed(1)
    expected = -formula(by_hand(vae, objective.draws).exp()).mean()
    torch.manual_seed(1)
    (update,) = objective(vae, Batch(X), 0.5)
    assert update.loss is not None
    torch.testing.assert_close(update.loss, expected)
    torch.testing.assert_close(gradient(update.loss, vae), gradient(expected, vae), atol=1e-5, rtol=1e-4)
    assert not any(m.requires_grad for m in update.metrics.values())


def test_the_gradient_weighs_draws_by_their_weights() -> None:
    """∇ log Σ w = Σ w̃ ∇ log w with normalised weights (Burda et al. 2016, eq. 13)."""
    vae = tiny()
    torch.manual_seed(2)
    log_w = by_hand(vae, 5)
    shares = torch.softmax(log_w.detach(), 0)
    expected = gradient(-(shares * log_w).sum(0).mean(), vae)
    torch.manual_seed(2)
    (update,) = IWAE(5)(vae, Batch(X), 0.0)
    assert update.loss is not None
    torch.testing.assert_close(gradient(update.loss, vae), expected, atol=1e-5, rtol=1e-4)


def test_the_limits_meet() -> None:
    """M = 1 is IWAE, K = 1 the ELBO with M draws, β = 1 the ELBO with K, β = 0 IWAE: the same draws, the same loss."""
    vae = tiny()

    def loss(objective) -> Tensor:
        torch.manual_seed(3)
        (update,) = objective(vae, Batch(X), 0.0)
        return update.loss

    torch.testing.assert_close(loss(MIWAE(1, 6)), loss(IWAE(6)))
    torch.testing.assert_close(loss(CIWAE(0.0, 6)), loss(IWAE(6)))
    torch.testing.assert_close(loss(CIWAE(1.0, 6)), loss(MIWAE(6, 1)))
    assert (loss(MIWAE(6, 1)) - loss(IWAE(6))).abs() > 0.01

    # ELBO's KL is in closed form: equal in the mean over draws
    torch.manual_seed(4)
    with torch.no_grad():
        draws = torch.stack([IWAE(1).log_weights(vae, X)[0] for _ in range(3000)])
        reconstruction, kl = ELBO(samples=3000).terms(vae, X)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - (reconstruction - kl)).abs() < 6 * error).all()


def test_weights_beyond_the_range_of_floats_keep_their_bound() -> None:
    log_w = torch.tensor([[-3000.0], [-3001.0], [-5000.0]], requires_grad=True)
    bound = log_mean(log_w)
    assert bound.item() == pytest.approx(-3000 + math.log((1 + math.exp(-1)) / 3), abs=1e-3)
    (g,) = torch.autograd.grad(bound.sum(), log_w)
    torch.testing.assert_close(
        g.flatten(), torch.tensor([1 / (1 + math.exp(-1)), 1 / (1 + math.e), 0.0]), atol=1e-3, rtol=0
    )


class Linear(LatentVariable):
    """x = W z + ε, of which everything is known: x ~ N(0, W Wᵀ + σ² I)."""

    zero: Tensor

    def __init__(self, q: type) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.shape, self.support, self.q = (3,), "real", q
        self.weight = torch.nn.Parameter(torch.randn(3, 2))
        self.register_buffer("zero", torch.zeros(2))

    @property
    def prior(self):
        return Independent(Normal(self.zero, self.zero + 1), 1)

    def encode(self, x: Tensor):
        mean = 0.2 * x[:, :2] + 0 * self.weight.sum()
        return Independent(self.q(mean, torch.full_like(mean, 0.8)), 1)

    def decode(self, z: Tensor):
        mean = z @ self.weight.t()
        return Independent(Normal(mean, torch.full_like(mean, 0.7)), 1)

    def sample(self, n: int) -> Tensor:
        return self.decode(self.prior.sample(torch.Size([n]))).sample()

    def log_prob(self, x: Tensor) -> Tensor:
        covariance = self.weight @ self.weight.t() + 0.49 * torch.eye(3)
        return MultivariateNormal(torch.zeros(3), covariance).log_prob(x)


@pytest.mark.parametrize("q", [Normal, Laplace])
def test_bounds_rise_to_the_exact_likelihood_of_a_linear_model(q: type) -> None:
    """Also with a posterior that isn't Gaussian, which knows how to draw but says nothing of standard normal noise."""
    model = Linear(q)
    with torch.no_grad():
        x = model.sample(40)
        exact, means, errors = model.log_prob(x).mean(), [], []
        many = x.repeat(300, 1)
        for k in (1, 5, 50):
            scores = IWAE(k).validate(model, Batch(many))
            assert scores["log_likelihood"].kind == f"iwae-{k}"
            per_draw = scores["log_likelihood"].values.view(300, 40).mean(1)
            means.append(per_draw.mean())
            errors.append(per_draw.std() / 300**0.5)
        elbo = scores["elbo"].values.view(300, 40).mean(1)
    assert means[0] < means[1] < means[2] < exact + 4 * errors[2]
    assert exact - means[2] < 0.3 < means[1] - means[0]
    assert (elbo.mean() - means[0]).abs() < 6 * (errors[0] + elbo.std() / 300**0.5)
    assert (Estimator(samples=2000).bound(model, x).mean() - exact).abs() < 0.05


def test_a_posterior_without_gradients_is_refused() -> None:
    class Stuck(Linear):
        def encode(self, x: Tensor):
            mean = (0.2 * x[:, :2]).sigmoid()
            return Independent(torch.distributions.Bernoulli(mean), 1)

    model = Stuck(Normal)
    with pytest.raises(UsageError, match="no gradient"):
        list(IWAE(2)(model, Batch(torch.randn(4, 3)), 0.0))
    with torch.no_grad():
        assert IWAE(2).log_weights(model, torch.randn(4, 3)).shape == (2, 4)


def test_a_kl_that_torch_knows_is_taken_in_closed_form() -> None:
    q = Independent(Beta(torch.full((3, 2), 2.0), torch.full((3, 2), 3.0)), 1)
    p = Independent(Beta(torch.ones(2), torch.ones(2)), 1)

    class Model(Linear):
        @property
        def prior(self):
            return p

        def encode(self, x: Tensor):
            return q

    _, kl = ELBO().terms(Model(Normal), torch.randn(3, 3))
    torch.testing.assert_close(kl, kl_divergence(q, p).expand(3))


def test_two_halves_of_a_batch_see_the_noise_of_the_whole() -> None:
    vae, objective = tiny(), IWAE(4)
    losses = []
    try:
        for rank, world in ((0, 1), (0, 2), (1, 2)):
            noise.shard(rank, world)
            torch.manual_seed(6)
            half = X.view(world, -1, 1, 2, 2)[rank]
            losses.append(next(iter(objective(vae, Batch(half), 0.0))).loss)
        laplace = Independent(Laplace(torch.zeros(3, 2), torch.ones(3, 2)), 1)
        apart = []
        for rank in (0, 1):  # draws of a q that isn't Gaussian differ between processes, which stay in step
            noise.shard(rank, 2)
            torch.manual_seed(7)
            apart += [draw(laplace, 2)[0], torch.rand(())]
    finally:
        noise.shard(0, 1)
    torch.testing.assert_close((losses[1] + losses[2]) / 2, losses[0])
    assert not torch.equal(apart[0], apart[2]) and torch.equal(apart[1], apart[3])


@pytest.mark.parametrize("objective", [IWAE(5), MIWAE(2, 4), CIWAE(0.2, 5)], ids=["iwae", "miwae", "ciwae"])
def test_training_approaches_the_entropy_and_never_passes_it(objective: IWAE) -> None:
    """Of all bits off or all on, each half of the time: log 2."""
    vae, batch = tiny(), Batch(X[[0, 15]].repeat(16, 1, 1, 1))
    optimizer = torch.optim.Adam(vae.parameters(), 2e-2)
    torch.manual_seed(8)
    for _ in range(250):
        (update,) = objective(vae, batch, 0.0)
        assert update.loss is not None
        optimizer.zero_grad()
        update.loss.backward()
        optimizer.step()
    bound = objective.validate(vae, Batch(batch.x.repeat(40, 1, 1, 1)))["log_likelihood"].values
    assert -math.log(2) - 0.15 < bound.mean().item() < -math.log(2) + 4 * bound.std().item() / len(bound) ** 0.5
