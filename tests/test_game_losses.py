"""The games' truth tests: what the best critic says on a discrete space for each loss, losses by hand, bounds kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from games import P_DATA, P_MODEL, Table, best_outputs, table_batch, train_critic
from helpers import bare_trainer, fit, resumed
from torch import Tensor, nn
from torch.distributions import Distribution, Uniform

from gentrain import config, noise
from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.autoencoding_gan import AutoencodingGAN
from gentrain.models.critics import Adversarial
from gentrain.models.gan import GAN
from gentrain.objectives.adversarial import Game, LabelSmoothing, Round
from gentrain.objectives.began import BEGAN
from gentrain.objectives.boundary_seeking import BoundarySeeking
from gentrain.objectives.ebgan import EBGAN, pulling_away
from gentrain.objectives.f_gan import FGAN
from gentrain.objectives.feature_matching import FeatureMatching
from gentrain.objectives.hinge import Hinge
from gentrain.objectives.least_squares import LeastSquares
from gentrain.objectives.regularisers import Regularisers
from gentrain.objectives.wasserstein import Wasserstein, WassersteinGP

RATIO = P_DATA / P_MODEL
REAL, FAKE = torch.tensor([0.5, 2.0]), torch.tensor([-0.5, 3.0])


@pytest.mark.parametrize(("a", "b", "c"), [(0.0, 1.0, 1.0), (-1.0, 1.0, 0.0), (2.0, 5.0, 4.0)])
def test_the_best_critic_of_least_squares_is_the_mean_target(a: float, b: float, c: float):
    game = LeastSquares(a, b, c)
    outputs, loss = best_outputs(game)
    both = P_DATA + P_MODEL
    torch.testing.assert_close(outputs, (b * P_DATA + a * P_MODEL) / both, atol=1e-4, rtol=0)
    assert loss.item() == pytest.approx(((b - a) ** 2 * P_DATA * P_MODEL / both).sum().item() / 2, abs=1e-5)
    assert game.boundary == (a + b) / 2
    # theorem 1: with b - c = 1 and b - a = 2 the critic leaves G half of Pearson's χ² between p_d + p_g and 2 p_g
    if (a, b, c) == (-1.0, 1.0, 0.0):
        of_both = ((outputs - c).square() * both).sum() / 2
        assert of_both.item() == pytest.approx(((2 * P_MODEL - both) ** 2 / both).sum().item() / 2, abs=1e-5)


@pytest.mark.parametrize(("a", "b", "c"), [(1.0, 1.0, 1.0), (1.0, 0.0, 2.0), (0.0, 1.0, 0.0)])
def test_targets_in_the_wrong_order(a: float, b: float, c: float):
    with pytest.raises(UsageError, match=r"objective\.a="):
        LeastSquares(a, b, c)


DIVERGENCES: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "kl": (lambda u: u * u.log(), (P_DATA * RATIO.log()).sum()),
    "reverse_kl": (lambda u: -u.log(), -(P_MODEL * RATIO.log()).sum()),
    "pearson": (lambda u: (u - 1) ** 2, ((P_DATA - P_MODEL) ** 2 / P_MODEL).sum()),
    "jensen_shannon": (
        lambda u: u * u.log() - (u + 1) * ((1 + u) / 2).log(),
        (P_DATA * (2 * P_DATA / (P_DATA + P_MODEL)).log()).sum()
        + (P_MODEL * (2 * P_MODEL / (P_DATA + P_MODEL)).log()).sum(),
    ),
}
"""f, and the divergence of data from model by its own formula."""


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_best_critic_of_an_f_gan_is_the_slope_at_the_ratio(name: str):
    f, divergence = DIVERGENCES[name]
    game = FGAN(name)  # type: ignore[arg-type]
    outputs, loss = best_outputs(game)
    u = RATIO.clone().requires_grad_()
    (slope,) = torch.autograd.grad(f(u).sum(), u)
    torch.testing.assert_close(game.variational(outputs), slope, atol=1e-3, rtol=1e-3)
    assert -loss.item() == pytest.approx(divergence.item(), rel=1e-5)
    assert (outputs > 0).equal(RATIO > 1), "the boundary is where data and model are equally likely"


@pytest.mark.parametrize("name", DIVERGENCES)
def test_conjugates(name: str):
    """f*(t) = max_u ut - f(u), over a fine grid; T rises with the output, and is f'(1) at 0."""
    f, _ = DIVERGENCES[name]
    game = FGAN(name)  # type: ignore[arg-type]
    u = torch.logspace(-3, 2, 20_001, dtype=torch.float64)
    v = torch.linspace(-1.9, 3, 21, dtype=torch.float64)
    t = game.variational(v)
    assert (t.diff() > 0).all()
    highest = (u * t[:, None] - f(u)).max(1).values
    torch.testing.assert_close(game.conjugate(v), highest, atol=1e-5, rtol=0)
    one = torch.ones((), dtype=torch.float64, requires_grad=True)
    (threshold,) = torch.autograd.grad(f(one), one)
    assert game.variational(torch.zeros(())).item() == pytest.approx(threshold.item(), abs=1e-6)


