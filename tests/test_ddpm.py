"""DDPM: the chain against Bayes' rule, the bound against likelihoods of Gaussians, the losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from diffusing import gaussian, grey, shaken
from helpers import build
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.evaluation.diffusion_bound import DiffusionBound
from gentrain.evaluation.estimator import Subject, seeded
from gentrain.models.ddpm import DDPM
from gentrain.models.diffusion import Chain, DiscretizedNormal, betas, over
from gentrain.models.unet import UNet
from gentrain.objectives.diffusion import Diffusion
from gentrain.truth.base import Case, prove

CLAIM = "the bound is E log p/q along the chain"


# --- the chain --------------------------------------------------------------------------------------------------------


def test_linear_and_cosine_schedules_are_the_papers():
    linear = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    assert torch.allclose(betas("linear", 1000), torch.tensor(linear, dtype=torch.float64), rtol=1e-12)
    f = [math.cos((t / 50 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(51)]
    cosine = torch.tensor([min(1 - b / a, 0.999) for a, b in pairwise(f)], dtype=torch.float64)
    assert torch.allclose(betas("cosine", 50), cosine, rtol=1e-12) and cosine[-1] == 0.999
    chain = Chain("cosine", 50, "beta")
    assert chain.alpha_bar[49] == pytest.approx(f[49] / f[0]) and chain.alpha_bar[0] == 1
    assert betas("linear", 4).max() == 0.999  # 20/T is no share of a variance there


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_marginals_are_those_of_the_steps(schedule):
    chain, mean, variance = Chain(schedule, 40, "posterior"), 1.0, 0.0
    for t, beta in enumerate(betas(schedule, 40).tolist(), 1):
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        assert float(chain.signal[t]) == pytest.approx(mean, rel=1e-5)
        assert float(chain.noise[t]) == pytest.approx(math.sqrt(variance), rel=1e-5)
        assert float(chain.snr[t]) == pytest.approx(mean**2 / variance, rel=1e-5)
    x, epsilon = torch.randn(3, 2), torch.randn(3, 2)
    found = chain.noised(x, torch.tensor([40, 0, 40]), epsilon)
    assert torch.allclose(found[0], mean * x[0] + math.sqrt(variance) * epsilon[0], atol=1e-6)
    assert torch.equal(found[1], x[1])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("t", "s"), [(4, 3), (4, 1), (6, 2)])
def test_the_posterior_is_bayes_rule(schedule, t, s):
    """q(x_s|x_t, x_0) on a grid, from the steps' own β."""
    chain, beta = Chain(schedule, 6, "posterior"), betas(schedule, 6).tolist()
    x0, xt = 0.7, -0.3
    kept = math.prod(1 - b for b in beta[s:t])
    before = math.prod(1 - b for b in beta[:s])
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    prior = Normal(math.sqrt(before) * x0, math.sqrt(1 - before)).log_prob(grid)
    log_p = prior + Normal(math.sqrt(kept) * grid, math.sqrt(1 - kept)).log_prob(torch.tensor(xt).double())
    p = torch.softmax(log_p, 0)
    mean, variance = float(p @ grid), float(p @ (grid - p @ grid).square())
    found = chain.towards(torch.tensor([xt]), torch.tensor([x0]), t, s, eta=1.0)
    assert found.item() == pytest.approx(mean, abs=1e-5)
    assert chain.backward_deviation(t, s, "posterior") == pytest.approx(math.sqrt(variance), rel=1e-5)
    assert chain.backward_deviation(t, s, "beta") == pytest.approx(math.sqrt(1 - kept), rel=1e-6)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_a_step_of_the_bound_is_the_divergence_of_two_gaussians(variance):
    model = DDPM((1,), steps=7, sample_steps=None, hidden=[4], predict="x0", variance=variance).eval()
    nn.init.constant_(model.network.body.last.bias, 0.4)
    for t in range(2, 8):
        q = Normal(
            model.chain.towards(torch.tensor([0.9]), torch.tensor([-0.2]), t, t - 1, 1.0),
            model.chain.backward_deviation(t, t - 1, "posterior"),
        )
        p = model.back(torch.tensor([[0.9]]), t).base_dist
        assert p.scale.item() == pytest.approx(model.chain.backward_deviation(t, t - 1, variance), rel=1e-6)
        epsilon = (0.9 - model.chain.signal[t] * -0.2) / model.chain.noise[t]
        found = model.term(torch.tensor([[-0.2]]), torch.tensor([t]), epsilon.view(1, 1))
        assert found.item() == pytest.approx(kl_divergence(q, p).item(), rel=1e-3, abs=1e-6)


