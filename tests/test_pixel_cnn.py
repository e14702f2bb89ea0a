"""PixelCNN and gated PixelCNN: densities by enumeration, what sees what by Jacobian, caches bit for bit, completion."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import build
from torch import Tensor
from torch.distributions import Bernoulli, Categorical
from torch.nn.functional import conv2d

from gentrain.errors import UsageError
from gentrain.models.gated_pixel_cnn import GatedPixelCNN
from gentrain.models.masked_convolution import ConvCaches, MaskedConv2d, groups
from gentrain.models.pixel_cnn import PixelCNN
from gentrain.models.raster import LikelihoodHead, Raster
from gentrain.truth.spaces import Space, discrete, follow

Shape = tuple[int, int, int]
SPACES: list[tuple[Shape, int]] = [((1, 3, 3), 2), ((1, 3, 4), 2), ((1, 2, 3), 3), ((3, 2, 2), 2)]
"""At most 12 bits each: grey, wider than high, three levels, colour."""


def make(kind: str, shape: Shape, levels: int = 2, seed: int = 0, **settings: Any) -> Raster:
    """A tiny model with weights so large that its conditionals are far from even."""
    torch.manual_seed(seed)
    small = {"channels": 6, "blocks": 2, "kernel": 3, "head": 6, **settings}
    small["likelihood"] = "bernoulli" if levels == 2 else "categorical"
    if kind == "conditional":
        small |= {"conditional": True, "classes": 3}
    model = PixelCNN(shape, levels, **small) if kind == "plain" else GatedPixelCNN(shape, levels, **small)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.mul_(2).add_(torch.randn_like(p), alpha=1.5 if "label" in name else 0.5 if "bias" in name else 0.1)
    return model.eval()


def space_of(shape: Shape, levels: int) -> Space:
    return discrete(shape, levels, torch.float32 if levels == 2 else torch.int64)


@torch.no_grad()
def table(model: Raster, space: Space) -> Tensor:
    """log p of all states, axis d for element d."""
    assert space.levels is not None
    log_p = model.log_prob(space.points).double()
    size = math.prod(model.shape)
    return log_p.view([space.levels] * size).permute(*reversed(range(size)))  # element 0 is the fastest digit


KINDS = ["plain", "gated", "conditional"]
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@pytest.mark.parametrize(("shape", "levels"), SPACES)
def test_probabilities_sum_to_one_and_samples_follow_them(kind: str, shape: Shape, levels: int):
    model, space = make(kind, shape, levels), space_of(shape, levels)
    with torch.no_grad():
        log_p = model.log_prob(space.points)
    assert log_p.double().exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert log_p.std() > 0.5, "a distribution so even tests nothing"
    torch.manual_seed(1)
    statistic, allowed, words = follow(model.sample(5000), space, log_p)
    assert statistic < allowed, words


@pytest.mark.parametrize("kind", ["plain", "gated"])
@pytest.mark.parametrize(("shape", "levels"), [*SPACES[2:], ((2, 2, 2), 3)])
def test_conditionals_are_those_of_the_joint_distribution(kind: str, shape: Shape, levels: int):
    model, space = make(kind, shape, levels), space_of(shape, levels)
    joint = table(model, space)
    x = space.points[torch.arange(3) * 117]
    with torch.no_grad():
        parameters = model.conditionals(x)
    for place, d in enumerate(model.order.tolist()):
        later = model.order[place + 1 :].tolist()
        marginal = torch.logsumexp(joint, later) if later else joint  # over the elements before d, and d
        kept = sorted(model.order[: place + 1].tolist())
        for row, example in enumerate(x.flatten(1).long()):
            before = tuple(slice(None) if e == d else int(example[e]) for e in kept)
            expected = torch.log_softmax(marginal[before], 0)
            got = parameters[row, d].double()
            got = torch.stack([-got[0] / 2, got[0] / 2]) if levels == 2 else got
            torch.testing.assert_close(torch.log_softmax(got, 0), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["plain", "gated"])
def test_log_prob_is_the_sum_over_elements(kind: str):
    for levels in (2, 5):
        model = make(kind, (3, 4, 5), levels)
        x = torch.randint(levels, (6, 3, 4, 5))
        x = x.float() if levels == 2 else x
        p = model.conditionals(x)
        elements = Bernoulli(logits=p[..., 0]) if levels == 2 else Categorical(logits=p)
        torch.testing.assert_close(model.log_prob(x), elements.log_prob(x.flatten(1)).sum(1))


# --- what sees what ---------------------------------------------------------------------------------------------------


def seen(model: Raster, element: int) -> set[int]:
    """The elements of x that the parameters of one element's conditional depend on, by autograd."""
    model = model.double()
    torch.manual_seed(2)
    x = torch.rand(8, *model.shape, dtype=torch.float64, requires_grad=True)
    y = torch.arange(8) % 3 if model.classes else None
    own = model.conditionals(x, y)[:, element]
    (gradient,) = torch.autograd.grad((own * torch.randn_like(own)).sum(), x)
    return set(torch.nonzero(gradient.abs().sum(0).flatten()).flatten().tolist())