def test_the_best_critic_of_hinges_is_a_sign():
    """By subgradients: the loss has corners just where the best critic is."""
    torch.manual_seed(0)
    table, batch, game = Table(), table_batch(), Hinge()
    optimizer = torch.optim.SGD(table.discriminator.parameters(), 0.05)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.05 if step < 300 else 0.002
        loss = next(game(table, batch, 0.0)).loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    outputs = table.discriminator.weight.detach().flatten()
    torch.testing.assert_close(outputs, torch.sign(P_DATA - P_MODEL), atol=5e-3, rtol=0)
    variation = (P_DATA - P_MODEL).abs().sum().item() / 2
    assert loss.item() == pytest.approx(2 * (1 - variation), abs=5e-3)
    assert game.generator_loss(table.discriminate(table.sample(100))).item() == pytest.approx(
        -(P_MODEL * torch.sign(P_DATA - P_MODEL)).sum().item(), abs=5e-3
    )


def test_boundary_seeking_is_done_where_the_critic_can_not_tell():
    outputs, _ = best_outputs(BoundarySeeking())
    torch.testing.assert_close(outputs, RATIO.log(), atol=1e-3, rtol=0)
    of_fakes = outputs.repeat_interleave((100 * P_MODEL).long())
    loss = BoundarySeeking().generator_loss(of_fakes)
    assert loss.item() == pytest.approx((P_MODEL * RATIO.log() ** 2).sum().item() / 2, rel=1e-3)
    even = torch.zeros(3, requires_grad=True)
    (slope,) = torch.autograd.grad(BoundarySeeking().generator_loss(even), even)
    assert not slope.any(), "where p_data = p_G it pulls nowhere; the non-saturating loss would"