def test_the_last_term_is_the_divergence_from_the_prior():
    chain, x = Chain("linear", 5, "posterior"), torch.tensor([[0.4, -2.0]])
    chain.alpha_bar[-1] = 0.3  # else hardly anything is left to tell
    q, p = Normal(math.sqrt(0.3) * x, math.sqrt(0.7)), Normal(0.0, 1.0)
    assert chain.prior_term(x).item() == pytest.approx(kl_divergence(q, p).sum().item(), rel=1e-5)


# --- the bound --------------------------------------------------------------------------------------------------------


def expected_bound(model: DDPM, x: Tensor) -> float:
    """The bound of one number, for a linear network: its terms are parabolas of ε, whose mean two points give."""
    total = model.prior_term(x).double()
    for t in range(1, model.steps + 1):
        for epsilon in (-torch.ones(1, 1), torch.ones(1, 1)):
            total = total + 0.5 * model.term(x, torch.tensor([t]), epsilon).double()
    return -float(total)


@pytest.mark.parametrize("predict", ["epsilon", "v", "x0"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_bound_is_tight_where_the_steps_backward_are_gaussian_and_right(predict, schedule):
    """N(0, 1) stays N(0, 1), and q(x_{t-1}|x_t) = N(√(1-β) x_t, β): with σ² = β the best network leaves no gap."""
    model = gaussian([0.0], [[1.0]], steps=12, schedule=schedule, predict=predict, variance="beta")
    model.standardise(torch.tensor([2.0]), torch.tensor([3.0]))
    for x in (-4.0, 1.0, 2.0, 7.0):
        exact = Normal(2.0, 3.0).log_prob(torch.tensor(x)).item()
        assert expected_bound(model, torch.tensor([[x]])) == pytest.approx(exact, abs=2e-3)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_the_bounds_gap_is_the_divergence_of_the_chains_given_x(variance):
    """p(x) and KL(q(x_1…x_T|x) ‖ p(x_1…x_T|x)) by linear algebra, for N(0.3, 0.25) and five steps."""
    model = gaussian([0.3], [[0.25]], steps=5, variance=variance)
    x, n = torch.tensor([[0.8]]), model.steps + 1

    def affine(t: int) -> tuple[float, float, float]:
        """p(x_{t-1}|x_t) = N(a x_t + b, σ²)."""
        at_0, at_1 = (model.back(torch.full((1, 1), v), t).base_dist for v in (0.0, 1.0))
        return (at_1.loc - at_0.loc).item(), at_0.loc.item(), at_0.scale.item()

    # x = A z + m in the order x_T, …, x_0 of p's own noise; and for q in the order x_1, …, x_T of its
    p_map, p_mean = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    p_map[-1, 0] = 1
    for row, t in enumerate(range(model.steps, 0, -1), 1):
        a, b, sigma = affine(t)
        p_map[t - 1], p_mean[t - 1] = a * p_map[t], a * p_mean[t] + b
        p_map[t - 1, row] += sigma
    joint = p_map @ p_map.T
    q_map, q_mean = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    q_mean[0] = x.item()
    for t, beta in enumerate(betas("linear", model.steps).tolist(), 1):
        q_map[t], q_mean[t] = math.sqrt(1 - beta) * q_map[t - 1], math.sqrt(1 - beta) * q_mean[t - 1]
        q_map[t, t] += math.sqrt(beta)
    exact = Normal(p_mean[0], joint[0, 0].sqrt()).log_prob(x.double()).item()
    weight = joint[1:, 0] / joint[0, 0]
    p = MultivariateNormal(
        p_mean[1:] + weight * (x.item() - p_mean[0]), joint[1:, 1:] - torch.outer(weight, joint[0, 1:])
    )
    q = MultivariateNormal(q_mean[1:], (q_map @ q_map.T)[1:, 1:])
    gap = kl_divergence(q, p).item()
    assert gap > 0.005
    assert exact - expected_bound(model, x) == pytest.approx(gap, rel=1e-3)


def test_a_few_terms_estimate_the_sum_of_all():
    model, x = shaken(steps=30), grey(4)
    assert float(model.proposal.sum()) == pytest.approx(1)
    with seeded(1):
        few, full = (model.bound(x.repeat(1500, 1, 1, 1), draws=k).view(1500, 4) for k in (2, None))
    error = (few.var(0) + full.var(0)).div(1500).sqrt()
    assert ((few.mean(0) - full.mean(0)).abs() < 5 * error).all()
    assert (error < 0.05 * full.mean(0).abs()).all()


def test_a_bound_that_forgets_a_term_is_found_out():
    class Forgetful(DDPM):
        def term(self, x: Tensor, t: Tensor, *rest: object, **more: object) -> Tensor:
            return torch.where(t == 4, 0, super().term(x, t, *rest, **more))  # type: ignore[arg-type]

    class Careless(DDPM):
        """Steps further back than its bound says."""

        def back(self, x: Tensor, t: int, y: Tensor | None = None):
            found = super().back(x, t, y)
            if t > 1:
                found.base_dist.scale = found.base_dist.scale * 1.3
            return found

    def held(kind: type[DDPM]) -> bool | None:
        torch.manual_seed(0)
        model = kind((1, 3, 3), levels=4, steps=6, sample_steps=None, hidden=[8], schedule="cosine").eval()
        case = Case(model, Diffusion(), None, [Batch(grey(16))], lambda: model, 4)  # type: ignore[arg-type]
        (found,) = prove(case, {CLAIM})
        return found.held

    assert [held(kind) for kind in (DDPM, Forgetful, Careless)] == [True, False, False]


def test_a_gaussian_in_bins_sums_to_one_and_is_exact_in_its_tails():
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean, deviation in ((0.3, 0.5), (-1.2, 0.01), (5.0, 0.3), (0.0, 3.0)):
        p = DiscretizedNormal(torch.tensor(mean).double(), torch.tensor(deviation).double(), 256)
        log_p = p.log_prob(levels)
        assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-9) and log_p.isfinite().all()
        normal = Normal(torch.tensor(mean).double(), torch.tensor(deviation).double())
        for i in (1, 100, 254):
            inside = float(normal.cdf(levels[i] + 1 / 255) - normal.cdf(levels[i] - 1 / 255))
            if inside > 1e-6:
                assert float(log_p[i].exp()) == pytest.approx(inside, rel=1e-6)
    far = DiscretizedNormal(torch.tensor(-1.0, requires_grad=True), torch.tensor(0.01), 256)
    # 199.6 and 200.4 deviations away: log Φ(-z) = -z²/2 - log(z √2π) + …
    z = (1.0 - 1 / 255 + 1 - 2 / 255) / 0.01
    near = far.log_prob(torch.tensor(1.0 - 2 / 255))
    assert near.item() == pytest.approx(-(z**2) / 2 - math.log(z * math.sqrt(2 * math.pi)), rel=1e-4)
    (slope,) = torch.autograd.grad(near, far.loc)
    assert slope.item() == pytest.approx(z / 0.01, rel=1e-2)
    drawn = DiscretizedNormal(torch.full((20_000,), 0.2), torch.tensor(0.6), 3)
    share = torch.stack([(drawn.sample() == x).float().mean() for x in (-1, 0, 1)])
    assert torch.allclose(share, drawn.log_prob(torch.tensor([[-1.0], [0.0], [1.0]]))[:, 0].exp(), atol=0.02)


def test_bits_per_dimension_are_those_of_the_levels():
    made = build("model=ddpm", "data=digits", "model.steps=4", "model.sample_steps=4", "model.channels=4")
    with seeded(0):
        nats, bits = DiffusionBound(draws=None)(Subject(made.model.eval(), made.pipeline, "test", n=20))
    assert (nats.metric, nats.kind, nats.unit, bits.unit) == ("elbo", "elbo", "nats", "bits/dim")
    assert bits.value == pytest.approx(-nats.value / (64 * math.log(2)), rel=1e-9)
    assert nats.settings["terms"] == "4 of 4"
    with pytest.raises(UsageError, match="these are dequantized"):
        Diffusion().validate(made.model, Batch(torch.rand(2, 1, 8, 8)))  # type: ignore[arg-type]


# --- the objective ----------------------------------------------------------------------------------------------------


def loss_of(objective: Diffusion, model: DDPM, x: Tensor, y: Tensor | None = None, seed: int = 0) -> float:
    torch.manual_seed(seed)
    (update,) = objective(model, Batch(x, y), 0.0)
    assert update.loss is not None
    return update.loss.item()


@pytest.mark.parametrize("predict", ["epsilon", "v", "x0"])
def test_the_losses_are_the_papers(predict):
    model, x = shaken(predict=predict), grey(64)
    torch.manual_seed(0)
    t = (torch.rand(64) * 6).floor().long() + 1
    epsilon = torch.randn_like(x)
    signal, noise = over(model.chain.signal[t], x), over(model.chain.noise[t], x)
    noisy = signal * x + noise * epsilon
    out = model.network(noisy, t / 6)
    target = {"epsilon": epsilon, "v": signal * epsilon - noise * x, "x0": x}[predict]
    x0 = {"epsilon": (noisy - noise * out) / signal, "v": signal * noisy - noise * out, "x0": out}[predict]
    simple = (out - target).square().mean().item()
    snr = (signal / noise).square()
    min_snr = (snr.clamp(max=5) * (x - x0).square()).mean().item()
    assert loss_of(Diffusion(), model, x) == pytest.approx(simple, rel=1e-5)
    assert loss_of(Diffusion("min_snr"), model, x) == pytest.approx(min_snr, rel=1e-4)


def test_the_bounds_weighting_is_minus_the_bound_without_bias():
    """With the clipping out of the way; L_T, which nothing is learned of, is left out."""
    model = shaken(steps=5, variance="beta")
    model.support = "real"  # so that nothing is clipped
    model.standardise(torch.zeros(1, 3, 3), torch.ones(1, 3, 3))
    x = grey(1).expand(20_000, 1, 3, 3)
    with seeded(0):
        loss = torch.tensor([loss_of(Diffusion("bound"), model, x, seed=seed) for seed in range(8)])
        bound = (model.bound(x) + model.prior_term(x)).mean().item() / 9
    error = loss.std().item() / math.sqrt(8)
    assert loss.mean().item() == pytest.approx(-bound, abs=5 * error) and error < 0.01 * abs(bound)


def test_labels_are_dropped_as_often_as_asked():
    model, y = shaken(conditional=True, classes=3), torch.randint(3, (5000,))
    batch = Batch(grey(5000), y)
    seen = Diffusion(label_dropout=0.3).labels(model, batch)
    assert seen is not None
    dropped = seen == 3
    assert torch.equal(seen[~dropped], y[~dropped])
    assert dropped.float().mean().item() == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / 5000))
    assert torch.equal(Diffusion(label_dropout=0.0).labels(model, batch), y)
    assert Diffusion().labels(shaken(), batch) is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DDPM((1, 8, 8), 17, steps=10), "model.sample_steps=50"),
        (lambda: DDPM((1, 8, 8), 17, conditional=True), "model.conditional=true needs labels"),
        (lambda: DDPM((2,), network="unet"), "use mlp"),
        (lambda: DDPM((2,), channels=8), "model.channels=8 is for model.network=unet"),
        (lambda: DDPM((1, 28, 28), 256, multipliers=[1, 2, 2, 2]), "can be halved 2 times, so give 3 numbers at most"),
        (lambda: DDPM((1, 9, 9), 256, patch=2), "model.patch=2"),
        (lambda: DDPM((2,), hidden=[]), r"model.hidden=\[\]"),
        (lambda: DDPM((2,), attention=True), "model.attention=True is for model.network=unet"),
        (lambda: DDPM((2,), guidance=3.0), "model.guidance=3 is towards a label"),
        (lambda: DDPM((2,), sampler="ancestral", eta=0.5), "model.eta=0.5 is of model.sampler=ddim"),
        (lambda: build("model=ddpm", "data.dequantize=true"), "data.dequantize=true: DDPM gives the levels of"),
        (
            lambda: Diffusion(label_dropout=0.0).require(shaken(conditional=True, classes=3, guidance=2.0)),
            "set objective.label_dropout",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(make: Callable[[], object], words: str):
    with pytest.raises(UsageError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


def test_networks_start_at_zero_and_know_time_and_label():
    model = DDPM((1, 8, 8), levels=17, conditional=True, classes=3, channels=8, attention=True, blocks=2, patch=2)
    x, t, y = torch.randn(4, 1, 8, 8), torch.full((4,), 500), torch.tensor([0, 1, 2, 0])
    assert not model.network(x, t / 1000, y).any()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
        out = model.network(x, t / 1000, y)
        for other in (
            model.network(x, (t - 100) / 1000, y),
            model.network(x, t / 1000, y.roll(1)),
            model.network(x, t / 1000),
        ):
            assert not torch.allclose(out, other, atol=1e-3)
        far = x.clone()
        far[:, :, 0, 0] += 1
        assert (model.network(far, t / 1000, y) - out)[:, :, 7, 7].abs().min() > 0  # attention sees the whole image


def test_what_the_way_down_saw_reaches_the_way_up():
    """With the way to coarser scales cut, x comes to the output by the shortcuts alone."""
    net = UNet((1, 8, 8), width=4, channels=8, blocks=2)
    x, c = torch.randn(2, 1, 8, 8), torch.randn(1, 4).expand(2, 4)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.3 * torch.randn_like(p)
        whole = net(x, c)
        for p in net.halvings.parameters():
            p.zero_()
        cut = net(x, c)
    assert not torch.allclose(whole, cut, atol=1e-2)
    assert not torch.allclose(cut[0], cut[1], atol=1e-2)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 5.0])
