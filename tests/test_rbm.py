"""The RBM's truth tests: everything against the enumeration of a joint that fits in a table."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gentrain import noise
from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.enumeration import states
from gentrain.models.rbm import RBM, log_partition
from gentrain.objectives.contrastive import CD, PCD
from gentrain.truth.objectives import exact_gradient
from gentrain.truth.spaces import discrete, follow
from gentrain.update import Objective

DOUBLE = torch.zeros((), dtype=torch.float64)
SIZES = given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 1000))


def random_rbm(visible: int, hidden: int, seed: int = 0, scale: float = 1.0) -> RBM:
    torch.manual_seed(seed)
    rbm = RBM((1, 1, visible), hidden)
    with torch.no_grad():
        for p in rbm.parameters():
            p.copy_(scale * torch.randn_like(p))
    return rbm


def log_joint(rbm: RBM) -> Tensor:
    """-E(v, h) for every v and h, (2^visible, 2^hidden), in float64."""
    W, b, c = rbm.weight.double(), rbm.visible_bias.double(), rbm.hidden_bias.double()
    v, h = states(rbm.visible, W), states(rbm.hidden, W)
    return (v @ b)[:, None] + h @ c + v @ W.t() @ h.t()


def all_visible(rbm: RBM) -> Tensor:
    return states(rbm.visible, rbm.weight).view(-1, *rbm.shape)


def gradient_of(update_of: Callable[[], dict[str, Tensor]], repeats: int) -> tuple[Tensor, Tensor]:
    """Mean and standard error of a stochastic gradient, flattened."""
    draws = torch.stack([torch.cat([g.flatten() for g in update_of().values()]) for _ in range(repeats)])
    return draws.mean(0), draws.std(0) / repeats**0.5


def grads(objective: Objective, rbm: RBM, x: Tensor) -> dict[str, Tensor]:
    (update,) = objective(rbm, Batch(x), 0.0)
    assert update.grads is not None
    return dict(update.grads)


@settings(deadline=None, max_examples=30)
@SIZES
def test_free_energy_and_conditionals_come_from_the_joint(visible: int, hidden: int, seed: int):
    rbm = random_rbm(visible, hidden, seed)
    v, h = all_visible(rbm), states(hidden, rbm.weight)
    with torch.no_grad():
        joint = log_joint(rbm)
        torch.testing.assert_close(rbm.free_energy(v).double(), -torch.logsumexp(joint, 1), atol=1e-4, rtol=1e-5)
        p_h = torch.softmax(joint, 1) @ h.double()
        torch.testing.assert_close(rbm.hidden_probability(v).double(), p_h, atol=1e-5, rtol=0)
        p_v = torch.softmax(joint, 0).t() @ v.flatten(1).double()
        torch.testing.assert_close(rbm.visible_probability(h).flatten(1).double(), p_v, atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 1000), st.integers(0, 3), st.integers(0, 3))
def test_log_partition_is_the_sum_over_all_states(visible: int, hidden: int, seed: int, inner: int, outer: int):
    with torch.no_grad():
        rbm = random_rbm(visible, hidden, seed, scale=2.0)
        exact = torch.logsumexp(log_joint(rbm).flatten(), 0)
        parameters = [p.double() for p in (rbm.weight, rbm.visible_bias, rbm.hidden_bias)]
        torch.testing.assert_close(log_partition(*parameters, inner=inner, outer=outer), exact, atol=1e-10, rtol=1e-12)
        torch.testing.assert_close(rbm.log_partition(), exact, atol=1e-10, rtol=1e-12)


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0, 500.0])
def test_log_partition_neither_overflows_nor_loses_digits(scale: float):
    """784 visible units: their factors multiply up to far more than the largest double."""
    torch.manual_seed(1)
    W, b, c = (scale * torch.randn(*s, dtype=torch.float64) for s in ((7, 784), (784,), (7,)))
    h = states(7, W)
    expected = torch.logsumexp(h @ c + torch.logaddexp(DOUBLE, b + h @ W).sum(1), 0)
    torch.testing.assert_close(log_partition(W, b, c, inner=4, outer=2), expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(log_partition(W.t(), c, b, inner=4, outer=2), expected, rtol=1e-13, atol=0)


@settings(deadline=None, max_examples=20)
@SIZES
def test_probabilities_sum_to_one(visible: int, hidden: int, seed: int):
    rbm = random_rbm(visible, hidden, seed)
    with torch.no_grad():
        assert rbm.log_prob(all_visible(rbm)).exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_log_partition_follows_the_parameters():
    rbm = random_rbm(4, 3)
    before = rbm.log_partition().item()
    assert rbm.log_partition().item() == before
    rbm.weight.data.mul_(2)  # which no version counter notices
    assert rbm.log_partition().item() == pytest.approx(torch.logsumexp(log_joint(rbm).flatten(), 0).item(), abs=1e-9)
    assert rbm.log_partition().item() != before


def test_enumeration_is_refused_where_it_would_never_end():
    rbm = RBM((1, 28, 28), hidden=27)
    assert not rbm.enumerable and RBM((1, 28, 28), hidden=26).enumerable and RBM((1, 5, 5), hidden=500).enumerable
    with pytest.raises(UsageError, match=r"784 visible and 27 hidden .* 2\^27 .* 26 units"):
        rbm.log_prob(torch.zeros(2, 1, 28, 28))


@pytest.mark.parametrize("k", [1, 3])
def test_cd_is_its_formula(k: int):
    rbm, x = random_rbm(6, 4, seed=2), torch.rand(5, 1, 1, 6).round()
    torch.manual_seed(3)
    actual = grads(CD(k=k), rbm, x)
    torch.manual_seed(3)
    W, b, c = rbm.weight.detach(), rbm.visible_bias.detach(), rbm.hidden_bias.detach()
    v0 = v = x.view(5, 6)
    for _ in range(k):
        h = (noise.uniform(5, 4) < torch.sigmoid(v @ W.t() + c)).float()
        v = (noise.uniform(5, 6) < torch.sigmoid(h @ W + b)).float()
    p0, pk = torch.sigmoid(v0 @ W.t() + c), torch.sigmoid(v @ W.t() + c)
    # of the loss to minimise: what Hinton adds to the parameters, with the other sign
    expected = {
        "weight": torch.stack([torch.outer(pk[i], v[i]) - torch.outer(p0[i], v0[i]) for i in range(5)]).mean(0),
        "visible_bias": (v - v0).mean(0),
        "hidden_bias": (pk - p0).mean(0),
    }
    assert actual.keys() == expected.keys() == dict(rbm.named_parameters()).keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, msg=name)


def test_pcd_is_its_formula():
    rbm, x = random_rbm(6, 4, seed=14), torch.rand(5, 1, 1, 6).round()
    pcd = PCD(hidden=4, k=3, particles=7)
    h = pcd.particles.clone()
    torch.manual_seed(15)
    actual = grads(pcd, rbm, x)
    torch.manual_seed(15)
    for _ in range(3):
        v = rbm.sample_visible(h)
        p = rbm.hidden_probability(v).detach()
        h = rbm.sample_hidden(p)
    p0 = rbm.hidden_probability(x).detach()
    torch.testing.assert_close(actual["weight"], p.t() @ v.flatten(1) / 7 - p0.t() @ x.flatten(1) / 5)
    torch.testing.assert_close(actual["visible_bias"], v.flatten(1).mean(0) - x.flatten(1).mean(0))
    torch.testing.assert_close(actual["hidden_bias"], p.mean(0) - p0.mean(0))
    assert torch.equal(pcd.particles, h)


def test_cd_with_a_long_chain_follows_the_likelihood():
    rbm, data = random_rbm(5, 4, seed=4, scale=0.7), torch.rand(7, 1, 1, 5).round()
    exact = torch.cat([g.flatten() for g in exact_gradient(rbm, data, all_visible(rbm)).values()])
    x = data.repeat(300, 1, 1, 1)
    mean, error = gradient_of(lambda: grads(CD(k=60), rbm, x), repeats=40)
    assert ((mean - exact).abs() < 5 * error + 1e-4).all()
    short, error = gradient_of(lambda: grads(CD(k=1), rbm, x), repeats=40)
    assert ((short - exact).abs() > 5 * error).any(), "CD-1 is biased; a test that doesn't see it sees nothing"


def test_the_expected_pcd_gradient_is_the_exact_one():
    """The batch (7) and the particles (2,000) differ in number, so their weights in the sum do as well."""
    rbm, data = random_rbm(5, 4, seed=5, scale=0.7), torch.rand(7, 1, 1, 5).round()
    exact = torch.cat([g.flatten() for g in exact_gradient(rbm, data, all_visible(rbm)).values()])
    pcd = PCD(hidden=4, k=10, particles=2000)
    for _ in range(10):
        grads(pcd, rbm, data)  # the chains find the distribution of a model that stands still
    mean, error = gradient_of(lambda: grads(pcd, rbm, data), repeats=60)
    assert ((mean - exact).abs() < 5 * error).all()
    assert error.max() < 0.002


def test_particles_go_on_from_update_to_update():
    rbm, x = random_rbm(5, 4, scale=0.0), torch.ones(3, 1, 1, 5)
    with torch.no_grad():
        rbm.visible_bias.fill_(50.0)
        rbm.weight.fill_(20.0)
        rbm.hidden_bias.fill_(-50.0)  # a hidden unit follows the visible ones, which are always on
    pcd = PCD(hidden=4, particles=6)
    assert pcd.particles.shape == (6, 4) and "particles" in pcd.state_dict()
    grads(pcd, rbm, x)
    assert (pcd.particles == 1).all()


def test_gibbs_samples_have_the_right_distribution():
    rbm, n = random_rbm(6, 3, seed=6, scale=0.8), 20_000
    space = discrete(rbm.shape, 2)
    log_p = rbm.log_prob(space.points)
    for start in (None, torch.ones(n, *rbm.shape)):
        draws = rbm.sample(n, burn_in=60, start=start)
        assert draws.shape == (n, 1, 1, 6)
        statistic, allowed, words = follow(draws, space, log_p)
        assert statistic < allowed, words


def test_chains_start_where_they_are_told():
    rbm, start = random_rbm(6, 3), torch.rand(4, 1, 1, 6).round()
    assert torch.equal(rbm.sample(4, burn_in=0, start=start), start)
    assert set(rbm.sample(50, burn_in=0).unique().tolist()) == {0.0, 1.0}
    with pytest.raises(ValueError, match="5 chains"):
        rbm.sample(5, start=start)


def test_pseudo_likelihood_is_the_sum_of_conditionals():
    rbm = random_rbm(5, 4, seed=7)
    v = all_visible(rbm)
    with torch.no_grad():
        log_p = rbm.log_prob(v)
        index = torch.arange(32)
        flipped = torch.stack([log_p[index ^ (1 << i)] for i in range(5)])  # the neighbour in bit i
        expected = (log_p - torch.logaddexp(log_p, flipped)).sum(0)
        torch.testing.assert_close(rbm.pseudo_log_likelihood(v), expected, atol=1e-4, rtol=1e-4)
        estimates = torch.stack([rbm.pseudo_log_likelihood(v, bits=2) for _ in range(2000)])
    assert ((estimates.mean(0) - expected).abs() < 5 * estimates.std(0) / 2000**0.5 + 1e-4).all()


def test_the_visible_bias_starts_at_the_base_rate():
    rbm = RBM((1, 2, 2), hidden=3)
    rbm.start_from_mean(torch.tensor([[[0.0, 0.25], [0.5, 1.0]]]))
    with torch.no_grad():
        rbm.weight.zero_()
        rate = rbm.visible_probability(torch.zeros(1, 3))[0, 0]
    torch.testing.assert_close(rate, torch.tensor([[0.001, 0.25], [0.5, 0.999]]))


@pytest.mark.parametrize("objective", [CD(k=2), PCD(hidden=4, k=2, particles=5)], ids=["cd", "pcd"])
def test_two_halves_of_a_batch_do_as_the_whole(objective: Objective):
    rbm, x = random_rbm(6, 4, seed=8), torch.rand(8, 1, 1, 6).round()
    kept = {name: value.clone() for name, value in objective.state_dict().items()}
    results, particles = [], []
    try:
        for rank, world in ((0, 1), (0, 2), (1, 2)):
            noise.shard(rank, world)
            objective.load_state_dict(kept)
            torch.manual_seed(9)
            results.append(grads(objective, rbm, x.view(world, -1, 1, 1, 6)[rank]))
            particles.append([value.clone() for value in objective.state_dict().values()])
    finally:
        noise.shard(0, 1)
    for name, whole in results[0].items():
        torch.testing.assert_close((results[1][name] + results[2][name]) / 2, whole)
    assert all(torch.equal(a, b) for other in particles[1:] for a, b in zip(particles[0], other, strict=True))


def test_autocast_changes_a_gradient_by_little():
    """The difference of the two statistics is taken in float32: rounding each to bfloat16 first would drown it."""
    rbm, x = random_rbm(40, 30, seed=10, scale=0.2), torch.rand(64, 1, 1, 40).round()
    torch.manual_seed(11)
    full = grads(CD(), rbm, x)
    torch.manual_seed(11)
    with torch.autocast("cpu", torch.bfloat16):
        half = grads(CD(), rbm, x)
    for name, g in full.items():
        assert half[name].dtype == torch.float32
        assert (half[name] - g).norm() < 0.15 * g.norm(), name


def test_validation_says_what_its_numbers_are():
    x = torch.rand(6, 1, 2, 3).round()
    scores = CD().validate(random_rbm_of((1, 2, 3), 4), Batch(x))
    assert {name: score.kind for name, score in scores.items()} == {
        "free_energy": "free-energy",
        "pseudo_log_likelihood": "pseudo",
        "log_likelihood": "exact",
    }
    assert all(score.values.shape == (6,) for score in scores.values())
    big = CD().validate(RBM((1, 8, 8), hidden=40), Batch(torch.rand(6, 1, 8, 8).round()))
    assert set(big) == {"free_energy", "pseudo_log_likelihood"}


def random_rbm_of(shape: tuple[int, ...], hidden: int) -> RBM:
    torch.manual_seed(12)
    return RBM(shape, hidden)


def test_pcd_learns_bars_and_stripes():
    """14 pictures of 9 bits: from the base rate's -6.3 nats towards -log 14 = -2.64, by the exact likelihood."""
    torch.manual_seed(13)
    rows = states(3, torch.zeros(()))[:, :, None].expand(-1, 3, 3)
    x = torch.unique(torch.cat([rows, rows.transpose(1, 2)]), dim=0)[:, None]
    rbm, pcd = RBM((1, 3, 3), hidden=12), PCD(hidden=12, particles=100)
    before = rbm.log_prob(x).mean().item()
    for step in range(3000):
        for name, g in grads(pcd, rbm, x).items():
            rbm.get_parameter(name).data.sub_(0.15 * (1 - step / 3000) * g)
    after = rbm.log_prob(x).mean().item()
    assert before == pytest.approx(-9 * math.log(2), abs=0.1)
    assert -3.6 < after <= -math.log(14)
