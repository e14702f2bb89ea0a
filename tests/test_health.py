"""Health in words: each check speaks up in a planted case, with the right number, and keeps quiet in a healthy one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Recorder, bare_trainer, build, differences, fit, learned
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

import gentrain
from gentrain.data.embedded import digits
from gentrain.data.pipeline import Pipeline
from gentrain.data.source import Source, Split, make_source
from gentrain.data.synthetic import bars, ring
from gentrain.evaluation import health
from gentrain.evaluation.estimator import Subject
from gentrain.evaluation.health import Complaint, Sign
from gentrain.models.base import Decoder, Density, Generative
from gentrain.models.empirical import Empirical
from gentrain.models.gan import DCGAN, GAN
from gentrain.models.rbm import RBM
from gentrain.models.vae import VAE
from gentrain.objectives.adversarial import NonSaturating
from gentrain.tasks.look import Look

SEED = 3


def signs(model: Generative, source: Source, thorough: bool = False, split: str = "validation") -> dict[str, Sign]:
    pipeline = Pipeline(source, model.support, batch_size=20, seed=0)
    found = health.examine(Subject(model.eval(), pipeline, split), SEED, thorough)
    assert all(isinstance(s.number, float) and math.isfinite(s.number) for s in found)
    return {s.name: s for s in found}


def complains(sign: Sign, *words: str) -> bool:
    """Whether it is a complaint; that it says the words, in one line."""
    if not isinstance(sign, Complaint):
        return False
    assert "\n" not in sign.line and "usually helps" in sign.line
    for word in words:
        assert word in sign.line, sign.line
    return True


# --- posterior collapse ---------------------------------------------------------------------------------------------


def test_posterior_collapse(tmp_path: Path):
    """A KL that weighs so much that the decoder does without z, and the same training without that."""
    overrides = ("model=vae", "data=digits", "trainer.steps=250", "data.batch_size=100")
    ill = fit(bare_trainer(tmp_path / "ill", *overrides, "objective.beta=40")).model
    well = fit(bare_trainer(tmp_path / "well", *overrides)).model
    assert complains(signs(ill, digits())["active_units"], "0 of 20 latent units active", "objective.warmup")
    found = signs(well, digits())
    assert found["active_units"].number >= 5
    assert health.complaints(list(found.values())) == []


def test_a_few_units_of_many_are_too_few():
    """3 of 40 is a complaint; 19 of 50, as published of a good model, is none."""

    def vae(units: int, used: int) -> VAE:
        torch.manual_seed(0)
        model = VAE((1, 8, 8), levels=17, latent_dim=units, hidden=[])
        with torch.no_grad():
            for p in model.encoder.parameters():
                p.zero_()
            model.encoder[1].weight[:used] = torch.randn(used, 64)  # type: ignore[union-attr, index, operator]
        return model

    few = signs(vae(40, 3), digits())["active_units"]
    assert few.number == 3 and complains(few, "3 of 40")
    assert signs(vae(50, 19), digits())["active_units"] == Sign("active_units", 19.0)


# --- games ----------------------------------------------------------------------------------------------------------


class Match(GAN):
    """A game on points with a generator and a discriminator's logit that are given."""

    def __init__(self, decode: Callable[[Tensor], Tensor], logit: Callable[[Tensor], Tensor] = lambda x: 0 * x[:, 0]):
        super().__init__((2,), latent_dim=2, hidden=[4])
        self._decode, self._logit = decode, logit

    def decode(self, z: Tensor) -> Tensor:
        return self._decode(z)

    def discriminate(self, x: Tensor) -> Tensor:
        return self._logit(x)


def on_ring(modes: int, of: int = 8) -> Callable[[Tensor], Tensor]:
    """z ~ N(0, I) to the first `modes` modes of data=ring, exactly."""

    def decode(z: Tensor) -> Tensor:
        uniform = Normal(0.0, 1.0).cdf(z[:, 0])
        angle = 2 * math.pi * (uniform * modes).floor().clamp(max=modes - 1) / of
        fine = (uniform * modes) % 1
        radius = 0.02 * (-2 * torch.log1p(-fine)).sqrt()  # Box-Muller
        return torch.stack([2 * angle.cos(), 2 * angle.sin()], 1) + radius[:, None] * torch.stack(
            [(2 * math.pi * z[:, 1]).cos(), (2 * math.pi * z[:, 1]).sin()], 1
        )

    return decode


