"""FVSBN, NADE and RNADE: values and gradients against a plain loop over elements, sums and integrals, completion."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, TypeVar, cast

import pytest
import torch
from helpers import build
from torch import Tensor
from torch.distributions import Categorical, Normal
from torch.nn.functional import linear

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models import nade
from gentrain.models.autoregressive import Ancestral
from gentrain.models.fvsbn import FVSBN
from gentrain.models.nade import NADE
from gentrain.objectives.likelihood import Likelihood
from gentrain.optim import Adam
from gentrain.truth.base import prove
from gentrain.truth.objectives import case_of
from gentrain.truth.spaces import critical, discrete, follow

ADAM = Adam(1e-2, 0.0, "constant", 0.0, 0.0, None, (0.9, 0.999), 1e-8)
BITS = (1, 3, 3)
M = TypeVar("M", bound=Ancestral)


def shaken(model: M, seed: int = 1, scale: float = 0.7) -> M:
    """The model with parameters that make every conditional depend on what precedes it."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += scale * torch.randn_like(p)
    return model.eval()


def plain_loop(model: NADE, x: Tensor) -> Tensor:
    """log p(x), (B,), as the paper writes it: one element after the other, and each conditional by hand."""
    inputs, total = model.likelihood.network_input(x).flatten(1), torch.zeros(len(x))
    bias = model.likelihood.bias.view(-1, model.size)
    a = model.hidden_bias.expand(len(x), -1)
    for i, d in enumerate(model.order.tolist()):
        h = torch.sigmoid(a) if model.activation == "sigmoid" else a.clamp(min=0)
        raw = h @ model.output_weight[i].t() + bias[:, d]
        value = x.flatten(1)[:, d]
        if model.support == "binary":
            p = torch.sigmoid(raw[:, 0])
            total = total + value * torch.log(p) + (1 - value) * torch.log(1 - p)
        elif model.support == "levels":
            total = total + torch.log_softmax(raw, 1).gather(1, value[:, None])[:, 0]
        else:
            logits, mean, log_scale = raw.chunk(3, 1)
            scale = math.exp(-7) * (1 + torch.exp(log_scale + 7))
            total = total + torch.logsumexp(
                torch.log_softmax(logits, 1) + Normal(mean, scale).log_prob(value[:, None]), 1
            )
        a = a + inputs[:, d, None] * model.weight[i]
    return total


def examples(model: Ancestral, n: int, levels: int = 2) -> Tensor:
    torch.manual_seed(2)
    if model.support == "real":
        return torch.randn(n, *model.shape)
    x = torch.randint(0, levels, (n, *model.shape))
    return x if model.support == "levels" else x.float()


