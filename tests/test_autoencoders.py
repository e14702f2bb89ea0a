"""Autoencoders against PCA, autograd and exact Markov chains."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import bare_trainer, build, fit
from scipy.stats import binomtest, chisquare, kstest
from torch import Tensor

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.evaluation.estimator import Finding, Subject, seeded
from gentrain.evaluation.holes import CodesMap
from gentrain.models.autoencoder import Autoencoder, FittedGaussian
from gentrain.models.corruption import Corruption
from gentrain.models.gdae import GDAE
from gentrain.objectives.contractive import Contractive, hutchinson
from gentrain.objectives.denoising import Denoising
from gentrain.objectives.reconstruction import Reconstruction
from gentrain.objectives.walkback import Walkback


def network(**options) -> Autoencoder:
    """A small one over reals, its parameters away from where they start."""
    torch.manual_seed(0)
    model = Autoencoder((5,), **{"latent_dim": 3, "hidden": (7,), "activation": "tanh", **options})
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    return model


def points(n: int = 200) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    scales = torch.tensor([2.0, 1.5, 1.0, 0.6, 0.3])
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator)).Q
    return (torch.randn(n, 5, generator=generator) * scales) @ turn + 1


# --- reconstruction ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_a_linear_autoencoder_reaches_pca(tied: bool) -> None:
    """Baldi & Hornik 1989: the least error is the sum of the eigenvalues left out, and the decoder spans the rest."""
    x = points()
    model = network(latent_dim=2, hidden=(), activation="linear", tied=tied)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-9)
    objective = Reconstruction()

    def loss() -> Tensor:
        optimizer.zero_grad()
        (update,) = objective(model, Batch(x), 0.0)
        assert update.loss is not None
        update.loss.backward()
        return update.loss

    optimizer.step(loss)
    values, vectors = torch.linalg.eigh(torch.cov(x.double().t(), correction=0))
    error = (x - model.reconstruct(x).detach()).square().sum(1).mean()
    assert float(error) == pytest.approx(float(values[:3].sum()), rel=1e-4)
    with torch.no_grad():
        columns = (model.outputs(torch.eye(2)) - model.outputs(torch.zeros(1, 2))).t().double()
    span = torch.linalg.qr(columns).Q
    angles = torch.linalg.svdvals(span.t() @ vectors[:, 3:])
    assert float(angles.min()) > 1 - 1e-4, "cosines of the principal angles"


def test_losses_are_their_formulas() -> None:
    torch.manual_seed(0)
    x = torch.rand(6, 1, 2, 3)
    model = Autoencoder((1, 2, 3), levels=256, latent_dim=2, hidden=[4])
    x_hat = torch.sigmoid(model.outputs(model.codes(x))).detach().numpy().astype(float)
    t = x.numpy().astype(float)
    wanted = {
        "cross_entropy": -(t * np.log(x_hat) + (1 - t) * np.log(1 - x_hat)).sum((1, 2, 3)),
        "squared_error": ((t - x_hat) ** 2).sum((1, 2, 3)),
    }
    for name, values in wanted.items():
        for chosen in [name] + ["auto"] * (name == "cross_entropy"):
            objective = Reconstruction(chosen)  # type: ignore[arg-type]
            score = objective.validate(model, Batch(x))[name]
            np.testing.assert_allclose(score.values.detach(), values, rtol=1e-5)
            assert score.kind == "recon"
            (update,) = objective(model, Batch(x), 0.0)
            assert update.loss is not None and update.loss.item() == pytest.approx(values.mean(), rel=1e-5)


def test_tied_weights_are_the_encoders_also_after_loading() -> None:
    model, other = network(tied=True), network(tied=True, activation="tanh")
    W1, W2 = (m.weight for m in model.encoder.children() if isinstance(m, torch.nn.Linear))
    z = torch.randn(4, 3)
    (bias,) = model.decoder.biases
    wanted = torch.tanh(z @ W2 + bias) @ W1 + model.bias
    torch.testing.assert_close(model.outputs(z), wanted)
    with torch.no_grad():
        W1.mul_(2)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.outputs(z), torch.tanh(z @ W2 + bias) @ W1 + model.bias)
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in network().parameters())


def test_bits_are_decoded_with_the_gradient_of_their_mean() -> None:
    model = Autoencoder((4,), levels=2, latent_dim=2, hidden=[3], support="binary")
    z = torch.randn(5, 2, requires_grad=True)
    x = model.decode(z)
    assert ((x == 0) | (x == 1)).all() and torch.equal(x, (model.restored(z) > 0.5).float())
    (g,) = torch.autograd.grad(x.sum(), z)
    (wanted,) = torch.autograd.grad(model.restored(z).sum(), z)
    torch.testing.assert_close(g, wanted)


# --- samples ----------------------------------------------------------------------------------------------------------


def test_the_gaussian_of_codes_is_the_weighted_one() -> None:
    """Against the weighted mean and covariance of all vectors, summed directly."""
    torch.manual_seed(0)
    gaussian, decay = FittedGaussian(3, decay=0.7), 0.7
    batches = [torch.randn(8, 3) @ torch.randn(3, 3) + 100 * torch.rand(3) for _ in range(6)]
    for batch in batches:
        gaussian.observe(batch)
    weights = torch.tensor([decay ** (5 - i) for i in range(6)]).repeat_interleave(8).double()
    z = torch.cat(batches).double()
    mean = (weights[:, None] * z).sum(0) / weights.sum()
    covariance = (weights[:, None, None] * (z - mean)[:, :, None] * (z - mean)[:, None]).sum(0) / weights.sum()
    torch.testing.assert_close(gaussian.mean.double(), mean, rtol=1e-5, atol=0)
    torch.testing.assert_close(gaussian.covariance.double(), covariance, rtol=1e-4, atol=1e-4 * float(covariance.max()))
    torch.testing.assert_close(gaussian().covariance_matrix, gaussian.covariance, rtol=1e-3, atol=1e-2)


def test_codes_in_a_plane_have_a_gaussian_too() -> None:
    gaussian = FittedGaussian(40)
    gaussian.observe(torch.randn(5, 40))  # of rank 4
    assert gaussian().log_prob(gaussian().sample()).isfinite()
    degenerate = FittedGaussian(2)
    degenerate.observe(torch.ones(5, 2))
    torch.testing.assert_close(degenerate().sample((100,)), torch.ones(100, 2), atol=1e-4, rtol=0)


def test_a_linear_autoencoder_samples_its_data(tmp_path: Path) -> None:
    """Where codes are Gaussian the fitted Gaussian is right: samples then have the data's mean and covariance."""
    x, model = points(4000), network(latent_dim=5, hidden=(), activation="linear")
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = Reconstruction().errors(model, x, x)[0].mean()
        value.backward()
        return value

    optimizer.step(loss)
    model.observe(model.codes(x))
    torch.manual_seed(0)
    samples = model.sample(20_000)
    assert float((x.mean(0) - samples.mean(0)).abs().max()) < 6 * 2 / math.sqrt(20_000)
    torch.testing.assert_close(samples.t().cov(), x.t().cov(), atol=6 * 4 * math.sqrt(2 / 20_000), rtol=0)
    white = torch.linalg.solve(torch.linalg.cholesky(x.t().cov()), (samples - x.mean(0)).t())
    assert all(kstest(row[:2000].numpy(), "norm").pvalue > 1e-4 for row in white)


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.1, 0.4, 1.0])
def test_corruption_has_its_statistics(level: float) -> None:
    torch.manual_seed(0)
    n, x = 20_000, torch.full((20_000, 1), 0.3)
    masked = Corruption("mask", level)(x)
    assert {round(v, 4) for v in masked.unique().tolist()} <= {0.0, 0.3}
    assert binomtest(int((masked == 0).sum()), n, level).pvalue > 1e-4
    peppered = Corruption("salt_and_pepper", level)(x)
    counts = [int((peppered == v).sum()) for v in (0, 1)]
    for count in counts:
        assert binomtest(count, n, level / 2).pvalue > 1e-4
    assert sum(counts) + int((peppered == 0.3).sum()) == n or level == 1
    blurred = Corruption("gaussian", level)(x)
    assert kstest(((blurred - 0.3) / level).flatten().numpy(), "norm").pvalue > 1e-4


