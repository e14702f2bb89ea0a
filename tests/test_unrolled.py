"""Unrolled games: the look-ahead against k steps done by hand, the optimizers' rules against torch's own."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers import bare_trainer, build, differences, fit, learned
from torch import Tensor, nn
from torch.distributions import Distribution, Normal
from torch.nn.functional import softplus

from gentrain import config
from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.critics import Adversarial
from gentrain.models.gan import DCGAN, GAN
from gentrain.objectives.ac_gan import AuxiliaryClassifier
from gentrain.objectives.adversarial import Game, NonSaturating
from gentrain.objectives.began import BEGAN
from gentrain.objectives.differentiable import Ahead
from gentrain.objectives.regularisers import Regularisers
from gentrain.objectives.unrolled import Unrolled
from gentrain.objectives.wasserstein import Wasserstein, WassersteinGP
from gentrain.optim import Optim
from gentrain.truth.objectives import parts_of, played
from gentrain.update import following

ZERO = torch.zeros(4, 1)


class Dirac(Adversarial):
    """A point φ against a critic θ x: with real examples at 0 the smallest game there is (Mescheder et al. 2018)."""

    shape, support = (1,), "real"

    def __init__(self, phi: float, theta: float) -> None:
        super().__init__()
        self.generator, self.discriminator = nn.Linear(1, 1), nn.Linear(1, 1, bias=False)
        self.generator.weight.requires_grad_(False).zero_()
        with torch.no_grad():
            self.generator.bias.fill_(phi)
            self.discriminator.weight.fill_(theta)

    @property
    def prior(self) -> Distribution:
        return torch.distributions.Independent(Normal(torch.zeros(1), torch.ones(1)), 1)

    def decode(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def discriminate(self, x: Tensor) -> Tensor:
        return self.discriminator(x).flatten()

    def sample(self, n: int) -> Tensor:
        return self.decode(self.prior.sample(torch.Size([n])))

    @property
    def point(self) -> tuple[float, float]:
        phi, theta = (float(p.detach()) for p in self.parameters() if p.requires_grad)
        return phi, theta


class Bilinear(Game):
    """L_D = mean D(fake) - mean D(real) = θφ, L_G = -θφ: no equilibrium but (0, 0)."""

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return fake.mean() - real.mean()

    def generator_loss(self, fake: Tensor) -> Tensor:
        return -fake.mean()


@functools.cache
def optim(name: str, *settings: str) -> Optim:
    cfg = config.compose("train", [f"optim={name}", *(f"optim.{s}" for s in settings), "model=gan", "data=ring"])
    return config.build(config.check(cfg)["optim"], [], Optim)


PLAIN = optim("sgd", "lr=0.1", "momentum=0")


def play(model: Adversarial, objective: Game, x: Tensor, rounds: int, optimizer: Optim = PLAIN) -> list[str]:
    """Rounds of a game as the trainer plays them; the parts in the order in which they moved."""
    parts, order = parts_of(objective, model, optimizer), []
    for step in range(rounds):
        for update in played(objective(model, Batch(x), 0.0), parts):
            parts[update.part].step(update, 1.0, step)
            order.append(update.part)
    return order


# --- the look-ahead ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1, 5])
def test_the_bilinear_game_is_that_of_its_closed_form(k: int):
    # θ' = θ - ηφ, and θ_k = θ' - kηφ, so L_G(θ_k) = -θ'φ + kηφ²: the look-ahead adds a pull of 2kηφ to where D is blind
    phi, theta, eta = 1.3, 0.4, 0.1
    model = Dirac(phi, theta)
    order = play(model, Unrolled(Bilinear(), k), ZERO, 3)
    for _ in range(3):
        theta -= eta * phi
        phi -= eta * (-theta + 2 * k * eta * phi)
    assert model.point == pytest.approx((phi, theta), abs=1e-6)
    assert order == ["discriminator", "generator"] * 3


def test_without_the_second_order_the_generator_meets_the_later_critic_only():
    phi, theta, eta, k = 1.3, 0.4, 0.1, 5
    model = Dirac(phi, theta)
    play(model, Unrolled(Bilinear(), k, second_order=False), ZERO, 1)
    theta -= eta * phi
    assert model.point == pytest.approx((phi + eta * (theta - k * eta * phi), theta), abs=1e-6)


def test_unrolling_tames_what_turns_in_circles_without():
    # a round maps (θ, φ) with determinant 1 - 2kη²: 1 for the plain game, which keeps its distance for ever
    plain, tamed = Dirac(1.0, 0.0), Dirac(1.0, 0.0)
    play(plain, Unrolled(Bilinear(), 0), ZERO, 200)
    play(tamed, Unrolled(Bilinear(), 5), ZERO, 200)
    assert torch.tensor(plain.point).norm() > 0.9
    assert torch.tensor(tamed.point).norm() < 2 * (1 - 2 * 5 * 0.1**2) ** (200 / 2)


def test_any_game_and_optimizer_equals_k_steps_by_hand():
    """Non-saturating, with penalties, of which the gradient goes through the look-ahead too; SGD with momentum."""
    torch.manual_seed(0)
    x, eta, momentum, k = torch.randn(6, 1), 0.05, 0.9, 3
    model = Dirac(0.7, -0.4)
    game = Unrolled(NonSaturating(regularise=Regularisers(r2=0.8, gradient_penalty=0.3, target=1.0)), k)
    play(model, game, x, 1, optim("sgd", f"lr={eta}", f"momentum={momentum}"))

    def critics(theta: Tensor, phi: Tensor) -> Tensor:
        fit_ = softplus(-theta * x).mean() + softplus(theta * phi)
        return fit_ + 0.8 / 2 * theta**2 + 0.3 * (theta.abs() - 1) ** 2  # ∂(θx)/∂x = θ wherever it is taken

    phi, theta, velocity = torch.tensor(0.7, requires_grad=True), torch.tensor(-0.4, requires_grad=True), None
    for i in range(1 + k):
        (g,) = torch.autograd.grad(critics(theta, phi if i else phi.detach()), theta, create_graph=True)
        velocity = g if velocity is None else momentum * velocity + g
        theta = theta - eta * velocity
        if i == 0:
            moved = theta.detach()
            theta, velocity = moved.clone().requires_grad_(), velocity.detach()
    (pull,) = torch.autograd.grad(softplus(-theta * phi), phi)
    assert model.point == pytest.approx((0.7 - eta * float(pull), float(moved)), abs=1e-6)


class Curved(Dirac):
    """Its critic is θ x²: the gradient that a penalty measures depends on where the fakes are."""

    def discriminate(self, x: Tensor) -> Tensor:
        return super().discriminate(x**2)


def test_the_penalty_on_generated_examples_is_seen_by_the_generator_through_the_critics_answer():
    phi, theta, eta, r2 = 0.7, 0.5, 0.1, 0.8  # ‖∇D(φ)‖² = 4θ²φ²
    model = Curved(phi, theta)
    play(model, Unrolled(Bilinear(regularise=Regularisers(r2=r2)), 1), ZERO, 1)
    theta -= eta * (phi**2 + r2 / 2 * 8 * theta * phi**2)
    # θ_1 = θ - η(φ² + 4 r2 θ φ²) and L_G = -θ_1 φ²
    pull = -2 * theta * phi + eta * (1 + 4 * r2 * theta) * 4 * phi**3
    assert model.point == pytest.approx((phi - eta * pull, theta), abs=1e-6)


def test_with_k_0_it_is_the_game_bit_for_bit(tmp_path: Path):
    common = ["model=gan", "data=digits", "trainer.steps=3", "model.hidden=[16]"]
    unrolled = fit(bare_trainer(tmp_path / "a", *common, "objective=unrolled", "objective.k=0"))
    plain = fit(bare_trainer(tmp_path / "b", *common, "objective=non_saturating"))
    assert differences(learned(unrolled.state_dict()), learned(plain.state_dict())) == []


def test_the_game_is_chosen_on_the_command_line_and_gets_its_settings():
    chosen = ["objective=unrolled", "objective@objective.game=label_smoothing", "objective.game.smoothing=0.3"]
    objective = build("model=gan", "data=ring", *chosen, "objective.game.discriminator_steps=2").objective
    assert isinstance(objective, Unrolled) and type(objective.game).__name__ == "LabelSmoothing"
    real, fake = torch.tensor([2.0]), torch.tensor([-1.0])
    expected = softplus(real) - 0.7 * real + softplus(fake)
    assert objective.discriminator_loss(real, fake) == pytest.approx(float(expected))
    order = play(GAN((2,), latent_dim=2, hidden=[4]), objective, torch.randn(8, 2), 1)
    assert order == ["discriminator", "discriminator", "generator"]


def test_looking_ahead_moves_nothing_of_the_critic():
    """Weights, running averages of batch normalisation, the optimizer's state: as the real step left them."""
    torch.manual_seed(0)
    model, objective = DCGAN((1, 16, 16), levels=17, latent_dim=3, channels=2), Unrolled(k=2)
    parts = parts_of(objective, model, optim("adam"))
    updates = objective(model, Batch(torch.rand(6, 1, 16, 16)), 0.0)
    first = next(updates)
    parts["discriminator"].step(first, 1.0, 0)
    optimizer = parts["discriminator"].optimizer
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    second = following(updates, optimizer)
    assert second is not None and second.part == "generator"
    assert differences(model.state_dict(), before[0]) == [] and differences(optimizer.state_dict(), before[1]) == []
    parts["generator"].step(second, 1.0, 0)
    assert all(p.grad is not None and p.grad.any() for p in model.generator.parameters())


