"""Models that learn by counting: the factorial distribution and the empirical one, against counts done by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import bare_trainer, build, fit
from scipy.stats import chisquare
from torch import Tensor

from gentrain.data.embedded import digits
from gentrain.errors import UsageError
from gentrain.models.empirical import Empirical
from gentrain.models.factorial import Factorial


def states(values: int, *shape: int) -> Tensor:
    """All examples whose elements take `values` values."""
    every = itertools.product(range(values), repeat=math.prod(shape))
    return torch.tensor(list(every)).view(-1, *shape)


def cases() -> Iterator[tuple[Factorial, Tensor, Tensor]]:
    """(model, the examples it has taken in, all its states)."""
    torch.manual_seed(0)
    bits = (torch.rand(50, 1, 2, 2) < torch.tensor([0.1, 0.9, 0.5, 0.3]).view(1, 2, 2)).float()
    grades = torch.randint(0, 3, (50, 2, 1, 2)) * torch.tensor([1, 1, 0, 1]).view(2, 1, 2)
    for model, x, values in (
        (Factorial((1, 2, 2), levels=17, smoothing=0.5), bits, 2),
        (Factorial((2, 1, 2), levels=3), grades, 3),
    ):
        model.accumulate(x[:20])
        model.accumulate(x[20:])
        yield model, x, states(values, *model.shape).to(x.dtype)


@pytest.mark.parametrize(("model", "x", "every"), list(cases()), ids=["bits", "levels"])
class TestFactorial:
    """The model's numbers on a space small enough to list."""

    def test_probabilities_are_smoothed_counts(self, model: Factorial, x: Tensor, every: Tensor) -> None:
        k = 2 if model.support == "binary" else 3
        for d, column in enumerate(x.flatten(1).t()):
            for value in range(k):
                expected = (int((column == value).sum()) + model.smoothing) / (50 + k * model.smoothing)
                assert model.probabilities()[value, d].item() == pytest.approx(expected, rel=1e-6)

    def test_it_is_normalised_and_a_product(self, model: Factorial, x: Tensor, every: Tensor) -> None:
        assert model.log_prob(every).exp().sum().item() == pytest.approx(1, abs=1e-5)
        by_hand = [
            sum(math.log(model.probabilities()[int(v), d]) for d, v in enumerate(state.flatten())) for state in every
        ]
        torch.testing.assert_close(model.log_prob(every), torch.tensor(by_hand))

    def test_samples_follow_it(self, model: Factorial, x: Tensor, every: Tensor) -> None:
        torch.manual_seed(1)
        samples = model.sample(20_000)
        assert samples.dtype == every.dtype
        seen = (samples.flatten(1)[:, None] == every.flatten(1)).all(-1).sum(0).double()
        assert seen.sum() == 20_000
        expected = model.log_prob(every).double().exp()
        likely = expected > 2e-4
        f_obs = torch.cat([seen[likely], seen[~likely].sum()[None]])
        f_exp = torch.cat([expected[likely], expected[~likely].sum()[None]])
        keep = f_exp > 0
        assert chisquare(f_obs[keep], f_exp[keep] / f_exp[keep].sum() * 20_000).pvalue > 1e-4

    def test_no_other_product_is_likelier(self, model: Factorial, x: Tensor, every: Tensor) -> None:
        ml = Factorial(model.shape, 17 if model.support == "binary" else 3, smoothing=1e-6)
        ml.accumulate(x)
        best = ml.log_prob(x).sum()
        for _ in range(20):
            other = torch.softmax(ml.probabilities().clamp(min=1e-9).log() + 0.1 * torch.randn(len(ml.counts), 4), 0)
            assert other.log().gather(0, x.flatten(1).long()).sum() < best


def test_an_epoch_of_counting_is_the_fit(tmp_path: Path) -> None:
    trainer = bare_trainer(
        tmp_path, "model=factorial", "data=digits", "data.binarization=static", "data.batch_size=7",
        "data.validation=0", "trainer.epochs=2", "trainer.steps=null",
    )  # fmt: skip
    once = fit(trainer)
    model, seen = once.model, trainer.pipeline.steps_per_epoch * 7
    assert isinstance(model, Factorial) and int(model.counts[:, 0].sum()) == 2 * seen
    x = next(trainer.pipeline.evaluation("train", seen + 6)).x
    assert len(x) - seen < 7, "an epoch leaves out less than a batch"
    mean = model.counts[1] / (2 * seen)
    torch.testing.assert_close(mean, x.flatten(1).mean(0), atol=2 * 6 / seen, rtol=0)


def test_the_prequential_score_is_that_of_what_came_before() -> None:
    made = build("model=factorial", "data=digits")
    batches = [made.pipeline.batch(i) for i in range(3)]
    reference = Factorial(made.model.shape, 17)
    for batch in batches:
        (update,) = made.objective(made.model, batch, 0.0)
        assert update.loss is None and update.grads is None
        torch.testing.assert_close(update.metrics["log_likelihood"], reference.log_prob(batch.x).mean())
        reference.accumulate(batch.x)
    assert torch.equal(made.model.counts, reference.counts)


@pytest.mark.parametrize("support", ["binary", "unit", "signed", "levels"])
def test_every_sample_is_a_training_example(support: str) -> None:
    made = build("model=empirical", f"model.support={support}", "data=digits", "model.capacity=50")
    batches = [made.pipeline.batch(i) for i in range(4)]
    for batch in batches:
        list(made.objective(made.model, batch, 0.0))
    kept = torch.cat([batch.x for batch in batches])[:50]
    x = made.model.sample(400)
    assert x.dtype == kept.dtype and int(made.model.filled) == 50 and made.model.stored.dtype == torch.uint8
    same = (x.flatten(1)[:, None] == kept.flatten(1)).all(-1)
    assert same.any(1).all() and same.any(0).float().mean() > 0.95  # e^-8 of fifty are missed


def test_points_are_kept_as_they_are() -> None:
    made = build("model=empirical", "data=ring")
    x = made.pipeline.batch(0).x
    list(made.objective(made.model, made.pipeline.batch(0), 0.0))
    torch.manual_seed(0)
    assert {tuple(v) for v in made.model.sample(100).tolist()} <= {tuple(v) for v in x.tolist()}


def test_examples_that_a_model_can_not_count_are_refused() -> None:
    with pytest.raises(UsageError, match="real numbers"):
        build("model=factorial", "data=ring")
    with pytest.raises(UsageError, match=r"model.support=unit"):
        build("model=empirical", "model.support=unit", "data=ring")
    with pytest.raises(UsageError, match="no examples yet"):
        Empirical((1, 2, 2), levels=3).sample(1)
    made = build("model=empirical", "data=digits", "data.dequantize=true")
    with pytest.raises(UsageError, match=r"data.dequantize=false"):
        list(made.objective(made.model, made.pipeline.batch(0), 0.0))


def test_colour_is_counted_by_level() -> None:
    assert digits().spec.levels == 17
    grey, colour = Factorial((1, 4, 4), levels=17), Factorial((3, 4, 4), levels=17)
    assert (grey.support, colour.support, colour.counts.shape) == ("binary", "levels", (17, 48))
    assert Factorial((1, 4, 4), levels=17, likelihood="categorical").support == "levels"