def test_elements_are_corrupted_apart() -> None:
    torch.manual_seed(0)
    flips = (Corruption("mask", 0.5)(torch.ones(20_000, 3)) == 0).double()
    assert float((torch.corrcoef(flips.t()) - torch.eye(3)).abs().max()) < 6 / math.sqrt(20_000)


def test_denoising_sees_noise_and_is_judged_by_what_was_there() -> None:
    model, x = network(), points(50)
    objective = Denoising("gaussian", 0.5)
    torch.manual_seed(3)
    (update,) = objective(model, Batch(x), 0.0)
    torch.manual_seed(3)
    seen = x + 0.5 * torch.randn_like(x)
    wanted = (x - model.outputs(model.codes(seen))).square().sum(1).mean()
    torch.testing.assert_close(update.loss, wanted)
    assert objective.validate(model, Batch(x))["squared_error"].kind == "denoising"
    level_zero = Denoising("mask", 0.0)(model, Batch(x), 0.0)
    torch.testing.assert_close(next(level_zero).loss, next(Reconstruction()(model, Batch(x), 0.0)).loss)


# --- contraction ------------------------------------------------------------------------------------------------------


def jacobian_norm(model: Autoencoder, x: Tensor) -> Tensor:
    """Σ of the squares of autograd's Jacobian, example by example, in float64."""
    model = model.double()
    rows = [torch.autograd.functional.jacobian(lambda v: model.codes(v[None])[0], one.double()) for one in x]
    return torch.stack([row.square().sum() for row in rows])


