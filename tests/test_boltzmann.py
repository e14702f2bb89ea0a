"""The Boltzmann machine against the enumeration of all its units, and learning by chains in a replay buffer."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from helpers import annealed_both_ways
from torch import Tensor

from gentrain import noise
from gentrain.batch import Batch
from gentrain.data.synthetic import bars_distribution
from gentrain.errors import UsageError
from gentrain.evaluation.ais import betas
from gentrain.models import enumeration
from gentrain.models.boltzmann import Boltzmann, Connections, sweep
from gentrain.models.enumeration import draw_states, log_total, log_weight, quadratic, states
from gentrain.models.rbm import RBM
from gentrain.objectives.replay import Replay
from gentrain.truth.objectives import exact_gradient
from gentrain.truth.spaces import discrete, follow

KINDS: tuple[Connections, ...] = ("full", "semi_restricted", "restricted")


def machine(
    visible: int = 5,
    hidden: int = 3,
    connections: Connections = "full",
    order: Literal["fixed", "random"] = "fixed",
    seed: int = 0,
    scale: float = 0.8,
) -> Boltzmann:
    torch.manual_seed(seed)
    model = Boltzmann((1, 1, visible), hidden, connections, order, burn_in=60)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn_like(p))
    return model


def table(model: Boltzmann) -> Tensor:
    """-E(v, h) of all units by the definition, Σ_i a_i s_i + Σ_{i<j} S_ij s_i s_j, (2^visible, 2^hidden), float64."""
    s = states(model.visible + model.hidden, model.weight).double()
    total = s @ model.bias.double()
    for i in range(s.shape[1]):
        for j in range(i + 1, s.shape[1]):
            hidden = (i >= model.visible) + (j >= model.visible)
            if hidden == 1 or model.connections == "full" or (hidden == 0 and model.connections == "semi_restricted"):
                total = total + model.weight[i, j].double() * s[:, i] * s[:, j]
    return total.view(1 << model.hidden, 1 << model.visible).t()


def all_visible(model: Boltzmann) -> Tensor:
    return states(model.visible, model.weight).view(-1, *model.shape)


@pytest.mark.parametrize("connections", KINDS)
@pytest.mark.parametrize("hidden", [0, 1, 3])
def test_everything_comes_from_the_sum_over_all_units(connections: Connections, hidden: int):
    model = machine(hidden=hidden, connections=connections)
    v = all_visible(model)
    with torch.no_grad():
        joint = table(model)
        log_p = torch.logsumexp(joint, 1) - torch.logsumexp(joint.flatten(), 0)
        torch.testing.assert_close(model.free_energy(v).double(), -torch.logsumexp(joint, 1), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.log_partition(), torch.logsumexp(joint.flatten(), 0), atol=1e-6, rtol=1e-7)
        torch.testing.assert_close(model.log_prob(v).double(), log_p, atol=1e-5, rtol=1e-5)
        index = torch.arange(len(v))
        flipped = torch.stack([log_p[index ^ (1 << i)] for i in range(model.visible)])
        pseudo = (log_p - torch.logaddexp(log_p, flipped)).sum(0)
        torch.testing.assert_close(model.pseudo_log_likelihood(v).double(), pseudo, atol=1e-5, rtol=1e-5)
        estimates = torch.stack([model.pseudo_log_likelihood(v, bits=2) for _ in range(400)])
    assert ((estimates.mean(0) - pseudo).abs() < 5 * estimates.std(0) / 400**0.5 + 1e-4).all()


@pytest.mark.parametrize("connections", KINDS)
def test_hidden_units_are_drawn_from_their_posterior(connections: Connections):
    model = machine(connections=connections)
    v = all_visible(model)[torch.full((20_000,), 11)].flatten(1)
    with torch.no_grad():
        posterior = torch.log_softmax(table(model)[11], 0)
        drawn = model.sample_hidden(v)
    statistic, allowed, words = follow(drawn, discrete((model.hidden,), 2), posterior)
    assert statistic < allowed, words


def test_with_the_mask_of_an_rbm_it_is_that_rbm():
    model = machine(connections="restricted")
    rbm = RBM(model.shape, model.hidden)
    with torch.no_grad():
        rbm.weight.copy_(model.weight[: model.visible, model.visible :].t())
        rbm.visible_bias.copy_(model.bias[: model.visible])
        rbm.hidden_bias.copy_(model.bias[model.visible :])
    v = all_visible(model)
    torch.testing.assert_close(model.free_energy(v), rbm.free_energy(v))
    torch.testing.assert_close(model.log_partition(), rbm.log_partition(), atol=1e-6, rtol=1e-7)
    torch.testing.assert_close(model.pseudo_log_likelihood(v), rbm.pseudo_log_likelihood(v))
    ours, theirs = (exact_gradient(m, v[:7], v) for m in (model, rbm))
    torch.testing.assert_close(ours["weight"][: model.visible, model.visible :].t(), theirs["weight"])
    torch.testing.assert_close(ours["bias"], torch.cat([theirs["visible_bias"], theirs["hidden_bias"]]))
    assert ours["weight"].count_nonzero() == model.visible * model.hidden


def test_a_sweep_visits_units_one_after_the_other():
    model, order = machine(hidden=0), [3, 0, 4, 1, 2]
    v, S = states(5, model.weight)[:9], model.coupling.detach()
    torch.manual_seed(1)
    found = sweep(v, model.bias.detach(), S, order)
    torch.manual_seed(1)
    u, expected = noise.uniform(9, 5), v.clone()
    for i in order:
        field = model.bias.detach()[i] + (expected * S[i]).sum(1)
        expected[:, i] = (u[:, i] < torch.sigmoid(field)).float()
    assert torch.equal(found, expected) and torch.equal(v, states(5, model.weight)[:9])


@pytest.mark.parametrize("order", ["fixed", "random"])
@pytest.mark.parametrize("connections", ["full", "semi_restricted"])
def test_the_chain_keeps_the_distribution_and_finds_it(order: Literal["fixed", "random"], connections: Connections):
    model, n = machine(connections=connections, order=order), 20_000
    space = discrete(model.shape, 2)
    log_p = model.log_prob(space.points)
    start = space.draw(log_p, n)
    for draws in (model.gibbs(start, 1), model.sample(n), model.exact_sample(n)):
        statistic, allowed, words = follow(draws, space, log_p)
        assert statistic < allowed, words
    kept = start.clone()
    once = model.gibbs(start, 1)
    again = once.clone()
    model.gibbs(once, 1)
    assert torch.equal(start, kept) and torch.equal(once, again), "a step must not write into its argument"


def test_what_is_missing_is_drawn_given_what_is_known():
    model = machine()
    x = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0]).view(1, 1, 1, 5).repeat(20_000, 1, 1, 1)
    known = torch.tensor([True, False, True, False, True]).view(1, 1, 1, 5).expand_as(x)
    filled = model.complete(x.masked_fill(~known, float("nan")), known)
    assert torch.equal(filled[known], x[known])
    points = discrete(model.shape, 2).points
    fits = (points == x[0])[:, known[0]].all(1)
    log_p = torch.where(fits, model.log_prob(points), -torch.inf)
    statistic, allowed, words = follow(filled, discrete(model.shape, 2), log_p - torch.logsumexp(log_p, 0))
    assert statistic < allowed, words


@pytest.mark.parametrize("inner", [0, 2, 12])
def test_sums_in_blocks_are_the_sum(inner: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(enumeration, "INNER", inner)
    monkeypatch.setattr(enumeration, "OUTER", 1)
    torch.manual_seed(2)
    a, G = torch.randn(6).double(), torch.randn(6, 6).double()
    G = G + G.t()
    s = states(6, a)
    direct = torch.stack([a @ t + 0.5 * t @ G @ t for t in s])
    torch.testing.assert_close(log_weight(s, a, G), direct)
    torch.testing.assert_close(log_total(quadratic(a, G), a), torch.logsumexp(direct, 0))
    drawn = draw_states(quadratic(a, G), 20_000, 6, a)
    statistic, allowed, words = follow(drawn, discrete((6,), 2), torch.log_softmax(direct, 0))
    assert statistic < allowed, words


def test_annealing_brackets_the_exact_normaliser():
    model, mean = machine(visible=6, scale=0.6), torch.full((1, 1, 6), 0.3)
    exact, path, steps = float(model.log_partition()), model.tempered(mean), betas([(1.0, 60)])
    forward, backward = annealed_both_ways(path, model.exact_sample(4000), exact, steps)
    assert forward.relative < 0.02 and backward.relative < 0.02


def test_too_many_units_are_refused_with_what_to_do_instead():
    with pytest.raises(UsageError, match=r"model.hidden=13: .* 12 at most; .*semi_restricted, or model=rbm"):
        Boltzmann((1, 8, 8), hidden=13)
    with pytest.raises(UsageError, match=r"64 visible and 4 hidden .* 2\^68 .* 26 units are the most; metrics=\[ais\]"):
        Boltzmann((1, 8, 8), hidden=4).log_prob(torch.zeros(2, 1, 8, 8))
    assert Boltzmann((1, 8, 8), hidden=40, connections="semi_restricted").free_energy(
        torch.zeros(2, 1, 8, 8)
    ).shape == (2,)


# --- the replay buffer ------------------------------------------------------------------------------------------------


def rbm_and_data(seed: int = 4) -> tuple[RBM, Tensor]:
    torch.manual_seed(seed)
    rbm = RBM((1, 1, 5), 4)
    with torch.no_grad():
        for p in rbm.parameters():
            p.copy_(0.7 * torch.randn_like(p))
    return rbm, torch.rand(7, 1, 1, 5).round()


def gradient(objective: Replay, model: RBM | Boltzmann, x: Tensor) -> dict[str, Tensor]:
    (update,) = objective(model, Batch(x), 0.0)
    assert update.loss is not None
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(update.loss, parameters), strict=True))


def test_its_gradient_on_an_rbm_is_that_of_contrastive_divergence():
    rbm, x = rbm_and_data()
    replay = Replay(rbm.shape, k=2, chains=6, size=6, reinit=0.0)
    found = gradient(replay, rbm, x)
    v = replay.buffer
    with torch.no_grad():
        wanted = rbm.energy_gradient((x, rbm.hidden_probability(x)), (v, rbm.hidden_probability(v)))
    for name, g in wanted.items():
        torch.testing.assert_close(found[name], g)


@pytest.mark.parametrize("size", [1000, 3000])
def test_its_expected_gradient_is_the_exact_one(size: int):
    rbm, x = rbm_and_data()
    exact = torch.cat([g.flatten() for g in exact_gradient(rbm, x, discrete(rbm.shape, 2).points).values()])
    replay = Replay(rbm.shape, k=5, chains=1000, size=size, reinit=0.0)
    for _ in range(30):
        replay.advance(rbm)
    draws = torch.stack([torch.cat([g.flatten() for g in gradient(replay, rbm, x).values()]) for _ in range(60)])
    error = draws.std(0) / 60**0.5
    assert ((draws.mean(0) - exact).abs() < 5 * error).all() and error.max() < 0.005


def test_chains_wait_in_the_buffer_until_they_are_advanced():
    model, chains, size = machine(), 3, 8
    replay = Replay(model.shape, chains=chains, size=size, reinit=0.0)
    assert replay.fantasies(model) is None and set(replay.state_dict()) == {"buffer"}
    for step in range(1, 40):
        before = replay.buffer.clone()
        x = replay.advance(model)
        changed = (~torch.isclose(replay.buffer, before, equal_nan=True)).flatten(1).any(1)
        assert changed.sum() <= chains and x.shape == (chains, *model.shape)
        begun = replay.fantasies(model)
        assert begun is not None and begun.shape[1:] == model.shape and min(step, chains) <= len(begun) <= size
    assert len(begun) == size and set(begun.unique().tolist()) <= {0.0, 1.0}


def test_a_share_of_the_chains_begins_anew(monkeypatch: pytest.MonkeyPatch):
    model = machine()
    monkeypatch.setattr(Boltzmann, "gibbs", lambda self, x, k: x)
    replay = Replay(model.shape, chains=2000, size=2000, reinit=0.25)
    replay.buffer.fill_(7.0)
    fresh = (replay.advance(model) != 7).flatten(1).all(1).float().mean().item()
    assert fresh == pytest.approx(0.25, abs=0.05)
    replay.reinit = 0.0
    assert torch.equal(replay.advance(model), replay.buffer)


def test_regularisation_and_noise_are_their_formulas():
    rbm, x = rbm_and_data()
    replay = Replay(rbm.shape, chains=5, size=5, reinit=0.0, alpha=0.1)
    (update,) = replay(rbm, Batch(x), 0.0)
    data, chain = rbm.free_energy(x), rbm.free_energy(replay.buffer)
    gap = data.mean() - chain.mean()
    torch.testing.assert_close(update.loss, gap + 0.1 * (data**2).mean() + 0.1 * (chain**2).mean())
    torch.testing.assert_close(update.metrics["gap"], gap)
    with pytest.raises(UsageError, match=r"objective.noise=0.1: takes real data"):
        Replay(rbm.shape, noise=0.1).require(rbm)
    with pytest.raises(UsageError, match=r"objective.size=5: .* 100 chains"):
        Replay(rbm.shape, size=5)


def test_two_halves_of_a_batch_do_as_the_whole():
    rbm, x = rbm_and_data()[0], torch.rand(8, 1, 1, 5).round()
    replay, results, buffers = Replay(rbm.shape, k=2, chains=3, size=6, reinit=0.3), [], []
    kept = replay.buffer.clone()
    try:
        for rank, world in ((0, 1), (0, 2), (1, 2)):
            noise.shard(rank, world)
            replay.buffer.copy_(kept)
            torch.manual_seed(9)
            results.append(gradient(replay, rbm, x.view(world, -1, 1, 1, 5)[rank]))
            buffers.append(replay.buffer.clone())
    finally:
        noise.shard(0, 1)
    for name, whole in results[0].items():
        torch.testing.assert_close((results[1][name] + results[2][name]) / 2, whole)
    assert all(torch.equal(b.nan_to_num(9), buffers[0].nan_to_num(9)) for b in buffers)


def test_it_learns_bars_and_stripes():
    """14 pictures of 9 bits, of -log 14 = -2.64 nats at best; independent bits have -6.24."""
    torch.manual_seed(13)
    x = bars_distribution(3)[0].float()
    model, replay = Boltzmann((1, 3, 3), hidden=4), Replay((1, 3, 3), chains=100, size=100, reinit=0.0)
    before = model.log_prob(x).mean().item()
    for step in range(500):
        for name, g in gradient(replay, model, x).items():
            model.get_parameter(name).data.sub_(0.3 * (1 - step / 500) * g)
    after = model.log_prob(x).mean().item()
    assert before < -6.1 and -4.5 < after < -2.6