@pytest.mark.parametrize("kind", ["gated", "conditional"])
@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 3, 4)])
def test_the_gated_network_sees_all_that_is_before_and_nothing_else(kind: str, shape: Shape):
    model = make(kind, shape, channels=9, blocks=6, head=24)
    order = model.order.tolist()
    for place in range(0, len(order), 3):
        assert seen(model, order[place]) == set(order[:place]), f"place {place}"


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 3, 4)])
def test_the_plain_network_has_a_blind_spot_above_to_the_right(shape: Shape):
    channels, height, width = shape
    model = make("plain", shape, channels=9, blocks=7, head=24)
    order = model.order.tolist()

    def visible(c: int, i: int, j: int, e: int, r: int, s: int) -> bool:
        if (r, s) == (i, j):
            return e < c
        return s - j <= i - r and (r < i or s < j)  # a step up for each step to the right

    for place in range(0, len(order), 3):
        c, i, j = (int(v) for v in torch.unravel_index(torch.tensor(order[place]), shape))
        expected = {
            e * height * width + r * width + s
            for e in range(channels) for r in range(i + 1) for s in range(width) if visible(c, i, j, e, r, s)
        }  # fmt: skip
        assert seen(model, order[place]) == expected, f"element {(c, i, j)}"
        assert expected <= set(order[:place])
    last_row = order[-channels * width]  # the first pixel of the last row: all rows above are before it
    assert seen(model, last_row) < set(order[: -channels * width])


def test_a_masked_convolution_is_one_with_zeros():
    torch.manual_seed(0)
    inputs, outputs = groups(5, 3), groups(6, 3)
    h = torch.randn(2, 5, 6, 7)
    for mask, above in (("A", None), ("B", None), ("B", 0)):
        conv = MaskedConv2d(5, mask, inputs, outputs, above)
        full = torch.zeros(6, 5, 5, 5)
        rows = 2 if above is None else above
        full[:, :, 2 - rows : 3] = conv.weight.detach()
        for o, i in torch.cartesian_prod(torch.arange(6), torch.arange(5)).tolist():
            if not (inputs[i] < outputs[o] or (mask == "B" and inputs[i] == outputs[o])):
                full[o, i, 2, 2] = 0
        full[:, :, 2, 3:] = 0
        torch.testing.assert_close(conv(h), conv2d(h, full, conv.bias, padding=2))


# --- caches -----------------------------------------------------------------------------------------------------------

IMAGES: list[tuple[Shape, int]] = [((1, 6, 6), 2), ((1, 3, 8), 7), ((3, 4, 3), 2)]


@every_kind
@pytest.mark.parametrize(("shape", "levels"), IMAGES)
def test_cached_sampling_is_uncached_sampling_bit_for_bit(kind: str, shape: Shape, levels: int):
    model = make(kind, shape, levels, kernel=5, blocks=3)
    samples = []
    for cached in (True, False):
        torch.manual_seed(3)
        samples.append(model.sample(40, cached=cached))
    assert torch.equal(*samples)
    assert samples[0].float().std() > 0.1
    known = torch.rand(40, *shape) < 0.4
    completed = []
    for cached in (True, False):
        torch.manual_seed(4)
        completed.append(model.complete(samples[0], known, cached=cached))
    assert torch.equal(*completed)
    assert torch.equal(completed[0][known], samples[0][known]) and not torch.equal(completed[0], samples[0])


@every_kind
@pytest.mark.parametrize(("shape", "levels"), IMAGES)
@torch.no_grad()
def test_cached_parameters_are_within_the_tolerance(kind: str, shape: Shape, levels: int):
    model = make(kind, shape, levels, kernel=5, blocks=3)
    x = model.sample(20)
    y = torch.arange(20) % 3 if model.classes else None
    whole, cache = model.raw(model.head.network_input(x), y), model.cache(x, y)
    worst = 0.0
    for i in range(shape[1]):
        cache.row(i)
        for j in range(shape[2]):
            off = (cache.pixel(i, j) - whole[:, :, i, j]).abs() / (1 + whole[:, :, i, j].abs().amax(1, keepdim=True))
            worst = max(worst, float(off.max()))
    assert worst < model.head.tolerance / 3


