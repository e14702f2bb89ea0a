"""Batches are functions of (seed, step), in the model's support, by the stated protocol."""

from __future__ import annotations

import pytest
import torch

from gentrain.data.conversion import Conversion, largest_below_one, unit_scale
from gentrain.data.embedded import digits, pydoc
from gentrain.data.pipeline import Pipeline
from gentrain.data.randomness import derive, sample_keys, uniform
from gentrain.data.source import Source, Split, make_source
from gentrain.data.synthetic import bars, ring
from gentrain.errors import DataError, UsageError


def levels(values: list[list[int]], k: int) -> Source:
    return make_source("tiny", "levels", {"train": Split(torch.tensor(values, dtype=torch.uint8))}, levels=k)


def grey(n: int = 200, held: int = 30) -> Source:
    x = torch.randint(0, 256, (n + 2 * held, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = Split(x, torch.arange(n + 2 * held))
    splits = {"train": whole[:n], "validation": whole[n : n + held], "test": whole[n + held :]}
    return make_source("grey", "levels", splits, levels=256, classes=n + 2 * held)


@pytest.mark.parametrize(
    ("support", "options", "expected", "protocol"),
    [
        ("unit", {}, [0, 1 / 3, 2 / 3, 1], "unit"),
        ("signed", {}, [-1, -1 / 3, 1 / 3, 1], "signed"),
        ("levels", {}, [0, 1, 2, 3], "levels"),
        ("real", {}, [0, 1 / 3, 2 / 3, 1], "real, scaled to [0,1]"),
        ("binary", {"binarization": "threshold"}, [0, 0, 1, 1], "binary, threshold 0.5"),
    ],
)
def test_conversion_by_hand(support, options, expected, protocol):
    pipeline = Pipeline(levels([[0, 1, 2, 3]], 4), support, 1, seed=0, **options)
    x = pipeline.batch(0).x
    assert x.dtype == (torch.int64 if support == "levels" else torch.float32)
    torch.testing.assert_close(x.double(), torch.tensor([expected], dtype=torch.float64), rtol=0, atol=1e-7)
    torch.testing.assert_close(pipeline.mean().double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-7)
    assert pipeline.protocol == protocol


def test_threshold_of_bytes_lies_between_127_and_128():
    pipeline = Pipeline(levels([[0, 127, 128, 255]], 256), "binary", 1, seed=0, binarization="threshold")
    assert pipeline.batch(0).x.tolist() == [[0, 0, 1, 1]]


def test_the_top_level_never_exceeds_one_and_its_bit_is_always_on(monkeypatch):
    inexact = [k for k in range(2, 257) if float(torch.tensor(k - 1.0) * unit_scale(k - 1)) != 1]
    assert len(inexact) < 20 and not {2, 16, 17, 256} & set(inexact)
    assert all(1 - 2**-24 <= float(torch.tensor(k - 1.0) * unit_scale(k - 1)) < 1 for k in inexact)
    monkeypatch.setattr("gentrain.data.conversion.uniform", lambda keys, shape: torch.full((1, *shape), 1 - 2**-24))
    for k in range(3, 257):
        assert Pipeline(levels([[0, k - 2, k - 1]], k), "binary", 1, seed=0).batch(0).x.tolist() == [[0, 0, 1]]


def test_dynamic_binarization_draws_with_the_grey_level_as_probability():
    pipeline = Pipeline(levels([[0, 51, 128, 204, 255]], 256), "binary", 1, seed=3)
    bits = torch.cat([pipeline.batch(step).x for step in range(4000)])  # one step is an epoch here
    p = torch.tensor([0, 51, 128, 204, 255]) / 255
    assert set(bits.unique().tolist()) == {0.0, 1.0}
    z = (bits.mean(0) - p) / (p * (1 - p) / 4000).sqrt().clamp_min(1e-9)
    assert z.abs().max() < 4 and bits[:, 0].sum() == 0 and bits[:, 4].sum() == 4000
    assert (bits[1:, 2] == bits[:-1, 2]).float().mean() == pytest.approx(0.5, abs=0.04)  # epochs are independent
    torch.testing.assert_close(pipeline.mean(), p)


def test_dequantization_is_uniform_within_the_level():
    pipeline = Pipeline(levels([[0, 100, 255]], 256), "unit", 1, seed=0, dequantize=True)
    x = torch.cat([pipeline.batch(step).x for step in range(3000)]) * 256
    assert x.floor().unique(dim=0).tolist() == [[0, 100, 255]]
    within = x - x.floor()
    assert within.mean(0).sub(0.5).abs().max() < 4 / (12 * 3000) ** 0.5
    assert within.var(0).sub(1 / 12).abs().max() < 0.006
    torch.testing.assert_close(pipeline.mean() * 256, torch.tensor([0.5, 100.5, 255.5]))
    signed = Pipeline(levels([[0, 100, 255]], 256), "signed", 1, seed=0, dequantize=True)
    torch.testing.assert_close(signed.batch(7).x, 2 * pipeline.batch(7).x - 1)
    assert (pipeline.protocol, signed.protocol) == ("unit, uniform dequantization", "signed, uniform dequantization")


def test_dequantized_values_stay_below_one(monkeypatch):
    monkeypatch.setattr("gentrain.data.conversion.uniform", lambda keys, shape: torch.full((1, *shape), 1 - 2**-24))
    x = Pipeline(levels([[255]], 256), "unit", 1, seed=0, dequantize=True).batch(0).x
    assert float(x) == largest_below_one < 1


def test_static_binarization_is_one_draw_for_ever():
    source = grey()
    first, second = (Pipeline(source, "binary", 50, seed, binarization="static") for seed in (0, 1))
    seen: dict[int, torch.Tensor] = {}
    for pipeline in (first, second):
        for step in range(12):
            for index, x in zip(pipeline.indices(step).tolist(), pipeline.batch(step).x, strict=True):
                assert torch.equal(seen.setdefault(index, x), x)
    bits, p = torch.stack([seen[i] for i in sorted(seen)]), source.splits["train"].x.double() / 255
    z = (bits - p).sum() / (p * (1 - p)).sum().sqrt()
    assert set(bits.unique().tolist()) == {0.0, 1.0} and abs(z) < 4 and len(bits.unique(dim=0)) > 190
    torch.testing.assert_close(first.mean(), bits.mean(0))
    assert first.protocol == "binary, static binarization"


def test_bits_reals_and_tokens_pass_unchanged():
    for source, support in ((bars(n=64), "binary"), (ring(n=64), "real"), (pydoc(length=32), "tokens")):
        pipeline = Pipeline(source, support, 32, seed=0)
        stored = source.splits["train"].x[pipeline.indices(1)]
        assert torch.equal(pipeline.batch(1).x, stored.to(pipeline.batch(1).x.dtype))
        assert pipeline.protocol == support
    assert pipeline.batch(0).x.dtype == torch.int64
    with pytest.raises(UsageError, match="tokens, which have no mean"):
        pipeline.mean()


def test_an_epoch_visits_each_example_once_in_an_order_of_its_own():
    pipeline, other = Pipeline(grey(), "unit", 60, seed=0), Pipeline(grey(), "unit", 60, seed=1)
    assert pipeline.steps_per_epoch == 3
    epochs = [torch.cat([pipeline.indices(3 * epoch + i) for i in range(3)]).tolist() for epoch in range(3)]
    for epoch in epochs:
        assert len(set(epoch)) == 180 and epoch != sorted(epoch)
    assert epochs[0] != epochs[1] != epochs[2]
    assert set(epochs[0]) != set(epochs[1])  # the examples left out differ too
    assert other.indices(0).tolist() != pipeline.indices(0).tolist()


def test_a_batch_is_a_function_of_the_step_alone():
    steady, fresh = Pipeline(grey(), "binary", 50, seed=5), Pipeline(grey(), "binary", 50, seed=5)
    batches = [steady.batch(step) for step in range(11)]
    for step in (10, 3, 7, 0):  # out of order, back over the edges of epochs
        again = fresh.batch(step)
        assert torch.equal(again.x, batches[step].x) and torch.equal(again.y, batches[step].y)
        assert torch.equal(fresh.indices(step), again.y)  # the labels of this set are the indices


def test_draws_belong_to_seed_epoch_and_example():
    source = grey()
    pipeline = Pipeline(source, "binary", 40, seed=9)
    step = 7  # epoch 1 of five steps each
    index = pipeline.indices(step)
    u = uniform(sample_keys(derive(2, 9, 1), index), (1, 4, 4))
    assert torch.equal(pipeline.batch(step).x, (u * 255 < source.splits["train"].x[index]).float())
    by_index = {}
    for size in (40, 25, 200):  # the same example in the same epoch gets the same bits in a batch of any size
        other = Pipeline(source, "binary", size, seed=9)
        for s in range(other.steps_per_epoch):
            for i, x in zip(other.indices(s).tolist(), other.batch(s).x, strict=True):
                assert torch.equal(by_index.setdefault(i, x), x)
    assert len(by_index) == 200


@pytest.mark.parametrize("world", [2, 5])
def test_shares_of_all_processes_make_the_whole_batch(world):
    whole = Pipeline(grey(), "binary", 50, seed=2)
    shares = [Pipeline(grey(), "binary", 50, seed=2, rank=rank, world=world) for rank in range(world)]
    for step in (0, 3, 4, 9):
        parts = [pipeline.batch(step) for pipeline in shares]
        assert torch.equal(torch.cat([part.x for part in parts]), whole.batch(step).x)
        assert torch.equal(torch.cat([part.y for part in parts]), whole.batch(step).y)
        assert torch.equal(torch.cat([pipeline.indices(step) for pipeline in shares]), whole.indices(step))


def test_evaluation_is_all_of_the_split_the_same_for_every_seed_batch_size_and_process():
    source = grey()
    reference = list(Pipeline(source, "binary", 50, seed=0).evaluation("test"))
    assert [len(batch.x) for batch in reference] == [30]
    bits = torch.cat([batch.x for batch in reference])
    assert torch.equal(torch.cat([batch.y for batch in reference]), source.splits["test"].y)
    other = Pipeline(source, "binary", 50, seed=77, rank=1, world=2)
    batches = list(other.evaluation("test", batch_size=8))
    assert [len(batch.x) for batch in batches] == [8, 8, 8, 6]
    assert torch.equal(torch.cat([batch.x for batch in batches]), bits)
    limited = list(other.evaluation("test", batch_size=8, limit=20))
    assert torch.equal(torch.cat([batch.x for batch in limited]), bits[:20])
    mixed = torch.cat([batch.x for batch in other.evaluation("test", batch_size=8, mixed=True)])
    assert torch.equal(
        mixed, torch.cat([b.x for b in Pipeline(source, "binary", 50, 0).evaluation("test", mixed=True)])
    )
    rows = [row.tobytes() for row in mixed.numpy()]
    assert rows != (own := [row.tobytes() for row in bits.numpy()]) and sorted(rows) == sorted(own)
    same_pixels = make_source(
        "same", "levels", dict.fromkeys(("train", "validation", "test"), source.splits["test"]), levels=256
    )
    pipeline = Pipeline(same_pixels, "binary", 30, seed=0)
    held = [next(pipeline.evaluation(name)).x for name in ("train", "validation", "test")]
    assert not torch.equal(held[0], held[1]) and not torch.equal(held[1], held[2])  # splits don't share their draws


@pytest.mark.parametrize(
    ("source", "support", "message"),
    [
        (ring, "binary", r"models binary data, data=ring holds real numbers; binary models fit data=digits, mnist"),
        (ring, "signed", "data=ring holds real numbers"),
        (digits, "tokens", "models tokens data, data=digits holds grey levels; tokens fit data=pydoc"),
        (pydoc, "real", "data=pydoc holds tokens"),
    ],
)
def test_data_that_do_not_fit_the_model_are_refused_in_one_line(source, support, message):
    with pytest.raises(UsageError, match=message) as caught:
        Pipeline(source(), support, 10, seed=0)
    assert "\n" not in str(caught.value)


def test_options_without_effect_are_refused():
    for source, support in ((digits(), "binary"), (digits(), "levels"), (ring(n=50), "real")):
        with pytest.raises(UsageError, match=r"data\.dequantize=true"):
            Conversion(source.spec, support, dequantize=True)
    with pytest.raises(UsageError, match="binarization=fuzzy must be"):
        Conversion(digits().spec, "binary", binarization="fuzzy")


def test_batch_sizes_that_cannot_be_are_named():
    with pytest.raises(UsageError, match=r"data\.batch_size=201 is more than the 200 training examples of data=grey"):
        Pipeline(grey(), "unit", 201, seed=0)
    with pytest.raises(UsageError, match=r"data\.batch_size=50 doesn't divide among 3 processes"):
        Pipeline(grey(), "unit", 50, seed=0, world=3)
    assert Pipeline(grey(), "unit", 200, seed=0).steps_per_epoch == 1


def test_a_split_that_is_not_there_is_named_at_once():
    source = digits(validation=0)
    with pytest.raises(DataError, match=r"no validation split, only train, test; set data\.validation above 0"):
        Pipeline(source, "unit", 10, seed=0).evaluation("validation")


def test_a_set_in_a_memory_mapped_file_is_served_like_any_other(tmp_path):
    import numpy as np

    source = grey()
    np.save(tmp_path / "x.npy", source.splits["train"].x.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "x.npy", mmap_mode="c"))
    other = make_source("mapped", "levels", {"train": Split(mapped, source.splits["train"].y)}, levels=256)
    assert torch.equal(Pipeline(other, "binary", 50, 0).batch(5).x, Pipeline(source, "binary", 50, 0).batch(5).x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", [{}, {"binarization": "static"}, {"support": "unit", "dequantize": True}])
def test_every_device_sees_the_same_batches(options):
    options = {"support": "binary", **options}
    here, there = (Pipeline(grey(), batch_size=50, seed=0, device=device, **options) for device in ("cpu", "cuda"))
    for step in (0, 5):
        assert torch.equal(here.batch(step).x, there.batch(step).x.cpu())
    assert torch.equal(next(here.evaluation("test")).x, next(there.evaluation("test")).x.cpu())
