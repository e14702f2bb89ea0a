"""The hybrids' truth tests: BiGAN and ALI, VAE-GAN, adversarial autoencoders."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, MultivariateNormal

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.evaluation.health import Patient, discriminator
from gentrain.models.aae import AAE as AAEModel
from gentrain.models.bigan import BiGAN as BiGANModel
from gentrain.models.critics import Bidirectional
from gentrain.models.vae_gan import CVAEGAN as CVAEGANModel
from gentrain.models.vae_gan import VAEGAN as VAEGANModel
from gentrain.objectives.aae import AAE
from gentrain.objectives.adversarial import Game, LabelSmoothing, Minimax, NonSaturating
from gentrain.objectives.bigan import BiGAN
from gentrain.objectives.feature_matching import FeatureMatching
from gentrain.objectives.hinge import Hinge
from gentrain.objectives.least_squares import LeastSquares
from gentrain.objectives.regularisers import Regularisers
from gentrain.objectives.unrolled import Unrolled
from gentrain.objectives.vae_gan import CVAEGAN, VAEGAN
from gentrain.objectives.wasserstein import Wasserstein
from gentrain.optim import Adam
from gentrain.truth.base import prove
from gentrain.truth.objectives import case_of, parts_of, played
from gentrain.update import Update

SOME = torch.tensor([0, 2, 1, 1, 0, 2])
"""Labels of six examples."""


def reaches(update: Update, model: nn.Module) -> set[str]:
    """The submodules that the update's loss has a gradient for."""
    assert update.loss is not None
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(update.loss, parameters, allow_unused=True, retain_graph=True)
    return {name.partition(".")[0] for name, g in zip(names, found, strict=True) if g is not None and g.any()}


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