def test_losses_by_hand():
    up, log = math.exp, math.log
    kl = (up(-0.5) + 4) / 2 - (1 + log(1.5) + 1 + log(3)) / 2
    reverse = (-1 - log(1.5) + 2) / 2 + (up(-0.5) + up(-2)) / 2
    squares = ((0.5**2 + 1**2) / 2 + (0.5**2 + 3**2) / 2) / 2
    goodfellow = (log(1 + up(-0.5)) + log(1 + up(-2))) / 2 + (log(1 + up(-0.5)) + log(1 + up(3))) / 2
    for game, d_loss, g_loss in (
        (LeastSquares(), squares, (1.5**2 + 2**2) / 4),
        (LeastSquares(-1, 1, 0), ((0.5**2 + 1**2) / 2 + (0.5**2 + 4**2) / 2) / 2, (0.5**2 + 3**2) / 4),
        (Hinge(), (0.5 + 0) / 2 + (0.5 + 4) / 2, -1.25),
        (Wasserstein(), 1.25 - 1.25, -1.25),
        (WassersteinGP(), 1.25 - 1.25, -1.25),
        (FGAN("kl"), kl, -(0.5 + 1 + log(4)) / 2),
        (FGAN("kl", non_saturating=False), kl, -(up(-0.5) + 4) / 2),
        (FGAN("reverse_kl"), reverse, (1.5 + up(-3)) / 2),
        (FGAN("reverse_kl", non_saturating=False), reverse, -(-1 - log(1.5) + 2) / 2),
        (FGAN("pearson"), (0.25 / 4 - 0.5 + 9 / 4 + 3) / 2 - 1.25, -1.25),
        (FGAN("pearson", non_saturating=False), (0.25 / 4 - 0.5 + 9 / 4 + 3) / 2 - 1.25, -(0.25 / 4 - 0.5 + 5.25) / 2),
        (FGAN("jensen_shannon"), goodfellow - 2 * log(2), (log(1 + up(0.5)) + log(1 + up(-3))) / 2 - log(2)),
        (BoundarySeeking(), goodfellow, (0.5**2 + 3**2) / 4),
    ):  # fmt: skip
        named = f"{type(game).__name__} {getattr(game, 'divergence', '')}"
        assert game.discriminator_loss(REAL, FAKE).item() == pytest.approx(d_loss, abs=1e-6), named
        assert game.generator_loss(FAKE).item() == pytest.approx(g_loss, abs=1e-6), named


GAMES = [
    LeastSquares(), Hinge(), Wasserstein(), WassersteinGP(), BoundarySeeking(),
    *(FGAN(name, way) for name in DIVERGENCES for way in (True, False)),  # type: ignore[arg-type]
]  # fmt: skip


@pytest.mark.parametrize("game", GAMES)
def test_losses_stay_finite_at_any_output(game: Game):
    outputs = torch.tensor([-1e4, 0.0, 1e4], requires_grad=True)
    (game.discriminator_loss(outputs, outputs) + game.generator_loss(outputs)).backward()
    assert outputs.grad is not None and torch.isfinite(outputs.grad).all()


def test_clipping_holds_after_every_step():
    """And the best critic within the bounds is at one of them for each state: c sign(p_data - p_G)."""
    torch.manual_seed(1)
    table, batch, game = Table(), table_batch(), Wasserstein(clip=0.3, discriminator_steps=3)
    optimizer = torch.optim.SGD(table.discriminator.parameters(), 0.5)
    weights = table.discriminator.weight
    shares: list[float] = []
    for _ in range(5):
        kinds = []
        for update in game(table, batch, 0.0):
            kinds.append(update.part or "in place")
            if update.part == "discriminator":
                assert update.loss is not None
                optimizer.zero_grad()
                update.loss.backward()
                optimizer.step()
            else:
                assert weights.abs().max() <= 0.3
                shares += [update.metrics["clipped"].item()] if not update.part else []
        assert kinds == [*["discriminator", "in place"] * 3, "generator"]
    torch.testing.assert_close(weights.detach().flatten(), 0.3 * torch.sign(P_DATA - P_MODEL))
    assert shares[-1] == 1 and all(0 <= s <= 1 for s in shares)
    loss = next(game(table, batch, 0.0)).loss
    assert loss is not None and -loss.item() == pytest.approx(0.3 * (P_DATA - P_MODEL).abs().sum().item())


def test_a_critic_from_another_game_is_clipped_before_it_plays():
    torch.manual_seed(2)
    gan = GAN((2,), latent_dim=2, hidden=[8])
    made = [p.detach().clone() for p in gan.generator.parameters()]
    Wasserstein(clip=0.05).begin(gan)
    assert all(p.abs().max() <= 0.05 for p in gan.discriminator.parameters())
    assert any(p.abs().max() == 0.05 for p in gan.discriminator.parameters())
    assert all(map(torch.equal, made, gan.generator.parameters()))


