"""Estimators on codes against planted answers, scikit-learn's own, and the figures of MNIST that need no model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

import gentrain
from gentrain.data.embedded import digits
from gentrain.data.pipeline import Pipeline
from gentrain.data.source import Source, Split, make_source
from gentrain.data.synthetic import bars
from gentrain.errors import GentrainError, UsageError
from gentrain.evaluation.code_pictures import Embedding, Retrieval
from gentrain.evaluation.codes import (
    KNN,
    ActiveUnits,
    FewLabel,
    Probe,
    ReconstructionError,
    nearest,
    neighbours,
    squared_error,
)
from gentrain.evaluation.estimator import Estimator, Finding, Picture, Subject, seeded
from gentrain.models.base import Codes, Generative, LatentVariable, Reconstructs


class Planted(Generative, Codes, Reconstructs):
    """Codes and reconstructions by the functions given."""

    def __init__(self, pipeline: Pipeline, codes: Callable = lambda x: x, reconstruct: Callable = lambda x: x):
        super().__init__()
        self.shape, self.support = pipeline.spec.shape, pipeline.support
        self._codes, self._reconstruct = codes, reconstruct

    def sample(self, n: int) -> Tensor:
        return torch.zeros(n, *self.shape)

    def codes(self, x: Tensor) -> Tensor:
        return self._codes(x)

    def reconstruct(self, x: Tensor) -> Tensor:
        return self._reconstruct(x)


class Encoder(LatentVariable):
    """q(z|x) = N(scale * x, 1)."""

    def __init__(self, scale: Tensor):
        super().__init__()
        self.shape, self.support, self.scale = tuple(scale.shape), "real", scale

    @property
    def prior(self) -> Distribution:
        return Independent(Normal(torch.zeros(self.shape), 1.0), 1)

    def encode(self, x: Tensor) -> Distribution:
        return Independent(Normal(x * self.scale, torch.ones(())), 1)

    def decode(self, z: Tensor) -> Distribution:
        return Independent(Normal(z, 1.0), 1)

    def sample(self, n: int) -> Tensor:
        return torch.randn(n, *self.shape)


def planted(x: dict[str, Tensor], y: dict[str, Tensor] | None = None, classes: int | None = None) -> Source:
    labels = y or {}
    splits = {key: Split(value.float(), labels.get(key)) for key, value in x.items()}
    return make_source("planted", "real", splits, classes=classes)


def subject_of(source: Source, support: str = "real", split: str = "test", **functions: Callable) -> Subject:
    pipeline = Pipeline(source, support, batch_size=10, seed=0)  # type: ignore[arg-type]
    return Subject(Planted(pipeline, **functions), pipeline, split)


def measure(estimator: Estimator, subject: Subject, seed: int = 0) -> list[Finding | Picture]:
    assert estimator.unfit(subject) is None
    with seeded(seed):
        return list(estimator(subject))


def finding(estimator: Estimator, subject: Subject, metric: str | None = None) -> Finding:
    found = [f for f in measure(estimator, subject) if isinstance(f, Finding) and metric in (None, f.metric)]
    assert len(found) == 1
    return found[0]


def blobs(n: int, classes: int, dimensions: int, distance: float, seed: int) -> tuple[Tensor, Tensor]:
    """Round Gaussians around the corners of a simplex."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    centres = distance * torch.eye(classes, dimensions)
    return centres[y] + torch.randn(n, dimensions, generator=generator), y


def blob_source(distance: float, train: int = 600, test: int = 400, classes: int = 4, dimensions: int = 6) -> Source:
    x, y = blobs(train, classes, dimensions, distance, seed=0)
    x_test, y_test = blobs(test, classes, dimensions, distance, seed=1)
    return planted({"train": x, "test": x_test}, {"train": y, "test": y_test}, classes)


# --- classes --------------------------------------------------------------------------------------------------------


def test_probe_is_perfect_on_separable_codes():
    found = finding(Probe(), subject_of(blob_source(distance=30.0)))
    assert (found.metric, found.kind, found.value, found.stderr, found.n) == ("probe_accuracy", "probe", 1.0, 0.0, 400)
    assert found.settings == {"dimensions": 6, "converged": True}