def test_a_spectrally_normalised_critic_is_unrolled_too():
    """Its weights are functions of parameters, and the power iteration moves buffers at every pass."""
    torch.manual_seed(0)
    model = GAN((2,), latent_dim=3, hidden=[8], spectral_norm=True)
    before = {name: b.clone() for name, b in model.discriminator.named_buffers()}
    objective, x = Unrolled(k=2), torch.randn(16, 2)
    updates, parts = objective(model, Batch(x), 0.0), parts_of(objective, model, optim("adam"))
    parts["discriminator"].step(next(updates), 1.0, 0)
    moved = {name: b.clone() for name, b in model.discriminator.named_buffers()}
    update = following(updates, parts["discriminator"].optimizer)
    assert update is not None and differences(moved, dict(model.discriminator.named_buffers())) == []
    assert differences(moved, before) != []
    parts["generator"].step(update, 1.0, 0)
    assert all(p.grad is not None and p.grad.any() for p in model.generator.parameters())


# --- the networks of the paper ----------------------------------------------------------------------------------------


def test_the_gan_of_the_ring_is_the_papers():
    torch.manual_seed(0)
    model = GAN((2,), latent_dim=5, hidden=[8, 6], discriminator_hidden=[7], activation="relu", orthogonal=0.8,
                discriminator_scale=0.25)  # fmt: skip
    (g1, g2, g3), (d1, d2) = (
        [m for m in part if isinstance(m, nn.Linear)] for part in (model.generator, model.discriminator)
    )
    x, z = torch.randn(4, 2), torch.randn(4, 5)
    expected = (x / 4 @ d1.weight.T).relu() @ d2.weight.T
    torch.testing.assert_close(model.discriminate(x), expected[:, 0])
    torch.testing.assert_close(model.decode(z), ((z @ g1.weight.T).relu() @ g2.weight.T).relu() @ g3.weight.T)
    for layer in (g1, g2, g3, d1, d2):
        small = layer.weight if layer.weight.shape[0] <= layer.weight.shape[1] else layer.weight.T
        torch.testing.assert_close(small @ small.T, 0.64 * torch.eye(len(small)))


