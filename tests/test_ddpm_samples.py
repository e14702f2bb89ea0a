"""DDPM's samples and completions: against recursions, limits and exact conditionals."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from diffusing import gaussian, shaken
from torch import Tensor, nn

from gentrain.errors import UsageError
from gentrain.evaluation.estimator import seeded


def test_ddim_with_all_steps_is_the_deterministic_limit():
    """Of N(1, 0.25) the flow of the ODE is x_0 = m + s (x_T - √ᾱ m)/√(ᾱ s² + 1 - ᾱ); more steps come nearer."""
    errors = []
    for steps in (20, 200, 1000):
        model = gaussian([1.0], [[0.25]], steps=1000, sample_steps=steps, eta=0.0)
        torch.manual_seed(0)
        x = model.sample(200)
        torch.manual_seed(0)
        noise, left = torch.randn(200, 1), model.chain.alpha_bar[-1]
        limit = 1 + 0.5 * (noise - math.sqrt(left)) / math.sqrt(left * 0.25 + 1 - left)
        errors.append(float((x - limit).abs().max()))
    assert errors[0] > 3 * errors[1] > 6 * errors[2] and errors[2] < 0.01


def test_ddim_is_the_papers_equation_12():
    model = gaussian([1.0], [[0.25]], steps=50, sample_steps=5, eta=0.6)
    assert model.times == [50, 40, 30, 20, 10, 0]
    torch.manual_seed(3)
    found = model.sample(6)
    torch.manual_seed(3)
    x = torch.randn(6, 1)
    for t, s in pairwise(model.times):
        now, then = model.chain.alpha_bar[t], model.chain.alpha_bar[s]
        x0 = model.denoised(x, torch.full((6,), t))
        epsilon = (x - math.sqrt(now) * x0) / math.sqrt(1 - now)
        sigma = 0.6 * math.sqrt((1 - then) / (1 - now)) * math.sqrt(1 - now / then)
        x = math.sqrt(then) * x0 + math.sqrt(1 - then - sigma**2) * epsilon
        if s:
            x = x + sigma * torch.randn(6, 1)
    assert torch.allclose(found, x, atol=1e-5)


def test_ddim_with_all_the_noise_is_ancestral_sampling():
    samplers = ({"sampler": "ddim", "eta": 1.0}, {"sampler": "ancestral"}, {"sampler": "ddim", "eta": 0.0})
    drawn = []
    for settings in samplers:
        torch.manual_seed(1)
        drawn.append(gaussian([1.0], [[0.25]], steps=20, variance="posterior", **settings).sample(50))
    assert torch.equal(drawn[0], drawn[1]) and not torch.allclose(drawn[1], drawn[2])


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_samples_have_the_moments_of_the_chain(variance):
    """Ancestral sampling of p against a recursion of mean and variance by `back`; the last step has no noise."""
    model = gaussian([1.0], [[0.25]], steps=4, variance=variance, sampler="ancestral")
    mean, squared = 0.0, 1.0
    for t in range(4, 0, -1):
        at_0, at_1 = (model.back(torch.full((1, 1), v), t).base_dist for v in (0.0, 1.0))
        a = (at_1.loc - at_0.loc).item()
        mean, squared = a * mean + at_0.loc.item(), a**2 * squared + (at_0.scale.item() ** 2 if t > 1 else 0)
    with seeded(2):
        x = model.sample(20_000)
    assert x.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(squared / 20_000))
    assert x.var().item() == pytest.approx(squared, rel=5 * math.sqrt(2 / 20_000))
    one_step = gaussian([1.0], [[0.25]], steps=1, variance=variance, sampler="ancestral")
    torch.manual_seed(8)
    x = one_step.sample(5)
    torch.manual_seed(8)
    assert torch.allclose(x, one_step.back(torch.randn(5, 1), 1).mean)


def test_epsilon_v_and_x0_are_one_model_in_three_words():
    x, t, epsilon = torch.randn(8, 2), torch.full((8,), 7), torch.randn(8, 2)
    bounds, samples, denoised = [], [], []
    for predict in ("epsilon", "v", "x0"):
        model = gaussian([1.0, 0.0], [[0.5, 0.2], [0.2, 0.3]], steps=10, predict=predict, schedule="cosine")
        with seeded(4):
            bounds.append(model.bound(x))
            samples.append(model.sample(5))
        found = model.denoised(model.noised(x, t, epsilon), t)
        of_x0 = (found - x).square().mean(1)
        assert torch.allclose(model.error(x, t, epsilon) * model.share(t), of_x0, rtol=1e-3)
        denoised.append(found)
    for one in (bounds, samples, denoised):
        assert torch.allclose(one[0], one[1], rtol=1e-3, atol=1e-3) and torch.allclose(
            one[1], one[2], rtol=1e-3, atol=1e-3
        )


def test_guidance_goes_from_no_label_to_the_label_and_beyond():
    settings = {"conditional": True, "classes": 3}
    model, x, t, y = shaken(**settings), torch.randn(5, 1, 3, 3), torch.full((5,), 4), torch.tensor([0, 1, 2, 1, 0])
    without, with_label = model.denoised(x, t, clip=False), model.denoised(x, t, y, clip=False)
    assert not torch.allclose(without, with_label)
    assert torch.equal(model.denoised(x, t, y, guidance=0.0, clip=False), without)
    assert torch.equal(model.denoised(x, t, torch.full_like(y, 3), clip=False), without)
    stronger = model.denoised(x, t, y, guidance=2.5, clip=False)
    assert torch.allclose(stronger, without + 2.5 * (with_label - without), atol=1e-4)

    def drawn(guidance: float, label: int) -> Tensor:
        model.guidance = guidance
        with seeded(5):
            return model.sample(4, y=torch.full((4,), label))

    assert torch.equal(drawn(0.0, 0), drawn(0.0, 2)) and not torch.allclose(drawn(1.0, 0), drawn(1.0, 2))
    with pytest.raises(UsageError, match="no label 3"):
        model.sample(1, y=torch.tensor([3]))


def test_completions_keep_what_is_known_and_suit_it():
    """Of a Gaussian with correlation 0.9 the rest has the mean 0.9 x: nearer the more often a step is taken."""
    x = torch.tensor([[1.5, math.nan]]).expand(3000, 2)
    known = torch.tensor([[True, False]]).expand(3000, 2)
    found = {}
    for resamples in (1, 10):
        model = gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]], steps=100, sample_steps=25, resamples=resamples)
        with seeded(6):
            filled = model.complete(x, known)
        assert torch.equal(filled[:, 0], x[:, 0])
        found[resamples] = (filled[:, 1].mean().item(), filled[:, 1].std().item())
    off = {k: abs(mean - 1.35) for k, (mean, _) in found.items()}
    assert off[10] < 0.1 and off[10] < off[1]
    assert found[10][1] == pytest.approx(math.sqrt(1 - 0.81), abs=0.1)


def test_what_a_sum_leaves_open_is_drawn_given_the_sum():
    """Of N(m, S) given a = w·x: the mean m + S w (a - w·m)/(wᵀS w), the covariance S - S w wᵀS/(wᵀS w). It comes nearer
    with finer times. The data's own unit, 2 x + a mean, changes nothing."""
    m, S, w = torch.tensor([0.5, -0.5]), torch.tensor([[1.0, 0.6], [0.6, 2.0]]), torch.tensor([0.2, 0.8])
    x, off = torch.tensor([3.0, 2.0]).expand(4000, 2), {}
    for steps, taken in ((100, 25), (300, 300)):
        model = gaussian(m.tolist(), S.tolist(), steps=steps, sample_steps=taken, resamples=3)
        model.standardise(torch.tensor([0.3, 0.1]), torch.tensor([2.0, 2.0]))
        with seeded(8):
            made = model.restore(x, lambda z, x: z + ((x - z) @ w)[:, None] * w / w.square().sum())
        torch.testing.assert_close(made @ w, x @ w)
        inner, at = (made - model.mean) / 2, (x[0] - model.mean) / 2
        gain = S @ w / (w @ S @ w)
        assert torch.allclose(inner.mean(0), m + gain * ((at - m) @ w), atol=0.1)
        off[taken] = float((inner.T.cov() - S + torch.outer(gain, S @ w)).norm())
    assert off[300] < 0.1 and off[300] < off[25] / 3


def test_what_is_known_has_the_noise_of_its_time_while_the_rest_is_drawn():
    model = gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]], steps=100, sample_steps=10, resamples=3)
    seen: list[tuple[int, float, float]] = []
    optimal = model.network

    class Watching(nn.Module):
        def require_unlabelled(self) -> None: ...

        def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            seen.append((round(100 * float(t[0])), x[:, 0].mean().item(), x[:, 0].std().item()))
            return optimal(x, t, y)

    model.network = Watching()
    with seeded(7):
        model.complete(torch.full((5000, 2), 1.5), torch.tensor([[True, False]]).expand(5000, 2))
    assert [t for t, _, _ in seen] == [t for t in range(100, 10, -10) for _ in range(3)] + [10]
    for t, mean, deviation in seen:
        left = model.chain.alpha_bar[t]
        assert mean == pytest.approx(1.5 * math.sqrt(left), abs=5 * math.sqrt((1 - left) / 5000))
        assert deviation == pytest.approx(math.sqrt(1 - left), rel=5 / math.sqrt(10_000))