def test_probe_is_at_chance_on_random_labels():
    generator = torch.Generator().manual_seed(0)
    x = {key: torch.randn(2000, 5, generator=generator) for key in ("train", "test")}
    y = {key: torch.randint(4, (2000,), generator=generator) for key in x}
    found = finding(Probe(), subject_of(planted(x, y, 4)))
    chance = math.sqrt(0.25 * 0.75 / 2000)
    assert abs(found.value - 0.25) < 3 * chance
    assert found.stderr == pytest.approx(chance, rel=0.1)


def test_probe_is_scikit_learns_logistic_regression():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    source = blob_source(distance=2.0)
    train, test = source.splits["train"], source.splits["test"]
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500)).fit(train.x, train.y)
    expected = reference.score(test.x, test.y)
    assert 0.5 < expected < 0.95
    assert finding(Probe(C=0.1), subject_of(source)).value == expected


def test_probe_that_was_stopped_early_says_so():
    assert finding(Probe(iterations=1), subject_of(blob_source(distance=2.0))).settings["converged"] is False


def test_training_examples_are_drawn_at_random():
    """A set sorted by its labels: the first examples are of one class, and a probe of those would fail."""
    x, y = blobs(600, 3, 4, 30.0, seed=0)
    order = y.argsort()
    source = planted({"train": x[order], "test": x}, {"train": y[order], "test": y}, 3)
    found = finding(Probe(train=60), subject_of(source))
    assert found.value == 1.0


def test_knn_is_the_brute_force_of_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    source = blob_source(distance=2.0, train=3000, test=1500)
    train, test = source.splits["train"], source.splits["test"]
    reference = KNeighborsClassifier(5, algorithm="brute").fit(train.x.numpy(), train.y)
    expected = reference.score(test.x.numpy(), test.y)
    found = finding(KNN(), subject_of(source))
    assert 0.5 < expected < 0.95
    assert found.value == expected
    assert found.stderr == pytest.approx(math.sqrt(expected * (1 - expected) / 1500))


def test_knn_on_the_training_split_leaves_each_example_out():
    from sklearn.neighbors import NearestNeighbors

    source = blob_source(distance=2.0, train=2500)
    train = source.splits["train"]
    x = torch.cat([train.x[:2000], train.x[:500]])  # some twice: their neighbour is the twin, never themselves
    y = torch.cat([train.y[:2000], train.y[:500]])  # type: ignore[index]
    source = planted({"train": x}, {"train": y}, 4)
    index = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(x.numpy()).kneighbors(return_distance=False)[:, 0]
    expected = float((y[index] == y).double().mean())
    assert finding(KNN(k=1), subject_of(source, split="train")).value == expected
    assert expected < 1


def test_nearest_over_blocks_is_exact():
    generator = torch.Generator().manual_seed(0)
    keys = 100 + torch.randn(300, 40, generator=generator)  # far from the origin, where products round
    queries = torch.cat([keys[[7, 250]], 100 + torch.randn(30, 40, generator=generator)])
    distances, positions = nearest(queries, keys.split(37), 4)
    full = (queries[:, None].double() - keys.double()).norm(dim=-1)
    expected, order = full.sort(1)
    assert torch.equal(positions, order[:, :4])
    assert torch.allclose(distances.double(), expected[:, :4], rtol=1e-6)
    assert distances[0, 0] == distances[1, 0] == 0
    with pytest.raises(UsageError, match="k=3: there are 2 examples"):
        neighbours(keys[:2], keys[:2], 3)


def test_few_labels_make_a_rising_curve_that_ends_at_the_smallest_class():
    found = measure(FewLabel(draws=4), subject_of(blob_source(distance=4.0, train=240, dimensions=20)))
    assert all(isinstance(f, Finding) for f in found)
    curve = {f.settings["labels_per_class"]: f for f in found}  # type: ignore[union-attr]
    assert list(curve) == [1, 5, 10, 50]  # 60 examples a class
    values = [f.value for f in curve.values()]  # type: ignore[union-attr]
    assert values == sorted(values) and values[0] < 0.8 and values[-1] > 0.9
    for f in curve.values():
        assert f.stderr >= math.sqrt(f.value * (1 - f.value) / f.n)  # type: ignore[union-attr]
    assert curve[5].metric == "probe_accuracy_5_labels" and curve[5].kind == "probe"  # type: ignore[union-attr]