def test_a_discriminator_by_its_estimate_of_the_divergence():
    """1 - (E softplus(-r) + E softplus(f)) / (2 log 2): 0 for a coin, 1 for one that knows."""
    assert signs(Match(on_ring(8)), ring())["discriminator"].number == pytest.approx(0.0, abs=1e-6)

    def knows(x: Tensor) -> Tensor:  # the samples are at twice the radius
        return torch.where(x.norm(dim=1) < 3, 2.0, -2.0)

    sign = signs(Match(lambda z: 2 * on_ring(8)(z), knows), ring())["discriminator"]
    assert sign.number == pytest.approx(1 - math.log1p(math.exp(-2)) / math.log(2), abs=1e-6)
    assert not complains(sign)
    sure = signs(Match(lambda z: 2 * on_ring(8)(z), lambda x: 4 * knows(x)), ring())["discriminator"]
    assert complains(sure, "has won", "1.000 bits of 1", "objective=label_smoothing")


def test_a_critic_that_compares_a_batch_sees_it_as_large_as_in_training():
    """20 here: one that knows of such batches, and of no others, has won."""

    def knows(x: Tensor) -> Tensor:
        return torch.where(x.norm(dim=1) < 3, 8.0, -8.0) * (len(x) == 20)

    model = Match(lambda z: 2 * on_ring(8)(z), knows)
    assert not complains(signs(model, ring())["discriminator"])
    model.judges_batches = True
    assert complains(signs(model, ring())["discriminator"], "has won")


def test_critics_of_other_numbers_than_log_odds_can_not_win():
    model = Match(lambda z: 2 * on_ring(8)(z), lambda x: torch.where(x.norm(dim=1) < 3, 8.0, -8.0))
    subject = Subject(model.eval(), Pipeline(ring(), "real", batch_size=20, seed=0), "validation")

    class Signed(NonSaturating):
        probability = False

    for objective, there in ((None, True), (NonSaturating(), True), (Signed(), False)):
        names = {sign.name for sign in health.examine(subject, SEED, objective=objective)}
        assert ("discriminator" in names) == there


def test_a_discriminator_with_a_trivial_task_wins():
    """Its generator stays where it is, far from the data."""
    torch.manual_seed(0)
    gan = GAN((2,), latent_dim=2, hidden=[32])
    far = torch.full((2,), 6.0)
    pipeline = Pipeline(ring(), "real", batch_size=64, seed=0)
    adam = torch.optim.Adam(gan.discriminator.parameters(), 0.01)
    for step in range(60):
        fake = far + torch.randn(64, 2)
        loss = NonSaturating().discriminator_loss(gan.discriminate(pipeline.batch(step).x), gan.discriminate(fake))
        adam.zero_grad()
        loss.backward()
        adam.step()
    gan.generator = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        gan.generator[0].weight.copy_(torch.eye(2))  # type: ignore[union-attr, operator]
        gan.generator[0].bias.copy_(far)  # type: ignore[union-attr, operator]
    assert complains(signs(gan, ring())["discriminator"], "the discriminator has won")


def test_batch_normalisation_is_judged_as_in_training_and_left_alone():
    torch.manual_seed(0)
    large = {k: Split(s.x.repeat_interleave(2, 2).repeat_interleave(2, 3)) for k, s in digits().splits.items()}
    source = make_source("large", "levels", large, levels=17)
    gan = DCGAN((1, 16, 16), levels=17, latent_dim=4, channels=8).eval()
    before = {k: v.clone() for k, v in gan.state_dict().items()}
    signs(gan, source)
    assert not differences(before, gan.state_dict())
    assert not any(m.training for m in gan.modules())
    norms = [m for m in gan.modules() if isinstance(m, nn.BatchNorm2d)]
    first = signs(gan, source)["discriminator"].number
    assert norms
    for norm in norms:  # in a batch's own statistics the running ones have no part
        assert norm.running_mean is not None
        norm.running_mean.fill_(1e6)
    assert signs(gan, source)["discriminator"].number == first


# --- modes ----------------------------------------------------------------------------------------------------------


def test_a_constant_generator_has_collapsed():
    found = signs(Match(lambda z: 0 * z + torch.tensor([2.0, 0.0])), ring())
    assert found["diversity"].number == 0.0 and complains(found["diversity"], "samples vary 0 times as much")
    assert found["classes"].number == 1.0 and complains(found["classes"], "1 of 8 classes", "another seed")


