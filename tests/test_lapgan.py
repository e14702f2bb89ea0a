"""LAPGAN: the pyramid, what its networks see, and its games, by hand; and that its levels learn."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from helpers import build
from torch import Tensor, nn
from torch.nn.functional import softplus

from gentrain.batch import Batch
from gentrain.cli import main
from gentrain.errors import UsageError
from gentrain.models.cascade import down, up
from gentrain.models.lapgan import LAPGAN
from gentrain.objectives.adversarial import Game, NonSaturating
from gentrain.objectives.cascade import Laplacian
from gentrain.objectives.hinge import Hinge
from gentrain.objectives.unrolled import Unrolled
from gentrain.objectives.wasserstein import Wasserstein, WassersteinGP
from gentrain.optim import Adam
from gentrain.truth.base import prove
from gentrain.truth.objectives import case_of, parts_of, played

ADAM = Adam(2e-3, 0.0, "constant", 0.0, 0.0, None, (0.5, 0.999), 1e-8)


def tiny(kind: type[LAPGAN] = LAPGAN, side: int = 8, halvings: int = 1, **settings) -> LAPGAN:
    torch.manual_seed(0)
    sizes = {"latent_dim": 3, "hidden": [8], "channels": 4}
    return kind((1, side, side), 256, halvings=halvings, **{**sizes, **settings})


class Says(nn.Module):
    """A network that gives `answer` and keeps what it was asked."""

    def __init__(self, answer: Tensor):
        super().__init__()
        self.answer = answer
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x)
        return self.answer


def doubled(x: Tensor) -> Tensor:
    """u by its definition: a pixel of the finer image is 3/4 of the coarse one that it lies in and 1/4 of the next on
    its own side, in each direction; beyond the edge is the edge."""
    n = x.shape[-1]
    weights = torch.zeros(2 * n, n)
    for i in range(2 * n):
        own, other = i // 2, i // 2 + (1 if i % 2 else -1)
        weights[i, own] += 0.75
        weights[i, min(max(other, 0), n - 1)] += 0.25
    return weights @ x @ weights.t()


def halved(x: Tensor) -> Tensor:
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def test_down_is_the_mean_of_four_and_up_is_bilinear():
    x = torch.rand(2, 3, 8, 8)
    assert torch.allclose(down(x), halved(x), atol=1e-6)
    assert torch.allclose(up(x), doubled(x), atol=1e-6)


def test_the_levels_of_the_pyramid_and_their_residuals_give_the_image_back():
    x = 2 * torch.rand(4, 1, 32, 32) - 1
    model = tiny(side=32, halvings=3)
    real = {step: model.player(step, x)[1] for step in model.steps}
    assert [v.shape[-1] for v in real.values()] == [4, 8, 16, 32]
    assert torch.allclose(real["level2"], halved(halved(x)), atol=1e-6)
    back = real["level3"]
    for k in (2, 1, 0):
        residual = real[f"level{k}"] - doubled(real[f"level{k + 1}"])
        back = doubled(back) + residual
    assert torch.allclose(back, x, atol=1e-5)


@pytest.mark.parametrize(("side", "halvings"), [(28, 2), (32, 3), (64, 4), (8, 1)])
def test_each_level_draws_at_its_own_size(side: int, halvings: int):
    model = tiny(side=side, halvings=halvings).eval()
    x = 2 * torch.rand(2, 1, side, side) - 1
    for k in range(halvings + 1):
        player, real = model.player(f"level{k}", x)
        made = player.decode(player.prior.sample(torch.Size([2])))
        assert real.shape == made.shape == (2, 1, side >> k, side >> k)
        assert player.discriminate(made).shape == (2,)


@pytest.mark.parametrize("judges", ["sum", "residual"])
@pytest.mark.parametrize("classes", [None, 3])
def test_what_a_critic_of_details_sees(judges: str, classes: int | None):
    model = tiny(judges=judges, classes=classes)
    x, y = 2 * torch.rand(2, 1, 8, 8) - 1, torch.tensor([2, 0])
    critic = model.level("level0").discriminator = Says(torch.zeros(2, 1, 1, 1))
    player, real = model.player("level0", x)
    assert torch.equal(real, x)
    player.discriminate(real, **({"y": y} if classes else {}))
    below = doubled(halved(x))
    wanted = [x] if judges == "sum" else [x - below, below]
    if classes:
        planes = torch.zeros(2, 3, 8, 8)
        planes[0, 2] = planes[1, 0] = 1.0
        wanted.append(planes)
    assert torch.allclose(critic.asked[0], torch.cat(wanted, 1), atol=1e-6)


def test_what_a_generator_of_details_sees_and_what_is_made_of_it():
    model = tiny(classes=2)
    x, y, z = 2 * torch.rand(2, 1, 8, 8) - 1, torch.tensor([1, 0]), torch.randn(2, 64)
    residual = torch.randn(2, 1, 8, 8)
    generator = model.level("level0").generator = Says(residual)
    player, _ = model.player("level0", x)
    assert player.prior.event_shape == (64,)
    made, below = player.decode(z, y=y), doubled(halved(x))
    planes = torch.stack([1 - y, y], 1)[..., None, None].expand(-1, -1, 8, 8)
    assert torch.allclose(generator.asked[0], torch.cat([below, z.view(2, 1, 8, 8), planes], 1), atol=1e-6)
    assert torch.allclose(made, below + residual, atol=1e-6)  # as the critic sees it, whatever its range


def test_decoding_runs_down_the_cascade_and_stays_in_the_support():
    model = tiny(side=16, halvings=2)
    z = torch.randn(2, 3 + 64 + 256)
    coarse, finer, finest = torch.rand(2, 1, 4, 4), torch.randn(2, 1, 8, 8), 0.1 * torch.randn(2, 1, 16, 16)
    networks = [Says(finest), Says(finer), Says(coarse)]
    for k, network in enumerate(networks):
        model.level(f"level{k}").generator = network
    middle = (doubled(coarse) + finer).clamp(-1, 1)
    assert (doubled(coarse) + finer).abs().max() > 1
    assert torch.allclose(model.decode(z), (doubled(middle) + finest).clamp(-1, 1), atol=1e-6)
    assert torch.equal(networks[2].asked[0], z[:, :3])
    assert torch.equal(networks[1].asked[0][:, 1], z[:, 3:67].view(2, 8, 8))
    assert torch.equal(networks[0].asked[0][:, 1], z[:, 67:].view(2, 16, 16))


def test_the_losses_of_a_level_are_those_of_its_game():
    model, objective = tiny(norm="none"), Laplacian(1)
    x = 2 * torch.rand(6, 1, 8, 8) - 1
    torch.manual_seed(3)
    updates = list(objective(model, Batch(x), 0.0))  # nothing moves between them
    assert [u.part for u in updates] == [f"level{k}.{p}" for k in (1, 0) for p in ("discriminator", "generator")]
    torch.manual_seed(3)
    z1, z0 = torch.randn(6, 3), torch.randn(6, 64)
    small, below = halved(x), doubled(halved(x))
    level0, level1 = model.level("level0"), model.level("level1")
    fake1 = level1.generator(z1)
    fake0 = below + level0.generator(torch.cat([below, z0.view(6, 1, 8, 8)], 1))
    for (on_real, on_fake), (critic, generator) in zip(
        [
            (level1.discriminator(small), level1.discriminator(fake1)),
            (level0.discriminator(x), level0.discriminator(fake0)),
        ],
        [updates[:2], updates[2:]],
        strict=True,
    ):
        assert critic.loss is not None and generator.loss is not None
        assert critic.loss.item() == pytest.approx((softplus(-on_real) + softplus(on_fake)).mean().item(), abs=1e-5)
        assert generator.loss.item() == pytest.approx(softplus(-on_fake).mean().item(), abs=1e-5)


@pytest.mark.parametrize(
    "game", [Hinge, lambda: Wasserstein(clip=0.01), WassersteinGP, lambda: Unrolled(NonSaturating(), k=2)]
)
def test_any_game_of_two_losses_is_played_at_each_level(game: Callable[[], Game]):
    model, objective = tiny(), Laplacian(1, game())
    parts = parts_of(objective, model, ADAM)
    before = copy.deepcopy(model.state_dict())
    for update in played(objective(model, Batch(2 * torch.rand(8, 1, 8, 8) - 1), 0.0), parts):
        if update.loss is not None:
            parts[update.part].step(update, 1.0, 0)
    moved = {name.rsplit(".", 2)[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {f"level{k}.{part}" for k in (0, 1) for part in ("generator", "discriminator")} <= moved
    if isinstance(objective.games[0].game, Wasserstein):
        weights = [p.abs().max() for k in (0, 1) for p in model.level(f"level{k}").discriminator.parameters()]
        assert max(weights) <= 0.01


def test_a_pyramid_learns_what_of_the_image_is_coarse_and_what_is_fine():
    """Two kinds of images: bright with one detail, dark with another, which the coarse image says nothing of."""
    torch.manual_seed(1)
    detail = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)
    rotated = torch.tensor([[1.0, -1.0], [1.0, -1.0]]).repeat(4, 4)
    kinds = torch.stack([-0.5 + 0.3 * detail, 0.5 + 0.3 * rotated])[:, None]
    model = tiny(classes=2, hidden=[32], channels=8)
    objective = Laplacian(1)
    parts = parts_of(objective, model, ADAM)
    for step in range(150):
        y = torch.randint(2, (32,))
        batch = Batch((kinds[y] + 0.05 * torch.randn(32, 1, 8, 8)).clamp(-1, 1), y)
        for update in played(objective(model.train(), batch, step / 150), parts):
            if update.loss is not None:
                parts[update.part].step(update, 1.0, step)
    y = torch.arange(40) % 2
    x = model.eval().sample(40, y=y)[:, 0]
    coarse, fine = x.mean((1, 2)), x - up(down(x[:, None]))[:, 0]
    assert ((coarse > 0) == (y == 1)).all()
    likeness = torch.stack([(fine * detail).mean((1, 2)), (fine * rotated).mean((1, 2))], 1)
    assert (likeness.argmax(1) == y).double().mean() > 0.9 and likeness.max(1).values.mean() > 0.1


class Forgetful(LAPGAN):
    """Adds the residuals to nothing."""

    def generate(self, step: str, z: Tensor, below: Tensor | None, label: Tensor | None) -> Tensor:
        made = super().generate(step, z, below, label)
        return made if below is None else made - below


class Entangled(LAPGAN):
    """Its critics of details normalise along with the coarse one's generator."""

    def judge(self, step: str, x: Tensor, below: Tensor | None, label: Tensor | None) -> Tensor:
        if below is not None:
            self.level(self.steps[0]).generator(torch.randn(len(x), 3))
        return super().judge(step, x, below, label)


