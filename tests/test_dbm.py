"""The deep Boltzmann machine: everything against the enumeration of a joint that fits in a table."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from helpers import build
from torch import Tensor
from torch.nn.functional import softplus

from gentrain.batch import Batch
from gentrain.data.synthetic import bars_distribution
from gentrain.errors import UsageError
from gentrain.evaluation.bound import Bound
from gentrain.evaluation.estimator import Finding, Subject
from gentrain.models.dbm import DBM
from gentrain.models.doubled import DoubledRBM, Sweep
from gentrain.models.energies import Bounded, TemperedPath
from gentrain.models.enumeration import states
from gentrain.models.rbm import RBM
from gentrain.objectives.contrastive import CD
from gentrain.objectives.dbm import JointDBM
from gentrain.objectives.greedy import Greedy
from gentrain.objectives.refinements import centred
from gentrain.optim import SGD
from gentrain.truth.base import prove, truths
from gentrain.truth.objectives import case_of
from gentrain.truth.spaces import discrete, follow

MACHINES = pytest.mark.parametrize("hidden", [[3, 4], [3, 2, 3]], ids=["two layers", "three layers"])


def random_dbm(hidden: list[int], visible: int = 4, seed: int = 0, scale: float = 0.8) -> DBM:
    torch.manual_seed(seed)
    dbm = DBM((1, 1, visible), hidden)
    with torch.no_grad():
        for p in dbm.parameters():
            p.copy_(scale * torch.randn_like(p))
    return dbm


def couplings(dbm: DBM) -> tuple[list[Tensor], list[Tensor]]:
    """W_1 … W_L and c_0 … c_L, composed here from the layers' own parameters."""
    own = [dict(dbm.layer(i).named_parameters()) for i in range(1, dbm.depth + 1)]
    inner = [low["hidden_bias"] + high["visible_bias"] for low, high in pairwise(own)]
    return [p["weight"] for p in own], [own[0]["visible_bias"], *inner, own[-1]["hidden_bias"]]


def minus_energy(parameters: tuple[list[Tensor], list[Tensor]], h: list[Tensor]) -> Tensor:
    weights, biases = parameters
    total = sum(layer @ bias.double() for layer, bias in zip(h, biases, strict=True))
    for W, (low, high) in zip(weights, pairwise(h), strict=True):
        total = total + torch.einsum("nj,ji,ni->n", high, W.double(), low)
    assert isinstance(total, Tensor)
    return total


def all_states(dbm: DBM) -> Tensor:
    return states(sum(dbm.sizes), torch.zeros((), dtype=torch.float64))


def log_joint(dbm: DBM, parameters: tuple[list[Tensor], list[Tensor]] | None = None) -> Tensor:
    """-E of every state of all units, v's bits the lowest of the index, float64."""
    return minus_energy(parameters or couplings(dbm), list(all_states(dbm).split(dbm.sizes, 1)))


def log_visible(dbm: DBM) -> Tensor:
    """log p(v) of every v."""
    joint = log_joint(dbm)
    return torch.logsumexp(joint.view(-1, 1 << dbm.sizes[0]), 0) - torch.logsumexp(joint, 0)


def all_visible(dbm: DBM) -> Tensor:
    return discrete(dbm.shape, 2).points


# --- the model --------------------------------------------------------------------------------------------------------


@MACHINES
def test_log_z_and_the_likelihood_are_the_sums(hidden: list[int]):
    for visible in (2, 5):  # fewer even than odd units, and more
        dbm = random_dbm(hidden, visible)
        log_z = dbm.log_partition()
        assert log_z is not None
        torch.testing.assert_close(log_z, torch.logsumexp(log_joint(dbm), 0).detach(), atol=1e-5, rtol=0)
        found = dbm.log_prob(all_visible(dbm)).double()
        torch.testing.assert_close(found, log_visible(dbm).detach(), atol=1e-5, rtol=0)


def test_what_is_too_large_to_sum_is_said():
    dbm = DBM((1, 28, 28), [30, 40])
    assert dbm.log_partition() is None
    with pytest.raises(UsageError, match=r"2\^30 states .* 20 units"):
        dbm.log_prob(torch.zeros(1, 1, 28, 28))
    with pytest.raises(UsageError, match=r"hidden=\[5\]: .* two layers"):
        DBM((1, 2, 2), [5])


