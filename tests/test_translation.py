"""What is found of translations that are made by hand: the exact answer, none at all, a constant, another's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Uniform
from torch.nn.functional import one_hot

from gentrain.data.pairs import Degradation, paired, unpaired
from gentrain.data.pipeline import Pipeline
from gentrain.data.source import Source, Split, make_source
from gentrain.errors import GentrainError, UsageError
from gentrain.evaluation.adaptation import Adaptation, Coupling
from gentrain.evaluation.classifier import classifier
from gentrain.evaluation.estimator import Estimator, Finding, Picture, Subject, seeded
from gentrain.evaluation.standard import standard
from gentrain.evaluation.translation import Translation
from gentrain.models.base import Generative
from gentrain.models.domains import Adapts, Couples, TranslatesBack, Translator
from gentrain.types import Support

Function = Callable[[Tensor], Tensor]


class Forward(Translator):
    def __init__(self, pipeline: Pipeline, translate: Function):
        super().__init__()
        self.shape, self.support, self._translate = pipeline.spec.shape, pipeline.support, translate

    def sample(self, n: int) -> Tensor:
        return torch.zeros(n, *self.shape)

    def translate(self, pair: Tensor) -> Tensor:
        return self._translate(pair)


class Both(Forward, TranslatesBack):
    def __init__(self, pipeline: Pipeline, translate: Function, back: Function):
        super().__init__(pipeline, translate)
        self._back = back

    def translate_back(self, x: Tensor) -> Tensor:
        return self._back(x)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def patterns(name: str = "patterns", n: int = 64, tests: int = 50, classes: int | None = 3, seed: int = 0) -> Source:
    """Images of 1 x 4 x 4 with a bright row that is the label, in noise that sometimes hides it."""
    generator = torch.Generator().manual_seed(seed)

    def split(size: int) -> Split:
        y = torch.randint(3, (size,), generator=generator)
        x = torch.rand(size, 1, 4, 4, generator=generator) * 160
        x[torch.arange(size), 0, y] += 60
        return Split(x.byte(), None if classes is None else y)

    splits = {"train": split(n), "validation": split(20), "test": split(tests)}
    return make_source(name, "levels", splits, levels=256, classes=classes)


def subject(source: Source, *functions: Function, support: Support = "unit", n: int | None = None) -> Subject:
    pipeline = Pipeline(source, support, batch_size=10, seed=0)
    model = Forward(pipeline, *functions) if len(functions) == 1 else Both(pipeline, *functions)
    return Subject(model, pipeline, n=n, data=source.fingerprint())


def measure(judged: Subject, estimator: Estimator | None = None) -> dict[str, Finding]:
    estimator = estimator or Translation()
    assert estimator.unfit(judged) is None
    with seeded(0):
        return {found.metric: found for found in estimator(judged) if isinstance(found, Finding)}


def inverted(x: Tensor) -> Tensor:
    return 1 - x


def same(x: Tensor) -> Tensor:
    return x


INVERTED = unpaired(patterns(), change="invert")


class TestKnownTranslators:
    @pytest.mark.parametrize("source", [INVERTED, paired(patterns(), "invert")], ids=["unpaired", "paired"])
    def test_the_exact_inverse_makes_no_error_and_is_judged_as_real_examples_are(self, source: Source) -> None:
        found = measure(subject(source, inverted))
        assert found["translation_error"].value < 1e-12 and found["translation_error"].settings["mae"] < 1e-6
        accuracy = found["translation_accuracy"]
        assert accuracy.value == accuracy.settings["classifier_accuracy"] > 0.5
        assert accuracy.kind == "classifier" and accuracy.n == 50
        assert accuracy.stderr == pytest.approx((accuracy.value * (1 - accuracy.value) / 50) ** 0.5)
        assert abs(found["translation_fid"].value) < 1e-6
        assert set(found) == {"translation_accuracy", "translation_error", "translation_fid"}

    def test_signed_images_have_the_errors_of_unit_ones(self) -> None:
        assert measure(subject(INVERTED, torch.neg, support="signed"))["translation_error"].value < 1e-12
        unit, signed = (measure(subject(INVERTED, same, support=s))["translation_error"] for s in ("unit", "signed"))
        assert signed.value == pytest.approx(unit.value, rel=1e-5)

    def test_the_identity_has_the_error_of_the_change(self) -> None:
        x = INVERTED.splits["test"].x.double() / 255  # type: ignore[union-attr]
        apart = (1 - x) - x
        error = measure(subject(INVERTED, same))["translation_error"]
        assert error.value == pytest.approx(float(apart.square().mean()), rel=1e-5)
        assert error.settings["mae"] == pytest.approx(float(apart.abs().mean()), rel=1e-5)
        assert error.stderr == pytest.approx(float(apart.square().flatten(1).mean(1).std()) / 50**0.5, rel=1e-5)

    def test_a_constant_has_the_accuracy_of_the_label_it_looks_like(self) -> None:
        judged = subject(INVERTED, torch.zeros_like)
        found = measure(judged)
        looks_like = int(classifier(judged).network(torch.zeros(1, 1, 4, 4)).argmax())
        share = float((INVERTED.splits["test"].y == looks_like).double().mean())  # type: ignore[union-attr]
        assert found["translation_accuracy"].value == pytest.approx(share)
        assert found["translation_fid"].value > 0.1

    def test_labels_are_those_of_what_was_translated(self) -> None:
        """Two sets whose test examples differ: each is judged by its own label, whatever stands beside it."""
        of, to = patterns(), patterns("others", tests=30, seed=1)
        judged = subject(unpaired(of, to), lambda pair: pair.roll(1, 0))
        x, y = to.splits["test"].x.float() / 255, to.splits["test"].y  # type: ignore[union-attr]
        right = classifier(judged).network(x.roll(1, 0)).argmax(1) == y
        found = measure(judged)
        assert found["translation_accuracy"].value == pytest.approx(float(right.double().mean()))
        assert found["translation_accuracy"].n == 30  # and not those that begin again beside the larger domain's 50
        assert found["translation_fid"].settings["n_fake"] == 30 and found["translation_fid"].settings["n_real"] == 50
        assert "translation_error" not in found


class TestBack:
    @pytest.mark.parametrize("source", [INVERTED, paired(patterns(), "invert")], ids=["unpaired", "paired"])
    def test_each_way_has_numbers_of_its_own(self, source: Source) -> None:
        found = measure(subject(source, inverted, same))
        assert found["translation_error"].value < 1e-12 < 0.05 < found["translation_back_error"].value
        found = measure(subject(source, same, inverted))
        assert found["translation_back_error"].value < 1e-12 < 0.05 < found["translation_error"].value
        back = found["translation_back_accuracy"]
        assert back.value == back.settings["classifier_accuracy"] and abs(found["translation_back_fid"].value) < 1e-6

    def test_each_domain_has_a_classifier_of_its_own(self) -> None:
        found = measure(subject(INVERTED, inverted, inverted))
        there, back = (found[f"translation{way}_accuracy"].settings["classifier"] for way in ("", "_back"))
        assert there != back

    def test_a_quarter_turn_is_undone_and_made(self) -> None:
        turned = unpaired(patterns(), change="rotate", amount=1)
        found = measure(subject(turned, lambda p: p.rot90(-1, (2, 3)), lambda x: x.rot90(1, (2, 3))))
        assert found["translation_error"].value < 1e-12 and found["translation_back_error"].value < 1e-12
        assert measure(subject(turned, lambda p: p.rot90(1, (2, 3))))["translation_error"].value > 0.01


class TestWhatIsKnown:
    @pytest.mark.parametrize("amount", [1, 2, 3, 5])
    def test_turns_have_inverses(self, amount: int) -> None:
        x, keys = torch.rand(2, 1, 3, 3), torch.zeros(2)
        turn = Degradation("rotate", amount)
        assert turn.inverse is not None and torch.equal(turn.inverse(turn(x, keys), keys), x)

    @pytest.mark.parametrize("change", ["inpaint", "super_resolve", "colourise", "denoise", "edges", "sketch"])
    def test_what_loses_something_has_none(self, change: str) -> None:
        assert Degradation(change).inverse is None  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "source", [unpaired(patterns(), change="denoise"), unpaired(patterns(), patterns("others"), change="invert")]
    )
    def test_without_a_known_answer_there_is_no_error(self, source: Source) -> None:
        found = measure(subject(source, same, same))
        assert not any(metric.endswith("error") for metric in found) and len(found) == 4

    def test_what_cannot_be_undone_can_be_done(self) -> None:
        source = unpaired(patterns(), change="super_resolve", amount=2)
        blocks = Degradation("super_resolve", 2)
        found = measure(subject(source, same, lambda x: blocks(x, torch.zeros(len(x)))))
        assert "translation_error" not in found and found["translation_back_error"].value < 1e-12

    def test_the_answer_to_a_degradation_is_the_example_itself(self) -> None:
        source = paired(patterns(), "inpaint", 0.25)
        x = source.splits["test"].x.double() / 255  # type: ignore[union-attr]
        apart = (x - 0.5)[:, :, 1:3, 1:3].square().sum((1, 2, 3)) / 16
        assert measure(subject(source, same))["translation_error"].value == pytest.approx(float(apart.mean()), rel=1e-5)

    def test_without_labels_pixels_are_compared(self) -> None:
        found = measure(subject(unpaired(patterns(classes=None), change="invert"), inverted))
        assert set(found) == {"translation_error", "translation_fid"}
        assert found["translation_fid"].unit == "squared distance (pixels)" and found["translation_fid"].value < 1e-6

    def test_labels_of_two_kinds_are_no_ground_to_judge_by(self) -> None:
        more = make_source("more", "levels", patterns().splits, levels=256, classes=5)
        assert set(measure(subject(unpaired(patterns(), more), same))) == {"translation_fid"}

    def test_only_the_first_examples(self) -> None:
        few = measure(subject(INVERTED, same, n=10))
        x = INVERTED.splits["test"].x[:10].double() / 255  # type: ignore[union-attr]
        assert few["translation_error"].n == 10
        assert few["translation_error"].value == pytest.approx(float((1 - 2 * x).square().mean()), rel=1e-5)


class TestRefusals:
    def test_metrics_of_samples_leave_translators_alone(self) -> None:
        judged = subject(INVERTED, same)
        for name in ("fid", "kid", "mmd", "swd", "prdc", "modes", "nearest", "parzen"):
            reason = standard()[name].unfit(judged)
            assert reason is not None and "metrics=[translation]" in reason

    def test_data_without_pairs_are_refused(self) -> None:
        assert "has no pairs" in (Translation().unfit(subject(patterns(), same)) or "")

    def test_a_translator_that_has_diverged(self) -> None:
        with pytest.raises(GentrainError, match="translations of Forward: some are NaN"):
            measure(subject(INVERTED, lambda pair: pair / 0))

    def test_too_few(self) -> None:
        with pytest.raises(UsageError, match="n=3"):
            measure(subject(INVERTED, same, n=3))


class Tells(Adapts):
    """Says that everything in x is of label 0, and of `pair` the brightest row."""

    def __init__(self, pipeline: Pipeline, knows: bool = True):
        super().__init__()
        self.shape, self.support, self.knows = pipeline.spec.shape, pipeline.support, knows

    @property
    def knows_labels(self) -> bool:
        return self.knows

    def sample(self, n: int) -> Tensor:
        return torch.zeros(n, *self.shape)

    def log_class(self, x: Tensor) -> Tensor:
        return torch.tensor([0.9, 0.05, 0.05]).log().expand(len(x), 3)

    def log_class_pair(self, pair: Tensor) -> Tensor:
        return pair[:, 0, :3].mean(2).log_softmax(1)


def planted(source: Source, make: Callable[[Pipeline], Generative]) -> Subject:
    pipeline = Pipeline(source, "unit", batch_size=10, seed=0)
    return Subject(make(pipeline), pipeline, data=source.fingerprint())


class TestAdaptation:
    def test_labels_of_each_domain_are_held_against_its_own(self) -> None:
        of, to = patterns(), patterns("others", tests=30, seed=1)
        judged = planted(unpaired(of, to), Tells)
        found = measure(judged, Adaptation())
        x, y = to.splits["test"].x.float() / 255, to.splits["test"].y  # type: ignore[union-attr]
        right = x[:, 0, :3].mean(2).argmax(1) == y
        accuracy = found["adaptation_accuracy"]
        assert accuracy.value == pytest.approx(float(right.double().mean())) and accuracy.n == 30
        zeros = (of.splits["test"].y == 0).double().mean()  # type: ignore[union-attr]
        assert accuracy.settings["source_accuracy"] == pytest.approx(float(zeros))
        plain = classifier(judged).network(x).argmax(1) == y
        assert found["source_only_accuracy"].value == pytest.approx(float(plain.double().mean()))

    def test_a_model_that_was_told_none_and_labels_of_other_kinds_are_refused(self) -> None:
        judged = planted(unpaired(patterns(), patterns("others")), lambda pipeline: Tells(pipeline, knows=False))
        assert "without labels" in (Adaptation().unfit(judged) or "")
        more = make_source("more", "levels", patterns().splits, levels=256, classes=5)
        assert "labels aren't the same" in (Adaptation().unfit(planted(unpaired(patterns(), more), Tells)) or "")


class Drawn(Couples):
    """Codes are grey images; x is the code, `pair` a function of it."""

    def __init__(self, pipeline: Pipeline, function: Function):
        super().__init__()
        self.shape, self.support, self.function = pipeline.spec.shape, pipeline.support, function

    @property
    def prior(self) -> Distribution:
        return Independent(Uniform(torch.zeros(self.shape), torch.ones(self.shape)), 3)

    def decode(self, z: Tensor) -> Tensor:
        rows = one_hot((z[:, 0, 0, 0] * 3).long(), 4)  # each label as often
        return 0.6 * z + 0.24 * rows[:, None, :, None]

    def decode_pair(self, z: Tensor) -> Tensor:
        return self.function(self.decode(z))

    def sample(self, n: int) -> Tensor:
        return self.decode(self.prior.sample(torch.Size([n])))


class TestCoupling:
    @pytest.mark.parametrize("source", [INVERTED, paired(patterns(), "invert")], ids=["unpaired", "paired"])
    def test_pairs_that_belong_together_agree_and_others_as_chance_has_it(self, source: Source) -> None:
        found = measure(planted(source, lambda pipeline: Drawn(pipeline, inverted)), Coupling(n_fake=1500))
        agreement, pixels = found["pair_agreement"], found["pixel_agreement"]
        assert pixels.value == 1 and 0.4 < pixels.settings["by_chance"] < 0.9
        assert agreement.value > 0.6 and 0.2 < agreement.settings["by_chance"] < 0.5  # three labels
        found = measure(planted(source, lambda p: Drawn(p, lambda x: inverted(x.roll(1, 0)))), Coupling(n_fake=1500))
        for metric in ("pair_agreement", "pixel_agreement"):
            assert found[metric].value == pytest.approx(found[metric].settings["by_chance"], abs=0.05)

    def test_opposites_have_no_pixel_in_common(self) -> None:
        found = measure(planted(INVERTED, lambda pipeline: Drawn(pipeline, same)), Coupling(n_fake=100))
        assert found["pixel_agreement"].value == 0

    def test_the_picture_has_each_x_beside_its_partner(self) -> None:
        judged = planted(INVERTED, lambda pipeline: Drawn(pipeline, torch.ones_like))
        with seeded(0):
            (picture,) = (f for f in Coupling(n_fake=8, shown=8)(judged) if isinstance(f, Picture))
        tile = (picture.pixels.shape[1] - 2) // 8
        first, second = (picture.pixels[tile // 2 - 1, column * tile + tile // 2 + 1] for column in (0, 1))
        assert (second == 255).all() and (first < 255).all()