class Moments(nn.Module):
    """A critic of first and second moments, (B, d) -> (B, 1): what tells Gaussians apart."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.last = size + 1, nn.Linear((size + 1) * (size + 2) // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        i, j = torch.triu_indices(self.size, self.size)
        return self.last(x[:, i] * x[:, j])


class Linear(Bidirectional):
    """x = A z, z = B x, and a critic of all moments of x and z up to the second."""

    shape, support = (2,), "real"

    def __init__(self, codes: Tensor):
        super().__init__()
        self.generator, self.encoder = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.discriminator = Moments(4)
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
        return self.discriminator(torch.cat([x, z], 1)).flatten()

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


def test_both_makers_look_ahead_where_the_game_does():
    """In the unrolled game E's loss is G's of the same pairs in changed places, against the critic k steps ahead."""
    torch.manual_seed(0)
    model, x, optim = Linear(white(6)), torch.randn(6, 2), Adam(1e-2, 0.0, "constant", 0.0, 0.0, None, (0.5, 0.9), 1e-8)
    objective = BiGAN(Unrolled(NonSaturating(), k=2))
    parts = parts_of(objective, model, optim)
    found: dict[str, Tensor] = {}
    for step in range(2):
        for update in played(objective(model, Batch(x), 0.0), parts):
            assert update.loss is not None
            found[update.part] = update.loss.detach()
            if update.part == "discriminator":
                parts["discriminator"].step(update, 1.0, step)
            else:
                update.loss.backward(inputs=list(parts[update.part].parameters.values()))
    with torch.no_grad():  # the critic moves on by the same rule
        for _ in range(2):
            real, fake = (torch.cat(p, 1) for p in ((x, model.codes(x)), (model.decode(model.z), model.z)))
            with torch.enable_grad():
                loss = NonSaturating().discriminator_loss(
                    model.discriminator(real).flatten(), model.discriminator(fake).flatten()
                )
                parts["discriminator"].optimizer.zero_grad()
                loss.backward(inputs=list(model.discriminator.parameters()))
            parts["discriminator"].optimizer.step()
        told_real, told_fake = model.discriminator(real).flatten(), model.discriminator(fake).flatten()
    torch.testing.assert_close(found["generator"], -torch.sigmoid(told_fake).log().mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["encoder"], -torch.sigmoid(-told_real).log().mean(), atol=1e-5, rtol=1e-5)


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


# --- adversarial autoencoders -----------------------------------------------------------------------------------------


def small_aae(**options) -> AAEModel:
    torch.manual_seed(0)
    return AAEModel((2,), classes=3, latent_dim=2, hidden=[8], discriminator_hidden=[8], **options).train()


def test_aae_losses_by_hand():
    model, x = small_aae(), torch.randn(6, 2)
    seen: list[Tensor] = []
    model.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    turns = AAE(Minimax())(model, Batch(x), 0.0)
    first = next(turns)
    assert first.part == "" and reaches(first, model) == {"encoder", "decoder", "bias"}
    restored = model.decoder(model.encoder(x)) + model.bias
    torch.testing.assert_close(first.loss, (x - restored).square().sum(1).mean())
    with torch.no_grad():
        model.encoder[-1].weight.mul_(-2)  # the game is about the codes of the encoder that has moved
    updates = list(turns)
    prior, codes = seen[0], model.encoder(x)
    told_prior, told_codes = (torch.sigmoid(model.discriminator(z)) for z in (prior, codes))
    assert [u.part for u in updates] == ["discriminator", "encoder"]
    torch.testing.assert_close(updates[0].loss, -(told_prior.log().mean() + (1 - told_codes).log().mean()))
    torch.testing.assert_close(updates[1].loss, (1 - told_codes).log().mean())
    assert prior.shape == (6, 2) and not torch.equal(prior, codes)
    assert [reaches(update, model) for update in updates] == [{"discriminator"}, {"encoder", "discriminator"}]


def test_codes_come_to_follow_the_prior():
    torch.manual_seed(0)
    model = AAEModel((2,), latent_dim=2, hidden=[], scale=0.7).train()
    model.discriminator = Moments(2)
    batch = Batch(white(200) @ torch.tensor([[1.0, 0.0], [0.8, 0.6]]).t() + torch.tensor([1.0, -1.0]))
    codes = white(200) * 0.7  # of the prior, with its moments exactly
    model.prior_codes = lambda n, y=None: codes  # type: ignore[method-assign]
    objective = AAE(NonSaturating(regularise=Regularisers(r1=0.3, r2=0.3)))
    optim = Adam(3e-2, 0.0, "constant", 0.0, 0.0, None, (0.5, 0.9), 1e-8)

    def gaps() -> tuple[float, float]:
        z = model.codes(batch.x).detach()
        return z.mean(0).norm().item(), (torch.cov(z.t(), correction=0) - 0.49 * torch.eye(2)).norm().item()

    assert min(gaps()) > 0.5
    train(model, objective, batch, 400, optim)
    assert max(gaps()) < 0.05, "the moments of q(z) are those of p(z), of variance 0.49"
    assert (model.reconstruct(batch.x) - batch.x).square().sum(1).mean() < 0.05


def test_a_mixture_s_components_are_even_and_long_along_their_rays():
    model, n = small_aae(prior="mixture", scale=0.5, components=3, supervised=True), 30_000
    angle = torch.tensor([0.0, 1.0, 2.0]) * 2 * math.pi / 3
    rays = torch.stack([angle.cos(), angle.sin()], 1)
    y = torch.arange(n) % 3
    for label, ray in enumerate(rays):
        z = model.prior_codes(n, y)[y == label]
        along, across = z @ ray, z @ torch.stack([-ray[1], ray[0]])
        for values, mean, deviation in ((along, 2.0, 0.5), (across, 0.0, 0.15)):
            assert abs(values.mean().item() - mean) < 5 * deviation / 100
            assert values.std().item() == pytest.approx(deviation, rel=0.04)
    draws = model.prior.sample(torch.Size([n]))
    nearest = (draws[:, None] - 2 * rays).square().sum(2).argmin(1)
    assert (torch.bincount(nearest) / n - 1 / 3).abs().max() < 0.015
    each = torch.stack([
        MultivariateNormal(2 * ray, torch.outer(ray, ray) * 0.25 + (torch.eye(2) - torch.outer(ray, ray)) * 0.0225)
        .log_prob(draws[:50]) for ray in rays
    ])  # fmt: skip
    torch.testing.assert_close(model.prior.log_prob(draws[:50]), each.logsumexp(0) - math.log(3), atol=1e-4, rtol=1e-4)


def test_labels_go_with_codes_where_asked():
    x = torch.randn(6, 2)
    for supervised in (True, False):
        model = small_aae(prior="mixture", components=3, supervised=supervised)
        seen: list[Tensor] = []
        model.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))  # noqa: B023
        list(AAE()(model, Batch(x, SOME), 0.0))
        assert len(seen) == 3
        if not supervised:
            assert all(z.shape == (6, 2) for z in seen)
            continue
        for z in seen:  # the prior's draws, from the components of these labels, and twice the codes
            assert torch.equal(z[:, 2:].argmax(1), SOME) and torch.equal(z[:, 2:].sum(1), torch.ones(6))
        rays = torch.stack([(SOME * 2 * math.pi / 3).cos(), (SOME * 2 * math.pi / 3).sin()], 1)
        assert ((seen[0][:, :2] - 4 * rays).norm(dim=1) < 3.5).all()
        with pytest.raises(UsageError, match="have no labels"):
            next(AAE()(model, Batch(x), 0.0))


def test_dropout_of_the_encoders_inputs_is_of_training_alone():
    """Of w_j x_j kept and divided by 1 - p the variance is Σ_j w_j² x_j² p/(1 - p), the mean the whole's."""
    torch.manual_seed(0)
    model = AAEModel((3,), latent_dim=1, hidden=[], dropout=[0.4])
    (layer,) = (m for m in model.encoder if isinstance(m, nn.Linear))
    with torch.no_grad():
        layer.weight.fill_(2.0), layer.bias.fill_(0.3)
    x = torch.tensor([[1.0, 2.0, 3.0]])
    found, variance = model.codes(x.expand(40_000, 3)), 4 * 14 * 0.4 / 0.6
    assert found.var().item() == pytest.approx(variance, rel=0.03)
    assert found.mean().item() == pytest.approx(12.3, abs=4 * (variance / 40_000) ** 0.5)
    assert model.eval().codes(x).item() == pytest.approx(12.3, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prior": "mixture", "latent_dim": 3}, "model.latent_dim=3: a mixture is of 2-D Gaussians"),
        ({"supervised": True, "latent_dim": 2, "prior": "mixture", "classes": 4}, "model.components=10"),
        ({"supervised": True}, "these data have no labels"),
        ({"dropout": [0.1, 0.1, 0.1]}, "there are 2 layers; give no more shares than that"),
        ({"dropout": [0.1], "network": "conv"}, "is for model.network=mlp"),
    ],
)
def test_aae_refuses(options: dict, words: str):
    with pytest.raises(UsageError, match=words):
        AAEModel((2,), hidden=[8], **options)


