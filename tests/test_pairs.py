"""Data in pairs: what degradations make of images, the order of two domains, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gentrain.cli import main
from gentrain.data.embedded import digits
from gentrain.data.pairs import Degradation, paired, unpaired
from gentrain.data.pipeline import Pipeline
from gentrain.data.randomness import sample_keys
from gentrain.data.source import Source, Split, make_source
from gentrain.data.synthetic import moons
from gentrain.errors import DataError, UsageError

KEYS = sample_keys(1, torch.arange(3))


def numbered(n: int, base: int, validation: int = 5) -> Source:
    """Images of 1 x 2 x 2 whose every pixel is the example's own number, from `base` on."""
    x = torch.arange(base, base + n + 2 * validation, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    splits: dict[str, Split | None] = {
        "train": Split(x[:n], torch.arange(n) % 3),
        "validation": Split(x[n : n + validation]) if validation else None,
        "test": Split(x[n + validation :]) if validation else None,
    }
    return make_source(f"from{base}", "levels", splits, levels=256, classes=3)


def numbers(x: Tensor) -> list[int]:
    """Which examples these are, in the support `unit`."""
    return (x[:, 0, 0, 0] * 255).round().int().tolist()


class TestDegradation:
    def apply(self, change: str, x: Tensor, amount: float | None = None) -> Tensor:
        return Degradation(change, amount)(x, KEYS[: len(x)])  # type: ignore[arg-type]

    def test_inpainting_hides_a_window_of_that_area_and_leaves_the_rest_and_the_original(self) -> None:
        x = torch.rand(3, 1, 8, 8)
        kept = x.clone()
        hidden = self.apply("inpaint", x, 0.25)
        assert torch.equal(x, kept)
        assert (hidden[:, :, 2:6, 2:6] == 0.5).all()
        outside = torch.ones(8, 8, dtype=torch.bool)
        outside[2:6, 2:6] = False
        assert torch.equal(hidden[..., outside], x[..., outside])

    def test_super_resolution_is_given_the_means_of_blocks(self) -> None:
        x = torch.arange(16.0).view(1, 1, 4, 4) / 16
        small = self.apply("super_resolve", x, 2)
        for i in (0, 2):
            for j in (0, 2):
                block = x[0, 0, i : i + 2, j : j + 2].mean()
                assert torch.allclose(small[0, 0, i : i + 2, j : j + 2], block)

    def test_colour_becomes_luminance(self) -> None:
        x = torch.rand(2, 3, 4, 4)
        grey = self.apply("colourise", x)
        expected = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
        for channel in range(3):
            torch.testing.assert_close(grey[:, channel], expected)

    def test_noise_has_its_deviation_is_cut_and_belongs_to_the_example(self) -> None:
        x, keys = torch.full((200, 1, 8, 8), 0.5), sample_keys(3, torch.arange(200))
        noisy = Degradation("denoise", 0.1)(x, keys)
        error = noisy - x
        n = error.numel()
        assert abs(error.mean().item()) < 5 * 0.1 / math.sqrt(n)
        assert abs(error.std().item() / 0.1 - 1) < 5 / math.sqrt(2 * n)
        assert torch.equal(Degradation("denoise", 0.1)(x[7:9], keys[7:9]), noisy[7:9])
        strong = Degradation("denoise", 2.0)(x, keys)
        assert strong.min() == 0 and strong.max() == 1

    def test_edges_lie_where_a_step_is(self) -> None:
        x = torch.zeros(1, 1, 6, 6)
        x[..., 3:] = 1.0
        edges = self.apply("edges", x)
        assert edges[0, 0, 0].tolist() == [0, 0, 1, 1, 0, 0]  # a straight step has the gradient 1 on both its sides
        assert self.apply("edges", x / 4).sum() == 0

    def test_a_sketch_is_white_where_nothing_changes_and_darker_where_contrast_is_higher(self) -> None:
        x = torch.zeros(1, 1, 6, 6)
        x[..., 3:] = 1.0
        lines = self.apply("sketch", x)
        # next to the step a third of the square of nine pixels is on the other side: 1 - 2/3
        torch.testing.assert_close(lines[0, 0, 0], torch.tensor([1, 1, 1 / 3, 1 / 3, 1, 1]))
        assert self.apply("sketch", x / 2)[0, 0, 0, 2] > lines[0, 0, 0, 2]

    def test_inversion_and_rotation(self) -> None:
        x = torch.arange(4.0).view(1, 1, 2, 2) / 4
        assert torch.equal(self.apply("invert", x), 1 - x)
        assert self.apply("rotate", x, 1).flatten().tolist() == [0.25, 0.75, 0, 0.5]
        assert torch.equal(self.apply("rotate", self.apply("rotate", x, 3), 1), x)


class TestPaired:
    def test_each_example_has_what_is_left_of_it_in_both_supports(self) -> None:
        for support in ("unit", "signed"):
            pipeline = Pipeline(paired(digits(), "invert"), support, 50, seed=0)  # type: ignore[arg-type]
            batch = pipeline.batch(3)
            assert batch.pair is not None
            torch.testing.assert_close(batch.pair, (1 if support == "unit" else 0) - batch.x)

    def test_it_is_the_set_itself_beside(self) -> None:
        plain, pair = Pipeline(digits(), "unit", 50, 0), Pipeline(paired(digits(), "edges"), "unit", 50, 0)
        assert torch.equal(plain.batch(5).x, pair.batch(5).x)
        held = next(pair.evaluation("test", 20))
        assert held.pair is not None and torch.equal(held.x, next(plain.evaluation("test", 20)).x)
        again = Degradation("edges")(held.x, KEYS)
        assert torch.equal(held.pair, again)

    def test_noise_is_new_every_epoch_and_the_same_for_held_out_examples(self) -> None:
        pipeline = Pipeline(paired(numbered(6, 100), "denoise", 0.3), "unit", 6, 0)
        first, second = pipeline.batch(0), pipeline.batch(1)
        assert first.pair is not None and second.pair is not None
        order = [torch.tensor(numbers(b.x)).argsort() for b in (first, second)]
        assert torch.equal(first.x[order[0]], second.x[order[1]])
        assert not torch.equal(first.pair[order[0]], second.pair[order[1]])
        held = [next(pipeline.evaluation("test", size)).pair for size in (2, 5)]
        assert held[0] is not None and held[1] is not None and torch.equal(held[0], held[1][:2])

    def test_the_fingerprint_knows_the_change(self) -> None:
        prints = {
            source.fingerprint()
            for source in (digits(), paired(digits()), paired(digits(), "invert"), paired(digits(), "edges", 0.4))
        }
        assert len(prints) == 4


class TestUnpaired:
    def test_each_domain_goes_through_its_own_epochs_in_its_own_order(self) -> None:
        pipeline = Pipeline(unpaired(numbered(12, 0), numbered(8, 100)), "unit", 4, seed=0)
        batches = [pipeline.batch(step) for step in range(12)]
        own = [numbers(b.x) for b in batches]
        other = [numbers(b.pair) for b in batches if b.pair is not None]
        for epoch in range(4):
            assert sorted(list(chain.from_iterable(own[3 * epoch : 3 * epoch + 3]))) == list(range(12))
        for epoch in range(6):
            assert sorted(list(chain.from_iterable(other[2 * epoch : 2 * epoch + 2]))) == list(range(100, 108))
        assert len({tuple(chain.from_iterable(other[2 * e : 2 * e + 2])) for e in range(6)}) == 6
        labels = [(n - 100) % 3 for n in other[0]]
        assert batches[0].pair_y is not None and batches[0].pair_y.tolist() == labels

    def test_a_step_is_a_function_of_the_seed_alone_and_two_processes_share_it(self) -> None:
        source = unpaired(numbered(12, 0), numbered(8, 100))
        whole = Pipeline(source, "unit", 4, seed=3).batch(7)
        halves = [Pipeline(source, "unit", 4, seed=3, rank=rank, world=2).batch(7) for rank in (0, 1)]
        assert whole.pair is not None and torch.equal(
            whole.pair, torch.cat([h.pair for h in halves if h.pair is not None])
        )
        other = Pipeline(source, "unit", 4, seed=4).batch(7).pair
        assert other is not None and not torch.equal(other, whole.pair)

    def test_one_set_changed_is_two_halves_without_a_common_example(self) -> None:
        source = unpaired(numbered(12, 0))
        pipeline = Pipeline(source, "unit", 6, seed=0)
        batch = pipeline.batch(0)
        assert batch.pair is not None
        assert sorted(numbers(batch.x)) == list(range(6))
        assert sorted(numbers(1 - batch.pair)) == list(range(6, 12))

    def test_held_out_examples_of_the_smaller_domain_begin_again(self) -> None:
        pipeline = Pipeline(unpaired(numbered(12, 0), numbered(8, 100, validation=3)), "unit", 4, seed=0)
        held = next(pipeline.evaluation("test", 5))
        assert held.pair is not None
        assert numbers(held.x) == list(range(17, 22)) and numbers(held.pair) == [111, 112, 113, 111, 112]

    def test_validation_is_held_out_of_both(self) -> None:
        source = unpaired(numbered(12, 0), numbered(8, 100), validation=2)
        assert isinstance(source.partner, Source)
        assert dict(source.spec.sizes) == {"train": 15, "validation": 2, "test": 5}
        assert dict(source.partner.spec.sizes) == {"train": 11, "validation": 2, "test": 5}

    def test_sizes_are_made_equal(self) -> None:
        square = make_source(
            "big", "levels", {"train": Split(torch.full((4, 1, 6, 6), 2, dtype=torch.uint8))}, levels=7
        )
        small = make_source("small", "binary", {"train": Split(torch.ones(4, 1, 2, 2, dtype=torch.uint8))})
        source = unpaired(square, small, size=4)
        batch = Pipeline(source, "unit", 4, 0).batch(0)
        assert batch.pair is not None and batch.pair.shape == batch.x.shape == (4, 1, 4, 4)
        assert (batch.pair == 1).all() and torch.allclose(batch.x, torch.tensor(2 / 6))

    def test_the_frame_of_the_other_set_is_made_wider(self) -> None:
        big = make_source("big", "levels", {"train": Split(torch.ones(4, 1, 6, 6, dtype=torch.uint8))}, levels=7)
        square = Split(torch.full((4, 1, 4, 4), 6, dtype=torch.uint8))
        square = make_source("square", "levels", {"train": square}, levels=7)
        batch = Pipeline(unpaired(big, square, pad=1), "unit", 4, 0).batch(0)
        assert batch.pair is not None
        assert (batch.pair[:, :, 1:-1, 1:-1] == 1).all() and batch.pair.sum() == 4 * 16
        batch = Pipeline(unpaired(big, square, pad=2, size=16), "unit", 4, 0).batch(0)
        assert batch.pair is not None and batch.pair.shape == (4, 1, 16, 16)
        assert float(batch.pair.sum()) == pytest.approx(4 * (16 * 4 / 8) ** 2, rel=0.01), "half of the frame's side"


REFUSED = [
    (lambda: unpaired(digits(), moons(), change=None), r"shape \[1, 8, 8\] and moons of \[2\]; take two sets"),
    (lambda: unpaired(digits(), numbered(8, 0)), "data.size=8"),
    (
        lambda: unpaired(digits(), replace(digits(), splits={"train": digits().splits["train"]})),
        "has no validation split",
    ),
    (lambda: unpaired(numbered(1, 0), change="invert"), "one of two domains is empty"),
    (lambda: paired(moons(), "invert"), "is for images"),
    (lambda: paired(digits(), "colourise"), "is grey"),
    (lambda: paired(digits(), "super_resolve", 3), r"don't tile 8 x 8; take one of 2, 4, 8"),
    (lambda: paired(digits(), "inpaint", 1.5), "data.amount=1.5"),
    (lambda: paired(digits(), "invert", 2), "takes no amount"),
    (lambda: paired(digits(), "rotate", 0.5), "a whole number"),
    (lambda: paired(digits(), "rotate", 4), "data.amount=4: data.change=rotate would change nothing"),
    (lambda: paired(digits(), "super_resolve", 1), "data.amount=1: data.change=super_resolve would change nothing"),
    (lambda: paired(digits(), "inpaint", 0.003), "data.amount=0.003: hides all or nothing of 8 x 8"),
    (lambda: paired(digits(), "inpaint", 0.999), "data.amount=0.999: hides all or nothing of 8 x 8"),
    (lambda: paired(paired(digits()), "invert"), "one plain data set"),
    (lambda: unpaired(digits(), amount=2, to=digits()), "data.amount=2"),
    (lambda: unpaired(digits(), pad=2), "data.pad=2: is of another set"),
    (lambda: unpaired(digits(), moons(), pad=2), "data.pad=2: is for images"),
    (lambda: Pipeline(paired(digits()), "binary", 5, 0), "unit and signed models"),
]


@pytest.mark.parametrize(("make", "word"), REFUSED, ids=[word[:25] for _, word in REFUSED])
def test_what_cant_be_paired_is_refused_in_a_line(make, word: str) -> None:
    with pytest.raises((UsageError, DataError), match=word) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_two_folders_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for name, shade in (("light", 200), ("dark", 50)):
        (tmp_path / name).mkdir()
        for i in range(30):
            Image.fromarray(np.full((8, 8, 3), shade + i, dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    folders = [f"data@data.{key}=folder" for key in ("of", "to")]
    where = [f"data.of.path={tmp_path}/light", f"data.to.path={tmp_path}/dark", "data.of.size=8", "data.to.size=8"]
    words = ["data=unpaired", *folders, *where, "data.change=null", "model=gan", "trainer.steps=2", "data.batch_size=8"]
    assert main([*words, "device=cpu", f"output={tmp_path}/out"]) == 0
    folder = next((tmp_path / "out").iterdir())
    assert folder.name == "folder-and-folder"
    assert main(["model=gan", "data=unpaired", "data@data.to=moons", f"output={tmp_path}/out"]) == 2
    assert "shape [1, 8, 8] and moons of [2]" in capsys.readouterr().err
    assert main([*words, f"data.to.path={tmp_path}/gone"]) == 1
    assert capsys.readouterr().err == f"gentrain: data.to.path={tmp_path}/gone is not a folder\n"