class Line(Adversarial):
    """Generates zeros; its critic is D(x) = wx + b."""

    shape, support = (1,), "real"

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.discriminator = nn.Identity(), nn.Linear(1, 1, dtype=torch.float64)

    @property
    def prior(self) -> Distribution:
        return Uniform(torch.zeros(1), torch.ones(1))

    def decode(self, z: Tensor) -> Tensor:
        return 0 * z.double()

    def discriminate(self, x: Tensor) -> Tensor:
        return self.discriminator(x).flatten()

    def sample(self, n: int) -> Tensor:
        return self.decode(self.prior.sample(torch.Size([n])))


@pytest.mark.parametrize("weight", [10.0, 0.5])
def test_the_best_critic_of_two_points_with_a_penalty(weight: float):
    """Data at 3, fakes at 0: max_w 3w - λ(w - 1)² is at w = 1 + 3/(2λ), and 3 + 9/(4λ), beyond W = 3 by the slack."""
    game = WassersteinGP(regularise=Regularisers(gradient_penalty=weight))
    model, loss = train_critic(game, Line(), Batch(torch.full((20, 1), 3.0, dtype=torch.float64)))
    assert isinstance(model, Line)
    assert model.discriminator.weight.item() == pytest.approx(1 + 3 / (2 * weight), rel=1e-4)
    assert -loss.item() == pytest.approx(3 + 9 / (4 * weight), rel=1e-4)


def test_feature_matching_by_hand():
    torch.manual_seed(3)
    gan, x = GAN((2,), latent_dim=3, hidden=[8]), torch.randn(6, 2)
    made: list[Tensor] = []
    gan.generator.register_forward_hook(lambda *call: made.append(call[-1].detach()))
    *_, update = FeatureMatching()(gan, Batch(x), 0.0)
    assert update.loss is not None
    hidden = gan.discriminator[1]
    assert isinstance(hidden, nn.Linear)

    def mean(of: Tensor) -> list[float]:
        rows = [[max(v, 0.2 * v) for v in (hidden.weight @ row + hidden.bias).tolist()] for row in of]
        return [sum(column) / len(rows) for column in zip(*rows, strict=True)]

    expected = sum((a - b) ** 2 for a, b in zip(mean(x), mean(made[0]), strict=True))
    assert update.loss.item() == pytest.approx(expected, rel=1e-4)
    assert update.part == "generator"
    (last,) = torch.autograd.grad(update.loss, [gan.discriminator[-1].weight], allow_unused=True)  # type: ignore
    assert last is None, "the verdict has no say"


def test_only_log_odds_are_probabilities():
    """What the health line takes for a discriminator that has won are outputs of games that have probabilities."""
    having = {type(g).__name__ + getattr(g, "divergence", "") for g in GAMES if g.probability}
    assert having == {"BoundarySeeking", "FGANjensen_shannon"} and FeatureMatching().probability
    assert {type(g).__name__ for g in GAMES if g.boundary is None} == {"Wasserstein", "WassersteinGP"}


def test_the_penalty_is_in_the_yaml():
    cfg = config.compose("train", ["model=gan", "objective=wasserstein_gp"])
    game = config.build(config.resolve(cfg)["objective"], [], Game)
    assert game.regularise.gradient_penalty == 10 and game.discriminator_steps == 5