def test_few_labels_on_separable_codes_suffice():
    for f in measure(FewLabel(draws=2, labels_per_class=[5, 1]), subject_of(blob_source(distance=100.0, dimensions=4))):
        assert isinstance(f, Finding) and (f.value, f.stderr) == (1.0, 0.0)


def test_more_labels_than_there_are():
    with pytest.raises(UsageError, match=r"labels_per_class=\[500\]: the smallest class has 150"):
        measure(FewLabel(labels_per_class=[500]), subject_of(blob_source(distance=4.0)))


# --- what a code keeps ----------------------------------------------------------------------------------------------


def test_active_units_of_a_constructed_encoder():
    x = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0))
    x = (x - x.mean(0)) / x.std(0)
    scale = torch.tensor([2.0, 0.2, 0.101, 0.05, 0.0])  # variances 4, 0.04, 0.0102, 0.0025, 0
    pipeline = Pipeline(planted({"train": x, "test": x}), "real", batch_size=10, seed=0)
    found = finding(ActiveUnits(), Subject(Encoder(scale), pipeline))
    assert (found.kind, found.value, found.unit, found.n) == ("active-units", 3, "units", 4000)
    assert found.settings == {"total": 5}
    strict = finding(ActiveUnits(threshold=0.03), Subject(Encoder(scale), pipeline))
    assert (strict.value, strict.stderr) == (2, 0.0)  # none of the five is near that


def test_active_units_error_is_half_a_unit_at_the_threshold():
    """A unit whose variance is the threshold falls to either side in half of the resamples: a deviation of 1/2."""
    x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))
    x = (x - x.mean(0)) / x.std(0)
    pipeline = Pipeline(planted({"train": x, "test": x}), "real", batch_size=10, seed=0)
    found = finding(ActiveUnits(resamples=400), Subject(Encoder(torch.tensor([0.1])), pipeline))
    assert found.stderr == pytest.approx(0.5, abs=0.03)


def test_reconstruction_error_does_not_depend_on_the_support():
    """Half of the pixel's range off everywhere: 64/4, whatever scale the model lives on."""

    def error(support: str, reconstruct: Callable) -> Finding:
        return finding(ReconstructionError(), subject_of(digits(), support, reconstruct=reconstruct))

    unit = error("unit", lambda x: x + 0.5)
    assert (unit.metric, unit.kind, unit.unit, unit.n) == ("reconstruction_error", "recon", "squared error", 270)
    assert unit.value == pytest.approx(16.0, rel=1e-5) and unit.stderr == pytest.approx(0.0, abs=1e-5)
    assert error("signed", lambda x: x - 1).value == pytest.approx(16.0, rel=1e-5)
    assert error("levels", lambda x: x + 8.0).value == pytest.approx(16.0, rel=1e-5)
    mean = [error(s, lambda x: x.float().mean(0, keepdim=True).expand_as(x)) for s in ("unit", "signed", "levels")]
    assert mean[1].value == pytest.approx(mean[0].value, rel=1e-5)
    assert mean[2].value == pytest.approx(mean[0].value, rel=1e-5)
    x = digits().splits["test"].x.double() / 16
    by_hand = (x - x.mean(0)).square().sum((1, 2, 3))
    assert mean[0].value == pytest.approx(float(by_hand.mean()), rel=1e-5)
    assert mean[0].stderr == pytest.approx(float(by_hand.std()) / 270**0.5, rel=1e-5)


