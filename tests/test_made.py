"""MADE and order-agnostic NADE: masks and connectivity, ensembles of distributions, the estimate over all orders."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from helpers import build
from torch import Tensor, nn

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models import eonade
from gentrain.models.eonade import EONADE
from gentrain.models.made import MADE
from gentrain.objectives.likelihood import Likelihood
from gentrain.objectives.orderless import Orderless
from gentrain.truth.spaces import critical, discrete, follow

SHAPE = (1, 3, 3)
M = TypeVar("M", bound=nn.Module)


def shaken(model: M, seed: int = 1, scale: float = 0.5) -> M:
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += scale * torch.randn_like(p)
    return model.eval()


def index(i: int) -> Tensor:
    return torch.tensor([i])


def probabilities(log_p: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    with torch.no_grad():
        return log_p(points).double()


# --- MADE's masks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("hidden", [[200], [200, 300], [250, 200, 250], [2, 200]])
def test_paths_respect_the_order_of_their_mask_and_none_is_missing(hidden: list[int], direct: bool):
    torch.manual_seed(0)
    model = MADE((1, 3, 4), 2, hidden, masks=5, order="random", direct=direct)
    assert len({tuple(order.tolist()) for order in model.orders}) == 5
    for i, order in enumerate(model.orders):
        place = order.argsort()
        (*layers, last), across = model.masks(index(i))
        paths = torch.eye(12, dtype=torch.float64)
        for mask in (*layers, last):
            paths = mask.double() @ paths
        seen = (paths + (across.double() if direct else 0)) > 0
        before = place[:, None] > place
        assert not (seen & ~before).any(), "an output is reached by an element that isn't before it"
        if min(hidden) > 2 or direct:
            assert torch.equal(seen, before), "an element before is out of reach"
        for below, mask in zip([12, *hidden], layers, strict=False):
            assert mask.shape[1] == below and mask.any(1).all(), "a unit sees nothing"
        assert last.any(0).all(), "a unit is seen by nothing"


def test_degrees_are_drawn_evenly_and_anew_for_each_mask():
    model = MADE((1, 2, 3), 2, [3000], masks=2)
    first, second = model.degrees
    assert (first != second).any()
    assert torch.equal(model.orders, torch.arange(6).expand(2, 6))
    counts = first.bincount(minlength=6)
    assert counts[5] == 0 and ((counts[:5] - 600).abs() < 5 * math.sqrt(480)).all()


@pytest.mark.parametrize("hidden", [[30], [20, 30], []])
def test_every_mask_gives_strictly_causal_conditionals_and_a_distribution(hidden: list[int]):
    model = shaken(MADE(SHAPE, 2, hidden, masks=3, order="random", direct=True))
    space = discrete(SHAPE, 2)
    for i, order in enumerate(model.orders):
        x = torch.rand(1, *SHAPE)
        jacobian = torch.autograd.functional.jacobian(lambda x, i=i: model.conditionals_of(x, index(i))[0, :, 0], x)
        jacobian = jacobian.view(9, 9)[order][:, order]
        assert jacobian.triu().count_nonzero() == 0
        assert jacobian.tril(-1).count_nonzero() == 36, "what is before an element has no influence on it"
        model.orders[0], model.degrees[0] = order, model.degrees[i]
        one = MADE(SHAPE, 2, hidden, order="random").eval()
        state = model.state_dict()
        one.load_state_dict({**state, "orders": state["orders"][:1], "degrees": state["degrees"][:1]})
        assert probabilities(one.log_prob, space.points).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_the_plain_network_with_masked_weights():
    """One hidden layer, raster order, written out."""
    model = shaken(MADE(SHAPE, 2, [20]))
    m, d = model.degrees[0], torch.arange(9)
    x = torch.rand(4, 9).round()
    first, last, across = m[:, None] >= d, d[:, None] > m, d[:, None] > d
    assert model.output is not None and model.direct is not None
    h = (x @ (model.linears[0].weight * first).t() + model.linears[0].bias).clamp(min=0)
    logits = h @ (model.output.weight * last).t() + x @ (model.direct.weight * across).t() + model.likelihood.bias
    p = torch.sigmoid(logits)
    expected = (x * p.log() + (1 - x) * (1 - p).log()).sum(1)
    torch.testing.assert_close(model.log_prob(x.view(-1, *SHAPE)), expected)
    torch.testing.assert_close(model.filters(), (model.linears[0].weight * first).view(20, *SHAPE))


# --- ensembles --------------------------------------------------------------------------------------------------------


def test_an_ensemble_averages_probabilities_and_an_average_of_logits_is_no_distribution():
    model = shaken(MADE(SHAPE, 2, [30], masks=4, order="random"), scale=1.0)
    space = discrete(SHAPE, 2)
    x = space.points
    members = []
    with torch.no_grad():
        logits = [model.conditionals_of(x, index(i))[..., 0] for i in range(4)]
        for z in logits:
            members.append(torch.distributions.Bernoulli(logits=z).log_prob(x.flatten(1)).sum(1))
        averaged = torch.distributions.Bernoulli(logits=torch.stack(logits).mean(0)).log_prob(x.flatten(1)).sum(1)
    log_p = probabilities(model.log_prob, x)
    torch.testing.assert_close(log_p.exp(), torch.stack(members).double().exp().mean(0), rtol=1e-4, atol=1e-9)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert abs(averaged.double().exp().sum().item() - 1) > 0.1
    statistic, allowed, words = follow(model.sample(20_000), space, log_p)
    assert statistic < allowed, words
    assert follow(model.sample(20_000), space, members[0].double())[0] > allowed, "one mask's distribution would do"


@pytest.mark.parametrize(
    ("likelihood", "levels", "shape"),
    [("categorical", 4, (3, 1, 2)), ("discretized_logistic", 4, (3, 1, 2)), ("bernoulli", 2, (1, 3, 4))],
)
@pytest.mark.parametrize("kind", ["made", "eonade"])
def test_other_elements_are_distributions_too(kind: str, likelihood: Any, levels: int, shape: Any):
    if kind == "made":
        model = shaken(MADE(shape, levels, [12, 12], masks=2, order="random", likelihood=likelihood))
    else:
        model = shaken(EONADE(shape, levels, [12, 12], 2, likelihood))
    space = discrete(shape, levels, torch.int64 if model.support == "levels" else torch.float32)
    log_p = probabilities(model.log_prob, space.points)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
    statistic, allowed, words = follow(model.sample(20_000), space, log_p)
    assert statistic < allowed, words


@pytest.mark.parametrize("kind", ["made", "eonade"])
def test_mixtures_of_gaussians_integrate_to_one(kind: str):
    torch.manual_seed(0)
    common: dict[str, Any] = {"likelihood": "gaussian_mixture", "components": 3}
    made = MADE((2,), None, [8], masks=2, order="random", **common)
    model = shaken(made if kind == "made" else EONADE((2,), None, [8], 2, **common), scale=0.3)
    draws = model.sample(20_000)
    axes = [torch.linspace(float(a) - 4, float(b) + 4, 500) for a, b in zip(draws.amin(0), draws.amax(0), strict=True)]
    points = torch.cartesian_prod(*axes)
    p = probabilities(model.log_prob, points).exp() * math.prod(float(a[1] - a[0]) for a in axes)
    assert p.sum().item() == pytest.approx(1, abs=1e-3)
    for f in (lambda x: x[:, 0], lambda x: x[:, 1], lambda x: x[:, 0] * x[:, 1]):
        seen, wanted = f(draws), (p * f(points)).sum()
        assert abs(seen.mean() - wanted) < 6 * seen.std() / 20_000**0.5


def test_training_takes_the_masks_in_turn_and_evaluation_none():
    model = shaken(MADE(SHAPE, 2, [30], masks=3, order="random"))
    x = torch.rand(5, *SHAPE).round()
    members = [log_prob_of(model, x, i) for i in range(3)]
    model.train()
    for i in (0, 1, 2, 0):
        (update,) = Likelihood()(model, Batch(x), 0.0)
        assert update.loss is not None
        torch.testing.assert_close(update.loss, -members[i].mean())
    model.eval()
    model.log_prob(x)
    assert int(model.turn) == 4


def log_prob_of(model: MADE, x: Tensor, i: int) -> Tensor:
    p = torch.distributions.Bernoulli(logits=model.conditionals_of(x, index(i))[..., 0])
    return p.log_prob(x.flatten(1)).sum(1)


# --- completion -------------------------------------------------------------------------------------------------------


def completion(model: Any, known: Tensor, log_p: Tensor, n: int = 20_000) -> tuple[float, float]:
    """Chi-square, and what it may be, of completions against p(missing | known) of exp(log_p) over all bits."""
    space, value = discrete(model.shape, 2), torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0])
    x = torch.where(known, value, torch.nan).view(model.shape).expand(n, *model.shape)
    drawn = model.complete(x, known.view(model.shape).expand_as(x))
    possible = (space.points.flatten(1)[:, known] == value[known]).all(1)
    return follow(drawn, space, torch.where(possible, log_p, -math.inf))[0], critical(2 ** int((~known).sum()) - 1)


def test_made_completes_by_the_conditional_where_the_known_come_first():
    model = shaken(MADE(SHAPE, 2, [30, 30], order="random"))
    log_p = probabilities(model.log_prob, discrete(SHAPE, 2).points)
    known = torch.zeros(9, dtype=torch.bool)
    known[model.order[:4]] = True
    statistic, allowed = completion(model, known, log_p)
    assert statistic < allowed


def test_eonade_completes_any_part_exactly_along_an_order_with_the_known_in_front():
    model = shaken(EONADE(SHAPE, 2, [30], orderings=1))
    known = torch.zeros(9, dtype=torch.bool)
    known[model.order[[2, 5, 8]]] = True  # places that don't come first
    front = torch.cat([model.order[known[model.order]], model.order[~known[model.order]]])
    x = discrete(SHAPE, 2).points
    log_p = probabilities(lambda x: of_order(model, x, front), x)
    statistic, allowed = completion(model, known, log_p)
    assert statistic < allowed
    assert completion(model, known, probabilities(model.log_prob, x))[0] > allowed


# --- order-agnostic NADE ----------------------------------------------------------------------------------------------


def of_order(model: EONADE, x: Tensor, order: Tensor) -> Tensor:
    """log p_o(x) by D passes through the whole network with ever more of x known."""
    known, total = torch.zeros_like(x, dtype=torch.bool), torch.zeros(len(x))
    for d in order.tolist():
        total = total + model.log_conditionals(x, known).flatten(1)[:, d]
        known.view(len(x), -1)[:, d] = True
    return total


@pytest.mark.parametrize("working_set", [1, 1 << 22])
@pytest.mark.parametrize("hidden", [[7], [7, 5, 6]])
def test_likelihood_along_an_order_and_its_gradients_are_those_of_separate_passes(
    hidden: list[int], working_set: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(eonade, "WORKING_SET", working_set)
    model = shaken(EONADE((3, 2, 2), 4, hidden, orderings=3))
    x = torch.randint(0, 4, (6, 3, 2, 2))
    weights = torch.tensor([1.0, -0.5, 2.0, 0.3, 1.0, -1.0])
    theirs = torch.logsumexp(torch.stack([of_order(model, x, order) for order in model.orders]), 0) - math.log(3)
    ours = model.log_prob(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    found, wanted = (torch.autograd.grad(v @ weights, list(model.parameters())) for v in (ours, theirs))
    for g, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)


def test_unknown_elements_tell_nothing():
    model = shaken(EONADE(SHAPE, 2, [8]))
    x, known = torch.rand(5, *SHAPE).round(), torch.rand(5, *SHAPE) < 0.5
    other = torch.where(known, x, 1 - x)
    a, b = model.log_conditionals(x, known), model.log_conditionals(other, known)
    torch.testing.assert_close(a[known], b[known])
    torch.testing.assert_close((a.exp() + b.exp())[~known], torch.ones(int((~known).sum())))


def test_the_orderless_estimate_is_unbiased_for_the_mean_over_all_orders():
    model = shaken(EONADE((1, 2, 2), 2, [6]))
    x = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0]]).view(2, 1, 2, 2)
    orders = [torch.tensor(order) for order in itertools.permutations(range(4))]
    with torch.no_grad():
        exact = torch.stack([of_order(model, x, order) for order in orders]).mean(0)
        torch.manual_seed(3)
        values = Orderless().estimate(model, x.repeat(40_000, 1, 1, 1)).view(-1, 2)
    error = values.std(0) / 200
    assert ((values.mean(0) - exact).abs() < 5 * error).all(), (values.mean(0), exact, error)
    assert (error < 0.02).all()
    (update,) = Orderless()(model, Batch(x), 0.0)
    assert update.loss is not None and torch.equal(-update.loss.detach(), update.metrics["orderless"])


def test_one_network_learns_all_orders():
    """Trained on two copies of each bit, whatever the order the second of a pair is known from the first."""
    torch.manual_seed(0)
    model, objective = EONADE((1, 1, 4), 2, [32], orderings=2), Orderless()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(400):
        pair = torch.rand(64, 1, 1, 2).round()
        (update,) = objective(model, Batch(torch.cat([pair, pair], -1)), 0.0)
        assert update.loss is not None
        optimizer.zero_grad()
        update.loss.backward()
        optimizer.step()
    x = torch.tensor([1.0, 0.0, 1.0, 0.0]).view(1, 1, 1, 4)
    model.requires_grad_(False)
    for order in itertools.permutations(range(4)):
        assert float(of_order(model, x, torch.tensor(order))) == pytest.approx(2 * math.log(0.5), abs=0.25)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model=made", "data=ring", "model.masks=2"], r"model.masks=2: with model.order=raster.*no more than 1"),
        (["model=made", "data=ring", "model.masks=3", "model.order=random"], r"model.masks=3.*no more than 2"),
        (["model=made", "model.hidden=[]", "model.masks=2"], r"use model.masks=1, or model.order=random"),
        (["model=made", "model.hidden=[]", "model.direct=false"], "no way from inputs to outputs"),
        (["model=made", "model.hidden=[0]"], r"model.hidden"),
        (["model=made", "data=ring", "model.likelihood=categorical"], "without levels"),
        (["model=made", "model.components=2"], r"model.components=2"),
        (["model=eonade", "model.hidden=[]"], r"model.hidden=\[\]"),
        (["model=eonade", "model.orderings=0"], r"model.orderings"),
        (["model=nade", "objective=orderless"], "OrderAgnostic"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(overrides: list[str], words: str):
    with pytest.raises(UsageError, match=words):
        build(*overrides)