def test_modes_that_are_missing():
    """Opposite modes vary as much as all of them do, and are few of them all the same."""
    found = signs(Match(lambda z: on_ring(2, of=2)(z)), ring())
    assert found["diversity"].number == pytest.approx(1.0, abs=0.1) and not complains(found["diversity"])
    assert found["classes"].number == 2.0 and complains(found["classes"], "2 of 8 classes")
    found = signs(Match(on_ring(8)), ring())
    assert found["diversity"].number == pytest.approx(1.0, abs=0.1)
    assert found["classes"].number == 8.0
    assert health.complaints(list(found.values())) == []
    assert signs(Match(on_ring(6)), ring())["classes"] == Sign("classes", 6.0)


# --- chains ---------------------------------------------------------------------------------------------------------


def rbm(scale: float) -> RBM:
    torch.manual_seed(0)
    model = RBM((1, 8, 8), hidden=32)
    with torch.no_grad():
        model.weight.copy_(scale * torch.randn(32, 64))
    return model


def test_a_chain_that_stands_still():
    """Weights so large that every state is a trap; with small ones the chain forgets its start."""
    stuck = signs(rbm(30.0), digits())["chain_correlation"]
    assert complains(stuck, "doesn't mix", "after 25 steps", "optim.weight_decay")
    free = signs(rbm(0.05), digits())["chain_correlation"]
    assert abs(free.number) < 0.1 and not complains(free)


@pytest.mark.parametrize("w", [1.5, 2.2, 9.0])
def test_the_correlation_of_a_chain_is_that_of_its_conditionals(w: float):
    """A visible unit with a twin h, E = -w(v - 1/2)(h - 1/2)·4: a step keeps v with a known probability.

    p(h = v | v) = σ(2w) =: s, so one half step has correlation 2s - 1 and 25 full steps (2s - 1)^50.
    """
    model = RBM((1, 8, 8), hidden=64)
    with torch.no_grad():
        model.weight.copy_(4 * w * torch.eye(64))
        model.visible_bias.fill_(-2 * w)
        model.hidden_bias.fill_(-2 * w)
    expected = math.tanh(w) ** 50
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(2, (100, 1, 8, 8), generator=generator, dtype=torch.uint8)
    source = make_source("coins", "binary", {"train": Split(x), "validation": Split(x)}, levels=2)
    sign = signs(model, source)["chain_correlation"]
    assert sign.number == pytest.approx(expected, abs=4 / math.sqrt(50 * 64))
    assert complains(sign) == (w == 9.0)


# --- overfitting ----------------------------------------------------------------------------------------------------


class Marked(Density):
    """log p(x) = x_0 - x_1²/2, where data may have marked their training examples by x_0."""

    support, shape = "real", (2,)

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.zeros(()))

    def log_prob(self, x: Tensor) -> Tensor:
        return x[:, 0] - x[:, 1].square() / 2

    def sample(self, n: int) -> Tensor:
        raise AssertionError("densities are not sampled")


def marked(gap: float, noise: float, n: int = 400) -> Source:
    generator = torch.Generator().manual_seed(0)
    x = noise * torch.randn(n, 2, generator=generator) * torch.tensor([0.0, 1.0])
    train = x.clone()
    train[:, 0] += gap
    return make_source("marked", "real", {"train": Split(train), "validation": Split(x)})


def test_overfitting_is_a_gap_in_nats_beyond_the_spread_of_examples():
    found = signs(Marked(), marked(gap=7.0, noise=1.0), thorough=True)
    assert list(found) == ["overfitting_gap"]
    assert found["overfitting_gap"].number == pytest.approx(7.0)
    assert complains(found["overfitting_gap"], "7.0 nats", "more data")
    for source in (marked(gap=0.0, noise=1.0), marked(gap=-9.0, noise=1.0)):
        assert not complains(signs(Marked(), source)["overfitting_gap"])
    # x² / 2 of x ~ N(0, 25) has a deviation of 18: a gap of 6 is well beyond three standard errors and no ill
    assert not complains(signs(Marked(), marked(gap=6.0, noise=5.0))["overfitting_gap"])
    # and 14 of 20 examples, each more than half a deviation, might be chance
    assert not complains(signs(Marked(), marked(gap=14.0, noise=5.0, n=20))["overfitting_gap"])
    assert complains(signs(Marked(), marked(gap=14.0, noise=5.0))["overfitting_gap"])