# --- VAE-GAN and CVAE-GAN ---------------------------------------------------------------------------------------------


def hidden(x: Tensor, layers: list[nn.Module]) -> Tensor:
    """A leaky rectifier of the normalised outputs of a linear layer."""
    linear, norm = layers
    x = linear(x)
    x = norm.weight * (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt() + norm.bias
    return torch.where(x > 0, x, 0.2 * x)


def recorded(model: nn.Module, objective, batch: Batch) -> tuple[list[Update], list[Tensor]]:
    """A round's updates, none carried out, and what the generator was given."""
    given: list[Tensor] = []
    hook = model.generator.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].detach()))
    updates = list(objective(model, batch, 0.0))
    hook.remove()
    return updates, given


def kl_by_hand(model: nn.Module, *inputs: Tensor) -> Tensor:
    mean, log_variance = model.encoder(torch.cat(inputs, 1)).chunk(2, 1)
    return 0.5 * (mean**2 + log_variance.exp() - log_variance - 1).sum(1).mean()


@pytest.mark.parametrize("layer", [1, None])
def test_vae_gan_losses_by_hand(layer: int | None):
    torch.manual_seed(0)
    model = VAEGANModel((2,), latent_dim=2, hidden=[8], discriminator_hidden=[7, 5]).train()
    x = torch.randn(6, 2)
    updates, (z, prior, again) = recorded(model, VAEGAN(NonSaturating(), layer=layer, gamma=0.3), Batch(x))
    assert [u.part for u in updates] == ["discriminator", "generator", "encoder"]
    assert torch.equal(z, again) and not torch.equal(z, prior)
    mean, log_variance = model.encoder(x).chunk(2, 1)
    assert (((z - mean) / (0.5 * log_variance).exp()).abs() < 4).all()
    _, *layers = model.discriminator
    first, second, last = layers[0:2], layers[3:5], layers[6]

    def d(x: Tensor) -> Tensor:
        return torch.sigmoid(last(hidden(hidden(x, first), second)))

    def seen(x: Tensor) -> Tensor:
        return hidden(x, first) if layer == 1 else hidden(hidden(x, first), second)

    restored, sampled = model.generator(z), model.generator(prior)
    likeness = 0.5 * (seen(x) - seen(restored)).square().sum(1).mean()
    fake = (1 - d(restored)).log().mean() + (1 - d(sampled)).log().mean()
    by_hand = (
        -d(x).log().mean() - 0.5 * fake,
        0.3 * likeness - 0.5 * (d(restored).log().mean() + d(sampled).log().mean()),
        kl_by_hand(model, x) + likeness,
    )
    for update, loss in zip(updates, by_hand, strict=True):
        torch.testing.assert_close(update.loss, loss)
    torch.testing.assert_close(updates[2].metrics["likeness"], likeness.detach())
    reached = [reaches(update, model) for update in updates]
    assert reached[0] == {"discriminator"} and reached[1] - {"discriminator"} == {"generator"}
    # the generator's loss must not teach the encoder, nor the game anyone but its players
    g = torch.autograd.grad(updates[2].loss, model.encoder[1].weight, retain_graph=True)[0]
    z = mean + (0.5 * log_variance).exp() * ((z - mean) / (0.5 * log_variance).exp()).detach()
    through = 0.5 * (seen(x).detach() - seen(model.generator(z))).square().sum(1).mean()
    torch.testing.assert_close(
        g, torch.autograd.grad(kl_by_hand(model, x) + through, model.encoder[1].weight)[0], atol=1e-5, rtol=1e-4
    )