def test_a_draw_that_rounding_could_alter_is_made_from_the_whole_image(monkeypatch: pytest.MonkeyPatch):
    """With caches that are off by a thousandth, and a tolerance that allows for it, images are still the same."""
    pixel = ConvCaches.pixel

    def rough(self: ConvCaches, i: int, j: int) -> Tensor:
        raw = pixel(self, i, j)
        return raw + 1e-3 * (1 - 2 * ((i + j) % 2))

    def drawn(cached: bool) -> Tensor:
        torch.manual_seed(5)
        return model.sample(1000, cached=cached)

    model = make("plain", (1, 6, 6))
    exact = drawn(cached=False)
    monkeypatch.setattr(ConvCaches, "pixel", rough)
    assert not torch.equal(drawn(cached=True), exact)
    monkeypatch.setattr(LikelihoodHead, "tolerance", 2e-3)
    assert torch.equal(drawn(cached=True), exact)


# --- labels and completion --------------------------------------------------------------------------------------------


def test_without_labels_the_density_is_the_even_mixture():
    model, space = make("conditional", (1, 3, 3)), space_of((1, 3, 3), 2)
    labels = [torch.full((len(space.points),), k) for k in range(3)]
    with torch.no_grad():
        each = torch.stack([model.log_prob(space.points, y=y) for y in labels]).double()
        torch.testing.assert_close(
            model.log_prob(space.points).double().exp(), each.exp().mean(0), atol=1e-6, rtol=1e-4
        )
    assert (each[0] - each[1]).abs().max() > 0.3, "labels that change nothing test nothing"
    torch.testing.assert_close(each.exp().sum(1), torch.ones(3).double(), atol=1e-5, rtol=0)
    torch.manual_seed(6)
    statistic, allowed, words = follow(model.sample(5000, y=torch.full((5000,), 2)), space, each[2])
    assert statistic < allowed, words


def test_a_label_reaches_both_stacks_of_every_layer():
    model = make("conditional", (1, 4, 4))
    x, y = torch.rand(30, 1, 4, 4).round(), torch.arange(30) % 3
    model.log_prob(x, y=y).sum().backward()
    assert isinstance(model, GatedPixelCNN)
    for layer in model.gated_layers():
        assert layer.label is not None and layer.label.weight.grad is not None
        assert (layer.label.weight.grad != 0).all()


@every_kind
@pytest.mark.parametrize(
    ("shape", "levels", "first"), [((1, 3, 4), 2, 5), ((1, 3, 3), 2, 1), ((1, 2, 3), 3, 3), ((3, 2, 2), 2, 6)]
)
def test_completion_follows_the_exact_conditional(kind: str, shape: Shape, levels: int, first: int):
    """The first elements known, in raster order: against p(x) of all states that agree with them."""
    model, space = make(kind, shape, levels), space_of(shape, levels)
    known = torch.zeros(math.prod(shape), dtype=torch.bool)
    known[model.order[:first]] = True
    x = space.points[-2].clone()
    x[~known.view(shape)] = 0 if levels > 2 else math.nan  # what isn't known is not read
    with torch.no_grad():
        log_p = model.log_prob(space.points).double()
    agree = (space.points.flatten(1)[:, known] == x.flatten()[known]).all(1)
    log_p = torch.where(agree, log_p, -math.inf)
    log_p = log_p - torch.logsumexp(log_p, 0)
    torch.manual_seed(7)
    draws = model.complete(x.expand(5000, *shape), known.view(shape).expand(5000, *shape))
    statistic, allowed, words = follow(draws, space, log_p)
    assert statistic < allowed, words


def test_a_given_label_decides_a_completion():
    model, space = make("conditional", (1, 3, 3)), space_of((1, 3, 3), 2)
    known = torch.zeros(1, 3, 3, dtype=torch.bool)
    with torch.no_grad():
        log_p = model.log_prob(space.points, y=torch.full((512,), 1))
    torch.manual_seed(8)
    draws = model.complete(
        torch.zeros(5000, 1, 3, 3), known.expand(5000, 1, 3, 3), y=torch.ones(5000, dtype=torch.int64)
    )
    statistic, allowed, words = follow(draws, space, log_p)
    assert statistic < allowed, words


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["pixel_cnn", "gated_pixel_cnn"])
def test_data_that_do_not_fit_are_refused_in_a_line(model: str):
    for overrides, words in (
        (["data=bars", "model.kernel=7"], r"model\.kernel=7: too wide for images of 3x3 pixels; 5 at most"),
        (["data=digits", "model.kernel=4"], r"model\.kernel=4: must be odd"),
        (["data=ring"], "takes images"),
        (["data=pydoc"], "takes images"),
        (["data=digits", "model.likelihood=categorical", "model.levels=9"], r"model\.levels=9: digits has 17"),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            build(f"model={model}", *overrides)
        assert "\n" not in str(caught.value)


def test_labels_that_are_not_there_are_refused():
    with pytest.raises(UsageError, match=r"model\.conditional=true needs labels"):
        GatedPixelCNN((1, 4, 4), levels=2, kernel=3, conditional=True)
    with pytest.raises(UsageError, match=r"model\.kernel=1"):
        GatedPixelCNN((1, 4, 4), levels=2, kernel=1)