def test_the_networks_of_stacked_mnist_are_the_papers():
    model = DCGAN((3, 28, 28), levels=256, latent_dim=256, channels=8, discriminator_channels=2, network="metz")
    sides = [tuple(h.shape[1:]) for h in model.discriminator.outputs(torch.zeros(2, 3, 28, 28))]
    assert sides[::3] == [(2, 14, 14), (4, 7, 7), (8, 4, 4), (1, 1, 1)]
    maps = [tuple(h.shape[1:]) for h in model.generator.outputs(torch.zeros(2, 256))]
    assert maps[1] == (64, 4, 4) and maps[4:11:3] == [(32, 7, 7), (16, 14, 14), (8, 28, 28)] and maps[-1] == (3, 28, 28)
    count = [sum(p.numel() for p in m.parameters() if p.dim() > 1) for m in (model.generator, model.discriminator)]
    assert count[0] == 256 * 1024 + 9 * (64 * 32 + 32 * 16 + 16 * 8 + 8 * 3)
    assert count[1] == 9 * (3 * 2 + 2 * 4 + 4 * 8) + 8 * 16


# --- the optimizers' rules --------------------------------------------------------------------------------------------

OPTIMIZERS = [
    ("sgd", "momentum=0", "weight_decay=0.1"),
    ("sgd", "momentum=0.9"),
    ("sgd", "momentum=0.9", "nesterov=true", "weight_decay=0.1"),
    ("adam", "betas=[0.5,0.999]"),
    ("adam", "betas=[0.0,0.9]", "weight_decay=0.1", "eps=1e-3"),
    ("adamw", "weight_decay=0.1"),
    ("rmsprop", "momentum=0", "weight_decay=0.1"),
    ("rmsprop", "momentum=0.8"),
    ("adagrad", "weight_decay=0.1", "initial_accumulator_value=0.2"),
]


