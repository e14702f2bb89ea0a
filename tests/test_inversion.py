"""Codes found by descent against closed forms, what AnoGAN makes of them, arithmetic without an encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import build
from test_uses import Line, line
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, Uniform

from gentrain.data.pipeline import Pipeline
from gentrain.errors import UsageError
from gentrain.evaluation.estimator import Finding, Subject, seeded
from gentrain.evaluation.inversion import AnoGAN, invert, unsuited
from gentrain.models.base import Decoder
from gentrain.models.critics import Perceives
from gentrain.models.cvae import CVAE
from gentrain.uses.arithmetic import Arithmetic
from gentrain.uses.inversion import Invert


def test_the_code_found_is_the_least_squares_solution():
    model = line()
    torch.manual_seed(0)
    x = torch.randn(5, 4)
    found = invert(model, x, steps=400, lr=0.1, restarts=1)
    z = torch.linalg.lstsq(model.A, (x - model.b).t()).solution.t()
    torch.testing.assert_close(found.z, z, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.x, z @ model.A.t() + model.b, atol=1e-2, rtol=0)
    torch.testing.assert_close(found.loss, (x - found.x).square().sum(1))


def test_the_prior_draws_the_code_in():
    """‖x - Az - b‖² + λ‖z‖²/2 and a constant: ridge regression."""
    model = line()
    torch.manual_seed(0)
    x, weight = torch.randn(5, 4), 3.0
    found = invert(model, x, steps=400, lr=0.1, restarts=1, prior=weight)
    z = torch.linalg.solve(model.A.t() @ model.A + weight / 2 * torch.eye(2), model.A.t() @ (x - model.b).t()).t()
    torch.testing.assert_close(found.z, z, atol=1e-3, rtol=0)


class Boxed(Line):
    """z ~ U[-1, 1]²."""

    @property
    def prior(self) -> Distribution:
        return Independent(Uniform(-torch.ones(2), torch.ones(2)), 1)


def test_no_code_leaves_the_priors_support():
    model = Boxed(torch.eye(2), torch.zeros(2), 0.1)
    found = invert(model, torch.tensor([[0.3, 7.0], [-9.0, 0.5]]), steps=600, lr=0.1, restarts=2)
    assert found.z.abs().max() < 1
    torch.testing.assert_close(found.z, torch.tensor([[0.3, 1.0], [-1.0, 0.5]]), atol=0.01, rtol=0)


class Unit(Decoder):
    """z ~ N(0, s² I) in `dims` dimensions."""

    support, dims, deviation = "real", 1, 1.0

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(self.dims))

    @property
    def prior(self) -> Distribution:
        return Independent(Normal(torch.zeros(self.dims), self.deviation), 1)

    def sample(self, n: int) -> Tensor:
        return self.decode(self.prior.sample(torch.Size([n])))


class Hills(Unit):
    """x = sin(3z) + z/2 of one number, z ~ N(0, 2²): descent from many starts ends in another valley."""

    shape, deviation = (1,), 2.0

    def decode(self, z: Tensor) -> Tensor:
        return torch.sin(3 * z) + z / 2


def test_the_best_of_several_starts_counts():
    torch.manual_seed(1)
    x = torch.full((20, 1), 2.2)
    alone, several = (invert(Hills(), x, steps=100, restarts=n) for n in (1, 12))
    assert (alone.loss > 0.05).sum() >= 5, "or the test tells nothing"
    assert (several.loss < 1e-3).all()
    torch.testing.assert_close(Hills().decode(several.z), several.x)


class Shadow(Unit, Perceives):
    """G(z) = (z, 0), z ~ N(0, 1); the critic's features are 2 x_2."""

    shape = (2,)

    def decode(self, z: Tensor) -> Tensor:
        return torch.cat([z, 0 * z], 1)

    def features(self, x: Tensor) -> Tensor:
        return 2 * x[:, 1:]

    def discriminate(self, x: Tensor) -> Tensor:
        return self.features(x).flatten()


def points(tmp_path: Path, name: str, x: np.ndarray, y: np.ndarray | None = None) -> Pipeline:
    arrays = {"x_train": x, "x_test": x} | ({} if y is None else {"y_train": y, "y_test": y})
    np.savez(tmp_path / f"{name}.npz", **arrays)
    source = build("model=gan", "data=npz", f"data.path={tmp_path}/{name}.npz", "data.validation=0").source
    return Pipeline(source, "real", 10, 0)