@MACHINES
def test_mean_field_is_a_fixed_point_that_never_lowered_the_bound(hidden: list[int]):
    dbm, v = random_dbm(hidden), None
    v = all_visible(dbm)
    weights, biases = couplings(dbm)
    mu = [v.flatten(1), *dbm.mean_field(v, sweeps=500, tolerance=1e-7)]
    for i in range(1, dbm.depth + 1):
        field = biases[i] + mu[i - 1] @ weights[i - 1].t()
        field = field + mu[i + 1] @ weights[i] if i < dbm.depth else field
        torch.testing.assert_close(mu[i], torch.sigmoid(field), atol=1e-5, rtol=0)
    bounds = []
    for sweeps in (1, 2, 3, 5, 10, 50):
        dbm.sweeps = sweeps
        bounds.append(dbm.log_bound(v))
    for early, late in pairwise(bounds):
        assert (late >= early - 1e-5).all()
    assert (bounds[-1] > bounds[0] + 1e-3).any(), "a machine for which sweeps change nothing tests nothing"


def test_mean_field_begins_with_doubled_weights_and_stops_at_its_tolerance():
    dbm = random_dbm([3, 2, 3])
    v = all_visible(dbm)
    (W1, W2, W3), (_, c1, c2, c3) = couplings(dbm)
    mu1 = torch.sigmoid(2 * v.flatten(1) @ W1.t() + c1)
    mu2 = torch.sigmoid(2 * mu1 @ W2.t() + c2)
    start = [mu1, mu2, torch.sigmoid(mu2 @ W3.t() + c3)]
    for found, expected in zip(dbm.mean_field(v, sweeps=0), start, strict=True):
        torch.testing.assert_close(found, expected)
    five, loose, fixed = (dbm.mean_field(v, *args) for args in ((5, 0), (100, 1.0), (100, 0)))
    assert all(map(torch.equal, five, loose)) and not all(map(torch.equal, fixed, loose))


@MACHINES
def test_the_bound_lies_below_the_likelihood(hidden: list[int]):
    for seed in range(5):
        dbm = random_dbm(hidden, seed=seed, scale=1.5)
        v = all_visible(dbm)
        with torch.no_grad():
            gap = log_visible(dbm) - (dbm.log_bound(v).double() - torch.logsumexp(log_joint(dbm), 0))
            # the gap is KL(q ‖ p(h | v)) at the same μ, by enumeration
            q = [m.double() for m in dbm.mean_field(v)]
            h = all_states(dbm)[:: 1 << dbm.sizes[0]][:, dbm.sizes[0] :]
            log_q = torch.stack([(h * m.log() + (1 - h) * (1 - m).log()).sum(1) for m in torch.cat(q, 1)], 1)
            posterior = torch.log_softmax(log_joint(dbm).view(len(h), len(v)), 0)
            divergence = (log_q.exp() * (log_q - posterior)).sum(0)
        assert (gap > -1e-5).all() and gap.max() > 1e-2
        torch.testing.assert_close(gap, divergence, atol=1e-4, rtol=0)


@MACHINES
def test_without_couplings_above_it_is_an_rbm(hidden: list[int]):
    dbm = random_dbm(hidden)
    for i in range(2, dbm.depth + 1):
        dbm.rbm(i).weight.data.zero_()
    rbm, v = RBM(dbm.shape, hidden[0]), all_visible(dbm)
    (W, *_), (b, c, *above) = couplings(dbm)
    with torch.no_grad():
        for mine, its in ((rbm.weight, W), (rbm.visible_bias, b), (rbm.hidden_bias, c)):
            mine.copy_(its)
        rest = torch.stack([softplus(bias).sum() for bias in above]).sum()
        torch.testing.assert_close(dbm.log_bound(v), rest - rbm.free_energy(v), atol=1e-5, rtol=0)
        torch.testing.assert_close(dbm.log_partition(), rest.double() + rbm.log_partition(), atol=1e-5, rtol=0)
        torch.testing.assert_close(dbm.log_prob(v), rbm.log_prob(v), atol=1e-5, rtol=0)