def test_squared_errors_of_mnist(mnist_root: str):
    """The mean image leaves 52.897 a test image, 30 principal components 13.866 (published: 13.87)."""
    from sklearn.decomposition import PCA

    from gentrain.data.vision import mnist

    source = mnist(root=mnist_root, download=False, validation=0)
    train = source.splits["train"].x.flatten(1).numpy().astype(np.float32) / 255
    pca = PCA(30, svd_solver="covariance_eigh").fit(train)

    def project(x: Tensor) -> Tensor:
        return torch.from_numpy(pca.inverse_transform(pca.transform(x.flatten(1).numpy()))).view_as(x)

    mean = torch.from_numpy(pca.mean_).view(1, 1, 28, 28)
    found = finding(ReconstructionError(), subject_of(source, "unit", reconstruct=project))
    assert (round(found.value, 3), found.n) == (13.866, 10_000)
    assert 0 < found.stderr < 0.1
    found = finding(ReconstructionError(), subject_of(source, "unit", reconstruct=lambda x: mean.expand_as(x)))
    assert round(found.value, 3) == 52.897


def test_squared_error_sums_over_all_elements():
    x = torch.zeros(2, 3, 4, 5)
    y = torch.stack([torch.full((3, 4, 5), 0.5), torch.zeros(3, 4, 5)])
    assert squared_error(x, y).tolist() == [15.0, 0.0]


# --- pictures -------------------------------------------------------------------------------------------------------


def test_embedding_of_codes_that_lie_in_a_plane():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 2, generator=generator)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator)).Q[:2]
    subject = subject_of(planted({"train": x, "test": x}), codes=lambda x: x @ rotation)
    picture, explained, trust = measure(Embedding(), subject)
    assert isinstance(picture, Picture) and isinstance(explained, Finding) and isinstance(trust, Finding)
    assert picture.name == "embedding-pca" and picture.pixels.std() > 0
    assert explained.value == pytest.approx(1.0, abs=1e-6) and explained.stderr < 1e-6
    assert trust.value == pytest.approx(1.0, abs=1e-3)


def test_embedding_numbers_are_scikit_learns():
    from sklearn.decomposition import PCA

    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 9.0)
    reference = PCA(2).fit(x.double().numpy())
    found = finding(Embedding(), subject_of(planted({"train": x, "test": x})), "explained_variance")
    assert found.value == pytest.approx(float(reference.explained_variance_ratio_.sum()), rel=1e-6)
    torch.manual_seed(0)
    resamples = [PCA(2).fit(x[torch.randint(400, (400,))].double().numpy()) for _ in range(500)]
    spread = np.std([r.explained_variance_ratio_.sum() for r in resamples])
    assert found.stderr == pytest.approx(float(spread), rel=0.25)


def test_tsne_keeps_neighbours_and_a_random_plane_does_not():
    x, y = blobs(150, 3, 10, 20.0, seed=0)
    subject = subject_of(planted({"train": x, "test": x}, {"train": y, "test": y}, 3))
    trust = finding(Embedding(method="tsne", perplexity=10.0), subject, "trustworthiness")
    assert trust.kind == "embedding-tsne" and trust.value > 0.9 and 0 < trust.stderr < 0.05
    noise = np.random.default_rng(0).normal(size=(150, 2))
    assert abs(Embedding().trustworthiness(x.double().numpy(), noise)[0] - 0.5) < 0.1


def test_one_code_and_equal_codes_are_drawn_too():
    x = torch.randn(40, 1, generator=torch.Generator().manual_seed(0))
    assert finding(Embedding(), subject_of(planted({"train": x, "test": x})), "explained_variance").value == 1.0
    subject = subject_of(planted({"train": x, "test": x}), codes=lambda x: 0 * x)
    assert [f.metric for f in measure(Embedding(), subject) if isinstance(f, Finding)] == ["trustworthiness"]


def test_retrieval_of_planted_twins():
    """Test images that are training images find themselves first, and then their class."""
    train = digits().splits["train"]
    y = train.y
    assert y is not None
    parts = {"train": train, "test": Split(train.x[:50], y[:50])}
    source = make_source("twins", "levels", parts, levels=17, classes=10)

    def codes(x: Tensor) -> Tensor:  # the image, and the class, far apart
        same = (x[:, None] == train.x[None, :].float() / 16).flatten(2).all(-1)
        return torch.cat([x.flatten(1), 100 * torch.nn.functional.one_hot(y[same.int().argmax(1)], 10)], 1)

    picture, precision = measure(Retrieval(k=4, shown=3), subject_of(source, "unit", codes=codes))
    assert isinstance(picture, Picture) and isinstance(precision, Finding)
    assert (precision.metric, precision.kind, precision.value) == ("precision_at_4", "retrieval", 1.0)
    scale = 9  # about 400 pixels for 5 columns of 8 pixels and a line
    cells = [[_cell(picture, r, c, 8 * scale) for c in range(5)] for r in range(3)]
    for row, x in zip(cells, train.x[:3, 0].numpy(), strict=True):
        assert np.array_equal(row[0][::scale, ::scale, 0], np.round(x / 16 * 255).astype(np.uint8))
        assert np.array_equal(row[0], row[1])
        assert not np.array_equal(row[0], row[2])


