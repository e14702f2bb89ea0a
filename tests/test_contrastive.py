"""Relatives of contrastive divergence: rising k, fast weights, parallel tempering, and what refines an update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from helpers import SMALL, build
from torch import Tensor

from gentrain import config, noise
from gentrain.batch import Batch
from gentrain.device import Device
from gentrain.errors import UsageError
from gentrain.models.enumeration import states
from gentrain.models.harmonium import Bilinear, LinearRBM
from gentrain.models.label_rbm import LabelRBM
from gentrain.models.rbm import RBM
from gentrain.objectives.contrastive import CD, PCD, ClosedForm
from gentrain.objectives.fast_weights import FPCD
from gentrain.objectives.refinements import Refinements
from gentrain.objectives.tempering import Tempering
from gentrain.optim import SGD, schedule_factor
from gentrain.parts import Part
from gentrain.tasks.check import exact_resume
from gentrain.truth.objectives import exact_gradient
from gentrain.truth.spaces import chi_square, critical
from gentrain.update import Objective, Update

V, H = 5, 4
SHAPE = (1, 1, V)


def random_rbm(seed: int = 0, scale: float = 0.7, visible: int = V) -> RBM:
    torch.manual_seed(seed)
    rbm = RBM((1, 1, visible), H)
    with torch.no_grad():
        for p in rbm.parameters():
            p.copy_(scale * torch.randn_like(p))
    return rbm


def examples(n: int = 7, seed: int = 1, visible: int = V) -> Tensor:
    return torch.rand(n, 1, 1, visible, generator=torch.Generator().manual_seed(seed)).round()


def log_joint(rbm: RBM, beta: float = 1.0) -> Tensor:
    """-β E(v, h) for every v and h, (2^visible, 2^hidden), in float64."""
    W, b, c = rbm.weight.detach().double(), rbm.visible_bias.detach().double(), rbm.hidden_bias.detach().double()
    v, h = states(rbm.visible, W), states(rbm.hidden, W)
    return beta * ((v @ b)[:, None] + h @ c + v @ W.t() @ h.t())


def flat(grads: dict[str, Tensor]) -> Tensor:
    return torch.cat([grads[name].flatten() for name in ("weight", "visible_bias", "hidden_bias")])


def grads(objective: Objective, rbm: Bilinear, x: Tensor, progress: float = 0.0) -> dict[str, Tensor]:
    (update,) = objective(rbm, Batch(x), progress)
    assert update.grads is not None
    return dict(update.grads)


def mean_and_error(draw: Callable[[], dict[str, Tensor]], repeats: int) -> tuple[Tensor, Tensor]:
    draws = torch.stack([flat(draw()) for _ in range(repeats)])
    return draws.mean(0), draws.std(0) / repeats**0.5


def descend(objective: Objective, rbm: Bilinear, batches: Iterator[Tensor], rate: float = 0.1) -> None:
    """Plain descent, as the trainer does it: each update is carried out before the objective goes on."""
    for x in batches:
        for update in objective(rbm, Batch(x), 0.0):
            carry_out(update, rbm, rate)


def carry_out(update: Update, rbm: Bilinear, rate: float) -> None:
    assert update.grads is not None
    with torch.no_grad():
        for name, g in update.grads.items():
            rbm.get_parameter(name).sub_(g, alpha=rate)


# --- k that rises, and the rate beside it -----------------------------------------------------------------------------


def test_k_is_that_of_salakhutdinov_and_murray():
    """250 epochs of 600 updates: CD = ceil(epoch/10) and a rate of 0.05/CD, epochs counted from 1."""
    cd = CD(k=1, k_final=25)
    for epoch in range(1, 251):
        for update in (0, 300, 599):
            t = ((epoch - 1) * 600 + update) / 150_000
            k = math.ceil(epoch / 10)
            assert cd.steps(t) == k
            assert schedule_factor("harmonic", t, final=0.04) == 1 / k
    assert [CD(k=3).steps(t) for t in (0.0, 0.999)] == [3, 3]


def test_cd_takes_that_many_steps():
    rbm, x = random_rbm(), examples()
    for progress, k in ((0.0, 2), (0.4, 3), (0.99, 4)):
        torch.manual_seed(2)
        rising = grads(CD(k=2, k_final=4), rbm, x, progress)
        torch.manual_seed(2)
        assert torch.equal(flat(rising), flat(grads(CD(k=k), rbm, x)))


def test_cd_has_its_known_bias():
    """E[CD-k] has v_k ~ T^k from the data, T(v'|v) = Σ_h p(h|v) p(v'|h), which a table gives."""
    rbm, x, k = random_rbm(3, 2.0), examples(), 2
    joint = log_joint(rbm)
    step = torch.softmax(joint, 1) @ torch.softmax(joint, 0).t()  # (v, v')
    v = states(V, joint)
    start = (x.view(-1, 1, V).double() == v).all(-1).double().mean(0)
    end = start @ torch.linalg.matrix_power(step, k)
    p = torch.softmax(joint, 1) @ states(H, joint)

    def statistics(weights: Tensor) -> Tensor:
        return torch.cat([(p.t() * weights @ v).flatten(), weights @ v, weights @ p])

    wanted = statistics(end) - statistics(start)
    many = x.repeat(200, 1, 1, 1)
    mean, error = mean_and_error(lambda: grads(CD(k=k), rbm, many), 60)
    assert ((mean - wanted).abs() < 5 * error + 1e-5).all()
    exact = flat(exact_gradient(rbm, x, v.float().view(-1, *SHAPE)))
    assert ((wanted - exact).abs() > 20 * error).any(), "the bias is too small for this test to see it"


# --- fast weights -----------------------------------------------------------------------------------------------------


def test_fast_weights_of_rate_0_are_pcd_bit_for_bit():
    ends = []
    for make in (lambda: PCD(H, k=2, particles=9), lambda: FPCD(SHAPE, H, rate=0.0, k=2, particles=9)):
        rbm = random_rbm(4)
        torch.manual_seed(5)
        objective = make()
        descend(objective, rbm, (examples(seed=i) for i in range(20)))
        ends.append([*rbm.state_dict().values(), objective.particles])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_fast_weights_are_their_formula():
    rbm, rate, decay = random_rbm(6), 0.3, 0.8
    torch.manual_seed(7)
    fpcd = FPCD(SHAPE, H, rate=rate, decay=decay, particles=9)
    other, h = random_rbm(6), fpcd.particles.clone()
    fast = {name: torch.zeros_like(p) for name, p in rbm.named_parameters()}
    for i in range(4):
        x = examples(seed=i)
        torch.manual_seed(i)
        g = grads(fpcd, rbm, x)
        torch.manual_seed(i)
        with torch.no_grad():
            for name, p in other.named_parameters():
                p.copy_(rbm.get_parameter(name) + fast[name])
            v = other.sample_visible(h)
            p_h = other.hidden_probability(v)
            h = other.sample_hidden(p_h)
            wanted = rbm.energy_gradient((x, rbm.hidden_probability(x)), (v, p_h))
        fast = {name: decay * f - rate * wanted[name] for name, f in fast.items()}
        for name, value in wanted.items():
            torch.testing.assert_close(g[name], value)
            torch.testing.assert_close(fpcd.fast[name], fast[name])
        carry_out(Update(grads=g), rbm, 0.1)
    assert torch.equal(fpcd.particles, h)
    assert {*fpcd.state_dict()} == {"particles", "weight", "visible_bias", "hidden_bias"}


def test_fast_weights_fade_where_nothing_feeds_them():
    rbm, fpcd = random_rbm(8), FPCD(SHAPE, H, rate=0.0, particles=3)
    for fast in fpcd.fast.values():
        fast.fill_(1.0)
    for i in range(40):
        grads(fpcd, rbm, examples(seed=i))
    for fast in fpcd.fast.values():
        torch.testing.assert_close(fast, torch.full_like(fast, 0.95**40))


def test_fast_weights_leave_the_model_as_it_is():
    rbm, fpcd = random_rbm(9), FPCD(SHAPE, H, rate=1.0, particles=3)
    before = {name: p.clone() for name, p in rbm.named_parameters()}
    grads(fpcd, rbm, examples())
    grads(fpcd, rbm, examples())
    assert all(torch.equal(p, before[name]) and p.requires_grad for name, p in rbm.named_parameters())


# --- tempering --------------------------------------------------------------------------------------------------------


def test_a_single_temperature_is_pcd():
    rbm, x = random_rbm(10), examples()
    torch.manual_seed(11)
    tempering, pcd = Tempering(H, k=3, particles=6, replicas=1), PCD(H, k=3, particles=6)
    pcd.particles.copy_(tempering.particles[0])
    for i in range(3):
        torch.manual_seed(i)
        ours = grads(tempering, rbm, x)
        torch.manual_seed(i)
        torch.testing.assert_close(flat(ours), flat(grads(pcd, rbm, x)))
    assert torch.equal(tempering.particles[0], pcd.particles)


def test_a_step_keeps_every_temperature_s_distribution():
    """From exact draws at each β, one update of Gibbs steps and exchanges: the laws stay what they were."""
    rbm, n = random_rbm(12, 1.5), 20_000
    torch.manual_seed(13)
    tempering = Tempering(H, particles=n, replicas=4, lowest=0.2)
    assert tempering.betas.tolist() == pytest.approx([1.0, 1 - 0.8 / 3, 1 - 1.6 / 3, 0.2])
    laws = [torch.softmax(torch.logsumexp(log_joint(rbm, float(beta)), 0), 0) for beta in tempering.betas]
    for place, law in enumerate(laws):
        tempering.particles[place] = states(H, rbm.weight)[torch.multinomial(law, n, replacement=True)]
    with torch.no_grad():
        v, swaps = tempering.advance(rbm)
    assert 0.3 < swaps < 0.95
    code = torch.tensor([1.0, 2, 4, 8])
    for place, law in enumerate(laws):
        counts = torch.bincount((tempering.particles[place] @ code).long(), minlength=1 << H)
        statistic, freedom = chi_square(counts, n * law)
        assert statistic < critical(freedom), f"β = {float(tempering.betas[place]):.2f}"
    p_v = torch.softmax(torch.logsumexp(log_joint(rbm), 1), 0)
    counts = torch.bincount((v.view(n, V) @ torch.tensor([1.0, 2, 4, 8, 16])).long(), minlength=1 << V)
    statistic, freedom = chi_square(counts, n * p_v)
    assert statistic < critical(freedom)


def test_both_layers_of_a_replica_change_places_together():
    """Hidden units that copy the first visible one, at any of these temperatures: chains must not be mixed up."""
    rbm = random_rbm()
    with torch.no_grad():
        rbm.weight.zero_()[:, 0] = 80.0
        rbm.visible_bias.zero_()[0] = -160.0
        rbm.hidden_bias.fill_(-40.0)
    torch.manual_seed(33)
    tempering = Tempering(H, particles=500, replicas=3, lowest=0.5)
    with torch.no_grad():
        v, swaps = tempering.advance(rbm)
    assert swaps > 0.2 and 0.2 < v[..., 0].mean() < 0.8
    assert torch.equal(tempering.particles[0], v.view(500, V)[:, :1].expand(-1, H))


def test_places_are_exchanged_by_metropolis():
    """Two temperatures, 1 and 1/2: a swap has probability min(1, exp((E_1 - E_2)/2))."""
    n = 40_000
    tempering = Tempering(1, particles=n, replicas=2, lowest=0.5)
    for first, second in ((1.0, 3.0), (3.0, 1.0), (2.0, 2.0)):
        energy = torch.tensor([[first], [second]]).repeat(1, n)
        place, swaps = tempering.exchange(energy)
        wanted = min(1.0, math.exp((first - second) / 2))
        assert float(swaps) == pytest.approx(wanted, abs=5 * 0.5 / n**0.5)
        assert float(place[0].float().mean()) == pytest.approx(wanted, abs=5 * 0.5 / n**0.5)
        assert torch.equal(place.sum(0), torch.ones(n).long())
        assert float(energy[0].mean()) == pytest.approx(wanted * second + (1 - wanted) * first, abs=0.05)


def test_tempering_mixes_where_gibbs_does_not():
    """All units on, or all off: two modes, 18 nats apart by Gibbs steps. All chains begin in the less likely one."""
    rbm, w, n = random_rbm(visible=6), 3.0, 400
    with torch.no_grad():
        rbm.weight.fill_(w)
        rbm.visible_bias.fill_(0.15 - w * H / 2)
        rbm.hidden_bias.fill_(-w * 6 / 2)
    v = states(6, rbm.weight)
    on = torch.softmax(torch.logsumexp(log_joint(rbm), 1), 0) @ v[:, 0].double()
    assert 0.6 < on < 0.8
    x = v.view(-1, 1, 1, 6)
    torch.manual_seed(14)
    pcd, tempering = PCD(H, particles=n), Tempering(H, particles=n, replicas=8)
    pcd.particles.zero_()
    tempering.particles.zero_()
    with torch.no_grad():
        for _ in range(150):
            stuck, _ = pcd.advance(rbm)
            moved, _ = tempering.advance(rbm)
        share = torch.stack([tempering.advance(rbm)[0].view(n, 6)[:, 0] for _ in range(50)]).mean()
    assert stuck.view(n, 6)[:, 0].mean() < 0.05, "Gibbs mixes: this says nothing"
    assert float(share) == pytest.approx(float(on), abs=0.05)
    assert float(moved.view(n, 6)[:, 0].mean()) == pytest.approx(float(on), abs=5 * 0.5 / n**0.5)
    exact = flat(exact_gradient(rbm, x[:9], x))
    mean, error = mean_and_error(lambda: grads(tempering, rbm, x[:9]), 60)
    assert (mean - exact).norm() < 0.1 * exact.norm() + 5 * error.norm()


# --- refinements ------------------------------------------------------------------------------------------------------


def pair(rbm: RBM, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Data and chains: visible states and E[h | v]."""
    x, v = examples(6, seed), examples(9, seed + 1)
    with torch.no_grad():
        return (x, rbm.hidden_probability(x)), (v, rbm.hidden_probability(v))


