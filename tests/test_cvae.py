"""The conditional VAE, the VAE with two stochastic layers and the one with flows: quadrature, and bounds below."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from helpers import build
from torch import Tensor
from torch.distributions import Normal

import gentrain
from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.evaluation.likelihood import IWAE as Estimator
from gentrain.models.base import LatentVariable, given
from gentrain.models.cvae import CVAE
from gentrain.models.flow_vae import FlowVAE
from gentrain.models.hierarchical_vae import HierarchicalVAE
from gentrain.models.latent import Composed, TransformedBy, centre, draw
from gentrain.objectives.elbo import ELBO
from gentrain.objectives.iwae import IWAE
from gentrain.truth.spaces import AtLabel, discrete, grid, quadrature

X = discrete((1, 2, 2), 2).points


@torch.no_grad()
def shaken(model: LatentVariable, scale: float = 0.4) -> LatentVariable:
    torch.manual_seed(1)
    for p in model.parameters():
        p += scale * torch.randn_like(p)
    return model


def conditional() -> CVAE:
    torch.manual_seed(0)
    model = shaken(CVAE((1, 2, 2), levels=2, classes=3, latent_dim=1, hidden=[6]), 0.7)
    assert isinstance(model, CVAE)
    return model


def layered() -> LatentVariable:
    torch.manual_seed(0)
    return shaken(HierarchicalVAE((1, 2, 2), levels=2, latent_dim=(1, 1), hidden=[6], upper_hidden=[6]))


Form = Literal["gaussian", "flow"]


def flowing(posterior: Form = "flow", prior: Form = "gaussian") -> LatentVariable:
    torch.manual_seed(0)
    sizes = {"latent_dim": 2, "hidden": [6], "flows": 2, "flow_hidden": [6]}
    return shaken(FlowVAE((1, 2, 2), levels=2, posterior=posterior, prior=prior, **sizes))


MODELS: dict[str, Callable[[], LatentVariable]] = {
    "label": lambda: AtLabel(conditional(), 2),
    "two layers": layered,
    "flow posterior": flowing,
    "flow prior": lambda: flowing("gaussian", "flow"),
    "both": lambda: flowing("flow", "flow"),
}


@pytest.mark.parametrize("name", MODELS)
def test_bounds_rise_to_the_likelihood_by_quadrature(name: str) -> None:
    model = MODELS[name]()
    found = quadrature(model, X)
    assert not isinstance(found, str) and found.unsure < 0.03
    assert found.log_p.exp().sum().item() == pytest.approx(1, abs=1e-3)
    torch.manual_seed(2)
    means, errors = [], []
    for k in (1, 5, 50):
        bounds = Estimator(samples=k).bound(model, X.repeat(300, 1, 1, 1)).view(300, 16)
        means.append(bounds.mean())
        errors.append(bounds.mean(1).std() / 300**0.5)
    assert means[0] < means[1] < means[2] < found.log_p.mean() + 4 * errors[2]
    reached = Estimator(samples=40_000, chunk=200_000).bound(model, X).mean()
    assert -0.25 < reached - found.log_p.mean() < 0.05  # q is anywhere: it may miss a little, and never gains
    with torch.no_grad():
        reconstruction, kl = ELBO(samples=300).terms(model, X)
    assert ((reconstruction - kl).mean() - means[0]).abs() < 8 * errors[0]


def over_plane(log_p: Callable[[Tensor], Tensor], reach: float = 14.0) -> float:
    space = grid(torch.full((2,), -reach), torch.full((2,), reach), (2,), 100, 9)
    with torch.no_grad():
        return float(space.log_total(log_p(space.points)).exp())


@pytest.mark.parametrize("name", ["two layers", "flow posterior", "flow prior"])
def test_composed_distributions_integrate_to_one_and_weigh_their_draws(name: str) -> None:
    model = MODELS[name]()
    q, prior = model.encode(X[3:4]), model.prior
    composed = [d for d in (q, prior) if isinstance(d, Composed)]
    assert len(composed) == (2 if name == "two layers" else 1)
    assert over_plane(lambda z: q.log_prob(z[:, None])[:, 0]) == pytest.approx(1, abs=2e-3)
    assert over_plane(prior.log_prob) == pytest.approx(1, abs=2e-3)
    for p in composed:
        assert isinstance(p.has_rsample, bool) and p.has_rsample
        z, log_p = p.draw(torch.randn(50, *p.like.shape))
        torch.testing.assert_close(log_p, p.log_prob(z), atol=2e-4, rtol=1e-4)
        assert not p.sample().requires_grad and p.rsample().requires_grad
    z, log_q = draw(q, 7)
    assert z.shape == (7, 1, 2) and log_q.shape == (7, 1)


def test_the_two_layers_are_what_they_are_called() -> None:
    """p(z_1, z_2) by hand, its marginal of z_1 by integration, and q's factors in the other order."""
    model = layered()
    assert isinstance(model, HierarchicalVAE)
    with torch.no_grad():
        z = 2 * torch.randn(20, 2)
        mean, log_variance = model.upper_decoder(z[:, 1:]).chunk(2, -1)
        by_hand = Normal(0.0, 1.0).log_prob(z[:, 1]) + Normal(mean, (0.5 * log_variance).exp()).log_prob(z[:, :1])[:, 0]
        torch.testing.assert_close(model.prior.log_prob(z), by_hand)

        x = X[5:6]
        first = model.encoder(x).chunk(2, -1)
        second = model.upper_encoder(z[:, :1]).chunk(2, -1)
        log_q = [
            Normal(m, (0.5 * v).exp()).log_prob(value)[:, 0]
            for (m, v), value in ((first, z[:, :1]), (second, z[:, 1:]))
        ]
        torch.testing.assert_close(model.encode(x.expand(20, 1, 2, 2)).log_prob(z), log_q[0] + log_q[1])

        draws = model.prior.sample(torch.Size([40_000]))[:, 0]
        grid_ = torch.linspace(-8, 8, 2001)
        z1 = torch.tensor([-0.5, 0.0, 0.7])
        marginal = torch.stack(
            [model.prior.log_prob(torch.stack([v.expand(2001), grid_], 1)).exp().sum() * (16 / 2000) for v in z1]
        )
        share = torch.stack([((draws - v).abs() < 0.05).float().mean() / 0.1 for v in z1])
        assert ((share - marginal).abs() < 5 * (marginal / (0.1 * 40_000)).sqrt() + 0.01).all()
        assert torch.equal(model.decode(z).mean, model.decode(torch.cat([z[:, :1], -z[:, 1:]], 1)).mean)  # x sees z_1