@MACHINES
def test_a_gibbs_sweep_keeps_the_joint(hidden: list[int]):
    dbm, n = random_dbm(hidden, visible=3), 40_000
    joint = log_joint(dbm).detach()
    space = discrete((sum(dbm.sizes),), 2)
    start = space.points[torch.multinomial(joint.softmax(0), n, replacement=True)]
    h, p = dbm.gibbs(dbm.layers_of(start))
    statistic, critical, words = follow(torch.cat(h, 1), space, torch.log_softmax(joint, 0))
    assert statistic < critical, words
    assert all((a != b).any() for a, b in zip(h, dbm.layers_of(start), strict=True)), "every layer moves"
    for i, (drawn, mean) in enumerate(zip(h, p, strict=True)):
        torch.testing.assert_close(mean, drawn if i % 2 == 0 else dbm.probability(h, i))


def test_chains_from_data_end_in_the_machines_distribution():
    dbm, n = random_dbm([3, 2, 3], seed=3), 20_000
    x = torch.rand(n, *dbm.shape).round()
    state = dbm.chain_at(x)
    assert torch.equal(dbm.chain_example(state), x) and set(state.unique().tolist()) == {0.0, 1.0}
    end = dbm.chain_step(state, 40)
    statistic, critical, words = follow(dbm.chain_example(end), discrete(dbm.shape, 2), log_visible(dbm).detach())
    assert statistic < critical, words
    assert torch.equal(dbm.chain_step(state, 0), state)


def test_samples_and_completions_follow_the_enumerated_distribution():
    dbm, n = random_dbm([3, 2, 3], seed=3), 20_000
    with torch.no_grad():  # a unit that turns all bits on or off together
        dbm.rbm(1).weight[0], dbm.rbm(1).hidden_bias[0] = 3.0, -6.0
        dbm.rbm(1).visible_bias.fill_(-1.5)
    space, log_p = discrete(dbm.shape, 2), log_visible(dbm).detach()
    statistic, critical, words = follow(dbm.sample(n, burn_in=100), space, log_p)
    assert statistic < critical, words
    known = torch.tensor([True, False, True, False]).expand(n, 1, 1, 4)
    x = torch.tensor([1.0, math.nan, 0.0, math.nan]).expand(n, 1, 1, 4)
    dbm.burn_in = 100
    completed = dbm.complete(x, known)
    fits = (space.points[:, 0, 0, 0] == 1) & (space.points[:, 0, 0, 2] == 0)
    statistic, critical, words = follow(completed, space, torch.log_softmax(log_p.masked_fill(~fits, -math.inf), 0))
    assert statistic < critical, words
    free = log_p.exp().view(2, 2, 2, 2).sum((1, 3), keepdim=True).expand(2, 2, 2, 2).flatten()  # known bits summed out
    alone = torch.where(fits, free, 0.0)
    statistic, critical, _ = follow(completed, space, (alone / alone.sum()).log())
    assert statistic > critical, "what is known must matter for the test to tell anything"


def test_annealing_finds_log_z_within_its_interval_both_ways():
    assembly = build("model=dbm", "model.hidden=[5,4,3]", "data=bars")
    dbm = assembly.model
    assert isinstance(dbm, DBM)
    with torch.no_grad():
        for p in dbm.parameters():
            p.copy_(torch.randn_like(p))
    subject = Subject(dbm.eval(), assembly.pipeline, "train")

    @torch.no_grad()
    def found(**settings: bool) -> list[Finding]:
        torch.manual_seed(1)
        return list(Bound(draws=1, chains=400, schedule=[[1.0, 300]], **settings)(subject))  # type: ignore[list-item]

    (exact,), (annealed, backwards) = found(), found(exact=False)
    assert [f.kind for f in (exact, annealed, backwards)] == ["dbm-bound", "dbm-bound", "reverse-dbm-bound"]
    log_z = torch.logsumexp(log_joint(dbm), 0).item()
    assert exact.settings["log_partition"] == pytest.approx(log_z, abs=1e-4)
    for finding, way in ((annealed, "ais"), (backwards, "reverse-ais")):
        low, high = (finding.settings[f"log_partition_{side}"] for side in ("low", "high"))
        assert finding.settings["partition"] == way and low < log_z < high and high - low < 0.3
        shift = finding.settings["log_partition"] - exact.settings["log_partition"]
        assert finding.value == pytest.approx(exact.value - shift, abs=1e-4) and shift != 0
    assert [f.kind for f in found(exact=False, reverse=False)] == ["dbm-bound"]


# --- pretraining ------------------------------------------------------------------------------------------------------


