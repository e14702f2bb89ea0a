"""Captions made from images, what is measured for them, and their way into configurations and numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import build
from torch import Tensor, nn

from gentrain.batch import Captions
from gentrain.data import captions as module
from gentrain.data.captions import NUMERALS, THICKNESS, captioned, captioned_digits, stroke_width
from gentrain.data.embedded import digits
from gentrain.data.pipeline import Pipeline
from gentrain.data.source import Source, Split, make_source
from gentrain.errors import UsageError
from gentrain.evaluation.captions import CaptionAgreement
from gentrain.evaluation.estimator import Finding, Subject, seeded
from gentrain.models.base import Conditional, Generative


def bar(height: int, width: int, side: int = 40) -> Tensor:
    x = torch.zeros(1, 1, side, side)
    x[..., 4 : 4 + height, 6 : 6 + width] = 1.0
    return x


@pytest.mark.parametrize(("height", "width"), [(30, 2), (30, 5), (3, 20), (1, 1)])
def test_the_width_of_a_bar_is_twice_its_area_over_its_outline(height: int, width: int):
    # its outline has 2(h + w) unit edges; of the two at the lower right corner, differences to the right and downwards
    # meet in the corner's own pixel, and one at √2 stands for both
    outline = 2 * (height + width) - 2 + 2**0.5
    assert stroke_width(bar(height, width)).item() == pytest.approx(2 * height * width / outline, rel=0.02)


def test_the_width_does_not_hang_on_how_bright_the_ink_is_or_which_way_a_stroke_runs():
    grid = torch.stack(torch.meshgrid(torch.arange(60.0), torch.arange(60.0), indexing="ij"), -1) - 29.5
    found = []
    for angle in torch.tensor([0.0, 0.4, 0.785]):
        across = grid @ torch.stack([angle.cos(), angle.sin()])
        along = grid @ torch.stack([-angle.sin(), angle.cos()])
        stroke = (3.0 - across.abs()).clamp(0, 1) * (20.0 - along.abs()).clamp(0, 1)  # smooth edges; 5 wide, 39 long
        found.append(stroke_width(stroke[None, None]).item())
        assert stroke_width(0.4 * stroke[None, None]).item() == pytest.approx(found[-1], rel=1e-5)
    assert found == pytest.approx([5 * 39 / (5 + 39)] * 3, rel=0.05)
    assert stroke_width(torch.zeros(2, 1, 8, 8)).tolist() == [0.0, 0.0]


def test_every_image_has_the_caption_of_its_digit_and_its_own_measure():
    source, plain = captioned_digits(), digits()
    spec = source.spec
    assert spec.captions is not None and spec.classes == len(spec.captions) == 30
    assert spec.captions[7 * 3 + 2] == "a thick seven" and spec.captions[0] == "a thin zero"
    found = spec.captioning
    assert found is not None
    low, high = found.bounds
    for key, split in source.splits.items():
        x, y = plain.splits[key].x, plain.splits[key].y
        assert isinstance(x, Tensor) and isinstance(split.x, Tensor) and y is not None and split.y is not None
        assert torch.equal(split.x, x)
        for image, digit, label in list(zip(x, y.tolist(), split.y.tolist(), strict=True))[:40]:
            width = stroke_width(image[None].double() / 16).item()
            assert label == 3 * digit + (0 if width <= low else 1 if width <= high else 2)
    counts = torch.bincount(source.splits["train"].y % 3)
    assert (counts - 1257 / 3).abs().max() <= 2


def test_captions_may_be_withheld_from_training_alone():
    source = captioned_digits(withhold=["a thick seven", "a thin two"])
    whole, out = captioned_digits(), torch.tensor([7 * 3 + 2, 2 * 3])
    train, kept = whole.splits["train"].y, source.splits["train"].y
    assert torch.equal(train[~torch.isin(train, out)], kept) and len(kept) < len(train)
    assert source.spec.sizes["train"] == len(kept) == len(source.splits["train"].x)
    assert torch.equal(source.splits["test"].y, whole.splits["test"].y)
    assert source.spec.captioning == whole.spec.captioning and source.fingerprint() != whole.fingerprint()


def test_what_cannot_be_withheld_is_said():
    with pytest.raises(UsageError, match=r"data\.withhold='a thik seven': there is no such caption\. Did you mean"):
        captioned_digits(withhold=["a thik seven"])
    with pytest.raises(UsageError, match="leaves nothing to train on"):
        captioned_digits(withhold=[f"a {t} {n}" for t in THICKNESS for n in NUMERALS])


def test_captions_are_a_fact_of_the_data_that_models_can_refer_to():
    own = build("model=stackgan", "data=captioned_digits", "model.channels=4")
    assert own.plain["data"]["captions"] == captioned_digits().spec.captions
    assert own.model.words == tuple(sorted({"a", *NUMERALS, *THICKNESS}))
    assert build("model=stackgan", "data=digits", "model.channels=4").plain["data"]["captions"] is None


class Draws(Generative, Conditional):
    """Test examples of the caption `shift` further than the one that is asked for."""

    def __init__(self, source: Source, shift: int):
        super().__init__()
        self.shape, self.support, self.classes = source.spec.shape, "signed", source.spec.classes
        self.examples, self.shift = source.splits["test"], shift
        self.register_buffer("none", torch.zeros(()))

    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        assert y is not None and self.examples.y is not None and isinstance(self.examples.x, Tensor)
        wanted = (y + self.shift) % self.classes
        rows = [int((self.examples.y == label).nonzero()[0, 0]) for label in wanted.tolist()]
        return self.examples.x[rows].float() / 127.5 - 1


class Judge(nn.Module):
    """Knows two images' mean: the first pixel says the digit; it is never sure of the thickness."""

    settings: dict[str, Any] = {"classifier_accuracy": 1.0}  # noqa: RUF012

    @property
    def network(self) -> Judge:
        return self

    def forward(self, x: Tensor) -> Tensor:
        digit = (x[:, 0, 0, 0] * 255).round().long()
        logits = torch.zeros(len(x), 2, 3)
        logits[torch.arange(len(x)), digit] = torch.tensor([1.0, 2.0, 1.5])  # always for medium
        return logits.flatten(1)


