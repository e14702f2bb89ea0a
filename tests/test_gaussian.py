"""One Gaussian, and the divergence from or to a known density, against closed forms and quadrature."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from helpers import bare_trainer, build, fit
from torch import Tensor
from torch.distributions import MultivariateNormal

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.evaluation.divergence import Divergence
from gentrain.evaluation.estimator import Subject
from gentrain.models.gaussian import Gaussian
from gentrain.models.mixtures import GaussianMixture
from gentrain.objectives.kl import ForwardKL, ReverseKL
from gentrain.objectives.likelihood import Likelihood
from gentrain.optim import Adam
from gentrain.truth.base import prove
from gentrain.truth.objectives import case_of
from gentrain.truth.spaces import Space, grid

CENTRES, STD = [[-1.5, 0.0], [1.0, 1.0], [1.0, -0.5]], 0.4


def plane() -> Space:
    """Points of a grid that holds all of the target and of the Gaussians here."""
    return grid(torch.tensor([-6.0, -6.0]), torch.tensor([6.0, 6.0]), (2,), bins=20, cells=6)


def moments(mean: list[float], covariance: list[list[float]], kind="full") -> Gaussian:
    model = Gaussian((2,), covariance=kind)
    matrix = torch.tensor(covariance)
    shown = {"full": matrix, "diagonal": matrix.diagonal(), "spherical": matrix[0, :1]}[kind]
    model.normal.set_moments(torch.tensor(mean)[None], shown[None])
    return model


def integral(space: Space, values: Tensor) -> Tensor:
    return values.double().sum() * math.exp(space.log_volume)


def forward_by_quadrature(model: Gaussian, objective: ForwardKL) -> Tensor:
    space = plane()
    log_t = objective.target(space.points)
    return integral(space, log_t.exp() * (log_t - model.log_prob(space.points)))


def reverse_by_quadrature(model: Gaussian, objective: ReverseKL) -> Tensor:
    space = plane()
    log_p = model.log_prob(space.points)
    return integral(space, log_p.exp() * (log_p - objective.target(space.points)))


def gradient(model: Gaussian, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).double()


@pytest.mark.parametrize("kind", ["full", "diagonal", "spherical"])
def test_density_and_draws_are_torch_s(kind) -> None:
    torch.manual_seed(0)
    model = Gaussian((1, 2, 2), covariance=kind)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    wanted = MultivariateNormal(model.normal.mean[0], scale_tril=model.normal.scale_tril[0])
    x = torch.randn(7, 1, 2, 2)
    torch.testing.assert_close(model.log_prob(x), wanted.log_prob(x.flatten(1)), rtol=1e-4, atol=1e-4)
    draws = model.sample(50_000).flatten(1)
    z = torch.linalg.solve_triangular(wanted.scale_tril, (draws - wanted.loc).t(), upper=False).detach()
    assert (z.mean(1).abs() < 6 / 50_000**0.5).all()
    assert ((z.cov() - torch.eye(4)).abs() < 6 * 2**0.5 / 50_000**0.5).all()


def test_the_target_is_the_data_s_density() -> None:
    objective = ForwardKL(CENTRES, STD)
    space = plane()
    log_t = objective.target(space.points)
    assert float(integral(space, log_t.exp())) == pytest.approx(1, abs=1e-5)
    x = torch.tensor([[0.3, -0.2]])
    by_hand = sum(math.exp(-((0.3 - a) ** 2 + (-0.2 - b) ** 2) / (2 * STD**2)) for a, b in CENTRES)
    assert objective.target(x).exp().item() == pytest.approx(by_hand / 3 / (2 * math.pi * STD**2), rel=1e-5)
    made = build("model=gaussian", "data=grid", "data.side=3", "data.std=0.3", "objective=reverse_kl")
    spec = made.source.spec
    assert spec.modes is not None and made.objective.std == 0.3  # type: ignore[union-attr]
    assert made.objective.centres.tolist() == [list(c) for c in spec.modes.centres]  # type: ignore[union-attr]


def test_both_gradients_are_those_of_the_integrals() -> None:
    model = moments([0.2, -0.3], [[1.0, 0.3], [0.3, 0.7]])
    for objective, exact in (
        (ForwardKL(CENTRES, STD), forward_by_quadrature),
        (ReverseKL(CENTRES, STD), reverse_by_quadrature),
    ):
        wanted = gradient(model, exact(model, objective))  # type: ignore[arg-type]
        torch.manual_seed(1)
        centre = torch.tensor(CENTRES)[torch.randint(3, (400, 1000))]
        x = centre + STD * torch.randn(400, 1000, 2)
        found, values = [], []
        for rows in x:
            (update,) = objective(model, Batch(rows), 0.0)
            assert update.loss is not None
            values.append(update.loss.detach())
            found.append(gradient(model, update.loss))
        estimate = torch.stack(found)
        error = estimate.std(0) / 400**0.5
        assert ((estimate.mean(0) - wanted).abs() < 6 * error + 1e-5).all()
        assert (error < 0.05 * wanted.norm()).all(), "the estimate says something"
        value = torch.stack(values).double()
        assert (value.mean() - exact(model, objective)).abs() < 6 * value.std() / 400**0.5  # type: ignore[arg-type]


def test_forward_has_its_minimum_at_the_moments() -> None:
    objective = ForwardKL(CENTRES, STD)
    centres = torch.tensor(CENTRES)
    covariance = centres.t().cov(correction=0) + STD**2 * torch.eye(2)
    model = moments(centres.mean(0).tolist(), covariance.tolist())
    assert gradient(model, forward_by_quadrature(model, objective)).abs().max() < 1e-4
    elsewhere = moments([0.3, 0.0], covariance.tolist())
    assert gradient(elsewhere, forward_by_quadrature(elsewhere, objective)).abs().max() > 0.05


@pytest.mark.parametrize("seed", [0, 1])
def test_reverse_finds_a_minimum_of_the_integral(seed: int) -> None:
    """Training by samples ends where Newton's method on the quadrature ends, in one of the modes."""
    objective = ReverseKL(CENTRES, STD)
    torch.manual_seed(seed)
    model = Gaussian((2,))
    optimizer = torch.optim.Adam(model.parameters(), 0.02, betas=(0.9, 0.99))
    for i in range(1500):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - i / 1500)
        (update,) = objective(model, Batch(torch.empty(256, 2)), 0.0)
        assert update.loss is not None
        optimizer.zero_grad()
        update.loss.backward()
        optimizer.step()
    reached = float(reverse_by_quadrature(model, objective).detach())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    newton = torch.optim.LBFGS(model.parameters(), max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def loss() -> Tensor:
        newton.zero_grad()
        value = reverse_by_quadrature(model, objective)
        value.backward()
        return value

    newton.step(loss)  # type: ignore[arg-type]
    least = float(reverse_by_quadrature(model, objective).detach())
    assert reached == pytest.approx(least, abs=2e-3)
    for name, p in model.named_parameters():
        torch.testing.assert_close(before[name], p.detach(), rtol=0, atol=0.1, msg=name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Gaussian, Tensor]]:
    """Two far modes, once in each direction: the model and its samples."""
    found = {}
    for direction in ("forward_kl", "reverse_kl"):
        folder = tmp_path_factory.mktemp(direction)
        trainer = fit(
            bare_trainer(
                folder,
                "model=gaussian",
                "data=ring",
                "data.modes=2",
                "data.std=0.1",
                f"objective={direction}",
                "data.batch_size=128",
                "optim.lr=0.03",
                "trainer.steps=1200",
            )
        )
        torch.manual_seed(0)
        assert isinstance(trainer.model, Gaussian)
        found[direction] = trainer.model, trainer.model.sample(20_000)
    return found


