"""Translators that learn by games: pix2pix against medians, CycleGAN against what its losses can't tell apart."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from helpers import bare_trainer, build, differences, fit, resumed
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import softplus

from gentrain import noise
from gentrain.batch import Batch
from gentrain.cli import main
from gentrain.errors import UsageError
from gentrain.evaluation.estimator import Subject
from gentrain.models.cyclegan import CycleGAN
from gentrain.models.image_to_image import UNetGenerator, depths
from gentrain.models.normalisation import Norm
from gentrain.models.patchgan import PATCHES, PatchGAN, patches
from gentrain.models.pix2pix import Pix2Pix
from gentrain.objectives.adversarial import NonSaturating
from gentrain.objectives.least_squares import LeastSquares
from gentrain.objectives.pool import Pool
from gentrain.objectives.translation import Cycle
from gentrain.objectives.translation import Pix2Pix as Pix2PixObjective
from gentrain.optim import Adam
from gentrain.truth.base import prove
from gentrain.truth.objectives import case_of, played
from gentrain.uses.translation import Translate

NONE = Norm("none", 0)
ADAM = Adam(1e-2, 0.0, "constant", 0.0, 0.0, None, (0.9, 0.999), 1e-8)


def descend(model: nn.Module, objective: nn.Module, batches: list[Batch], steps: int, lr: float) -> dict[str, Tensor]:
    """Adam on every part, as the trainer would; the metrics of the last step."""
    optimizers = {part: torch.optim.Adam(model.get_submodule(part).parameters(), lr, betas=(0.5, 0.9))
                  for part in objective.parts}  # type: ignore[union-attr]  # fmt: skip
    metrics: dict[str, Tensor] = {}
    for step in range(steps):
        for group in (g for o in optimizers.values() for g in o.param_groups):
            group["lr"] = lr * (1 - step / steps)
        for update in objective(model, batches[step % len(batches)], step / steps):
            metrics |= update.metrics
            if update.loss is not None:
                optimizers[update.part].zero_grad()
                parameters = list(model.get_submodule(update.part).parameters())
                torch.autograd.backward(update.loss, inputs=parameters)
                optimizers[update.part].step()
    return metrics


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", sorted(PATCHES))
def test_each_number_of_the_critic_sees_a_square_of_so_many_pixels(patch: int):
    side = max(2 * patch, 8)
    critic = PatchGAN(2, (side, side), 2, NONE, patch)
    for p in critic.parameters():  # none of the ways through the network may cancel or be cut off
        p.data.abs_()
    x = torch.rand(1, 2, side, side, requires_grad=True)
    out = critic(x)
    assert out.shape[1:] == patches((side, side), patch)
    middle = out.shape[1] // 2
    (gradient,) = torch.autograd.grad(out[0, middle, middle], x)
    rows, columns = (gradient[0].abs().sum(0) > 0).nonzero().unbind(1)
    seen = (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1, len(rows))
    assert seen == (patch, patch, patch**2)


def test_a_skip_carries_what_the_middle_has_no_room_for():
    x = torch.randn(1, 1, 8, 8)
    for skips in (True, False):
        torch.manual_seed(0)
        net = UNetGenerator(1, 4, depth=3, norm=NONE, skips=skips).eval()
        with torch.no_grad():
            net.down[-1][1].weight.zero_()  # type: ignore[index,union-attr]
            apart = (net(x) - net(-x)).abs().max()
        assert (apart > 0) == skips


@pytest.mark.parametrize(("size", "words"), [(28, "halved evenly 2 times; take 1 to 2"), (6, "1 time; take 1")])
def test_a_depth_that_the_sides_dont_bear_is_refused_with_those_that_fit(size: int, words: str):
    with pytest.raises(UsageError) as error:
        Pix2Pix((1, size, size), levels=2, depth=3, patch=1)
    assert f"model.depth=3: images of {size}x{size} pixels" in str(error.value) and words in str(error.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Pix2Pix((1, 27, 27), levels=2), "model.depth=null: images of 27x27 pixels can't be halved"),
        (lambda: Pix2Pix((2,)), "model=pix2pix takes images"),
        (lambda: Pix2Pix((1, 8, 8), levels=2, patch=34), "are judged by patches of 1, 16; take one"),
        (lambda: CycleGAN((1, 8, 8), levels=2, patch=17), "model.patch=17"),
        (lambda: CycleGAN((1, 4, 4), levels=2, network="unet", patch=None), "model.patch=null: a critic of whole"),
        (lambda: CycleGAN((2,), network="resnet"), "model.network=resnet takes images"),
        (lambda: CycleGAN((1, 6, 6), levels=2, network="resnet"), "sides of 8 pixels or more, not 6"),
        (lambda: Pix2PixObjective(adversarial=0.0, l1=0.0), "objective.l1=0"),
        (lambda: next(Cycle((1,))(None, Batch(torch.zeros(1, 1)), 0.0)), "no pairs to translate"),
        (lambda: build("model=pix2pix", "data=unpaired"), "learns from paired examples"),
        (lambda: build("model=cyclegan", "data=digits"), "has no pairs"),
    ],
)  # fmt: skip
def test_what_cant_be_is_one_line_with_a_remedy(make, words: str):
    with pytest.raises(UsageError) as error:
        make()
    assert words in str(error.value) and "\n" not in str(error.value)


def test_the_sides_that_halve():
    assert [depths((n, n)) for n in (8, 28, 32, 64)] == [3, 2, 5, 6]
    for side in (8, 28, 32, 64):
        model = Pix2Pix((1, side, side), levels=2, channels=1).eval()
        assert model.translate(torch.zeros(2, 1, side, side)).shape == (2, 1, side, side)
    assert build("model=pix2pix", "data=paired").pipeline.spec.pairs == "paired"
    assert build("model=cyclegan", "data=paired", "data.change=invert").pipeline.spec.pairs == "paired"


def test_the_noise_is_dropout_that_goes_on_unless_it_is_not_wanted():
    pair = torch.rand(1, 1, 8, 8).expand(4000, 1, 8, 8)
    torch.manual_seed(0)
    model = Pix2Pix((1, 8, 8), levels=2, channels=1, patch=1).eval()
    made = model.translate(pair)
    assert model.noisy and not torch.equal(made[0], made[1])
    layer = model.generator.get_submodule("up.0")
    share = float((layer(torch.ones(4000, 4, 1, 1)) == 0).float().mean())
    assert share == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(4000))  # all of a unit's places are near-independent
    still = Pix2Pix((1, 8, 8), levels=2, channels=1, patch=1, noisy=False)
    assert not still.noisy and torch.equal(*still.eval().translate(pair[:2]))
    assert not torch.equal(*still.train().translate(pair[:2]))
    assert not Pix2Pix((1, 28, 28), levels=2, depth=1).noisy and not Pix2Pix((1, 8, 8), levels=2, dropout=0.0).noisy


# --- pix2pix ----------------------------------------------------------------------------------------------------------


class Line(Pix2Pix):
    """x = w pair, and a critic of two patches, c x and c pair, to be computed by hand."""

    def __init__(self) -> None:
        super().__init__((1, 2, 2), levels=2, patch=1)
        self.generator = nn.ParameterDict({"w": nn.Parameter(torch.tensor(0.5))})
        self.discriminator = nn.ParameterDict({"c": nn.Parameter(torch.tensor(2.0))})

    def translate(self, pair: Tensor) -> Tensor:
        return self.generator.get_parameter("w") * pair

    def judge(self, x: Tensor, pair: Tensor) -> Tensor:
        return (
            self.discriminator.get_parameter("c") * torch.stack([x.mean((1, 2, 3)), pair.mean((1, 2, 3))], 1).flatten()
        )


def test_losses_of_pairs_are_those_computed_by_hand():
    x, pair = torch.full((1, 1, 2, 2), 1.0), torch.full((1, 1, 2, 2), -0.5)  # G makes -0.25 of it
    model = Line()
    d, g = played(Pix2PixObjective(NonSaturating(), adversarial=3.0, l1=7.0)(model, Batch(x, pair=pair), 0.0), {})
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([-0.5, -1.0])
    assert d.part == "discriminator" and g.part == "generator" and d.loss is not None and g.loss is not None
    assert d.loss.item() == pytest.approx((softplus(-real).mean() + softplus(fake).mean()).item(), rel=1e-6)
    assert g.loss.item() == pytest.approx((3 * softplus(-fake).mean() + 7 * 1.25).item(), rel=1e-6)
    assert g.metrics["l1"].item() == pytest.approx(1.25)
    (slope,) = torch.autograd.grad(
        g.loss, model.generator.get_parameter("w")
    )  # x_made = w pair, of which one patch depends on w
    by_hand = -torch.sigmoid(-fake[0]) * 2 * -0.5 / 2 * 3 + 7 * 0.5  # |w pair - x| has slope -pair as w pair < x
    assert slope.item() == pytest.approx(by_hand.item(), rel=1e-5)


def paired_toy() -> tuple[Tensor, Tensor, Tensor]:
    """All (x, pair) of a law in which x takes three values given each of four inputs: x, pair, the medians."""
    codes = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=2)))
    weights, xs, pairs, medians = ((4, 3, 2), (4, 5, 0), (2, 2, 5), (5, 3, 1)), [], [], []
    for i, (code, weight) in enumerate(zip(codes, weights, strict=True)):
        values = torch.tensor([-0.8, 0.1 * i, 0.7])
        drawn = values.repeat_interleave(torch.tensor(weight))
        xs.append(drawn[:, None].expand(-1, 4) * torch.tensor([1.0, -1.0, 0.5, 1.0]))
        pairs.append(torch.cat([code, -code]).expand(len(drawn), 4))
        medians.append(drawn.median() * torch.tensor([1.0, -1.0, 0.5, 1.0]))
    return tuple(torch.cat(t).view(-1, 1, 2, 2) for t in (xs, pairs, [m[None] for m in medians]))  # type: ignore[return-value]


def test_without_a_game_it_learns_the_conditional_median():
    torch.manual_seed(0)
    x, pair, medians = paired_toy()
    model = Pix2Pix((1, 2, 2), levels=2, channels=32, norm="none", dropout=0.0, patch=1)
    objective = Pix2PixObjective(adversarial=0.0, l1=1.0)
    assert objective.parts == ("generator",) and objective.leaves == ("discriminator",)
    descend(model, objective, [Batch(x, pair=pair)], steps=1200, lr=2e-2)
    inputs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=2)))
    inputs = torch.cat([inputs, -inputs], 1).view(-1, 1, 2, 2)
    assert torch.allclose(model.translate(inputs), medians, atol=0.02)
    means = torch.stack([x[(pair == one).flatten(1).all(1)].mean(0) for one in inputs])
    assert (medians - means).abs().amax((1, 2, 3)).min() > 0.1  # and not the means


# --- CycleGAN ---------------------------------------------------------------------------------------------------------


class Scales(CycleGAN):
    """x = a pair, pair = b x; critics that say c x."""

    def __init__(self) -> None:
        super().__init__((1,))
        for name, value in {
            "generator.forth": 0.5,
            "generator.back": 3.0,
            "discriminator.x": 2.0,
            "discriminator.pair": -1.0,
        }.items():
            part, key = name.split(".")
            layer = nn.Linear(1, 1, bias=False)
            layer.weight.data.fill_(value)
            getattr(self, part)[key] = layer


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_losses_of_two_domains_are_those_computed_by_hand(distance: str):
    x, pair = torch.tensor([[1.0], [2.0]]), torch.tensor([[4.0], [-2.0]])
    objective = Cycle((1,), LeastSquares(), adversarial=2.0, cycle=5.0, identity=0.25, distance=distance, pool=0)  # type: ignore[arg-type]
    d, g = played(objective(Scales(), Batch(x, pair=pair), 0.0), {})
    assert d.loss is not None and g.loss is not None
    # forth makes 2, -1 of pair; back makes 3, 6 of x; the critics say 2 x and -pair
    of_x = ((2 - 1) ** 2 + (4 - 1) ** 2) / 2 / 2 + (4**2 + 2**2) / 2 / 2
    of_pair = ((-4 - 1) ** 2 + (2 - 1) ** 2) / 2 / 2 + (3**2 + 6**2) / 2 / 2
    assert d.loss.item() == pytest.approx(of_x + of_pair) and d.part == "discriminator"
    game = ((4 - 1) ** 2 + (-2 - 1) ** 2) / 2 + ((-3 - 1) ** 2 + (-6 - 1) ** 2) / 2  # the paper's, without the half
    power = 1 if distance == "l1" else 2
    cycle = (0.5**power + 1**power) / 2 + (2**power + 1**power) / 2  # x -> 1.5 x, pair -> 1.5 pair
    identity = (0.5**power + 1**power) / 2 + (8**power + 4**power) / 2
    assert g.loss.item() == pytest.approx(game + 5 * cycle + 1.25 * identity) and g.part == "generator"
    shown = {name: value.item() for name, value in g.metrics.items()}
    assert shown["cycle"] == pytest.approx(cycle) and shown["identity"] == pytest.approx(identity)
    assert d.metrics["x/d_real"].item() == pytest.approx(3.0) and d.metrics["pair/d_fake"].item() == pytest.approx(-4.5)


def lines(n: int, seed: int) -> Tensor:
    return 2 * torch.rand(n, 1, generator=torch.Generator().manual_seed(seed)) - 1


@pytest.mark.parametrize(("seed", "sign"), [(0, -1), (1, 1)])
def test_unmatched_numbers_are_matched_up_to_the_mirror_image_which_no_loss_knows(seed: int, sign: int):
    """x is uniform on [-1, 1] and pair = 1 - 2 x. Of the continuous invertible maps from pair to x two keep the laws:
    the one that undoes this, and that one mirrored. Both are found, and both ways undo each other."""
    batches = [Batch(lines(64, 2 * i), pair=1 - 2 * lines(64, 2 * i + 1)) for i in range(100)]
    torch.manual_seed(seed)
    model = CycleGAN((1,), network="mlp", hidden=[32, 32])
    shown = descend(model, Cycle((1,), LeastSquares(), cycle=2.0, identity=0.0), batches, steps=300, lr=3e-3)
    x = torch.linspace(-0.95, 0.95, 39)[:, None]
    with torch.no_grad():
        apart = [(model.translate(1 - 2 * x) - s * x).abs().max().item() for s in (1, -1)]
        around = (model.translate(model.translate_back(x)) - x).abs().max().item()
    assert apart[0 if sign == 1 else 1] < 0.2 and around < 0.05
    assert max(apart) > 1.5  # the other answer is far from this one
    assert abs(shown["x/d_loss"].item() - 0.25) < 0.05 and abs(shown["pair/d_loss"].item() - 0.25) < 0.05  # D = 1/2


# --- the pool ---------------------------------------------------------------------------------------------------------


def plain_pool(size: int, batches: list[Tensor], draws: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """One example after the other, with these draws of place and coin."""
    held: list[Tensor] = []
    out = []
    for batch, u in zip(batches, draws, strict=True):
        given = []
        for one, (where, coin) in zip(batch, u, strict=True):
            if len(held) < size:
                held.append(one)
                given.append(one)
            elif coin < 0.5:
                place = int(where * size)
                given.append(held[place])
                held[place] = one
            else:
                given.append(one)
        out.append(torch.stack(given))
    return out, held


@pytest.mark.parametrize(("size", "batch"), [(5, 3), (4, 9), (1, 6), (50, 8)])
def test_the_pool_is_a_loop_over_examples(size: int, batch: int):
    torch.manual_seed(0)
    batches = list(torch.randn(12, batch, 2))
    torch.manual_seed(7)
    draws = [torch.rand(batch, 2) for _ in batches]
    pool = Pool(size, (2,))
    torch.manual_seed(7)
    found = [pool(x) for x in batches]
    wanted, held = plain_pool(size, batches, draws)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert torch.equal(pool.images, torch.stack(held)) and pool.held == min(size, 12 * batch)


def test_the_pool_lets_the_first_pass_and_then_half_of_the_time_gives_an_earlier_one():
    torch.manual_seed(1)
    pool, n = Pool(50, (1,)), 4000
    first = torch.arange(50.0)[:, None]
    assert torch.equal(pool(first), first) and torch.equal(pool.images, first)
    new = torch.arange(50.0, 50 + n)[:, None]
    given = torch.cat([pool(x) for x in new.split(40)])
    earlier = (given != new).flatten()
    assert float(earlier.float().mean()) == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(n))
    assert (given[earlier] < new[earlier]).all() and len(given[earlier].unique()) == int(earlier.sum())
    places = torch.tensor([int((pool.images == x).nonzero()[0, 0]) for x in pool.images])
    age = (50 + n - pool.images).flatten() / 100  # of what stays: each of 50 places is taken at a rate of 1/100
    assert torch.equal(places, torch.arange(50)) and float(age.mean()) == pytest.approx(1.0, abs=5 / math.sqrt(50))
    assert torch.equal(Pool(0, (1,))(new), new)


def test_two_processes_share_one_pool(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    batches = list(torch.randn(8, 6, 1))
    alone, halves = Pool(4, (1,)), [Pool(4, (1,)), Pool(4, (1,))]
    for step, x in enumerate(batches):
        torch.manual_seed(step)
        wanted, found = alone(x), []
        for rank in range(2):
            noise.shard(rank, 2)
            try:
                with monkeypatch.context() as patch:
                    patch.setattr(noise, "of_all_processes", lambda own, x=x: x)
                    torch.manual_seed(step)
                    found.append(halves[rank](x[3 * rank : 3 * rank + 3]))
            finally:
                noise.shard(0, 1)
        assert torch.equal(torch.cat(found), wanted)
        assert torch.equal(halves[0].images, alone.images) and torch.equal(halves[1].images, alone.images)


def test_a_pool_that_swaps_is_resumed_exactly(tmp_path: Path):
    overrides = ["model=cyclegan", "data=unpaired", "model.network=mlp", "model.hidden=[8]", "trainer.steps=6",
                 "trainer.checkpoint_every=3", "objective.pool=30"]  # fmt: skip
    whole = fit(bare_trainer(tmp_path / "whole", *overrides))
    part = fit(bare_trainer(tmp_path / "part", *overrides), until=3)
    assert part.step == 3 and part.objective.get_buffer("pools.x.held") == 30  # full, of 20 a step: the rest swaps
    rest = fit(resumed(bare_trainer(tmp_path / "part", *overrides)))
    assert differences(whole.objective.state_dict(), rest.objective.state_dict()) == []
    assert differences(whole.model.state_dict(), rest.model.state_dict()) == []
    assert differences(whole.objective.state_dict(), part.objective.state_dict()) != []


# --- pictures ---------------------------------------------------------------------------------------------------------


class Inverts(CycleGAN):
    def translate(self, pair: Tensor) -> Tensor:
        return -pair

    def translate_back(self, x: Tensor) -> Tensor:
        return -x


class OneWay(Pix2Pix):
    noisy = False

    def translate(self, pair: Tensor) -> Tensor:
        return -pair


def subject_of(model: CycleGAN | Pix2Pix, *data: str) -> Subject:
    name = "pix2pix" if isinstance(model, Pix2Pix) else "cyclegan"
    return Subject(model, build(f"model={name}", "data.change=invert", *data).pipeline)


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("kind", ["unpaired", "paired"])
def test_a_row_is_an_example_there_back_and_the_answer(kind: str, back: bool):
    subject = subject_of(model := Inverts((1, 8, 8), levels=17, network="mlp", hidden=[2]), f"data={kind}")
    drawn = Translate(back)(model, 24, lambda: subject)
    assert drawn.columns == 8 and len(drawn.x) == 24
    x, there, again, truth = drawn.x.view(6, 4, 1, 8, 8).unbind(1)
    source = subject.pipeline if back else subject.pipeline.other_domain
    assert torch.equal(x, next(source.evaluation("test", 6, 6)).x)
    assert torch.equal(there, -x) and torch.equal(again, x) and torch.allclose(truth, -x, atol=1e-6)
    assert torch.equal(drawn.arrays["translated"], -drawn.arrays["given"]) and torch.equal(drawn.arrays["given"], x)


def test_one_way_has_no_way_back_and_two_sets_no_answer():
    subject = subject_of(model := OneWay((1, 8, 8), levels=17, channels=2, patch=1), "data=paired")
    drawn = Translate()(model, 7, lambda: subject)
    x, there, truth = drawn.x.view(-1, 3, 1, 8, 8).unbind(1)
    assert torch.equal(there, -x) and torch.equal(truth, next(subject.batches(limit=2)).x) and drawn.columns == 6
    assert "leave kind.back=true out" in str(Translate(back=True).unfit(model)) and Translate().unfit(model) is None
    two = subject_of(
        both := Inverts((1, 8, 8), levels=17, network="mlp", hidden=[2]), "data=unpaired", "data@data.to=digits"
    )
    assert len(Translate()(both, 9, lambda: two).x) == 9  # threes: no answer


def test_pictures_of_a_training_show_both_ways(tmp_path: Path):
    assert main(["model=cyclegan", "model.network=mlp", "model.hidden=[2]", "trainer.steps=2", "device=cpu",
                 f"output={tmp_path}"]) == 0  # fmt: skip
    (picture,) = tmp_path.rglob("translations-*.png")
    with Image.open(
        picture
    ) as image:  # 16 rows of 8: there, back and the answer on either way; 6 x 8 pixels and 2 each
        assert image.size == (2 + 8 * 50, 2 + 16 * 50)


# --- faults that the claims find --------------------------------------------------------------------------------------

FITS, FUNCTION = "translations lie in the support", "a translation is of its example and declared noise"


def broken(change) -> set[str]:
    class Broken(CycleGAN):
        def translate_back(self, x: Tensor) -> Tensor:
            made = super().translate_back(x)
            return made if self.training else change(made)

    def make() -> Broken:
        return Broken((1, 2, 2), levels=2, network="mlp", hidden=[8])

    torch.manual_seed(0)
    batches = [Batch(torch.rand(16, 1, 2, 2) - 0.9, pair=torch.rand(16, 1, 2, 2)) for _ in range(3)]
    case = case_of(make(), Cycle((1, 2, 2)), ADAM, batches, make, 2)
    return {c.name for c in prove(case, {FITS, FUNCTION}) if c.held is False}


@pytest.mark.parametrize(
    ("change", "claims"),
    [
        (lambda x: x, set()),
        (lambda x: 3 * x, {FITS}),
        (lambda x: x[:, :, :1], {FITS}),
        (lambda x: 0.5 * (x - x.mean(0)), {FUNCTION}),
        (lambda x: x * torch.rand(()), {FUNCTION}),
    ],
)
def test_faults_of_translations_are_found_by_the_claim_that_they_break(change, claims: set[str]):
    assert broken(change) == claims


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["model=pix2pix", "data=paired", "model.inputs=5000"], "model.inputs=5000 is more than the 1257 training"),
        (
            ["model=cyclegan", "data=unpaired", "objective.shape=[1,2,3]"],
            r"objective.shape=\[1, 2, 3\]: the model's is",
        ),
    ],
)
def test_what_does_not_fit_the_data_is_said_before_there_is_a_run(words: list[str], complaint: str):
    with pytest.raises(UsageError, match=complaint):
        build(*words)