def test_noise_is_taken_off_by_the_conditional_mean(sigma: float):
    """E[x_0 | x_0 + σε = x] of N(m, C) is m + C (C + σ² I)⁻¹ (x - m)."""
    mean, covariance = [1.0, -2.0], [[1.0, 0.6], [0.6, 2.0]]
    model = gaussian(mean, covariance, schedule="cosine", steps=1000)
    x = torch.randn(50, 2) * (1 + sigma) + torch.tensor(mean)
    m, c = torch.tensor(mean), torch.tensor(covariance)
    wanted = m + (x - m) @ torch.linalg.inv(c + sigma**2 * torch.eye(2)) @ c
    assert (model.denoise(x, sigma) - wanted).abs().max() < 0.02 * (1 + sigma)  # the nearest of a thousand times


@pytest.mark.parametrize("use", ["complete", "denoise"])
def test_a_network_that_was_always_told_the_label_says_so_when_asked_without(use: str):
    def asked(model: DDPM) -> Tensor:
        return model.denoise(x, 0.5) if use == "denoise" else model.complete(x, torch.rand(4, 1, 3, 3) < 0.5)

    x, y = grey(4), torch.tensor([0, 1, 2, 0])
    for dropout in (0.0, 0.5):
        torch.manual_seed(0)
        model = DDPM((1, 3, 3), 4, steps=6, sample_steps=None, hidden=[8], conditional=True, classes=3)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            (update,) = Diffusion(label_dropout=dropout)(model, Batch(x, y), 0.0)
            update.loss.backward()
            optimizer.step()
        if dropout:
            assert asked(model).shape == x.shape
        else:
            with pytest.raises(UsageError, match=r"always told the label.*objective\.label_dropout"):
                asked(model)