def test_anogan_scores_what_is_left_of_pixels_and_features(tmp_path: Path):
    """(1 - λ)(|x_1 - z| + |x_2|) + 2λ|x_2| at z = x_1: (1 + λ)|x_2|."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 2)).astype(np.float32)
    estimator = AnoGAN("other", steps=600, lr=0.02, weight=0.25, restarts=2, examples=12, resamples=20)
    subject = Subject(Shadow().eval(), points(tmp_path, "own", x))
    score = estimator._scores(subject)["anogan"]
    with seeded(0):
        torch.testing.assert_close(
            score(torch.from_numpy(x)), torch.from_numpy(1.25 * np.abs(x[:, 1])), atol=0.03, rtol=0
        )
    other = points(tmp_path, "other", np.stack([x[:, 0], np.sign(x[:, 1]) * (4 + np.abs(x[:, 1]))], 1))
    subject = Subject(Shadow().eval(), points(tmp_path, "own", x), elsewhere=lambda named: other)
    with seeded(0):
        found = [f for f in estimator(subject) if isinstance(f, Finding)]
    assert [(f.metric, f.kind, f.n, f.value) for f in found] == [
        ("anomaly_auroc", "anogan", 12, 1.0), ("anomaly_average_precision", "anogan", 12, 1.0),
    ]  # fmt: skip


def test_what_can_not_be_inverted():
    assert unsuited(line()) is None
    assert "without a label" in str(unsuited(CVAE((1, 8, 8), levels=17, classes=10, latent_dim=2, hidden=[4])))
    assert Invert().unfit(build("model=rbm").model) == "decodes nothing: it is no LatentVariable or Decoder"


def test_the_picture_pairs_examples_with_what_comes_nearest(tmp_path: Path):
    x = np.random.default_rng(1).normal(size=(20, 2)).astype(np.float32)
    subject = Subject(Shadow().eval(), points(tmp_path, "own", x))
    drawn = Invert(steps=300, lr=0.1)(subject.model, 8, lambda: subject)
    pairs = drawn.x.view(4, 2, 2)
    assert torch.equal(pairs[:, 0], torch.from_numpy(x[:4]))
    torch.testing.assert_close(pairs[:, 1], torch.from_numpy(x[:4] * np.array([1, 0], np.float32)), atol=1e-2, rtol=0)
    torch.testing.assert_close(drawn.arrays["loss"], torch.from_numpy(x[:4, 1] ** 2), atol=1e-2, rtol=1e-2)
    assert len(drawn.x) % (drawn.columns or 1) == 0


class Sided(Unit):
    """x = 5 z, z ~ N(0, I) in two dimensions."""

    shape, dims = (2,), 2

    def decode(self, z: Tensor) -> Tensor:
        return 5 * z


def test_arithmetic_without_an_encoder_goes_by_the_labels_of_the_nearest_examples(tmp_path: Path):
    """Label 0 lies left, label 1 right: the mean code of either half of N(0, I) is ∓√(2/π) along the first axis."""
    x = np.array([[-5, 0], [5, 0]] * 10, dtype=np.float32)
    subject = Subject(Sided(), points(tmp_path, "sides", x, np.arange(20) % 2))
    torch.manual_seed(0)
    drawn = Arithmetic(source=0, target=1, steps=2, scale=3.0)(subject.model, 9, lambda: subject)
    way = drawn.arrays["way"]
    torch.testing.assert_close(way, torch.tensor([2 * (2 / torch.pi) ** 0.5, 0.0]), atol=0.15, rtol=0)
    rows = drawn.x.view(3, 3, 2)
    assert (rows[:, 0, 0] < 0).all() and torch.equal(rows[:, 0], rows[:, 1])
    torch.testing.assert_close(rows[:, 2], rows[:, 0] + 5 * 3 * way)
    with pytest.raises(UsageError, match="label 4"):
        Arithmetic(source=0, target=4)(subject.model, 8, lambda: subject)


def test_a_model_that_never_makes_a_label_says_so(tmp_path: Path):
    x = np.array([[-5, 0], [500, 0]] * 10, dtype=np.float32)
    subject = Subject(Sided(), points(tmp_path, "far", x, np.arange(20) % 2))
    with pytest.raises(UsageError, match="none has the label 1"):
        Arithmetic(source=0, target=1)(subject.model, 8, lambda: subject)


def test_no_anogan_by_a_critic_that_judges_batches():
    made = build("model=gan", "model.minibatch_features=2")
    why = AnoGAN("other", steps=1).unfit(Subject(made.model, made.pipeline))
    assert why and "depend on its batch; set model.minibatch_features=0" in why