def test_centering_is_descent_on_the_centered_machine_s_parameters():
    """∇ of E = -(v-μ)ᵀb' - (h-λ)ᵀc' - (h-λ)ᵀW(v-μ), and the step in b = b' - Wᵀλ, c = c' - Wμ that it makes."""
    rbm, nu = random_rbm(15), 0.2
    refine = Refinements(SHAPE, H, centering=nu)
    mu, lam = torch.full((V,), 0.5), torch.full((H,), 0.5)
    for seed in (16, 18):
        (x, p), (v, q) = pair(rbm, seed)
        got = refine.gradient(rbm.energy_gradient((x, p), (v, q)), x, p)
        x, v = x.flatten(1), v.flatten(1)
        mu, lam = (1 - nu) * mu + nu * x.mean(0), (1 - nu) * lam + nu * p.mean(0)
        W = (q - lam).t() @ (v - mu) / len(v) - (p - lam).t() @ (x - mu) / len(x)
        b, c = v.mean(0) - x.mean(0), q.mean(0) - p.mean(0)
        for name, wanted in (("weight", W), ("visible_bias", b - lam @ W), ("hidden_bias", c - W @ mu)):
            torch.testing.assert_close(got[name], wanted, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(refine.visible_mean, mu)
    torch.testing.assert_close(refine.hidden_mean, lam)


@pytest.mark.parametrize("layer", ["visible", "hidden"])
def test_centering_does_not_care_which_state_of_a_bit_is_called_on(layer: str):
    """A machine and the same with bits flipped are one distribution, and stay so under centered updates alone."""
    rbm, flip = random_rbm(20), (torch.arange(V if layer == "visible" else H) % 2).bool()
    sign = 1 - 2 * flip.float()

    def flipped(W: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if layer == "visible":
            return W * sign, b * sign, c + W[:, flip].sum(1)
        return W * sign[:, None], b + W[flip].sum(0), c * sign

    (x, p), (v, q) = pair(rbm, 21)
    x, v = x.flatten(1), v.flatten(1)

    def turned(t: Tensor) -> Tensor:
        return torch.where(flip, 1 - t, t)

    other = ((turned(x), p), (turned(v), q)) if layer == "visible" else ((x, turned(p)), (v, turned(q)))
    plain, mirrored = (rbm.energy_gradient(*t) for t in (((x, p), (v, q)), other))
    refine = [Refinements(SHAPE, H, centering=0.1) for _ in range(2)]
    for i, (g, data) in enumerate(((plain, (x, p)), (mirrored, other[0]))):
        got = refine[i].gradient(g, *data)
        if i == 0:
            wanted = flipped(got["weight"], got["visible_bias"], got["hidden_bias"])
        else:
            for name, value in zip(("weight", "visible_bias", "hidden_bias"), wanted, strict=True):
                torch.testing.assert_close(got[name], value, atol=1e-6, rtol=1e-4)
    without = flipped(plain["weight"], plain["visible_bias"], plain["hidden_bias"])
    assert not torch.allclose(mirrored["weight"], without[0], atol=1e-3), "plain updates would pass as well"


def test_sparsity_pulls_on_biases_and_weights():
    rbm, target, cost, damping = random_rbm(22), 0.1, 0.5, 0.9
    refine = Refinements(SHAPE, H, sparsity=target, sparsity_cost=cost, sparsity_damping=damping)
    q = torch.full((H,), target)
    for seed in (23, 25):
        data, chain = pair(rbm, seed)
        plain = rbm.energy_gradient(data, chain)
        got = refine.gradient(plain, *data)
        q = damping * q + (1 - damping) * data[1].mean(0)
        torch.testing.assert_close(got["hidden_bias"] - plain["hidden_bias"], cost * (q - target))
        pull = cost * torch.outer(q - target, data[0].flatten(1).mean(0))
        torch.testing.assert_close(got["weight"] - plain["weight"], pull, atol=1e-6, rtol=1e-4)
        assert torch.equal(got["visible_bias"], plain["visible_bias"])
    assert {*refine.state_dict()} == {"activity"}


def test_sparsity_brings_activities_down():
    activities = []
    for refine in (None, Refinements(SHAPE, H, sparsity=0.05, sparsity_cost=1.0)):
        rbm = random_rbm(26, 0.1)
        torch.manual_seed(27)
        descend(CD(refine=refine), rbm, (examples(30, seed=i) for i in range(400)))
        activities.append(float(rbm.hidden_probability(examples(200, seed=1000)).detach().mean()))
    assert activities[0] > 0.3 and activities[1] == pytest.approx(0.05, abs=0.03)


def test_weights_are_bounded_after_the_step_that_leads_beyond():
    rbm, cd = random_rbm(28, 0.1), CD(refine=Refinements(max_norm=1.0))
    with torch.no_grad():
        rbm.weight[0].fill_(3 / V**0.5)
        rbm.weight[1].fill_(0.5 / V**0.5)
    updates = cd(rbm, Batch(examples()), 0.0)
    with torch.no_grad():
        assert float(rbm.weight[0].norm()) == pytest.approx(3)
        step = next(updates).grads
        assert step is not None
        rbm.weight.sub_(step["weight"], alpha=0.2)
        moved = rbm.weight.clone()
        assert next(updates, None) is None
    norms = moved.norm(dim=1, keepdim=True)
    torch.testing.assert_close(rbm.weight.detach(), moved * (1 / norms).clamp(max=1))
    assert norms[0] > 1 > norms[1]


@pytest.mark.parametrize(
    ("make", "model", "words"),
    [
        (lambda: CD(refine=Refinements((3,), 2, sparsity=0.1)), lambda: LinearRBM((3,), 2), "sparsity=0.1: is for bin"),
        (lambda: CD(refine=Refinements((3,), 2, centering=0.1)), lambda: RBM((4,), 2), "3 units, and the model has 4"),
        (lambda: CD(refine=Refinements((3,), 2, sparsity=0.1)), lambda: RBM((3,), 5), "2 units, and the model has 5"),
        (lambda: CD(refine=Refinements((3,), 2, centering=0.1)), lambda: LabelRBM((3,), 4, 2), "3 units, and the .* 7"),
        (lambda: Refinements(centering=0.1), None, r"objective.refine.centering: needs objective.refine.shape"),
        (lambda: CD(k=3, k_final=2), None, r"objective.k_final=2: k rises to it, and begins at objective.k=3"),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable, model: Callable | None, words: str):
    with pytest.raises(UsageError, match=words):
        objective = make()
        assert model is not None
        objective.require(model())


def test_label_units_are_centered_too():
    model, x, y = LabelRBM((1, 1, V), classes=3, hidden=H), examples(), torch.arange(7) % 3
    cd = CD(refine=Refinements(SHAPE, H, classes=3, centering=1.0))
    cd.require(model)
    (update,) = cd(model, Batch(x, y), 0.0)
    assert cd.refine is not None and update.grads is not None
    torch.testing.assert_close(cd.refine.visible_mean[V:], torch.tensor([3 / 7, 2 / 7, 2 / 7]))


# --- momentum and rates -----------------------------------------------------------------------------------------------


def test_momentum_changes_where_it_is_told():
    """v <- m v + g, θ <- θ - v with g = 1: momentum 1/2 for two steps, then 9/10."""
    model = RBM((1,), 1)
    with torch.no_grad():
        model.hidden_bias.zero_()
    sgd = SGD(1.0, 0.0, "constant", 0.0, 0.0, None, 0.5, False, momentum_final=0.9, momentum_switch=0.5)
    part = Part("", model, sgd, None, Device(torch.device("cpu")))
    g = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    seen = []
    for step in range(4):
        part.step(Update(grads=g), 1.0, step, sgd.momentum_at(step / 4))
        seen.append(-float(model.hidden_bias.detach()))
    v1, v2, v3 = 1.0, 1.5, 0.9 * 1.5 + 1
    v4 = 0.9 * v3 + 1
    assert seen == pytest.approx([v1, v1 + v2, v1 + v2 + v3, v1 + v2 + v3 + v4])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optim.schedule=harmonic"], r"optim.final=0: optim.schedule=harmonic .* give e.g. 0.04"),
        (
            [
                "model=deep_autoencoder",
                "optim=sgd",
                "optim.momentum_final=0.9",
                "optim.parts={layer1: {momentum: 0.1}}",
            ],
            r"optim.momentum_final=0.9: is that of eve",
        ),
        (["objective.refine.centering=2"], r"objective.refine.centering=2: must be .* at most 1"),
        (["objective.refine.centring=1"], r"Did you mean 'centering'"),
        (["objective=tempering", "objective.lowest=1"], r"objective.lowest=1: must be .* below 1"),
    ],
)
def test_options_are_checked(overrides: list[str], words: str):
    with pytest.raises(UsageError, match=words):
        build("model=rbm", "data=bars", *overrides)


# --- what all of them promise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["cd", "pcd", "fpcd", "tempering"])
def test_refined_training_resumes_bit_for_bit(objective: str):
    refine = [f"objective.refine.{o}" for o in ("centering=0.1", "sparsity=0.1", "max_norm=1")]
    rising = ["objective.k_final=3"] if objective == "cd" else []
    optim = ["optim.momentum_final=0.9", "optim.momentum_switch=0.5", "optim.schedule=harmonic", "optim.final=0.2"]
    overrides = [*SMALL, "model=rbm", "model.hidden=5", "data=bars", f"objective={objective}", *refine, *rising, *optim]
    differing, _, words = exact_resume(config.compose("train", overrides))
    assert differing == 0, words


@pytest.mark.parametrize(
    "make", [lambda: FPCD(SHAPE, H, rate=0.5, particles=6), lambda: Tempering(H, particles=6, replicas=3)]
)
def test_two_halves_of_a_batch_do_as_the_whole(make: Callable[[], ClosedForm]):
    rbm, x = random_rbm(30), examples(8)
    objective, results, kept = make(), [], []
    state = {name: value.clone() for name, value in objective.state_dict().items()}
    try:
        for rank, world in ((0, 1), (0, 2), (1, 2)):
            noise.shard(rank, world)
            objective.load_state_dict(state)
            torch.manual_seed(31)
            results.append(grads(objective, rbm, x.view(world, -1, *SHAPE)[rank]))
            kept.append(objective.get_buffer("particles").clone())
    finally:
        noise.shard(0, 1)
    for name, whole in results[0].items():
        torch.testing.assert_close((results[1][name] + results[2][name]) / 2, whole)
    assert torch.equal(kept[0], kept[1]) and torch.equal(kept[0], kept[2])


@pytest.mark.parametrize(
    "make", [PCD, Tempering, lambda hidden, particles: FPCD(SHAPE, hidden, 3, particles=particles)]
)
def test_fantasies_are_examples(make: Callable[..., ClosedForm]):
    for model in (random_rbm(32), LabelRBM(SHAPE, classes=3, hidden=H)):
        objective = make(hidden=H, particles=6)
        with torch.no_grad():
            x = objective.fantasies(model)
        assert x is not None and x.shape == (6, *SHAPE) and {*x.unique().tolist()} <= {0.0, 1.0}
    assert CD().fantasies(random_rbm()) is None


def test_validation_takes_the_exact_likelihood_where_it_is_told():
    rbm, x = RBM((1, 4, 4), 14), torch.rand(5, 1, 4, 4).round()
    assert "log_likelihood" not in PCD(14).validate(rbm, Batch(x))
    score = PCD(14, exact=14).validate(rbm, Batch(x))["log_likelihood"]
    assert score.kind == "exact" and torch.equal(score.values, rbm.log_prob(x))