@pytest.mark.parametrize("order", ["raster", "random"])
@pytest.mark.parametrize(
    ("likelihood", "activation", "levels"),
    [
        ("bernoulli", "sigmoid", 2),
        ("bernoulli", "relu", 2),
        ("categorical", "sigmoid", 5),
        ("gaussian_mixture", "relu", None),
    ],
)
def test_nade_and_its_gradients_are_those_of_a_plain_loop(likelihood: Any, activation: Any, levels: Any, order: Any):
    """Over several chunks, the last of them shorter."""
    model = shaken(NADE((1, 5, 15), levels, 7, activation, likelihood, None if levels else 3, order), scale=0.3)
    assert model.size % nade._chunk(torch.zeros(4, 75), model.weight) > 0 and model.size > 2 * nade.CHUNK[1]
    assert (model.order != torch.arange(75)).any() == (order == "random")
    x, parameters = examples(model, 4, levels or 0), dict(model.named_parameters())
    weights = torch.tensor([1.0, -0.5, 2.0, 0.3])  # so that no example's gradient could stand in for another's
    ours, theirs = model.log_prob(x), plain_loop(model, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(theirs @ weights, list(parameters.values()))
    found = torch.autograd.grad(ours @ weights, list(parameters.values()))
    for name, g, w in zip(parameters, found, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5 * float(w.abs().max()), msg=name)
    if x.is_floating_point():
        x.requires_grad_()
        (wanted,) = torch.autograd.grad(plain_loop(model, x) @ weights, x)
        (found,) = torch.autograd.grad(model.log_prob(x) @ weights, x)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_loop_in_chunks_keeps_no_hidden_units():
    """What is kept for the backward pass is the sums between chunks: a chunk's part of B x D x H."""
    model = NADE((1, 16, 16), 2, hidden=200)
    x, kept = examples(model, 64), []

    def keep(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model.log_prob(x).sum().backward()
    largest = {t.data_ptr(): t.numel() for t in kept}
    chunk = nade._chunk(x.flatten(1), model.weight)
    hidden, weights = 64 * 256 * 200, 2 * 256 * 200
    assert sum(largest.values()) < hidden / chunk + weights + 10 * x.numel() < hidden / 8


@pytest.mark.parametrize("order", ["raster", "random"])
def test_fvsbn_is_a_logistic_regression_on_what_precedes(order: Any):
    model = shaken(FVSBN(BITS, 2, order))
    x, total = examples(model, 6), torch.zeros(6)
    v = x.flatten(1)
    for i, d in enumerate(model.order.tolist()):
        before = model.order[:i]
        logit = model.likelihood.bias[d] + v[:, before] @ model.weight[i, :i]
        p = torch.sigmoid(logit)
        total = total + torch.log(torch.where(v[:, d] == 1, p, 1 - p))
        filters = model.filters().flatten(1)[d]
        torch.testing.assert_close(filters[before], model.weight[i, :i])
        assert filters.count_nonzero() == i
    torch.testing.assert_close(model.log_prob(x), total)


MODELS = {
    "fvsbn": lambda: FVSBN((1, 3, 4), 2, "random"),
    "nade": lambda: NADE((1, 3, 4), 2, hidden=5, order="random"),
    "nade-relu": lambda: NADE((1, 3, 4), 2, hidden=5, activation="relu"),
    "nade-levels": lambda: NADE((3, 1, 2), 4, hidden=5, order="random"),
    "nade-logistic": lambda: NADE((3, 1, 2), 4, hidden=5, likelihood="discretized_logistic"),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_is_a_distribution_and_samples_follow_it(name: str):
    model = shaken(MODELS[name]())
    space = discrete(
        model.shape, 4 if model.support == "levels" else 2, torch.int64 if model.support == "levels" else torch.float32
    )
    with torch.no_grad():
        log_p = model.log_prob(space.points)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
    statistic, allowed, words = follow(model.sample(20_000), space, log_p)
    assert statistic < allowed, words
    other = shaken(MODELS[name](), seed=5)
    assert follow(other.sample(20_000), space, log_p)[0] > allowed, "the test could not tell another model's samples"


def completed_follows(model: Ancestral, first: int, n: int = 20_000) -> tuple[float, float]:
    """Chi-square, and what it may be, of the elements that are drawn when the `first` in the order are known."""
    space = discrete(model.shape, 2)
    order = model.order
    known = torch.zeros(model.size, dtype=torch.bool)
    known[order[:first]] = True
    value = torch.tensor([1.0, 0.0, 1.0]).repeat(4)[: model.size]
    x = torch.where(known, value, torch.nan).view(model.shape).expand(n, *model.shape)
    drawn = model.complete(x, known.view(model.shape).expand_as(x))
    assert (drawn.flatten(1)[:, known] == value[known]).all() and drawn.isfinite().all()
    with torch.no_grad():
        log_p = model.log_prob(space.points)
    possible = (space.points.flatten(1)[:, known] == value[known]).all(1)
    statistic, _, _ = follow(drawn, space, torch.where(possible, log_p, -math.inf))
    return statistic, critical(2 ** (model.size - first) - 1)


@pytest.mark.parametrize("name", ["fvsbn", "nade"])
def test_completion_is_the_conditional_where_the_known_come_first(name: str):
    statistic, allowed = completed_follows(shaken(MODELS[name]()), first=5)
    assert statistic < allowed


@pytest.mark.parametrize(("components", "likelihood"), [(3, "gaussian_mixture"), (None, "gaussian")])
def test_rnade_integrates_to_one_and_samples_follow_it(components: Any, likelihood: Any):
    model = shaken(NADE((2,), None, 6, "relu", likelihood, components, "random"), scale=0.4)
    draws = model.sample(20_000)
    low, high = draws.amin(0) - 4, draws.amax(0) + 4
    axes = [torch.linspace(float(a), float(b), 500) for a, b in zip(low, high, strict=True)]
    points = torch.cartesian_prod(*axes)
    cell = math.prod(float(a[1] - a[0]) for a in axes)
    with torch.no_grad():
        p = model.log_prob(points).double().exp() * cell
    assert p.sum().item() == pytest.approx(1, abs=1e-3)
    mean = (p[:, None] * points).sum(0)
    second = (p[:, None, None] * points[:, :, None] * points[:, None]).sum(0)
    error = 6 * (second.diagonal() / 20_000).sqrt()
    assert ((draws.mean(0) - mean).abs() < error).all()
    moments = draws[:, :, None] * draws[:, None]
    assert ((moments.mean(0) - second).abs() < 6 * moments.std(0) / 20_000**0.5).all()


def test_a_gaussian_mixture_is_that_of_its_parameters():
    model = NADE((2,), None, 4, components=2)
    raw = torch.tensor([0.3, -0.4, 1.0, -2.0, 0.1, -0.5]).view(1, 6, 1)
    p = model.likelihood.elements(raw)
    weights = Categorical(logits=raw[0, :2, 0]).probs
    x = torch.tensor(0.7)
    by_hand = sum(
        w * Normal(m, math.exp(-7) + math.exp(s)).log_prob(x).exp()
        for w, m, s in zip(weights, (1.0, -2.0), (0.1, -0.5), strict=True)
    )
    torch.testing.assert_close(p.log_prob(x.view(1, 1)).exp(), torch.as_tensor(by_hand).view(1, 1))


@pytest.mark.parametrize("name", [*MODELS, "rnade"])
def test_training_starts_at_the_mean(name: str):
    model = NADE((3,), None, 4) if name == "rnade" else MODELS[name]()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if not key.startswith("likelihood"):
                p.zero_()
    high = 3 if model.support == "levels" else 1
    mean = torch.linspace(0.2, 0.8, model.size).view(model.shape) * high
    model.start_from_mean(mean)
    raw = model.conditionals(examples(model, 2, 2)).transpose(1, 2).unflatten(2, model.shape)
    tolerance = 0.15 if name == "nade-logistic" else 1e-3 * high  # whose location is the mean before its tails are cut
    torch.testing.assert_close(model.likelihood(torch.zeros_like(raw)).mean[0].detach(), mean, atol=tolerance, rtol=0)


class SeesItself(FVSBN):
    def raw(self, u: Tensor) -> Tensor:
        return linear(u, self.weight.tril())[..., None]


class SeesASign(FVSBN):
    """Of the next element, without a gradient."""

    def raw(self, u: Tensor) -> Tensor:
        return super().raw(u) + 0.1 * (u.roll(-1, 1) > 0.5)[..., None]


class LeaksAGradient(FVSBN):
    """Its values are right."""

    def raw(self, u: Tensor) -> Tensor:
        return super().raw(u) + (u - u.detach()).roll(-1, 1)[..., None]


class LosesAnElement(FVSBN):
    @property
    def order(self) -> Tensor:
        return self.ordering.clamp(min=1)


@pytest.mark.parametrize("fault", [SeesItself, SeesASign, LeaksAGradient, LosesAnElement])
def test_a_planted_fault_of_causality_is_found(fault: type[FVSBN]):
    torch.manual_seed(0)
    batches = [Batch(torch.rand(32, *BITS).round()) for _ in range(8)]
    claim = "conditionals are strictly causal"
    for kind, held in ((FVSBN, True), (fault, False)):
        build_one = partial(kind, BITS, 2, "random")
        model = kind(BITS, 2) if kind is LosesAnElement else build_one()
        case = case_of(model, Likelihood(), ADAM, batches, build_one, 2)
        (found,) = prove(case, {claim})
        assert found.held is held, found.words


def test_a_random_order_follows_the_seed_and_the_file():
    overrides = ["model=nade", "model.order=random", "model.hidden=4"]
    first, again, other = (cast(NADE, build(*overrides, f"seed={seed}").model) for seed in (1, 1, 2))
    assert torch.equal(first.order, again.order) and not torch.equal(first.order, other.order)
    other.load_state_dict(first.state_dict())
    assert torch.equal(first.order, other.order)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model=fvsbn", "data=ring"], "real numbers"),
        (["model=nade", "data=ring", "model.likelihood=categorical"], "without levels"),
        (["model=nade", "data=ring", "model.likelihood=bernoulli"], "without levels"),
        (["model=nade", "data=digits", "model.components=3"], r"model.components=3 is for"),
        (["model=nade", "model.hidden=0"], r"model.hidden"),
        (["model=nade", "model.order=sideways"], r"model.order"),
        (["model=nade", "model.activation=cosine"], r"model.activation"),
        (["model=fvsbn", "data=pydoc"], "token"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(overrides: list[str], words: str):
    with pytest.raises(UsageError, match=words):
        build(*overrides)
