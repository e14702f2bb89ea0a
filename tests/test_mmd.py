"""Moment matching: the estimates by double loops, their means, what a generator learns by them, and in whose space."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import build
from torch import Tensor
from torch.nn.functional import mse_loss

from gentrain import config, noise
from gentrain.batch import Batch
from gentrain.data.pipeline import Pipeline
from gentrain.data.source import Split, make_source
from gentrain.errors import UsageError
from gentrain.evaluation.heldout import held_out
from gentrain.models.autoencoder import Autoencoder
from gentrain.models.gmmn import GMMN, GMMNAutoencoder
from gentrain.objectives.mmd import MMD, PretrainGMMN, bank, mmd2
from gentrain.objectives.reconstruction import Reconstruction
from gentrain.objectives.within import Within
from gentrain.update import following


def loops(x: Tensor, y: Tensor, bandwidths: list[float], unbiased: bool) -> float:
    """MMD² by the definition, pair after pair."""

    def mean(a: Tensor, b: Tensor, distinct: bool) -> float:
        values = [
            sum(math.exp(-float((p - q).square().sum()) / (2 * s * s)) for s in bandwidths)
            for i, p in enumerate(a)
            for j, q in enumerate(b)
            if not (distinct and i == j)
        ]
        return sum(values) / len(values)

    return mean(x, x, unbiased) + mean(y, y, unbiased) - 2 * mean(x, y, distinct=False)


@pytest.mark.parametrize("unbiased", [False, True])
def test_the_estimates_are_the_double_sums(unbiased: bool):
    torch.manual_seed(0)
    x, y, bandwidths = torch.randn(5, 3).double(), 0.5 + torch.randn(7, 3).double(), [0.3, 1.0, 4.0]
    found = mmd2(bank(bandwidths), x, y, unbiased)
    assert found.item() == pytest.approx(loops(x, y, bandwidths, unbiased), abs=1e-12)


def test_under_the_null_the_unbiased_estimate_is_zero_on_average():
    torch.manual_seed(1)
    kernel, trials = bank([0.5, 2.0]), 2000
    draws = [(torch.randn(4, 2).double(), torch.randn(6, 2).double()) for _ in range(trials)]
    values = torch.stack([mmd2(kernel, x, y, unbiased=True) for x, y in draws])
    error = values.std() / trials**0.5
    assert values.mean().abs() < 4 * error
    # and the biased one is too large by the diagonals: Σ_q (1 - E k)(1/4 + 1/6), E k = s²/(s² + 2) in two dimensions
    biased = torch.stack([mmd2(kernel, x, y, unbiased=False) for x, y in draws])
    excess = sum(1 - s**2 / (s**2 + 2) for s in (0.5, 2.0)) * (1 / 4 + 1 / 6)
    assert biased.mean().item() == pytest.approx(excess, abs=4 * float(biased.std()) / trials**0.5)


class Fixed(GMMN):
    """A generator whose output is what it is told."""

    def __init__(self, made: Tensor):
        super().__init__((made.shape[1],), hidden=[2])
        self.made = made

    def generate(self, z: Tensor) -> Tensor:
        return self.made + 0 * next(self.generator.parameters()).sum()


@pytest.mark.parametrize("estimator", ["root", "biased", "unbiased"])
def test_what_is_minimised(estimator: str):
    torch.manual_seed(2)
    x, y = torch.randn(6, 2), torch.randn(6, 2) + 1
    objective = MMD(bandwidths=[0.5, 2.0], relative=False, estimator=estimator)  # type: ignore[arg-type]
    (update,) = objective(Fixed(y), Batch(x), 0.0)
    squared = loops(x, y, [0.5, 2.0], estimator == "unbiased")
    assert update.part == "generator" and update.loss is not None
    assert update.loss.item() == pytest.approx(squared**0.5 if estimator == "root" else squared, abs=1e-5)
    assert update.metrics["mmd"].item() == pytest.approx(squared, abs=1e-5)


def test_relative_bandwidths_follow_the_scale_of_the_data():
    torch.manual_seed(3)
    x, y = torch.randn(8, 2), 1 + torch.randn(8, 2)

    def loss(scale: float, relative: bool) -> float:
        (update,) = MMD([0.5], relative=relative)(Fixed(scale * y), Batch(scale * x), 0.0)
        assert update.loss is not None
        return update.loss.item()

    assert loss(10.0, relative=True) == pytest.approx(loss(1.0, relative=True), rel=1e-4)
    assert loss(10.0, relative=False) != pytest.approx(loss(1.0, relative=False), rel=0.05)
    # the unit is the root of the mean squared distance of two examples, drawn with replacement
    unit = torch.cdist(x, x).square().mean().sqrt().item()
    (update,) = MMD([0.5 * unit], relative=False)(Fixed(y), Batch(x), 0.0)
    assert update.loss is not None and update.loss.item() == pytest.approx(loss(1.0, relative=True), rel=1e-4)


def test_held_out_numbers_average_to_the_unbiased_estimate():
    torch.manual_seed(4)
    x, y = torch.randn(9, 2), torch.randn(9, 2) + 0.5
    score = MMD([1.0], relative=False).validate(Fixed(y), Batch(x))["mmd"]
    assert score.values.shape == (9,) and (score.kind, score.unit) == ("mmd", "kernel of 1 between examples")
    assert score.values.mean().item() == pytest.approx(loops(x, y, [1.0], unbiased=True), abs=1e-5)


def test_a_split_in_order_of_its_modes_is_held_out_as_one_that_is_mixed():
    """A model that draws from both modes evenly has an MMD² of 0; batch after batch in order, it would be a mode's."""
    torch.manual_seed(6)
    x = torch.cat([torch.randn(200, 2), torch.randn(200, 2) + 5])
    source = make_source("sorted", "real", {"train": Split(x), "test": Split(x)})
    pipeline = Pipeline(source, "real", batch_size=100, seed=0)
    objective = MMD([1.0], relative=False)
    even = torch.cat([torch.randn(50, 2), torch.randn(50, 2) + 5])
    found = held_out(objective, Fixed(even), pipeline, "test")["mmd"]
    assert found.n == 400 and abs(found.mean) < 0.05
    ordered = [objective.validate(Fixed(even), batch)["mmd"].values.mean() for batch in pipeline.evaluation("test")]
    assert all(value > 0.15 for value in ordered)  # E k within a mode is 1/3: 1/3 + 1/6 - 1/3


