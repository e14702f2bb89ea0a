"""The hybrids' truth tests: BiGAN and ALI, VAE-GAN, adversarial autoencoders."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.base import Bidirectional
from gentrain.models.bigan import BiGAN as BiGANModel
from gentrain.objectives.adversarial import Game, LabelSmoothing, Minimax, NonSaturating
from gentrain.objectives.bigan import BiGAN
from gentrain.objectives.feature_matching import FeatureMatching
from gentrain.objectives.hinge import Hinge
from gentrain.objectives.least_squares import LeastSquares
from gentrain.objectives.regularisers import Regularisers
from gentrain.objectives.wasserstein import Wasserstein
from gentrain.optim import Adam
from gentrain.truth.objectives import parts_of, played

# --- BiGAN and ALI ----------------------------------------------------------------------------------------------------


class Each(Distribution):
    """Gives the same codes every time, (n, *code): expectations without noise."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, codes: Tensor):
        super().__init__(event_shape=codes.shape[1:], validate_args=False)
        self.codes = codes

    def sample(self, sample_shape=torch.Size()) -> Tensor:  # noqa: B008
        assert tuple(sample_shape) == (len(self.codes),)
        return self.codes


class Pairs(Bidirectional):
    """K states of x, as many of z, maps from one to the other, and a free logit for each pair."""

    shape, support = (1,), "real"

    def __init__(self, generator: list[int], encoder: list[int]):
        super().__init__()
        self.size = len(generator)
        self.generator, self.encoder = nn.Identity(), nn.Identity()
        self.discriminator = nn.Embedding(self.size**2, 1, _weight=torch.zeros(self.size**2, 1))
        self.maps = torch.tensor([generator, encoder])

    @property
    def prior(self) -> Distribution:
        return Each(torch.arange(self.size).float()[:, None])

    def decode(self, z: Tensor) -> Tensor:
        return self.maps[0, z.long()].float()

    def codes(self, x: Tensor) -> Tensor:
        return self.maps[1, x.long()].float()

    infer = codes

    def discriminate_pair(self, x: Tensor, z: Tensor) -> Tensor:
        return self.discriminator((self.size * x + z).long().flatten()).flatten()

    def sample(self, n: int) -> Tensor:
        return self.decode(self.prior.sample(torch.Size([n])))


def best_critic(pairs: Pairs, objective: BiGAN) -> tuple[Tensor, float]:
    """The critic that has learned everything, as probabilities, (x, z), and its loss."""
    batch = Batch(torch.arange(pairs.size).float()[:, None])
    optimizer = torch.optim.LBFGS(pairs.discriminator.parameters(), lr=1, max_iter=100, tolerance_grad=1e-9)

    def closure() -> Tensor:
        update = next(objective(pairs, batch, 0.0))
        assert update.part == "discriminator" and update.loss is not None
        optimizer.zero_grad()
        update.loss.backward()
        return update.loss

    optimizer.step(closure)  # type: ignore[arg-type]
    d = torch.sigmoid(pairs.discriminator.weight.detach()).view(pairs.size, pairs.size)
    return d, closure().item()


def test_the_best_critic_of_pairs_is_the_share_of_data():
    # data's pairs (0, 0), (1, 1), (2, 1), the generator's (0, 0), (1, 1), (2, 2): a third each
    generator, encoder = [0, 1, 2], [0, 1, 1]
    d, loss = best_critic(Pairs(generator, encoder), BiGAN(LabelSmoothing(smoothing=0.2, beta=0.1)))
    real, fake = torch.zeros(3, 3), torch.zeros(3, 3)
    for i in range(3):
        real[i, encoder[i]] += 1
        fake[generator[i], i] += 1
    seen = real + fake > 0
    torch.testing.assert_close(d[seen], ((0.8 * real + 0.1 * fake) / (real + fake))[seen], atol=1e-4, rtol=0)
    assert (d[~seen] == 0.5).all() and math.isfinite(loss)


def test_no_critic_tells_an_inverse_and_only_an_inverse():
    generator = [2, 0, 1]
    losses = {e: best_critic(Pairs(generator, list(e)), BiGAN())[1] for e in itertools.permutations(range(3))}
    inverse = tuple(generator.index(x) for x in range(3))
    assert losses.pop(inverse) == pytest.approx(math.log(4), abs=1e-5)
    # of three pairs one in common, or none: 2/3, or all, of log 4 - 2 JS is lost
    assert all(loss < math.log(4) / 3 + 0.01 for loss in losses.values()) and len(losses) == 5


