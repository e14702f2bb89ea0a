"""RBMs with label units: everything against the enumeration of p(x, y, h), written out anew."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from helpers import build
from torch import Tensor
from torch.nn.functional import one_hot

from gentrain import noise
from gentrain.batch import Batch
from gentrain.data.synthetic import bars_distribution
from gentrain.errors import UsageError
from gentrain.evaluation.anomaly import Anomaly
from gentrain.models.label_rbm import LabelRBM, LabelUnits
from gentrain.models.rbm import RBM
from gentrain.objectives.contrastive import CD, PCD
from gentrain.objectives.fast_weights import FPCD
from gentrain.objectives.tempering import Tempering
from gentrain.optim import SGD
from gentrain.truth.base import prove
from gentrain.truth.objectives import case_of, exact_gradient
from gentrain.truth.spaces import chi_square, critical, discrete, follow
from gentrain.update import Objective

D, K, H = 4, 3, 3


def shaken(model: LabelUnits, seed: int = 0, scale: float = 1.0) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn_like(p))


@pytest.fixture
def rbm() -> LabelRBM:
    model = LabelRBM((1, 2, 2), classes=K, hidden=H, burn_in=60)
    shaken(model)
    return model


def listed(n: int) -> Tensor:
    return torch.tensor([[code >> i & 1 for i in range(n)] for code in range(1 << n)], dtype=torch.float64)


def log_joint(model: LabelUnits) -> Tensor:
    """-E(x, y, h) for all states, (2^D, K, 2^H), in float64."""
    W, b, c = (p.detach().double() for p in (model.weight, model.visible_bias, model.hidden_bias))
    x, h = listed(D), listed(H)
    image = (x @ b[:D])[:, None, None] + (x @ W[:, :D].t() @ h.t())[:, None]
    label = b[D:][None, :, None] + (h @ W[:, D:]).t()[None]
    return image + label + h @ c


def test_energies_and_the_posterior_of_labels_come_from_the_joint(rbm: LabelRBM):
    joint = log_joint(rbm)
    x = listed(D).float().view(-1, 1, 2, 2)
    both = torch.logsumexp(joint, 2)
    close = {"atol": 1e-5, "rtol": 1e-5}
    with torch.no_grad():
        torch.testing.assert_close(rbm.free_energy(x).double(), -torch.logsumexp(both, 1), **close)
        for y in range(K):
            labels = torch.full((len(x),), y)
            torch.testing.assert_close(rbm.free_energy(x, y=labels).double(), -both[:, y], **close)
            p_h = torch.softmax(joint[:, y], 1) @ listed(H)
            torch.testing.assert_close(rbm.hidden_probability(rbm.units(x, labels)).double(), p_h, **close)
        torch.testing.assert_close(rbm.log_class(x).double(), torch.log_softmax(both, 1), **close)
        h = listed(H).float()
        p_x = torch.softmax(torch.logsumexp(joint, 1), 0).t() @ listed(D)
        p_y = torch.softmax(torch.logsumexp(joint, 0), 0).t()
        torch.testing.assert_close(rbm.visible_probability(h).double(), torch.cat([p_x, p_y], 1), **close)


def test_the_sum_over_examples_and_labels_is_one(rbm: LabelRBM):
    x, joint = listed(D).float().view(-1, 1, 2, 2), log_joint(rbm)
    assert rbm.log_partition().item() == pytest.approx(torch.logsumexp(joint.flatten(), 0).item(), abs=1e-6)
    assert rbm.log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-5)
    given = torch.stack([rbm.log_prob(x, y=torch.full((16,), y)) for y in range(K)], 1)
    torch.testing.assert_close(given.exp().sum(0), torch.ones(K), atol=1e-5, rtol=0)
    torch.testing.assert_close(given.double(), torch.log_softmax(torch.logsumexp(joint, 2), 0), atol=1e-5, rtol=1e-5)
    before = rbm.log_partition().item()
    rbm.visible_bias.data[D:] += 1  # of the labels, all alike
    assert rbm.log_partition().item() == pytest.approx(before + 1, abs=1e-6)


def test_given_a_label_it_is_an_rbm(rbm: LabelRBM):
    plain = rbm.at(1)
    assert isinstance(plain, RBM)
    x = listed(D).float().view(-1, 1, 2, 2)
    with torch.no_grad():
        difference = rbm.free_energy(x, y=torch.full((16,), 1)) - plain.free_energy(x)
    torch.testing.assert_close(difference, -rbm.visible_bias[D + 1].detach().expand(16))
    assert plain.weight.data_ptr() != rbm.weight.data_ptr()


def test_too_many_units_are_refused():
    with pytest.raises(UsageError, match=r"784 visible units, 10 labels and 23 hidden units .* 2\^27"):
        LabelRBM((1, 28, 28), classes=10, hidden=23).log_partition()
    assert LabelRBM((1, 28, 28), classes=10, hidden=22).enumerable


@pytest.mark.parametrize("y", [0, 1])
def test_samples_with_a_label_follow_the_conditional(rbm: LabelRBM, y: int):
    space, n = discrete((1, 2, 2), 2), 6000
    torch.manual_seed(1)
    statistic, allowed, words = follow(rbm.sample(n, y=torch.full((n,), y)), space, rbm.log_prob(space.points))
    assert statistic > allowed, f"p(x) and p(x|y) can't be told apart here: {words}"
    log_p = torch.log_softmax(torch.logsumexp(log_joint(rbm)[:, y], 1), 0)
    for draws in (rbm.sample(n, y=torch.full((n,), y)), rbm.at(y).exact_sample(n)):
        statistic, allowed, words = follow(draws, space, log_p)
        assert statistic < allowed, words


def test_exact_samples_follow_the_model(rbm: LabelRBM):
    space = discrete((1, 2, 2), 2)
    torch.manual_seed(2)
    statistic, allowed, words = follow(rbm.exact_sample(6000), space, rbm.log_prob(space.points))
    assert statistic < allowed, words


def test_completions_follow_the_conditional(rbm: LabelRBM):
    n, known = 6000, torch.tensor([True, False, True, False]).view(1, 1, 2, 2)
    x = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 2, 2).expand(n, -1, -1, -1)
    torch.manual_seed(3)
    drawn = rbm.complete(x, known.expand(n, -1, -1, -1))
    p = torch.softmax(torch.logsumexp(log_joint(rbm).flatten(1), 1), 0).where(listed(D)[:, 0] == 1, 0)
    p = p.where(listed(D)[:, 2] == 0, 0)
    counts = torch.bincount((drawn.flatten(1) @ torch.tensor([1.0, 2, 4, 8])).long(), minlength=16)
    statistic, freedom = chi_square(counts, n * p / p.sum())
    assert statistic < critical(freedom)


def codes_of(v: Tensor) -> Tensor:
    """States of bits and label units as numbers below 2^D K."""
    return (v[:, :D] @ torch.tensor([1.0, 2, 4, 8])).long() + 16 * v[:, D:].argmax(1)


@torch.no_grad()
@pytest.mark.parametrize("y", [None, 1])
def test_a_step_of_the_joint_chain_keeps_its_distribution(y: int | None):
    rbm, n = LabelRBM((D,), classes=K, hidden=H), 20_000
    shaken(rbm, seed=4)
    p = torch.softmax(torch.logsumexp(log_joint(rbm), 2).flatten(), 0).view(16, K)
    if y is not None:
        p = torch.where(torch.arange(K) == y, p, 0.0) / p[:, y].sum()
    flat = p.t().flatten()
    start = torch.multinomial(flat, n, replacement=True)
    v = rbm.join(listed(D).float()[start % 16], start // 16)
    assert torch.equal(codes_of(v), start)
    labels = None if y is None else torch.full((n,), y)
    after = rbm.chain(v, 1, y=labels)
    assert torch.equal(after[:, D:].sum(1), torch.ones(n)) and (after != v).any(1).float().mean() > 0.2
    for drawn in (after, rbm.chain(rbm.tosses(n, labels), 200, labels)):
        statistic, freedom = chi_square(torch.bincount(codes_of(drawn), minlength=16 * K), n * flat)
        assert statistic < critical(freedom)


def test_joining_and_splitting():
    rbm = LabelRBM((2,), classes=3, hidden=1)
    v = rbm.join(torch.tensor([[0.25, 1.0]]), torch.tensor([2]))
    assert v.tolist() == [[0.25, 1.0, 0.0, 0.0, 1.0]]
    x, y = rbm.split(v)
    assert x.tolist() == [[0.25, 1.0]] and y.tolist() == [2]
    with torch.no_grad():
        torch.testing.assert_close(rbm.log_class(x)[0, 2] - rbm.log_class(x)[0, 0], rbm.energy_of_units(
            rbm.join(x, torch.tensor([0]))
        )[0] - rbm.energy_of_units(v)[0])  # fmt: skip


def test_categorical_draws_have_their_probabilities():
    p, n = torch.tensor([0.5, 0.3, 0.15, 0.05]), 20_000
    torch.manual_seed(5)
    statistic, freedom = chi_square(torch.bincount(noise.categorical(p.log().expand(n, -1)), minlength=4), n * p)
    assert freedom == 3 and statistic < critical(3)
    assert noise.categorical(torch.tensor([[-math.inf, 0.0]]).expand(100, -1)).eq(1).all()


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "cd": lambda: CD(k=30),
    "pcd": lambda: PCD(hidden=H, k=10, particles=1000),
    "fpcd": lambda: FPCD((1, 2, 2), hidden=H, classes=K, rate=0.0, k=10, particles=1000),
    "tempering": lambda: Tempering(hidden=H, k=3, particles=1000, replicas=4),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_is_learned_is_the_joint_likelihood(rbm: LabelRBM, name: str):
    shaken(rbm, seed=6, scale=0.7)
    objective, x, y = OBJECTIVES[name](), torch.rand(5, 1, 2, 2).round(), torch.tensor([0, 1, 2, 2, 1])
    repeats = 200 if name == "cd" else 1
    batch = Batch(x.repeat(repeats, 1, 1, 1), y.repeat(repeats))
    exact = exact_gradient(rbm, x, listed(D).float().view(-1, 1, 2, 2), y)
    draws = []
    for i in range(60):
        (update,) = objective(rbm, batch, 0.0)
        assert update.grads is not None
        if i >= 20:
            draws.append(torch.cat([update.grads[key].flatten() for key in exact]))
    mean, error = torch.stack(draws).mean(0), torch.stack(draws).std(0) / 40**0.5
    wanted = torch.cat([g.flatten() for g in exact.values()])
    assert ((mean - wanted).abs() < 6 * error + 1e-4).all()


def test_it_learns_to_tell_bars_from_stripes():
    x = bars_distribution(3)[0].float()
    rows = (x[:, 0, :, :1] == x[:, 0, :, :2].mean(-1, keepdim=True)).all((1, 2)) & (x[:, 0, :, 0] == x[:, 0, :, 2]).all(
        1
    )
    y = rows.long()
    torch.manual_seed(7)
    rbm, cd = LabelRBM((1, 3, 3), classes=2, hidden=10), CD(k=1)
    for step in range(1500):
        (update,) = cd(rbm, Batch(x, y), step / 1500)
        assert update.grads is not None
        for name, g in update.grads.items():
            rbm.get_parameter(name).data.sub_(0.3 * g)
    one_colour = x.flatten(1).mean(1).frac() == 0
    with torch.no_grad():
        found = rbm.log_class(x)
    assert torch.equal(found.argmax(1)[~one_colour], y[~one_colour])
    scores = cd.validate(rbm, Batch(x, y))
    assert scores["classification_error"].kind == scores["class_cross_entropy"].kind == "classifier"
    assert scores["classification_error"].values[~one_colour].eq(0).all()
    torch.testing.assert_close(scores["class_cross_entropy"].values, -(found * one_hot(y, 2)).sum(1))


def test_codes_don_t_see_the_label_unless_they_are_told(rbm: LabelRBM):
    x = listed(D).float().view(-1, 1, 2, 2)
    with torch.no_grad():
        told = torch.stack([rbm.codes(x, y=torch.full((16,), y)) for y in range(K)])
        expected = (rbm.weight[:, D:] @ rbm.log_class(x).exp().t()).t() + x.flatten(1) @ rbm.weight[:, :D].t()
        torch.testing.assert_close(rbm.codes(x), torch.sigmoid(expected + rbm.hidden_bias))
    assert not torch.allclose(told[0], told[1])


def test_anomalies_are_scored_with_the_labels_summed_out(rbm: LabelRBM):
    anomaly, x = Anomaly("bars"), listed(D).float().view(-1, 1, 2, 2)
    subject = SimpleNamespace(model=rbm, spec=SimpleNamespace(levels=2))
    assert anomaly.unfit(subject) is None  # type: ignore[arg-type]
    scores = anomaly._scores(subject)  # type: ignore[arg-type]
    assert {*scores} == {"free-energy", "recon"}
    assert torch.equal(scores["free-energy"](x), rbm.marginal_free_energy(x))


# --- labels that are missing ------------------------------------------------------------------------------------------


def test_without_labels_it_is_refused(rbm: LabelRBM):
    with pytest.raises(UsageError, match=r"no labels y: use data with labels, or model=rbm"):
        build("model=label_rbm", "data=bars")
    for objective in (CD(), PCD(hidden=H)):
        with pytest.raises(UsageError, match=r"LabelRBM learns examples together with their labels.*use data with"):
            next(iter(objective(rbm, Batch(torch.ones(2, 1, 2, 2)), 0.0)))


# --- planted faults ---------------------------------------------------------------------------------------------------


class Deaf(LabelRBM):
    """Forgets the labels' biases when it classifies."""

    def log_class(self, x: Tensor) -> Tensor:
        return torch.log_softmax(-self.class_energies(x) - self.visible_bias[self.bits :], 1)