@pytest.mark.parametrize("shift", [0.5, 2.0])
def test_the_error_of_a_held_out_number_is_its_scatter(shift: float):
    torch.manual_seed(5)
    values, errors = [], []
    for _ in range(400):
        y = torch.randn(200, 2) + shift
        score = MMD([1.0], relative=False).validate(Fixed(y), Batch(torch.randn(200, 2)))["mmd"].values
        values.append(score.mean())
        errors.append(score.std() / math.sqrt(len(score)))
    assert torch.stack(errors).mean().item() == pytest.approx(torch.stack(values).std().item(), rel=0.15)


def test_a_wide_kernel_matches_mean_and_variance():
    """For large σ, MMD² is (Δmean)²/σ² + (Δvariance)²/(4σ⁴) + …, of x = az + b those of b and a²/3 with the data's."""
    torch.manual_seed(5)
    model = GMMN((1,), latent_dim=1, hidden=[])
    objective = MMD(bandwidths=[6.0], relative=False, estimator="biased")
    x = 3 + 2 * torch.randn(2000, 1)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for step in range(400):
        rows = torch.randint(2000, (300,))
        (update,) = objective(model, Batch(x[rows]), 0.0)
        assert update.loss is not None
        optimizer.zero_grad()
        update.loss.backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 400)
    made = model.sample(20_000)
    assert made.mean().item() == pytest.approx(x.mean().item(), abs=0.2)
    assert made.var().item() == pytest.approx(x.var().item(), rel=0.2)


def test_several_processes_have_the_gradient_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(6)
    whole = torch.randn(6, 2)

    def loss(x: Tensor) -> Tensor:
        return mmd2(bank([1.0]), torch.ones(4, 2), x, unbiased=False)

    exact = torch.autograd.grad(loss(x := whole.clone().requires_grad_()), x)[0]
    monkeypatch.setattr(noise, "of_all_processes", lambda _: whole)
    for rank in (0, 1):
        noise.shard(rank, 2)
        try:
            own = whole[3 * rank : 3 * rank + 3].clone().requires_grad_()
            value = loss(noise.joined(own))
        finally:
            noise.shard(0, 1)
        assert value.item() == pytest.approx(loss(whole).item(), abs=1e-6)
        (gradient,) = torch.autograd.grad(value, own)
        torch.testing.assert_close(gradient / 2, exact[3 * rank : 3 * rank + 3])  # what averaging makes of its share


def autoencoded() -> tuple[GMMNAutoencoder, Batch]:
    torch.manual_seed(7)
    model = GMMNAutoencoder((1, 4, 4), levels=17, encoder=[8, 3], latent_dim=2, hidden=[5])
    return model, Batch(torch.rand(6, 1, 4, 4))


