"""The games' truth tests: optimal discriminators on a discrete space, losses by hand, who moves when."""

from __future__ import annotations

import math

import pytest
import torch
from games import P_DATA, P_MODEL, best_outputs
from torch import Tensor, nn

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.gan import DCGAN, GAN
from gentrain.objectives.adversarial import Game, LabelSmoothing, Minimax, NonSaturating
from gentrain.objectives.regularisers import Regularisers


@pytest.mark.parametrize("game", [Minimax(), NonSaturating()])
def test_the_best_discriminator_is_the_share_of_data(game: Game):
    logits, loss = best_outputs(game)
    torch.testing.assert_close(torch.sigmoid(logits), P_DATA / (P_DATA + P_MODEL), atol=1e-4, rtol=0)
    # and its loss is log 4 - 2 JS(p_data || p_G), theorem 1
    middle = (P_DATA + P_MODEL) / 2
    js = ((P_DATA * (P_DATA / middle).log()).sum() + (P_MODEL * (P_MODEL / middle).log()).sum()) / 2
    assert loss.item() == pytest.approx(math.log(4) - 2 * js.item(), abs=1e-5)


@pytest.mark.parametrize(("smoothing", "beta"), [(0.1, 0.0), (0.3, 0.2), (0.0, 0.0)])
def test_the_best_discriminator_of_smoothed_labels(smoothing: float, beta: float):
    logits, _ = best_outputs(LabelSmoothing(smoothing=smoothing, beta=beta))
    best = ((1 - smoothing) * P_DATA + beta * P_MODEL) / (P_DATA + P_MODEL)
    torch.testing.assert_close(torch.sigmoid(logits), best, atol=1e-4, rtol=0)


def test_losses_by_hand():
    # logits 0 and log 3 are probabilities 1/2 and 3/4; -log 3 is 1/4
    real, fake = torch.tensor([0.0, math.log(3)]), torch.tensor([0.0, -math.log(3)])
    discriminator = -(math.log(1 / 2) + math.log(3 / 4)) / 2 - (math.log(1 / 2) + math.log(3 / 4)) / 2
    smoothed_real = -(0.9 * math.log(1 / 2) + 0.1 * math.log(1 / 2) + 0.9 * math.log(3 / 4) + 0.1 * math.log(1 / 4)) / 2
    smoothed_fake = -(math.log(1 / 2) + 0.2 * math.log(1 / 4) + 0.8 * math.log(3 / 4)) / 2
    non_saturating = -(math.log(1 / 2) + math.log(1 / 4)) / 2
    for game, d_loss, g_loss in (
        (Minimax(), discriminator, (math.log(1 / 2) + math.log(3 / 4)) / 2),
        (NonSaturating(), discriminator, non_saturating),
        (LabelSmoothing(0.1, 0.2), smoothed_real + smoothed_fake, non_saturating),
    ):
        assert game.discriminator_loss(real, fake).item() == pytest.approx(d_loss, abs=1e-6)
        assert game.generator_loss(fake).item() == pytest.approx(g_loss, abs=1e-6)


@pytest.mark.parametrize("game", [Minimax(), NonSaturating(), LabelSmoothing(0.1, 0.1)])
def test_losses_stay_finite_at_any_logit(game: Game):
    logits = torch.tensor([-1e4, 1e4], requires_grad=True)
    (game.discriminator_loss(logits, logits) + game.generator_loss(logits)).backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


def small() -> tuple[GAN, Batch]:
    torch.manual_seed(1)
    return GAN((2,), latent_dim=3, hidden=[8]), Batch(torch.randn(6, 2))


def test_each_player_leaves_the_other_alone():
    gan, batch = small()
    updates = NonSaturating()(gan, batch, 0.0)
    loss = next(updates).loss
    assert loss is not None
    loss.backward()
    assert all(p.grad is None for p in gan.generator.parameters())
    assert all(p.grad is not None for p in gan.discriminator.parameters())
    before = [p.grad.clone() for p in gan.discriminator.parameters() if p.grad is not None]
    loss = next(updates).loss
    assert loss is not None
    loss.backward(inputs=list(gan.generator.parameters()))  # as the trainer does
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gan.generator.parameters())
    after = [p.grad for p in gan.discriminator.parameters() if p.grad is not None]
    assert all(map(torch.equal, before, after))


