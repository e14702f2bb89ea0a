"""PixelCNN++: densities by enumeration, the mixture by its formula, what sees what, caches of two rows, labels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import build
from scipy.stats import logistic
from torch import Tensor
from torch.nn import functional as F

from gentrain.errors import UsageError
from gentrain.models.logistic_mixture import ChainedBits, LogisticMixture
from gentrain.models.pixel_cnn_pp import PixelCNNPP, PixelCNNPPCache, count_halvings
from gentrain.models.raster import Head
from gentrain.models.shifted import ShiftedConv, ShiftedDeconv
from gentrain.truth.spaces import Space, chi_square, critical, discrete, follow

Shape = tuple[int, int, int]
ALL = (slice(None), slice(None))
SPACES: list[tuple[Shape, int]] = [((1, 3, 3), 2), ((1, 2, 4), 3), ((2, 2, 2), 3), ((3, 2, 2), 2), ((1, 4, 4), 2)]
"""No halving; one, and three levels; two channels of them; bits of three channels; two halvings, 65,536 states."""


def make(shape: Shape, levels: int = 2, seed: int = 0, scale: float = 0.3, **settings: Any) -> PixelCNNPP:
    """A tiny model with weights so large that its conditionals are far from even."""
    torch.manual_seed(seed)
    small = {"channels": 5, "blocks": 1, "mixtures": 3, **settings}
    model = PixelCNNPP(shape, levels, likelihood="bernoulli" if levels == 2 else "logistic_mixture", **small)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=scale)
    return model.eval()


def space_of(shape: Shape, levels: int) -> Space:
    return discrete(shape, levels, torch.float32 if levels == 2 else torch.int64)


def examples(shape: Shape, levels: int, n: int = 4) -> Tensor:
    x = torch.randint(levels, (n, *shape))
    return x.float() if levels == 2 else x


@torch.no_grad()
def log_probs(model: PixelCNNPP, x: Tensor, **given: Tensor) -> Tensor:
    return torch.cat([model.log_prob(piece, **given) for piece in x.split(1 << 13)]).double()


# --- the density ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "levels"), SPACES)
def test_probabilities_sum_to_one_and_samples_follow_them(shape: Shape, levels: int) -> None:
    model, space = make(shape, levels), space_of(shape, levels)
    log_p = log_probs(model, space.points)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert log_p.std() > 0.5, "a distribution so even tests nothing"
    torch.manual_seed(1)
    statistic, allowed, words = follow(model.sample(5000), space, log_p)
    assert statistic < allowed, words


@pytest.mark.parametrize(("shape", "levels"), SPACES[2:4])
def test_elements_are_conditionals_of_the_joint_distribution(shape: Shape, levels: int) -> None:
    model, space = make(shape, levels), space_of(shape, levels)
    log_p = log_probs(model, space.points)
    x = space.points[torch.arange(3) * 101]
    with torch.no_grad():
        elements = model.element_log_prob(x).flatten(1).double()
    points = space.points.flatten(1)[:, model.order]
    for row, example in enumerate(x.flatten(1)[:, model.order]):
        total = [torch.logsumexp(log_p[(points[:, :k] == example[:k]).all(1)], 0) for k in range(len(example) + 1)]
        for place, d in enumerate(model.order.tolist()):
            assert elements[row, d].item() == pytest.approx(float(total[place + 1] - total[place]), abs=1e-4)


@pytest.mark.parametrize(("channels", "levels", "mixtures"), [(1, 256, 4), (3, 4, 2), (3, 2, 1), (4, 3, 3)])
def test_the_mixture_is_its_formula(channels: int, levels: int, mixtures: int) -> None:
    """Σ_m π_m Π_c of differences of scipy's logistic distribution function; it sums to one over a pixel's values."""
    torch.manual_seed(0)
    head = LogisticMixture((channels, 1, 1), levels, mixtures).double()
    raw = torch.randn(1, head.outputs, 1, 1, dtype=torch.float64)
    space = discrete((channels, 1, 1), levels, torch.int64)
    x = space.points
    with torch.no_grad():
        parameters = head.parameters_of(raw.expand(len(x), -1, -1, -1), x, ALL)
        found = head.log_prob(parameters, x).sum((1, 2, 3)).exp()
        flat = (raw.flatten() + head.bias).numpy()
    assert found.sum().item() == pytest.approx(1, abs=1e-9)
    logits, rest = flat[:mixtures], flat[mixtures:].reshape(-1, mixtures)
    means, scales, a = (
        rest[:channels],
        np.exp(-7 + np.log1p(np.exp(rest[channels:][:channels] + 7))),
        rest[2 * channels :],
    )
    unit, width = 2 * x.flatten(1).numpy() / (levels - 1) - 1, 1 / (levels - 1)
    for row in range(0, len(x), 7):
        p, pair = np.exp(logits) / np.exp(logits).sum(), 0
        for c in range(channels):
            loc = means[c].copy()
            for j in range(c):
                loc += np.tanh(a[pair]) * unit[row, j]
                pair += 1
            high = logistic.cdf(unit[row, c] + width, loc, scales[c]) if unit[row, c] < 1 else 1.0
            low = logistic.cdf(unit[row, c] - width, loc, scales[c]) if unit[row, c] > -1 else 0.0
            p = p * (high - low)
        assert found[row].item() == pytest.approx(p.sum(), rel=1e-7)


def test_chained_bits_are_their_formula() -> None:
    head = ChainedBits((3, 1, 1))
    raw = torch.tensor([0.3, -0.2, 0.5, 1.0, -2.0, 0.7]).view(1, 6, 1, 1)  # logits, then a_10, a_20, a_21
    x = torch.tensor([1.0, 0.0, 1.0]).view(1, 3, 1, 1)
    logits = [0.3, -0.2 + 1.0, 0.5 - 2.0 - 0.7]
    expected = [F.logsigmoid(torch.tensor(v if b else -v)).item() for v, b in zip(logits, (1, 0, 1), strict=True)]
    assert head.log_prob(head.parameters_of(raw, x, ALL), x).flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    "head", [LogisticMixture((1, 1, 1), 16, 4), LogisticMixture((1, 1, 1), 2, 1), ChainedBits((1, 1, 1))]
)
def test_a_change_within_the_margin_leaves_the_value(head: Head) -> None:
    torch.manual_seed(0)
    raw, x = torch.randn(3000, head.outputs, 1, 1), torch.zeros(3000, 1, 1, 1)
    with torch.no_grad():
        p = head.double().parameters_of(raw.double(), x, ALL)[..., 0, 0, 0]
        noise = head.noise(p)
        value, margin = head.draw(p, noise)
        steps = [s * 0.49 * margin.clamp(max=0.01)[:, None] for s in (torch.ones_like(p), -torch.ones_like(p))]
        steps += [s.abs() * torch.randn_like(p).sign() for s in steps for _ in range(5)]
        assert all(torch.equal(head.draw(p + step, noise)[0], value) for step in steps)
        assert not torch.equal(head.draw(p + 1.0, noise)[0], value)


# --- shifted convolutions and what they see ---------------------------------------------------------------------------


def test_a_shifted_convolution_is_one_of_a_padded_image() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 6)
    for kernel, offset, margins in (((2, 3), (-1, -1), (1, 1, 1, 0)), ((2, 2), (-1, -1), (1, 0, 1, 0))):
        for stride in (1, 2):
            conv = ShiftedConv(3, 5, kernel, offset, stride)
            torch.testing.assert_close(conv(x), F.conv2d(F.pad(x, margins), conv.weight, conv.bias, stride))
    conv = ShiftedConv(3, 5, (2, 3), (-2, -1))
    expected = F.conv2d(F.pad(x, (1, 1, 1, 0)), conv.weight, conv.bias)[:, :, :-1]
    torch.testing.assert_close(conv(x)[:, :, 1:], expected)
    for kernel, left in (((2, 3), -1), ((2, 2), 0)):
        deconv = ShiftedDeconv(3, 5, kernel, left)
        full = F.conv_transpose2d(x, deconv.weight, deconv.bias, stride=2)
        torch.testing.assert_close(deconv(x), full[..., -left : 12 - left])


@pytest.mark.parametrize(
    ("shape", "levels", "halvings"),
    [((1, 8, 8), 2, 2), ((1, 5, 7), 2, 0), ((3, 4, 4), 2, 1), ((3, 4, 4), 5, 2), ((2, 4, 8), 5, 2)],
)
def test_an_element_sees_all_that_is_before_and_nothing_else(shape: Shape, levels: int, halvings: int) -> None:
    model = make(shape, levels, scale=0.1, halvings=halvings, blocks=2).double()
    x = torch.rand(4, *shape, dtype=torch.float64).mul(levels - 1).requires_grad_()
    own = model.conditionals(x).flatten(2)
    weights, order = torch.randn(own.shape[2], dtype=torch.float64), model.order.tolist()
    for place in range(0, len(order), 3):
        (gradient,) = torch.autograd.grad((own[:, order[place]] * weights).sum(), x, retain_graph=True)
        seen = set(torch.nonzero(gradient.abs().sum(0).flatten()).flatten().tolist())
        assert seen <= set(order[:place]), f"place {place} sees what follows"
        # without a halving few blocks don't reach far; with them, or between neighbours, nothing is left out
        assert seen == set(order[:place]) or not halvings, f"place {place} misses {set(order[:place]) - seen}"
        assert not place or order[place - 1] in seen


# --- generation -------------------------------------------------------------------------------------------------------

KINDS: list[tuple[Shape, int, dict[str, Any]]] = [
    ((1, 8, 8), 2, {}),
    ((1, 3, 5), 2, {}),
    ((2, 4, 6), 2, {"blocks": 2}),
    ((3, 4, 8), 256, {"conditional": True, "classes": 3}),
    ((1, 8, 4), 17, {"mixtures": 1}),
]


@pytest.mark.parametrize(("shape", "levels", "settings"), KINDS)
def test_the_caches_give_the_same_images_bit_for_bit(shape: Shape, levels: int, settings: dict[str, Any]) -> None:
    model = make(shape, levels, scale=0.1, **settings)
    torch.manual_seed(3)
    first = model.sample(4)
    torch.manual_seed(3)
    assert torch.equal(model.sample(4, cached=False), first)
    known, x = torch.rand(4, *shape) < 0.5, examples(shape, levels)
    torch.manual_seed(4)
    completed = model.complete(x, known)
    torch.manual_seed(4)
    assert torch.equal(model.complete(x, known, cached=False), completed)
    assert torch.equal(completed[known], x[known]) and not torch.equal(completed, x)


@pytest.mark.parametrize(("shape", "levels", "settings"), KINDS)
def test_the_cache_computes_what_the_whole_image_gives(shape: Shape, levels: int, settings: dict[str, Any]) -> None:
    model = make(shape, levels, scale=0.1, **settings).double()
    x, y = examples(shape, levels), torch.arange(4) % 3 if model.classes else None
    with torch.no_grad():
        whole, cache = model.raw(model.head.network_input(x), y), model.cache(x, y)
        for i in range(shape[1]):
            cache.row(i)
            for j in range(shape[2]):
                torch.testing.assert_close(cache.pixel(i, j), whole[:, :, i, j], rtol=1e-9, atol=1e-9)
    assert isinstance(cache, PixelCNNPPCache)
    assert cache.memory and max(kept.shape[2] for kept in cache.memory.values()) == 2, "more than two rows are kept"


def test_no_draw_looks_at_the_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = make((3, 4, 4), 256, scale=0.1), []
    raw = PixelCNNPP.raw
    monkeypatch.setattr(PixelCNNPP, "raw", lambda *a: calls.append(1) or raw(*a))
    model.sample(50)
    assert not calls
    model.sample(2, cached=False)
    assert len(calls) == 16


def test_known_channels_of_a_pixel_weigh_the_mixture() -> None:
    """Green and blue drawn given red, against the enumeration of one pixel."""
    model, space = make((3, 1, 1), 4, scale=0.8, mixtures=3), space_of((3, 1, 1), 4)
    log_p, x = log_probs(model, space.points), torch.tensor([3, 0, 0]).view(1, 3, 1, 1).expand(4000, -1, -1, -1)
    known = torch.tensor([True, False, False]).view(1, 3, 1, 1).expand_as(x)
    torch.manual_seed(0)
    drawn = model.complete(x, known)
    assert (drawn[:, 0] == 3).all()
    given = space.points[:, 0, 0, 0] == 3
    expected = torch.softmax(log_p[given], 0) * len(drawn)
    observed = torch.bincount(space.locate(drawn), minlength=64)[given]
    statistic, freedom = chi_square(observed, expected)
    assert statistic < critical(freedom)


# --- labels, dropout --------------------------------------------------------------------------------------------------


def test_each_label_has_a_distribution_and_none_is_their_mixture() -> None:
    model, space = make((1, 2, 4), conditional=True, classes=3), space_of((1, 2, 4), 2)
    every = [log_probs(model, space.points, y=torch.full((1,), k)) for k in range(3)]
    for log_p in every:
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert (every[0] - every[1]).abs().max() > 0.1
    mixture = torch.logsumexp(torch.stack(every), 0) - math.log(3)
    torch.testing.assert_close(log_probs(model, space.points), mixture, atol=1e-5, rtol=0)
    torch.manual_seed(0)
    statistic, allowed, words = follow(model.sample(4000, y=torch.full((4000,), 2)), space, every[2])
    assert statistic < allowed, words


def test_dropout_is_for_training_alone() -> None:
    model, x = make((1, 4, 4), dropout=0.5, scale=0.1), examples((1, 4, 4), 2)
    assert torch.equal(model.log_prob(x), model.log_prob(x))
    model.train()
    first, second = model.log_prob(x), model.log_prob(x)
    assert not torch.equal(first, second)
    layer = model.vertical.modules()
    dropout = next(m for m in layer if type(m).__name__ == "Dropout")
    kept = dropout(torch.ones(40, 50, 4, 4))
    assert set(kept.unique().tolist()) == {0.0, 2.0} and kept.mean().item() == pytest.approx(1, abs=0.03)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_sides_are_halved_as_often_as_they_can_twice_at_most() -> None:
    assert [count_halvings(None, *sides) for sides in ((28, 28), (32, 16), (3, 3), (6, 8), (1, 4))] == [2, 2, 0, 1, 0]
    assert count_halvings(3, 32, 64) == 3
    for asked, height, width, possible in ((1, 7, 8, 0), (3, 28, 28, 2), (2, 6, 8, 1)):
        with pytest.raises(UsageError, match=rf"model.halvings={asked}: .* halved {possible} times") as caught:
            count_halvings(asked, height, width)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["data=bars", "model.halvings=1"], r"sides of 3x3 pixels can be halved 0 times; use model.halvings=0"),
        (["data=ring"], r"takes images, .* shape \[2\]"),
        (["data=bars", "model.conditional=true"], r"model.conditional=true needs labels"),
    ],
)
def test_what_does_not_fit_is_one_line(overrides: list[str], named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        build("model=pixel_cnn_pp", *overrides)
    assert "\n" not in str(caught.value)
