"""Flow matching: Gaussians in closed form, the objective's minimiser and couplings, labels, completion."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from helpers import build, shaken
from torch import Tensor
from torch.distributions import MultivariateNormal

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.flow_matching import FlowMatching
from gentrain.models.ode import Solver
from gentrain.objectives.flow_matching import ConditionalFlowMatching, assign
from gentrain.truth.spaces import around, over

TIGHT = Solver("dopri5", rtol=1e-9, atol=1e-9)
MEAN = torch.tensor([0.5, -1.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.2, 0.9], [0.9, 0.8]], dtype=torch.float64)


class Gaussian(FlowMatching):
    """The optimal field for data from N(m, S): x_t = a x_0 + t x_1, a = 1 - (1 - σ) t, is Gaussian with mean t m and
    covariance C = a² I + t² S, so E[x_1 - (1 - σ) x_0 | x_t] = m + (t S - (1 - σ) a I) C⁻¹ (x_t - t m)."""

    def __init__(self, sigma: float = 0.0, **options: object):
        super().__init__((2,), hidden=[4], **options)  # type: ignore[arg-type]
        self.left = 1 - sigma
        self.double()

    def velocity(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        t = t[:, None, None]
        a, one = 1 - self.left * t, torch.eye(2).to(x)
        mean, covariance = MEAN.to(x), COVARIANCE.to(x)
        gain = (t * covariance - self.left * a * one) @ torch.linalg.inv(a**2 * one + t**2 * covariance)
        return mean + (gain @ (x[:, :, None] - t * mean[:, None])).squeeze(-1)


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.sqrt().diag() @ vectors.T


# --- a Gaussian in closed form ----------------------------------------------------------------------------------------


def test_the_best_field_of_a_gaussian_gives_its_density_and_its_map():
    """All the matrices commute, so the flow is x = m + S^½ z."""
    torch.manual_seed(0)
    model, z = Gaussian(), torch.randn(50, 2).double()
    x = MEAN + z @ root(COVARIANCE)
    with torch.no_grad():
        assert torch.allclose(model.invert(z, solver=TIGHT), x, atol=1e-7)
        codes, log_det = model.transform(x, solver=TIGHT)
        assert torch.allclose(codes, z, atol=1e-7)
        assert torch.allclose(log_det, -COVARIANCE.logdet() / 2 + torch.zeros(50).double(), atol=1e-6)
        exact = MultivariateNormal(MEAN, COVARIANCE).log_prob(x)
        assert torch.allclose(model.log_prob(x, solver=TIGHT), exact, atol=1e-6)
        assert torch.allclose(model.log_prob(x), exact, atol=1e-4)  # by its own tolerances of 1e-5
        assert torch.allclose(model.decode(z), x, atol=0.02)  # 20 steps of order 2
        assert torch.allclose(model.codes(x), z, atol=0.05)


def has_its_moments(x: Tensor) -> bool:
    """Draws of the Gaussian, by the standard errors √(S_ii/n) and √((S_ii S_jj + S_ij²)/n) of means and covariances."""
    spread = ((torch.outer(*[COVARIANCE.diagonal()] * 2) + COVARIANCE**2) / len(x)).sqrt()
    means = (x.mean(0) - MEAN).abs() < 4.5 * (COVARIANCE.diagonal() / len(x)).sqrt()
    return bool(means.all() and ((x.T.cov() - COVARIANCE).abs() < 4.5 * spread).all())


def test_samples_of_a_gaussian_have_its_moments():
    torch.manual_seed(1)
    assert has_its_moments(Gaussian(steps=50).sample(20_000).double())


def test_nothing_known_completes_to_a_sample():
    """Then going back and forth between two times leaves the distribution at each as it is."""
    torch.manual_seed(16)
    nothing = torch.full((4000, 2), torch.nan).double()
    x = Gaussian(steps=30, resamples=4).complete(nothing, torch.zeros(4000, 2).bool())
    assert has_its_moments(x)


def test_probes_estimate_the_density_without_bias():
    torch.manual_seed(2)
    model, draws = Gaussian(), 1000
    x = torch.tensor([[0.5, -0.3], [2.0, 0.1]]).double()
    exact = MultivariateNormal(MEAN, COVARIANCE).log_prob(x)
    with torch.no_grad():
        found = model.log_prob(x.repeat(draws, 1), probes=1).view(draws, 2)
        several = model.log_prob(x.repeat(draws, 1), probes=4).view(draws, 2)
    error = found.std(0) / draws**0.5
    assert (error > 1e-3).all() and ((found.mean(0) - exact).abs() < 4 * error).all()
    assert torch.allclose(several.std(0), found.std(0) / 2, rtol=0.1)  # the mean of four


def test_reals_are_modelled_in_their_own_unit():
    """x = mean + scale u: log p(x) = log p(u) - Σ log scale, and the code of x is that of u."""
    torch.manual_seed(3)
    plain = shaken(FlowMatching((2,), hidden=[8]))
    moved = copy.deepcopy(plain)
    moved.standardise(torch.tensor([10.0, -3.0]), torch.tensor([5.0, 0.1]))
    u = torch.randn(6, 2)
    x = torch.tensor([10.0, -3.0]) + torch.tensor([5.0, 0.1]) * u
    with torch.no_grad():
        assert torch.allclose(moved.log_prob(x), plain.log_prob(u) - math.log(5.0 * 0.1), atol=1e-3)
        assert torch.allclose(moved.codes(x), plain.codes(u), atol=1e-4)
        z = torch.randn(6, 2)
        assert torch.allclose(moved.decode(z), torch.tensor([10.0, -3.0]) + torch.tensor([5.0, 0.1]) * plain.decode(z))
    levels = FlowMatching((1, 4, 4), levels=17, network="mlp", hidden=[8])
    levels.standardise(torch.full((1, 4, 4), -0.8), torch.full((1, 4, 4), 0.3))
    assert torch.equal(levels.inward(torch.ones(1, 1, 4, 4)), torch.ones(1, 16))  # [-1, 1] as it is
    assert levels.decode(100 * torch.randn(5, 16)).abs().max() == 1  # clamped


# --- what is learned --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", ["uniform", "logit_normal"])
@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_the_best_field_is_the_objectives_minimiser(sigma: float, times: str):
    """Where E‖v - u‖² is smallest, its residual v - u has no correlation with any function of x_t and t."""
    torch.manual_seed(4)
    model, n = Gaussian(sigma), 40_000
    x = MultivariateNormal(MEAN, COVARIANCE).sample(torch.Size([n]))
    objective = ConditionalFlowMatching(sigma_min=sigma, times=times)  # type: ignore[arg-type]
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    velocity = model.velocity

    def watched(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        v = velocity(x, t).requires_grad_()
        seen.append((x, t, v))
        return v

    model.velocity = watched  # type: ignore[method-assign]
    objective.errors(model, x, None, None).sum().backward()
    ((path, t, v),) = seen
    assert v.grad is not None
    residual = v.grad  # 2 (v - u)/D, with D of 2
    for test in (torch.ones_like(t), t, path[:, 0], path[:, 1] * t, path[:, 0] * path[:, 1], (3 * path[:, 1]).sin()):
        product = residual * test[:, None]
        assert (product.mean(0).abs() < 4.5 * product.std(0) / n**0.5).all()
    assert (t >= 0).all() and (t <= 1).all()
    middle = {"uniform": 0.5, "logit_normal": 2 * 0.86407 - 1}[times]  # P(|logit t| < log 3) is 2 Φ(1.0986) - 1
    assert ((t - 0.5).abs() < 0.25).double().mean().item() == pytest.approx(middle, abs=0.01)


def test_the_loss_by_hand():
    model = shaken(FlowMatching((3,), hidden=[8]))
    x = torch.tensor([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]])
    torch.manual_seed(5)
    (update,) = ConditionalFlowMatching(sigma_min=0.25)(model, Batch(x), 0.0)
    torch.manual_seed(5)
    noise, t = torch.randn(2, 3), torch.rand(2)
    total = 0.0
    for i in range(2):
        at = (1 - 0.75 * t[i]) * noise[i] + t[i] * x[i]
        wanted = x[i] - 0.75 * noise[i]
        total += float((model.network(at[None], t[i : i + 1])[0] - wanted).detach().square().sum()) / 6
    assert update.loss is not None and update.loss.item() == pytest.approx(total, rel=1e-5)


def mixture(x: Tensor) -> Tensor:
    """log of ½ N(-1.5, 0.3²) + ½ N(1.5, 0.3²) in the first element, times N(0, 0.5²) in the second."""
    first = torch.stack([-0.5 * ((x[:, 0] - c) / 0.3) ** 2 for c in (-1.5, 1.5)]).logsumexp(0) - math.log(2 * 0.3)
    return first - 0.5 * (x[:, 1] / 0.5) ** 2 - math.log(0.5) - math.log(2 * math.pi)


def test_a_learned_density_is_one_and_knows_the_two_modes():
    torch.manual_seed(6)

    def draw(n: int) -> Tensor:
        centre = torch.where(torch.rand(n) < 0.5, -1.5, 1.5)
        return torch.stack([centre + 0.3 * torch.randn(n), 0.5 * torch.randn(n)], 1)

    model, objective = FlowMatching((2,), hidden=[48, 48]), ConditionalFlowMatching()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(500):
        (update,) = objective(model, Batch(draw(256)), 0.0)
        assert update.loss is not None
        optimizer.zero_grad()
        update.loss.backward()
        optimizer.step()
    x = draw(2000)
    with torch.no_grad():
        space = around(model.sample(2000), cells=3)
        assert not isinstance(space, str)
        assert space.log_total(over(model.log_prob, space.points)).exp().item() == pytest.approx(1, abs=5e-3)
        ratio = (mixture(x) - model.log_prob(x)).double()
    error = float(ratio.std()) / len(x) ** 0.5
    # no density is likelier than the true one; and the best single Gaussian, of the same moments, is
    #   ½ log(1.5² + 0.3²) - log 0.3 - log 2 = 0.94 nats less likely
    single = 0.5 * math.log(1.5**2 + 0.3**2) - math.log(0.3) - math.log(2)
    assert -3 * error < ratio.mean().item() < single / 4


# --- couplings --------------------------------------------------------------------------------------------------------


def cost(start: Tensor, end: Tensor) -> float:
    return float((end - start).square().sum())


def test_the_assignment_is_the_cheapest_of_all():
    torch.manual_seed(7)
    start, end = torch.randn(6, 3), 2 * torch.randn(6, 3) + 1
    best = min(cost(start[list(order)], end) for order in itertools.permutations(range(6)))
    assert cost(start[assign(start, end)], end) == pytest.approx(best, rel=1e-6)
    assert best < cost(start, end)


def test_coupled_noise_is_the_same_noise_and_stays_within_a_label():
    torch.manual_seed(8)
    start, end, y = torch.randn(40, 2), torch.randn(40, 2), torch.randint(3, (40,))
    for labels in (None, y):
        paired = ConditionalFlowMatching._couple(start, end, labels)
        assert sorted(paired.tolist()) == sorted(start.tolist())
        assert cost(paired, end) < cost(start, end)
    for label in range(3):
        ours = sorted(ConditionalFlowMatching._couple(start, end, y)[y == label].tolist())
        assert ours == sorted(start[y == label].tolist())


def test_coupling_lowers_the_error_that_no_field_can_avoid():
    """For data that are noise themselves, E (x_1 - x_0)² is 2 apart, and next to 0 where each gets what is nearest."""
    torch.manual_seed(9)
    model = FlowMatching((1,), hidden=[4])  # whose field is 0: the loss is E (x_1 - x_0)²
    x = torch.randn(512, 1)
    with torch.no_grad():
        apart, paired = (
            ConditionalFlowMatching(coupling=c).errors(model, x, None, None).mean()  # type: ignore[arg-type]
            for c in ("independent", "batch_ot")
        )
    assert apart.item() == pytest.approx(2, rel=0.25) and paired < 0.05


# --- labels -----------------------------------------------------------------------------------------------------------


def conditional(**options: object) -> FlowMatching:
    return shaken(FlowMatching((2,), hidden=[8], conditional=True, classes=3, **options))  # type: ignore[arg-type]


def test_guidance_goes_from_no_label_through_the_label_and_beyond():
    torch.manual_seed(10)
    x, t, y = torch.randn(6, 2), torch.rand(6), torch.tensor([0, 1, 2, 0, 1, 2])
    model = conditional()
    with torch.no_grad():
        towards, without = model.velocity(x, t, y), model.velocity(x, t)
        assert not torch.allclose(towards, without, atol=1e-3)
        for w, wanted in ((0.0, without), (1.0, towards), (3.0, without + 3 * (towards - without))):
            model.guidance = w
            assert torch.allclose(model.field(y)(x, t), wanted, atol=1e-6)
        assert torch.equal(model.field(None)(x, t), without)


def test_without_labels_the_density_is_the_even_mixture_and_samples_need_none():
    torch.manual_seed(11)
    model, x = conditional(), torch.randn(4, 2)
    with torch.no_grad():
        each = torch.stack([model.log_prob(x, torch.full((4,), k)) for k in range(3)])
        assert torch.allclose(model.log_prob(x), each.exp().mean(0).log(), atol=1e-5)
        assert each.std(0).min() > 1e-3
    assert model.sample(5).shape == model.sample(5, y=torch.zeros(5).long()).shape == (5, 2)
    for call in (lambda: model.invert(x), lambda: model.decode(x), lambda: model.transform(x)):
        with pytest.raises(UsageError, match="labels are missing"):
            call()
    without = model.solver(lambda x, t: model.velocity(x, t), x, 1.0, 0.0).x  # codes know nothing of labels
    assert torch.allclose(model.codes(x), without, atol=1e-6)
    with pytest.raises(UsageError, match="there is no label 3"):
        model.decode(x, torch.full((4,), 3))


def test_dropped_labels_are_no_labels():
    model = conditional()
    batch = Batch(torch.randn(64, 2), torch.randint(3, (64,)))
    assert model.network.condition.labels is not None
    table = model.network.condition.labels.weight
    for share, learned in ((1.0, [3]), (0.0, [0, 1, 2]), (0.5, [0, 1, 2, 3])):
        torch.manual_seed(12)
        (update,) = ConditionalFlowMatching(label_dropout=share)(model, batch, 0.0)
        assert update.loss is not None
        (gradient,) = torch.autograd.grad(update.loss, table)
        assert torch.nonzero(gradient.abs().sum(1)).flatten().tolist() == learned


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.guidance=2"], "needs model.conditional=true"),
        (
            ["model.conditional=true", "model.guidance=2", "objective.label_dropout=0"],
            "set objective.label_dropout",
        ),
        (["objective.sigma_min=1"], "objective.sigma_min=1"),
    ],
)
def test_options_that_do_not_go_together(overrides: list[str], words: str):
    with pytest.raises(UsageError, match=words.replace(".", r"\.")):
        build("model=flow_matching", "data=digits", *overrides)


def test_no_labels_no_conditions():
    with pytest.raises(UsageError, match="these data have no labels"):
        FlowMatching((2,), conditional=True)


# --- completion -------------------------------------------------------------------------------------------------------


def test_what_a_sum_leaves_open_is_drawn_given_the_sum():
    """Of z ~ N(m, S) given a = v·z: the mean m + S v (a - v·m)/(vᵀS v), the covariance S - S v vᵀS/(vᵀS v). A sum w·x
    of elements that have units of their own is v·z of z in these units, but for a number."""
    torch.manual_seed(17)
    model, w = Gaussian(steps=40, resamples=20), torch.tensor([0.2, 0.8]).double()
    model.standardise(torch.tensor([0.3, -0.2]), torch.tensor([2.0, 0.5]))
    x = torch.tensor([2.0, 1.0]).double().repeat(4000, 1)
    made = model.restore(x, lambda z, x: z + ((x - z) @ w)[:, None] * w / w.square().sum())
    assert torch.allclose(made @ w, x @ w)
    z, v = model.inward(made), w * model.scale
    gain = COVARIANCE @ v / (v @ COVARIANCE @ v)
    assert torch.allclose(z.mean(0), MEAN + gain * ((model.inward(x)[0] - MEAN) @ v), atol=0.1)
    assert torch.allclose(z.T.cov(), COVARIANCE - torch.outer(gain, COVARIANCE @ v), atol=0.1)


def test_completion_keeps_what_is_known_and_nears_the_conditional():
    """p(x_2|x_1) of the Gaussian has mean m_2 + S_21/S_11 (x_1 - m_1) and variance S_22 - S_21²/S_11."""
    torch.manual_seed(13)
    n, at = 4000, 1.5
    x = torch.tensor([at, torch.nan]).double().repeat(n, 1)  # what isn't known is not read
    known = torch.tensor([True, False]).expand(n, 2)
    slope = COVARIANCE[1, 0] / COVARIANCE[0, 0]
    mean = float(MEAN[1] + slope * (at - MEAN[0]))
    variance = float(COVARIANCE[1, 1] - slope * COVARIANCE[0, 1])
    off = []
    for resamples in (1, 20):
        made = Gaussian(steps=40, resamples=resamples).complete(x, known)
        assert torch.equal(made[:, 0], x[:, 0]) and made.isfinite().all()
        gap = float(made[:, 1].mean()) - mean
        off.append(gap**2 + (float(made[:, 1].std()) - variance**0.5) ** 2)
    assert off[1] < off[0] / 4