def test_an_energy_models_gap_is_that_of_its_free_energies():
    """log Z cancels: of an RBM that can be enumerated the gap is that of exact log-likelihoods."""
    model, source = rbm(0.3), digits()
    model = RBM((1, 8, 8), hidden=8)
    with torch.no_grad():
        model.weight.mul_(50)
    pipeline = Pipeline(source, "binary", batch_size=20, seed=0)
    subject = Subject(model, pipeline, "validation")
    gap = model.log_prob(subject.examples("train", 500)).mean() - model.log_prob(subject.examples(limit=500)).mean()
    assert signs(model, source)["overfitting_gap"].number == pytest.approx(float(gap), rel=1e-4, abs=1e-4)


# --- memorisation ---------------------------------------------------------------------------------------------------


class Shown(Generative):
    """Samples are examples it was given."""

    def __init__(self, x: Tensor, support: Any = "unit"):
        super().__init__()
        self.shape, self.support, self.x = tuple(x.shape[1:]), support, x

    def sample(self, n: int) -> Tensor:
        return self.x[torch.randint(len(self.x), (n,))]


def test_training_examples_repeated():
    """Copies of training images are copies, with a little noise too; images never seen before are none."""
    pipeline = Pipeline(digits(), "unit", batch_size=100, seed=0)
    train, test = (Subject(Shown(torch.zeros(1)), pipeline).examples(split) for split in ("train", "test"))
    copied = signs(Shown(train), digits(), thorough=True)["copies"]
    assert copied.number > 0.99 and complains(copied, "of the samples are copies")
    blurred = Shown(train + 0.03 * torch.randn(train.shape, generator=torch.Generator().manual_seed(0)))
    assert complains(signs(blurred, digits(), thorough=True)["copies"])
    fresh = signs(Shown(test), digits(), thorough=True)
    assert fresh["copies"].number < 0.02
    assert health.complaints(list(fresh.values())) == []


def test_the_empirical_distribution_is_called_what_it_is():
    model = Empirical((1, 8, 8), levels=17, capacity=1257)
    pipeline = Pipeline(digits(), model.support, batch_size=100, seed=0)
    for batch in pipeline.evaluation("train"):
        model.accumulate(batch.x)
    assert complains(signs(model, digits(), thorough=True, split="test")["copies"], "0% of held-out ones are")
    assert signs(model, digits()) == {}  # nothing of it is cheap


def test_points_in_the_plane_pass_for_copies_now_and_then():
    """The nearest of random points is less than a third as far as the second in one case of nine: no copying."""
    source = ring(n=3000)
    fresh = ring(n=3000, seed=1).splits["train"].x
    sign = signs(Shown(fresh, "real"), source, thorough=True)["copies"]
    assert sign.number == pytest.approx(1 / 9, abs=4 * math.sqrt(1 / 9 * 8 / 9 / 200)) and not complains(sign)


def test_large_training_sets_are_searched_only_when_there_is_time():
    gan = Match(on_ring(8))
    assert "copies" not in signs(gan, ring(n=6000))
    assert "copies" in signs(gan, ring(n=6000), thorough=True)
    assert "copies" in signs(gan, ring(n=4000))


# --- in training and in evaluate ------------------------------------------------------------------------------------