def _cell(picture: Picture, row: int, column: int, side: int) -> np.ndarray:
    """One image of a grid whose lines are two pixels wide."""
    return picture.pixels[2 + row * (side + 2) :, 2 + column * (side + 2) :][:side, :side]


def test_retrieval_among_random_labels_is_at_chance():
    generator = torch.Generator().manual_seed(0)
    x = {key: torch.randn(1000, 5, generator=generator) for key in ("train", "test")}
    y = {key: torch.randint(4, (1000,), generator=generator) for key in x}
    found = finding(Retrieval(), subject_of(planted(x, y, 4)))
    assert abs(found.value - 0.25) < 3 * found.stderr
    assert found.stderr == pytest.approx(math.sqrt(0.25 * 0.75 / 10_000), rel=0.2)


# --- bad input ------------------------------------------------------------------------------------------------------


def test_what_cannot_be_judged_is_said():
    unlabelled = subject_of(bars(), "binary")
    for estimator in (Probe(), KNN(), FewLabel()):
        assert estimator.unfit(unlabelled) == "was trained on data=bars, which has no labels"
    assert Retrieval().unfit(unlabelled) is None  # there are images to show
    points = subject_of(planted({"train": torch.randn(30, 3), "test": torch.randn(30, 3)}))
    assert "neither labels nor images" in str(Retrieval().unfit(points))
    assert ActiveUnits().unfit(points) == "is no LatentVariable"
    few = subject_of(planted({"train": torch.randn(30, 3), "test": torch.randn(9, 3)}))
    assert Embedding().unfit(few) == "has 9 examples here, too few for a picture of the code space"
    assert "too few" in str(Embedding(method="tsne").unfit(points))


def test_codes_that_are_not_numbers():
    subject = subject_of(blob_source(distance=2.0), codes=lambda x: x / 0)
    for estimator in (Probe(), KNN(), Embedding(), Retrieval()):
        with pytest.raises(
            GentrainError, match=r"codes of Planted on the (train|test) split: some are NaN or infinite"
        ):
            measure(estimator, subject)


def test_one_class_is_none():
    x, y = blobs(60, 2, 3, 5.0, seed=0)
    source = planted({"train": x, "test": x}, {"train": 0 * y, "test": y}, 2)
    with pytest.raises(UsageError, match="two classes at least"):
        measure(Probe(), subject_of(source))


# --- as a user ------------------------------------------------------------------------------------------------------


def test_evaluate_files_numbers_and_pictures(train: Callable):
    """By the command's own path, and twice with one seed the same."""
    path: Path = train("model=vae", "data=digits").path
    names = "metrics=[reconstruction_error,active_units,probe,knn,few_label,retrieval,embedding]"
    overrides = [names, "device=cpu", "metric.few_label.labels_per_class=[1,5]"]
    rows = gentrain.evaluate(path, overrides)
    assert {r.kind for r in rows} == {"recon", "active-units", "probe", "knn", "retrieval", "embedding-pca"}
    assert len(rows) == 9 and all(r.stderr >= 0 and r.split == "test" for r in rows)
    again = gentrain.evaluate(path, [*overrides, "again=true"])
    assert [(r.metric, r.value, r.stderr) for r in rows] == [(r.metric, r.value, r.stderr) for r in again]
    drawn = {p.name for p in (path / "samples").glob("*-00000012.png")}
    assert {"embedding-pca-00000012.png", "retrieval-00000012.png"} <= drawn