def test_a_flow_that_scales_is_a_gaussian_of_that_scale() -> None:
    class Scaled(FlowVAE):
        def encode(self, x: Tensor):
            q = super().encode(x)
            assert isinstance(q, TransformedBy)
            three = torch.full((), math.log(9))
            return TransformedBy(
                q.base, lambda u: (3 * u, three.expand(len(u))), lambda z: (z / 3, -three.expand(len(z))), q.like
            )

    torch.manual_seed(3)
    model = Scaled((1, 2, 2), levels=2, latent_dim=2, hidden=[6])
    q = model.encode(X)
    assert isinstance(q, TransformedBy)
    known = Normal(3 * q.base.mean, 3 * q.base.stddev)
    z, log_q = draw(q, 3)
    torch.testing.assert_close(log_q, known.log_prob(z).sum(-1))
    torch.testing.assert_close(q.log_prob(z), log_q)
    torch.testing.assert_close(centre(q), known.mean)


def test_gradients_reach_the_encoder_through_every_distribution() -> None:
    for name, make in MODELS.items():
        model = make()
        for objective in (ELBO(), IWAE(3)):
            model.zero_grad()
            torch.manual_seed(4)
            loss = next(iter(objective(model, Batch(X), 0.0))).loss
            assert loss is not None
            loss.backward()
            silent = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
            assert not silent, (name, silent)


def test_labels_enter_both_networks_and_no_label_is_an_error() -> None:
    model, y = conditional(), torch.arange(3)
    x = X[6:7].expand(3, 1, 2, 2)
    with torch.no_grad():
        means = model.encode(x, y=y).mean
        pictures = model.decode(torch.zeros(3, 1), y=y).mean
    assert len(means.unique()) == 3 and len(pictures[:, 0, 0, 0].unique()) == 3
    for call in (model.encode, model.reconstruct):
        with pytest.raises(UsageError, match="labels are missing"):
            call(x)
    with pytest.raises(UsageError, match="labels are missing"):
        model.decode(torch.zeros(3, 1))
    with pytest.raises(UsageError, match="one label for each of the 3"):
        model.encode(x, y=torch.zeros(2))
    with pytest.raises(UsageError, match="these data have no labels"):
        next(iter(ELBO()(model, Batch(x), 0.0)))
    with pytest.raises(UsageError, match="have no labels y"):
        build("model=cvae", "data=bars")
    with pytest.raises(UsageError, match=r"model.latent_dim=1"):
        build("model=flow_vae", "data=bars", "model.latent_dim=1")


