"""StackGAN: words, conditions and losses by hand; a first stage that stays as it is while the second learns."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import build
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import leaky_relu, softplus

import gentrain
from gentrain.batch import Batch
from gentrain.cli import main
from gentrain.errors import UsageError
from gentrain.models.captions import Vocabulary
from gentrain.models.cascade import down
from gentrain.models.stackgan import StackGAN, Stage
from gentrain.objectives.adversarial import NonSaturating, Round
from gentrain.objectives.hinge import Hinge
from gentrain.objectives.regularisers import Regularisers
from gentrain.objectives.stackgan import Matching, TwoStages, another
from gentrain.optim import Adam
from gentrain.truth.base import differences
from gentrain.truth.objectives import parts_of, played

ADAM = Adam(2e-3, 0.0, "constant", 0.0, 0.0, None, (0.5, 0.999), 1e-8)
CAPTIONS = ["a thin one", "a thick one", "a thin two", "a thick two"]


def tiny(side: int = 16, captions: list[str] | None = None, **settings) -> StackGAN:
    torch.manual_seed(0)
    sizes = {"latent_dim": 3, "embedding": 6, "condition": 2, "channels": 4, "hidden": [8], "blocks": 1}
    return StackGAN((1, side, side), 256, 4, captions, **{**sizes, **settings})


def batch(n: int = 16, side: int = 16) -> Batch:
    return Batch(2 * torch.rand(n, 1, side, side) - 1, torch.arange(n) % 4)


def test_a_caption_is_the_mean_of_its_words():
    vocabulary = Vocabulary(4, CAPTIONS)
    assert vocabulary.words == ("a", "one", "thick", "thin", "two")
    third = 1 / 3
    assert torch.allclose(vocabulary(torch.eye(4))[1], torch.tensor([third, third, third, 0, 0]))
    assert torch.allclose(vocabulary.read("Thick two two"), torch.tensor([0, 0, third, 0, 2 * third]))
    assert torch.equal(Vocabulary(3)(torch.eye(3)), torch.eye(3)) and Vocabulary(3).words == ()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("a thikc one", "the word 'thikc' is not known. Did you mean 'thick'? Known words: a, one, thick, thin, two"),
     ("three", "the word 'three' is not known. "), (" ", "is empty. Known words: a, one")],
)  # fmt: skip
def test_a_word_that_is_not_known_is_said_with_those_that_are(text: str, complaint: str):
    with pytest.raises(UsageError) as error:
        Vocabulary(4, CAPTIONS).read(text)
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_conditioning_augmentation_and_its_divergence():
    model = tiny(captions=CAPTIONS)
    generator = model.stage1.generator
    y, epsilon = torch.tensor([3, 0]), torch.randn(2, 2)
    vectors, linear = generator.augmentation.embedding.weight, generator.augmentation.moments[1]
    words = [["a", "thick", "two"], ["a", "thin", "one"]]
    e = torch.stack([vectors[:, [model.words.index(w) for w in ws]].mean(1) for ws in words])
    mu, log_variance = (leaky_relu(e, 0.2) @ linear.weight.t() + linear.bias).chunk(2, 1)
    sigma = (log_variance / 2).exp()
    rows = model.stage1.words(y, 2)
    assert torch.allclose(generator.condition(rows, epsilon), mu + sigma * epsilon, atol=1e-6)
    apart = kl_divergence(Normal(mu, sigma), Normal(torch.zeros(2), torch.ones(2))).sum(1)
    assert torch.allclose(model.stage1.divergence(y), apart, atol=1e-5)


def test_another_label_is_any_but_the_own_as_often():
    torch.manual_seed(0)
    y = torch.arange(4).repeat(3000)
    other = another(y, 4)
    assert (other != y).all() and other.min() == 0 and other.max() == 3
    counts = torch.bincount(4 * y + other, minlength=16).view(4, 4)
    assert (counts[~torch.eye(4, dtype=torch.bool)] - 1000).abs().max() < 5 * 1000**0.5
    assert another(torch.tensor([0, 1]), 2).tolist() == [1, 0]


class Fixed(nn.Module):
    """A critic that says for real images, generated ones and wrong labels what it is given, and keeps what it sees."""

    def __init__(self, critic: nn.Module, real: Tensor):
        super().__init__()
        self.critic, self.real, self.seen = critic, real, list[Tensor]()
        self.scale = nn.Parameter(torch.ones(()))

    def trunk(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return torch.full((len(x), 1), 1.0 if torch.equal(x, self.real) else -3.0)

    def forward(self, features: Tensor, words: Tensor) -> Tensor:
        return self.scale * (features[:, 0] * (1 + words.argmax(1)))


def test_the_losses_by_hand_and_that_a_critic_looks_once_at_each_image():
    model = tiny()
    stage: Stage = model.stage1
    x, y = 2 * torch.rand(3, 1, 8, 8) - 1, torch.tensor([0, 2, 3])
    critic = stage.discriminator = Fixed(stage.discriminator, x)  # type: ignore[assignment]
    table = Round(x, y, torch.zeros(3, 5), torch.zeros(3, 1, 8, 8), 0.0)
    torch.manual_seed(5)
    loss, metrics = Matching(kl=0.5).discriminator_step(stage, table)
    torch.manual_seed(5)
    wrong = another(y, 4)
    own, other = 1.0 + y, 1.0 + wrong
    wanted = (softplus(-own) + softplus(-3 * own)) / 2 + (softplus(-own) + softplus(other)) / 2
    assert loss.item() == pytest.approx(wanted.mean().item(), rel=1e-5)
    assert metrics["d_mismatched"].item() == pytest.approx(torch.sigmoid(other).mean().item(), rel=1e-5)
    assert len(critic.seen) == 2  # real and generated; the wrong labels join what the first of them found
    loss, metrics = Matching(kl=0.5).generator_step(stage, table, None)
    kl = stage.divergence(y).mean()
    assert loss.item() == pytest.approx((softplus(3 * own).mean() + 0.5 * kl).item(), rel=1e-5)
    assert metrics["kl"].item() == pytest.approx(kl.item(), rel=1e-5)
    noisy = NonSaturating(regularise=Regularisers(noise=0.5))
    Matching(noisy).discriminator_step(stage, table)
    assert len(critic.seen) == 7 and not any(torch.equal(seen, x) for seen in critic.seen[-4:])  # noise on each of four
    plain, _ = Matching(mismatched=False).discriminator_step(stage, table)
    assert plain.item() == pytest.approx((softplus(-own) + softplus(-3 * own)).mean().item(), rel=1e-5)


@pytest.mark.parametrize("game", [NonSaturating, Hinge])
def test_the_first_stage_stays_as_it_is_bit_for_bit_while_the_second_learns(game: type):
    model, objective = tiny(captions=CAPTIONS), TwoStages(0.4, game())
    parts = parts_of(objective, model, ADAM)
    states = []
    for step in range(10):
        for update in played(objective(model.train(), batch(), step / 10), parts):
            if update.loss is not None:
                parts[update.part].step(update, 1.0, step)
        states.append(copy.deepcopy(model.state_dict()))
    of = [{k: v for k, v in state.items() if k.startswith("stage1")} for state in states]
    rest = [{k: v for k, v in state.items() if k.startswith("stage2")} for state in states]
    assert any("running_mean" in name for name in of[0])
    assert differences(of[3], of[9]) == [] and differences(of[2], of[3]) != []
    assert differences(rest[0], rest[3]) == [] and differences(rest[8], rest[9]) != []
    assert model.stage1.training


def test_the_second_stage_is_given_what_the_first_draws():
    model = tiny().train()
    for _ in range(3):  # so that its normalisation knows something
        model.stage1.decode(torch.randn(16, 5), batch().y)
    z, y = torch.randn(4, 7), torch.arange(4)
    asked: list[Tensor] = []
    model.stage2.generator.network.encode.register_forward_pre_hook(lambda module, given: asked.append(given[0]))
    player, real = model.player("stage2", batch().x)
    player.decode(z, y=y)
    with torch.no_grad():
        small = model.eval().stage1.decode(z[:, :5], y)
        whole = model.decode(z, y)
    assert torch.equal(asked[0], small) and torch.equal(asked[1], small) and real.shape[-1] == 16
    assert torch.equal(whole, model.stage2.refine(small, z, torch.eye(4)))
    first, real = model.player("stage1", x := batch().x)
    assert first is model.stage1 and torch.equal(real, down(x))


@pytest.mark.parametrize(("side", "halvings", "small"), [(28, 1, 14), (28, 2, 7), (32, 2, 8), (64, 2, 16), (64, 4, 4)])
def test_stages_have_the_sizes_that_are_asked_for(side: int, halvings: int, small: int):
    model, y = tiny(side, halvings=halvings).eval(), torch.tensor([1, 3])
    x = 2 * torch.rand(2, 1, side, side) - 1
    for step, size in (("stage1", small), ("stage2", side)):
        player, real = model.player(step, x)
        made = player.decode(player.prior.sample((2,)), **{"y": y})
        assert real.shape == made.shape == (2, 1, size, size)
        assert player.discriminate(made, **{"y": y}).shape == (2,)


def test_gradients_of_the_whole_reach_the_first_stage_and_those_of_the_second_stages_game_do_not():
    model, y = tiny().eval(), torch.arange(4)
    for decode, reached in ((model.decode, True), (model.stage2.decode, False)):
        z = torch.randn(4, 7, requires_grad=True)
        decode(z, y).square().sum().backward()
        assert z.grad is not None and bool(z.grad[:, :5].any()) is reached and z.grad[:, 5:].any()


def test_a_caption_of_the_data_is_drawn_the_same_by_its_words_and_by_its_number():
    model = tiny(captions=CAPTIONS).eval()
    torch.manual_seed(1)
    of_words = model.sample_text(5, "a thick two")
    torch.manual_seed(1)
    of_number = model.sample(5, y=torch.full((5,), 3))
    assert torch.allclose(of_words, of_number, atol=1e-6)
    torch.manual_seed(1)
    assert not torch.allclose(of_words, model.sample_text(5, "thick"), atol=1e-6)


def test_a_critic_learns_which_caption_goes_with_an_image_and_a_generator_to_draw_it():
    """Images all of one brightness, which the noun says, but for a bright or dark corner, which the attribute says."""
    torch.manual_seed(2)
    model, objective = tiny(captions=CAPTIONS, side=8, channels=8, hidden=[32]), TwoStages(0.99)
    parts = parts_of(objective, model, ADAM)

    def examples(y: Tensor) -> Tensor:
        x = torch.where(y[:, None, None, None] < 2, -0.6, 0.2).expand(-1, 1, 8, 8).clone()
        x[:, :, :4, :4] += torch.where(y[:, None, None, None] % 2 == 0, -0.3, 0.6)
        return x + 0.05 * torch.randn(x.shape)

    for step in range(500):
        y = torch.randint(4, (32,))
        for update in played(objective(model.train(), Batch(examples(y), y), 0.5), parts):
            if update.loss is not None:
                parts[update.part].step(update, 1.0, step)
    y = torch.arange(64) % 4
    stage = model.eval().stage1
    with torch.no_grad():
        x = down(examples(y))
        own, other = stage.discriminate(x, y=y), stage.discriminate(x, y=another(y, 4))
        drawn = stage.sample(64, y=y)
    assert (own > other).double().mean() > 0.9
    centres = down(examples(torch.arange(4).repeat(50))).view(50, 4, 16).mean(0)
    nearest = torch.cdist(drawn.flatten(1), centres).argmin(1)
    assert (nearest == y).double().mean() > 0.9


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = ["model.channels=4", "model.hidden=[8]", "model.blocks=1", "trainer.steps=2"]
    output = f"output={tmp_path_factory.mktemp('stackgan')}"
    return gentrain.train(["model=stackgan", "data=captioned_digits", "device=cpu", output, *sizes]).path


def test_a_caption_is_drawn_from_the_command_line(run: Path, tmp_path: Path, capsys):
    said = ["sample", f"run={run}", "kind=caption", "n=5", "format=npz", f"out={tmp_path}/x.npz"]
    assert main([*said, "kind.text=a thick seven"]) == 0
    torch.manual_seed(0)
    assert np.load(tmp_path / "x.npz")["x"].shape == (5, 1, 8, 8)
    capsys.readouterr()
    for text, complaint in (
        ("a thick gnu", "kind.text='a thick gnu': the word 'gnu' is not known. Known words: a, eight, five"),
        (None, "kind.text=null: say what to draw"),
    ):
        assert main([*said, *([] if text is None else [f"kind.text={text}"])]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and complaint in error


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["data=bars"], "StackGAN draws what a label says, and these data have no labels"),
        (["data=digits", "model.halvings=2"], "model.halvings=2: a side of 8 pixels can't be halved 2 times"),
        (["data=digits", "model.captions=[one,two]"], "model.captions: are 2, of 10 labels"),
        (["data=digits", "objective@objective.game=feature_matching"], "objective.game=FeatureMatching"),
        (["data=digits", "objective.first=1.0"], "objective.first=1.0"),
    ],
)
def test_what_does_not_fit_is_one_line(overrides: list[str], complaint: str):
    with pytest.raises(UsageError) as error:
        build("model=stackgan", *overrides)
    assert complaint in str(error.value) and "\n" not in str(error.value)