def test_cvae_gan_losses_by_hand():
    torch.manual_seed(0)
    model = CVAEGANModel((2,), classes=3, latent_dim=2, hidden=[8], discriminator_hidden=[5]).train()
    x, label = torch.randn(6, 2), torch.eye(3)[SOME]
    objective = CVAEGAN(NonSaturating(), kl=2.0, pair=0.5, critic_means=0.3, class_means=0.7)
    updates, (z, prior, again) = recorded(model, objective, Batch(x, SOME))
    assert [u.part for u in updates] == ["classifier", "discriminator", "generator", "encoder"]
    assert torch.equal(z, again) and all(torch.equal(v[:, 2:], label) for v in (z, prior))
    networks = [list(network)[1:] for network in (model.discriminator, model.classifier)]
    features = [lambda x, layers=layers: hidden(x, layers[:2]) for layers in networks]
    judge, classify = (layers[-1] for layers in networks)
    d = lambda x: torch.sigmoid(judge(features[0](x)))  # noqa: E731
    restored, sampled = model.generator(z), model.generator(prior)
    pair = 0.5 * (x - restored).square().sum(1).mean()
    pair = pair + sum(0.5 * (f(x) - f(restored)).square().sum(1).mean() for f in features)
    means = 0.5 * (features[0](x).mean(0) - features[0](sampled).mean(0)).square().sum()
    labelled = sum(
        0.5 * (features[1](x[c == SOME]).mean(0) - features[1](sampled[c == SOME]).mean(0)).square().sum()
        for c in range(3)
    )
    by_hand = (
        -torch.stack([classify(features[1](x)).log_softmax(1)[i, c] for i, c in enumerate(SOME)]).mean(),
        -d(x).log().mean() - 0.5 * ((1 - d(restored)).log().mean() + (1 - d(sampled)).log().mean()),
        0.5 * pair + 0.3 * means + 0.7 * labelled,
        2.0 * kl_by_hand(model, x, label) + 0.5 * pair,
    )
    for update, loss in zip(updates, by_hand, strict=True):
        torch.testing.assert_close(update.loss, loss)
    others = {"discriminator", "classifier"}
    assert [reaches(u, model) - (others if i > 1 else set()) for i, u in enumerate(updates)] == [
        {"classifier"}, {"discriminator"}, {"generator"}, {"generator", "encoder"},
    ]  # fmt: skip
    with pytest.raises(UsageError, match="labels"):
        list(objective(model, Batch(x), 0.0))