class Unsure(LabelRBM):
    def log_class(self, x: Tensor) -> Tensor:
        return super().log_class(x) - 0.01


class Careless(LabelRBM):
    """Its chain begins with any label, not with one of p(y|x)."""

    def gibbs(self, x: Tensor, k: int) -> Tensor:
        y = torch.randint(self.classes, (len(x),))
        return self.examples(self.chain(self.join(x, y), k))


class Alike(LabelRBM):
    """Its gradient takes the labels of the data for those of the chains."""

    def energy_gradient(self, data: tuple[Tensor, Tensor], chain: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        found = super().energy_gradient(data, chain)
        return {**found, "visible_bias": torch.cat([found["visible_bias"][: self.bits], torch.zeros(self.classes)])}


@pytest.mark.parametrize(
    ("kind", "broken"),
    [
        (LabelRBM, set()),
        (Deaf, {"p(y|x) is the joint's, and sums to one"}),
        (Unsure, {"p(y|x) is the joint's, and sums to one"}),
        (Careless, {"a step of the chain keeps p(x)"}),
        (Alike, {"the energy gradient is autograd's"}),
    ],
)
def test_faults_of_label_units_are_found(kind: type[LabelRBM], broken: set[str]):
    torch.manual_seed(8)
    x = bars_distribution(2)[0].float()
    batches = [Batch(x[rows := torch.randint(len(x), (32,))], (x[rows, 0, 0, 0] + x[rows, 0, 1, 0]).long())]
    sgd = SGD(0.1, 0.0, "constant", 0.0, 0.0, None, 0.0, False)
    only = {
        "p(y|x) is the joint's, and sums to one",
        "a step of the chain keeps p(x)",
        "the energy gradient is autograd's",
    }

    def fresh() -> LabelRBM:
        return kind((1, 2, 2), classes=K, hidden=H)

    model = fresh()
    shaken(model, seed=9)
    case = case_of(model, CD(), sgd, batches * 5, fresh, 2, n=8000)
    found = {check.name: check for check in prove(case, only)}
    assert found.keys() == only
    assert broken <= {name for name, check in found.items() if check.held is False}
    if not broken:
        assert all(check.held for check in found.values()), [c.words for c in found.values()]