def test_the_generator_meets_the_discriminator_that_has_moved():
    gan, batch = small()
    seen: list[Tensor] = []
    gan.generator.register_forward_hook(lambda *call: seen.append(call[-1].detach()))
    updates = NonSaturating()(gan, batch, 0.0)
    next(updates)
    with torch.no_grad():
        for p in gan.discriminator.parameters():
            p.mul_(-3)
    loss = next(updates).loss
    assert loss is not None
    assert len(seen) == 1, "the fakes of the discriminator's step serve the generator's"
    expected = -torch.log(torch.sigmoid(gan.discriminate(seen[0]))).mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("steps", [1, 3])
def test_discriminator_steps(steps: int):
    gan, batch = small()
    fakes: list[Tensor] = []
    gan.generator.register_forward_hook(lambda *call: fakes.append(call[-1].detach()))
    updates = list(Minimax(discriminator_steps=steps)(gan, batch, 0.0))
    assert [u.part for u in updates] == ["discriminator"] * steps + ["generator"]
    assert len(fakes) == steps and (steps == 1 or not torch.equal(fakes[0], fakes[1]))
    seen = {"d_loss", "d_real", "d_fake", "accuracy_real", "accuracy_fake"}
    assert set(updates[0].metrics) == seen and set(updates[-1].metrics) == {"g_loss"}
    assert all(0 < updates[0].metrics[name] < 1 for name in ("d_real", "d_fake"))


def test_the_discriminator_sees_real_and_generated_batches_apart():
    torch.manual_seed(2)
    gan, x = DCGAN((1, 8, 8), levels=17, latent_dim=4, channels=4), torch.rand(5, 1, 8, 8)
    batches: list[Tensor] = []
    gan.discriminator.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0].detach()))
    list(NonSaturating()(gan, Batch(x), 0.0))
    assert [len(b) for b in batches] == [5, 5, 5]
    assert torch.equal(batches[0], x) and torch.equal(batches[1], batches[2])


def test_a_gan_finds_where_the_data_are():
    torch.manual_seed(3)
    gan, game = GAN((2,), latent_dim=2, hidden=[32]), NonSaturating()
    optimizers = {p: torch.optim.Adam(gan.get_submodule(p).parameters(), 2e-3, betas=(0.5, 0.999)) for p in game.parts}
    center = torch.tensor([3.0, -2.0])
    assert (gan.sample(1000).mean(0) - center).norm() > 3
    for _ in range(400):
        for update in game(gan, Batch(center + 0.5 * torch.randn(128, 2)), 0.0):
            assert update.loss is not None
            optimizers[update.part].zero_grad()
            update.loss.backward(inputs=list(gan.get_submodule(update.part).parameters()))
            optimizers[update.part].step()
    assert (gan.sample(1000).mean(0) - center).norm() < 1.2, "the players circle the solution; they stay near it"


@pytest.mark.parametrize("side", [8, 13, 28, 32, 63, 64])
def test_dcgan_takes_any_side(side: int):
    torch.manual_seed(4)
    gan = DCGAN((3, side, side), levels=256, latent_dim=5, channels=2)
    x = gan.sample(3)
    assert x.shape == (3, 3, side, side) and x.abs().max() <= 1
    assert gan.discriminate(x).shape == (3,) and gan.codes(x).shape[0] == 3


def test_dcgan_follows_the_guidelines():
    torch.manual_seed(5)
    gan = DCGAN((1, 32, 32), levels=256)
    kinds = {part: [type(m) for m in gan.get_submodule(part)] for part in ("generator", "discriminator")}  # type: ignore
    assert nn.Linear not in kinds["generator"] + kinds["discriminator"]
    assert kinds["generator"].count(nn.BatchNorm2d) == 3 and kinds["generator"][-1] is nn.Tanh
    assert kinds["discriminator"].count(nn.BatchNorm2d) == 2
    assert kinds["discriminator"][:3] == [nn.Conv2d, nn.LeakyReLU, nn.Conv2d], "no batch normalisation at D's input"
    for module in gan.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (1e-5, 0.1)


def test_supports_follow_the_data():
    torch.manual_seed(6)
    image = GAN((1, 8, 8), levels=17, hidden=[8], discriminator_hidden=[4, 4])
    with torch.no_grad():
        assert image.support == "signed" and image.decode(1e3 * torch.randn(9, 64)).abs().max() <= 1
    point = GAN((2,), hidden=[8])
    with torch.no_grad():
        assert point.support == "real" and point.decode(1e3 * torch.randn(9, 64)).abs().max() > 1