def test_forward_covers_and_reverse_seeks(trained: dict[str, tuple[Gaussian, Tensor]]) -> None:
    """KL(t ‖ p) ends at the moments, mean 0 and variances 4.01 and 0.01; KL(p ‖ t) at one mode, at log 2 nats."""
    model, x = trained["forward_kl"]
    assert model.normal.mean.abs().max() < 0.15
    torch.testing.assert_close(model.normal.scale[0], torch.tensor([4.01**0.5, 0.1]), rtol=0.05, atol=0)
    assert ((x[:, 0] < -1.7).float().mean() - (x[:, 0] > 1.7).float().mean()).abs() < 0.1
    assert (x[:, 0].abs() < 1).float().mean() == pytest.approx(math.erf(1 / 4.01**0.5 / 2**0.5), abs=0.05)
    model, x = trained["reverse_kl"]
    assert (model.normal.mean[0].abs() - torch.tensor([2.0, 0.0])).abs().max() < 0.02
    torch.testing.assert_close(model.normal.scale[0], torch.tensor([0.1, 0.1]), rtol=0.05, atol=0)
    assert len(torch.sign(x[:, 0]).unique()) == 1
    score = ReverseKL([[2.0, 0.0], [-2.0, 0.0]], 0.1).validate(model, Batch(x[:5000]))["reverse_kl"]
    assert score.kind == "reverse-kl" and score.values.mean().item() == pytest.approx(math.log(2), abs=0.02)