def test_codes_are_matched_and_decoded():
    model, batch = autoencoded()
    z = model.prior.sample(torch.Size([4]))
    assert z.abs().max() <= 1 and z.shape == (4, 2)
    torch.testing.assert_close(model.decode(z), model.autoencoder.decode(model.generator(z)))
    seen: list[Tensor] = []
    model.generator.register_forward_hook(lambda *call: seen.append(call[-1].detach()))
    (update,) = MMD([1.0], relative=False, estimator="biased")(model, batch, 0.0)
    assert update.loss is not None
    expected = loops(model.autoencoder.codes(batch.x).detach(), seen[0], [1.0], unbiased=False)
    assert update.loss.item() == pytest.approx(expected, abs=1e-5)
    grads = torch.autograd.grad(update.loss, list(model.parameters()), allow_unused=True)
    names = [name for (name, _), g in zip(model.named_parameters(), grads, strict=True) if g is not None]
    assert names and all(name.startswith("generator.") for name in names)


def test_the_stages_of_a_gmmn_ae_train_one_after_the_other():
    assembly = build("model=gmmn_ae", "model.encoder=[8,3]", "model.hidden=[5]", "data=digits")
    objective = assembly.objective
    assert isinstance(objective, PretrainGMMN)
    assert objective.parts == ("autoencoder.layer1", "autoencoder.layer2", "autoencoder.network", "generator")
    batch = Batch(torch.rand(6, 1, 8, 8))
    order = [[u.part for u in objective(assembly.model, batch, t) if u.loss is not None] for t in (0, 0.15, 0.3, 0.9)]
    assert order == [[part] for part in objective.parts]


def test_an_objective_within_a_submodule_is_that_of_the_submodule():
    model, batch = autoencoded()
    objective = Within("autoencoder.layer1", Reconstruction("squared_error"))
    layer = model.autoencoder.layer(1)
    assert isinstance(layer, Autoencoder)
    (update,) = objective(model, batch, 0.0)
    assert update.part == "autoencoder.layer1" and update.loss is not None
    expected = mse_loss(layer.restored(layer.codes(batch.x)), batch.x, reduction="sum") / len(batch.x)
    assert update.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert list(update.metrics) == ["autoencoder.layer1/squared_error"]
    assert list(objective.validate(model, batch)) == ["autoencoder.layer1/squared_error"]
    with pytest.raises(UsageError, match="generator of GMMNAutoencoder, a Sequential, is not"):
        Within("generator", Reconstruction()).require(model)


def test_within_a_part_a_stage_may_take_fewer_examples():
    torch.manual_seed(7)
    model, x = GMMNAutoencoder((4,), encoder=[3], latent_dim=2, hidden=[4]), torch.rand(12, 4)
    (some,) = Within("autoencoder.layer1", Reconstruction("squared_error"), every=3)(model, Batch(x), 0.0)
    (same,) = Within("autoencoder.layer1", Reconstruction("squared_error"))(model, Batch(x[[0, 3, 6, 9]]), 0.0)
    assert some.loss is not None and torch.equal(some.loss, same.loss)
    with pytest.raises(UsageError, match=r"objective\.every=5: 12 examples of a step are no multiple of it"):
        next(Within("autoencoder.layer1", Reconstruction(), every=5)(model, Batch(x), 0.0))


def test_within_passes_the_optimizer_on():
    model, batch = autoencoded()
    told: list[object] = []

    class Curious(Reconstruction):
        def forward(self, model, batch, progress):
            for update in super().forward(model, batch, progress):
                told.append((yield update))

    updates = Within("autoencoder.layer1", Curious())(model, batch, 0.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    following(updates, None)
    assert following(updates, optimizer) is None
    assert told == [optimizer]


def test_an_unbiased_estimate_of_one_example_is_refused():
    with pytest.raises(UsageError, match=r"data\.batch_size=1: the unbiased estimate is of pairs"):
        next(iter(MMD([1.0], estimator="unbiased")(Fixed(torch.zeros(1, 2)), Batch(torch.zeros(1, 2)), 0.0)))


@pytest.mark.parametrize("words", ["[0.5,0]", "[-1]", "[]"])
def test_bandwidths_that_are_none(words: str):
    with pytest.raises(UsageError, match=r"objective\.bandwidths"):
        plain = config.check(config.compose("train", ["model=gmmn", f"objective.bandwidths={words}"]))
        config.build(plain["objective"], [], MMD)