@pytest.mark.parametrize(
    ("options", "penalty"),
    [
        ({"hidden": (), "code": "sigmoid"}, "closed"),
        ({"hidden": (), "code": "linear"}, "closed"),
        ({"hidden": (), "code": "sigmoid", "tied": True}, "auto"),
        ({"hidden": (), "code": "sigmoid"}, "rows"),
        ({"hidden": (7,), "code": "sigmoid"}, "rows"),
        ({"hidden": (7, 6)}, "auto"),
    ],
)
def test_the_penalty_is_autograds_jacobian(options: dict, penalty) -> None:
    x, model = points(6), network(**options)
    _, found, _ = Contractive(penalty=penalty).terms(model, x)
    torch.testing.assert_close(found.detach().double(), jacobian_norm(network(**options), x), rtol=1e-4, atol=1e-6)


def test_the_penalty_of_convolutions_is_autograds_jacobian() -> None:
    torch.manual_seed(0)
    model = Autoencoder((1, 9, 8), 17, "conv", latent_dim=3, hidden=(), channels=2, activation="tanh")
    x = torch.rand(3, 1, 9, 8)
    _, found, _ = Contractive().terms(model, x)
    torch.testing.assert_close(found.detach().double(), jacobian_norm(model, x), rtol=1e-4, atol=1e-6)


def test_hutchinsons_estimate_is_right_in_the_mean() -> None:
    x, model = points(4), network(code="sigmoid")
    exact = Contractive(penalty="rows").terms(model, x)[1].detach()
    torch.manual_seed(0)
    many = x.repeat(3000, 1).requires_grad_()
    draws = hutchinson(many, model.codes(many), 2).detach().view(3000, 4).double()
    error = draws.std(0) / math.sqrt(3000)
    assert ((draws.mean(0) - exact).abs() < 6 * error).all() and (error > 0).all()