def test_held_out_divergence_is_the_integral() -> None:
    model, objective = moments([0.2, -0.3], [[1.0, 0.3], [0.3, 0.7]]), ForwardKL(CENTRES, STD)
    torch.manual_seed(0)
    x = torch.tensor(CENTRES)[torch.randint(3, (100_000,))] + STD * torch.randn(100_000, 2)
    scores = objective.validate(model, Batch(x))
    values = scores["forward_kl"].values.double()
    assert (values.mean() - forward_by_quadrature(model, objective)).abs() < 6 * values.std() / 100_000**0.5
    assert torch.equal(scores["log_likelihood"].values, model.log_prob(x).detach())


def test_what_is_not_known_is_one_line(tmp_path: Path) -> None:
    for data in ("data=moons", "data=digits"):
        with pytest.raises(UsageError, match=r"objective.centres=null: .* data=ring or data=grid"):
            build("model=gaussian", data, "objective=reverse_kl")
    with pytest.raises(UsageError, match=r"objective.std=0"):
        build("model=gaussian", "data=ring", "data.std=0", "objective=reverse_kl")
    with pytest.raises(UsageError, match="as many coordinates"):
        ReverseKL([[0.0, 1.0], [2.0]], 1.0)
    made = build(
        "model=gaussian", "data=moons", "objective=forward_kl", "objective.centres=[[0,0,0]]", "objective.std=1"
    )
    with pytest.raises(UsageError, match="3 coordinates, and one example has 2"):
        list(made.objective(made.model, made.pipeline.batch(0), 0.0))
    build("model=gaussian", "data=moons", "objective=reverse_kl", "objective.centres=[[0,0],[3,1]]", "objective.std=1")


@torch.no_grad()
def test_the_estimator_of_both_divergences() -> None:
    """KL to the ring's own mixture: of a Gaussian by quadrature, and zero of the mixture itself."""
    made = build("model=gaussian", "data=ring", "data.modes=3", "data.std=0.4")
    assert isinstance(made.model, Gaussian)
    made.model.normal.set_moments(torch.tensor([[0.2, -0.3]]), torch.tensor([[[1.5, 0.3], [0.3, 1.2]]]))
    spec = made.source.spec
    assert spec.centres is not None
    target = (spec.centres, 0.4)
    forward, reverse = Divergence()(Subject(made.model, made.pipeline))
    assert (forward.kind, reverse.kind) == ("forward-kl", "reverse-kl")
    exact = forward_by_quadrature(made.model, ForwardKL(*target)), reverse_by_quadrature(made.model, ReverseKL(*target))
    for finding, truth in zip((forward, reverse), exact, strict=True):
        assert abs(finding.value - float(truth.detach())) < 6 * finding.stderr
        assert finding.stderr < 0.1 * float(truth.detach())
    mixture = GaussianMixture((2,), 3)
    mixture.normals.set_moments(torch.tensor(spec.centres), 0.16 * torch.eye(2).expand(3, 2, 2))
    for finding in Divergence()(Subject(mixture, made.pipeline)):
        assert abs(finding.value) < 1e-5
    assert Divergence().unfit(Subject(made.model, build("model=gaussian", "data=moons").pipeline))


class Narrow(Gaussian):
    def rsample(self, n: int) -> Tensor:
        return 0.8 * super().rsample(n)


class Fixed(Gaussian):
    """Its draws know nothing of the parameters they came from."""

    def rsample(self, n: int) -> Tensor:
        return super().rsample(n).detach().requires_grad_()


@pytest.mark.parametrize(("kind", "held"), [(Gaussian, True), (Narrow, False), (Fixed, False)])
def test_check_finds_draws_that_carry_no_gradient_or_follow_another_density(kind: type[Gaussian], held: bool) -> None:
    torch.manual_seed(0)
    batches = [Batch(torch.randn(32, 2)) for _ in range(10)]
    adam = Adam(1e-2, 0.0, "constant", 0.0, 0.0, None, (0.9, 0.999), 1e-8)
    case = case_of(kind((2,)), Likelihood(), adam, batches, lambda: kind((2,)), None)
    [found] = prove(case, {"reparametrised draws follow p(x)"})
    assert found.held == held