def test_layers_hear_their_neighbour_twice_where_another_will_come():
    dbm = random_dbm([3, 2, 5])
    doubled = [(2.0, 1.0), (2.0, 2.0), (1.0, 2.0)]
    for i, (up, down) in enumerate(doubled, 1):
        layer = dbm.rbm(i)
        v, h = torch.rand(6, layer.visible).round(), torch.rand(6, layer.hidden).round()
        field = layer.hidden_bias + v @ layer.weight.t()
        torch.testing.assert_close(layer.hidden_probability(v), torch.sigmoid(up * field))
        field = layer.visible_bias + h @ layer.weight
        torch.testing.assert_close(layer.visible_probability(h).flatten(1), torch.sigmoid(down * field))


def test_the_machine_is_composed_of_its_layers_as_the_paper_says():
    """Of RBMs with tied copies, R_1 v + r_1 and so on, every inner field is half the sum of those from either side."""
    dbm = random_dbm([3, 2, 5])
    h = [torch.rand(6, n).round() for n in dbm.sizes]
    for i in range(1, dbm.depth):
        below = torch.logit(dbm.rbm(i).hidden_probability(h[i - 1]))
        above = torch.logit(dbm.rbm(i + 1).visible_probability(h[i + 1]))
        torch.testing.assert_close(dbm.probability(h, i), torch.sigmoid((below + above) / 2))
    torch.testing.assert_close(dbm.probability(h, 0), dbm.rbm(1).visible_probability(h[1]).flatten(1))
    torch.testing.assert_close(dbm.probability(h, 3), dbm.rbm(3).hidden_probability(h[2]))


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_a_doubled_layer_learns_by_the_energy_of_its_copies(up: int, down: int):
    """F of tied copies, by a sum over the hidden states, and its gradient, of which `energy_gradient` is a share."""
    torch.manual_seed(0)
    layer = DoubledRBM((3,), 2, up, down)
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    v, h = states(3, torch.zeros(())), states(2, torch.zeros(()))
    copies = max(up, down)
    own, other = (v @ layer.visible_bias)[:, None], h @ layer.hidden_bias + v @ layer.weight.t() @ h.t()
    joint = copies * own + up * other  # h twice: both copies are summed over, each on its own
    expected = -torch.logsumexp(joint, 1) if down <= up else -copies * own[:, 0] - 2 * torch.logsumexp(other, 1)
    torch.testing.assert_close(layer.free_energy(v), expected)
    x, chain = v[:5], v[3:]
    loss = layer.free_energy(x).mean() - layer.free_energy(chain).mean()
    wanted = dict(zip(dict(layer.named_parameters()), torch.autograd.grad(loss, list(layer.parameters())), strict=True))
    found = layer.energy_gradient((x, layer.hidden_probability(x)), (chain, layer.hidden_probability(chain)))
    for name, g in wanted.items():
        torch.testing.assert_close(copies * found[name], g)


