"""The Gaussian RBM against the mixture of 2^hidden Gaussians that it is, and standardised data."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import annealed_both_ways, build
from torch import Tensor
from torch.distributions import Independent, Normal

from gentrain.batch import Batch
from gentrain.data.pipeline import Pipeline
from gentrain.data.source import Split, make_source
from gentrain.errors import UsageError
from gentrain.evaluation.ais import betas
from gentrain.models.enumeration import states
from gentrain.models.gaussian_rbm import GaussianRBM
from gentrain.models.standard import Standardised
from gentrain.objectives.contrastive import CD
from gentrain.truth.spaces import around, follow

MEAN, SCALE = torch.tensor([3.0, -1.0]), torch.tensor([2.0, 0.8])


def machine(hidden: int = 3, seed: int = 0, learn_std: bool = True) -> GaussianRBM:
    torch.manual_seed(seed)
    rbm = GaussianRBM((2,), hidden, learn_std=learn_std)
    rbm.standardise(MEAN, SCALE)
    with torch.no_grad():
        rbm.weight.copy_(torch.randn(hidden, 2))
        rbm.visible_bias.copy_(torch.tensor([0.3, -0.4]))
        rbm.hidden_bias.copy_(torch.randn(hidden))
        rbm.log_std.copy_(torch.tensor([-0.5, -0.2]))
    return rbm


def energy(rbm: GaussianRBM, x: Tensor, h: Tensor) -> Tensor:
    """E(z, h) term by term, for every pair, (B, H), float64."""
    z, variance = ((x - MEAN) / SCALE).double(), torch.exp(2 * rbm.log_std.double())
    rows = []
    for state in h.double():
        total = -(rbm.hidden_bias.double() @ state).expand(len(x))
        for i in range(2):
            drive = (rbm.weight[:, i].double() * state).sum()
            total = total + (z[:, i] - rbm.visible_bias[i]) ** 2 / (2 * variance[i]) - z[:, i] * drive / variance[i]
        rows.append(total)
    return torch.stack(rows, 1)


def components(rbm: GaussianRBM) -> tuple[Independent, Tensor]:
    """The Gaussians p(x | h) of every h, and log ∫ exp(-E(z, h)) dz by completing the square."""
    h = states(rbm.hidden, rbm.weight).double()
    m, sd = h @ rbm.weight.double(), rbm.log_std.double().exp()
    b, c = rbm.visible_bias.double(), rbm.hidden_bias.double()
    log_weight = h @ c + ((2 * b * m + m**2) / (2 * sd**2)).sum(1) + (sd * math.sqrt(2 * math.pi)).log().sum()
    return Independent(Normal(MEAN + SCALE * (b + m), SCALE * sd), 1), log_weight


def log_density(rbm: GaussianRBM, x: Tensor) -> Tensor:
    """log p(x) as of the mixture."""
    gaussians, log_weight = components(rbm)
    return torch.logsumexp(torch.log_softmax(log_weight, 0) + gaussians.log_prob(x.double()[:, None]), 1)


@torch.no_grad()
def test_it_is_a_mixture_of_gaussians():
    rbm, x = machine(), 3 * torch.randn(50, 2)
    h = states(3, rbm.weight)
    minus_e, (_, log_weight) = -energy(rbm, x, h), components(rbm)
    free = -torch.logsumexp(minus_e, 1) + SCALE.double().log().sum()
    torch.testing.assert_close(rbm.free_energy(x).double(), free, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rbm.log_partition(), torch.logsumexp(log_weight, 0), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(rbm.log_prob(x).double(), log_density(rbm, x), atol=1e-4, rtol=1e-4)
    posterior = torch.softmax(minus_e, 1) @ h.double()
    torch.testing.assert_close(rbm.hidden_probability(x).double(), posterior, atol=1e-5, rtol=1e-4)
    before = rbm.log_partition().item()
    rbm.log_std.data.add_(0.1)
    assert rbm.log_partition().item() != before
    torch.testing.assert_close(rbm.log_prob(x).double(), log_density(rbm, x), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_moments_given_the_hidden_units_are_those_of_the_component():
    rbm = machine()
    for index in (0, 5):
        h = states(3, rbm.weight)[index].repeat(40_000, 1)
        x, gaussian = rbm.sample_visible(h).double(), components(rbm)[0]
        mean, sd = gaussian.mean[index], gaussian.variance[index].sqrt()
        assert ((x.mean(0) - mean).abs() < 5 * sd / 200).all()
        assert ((x.std(0) / sd - 1).abs() < 5 / (2 * 40_000) ** 0.5).all(), "samples have their noise"
        torch.testing.assert_close(rbm.outward(rbm._centre(h[:1])).double(), mean[None], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_chains_and_exact_samples_follow_the_mixture():
    rbm, n = machine(), 20_000
    gaussians, log_weight = components(rbm)
    component = torch.multinomial(torch.softmax(log_weight, 0), n, replacement=True)
    start = gaussians.sample(torch.Size([n]))[torch.arange(n), component].float()
    space = around(start)
    assert not isinstance(space, str)
    log_p = log_density(rbm, space.points)
    assert float(space.log_total(log_p)) == pytest.approx(0, abs=1e-3)
    for draws in (start, rbm.gibbs(start, 1), rbm.sample(n), rbm.exact_sample(n)):
        statistic, allowed, words = follow(draws, space, log_p)
        assert statistic < allowed, words


@pytest.mark.parametrize("learn_std", [True, False])
def test_the_gradient_is_autograds(learn_std: bool):
    rbm, x, v = machine(learn_std=learn_std), torch.randn(6, 2), 2 * torch.randn(9, 2)
    names, parameters = zip(*((n, p) for n, p in rbm.named_parameters() if p.requires_grad), strict=True)
    loss = rbm.free_energy(x).mean() - rbm.free_energy(v).mean()
    with torch.no_grad():
        found = rbm.energy_gradient((x, rbm.hidden_probability(x)), (v, rbm.hidden_probability(v)))
    assert set(found) == set(names) and ("log_std" in names) == learn_std
    for name, wanted in zip(names, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(found[name], wanted, atol=1e-5, rtol=1e-4)


def test_no_deviation_falls_below_the_floor():
    rbm = GaussianRBM((2,), hidden=2, floor=0.1)
    with torch.no_grad():
        rbm.log_std.copy_(torch.tensor([math.log(0.01), math.log(0.2)]))
    torch.testing.assert_close(rbm.std, torch.tensor([0.1, 0.2]))
    x = torch.randn(5, 2)
    with torch.no_grad():
        data = x, rbm.hidden_probability(x)
        found = rbm.energy_gradient(data, (2 * x, rbm.hidden_probability(2 * x)))
    assert found["log_std"][0] == 0 != found["log_std"][1]
    with pytest.raises(UsageError, match=r"model.std=0.05: lies below model.floor=0.1"):
        GaussianRBM((2,), std=0.05, floor=0.1)


@torch.no_grad()
def test_annealing_brackets_the_exact_normaliser():
    rbm = machine()
    exact, path, steps = float(rbm.log_partition()), rbm.tempered(MEAN), betas([(1.0, 100)])
    forward, backward = annealed_both_ways(path, rbm.exact_sample(4000), exact, steps)
    assert max(forward.relative, backward.relative) < 0.03
    x = torch.randn(4, 2)
    torch.testing.assert_close(path.log_prob(path.state(x), 1.0), -rbm.free_energy(x).double(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(path.example(path.state(x)), x)


@torch.no_grad()
def test_what_is_missing_is_drawn_given_what_is_known():
    rbm, n = machine(), 20_000
    x = torch.tensor([[2.0, float("nan")]]).repeat(n, 1)
    filled = rbm.complete(x, torch.tensor([True, False]).expand(n, 2))
    assert (filled[:, 0] == 2).all()
    gaussians, log_weight = components(rbm)
    first = Normal(gaussians.mean[:, 0], gaussians.variance[:, 0].sqrt()).log_prob(torch.tensor(2.0).double())
    weight = torch.softmax(log_weight + first, 0)
    mean = weight @ gaussians.mean[:, 1]
    variance = weight @ (gaussians.variance[:, 1] + gaussians.mean[:, 1] ** 2) - mean**2
    assert float((filled[:, 1].double().mean() - mean).abs()) < 5 * float(variance / n) ** 0.5


def test_contrastive_divergence_fits_a_ring():
    """Eight Gaussians around a circle: -log 8 - log(2πe 0.2²) = -1.70 nats at best; one Gaussian has -3.5 or so."""
    assembly = build("model=gaussian_rbm", "data=ring", "data.std=0.2", "model.hidden=12", "data.batch_size=200")
    rbm, x = assembly.model, assembly.pipeline.batch(0).x
    assert isinstance(rbm, GaussianRBM)
    optimizer, before = torch.optim.Adam(rbm.parameters(), 5e-3), rbm.log_prob(x).mean().item()
    torch.manual_seed(1)
    for step in range(1200):
        (update,) = CD()(rbm, Batch(assembly.pipeline.batch(step).x), 0.0)
        for name, g in (update.grads or {}).items():
            rbm.get_parameter(name).grad = g
        optimizer.step()
    assert before < -3.5 and rbm.log_prob(x).mean().item() > -2.4


def test_too_many_units_are_refused_with_what_to_do_instead():
    with pytest.raises(UsageError, match=r"30 hidden units is a sum over 2\^30 Gaussians; 26 .* metrics=\[ais\]"):
        GaussianRBM((2,), hidden=30).log_partition()


# --- the unit of the data ---------------------------------------------------------------------------------------------


class Plain(Standardised):
    def sample(self, n: int) -> Tensor:
        return self.start(n)


def test_one_scale_or_one_for_each_element():
    mean, deviation = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 3.0, 4.0])
    each, one = Plain((3,), each=True), Plain((3,), each=False)
    for model in (each, one):
        model.standardise(mean, deviation)
    assert each.scale.tolist() == [1, 3, 4], "what never varies keeps its unit"
    assert one.scale.tolist() == pytest.approx([(25 / 3) ** 0.5] * 3)
    assert each.log_scale.item() == pytest.approx(math.log(12))
    assert each.inward(torch.tensor([[1.0, 5.0, 7.0]])).tolist() == [[0, 1, 1]]
    x = torch.randn(4, 3)
    torch.testing.assert_close(one.outward(one.inward(x)), x)


@pytest.mark.parametrize(
    ("support", "options", "expected"),
    [
        ("real", {}, [0.0, 0.5]),
        ("signed", {}, [0.0, 1.0]),
        ("levels", {}, [0.0, 1.5]),
        ("real", {"dequantize": True}, [(1 / 12) ** 0.5 / 4, (2.25 + 1 / 12) ** 0.5 / 4]),
        ("signed", {"dequantize": True}, [(1 / 12) ** 0.5 / 2, (2.25 + 1 / 12) ** 0.5 / 2]),
        ("binary", {}, [0.0, 0.5]),
        ("binary", {"binarization": "threshold"}, [0.0, 0.5]),
    ],
)
def test_deviations_are_those_of_what_the_model_sees(support, options, expected):
    x = torch.tensor([[3, 0], [3, 3]], dtype=torch.uint8)
    pipeline = Pipeline(make_source("tiny", "levels", {"train": Split(x)}, levels=4), support, 2, seed=0, **options)
    torch.testing.assert_close(pipeline.deviation(), torch.tensor(expected), atol=1e-6, rtol=1e-6)
    draws = torch.cat([pipeline.batch(step).x.float() for step in range(3000)])
    torch.testing.assert_close(draws.std(0), torch.tensor(expected), atol=0.02, rtol=0.02)


def test_a_training_begins_with_its_datas_unit():
    assembly = build("model=gaussian_rbm", "data=digits", "model.hidden=5")
    model, x = assembly.model, torch.cat([assembly.pipeline.batch(step).x for step in range(200)])
    assert (
        isinstance(model, GaussianRBM) and assembly.pipeline.protocol == "real, scaled to [0,1], uniform dequantization"
    )
    z = model.inward(x)
    assert z.mean(0).abs().max() < 0.1 and (z.std(0) - 1).abs().max() < 0.1
    with pytest.raises(UsageError, match=r"data.dequantize=false: GaussianRBM is a density over real x"):
        build("model=gaussian_rbm", "data=digits", "data.dequantize=false")