def autoencoder(error: str = "l1") -> tuple[AutoencodingGAN, Tensor]:
    torch.manual_seed(4)
    return AutoencodingGAN((3,), latent_dim=2, hidden=[8], error=error), torch.randn(10, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(("error", "power"), [("l1", 1), ("l2", 2)])
def test_an_autoencoding_critic_says_minus_its_error(error: str, power: int):
    gan, x = autoencoder(error)
    restored = gan.discriminator["decoder"](gan.discriminator["encoder"](x))
    for row, made, said in zip(x.tolist(), restored.tolist(), gan.discriminate(x).tolist(), strict=True):
        assert said == pytest.approx(-sum(abs(a - b) ** power for a, b in zip(row, made, strict=True)) / 3, rel=1e-5)


@pytest.mark.parametrize(("gamma", "start", "end"), [(0.7, 0.0, 1.0), (0.0, 0.2, 0.0)])
def test_the_balance_of_began_follows_its_formula(gamma: float, start: float, end: float):
    """Errors, loss, k and convergence by hand, over steps of a training that takes k to an end."""
    gan, x = autoencoder()
    game = BEGAN(gamma=gamma, rate=0.4)
    game.k.fill_(start)
    optimizers = {part: torch.optim.SGD(gan.get_submodule(part).parameters(), 0.05) for part in game.parts}
    k, seen, errors = start, [], (0.0, 0.0)
    for _ in range(12):
        made: list[Tensor] = []
        hook = gan.generator.register_forward_hook(lambda *call, made=made: made.append(call[-1].detach()))
        for update in game(gan, Batch(x), 0.0):
            if update.part == "discriminator":
                errors = tuple((v - gan.reconstruct(v)).abs().mean().item() for v in (x, made[0]))
                assert update.loss is not None and update.loss.item() == pytest.approx(
                    errors[0] - k * errors[1], abs=1e-5
                )
            elif update.part == "generator":
                assert update.loss is not None
                again = (made[0] - gan.reconstruct(made[0])).abs().mean().item()
                assert update.loss.item() == pytest.approx(again, abs=1e-5), "against the critic that has moved"
            else:
                balance = gamma * errors[0] - errors[1]
                k = min(1.0, max(0.0, k + 0.4 * balance))
                assert update.metrics["k"].item() == pytest.approx(k, abs=1e-5) == game.k.item()
                assert update.metrics["convergence"].item() == pytest.approx(errors[0] + abs(balance), abs=1e-5)
                continue
            optimizers[update.part].zero_grad()
            update.loss.backward(inputs=list(gan.get_submodule(update.part).parameters()))
            optimizers[update.part].step()
        hook.remove()
        seen.append(k)
    assert seen[-1] == end and any(0 < v < 1 for v in seen), "a way to an end, and no further"


def test_the_balance_is_kept_in_the_checkpoint(tmp_path: Path):
    overrides = ["model=autoencoding_gan", "objective=began", "data=ring", "model.hidden=[8]", "objective.rate=0.5"]
    overrides.append("trainer.steps=6")
    straight = fit(bare_trainer(tmp_path / "a", *overrides))
    stopped = fit(bare_trainer(tmp_path / "b", *overrides), until=3)
    half = stopped.objective.k.item()
    again = resumed(bare_trainer(tmp_path / "b", *overrides))
    assert again.objective.k.item() == half > 0
    assert torch.equal(fit(again).objective.k, straight.objective.k)


def test_the_margin_of_ebgan():
    """Samples whose error is beyond the margin teach the critic nothing; within it they are pushed up."""
    game = EBGAN(margin=0.5)
    real, fake = torch.tensor([-0.1, -0.3]), torch.tensor([-0.2, -0.9], requires_grad=True)
    loss = game.discriminator_loss(real, fake)
    assert loss.item() == pytest.approx((0.1 + 0.3) / 2 + (0.3 + 0) / 2)
    (slope,) = torch.autograd.grad(loss, fake)
    assert slope.tolist() == [0.5, 0.0]
    assert game.generator_loss(fake).item() == pytest.approx((0.2 + 0.9) / 2)


def test_codes_are_pulled_apart():
    codes = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, -2.0]])  # cosines 0.6, 0, -0.8
    assert pulling_away(codes).item() == pytest.approx((0.36 + 0 + 0.64) / 3)
    assert pulling_away(codes[:1]).item() == 0
    gan, x = autoencoder()
    made: list[Tensor] = []
    gan.generator.register_forward_hook(lambda *call: made.append(call[-1].detach()))
    *_, update = EBGAN(repelling=0.3)(gan, Batch(x), 0.0)
    term = 0.3 * pulling_away(gan.codes(made[0])).item()
    assert update.metrics["repelling"].item() == pytest.approx(term, rel=1e-4) and term > 0
    assert update.metrics["g_loss"].item() == pytest.approx(term - gan.discriminate(made[0]).mean().item(), rel=1e-4)