def test_a_layer_that_the_critic_lacks_is_refused():
    model = VAEGANModel((1, 8, 8), levels=17, network="conv", latent_dim=2, hidden=[8], channels=2)
    VAEGAN(layer=2).require(model)
    with pytest.raises(UsageError, match="layer=3: the model's critic has 2 hidden layers"):
        VAEGAN(layer=3).require(model)


# --- faults that `gentrain check` finds -------------------------------------------------------------------------------


class BlindToCodes(BiGANModel):
    def discriminate_pair(self, x: Tensor, z: Tensor) -> Tensor:
        return super().discriminate_pair(x, 0 * z)


class OneWay(BiGAN):
    """The encoder, too, is to have data's pairs taken for data's."""

    def forward(self, model: Bidirectional, batch: Batch, progress: float):
        for update in super().forward(model, batch, progress):
            wrong = update.part == "encoder" and update.loss is not None
            yield Update(-update.loss, "encoder", metrics=update.metrics) if wrong else update


@pytest.mark.parametrize(
    ("kind", "objective", "claim", "words"),
    [
        (BlindToCodes, BiGAN(), "the critic of pairs looks at both", "of x and z"),
        (BiGANModel, OneWay(), "the critic learns to tell pairs, the others to please it", "as E does"),
    ],
)
def test_a_fault_is_found(kind: type[BiGANModel], objective: BiGAN, claim: str, words: str):
    def build() -> BiGANModel:
        return kind((2,), latent_dim=2, hidden=[8])

    torch.manual_seed(0)
    batches = [Batch(torch.randn(32, 2) + 1) for _ in range(5)]
    optim = Adam(1e-2, 0.0, "constant", 0.0, 0.0, None, (0.5, 0.999), 1e-8)
    sound, faulty = (
        next(prove(case_of(m, o, optim, batches, build, None, n=500), {claim}))
        for m, o in ((BiGANModel((2,), latent_dim=2, hidden=[8]), BiGAN()), (build(), objective))
    )
    assert sound.held is True and faulty.held is False and words in faulty.words


@torch.no_grad()
def test_a_game_within_says_what_the_critic_s_numbers_are():
    """The health of a critic is judged by log-odds: of scores there is nothing to say."""
    torch.manual_seed(0)
    model, x = VAEGANModel((2,), latent_dim=2, hidden=[8]), torch.randn(50, 2)

    class Subject(NamedTuple):
        model: nn.Module
        device: torch.device = torch.device("cpu")

        def batches(self, *_: object) -> Iterator[Batch]:
            yield Batch(x)

    for game, signs in ((NonSaturating(), 1), (Hinge(), 0)):
        patient = Patient(Subject(model), "validation", None, VAEGAN(game))  # type: ignore[arg-type]
        assert len(list(discriminator(patient))) == signs
