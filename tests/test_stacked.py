"""Stacked digits: examples and labels by hand, what a pipeline makes of them, and how their modes are counted."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import build
from test_samples import judge, subject
from torch import Tensor, nn

from gentrain.data.embedded import digits
from gentrain.data.pipeline import Pipeline
from gentrain.data.stacked import Stack, stacked_digits
from gentrain.evaluation import classifier, judged
from gentrain.evaluation.channels import PerChannel
from gentrain.evaluation.modes import ModeCoverage


def whole(stack: Stack) -> Tensor:
    return torch.cat(list(stack.split(7)))


def test_a_stack_is_the_images_of_its_rows():
    images = torch.arange(4 * 2 * 3, dtype=torch.uint8).view(4, 1, 2, 3)
    rows = torch.tensor([[0, 1], [3, 3], [2, 0]], dtype=torch.int32)
    stack = Stack(images, rows)
    by_hand = torch.stack([torch.stack([images[i, 0] for i in row]) for row in rows.tolist()])
    assert stack.shape == by_hand.shape and len(stack) == 3 and torch.equal(whole(stack), by_hand)
    assert torch.equal(stack.index_select(0, torch.tensor([2, 0])), by_hand[[2, 0]])
    assert torch.equal(whole(stack[1:]), by_hand[1:])
    assert stack.numel() * stack.element_size() == 24 + 4 * 6


def test_labels_are_those_of_the_three_digits_and_held_out_examples_of_held_out_digits():
    source, base = stacked_digits(n=500, validation=40), digits()
    assert source.spec.sizes == {"train": 500, "validation": 40, "test": 100} and source.spec.name == "stacked_digits"
    for key, split in source.splits.items():
        of = base.splits[key]
        assert isinstance(of.x, Tensor) and of.y is not None and split.y is not None
        known = {bytes(image.flatten().numpy()): int(label) for image, label in zip(of.x, of.y, strict=True)}
        for example, y in zip(whole(split.x), split.y.tolist(), strict=True):  # type: ignore[arg-type]
            a, b, c = (known[bytes(channel.flatten().numpy())] for channel in example)
            assert y == 100 * a + 10 * b + c
    shares = torch.bincount(source.splits["train"].y // 100, minlength=10) / 500  # type: ignore[operator]
    assert shares.min() > 0.05 and shares.max() < 0.15  # ten alike: 0.1 ± 0.013


def test_the_data_are_a_function_of_their_own_seed():
    first, again, other = (stacked_digits(n=50, seed=seed) for seed in (0, 0, 1))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("binarization", ["dynamic", "static"])
def test_a_pipeline_takes_stacks_as_it_takes_images(binarization: str):
    source = stacked_digits(n=30)
    stack, y = source.splits["train"].x, source.splits["train"].y
    assert isinstance(stack, Stack) and y is not None
    signed = Pipeline(source, "signed", batch_size=10, seed=0)
    index, batch = signed.indices(4), signed.batch(4)
    torch.testing.assert_close(batch.x, whole(stack)[index] / 8.0 - 1)
    assert batch.y is not None and torch.equal(batch.y, y[index])
    torch.testing.assert_close(signed.mean(), (whole(stack).double().mean(0) / 8 - 1).float())
    torch.testing.assert_close(signed.deviation(), (whole(stack).double() / 8).std(0, unbiased=False).float())
    bits = Pipeline(source, "binary", batch_size=10, seed=0, binarization=binarization)
    grey = whole(stack)[bits.indices(0)]
    on = bits.batch(0).x
    assert ((on == 0) | (on == 1)).all() and (on[grey == 16] == 1).all() and (on[grey == 0] == 0).all()


def test_the_command_line_has_them():
    assembly = build("data=stacked_digits", "data.n=300", "model=dcgan", "model.channels=2", "data.batch_size=20")
    assert assembly.plain["data"]["classes"] == 1000 and assembly.model.shape == (3, 8, 8)
    assert assembly.pipeline.batch(0).x.shape == (20, 3, 8, 8)


class Brightness(nn.Module):
    """Three kinds of images, known by their mean; log-odds by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.mean((1, 2, 3)), torch.zeros(len(x)), -x.mean((1, 2, 3))], 1)


def test_one_classifier_answers_for_all_channels_together():
    x = torch.rand(4, 2, 3, 3)
    found = PerChannel(Brightness())(x)  # type: ignore[arg-type]
    first, second = (Brightness()(x[:, c : c + 1]).log_softmax(1) for c in (0, 1))
    expected = torch.stack([first[:, a] + second[:, b] for a in range(3) for b in range(3)], 1)
    torch.testing.assert_close(found, expected)


@pytest.fixture(autouse=True)
def briefly(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One classifier for this file, trained for less long."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "stacked-tests"))
    monkeypatch.setattr(classifier, "STEPS", 400)


def test_modes_are_counted_channel_by_channel():
    """Samples are stacks of training digits, of four kinds: the divergence is known, up to the classifier's errors."""
    source, base = stacked_digits(n=10_000), digits().splits["train"]
    assert isinstance(base.x, Tensor) and base.y is not None and source.splits["train"].y is not None
    of = {c: base.x[base.y == c][:, 0].float() / 16 for c in range(10)}
    kinds = [(1, 2, 3), (3, 2, 1), (7, 7, 7), (0, 6, 4)]

    def draw(n: int) -> Tensor:
        rows = torch.arange(n // 4)
        return torch.stack([torch.stack([of[c][rows % len(of[c])] for c in kind], 1) for kind in kinds], 1).flatten(
            0, 1
        )

    found = judge(ModeCoverage(n_fake=400), subject(source, draw, "unit"))
    assert found["modes_hit"].settings["classifier_accuracy"] > 0.85  # of three digits at once
    assert 4 <= found["modes_hit"].value < 20  # the four kinds, and what is taken for others
    data = torch.bincount(source.splits["train"].y, minlength=1000).double() / 10_000
    exact = math.log(1 / 4) - sum(float(data[100 * a + 10 * b + c].log()) for a, b, c in kinds) / 4
    assert found["label_kl"].value == pytest.approx(exact, abs=0.3)


def test_of_real_stacks_all_modes_are_found():
    source = stacked_digits(n=10_000)
    train = source.splits["train"]
    assert isinstance(train.x, Stack) and train.y is not None
    real = whole(train.x[:4000]).float() / 16
    pieces = iter(real.split(judged.CHUNK))
    found = judge(ModeCoverage(n_fake=4000), subject(source, lambda n: next(pieces), "unit"))
    assert found["modes_hit"].value == pytest.approx(len(train.y[:4000].unique()), rel=0.03)
    assert found["label_kl"].value == pytest.approx(999 / (2 * 4000), abs=0.05)  # that of 4,000 fair draws