class Linear(Bidirectional):
    """x = A z, z = B x, and a critic of all second moments of x and z."""

    shape, support = (2,), "real"

    def __init__(self, codes: Tensor):
        super().__init__()
        self.generator, self.encoder = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.discriminator = nn.Linear(10, 1)
        self.z = codes

    @property
    def prior(self) -> Distribution:
        return Each(self.z)

    def decode(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def codes(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    infer = codes

    def discriminate_pair(self, x: Tensor, z: Tensor) -> Tensor:
        pair = torch.cat([x, z], 1)
        i, j = torch.triu_indices(4, 4)
        return self.discriminator(pair[:, i] * pair[:, j]).flatten()

    def sample(self, n: int) -> Tensor:
        return torch.randn(n, 2) @ self.generator.weight.t()


def white(n: int) -> Tensor:
    """n draws (n, 2) with mean 0 and covariance I, exactly."""
    z = torch.randn(n, 2)
    z = z - z.mean(0)
    return z @ torch.linalg.inv(torch.linalg.cholesky(z.t() @ z / n)).t()


def train(model: nn.Module, objective, batch: Batch, steps: int, optim: Adam) -> None:
    parts = parts_of(objective, model, optim)  # type: ignore[arg-type]
    for step in range(steps):
        for update in played(objective(model, batch, step / steps), parts):
            if update.loss is not None:
                parts[update.part].step(update, 1 - step / steps, step)


def test_the_encoder_becomes_the_inverse_of_a_linear_generator():
    torch.manual_seed(0)
    model, mix = Linear(white(200)), torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    objective = BiGAN(NonSaturating(regularise=Regularisers(r1=0.3, r2=0.3)))
    optim = Adam(1e-2, 0.0, "constant", 0.0, 0.0, None, (0.5, 0.9), 1e-8)

    def gaps() -> tuple[float, float]:
        g, e = model.generator.weight.detach(), model.encoder.weight.detach()
        return (e @ g - torch.eye(2)).norm().item(), (g @ g.t() - mix @ mix.t()).norm().item()

    assert min(gaps()) > 0.5
    train(model, objective, Batch(white(200) @ mix.t()), 400, optim)
    assert max(gaps()) < 0.05, "E = G^-1, and x = G(z) has the covariance of the data"


@pytest.mark.parametrize(
    ("game", "loss"),
    [
        (NonSaturating(), lambda r: -torch.sigmoid(-r).log()),
        (Minimax(), lambda r: torch.sigmoid(r).log()),
        (LeastSquares(), lambda r: 0.5 * r**2),  # targets 0 and 1: data's pairs shall look like 0
        (Hinge(), lambda r: r),
        (Wasserstein(clip=1e3, discriminator_steps=1), lambda r: r),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Game) else "",
)
def test_the_encoder_plays_the_generator_s_game_from_the_other_side(game: Game, loss):
    torch.manual_seed(0)
    model, x = Linear(white(6)), torch.randn(6, 2)
    updates = [u for u in BiGAN(game)(model, Batch(x), 0.0) if u.loss is not None]
    assert [u.part for u in updates] == ["discriminator", "generator", "encoder"]
    real, fake = model.discriminate_pair(x, model.codes(x)), model.discriminate_pair(model.decode(model.z), model.z)
    torch.testing.assert_close(updates[0].loss, game.discriminator_loss(real, fake))
    torch.testing.assert_close(updates[1].loss, game.generator_loss(fake))
    torch.testing.assert_close(updates[2].loss, loss(real).mean())
    torch.testing.assert_close(updates[2].metrics["e_loss"], loss(real).mean().detach())


@pytest.mark.parametrize("steps", [1, 3])
def test_each_of_the_three_is_taught_by_its_own_loss(steps: int):
    torch.manual_seed(0)
    model = BiGANModel((2,), latent_dim=3, hidden=[8], encoder="gaussian").train()
    objective = BiGAN(NonSaturating(discriminator_steps=steps))
    reached = []
    for update in objective(model, Batch(torch.randn(6, 2)), 0.0):
        assert update.loss is not None
        found = torch.autograd.grad(update.loss, list(model.parameters()), allow_unused=True)
        parts = {
            name.partition(".")[0]
            for (name, _), g in zip(model.named_parameters(), found, strict=True)
            if g is not None
        }
        reached.append((update.part, parts - {"discriminator"}))
    last = [("generator", {"generator"}), ("encoder", {"encoder"})]
    assert reached == [("discriminator", set())] * steps + last


def test_the_critic_s_gradient_is_penalised_in_x_and_z():
    torch.manual_seed(0)
    model, x = Linear(white(6)), torch.randn(6, 2)
    plain, smooth = (
        next(BiGAN(NonSaturating(regularise=r))(model, Batch(x), 0.0)) for r in (None, Regularisers(r1=3.0))
    )
    x, z = x.requires_grad_(), model.codes(x).detach().requires_grad_()
    gradients = torch.autograd.grad(model.discriminate_pair(x, z).sum(), [x, z])
    penalty = 1.5 * sum(g.square().sum(1).mean() for g in gradients)
    assert plain.loss is not None and penalty > 0.1
    torch.testing.assert_close(smooth.loss, plain.loss + penalty)


def test_ali_draws_from_its_posterior_and_bigan_has_a_point():
    torch.manual_seed(0)
    for kind in ("gaussian", "deterministic"):
        model = BiGANModel((2,), latent_dim=2, hidden=[8], encoder=kind).eval()
        x = torch.randn(1, 2)
        encoded = model.encoder(x).detach()
        draws = model.infer(x.expand(20_000, -1)).detach()
        torch.testing.assert_close(model.codes(x).detach(), encoded[:, :2])
        variance = encoded[0, 2:].exp() if kind == "gaussian" else torch.zeros(2)
        error = 5 / 20_000**0.5
        torch.testing.assert_close(draws.mean(0), encoded[0, :2], atol=error * float(variance.max() + 1e-4), rtol=0)
        torch.testing.assert_close(draws.var(0), variance, atol=1e-9, rtol=1.5 * error)
        torch.testing.assert_close(model.reconstruct(x), model.decode(model.codes(x)))


def test_games_that_see_more_than_the_critic_s_number_are_refused():
    with pytest.raises(UsageError, match="game=FeatureMatching"):
        BiGAN(FeatureMatching())