def test_the_whole_begins_where_the_layers_ended():
    """Layers learn one after the other, on the doubled pass up; joint training takes them as they are."""
    assembly = build("model=dbm", "model.hidden=[5,4]", "data=bars")
    model, objective, batch = assembly.model, assembly.objective, assembly.pipeline.batch(0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    parts = [[u.part for u in objective(model, batch, t) if u.grads is not None] for t in (0.0, 0.2, 0.3, 0.45, 0.6)]
    assert parts == [["layer1"], ["layer1"], ["layer2"], ["layer2"], [""]]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    greedy = Greedy([5, 4], CD())
    x = model.upward(batch.x, 2)  # type: ignore[operator]
    torch.testing.assert_close(x, model.layer1.hidden_probability(batch.x))  # type: ignore[union-attr, operator]
    torch.manual_seed(0)
    (update,) = greedy(model, batch, 0.7)  # type: ignore[arg-type]
    torch.manual_seed(0)
    (alone,) = CD()(model.layer2, Batch(x), 0.4)  # type: ignore[arg-type]
    assert update.grads is not None and alone.grads is not None
    assert all(torch.equal(update.grads[name], g) for name, g in alone.grads.items())


# --- joint training ---------------------------------------------------------------------------------------------------


@MACHINES
@pytest.mark.parametrize("centering", [None, 1.0])
def test_the_expected_joint_gradient_is_that_of_the_bound(hidden: list[int], centering: float | None):
    """By autograd through -mean E_μ[-E] - H(μ) + log Z, enumerated, with μ where mean field has come to."""
    dbm = random_dbm(hidden, scale=0.6)
    data = Batch(torch.rand(7, 1, 1, 4).round())
    objective = JointDBM(dbm.shape, hidden, particles=2000, k=8, sweeps=100, centering=centering)
    mu = [data.x.flatten(1).double(), *(m.double() for m in dbm.mean_field(data.x, 100, 0))]
    weights, biases = couplings(dbm)
    loss = torch.logsumexp(log_joint(dbm, (weights, biases)), 0) - minus_energy((weights, biases), mu).mean()
    exact = torch.autograd.grad(loss, [*weights, *biases])
    expected_weights, expected_biases = list(exact[: dbm.depth]), list(exact[dbm.depth :])
    if centering is not None:
        means = [m.mean(0).float() for m in mu]
        expected_weights, expected_biases = centred(expected_weights, expected_biases, means)
    draws = []
    for step in range(50):
        (update,) = objective(dbm, data, 0.0)
        assert update.grads is not None
        g = update.grads
        shared = [g[f"layer{i}.hidden_bias"] + g[f"layer{i + 1}.visible_bias"] for i in range(1, dbm.depth)]
        own = [g["layer1.visible_bias"], *shared, g[f"layer{dbm.depth}.hidden_bias"]]
        if step >= 10:  # by then the chains have found the distribution of a model that stands still
            flat = [t.flatten() for t in [*(g[f"layer{i + 1}.weight"] for i in range(dbm.depth)), *own]]
            draws.append(torch.cat(flat))
    found = torch.stack(draws)
    expected = torch.cat([t.flatten() for t in [*expected_weights, *expected_biases]])
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - expected).abs() < 5 * error + 1e-6).all()
    assert error.max() < 0.01 < expected.abs().max()


def test_chains_go_on_from_update_to_update():
    dbm, data = random_dbm([3, 4]), Batch(torch.rand(7, 1, 1, 4).round())
    objective = JointDBM(dbm.shape, [3, 4], particles=6, k=2)
    h = dbm.layers_of(objective.chains.clone())
    for seed in (1, 2):
        torch.manual_seed(seed)
        list(objective(dbm, data, 0.0))
        torch.manual_seed(seed)
        for _ in range(2):
            h, _ = dbm.gibbs(h)
        assert torch.equal(objective.chains, torch.cat(h, 1))
        assert torch.equal(objective.fantasies(dbm), h[0].view(6, 1, 1, 4))


def test_a_centred_step_is_one_of_the_centred_machine():
    dbm = random_dbm([3, 2, 3])
    weights, biases = ([p.detach().double() for p in group] for group in couplings(dbm))
    means = [torch.rand(n).double() for n in dbm.sizes]
    data = states(sum(dbm.sizes), torch.zeros((), dtype=torch.float64))[::37].split(dbm.sizes, 1)

    def loss(W: list[Tensor], c: list[Tensor]) -> Tensor:  # any function of the parameters, not linear in them
        fields = [h @ g for h, g in zip(data, c, strict=True)]
        return sum((f + h.sum(1)).sin().sum() for f, h in zip(fields, data, strict=True)) + sum(
            torch.einsum("nj,ji,ni->n", high, w, low).tanh().sum()
            for w, (low, high) in zip(W, pairwise(data), strict=True)
        )  # type: ignore[return-value]

    def usual(W: list[Tensor], c: list[Tensor], sign: float = -1.0) -> list[Tensor]:
        """c from c', or with sign 1 c' from c."""
        c = list(c)
        for i, w in enumerate(W):
            c[i] = c[i] + sign * (means[i + 1] @ w)
            c[i + 1] = c[i + 1] + sign * (w @ means[i])
        return c

    def gradient(W: list[Tensor], c: list[Tensor], through: bool) -> tuple[list[Tensor], list[Tensor]]:
        leaves = [p.clone().requires_grad_() for p in [*W, *c]]
        mine, own = leaves[: len(W)], leaves[len(W) :]
        found = torch.autograd.grad(loss(mine, usual(mine, own) if through else own), leaves)
        return list(found[: len(W)]), list(found[len(W) :])

    shifted = usual(weights, biases, sign=1.0)
    step_W, step_c = gradient(weights, shifted, through=True)
    new_W = [w - g for w, g in zip(weights, step_W, strict=True)]
    new_c = usual(new_W, [c - g for c, g in zip(shifted, step_c, strict=True)])
    found_W, found_c = centred(*gradient(weights, biases, through=False), means)
    for old, g, new in zip([*weights, *biases], [*found_W, *found_c], [*new_W, *new_c], strict=True):
        torch.testing.assert_close(old - g, new)