def test_errors_are_no_log_odds():
    assert not BEGAN.fits(GAN) and not EBGAN.fits(GAN) and BEGAN.fits(AutoencodingGAN)
    assert not any(type(game).fits(AutoencodingGAN) for game in GAMES)
    with pytest.raises(UsageError, match=r"model\.channels=8"):
        AutoencodingGAN((1, 8, 8), levels=17, channels=8)
    with pytest.raises(UsageError, match=r"network=conv takes images"):
        AutoencodingGAN((2,), network="conv")


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_an_autoencoding_gan_of_images(network: str):
    torch.manual_seed(5)
    gan = AutoencodingGAN((1, 9, 8), 17, network, 3, [8], None if network == "mlp" else 4)  # type: ignore[arg-type]
    x = gan.sample(5)
    assert gan.support == "signed" and x.shape == gan.reconstruct(x).shape == (5, 1, 9, 8) and x.abs().max() <= 1
    shapes = [[p.shape for p in net.parameters()] for net in (gan.generator, gan.discriminator["decoder"])]
    assert shapes[0] == shapes[1], "as in BEGAN, G has the decoder's form"


def test_a_constructor_in_another_file_is_checked_too():
    with pytest.raises(UsageError, match=r"objective\.discriminator_steps=0: must be a whole number of at least 1"):
        config.check(config.compose("train", ["model=gan", "objective=hinge", "objective.discriminator_steps=0"]))


@pytest.mark.parametrize(("smoothing", "beta"), [(0.1, 0.0), (0.2, 0.3)])
def test_smoothed_labels_are_told_apart_where_data_and_model_are_equally_likely(smoothing: float, beta: float):
    """The best D, ((1-α) p_data + β p_G)/(p_data + p_G), lies above the boundary just where p_data > p_G."""
    game = LabelSmoothing(smoothing, beta)
    ratio = torch.tensor([0.5, 0.99, 1.01, 2.0])
    best = torch.logit(((1 - smoothing) * ratio + beta) / (1 + ratio))
    assert game.boundary is not None and (best > game.boundary).tolist() == [False, False, True, True]


def test_smoothed_labels_the_wrong_way_round_are_refused():
    with pytest.raises(UsageError, match=r"objective.beta=0.9: .* objective.smoothing = 0.1"):
        LabelSmoothing(0.9, 0.9)


def test_features_are_matched_over_the_batch_of_all_processes(monkeypatch: pytest.MonkeyPatch):
    class Seen(GAN):
        def features(self, x: Tensor) -> Tensor:
            return x

    torch.manual_seed(8)
    real, fake, model = torch.randn(6, 2), torch.randn(6, 2), Seen((2,), latent_dim=2, hidden=[4])
    exact = (real.mean(0) - (x := fake.clone().requires_grad_()).mean(0)).square().sum()
    (wanted,) = torch.autograd.grad(exact, x)
    for rank in (0, 1):
        rows = slice(3 * rank, 3 * rank + 3)
        own = fake[rows].clone().requires_grad_()
        monkeypatch.setattr(
            noise, "of_all_processes", lambda t: fake if (t == fake[:3]).all() or (t == fake[3:]).all() else real
        )
        noise.shard(rank, 2)
        try:
            loss, _ = FeatureMatching().generator_step(model, Round(real[rows], None, own, own, 0.0), None)
        finally:
            noise.shard(0, 1)
        assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
        torch.testing.assert_close(torch.autograd.grad(loss, own)[0] / 2, wanted[rows])