def test_batches_of_several_draws_keep_each_label_with_its_example() -> None:
    """Codes are drawn k to an example and decoded at once: every weight is the one that its own pair gives."""
    model, y = conditional(), torch.arange(16) % 3
    torch.manual_seed(5)
    with torch.no_grad():
        together = IWAE(4).log_weights(model, X, y)
        torch.manual_seed(5)
        epsilon = torch.randn(16, 4, 1)
        for i in range(16):
            q = model.encode(X[i : i + 1], y=y[i : i + 1])
            for k in range(4):
                z = q.mean + q.stddev * epsilon[i, k]
                log_p = model.decode(z, y=y[i : i + 1]).log_prob(X[i : i + 1])
                torch.testing.assert_close(together[k, i : i + 1], log_p + model.prior.log_prob(z) - q.log_prob(z))


def test_without_a_label_samples_are_an_even_mixture() -> None:
    model = conditional()
    torch.manual_seed(6)
    mean = model.sample(60_000).mean(0)
    apart = torch.stack([model.sample(20_000, y=torch.full((20_000,), label)).mean(0) for label in range(3)])
    assert (apart.std(0) > 0.03).any()
    assert (mean - apart.mean(0)).abs().max() < 0.015


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CVAE trained on bars whose label is their direction."""
    out = tmp_path_factory.mktemp("cvae")
    made = gentrain.train([
        "model=cvae", "model.latent_dim=3", "model.hidden=[32]", "data=bars", "data.labels=true", "trainer.steps=800",
        "optim.lr=5e-3", "device=cpu", f"output={out}", "trainer.sample_every=0", "trainer.evaluate_every=0",
    ])  # fmt: skip
    return made.path


def test_trained_samples_have_their_label(run: Path) -> None:
    """Lines run across for label 0, up and down for label 1, and their p(x|y) says so too."""
    model = gentrain.load(run)
    assert isinstance(model, CVAE)
    torch.manual_seed(7)
    for label in (0, 1):
        x = model.sample(500, y=torch.full((500,), label))[:, 0]
        across = (x == x[:, :, :1]).all(2).all(1).float().mean()
        along = (x == x[:, :1]).all(1).all(1).float().mean()
        right, wrong = (across, along) if label == 0 else (along, across)
        assert right > 2 * wrong  # of the data 1 and 1/4: blank and full pictures are both
    picture = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 1, 1]]).view(1, 1, 3, 3)
    bounds = [Estimator(samples=2000).bound(model, picture, torch.tensor([label])).item() for label in (0, 1)]
    assert bounds[0] > bounds[1] + 3 and bounds[0] == pytest.approx(-3 * math.log(2), abs=0.5)


def test_every_number_of_a_conditional_model_says_so(run: Path) -> None:
    rows = {row.metric: row.kind for row in gentrain.evaluate(run, ["metrics=[elbo,iwae,active_units]", "n=40"])}
    assert rows["elbo"] == "elbo given y" and rows["log_likelihood"] == "iwae-5000 given y"
    assert given(gentrain.load(run), torch.zeros(1)) != {}
    with pytest.raises(UsageError, match="CVAE is no Codes"):
        gentrain.evaluate(run, ["metrics=[probe]"])
    with pytest.raises(UsageError, match="annealed for no label"):
        gentrain.evaluate(run, ["metrics=[decoder_ais]"])


@pytest.mark.parametrize("model", ["cvae", "flow_vae", "hierarchical_vae"])
def test_networks_of_any_kind_learn_on_images(model: str) -> None:
    network = [] if model == "hierarchical_vae" else ["model.network=conv", "model.channels=4"]
    made = build(f"model={model}", "data=digits", "model.activation=tanh", *network)
    batch = made.pipeline.batch(0)
    loss = next(iter(made.objective(made.model, batch, 0.0))).loss
    assert loss is not None and loss.isfinite()
    assert made.model.sample(3).shape == (3, 1, 8, 8)