def test_sparsity_pulls_units_to_their_target_and_max_norm_holds_weights():
    dbm, data = random_dbm([3, 4]), Batch(torch.rand(7, 1, 1, 4).round())
    means = [data.x.flatten(1).mean(0), *(m.mean(0) for m in dbm.mean_field(data.x, 10, 0))]
    grads, steps = [], {"sparsity": [0.2, 0.1], "sparsity_cost": 0.3, "sparsity_damping": 0.6, "max_norm": 1.0}
    for options in ({}, steps):
        torch.manual_seed(0)
        objective = JointDBM(dbm.shape, [3, 4], particles=5, **options)  # type: ignore[arg-type]
        updates = objective(dbm, data, 0.0)
        grads.append(next(updates).grads)
    plain, sparse = grads
    assert plain is not None and sparse is not None
    for i, target in ((1, 0.2), (2, 0.1)):
        pull = 0.3 * (0.6 * target + 0.4 * means[i] - target)  # running means begin at the target
        change = sparse[f"layer{i}.weight"] - plain[f"layer{i}.weight"]
        torch.testing.assert_close(change, torch.outer(pull, means[i - 1]))
        bias = sparse[f"layer{i}.hidden_bias"] - plain[f"layer{i}.hidden_bias"]
        torch.testing.assert_close(bias, pull / 2 if i == 1 else pull)
    before = [dbm.rbm(i).weight.detach().clone() for i in (1, 2)]
    assert next(updates, None) is None  # the step would have been taken by now
    for i, weight in enumerate(before, 1):
        norms = weight.norm(dim=1)
        assert norms.max() > 1
        expected = weight * (1 / norms).clamp(max=1)[:, None]
        torch.testing.assert_close(dbm.rbm(i).weight.detach(), expected, rtol=1e-5, atol=1e-6)


def test_an_objective_that_does_not_fit_says_so():
    with pytest.raises(UsageError, match=r"sparsity=\[0.2\]: 1 targets for 2 hidden layers"):
        JointDBM((4,), [3, 4], sparsity=[0.2])
    with pytest.raises(UsageError, match=r"hidden=\[3, 5\]: the model has layers of \[3, 4\]"):
        JointDBM((4,), [3, 5]).require(DBM((4,), [3, 4]))


@pytest.mark.parametrize("overrides", [[], ["objective=dbm_joint"]], ids=["pretrained", "centred"])
def test_training_comes_near_the_bars(overrides: list[str]):
    """Independent bits have -9 log 2 a bar or stripe, the best of models minus the entropy of the set."""
    assembly = build("model=dbm", "model.hidden=[8,4]", "data=bars", *overrides)
    model, objective = assembly.model, assembly.objective
    assert isinstance(model, DBM)
    optimizer = {part: torch.optim.SGD(model.get_submodule(part).parameters(), 0.5, 0.5) for part in objective.parts}
    steps = 800
    for step in range(steps):
        for update in objective(model, assembly.pipeline.batch(step), step / steps):
            if update.grads is not None:
                for name, g in update.grads.items():
                    model.get_submodule(update.part).get_parameter(name).grad = (1 - step / steps) * g
                optimizer[update.part].step()
    x, p = bars_distribution(3)
    best, independent = float((p * p.log()).sum()), -9 * math.log(2)
    found = float((p * model.log_prob(x.float())).sum())
    assert found > (best + independent) / 2
    scores = objective.validate(model, Batch(x.float()))
    assert {name: score.kind for name, score in scores.items()} == {
        "variational_free_energy": "variational-free-energy", "bound": "dbm-bound", "log_likelihood": "exact",
    }  # fmt: skip
    assert (scores["bound"].values <= scores["log_likelihood"].values + 1e-4).all()


# --- the classifier ---------------------------------------------------------------------------------------------------