@pytest.mark.parametrize(
    ("shape", "levels", "said"),
    [((2,), None, "model=gan"), ((1, 8, 9), 17, "8x9"), ((1, 4, 4), 2, "4x4"), ((3, 128, 128), 256, "128x128")],
)
def test_what_dcgan_can_not_take(shape: tuple[int, ...], levels: int | None, said: str):
    with pytest.raises(UsageError, match=said):
        DCGAN(shape, levels=levels)


def test_penalties_on_the_critics_gradient():
    """Of D(x) = x_1 x_2 the gradient is (x_2, x_1); of D(x) = wᵀx the norm of w, wherever between the examples."""

    def saddle(x: Tensor) -> Tensor:
        return x.prod(1)

    real, fake = torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([[1.0, 1.0], [2.0, 0.0]])
    found = Regularisers(r1=3.0, r2=0.5).penalties(saddle, real, fake)
    assert found["r1"].item() == pytest.approx(3.0 / 2 * (5 + 9) / 2)
    assert found["r2"].item() == pytest.approx(0.5 / 2 * (2 + 4) / 2)
    w = torch.tensor([3.0, 4.0])
    penalty = Regularisers(gradient_penalty=10.0, target=2.0).penalties(lambda x: x @ w, real, fake)
    assert penalty["gradient_penalty"].item() == pytest.approx(10 * (5 - 2) ** 2)
    assert Regularisers().penalties(saddle, real, fake) == {}


def test_penalties_teach_the_critic_as_finite_differences_say():
    torch.manual_seed(7)
    critic = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    real, fake = torch.randn(5, 2).double(), torch.randn(5, 2).double()
    pieces = Regularisers(r1=1.0, r2=2.0, gradient_penalty=3.0)

    def total() -> Tensor:
        torch.manual_seed(0)  # the same points between
        return sum(pieces.penalties(lambda x: critic(x).flatten(), real, fake).values(), torch.zeros(()))

    weight = critic[0].weight
    (slope,) = torch.autograd.grad(total(), weight)
    for i, j in ((0, 0), (3, 1)):
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight[i, j] += step
            values.append(total().item())
            with torch.no_grad():
                weight[i, j] -= step
        assert slope[i, j].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_the_gradient_penalty_looks_between_the_examples():
    seen: list[Tensor] = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.sum(1)

    real, fake = torch.zeros(200, 3), torch.ones(200, 3)
    Regularisers(gradient_penalty=1.0).penalties(critic, real, fake)
    share = seen[0][:, 0]
    assert torch.equal(seen[0], share[:, None].expand(-1, 3)), "one share for all elements of an example"
    assert 0 <= share.min() < 0.1 and 0.9 < share.max() <= 1


@pytest.mark.parametrize(("progress", "deviation"), [(0.0, 0.4), (0.25, 0.2), (0.5, 0.0), (0.9, 0.0)])
def test_noise_on_what_the_critic_sees(progress: float, deviation: float):
    """Linearly to 0 at half of training, on real and generated examples, before both players' losses."""
    gan, batch = small()
    batch = Batch(torch.zeros(4000, 2))
    seen: list[Tensor] = []
    gan.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    made: list[Tensor] = []
    gan.generator.register_forward_hook(lambda *call: made.append(call[-1].detach()))
    list(NonSaturating(regularise=Regularisers(noise=0.4, noise_until=0.5))(gan, batch, progress))
    assert len(seen) == 3
    for sent, x in zip((batch.x, made[0], made[0]), seen, strict=True):
        assert (x - sent).std().item() == pytest.approx(deviation, rel=0.05)


def test_what_the_critic_says_is_shown():
    gan, batch = small()
    update = next(iter(NonSaturating(regularise=Regularisers(r1=2.0))(gan, batch, 0.0)))
    real = gan.discriminate(batch.x)
    metrics = update.metrics
    assert metrics["d_real"].item() == pytest.approx(torch.sigmoid(real).mean().item(), abs=1e-6)
    assert metrics["accuracy_real"].item() == pytest.approx((real > 0).float().mean().item())
    assert metrics["r1"].item() > 0 and update.loss is not None
    torch.manual_seed(1)
    plain = next(iter(NonSaturating()(*small(), 0.0)))
    assert (metrics["d_loss"] - metrics["r1"]).item() == pytest.approx(plain.metrics["d_loss"].item(), abs=1e-5)