def bars() -> Source:
    """Two kinds of bars, told by the pixel in the corner, in three widths."""
    x, y = [], []
    for kind in (0, 1):
        for repeat in range(4):
            for width in (2, 4, 7):
                image = (255 * bar(30 + repeat, width)).byte()
                image[..., 0, 0] = kind
                x.append(image)
                y.append(kind)
    split = Split(torch.cat(x), torch.tensor(y))
    return make_source("bars", "levels", {"train": split, "test": split}, levels=256, classes=2)


@pytest.mark.parametrize(("shift", "nouns", "attributes"), [(0, 1.0, 1.0), (1, 2 / 3, 0.0), (3, 0.0, 1.0)])
def test_agreement_is_of_the_digit_by_a_judge_and_of_the_thickness_by_measure(
    shift: int, nouns: float, attributes: float, monkeypatch
):
    monkeypatch.setattr(module, "NUMERALS", ("zero", "one"))
    monkeypatch.setattr("gentrain.evaluation.captions.classifier", lambda subject: Judge())
    source = captioned(bars())
    assert source.spec.captions == [f"a {t} {n}" for n in ("zero", "one") for t in THICKNESS]
    model = Draws(source, shift)
    subject = Subject(model, Pipeline(source, "signed", batch_size=4, seed=0))
    estimator = CaptionAgreement(n_fake=60)
    assert estimator.unfit(subject) is None
    with seeded(0):
        found = list(estimator(subject))
    assert all(isinstance(f, Finding) for f in found)
    assert {f.metric: f.value for f in found} == pytest.approx(
        {"noun_agreement": nouns, "attribute_agreement": attributes}
    )
    bare = replace(source, spec=replace(source.spec, captioning=None))
    reason = estimator.unfit(Subject(model, Pipeline(bare, "signed", batch_size=4, seed=0)))
    assert reason is not None and "no captions" in reason


def test_a_value_on_a_bound_belongs_below_it():
    captions = Captions(("one",), THICKNESS, (1.0, 2.0))
    assert captions.attribute(torch.tensor([0.5, 1.0, 1.5, 2.0, 2.5])).tolist() == [0, 0, 1, 1, 2]