@MACHINES
def test_the_network_begins_as_a_sweep_of_mean_field(hidden: list[int]):
    torch.manual_seed(0)
    dbm, other = DBM((1, 1, 4), hidden, classes=3), random_dbm(hidden)
    dbm.load_state_dict(other.state_dict(), strict=False)
    v = all_visible(dbm)
    dbm.sweeps, dbm.tolerance = 3, 0.0
    with pytest.raises(UsageError, match="knows no p"):
        dbm.log_class(v)
    dbm.begin_classifier()
    weights, biases = couplings(dbm)
    mu = [v.flatten(1), *dbm.mean_field(v)]
    for i in range(1, dbm.depth + 1):  # the lowest first, as a sweep goes
        field = biases[i] + mu[i - 1] @ weights[i - 1].t()
        mu[i] = torch.sigmoid(field + mu[i + 1] @ weights[i] if i < dbm.depth else field)
    assert isinstance(dbm.classifier, Sweep)
    torch.testing.assert_close(dbm.log_class(v), torch.log_softmax(dbm.classifier.top(mu[-1]), 1))
    for found, fourth in zip(mu[1:], dbm.mean_field(v, 4, 0.0), strict=True):
        torch.testing.assert_close(found.detach(), fourth)


def test_a_classifier_learns_digits_and_leaves_the_machine_alone():
    words = ["model=dbm", "model.hidden=[30,20]", "model.grey=true", "objective=dbm_classifier", "data=digits"]
    assembly = build(*words, "data.batch_size=100")
    model, objective = assembly.model, assembly.objective
    assert isinstance(model, DBM) and model.support == "unit" and "classifier" in objective.parts
    adam = {part: torch.optim.Adam(model.get_submodule(part).parameters(), 0.01) for part in objective.parts}
    steps, kept = 300, None
    for step in range(steps):
        for update in objective(model, assembly.pipeline.batch(step), step / steps):
            part = model.get_submodule(update.part)
            if update.part == "classifier" and kept is None:
                kept = {name: p.detach().clone() for name, p in model.named_parameters() if "layer" in name}
            if update.loss is not None:
                part.zero_grad()
                update.loss.backward()
            for name, g in (update.grads or {}).items():
                part.get_parameter(name).grad = g
            if update.loss is not None or update.grads is not None:
                adam[update.part].step()
    assert kept is not None and all(torch.equal(model.get_parameter(name), p) for name, p in kept.items())
    held = next(assembly.pipeline.evaluation("validation", 200, 200))
    error = objective.validate(model, held)["classification_error"].values.mean()
    assert error < 0.9 / 2  # by chance a tenth of them would be right
    x = model.sample(5)
    assert x.min() > 0 and x.max() < 1  # probabilities, as the data are


# --- planted faults ---------------------------------------------------------------------------------------------------


class TooHigh(DBM):
    def log_bound(self, x: Tensor) -> Tensor:
        return super().log_bound(x) + 1


class WrongBase(DBM):
    def tempered(self, mean: Tensor, smoothing: float = 0.05) -> TemperedPath:
        path = super().tempered(mean, smoothing)
        path.log_partition += math.log(2)  # of a unit too many
        return path


class Colder(DBM):
    """Its annealing draws from the machine itself at every β."""

    def tempered(self, mean: Tensor, smoothing: float = 0.05) -> TemperedPath:
        path = super().tempered(mean, smoothing)
        move = path.transition
        path.transition = lambda state, beta: move(state, 1.0)  # type: ignore[method-assign]
        return path


@pytest.mark.parametrize(
    ("kind", "claim"),
    [
        (DBM, None),
        (TooHigh, "the bound lies below log p(x)"),
        (WrongBase, "the path to log Z ends where it says"),
        (Colder, "a step of the path keeps p_β"),
    ],
)
def test_faults_of_bound_and_path_are_found(kind: type[DBM], claim: str | None):
    torch.manual_seed(0)
    x, p = bars_distribution(3)
    batches = [Batch(x[torch.multinomial(p.float(), 32, replacement=True)].float()) for _ in range(10)]
    optim = SGD(0.1, 0.0, "constant", 0.0, 0.0, None, 0.5, False)
    case = case_of(kind((1, 3, 3), [6, 4]), JointDBM((1, 3, 3), [6, 4]), optim, batches, DBM, 2, n=4000)  # type: ignore[arg-type]
    for parameter in case.model.parameters():
        parameter.data.mul_(3)  # a weak machine is much like its base
    claims = {truth.claim for truth in truths() if Bounded in truth.about}
    assert len(claims) == 3
    assert {check.name for check in prove(case, claims) if not check.held} == ({claim} if claim else set())