@pytest.mark.parametrize("penalty", ["closed", "rows"])
def test_the_penaltys_gradient_is_that_of_finite_differences(penalty) -> None:
    x, model = points(5).double(), network(hidden=(), code="sigmoid").double()
    objective = Contractive(weight=2.0, penalty=penalty)
    weight = next(m.weight for m in model.encoder.children() if isinstance(m, torch.nn.Linear))
    (update,) = objective(model, Batch(x), 0.0)
    assert update.loss is not None
    (g,) = torch.autograd.grad(update.loss, weight)
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            weight[1, 2] += sign * 1e-5
            errors, jacobian, _ = objective.terms(model, x)
            ends.append(float((errors + 2.0 * jacobian).mean()))
            weight[1, 2] -= sign * 1e-5
    assert float(g[1, 2]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


# --- chains -----------------------------------------------------------------------------------------------------------

BITS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
GIVEN = torch.tensor([0.3, 0.02, 0.05, 0.08, 0.05, 0.2, 0.05, 0.25], dtype=torch.float64)


def chain(level: float = 0.4, kind="salt_and_pepper") -> GDAE:
    torch.manual_seed(0)
    model = GDAE((3,), levels=2, hidden=[30], activation="tanh", corruption=kind, level=level, burn_in=60)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.5 * torch.randn_like(p)
    return model


def transition(model: GDAE, level: float) -> Tensor:
    """T[x, x'] = Σ_x̃ C(x̃ | x) P(x' | x̃), by enumeration, for salt and pepper: a bit flips with probability level/2."""
    flips = (BITS[:, None] != BITS[None]).double()
    C = (flips * level / 2 + (1 - flips) * (1 - level / 2)).prod(-1)
    with torch.no_grad():
        p = model.denoise(BITS).mean.double()
    P = (BITS.double()[None] * p[:, None] + (1 - BITS.double()[None]) * (1 - p[:, None])).prod(-1)
    return C @ P


def stationary(T: Tensor) -> Tensor:
    pi = torch.full((len(T),), 1 / len(T), dtype=T.dtype)
    for _ in range(2000):
        pi = pi @ T
    return pi


def index(x: Tensor) -> Tensor:
    return (x.flatten(1).long() * torch.tensor([4, 2, 1])).sum(1)


def test_samples_follow_the_chains_stationary_distribution() -> None:
    model = chain()
    pi = stationary(transition(model, 0.4))
    assert float(pi.max() / pi.min()) > 2, "a chain with something to get wrong"
    torch.manual_seed(1)
    counts = torch.bincount(index(model.sample(20_000)), minlength=8)
    assert chisquare(counts.numpy(), (pi * 20_000).numpy()).pvalue > 1e-4
    one_step = torch.bincount(index(model.sample(20_000, burn_in=1)), minlength=8)
    uniform = torch.full((8,), 1 / 8, dtype=torch.float64) @ transition(model, 0.4)
    assert chisquare(one_step.numpy(), (uniform * 20_000).numpy()).pvalue > 1e-4


def best_chain(level: float, steps: int) -> tuple[Tensor, Tensor]:
    """What walkback of `steps` comes to: P(x_d = 1 | x̃), (x̃, d), and the stationary distribution, by enumeration.

    The optimum is the posterior of x given x̃, d by d, where x̃ is any of the steps' x̃_k: C_1 = C, C_{k+1} = C_k P C.
    These steps are the chain's own, so that P is what it makes of itself: a fixed point.
    """
    flips = (BITS[:, None] != BITS[None]).double()
    C = (flips * level / 2 + (1 - flips) * (1 - level / 2)).prod(-1)
    bits, P = BITS.double(), torch.full((8, 8), 1 / 8, dtype=torch.float64)
    marginals = torch.full((8, 3), 0.5, dtype=torch.float64)
    for _ in range(300):
        ways = [C]
        for _ in range(steps - 1):
            ways.append(ways[-1] @ P @ C)
        joint = GIVEN[:, None] * torch.stack(ways).mean(0)
        marginals = (joint / joint.sum(0)).t() @ bits
        P = (bits[None] * marginals[:, None] + (1 - bits[None]) * (1 - marginals[:, None])).prod(-1)
    return marginals, stationary(C @ P)


def test_means_are_expectations_of_the_last_step() -> None:
    model = chain()
    before = torch.full((8,), 1 / 8, dtype=torch.float64) @ torch.matrix_power(transition(model, 0.4), 2)
    model.burn_in = 3
    torch.manual_seed(0)
    means = model.means(20_000).double()
    wanted = before @ transition(model, 0.4) @ BITS.double()
    assert ((means.mean(0) - wanted).abs() < 6 * means.std(0) / math.sqrt(20_000)).all()
    with torch.no_grad():
        possible = model.denoise(BITS).mean.double()
    assert torch.cdist(means, possible).min(1).values.max() < 1e-6, "each is E[x | x̃] of one of the eight x̃"


@pytest.mark.parametrize("steps", [1, 4])
def test_a_trained_chain_comes_to_the_best_that_independent_bits_allow(steps: int) -> None:
    level = 0.2
    marginals, best = best_chain(level, steps)
    if steps == 1:  # walks end where x is all but forgotten: with bits that depend on each other so much they cost more
        assert float((best - GIVEN).abs().sum()) < 0.5 * float((GIVEN - 1 / 8).abs().sum()), "near the data's own"
    model = chain(level)
    torch.manual_seed(2)
    objective, optimizer = Walkback(steps), torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for _ in range(600):
        x = BITS[torch.multinomial(GIVEN, 500, replacement=True)]
        (update,) = objective(model, Batch(x), 0.0)
        assert update.loss is not None
        optimizer.zero_grad()
        update.loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        assert float((model.denoise(BITS).mean.double() - marginals).abs().max()) < 0.05
    assert float((stationary(transition(model, level)) - best).abs().sum() / 2) < 0.03


def test_walkback_averages_the_losses_on_the_models_own_way() -> None:
    model, x = chain(), BITS[[0, 3, 6]]
    objective = Walkback(3)
    torch.manual_seed(5)
    (update,) = objective(model, Batch(x), 0.0)
    torch.manual_seed(5)
    losses, current = [], x
    for _ in range(3):
        p = model.denoise(model.corruption(current)).mean
        losses.append(-(x * p.log() + (1 - x) * (1 - p).log()).sum(1).mean())
        if len(losses) < 3:
            current = (torch.rand(3, 3) < p).float()
    torch.testing.assert_close(update.loss, torch.stack(losses).mean())
    torch.testing.assert_close(update.metrics["first"], losses[0].detach())
    torch.testing.assert_close(update.metrics["last"], losses[2].detach())


# --- holes ------------------------------------------------------------------------------------------------------------


def copying_points() -> tuple[Autoencoder, Subject]:
    """The identity as an autoencoder of a ring of eight clusters: codes are the points, and the ring has a hole."""
    made = build("model=autoencoder", "data=ring", "model.latent_dim=2", "model.hidden=[]", "model.activation=linear")
    model = made.model
    assert isinstance(model, Autoencoder)
    with torch.no_grad():
        for key, p in model.named_parameters():
            p.copy_(torch.eye(2) if "weight" in key else torch.zeros_like(p))
    model.observe(model.codes(made.pipeline.batch(0).x))
    return model, Subject(model, made.pipeline)


def test_the_share_of_holes_is_that_of_plain_distances() -> None:
    model, subject = copying_points()
    known, judged = (subject.examples(split, 2000 if split == "train" else None) for split in ("train", "test"))
    with seeded(3):
        (found,) = CodesMap(train=2000, draws=700)(subject)
    with seeded(3):
        drawn = torch.cat([model.prior.sample(torch.Size([n])) for n in (500, 200)])
    bound = np.quantile(np.linalg.norm(judged[:, None] - known[None], axis=-1).min(1), 0.95)
    share = (np.linalg.norm(drawn[:, None] - known[None], axis=-1).min(1) > bound).mean()
    assert isinstance(found, Finding) and found.value == pytest.approx(share, abs=2 / 700) and found.n == 700
    assert found.value > 0.5, "a Gaussian over a ring draws from its hole"


def test_a_prior_that_is_the_codes_own_distribution_has_no_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    _, subject = copying_points()
    others = subject.examples("train")[3000:5000]

    class Own:
        def sample(self, shape: torch.Size) -> Tensor:
            return others[torch.randint(len(others), shape)]

    monkeypatch.setattr(Autoencoder, "prior", property(lambda self: Own()))
    with seeded(0):
        (found,) = CodesMap(train=3000, draws=2000)(subject)
    assert isinstance(found, Finding) and abs(found.value - 0.05) < 0.03


# --- refusals, and what is seen of it ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.network=conv", "data=ring"], "takes images"),
        (["model.network=conv", "data=bars"], "8 to 64"),
        (["model.network=conv", "model.tied=true"], "model.tied=true"),
        (["model.channels=3"], "model.channels=3"),
        (["model.support=unit", "data=ring"], "model.support=unit"),
        (["model.output=logistic", "data=ring"], "model.output=logistic"),
        (["objective.loss=cross_entropy", "model.output=linear"], "objective.loss=cross_entropy"),
        (["objective=denoising", "objective.level=1.5"], "level=1.5"),
        (["objective=denoising", "objective.corruption=salt_and_pepper", "data=ring"], "salt_and_pepper"),
        (["objective=contractive", "objective.penalty=closed"], "objective.penalty=closed"),
        (["model=gdae", "data=ring"], "real numbers"),
        (["model=gdae", "model.hidden=[]"], r"model.hidden=\[\]"),
        (["model=gdae", "objective=denoising"], "Objectives that fit the model: walkback"),
    ],
)
def test_what_can_not_be_is_refused_in_a_line(overrides: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words) as refusal:
        build("model=autoencoder", *overrides) if not overrides[0].startswith("model=") else build(*overrides)
    assert "\n" not in str(refusal.value)


def test_odd_sides_come_back() -> None:
    for shape in ((1, 8, 9), (3, 13, 11), (1, 28, 28)):
        model = Autoencoder(shape, 256, "conv", latent_dim=2, hidden=[4], channels=2)
        assert model.reconstruct(torch.rand(2, *shape)).shape == (2, *shape)


def test_it_learns_digits(tmp_path: Path) -> None:
    trainer = fit(bare_trainer(tmp_path, "model=autoencoder", "data=digits", "trainer.steps=300", "model.latent_dim=5"))
    x = next(trainer.pipeline.evaluation("test", 200)).x
    model = trainer.model
    assert isinstance(model, Autoencoder)
    mean = trainer.pipeline.mean()
    assert (x - model.reconstruct(x)).square().sum() < 0.5 * (x - mean).square().sum()