def started(settings: Sequence[str], steps: int) -> torch.optim.Optimizer:
    """An optimizer of a matrix, which decays, and a vector, which doesn't, after so many steps."""
    torch.manual_seed(3)
    module = nn.Linear(3, 2).double()
    optimizer = optim(settings[0], "lr=0.05", *settings[1:]).build("", module)
    for _ in range(steps):
        for p in module.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    return optimizer


def parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("begun", [0, 3])
@pytest.mark.parametrize("settings", OPTIMIZERS, ids=" ".join)
def test_a_rule_is_torchs_own_optimizer(settings: tuple[str, ...], begun: int):
    optimizer = started(settings, begun)
    ahead = Ahead(optimizer)
    for _ in range(4):
        gradients = [torch.randn_like(p) for p in parameters(optimizer)]
        ahead.step(gradients)
        for p, g in zip(parameters(optimizer), gradients, strict=True):
            p.grad = g.clone()
        optimizer.step()
        for mine, real in zip(ahead.parameters, parameters(optimizer), strict=True):
            torch.testing.assert_close(mine.detach(), real.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=" ".join)
def test_a_rules_gradient_is_that_of_finite_differences(settings: tuple[str, ...]):
    optimizer = started(settings, 2)
    shapes = [p.shape for p in parameters(optimizer)]
    gradients = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in (*shapes, *shapes)]

    def after_two(*gs: Tensor) -> tuple[Tensor, ...]:
        ahead = Ahead(optimizer)
        ahead.step(gs[: len(shapes)])
        ahead.step(gs[len(shapes) :])
        return tuple(ahead.parameters)

    assert torch.autograd.gradcheck(after_two, gradients)


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=" ".join)
def test_a_unit_that_is_never_on_gives_no_nan(settings: tuple[str, ...]):
    ahead = Ahead(started(settings, 0))
    driver = torch.zeros((), dtype=torch.float64, requires_grad=True)
    ahead.step([driver * torch.ones_like(p) for p in ahead.parameters])
    (found,) = torch.autograd.grad(torch.cat([p.flatten() for p in ahead.parameters]).sum(), driver)
    assert found.isfinite() and found < 0


def test_a_parameter_without_gradient_stays_and_has_no_state():
    optimizer = started(("adam",), 0)
    ahead = Ahead(optimizer)
    ahead.step([torch.ones_like(parameters(optimizer)[0]), None])
    assert torch.equal(ahead.parameters[1], parameters(optimizer)[1])
    assert not torch.equal(ahead.parameters[0], parameters(optimizer)[0])


class Own(torch.optim.SGD):
    """An optimizer of a user's own."""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: Own(p, lr=0.1), r"optim: Own can't be .* take one of adagrad, adam, adamw, rmsprop, sgd, or set"),
        (lambda p: torch.optim.Adam(p, amsgrad=True), "optim: Adam with amsgrad can't be differentiated through"),
    ],
)
def test_an_optimizer_without_a_rule_is_refused_in_one_line(make, message):
    model, objective = Dirac(1.0, 0.5), Unrolled(k=1)
    updates = objective(model, Batch(ZERO), 0.0)
    next(updates)
    with pytest.raises(UsageError, match=message):
        following(updates, make(model.discriminator.parameters()))


class OwnLoop(NonSaturating):
    def forward(self, model, batch, progress):
        yield from super().forward(model, batch, progress)


class NeedsMore(NonSaturating):
    needs = DCGAN


def test_games_that_are_no_plain_rounds_or_do_not_fit_the_model_are_refused():
    with pytest.raises(UsageError, match=r"objective\.game=OwnLoop: is no game whose rounds are of one critic"):
        Unrolled(OwnLoop())
    with pytest.raises(UsageError, match=r"objective\.game=NeedsMore: needs a model that is DCGAN, and Dirac isn't"):
        Unrolled(NeedsMore()).require(Dirac(1.0, 1.0))


def test_games_that_a_look_ahead_cannot_follow_are_refused():
    with pytest.raises(UsageError, match=r"objective\.game=Wasserstein: moves its critic after each step"):
        Unrolled(Wasserstein())
    with pytest.raises(UsageError, match=r"objective\.game=Unrolled: looks ahead itself"):
        Unrolled(Unrolled())
    with pytest.raises(UsageError, match=r"objective\.game=Wasserstein: moves"):
        Unrolled(AuxiliaryClassifier(Wasserstein()))
    assert AuxiliaryClassifier(Wasserstein()).moves_critic and not AuxiliaryClassifier().moves_critic
    assert Unrolled(WassersteinGP()).game.discriminator_steps == 5
    for game in (BEGAN(), AuxiliaryClassifier()):  # neither touches the critic's weights itself
        assert Unrolled(game).game is game