class Spoken(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_a_complaint_is_said_once_and_again_when_it_comes_back(tmp_path: Path):
    trainer = bare_trainer(tmp_path, "model=vae", "data=digits", "trainer.steps=50")
    trainer.step = 5
    assert isinstance(trainer.model, VAE)
    report = Spoken()
    look = Look(report, trainer.pipeline)
    last = trainer.model.encoder[-1]
    weight, bias = last.weight.clone(), last.bias.clone()  # type: ignore[union-attr, operator]
    for factor in (100, 0, 0, 100, 0):
        with torch.no_grad():
            last.weight.copy_(factor * weight)  # type: ignore[union-attr, operator]
            last.bias.copy_(0 * bias)  # type: ignore[union-attr, operator]
        look(trainer, "evaluate")()
    said = [line for line in report.lines if "posterior collapse" in line]
    assert len(said) == 2 and said[0].startswith("health: posterior collapse: 0 of 20")
    units = [record["health/active_units"] for record in report.filed]
    assert units[1:3] == [0.0, 0.0] and units[0] == units[3] == 20.0
    assert all("health/diversity" in record for record in report.filed)


def test_nothing_is_said_in_the_first_tenth(tmp_path: Path):
    """A VAE that has hardly begun uses no unit yet; the number is filed all the same."""
    trainer = bare_trainer(tmp_path, "model=vae", "data=digits", "trainer.steps=50")
    assert isinstance(trainer.model, VAE)
    report = Spoken()
    look = Look(report, trainer.pipeline)
    with torch.no_grad():
        for p in trainer.model.encoder.parameters():
            p.zero_()
    for trainer.step, lines in ((4, 0), (5, 1)):
        look(trainer, "evaluate")()
        assert len(report.lines) == lines
    assert [record["health/active_units"] for record in report.filed] == [0.0, 0.0]


@pytest.fixture(params=[("vae", "digits"), ("gan", "ring"), ("rbm", "bars")], ids=lambda p: p[0])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    yield request.param


def test_looking_changes_nothing_of_what_is_learned(pair: tuple[str, str], tmp_path: Path):
    model, data = pair
    overrides = [f"model={model}", f"data={data}", "trainer.steps=8"]
    states = []
    for every in (0, 2):
        trainer = bare_trainer(tmp_path / str(every), *overrides, f"trainer.evaluate_every={every}")
        trainer.look = Look(trainer.report, trainer.pipeline)
        states.append(learned(fit(trainer).state_dict()))
        filed = [r for r in trainer.report.filed if any(k.startswith("health/") for k in r)]  # type: ignore[attr-defined]
        assert len(filed) == (4 if every else 0)
    assert not differences(*states)


def test_short_healthy_trainings_give_no_alarm(pair: tuple[str, str], tmp_path: Path):
    model, data = pair
    small = ["model.hidden=[64,64]", "trainer.steps=600"] if model == "gan" else ["trainer.steps=400"]
    trainer = bare_trainer(tmp_path, f"model={model}", f"data={data}", "data.batch_size=100", *small)
    fit(trainer)
    trainer.model.eval()
    subject = Subject(trainer.model, trainer.pipeline, "validation")
    assert health.complaints(health.examine(subject, SEED, thorough=True)) == []


def test_the_same_seed_gives_the_same_signs():
    model, source = rbm(0.3), bars()
    model = RBM(source.spec.shape, hidden=8)
    subject = Subject(model, Pipeline(source, "binary", batch_size=20, seed=0), "validation")
    state = torch.get_rng_state()
    first = health.examine(subject, SEED)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert health.examine(subject, SEED) == first
    assert health.examine(subject, SEED + 1) != first


def test_without_validation_examples_the_gap_is_left_out():
    source = digits(validation=0)
    model = rbm(0.05)
    assert list(signs(model, source, split="train")) == ["chain_correlation"]


def test_evaluate_ends_with_the_complaints(train: Callable, capsys: pytest.CaptureFixture[str]):
    never = [f"trainer.{what}_every=0" for what in ("evaluate", "sample", "checkpoint")]
    digits = ["model=vae", "data=digits", "data.batch_size=100", *never]
    ill = train(*digits, "objective.beta=100", "trainer.steps=120")
    well = train(*digits, "trainer.steps=300")
    capsys.readouterr()
    gentrain.evaluate(ill.path, ["metrics=[elbo]", "device=cpu"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("health: posterior collapse: 0 of 20")
    gentrain.evaluate(well.path, ["metrics=[elbo]", "device=cpu"])
    assert "health:" not in capsys.readouterr().out


class Unmeasured(Decoder):
    """Draws tokens."""

    support, shape = "tokens", (4,)

    @property
    def prior(self) -> Distribution:
        return Independent(Normal(torch.zeros(2), 1.0), 1)

    def decode(self, z: Tensor) -> Tensor:
        raise AssertionError("tokens have no distances")

    def sample(self, n: int) -> Tensor:
        return self.decode(self.prior.sample(torch.Size([n])))


def test_tokens_have_no_distances():
    from gentrain.data.embedded import pydoc

    pipeline = Pipeline(pydoc(), "tokens", batch_size=20, seed=0)
    assert health.examine(Subject(Unmeasured(), pipeline, "validation"), SEED, thorough=True) == []


@pytest.mark.parametrize("held_out", [1, 101])
def test_an_example_left_over_is_no_batch_for_batch_normalisation(held_out: int):
    made = build("model=gan", "model.norm=batch", "model.discriminator_norm=batch", "data=digits")
    source = digits(validation=held_out)
    subject = Subject(made.model, Pipeline(source, "signed", 20, 0), split="validation")
    with torch.no_grad():
        signs = list(health.discriminator(health.Patient(subject, "validation", None, made.objective)))
    assert len(signs) == (0 if held_out == 1 else 1)