class Contrary(LAPGAN):
    """Its critics of details turn gradients around on their way to what they judge."""

    def judge(self, step: str, x: Tensor, below: Tensor | None, label: Tensor | None) -> Tensor:
        return super().judge(step, x if below is None else 2 * x.detach() - x, below, label)


@pytest.mark.parametrize(
    ("kind", "claim"),
    [(Forgetful, "the pyramid's residuals give the image back"),
     (Entangled, "a step that learns leaves the others as they are"),
     (Contrary, "each step's critic learns to tell, its generator to please it")],
)  # fmt: skip
def test_planted_faults_are_found(kind: type[LAPGAN], claim: str):
    batches = [Batch(2 * torch.rand(16, 1, 8, 8) - 1) for _ in range(2)]
    for each, held in ((LAPGAN, True), (kind, False)):
        case = case_of(tiny(each), Laplacian(1), ADAM, batches, lambda each=each: tiny(each), 256)
        (check,) = prove(case, {claim})
        assert check.held is held, check.words


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["data=digits", "model.halvings=2"], "8 pixels can't be halved 2 times to 4 or more; 8 pixels can be 1 times"),
        (["data=ring"], "takes images"),
        (["data=bars"], "3 pixels can't be halved 1 times to 4 or more; resize the images"),
        (["data=digits", "objective.halvings=2"], "objective.halvings=2: the model's are 1"),
        (["data=digits", "objective@objective.game=feature_matching"], "objective.game=FeatureMatching"),
    ],
)
def test_what_does_not_fit_is_one_line(overrides: list[str], complaint: str):
    with pytest.raises(UsageError, match=complaint.replace("(", r"\(")) as error:
        build("model=lapgan", *overrides)
    assert "\n" not in str(error.value)


def test_a_side_that_cant_be_halved_so_often_is_said_with_what_can(capsys):
    with pytest.raises(UsageError, match="28 pixels can't be halved 3 times to 4 or more; 28 pixels can be 2 times"):
        tiny(side=28, halvings=3)
    assert main(["model=lapgan", "data=digits", "model.judges=product"]) == 2
    assert "model.judges=product" in capsys.readouterr().err
