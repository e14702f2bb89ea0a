"""Estimators of sample quality: each against a closed form, a naive loop or a published implementation."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gentrain
from gentrain.data import vision
from gentrain.data.embedded import digits, pydoc
from gentrain.data.pipeline import Pipeline
from gentrain.data.source import Source, Split, make_source
from gentrain.data.synthetic import bars, grid, grid_centres, ring, ring_centres
from gentrain.errors import DataError, GentrainError, UsageError
from gentrain.evaluation import classifier, features, judged, ledger
from gentrain.evaluation.estimator import Estimator, Finding, Picture, Subject, seeded
from gentrain.evaluation.frechet import FID, frechet, moments
from gentrain.evaluation.kernels import KID, MMD, Gaussians, median_distance, polynomial, unbiased_mmd
from gentrain.evaluation.manifolds import PRDC, manifolds
from gentrain.evaluation.memorisation import Nearest
from gentrain.evaluation.modes import MixtureModes, ModeCoverage, divergence
from gentrain.evaluation.paired import jackknife
from gentrain.evaluation.sliced import SWD, wasserstein
from gentrain.models.base import Generative

Draw = Callable[[int], Tensor]


class Draws(Generative):
    """A model that is a function of the number of samples."""

    def __init__(self, draw: Draw, shape: tuple[int, ...], support: Any):
        super().__init__()
        self.draw, self.shape, self.support = draw, shape, support
        self.calls = 0

    def sample(self, n: int) -> Tensor:
        self.calls += 1
        return self.draw(n)


def subject(source: Source, draw: Draw, support: Any = "real", **settings: Any) -> Subject:
    pipeline = Pipeline(source, support, batch_size=10, seed=0)
    return Subject(Draws(draw, source.spec.shape, support), pipeline, data=source.fingerprint(), **settings)


def points(x: Tensor, held_out: Tensor | None = None) -> Source:
    return make_source("points", "real", {"train": Split(x), "test": Split(x if held_out is None else held_out)})


def judge(estimator: Estimator, of: Subject) -> dict[str, Finding]:
    with seeded(of.seed):
        return {f.metric: f for f in estimator(of) if isinstance(f, Finding)}


def rotation(d: int) -> Tensor:
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for this file: the classifier of the digits is trained once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "sample-tests"))
    torch.manual_seed(0)


def torch_fidelity(module: str) -> Any:
    """A module of the published implementation; the test is skipped where it isn't installed."""
    vision._torchvision()  # declares what a CPU-only torch lacks
    return pytest.importorskip(f"torch_fidelity.{module}")


# --- Frechet distance -----------------------------------------------------------------------------------------------


def test_frechet_of_commuting_covariances():
    """C_x and C_y share their eigenvectors: |Δm|² + Σ (√a - √b)²."""
    q, a, b = rotation(6), torch.rand(6, dtype=torch.float64) * 4, torch.rand(6, dtype=torch.float64)
    a[0] = 0  # singular, as the covariance of pixels that are always black
    m, n = torch.randn(2, 6, dtype=torch.float64)
    expected = float((m - n).square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    # a variance of 0 is rounded to 1e-16, whose root is 1e-8
    assert frechet(m, (q * a) @ q.T, n, (q * b) @ q.T) == pytest.approx(expected, rel=1e-7)


def test_frechet_of_any_covariances():
    from scipy.linalg import sqrtm

    zero = torch.zeros(5, dtype=torch.float64)
    x, y = (moments(torch.randn(50, 5, dtype=torch.float64) @ rotation(5) * torch.arange(1, 6))[1] for _ in range(2))
    expected = float(x.trace() + y.trace()) - 2 * float(np.trace(sqrtm((x @ y).numpy()).real))
    assert frechet(zero, x, zero, y) == pytest.approx(expected, rel=1e-9)
    assert frechet(zero, x, zero, x) == pytest.approx(0, abs=1e-9)


def test_frechet_is_that_of_torch_fidelity():
    published = torch_fidelity("metric_fid")
    x, y = torch.rand(300, 10).double(), torch.rand(200, 10).double() ** 2
    two = [published.fid_features_to_statistics(t) for t in (x, y)]
    expected = published.fid_statistics_to_metric(*two, verbose=False)[published.KEY_METRIC_FID]
    assert frechet(*moments(x), *moments(y)) == pytest.approx(expected, rel=1e-9)


def test_fid_of_gaussians():
    """Data N(0, I) in three dimensions, model N((1, 0, 0), 4 I): 1 + 3 (2 - 1)² = 4."""
    shift = torch.tensor([1.0, 0.0, 0.0])
    of = subject(points(torch.randn(4000, 3)), lambda n: 2 * torch.randn(n, 3) + shift)
    found = judge(FID(n_fake=4000), of)["fid"]
    assert found.value == pytest.approx(4, abs=4 * found.stderr) and 0.02 < found.stderr < 0.3
    assert found.kind == "fid" and found.n == 4000 and found.unit == "squared distance (pixels)"
    assert found.settings["n_real"] == 4000 and found.settings["feature_space"] == "pixels"


def test_the_small_sample_bias_is_estimated():
    """Under the null the distance is above 0 by what `bias` says."""
    values, biases, errors = [], [], []
    for seed in range(10):
        of = subject(points(torch.randn(400, 8)), lambda n: torch.randn(n, 8), seed=seed)
        found = judge(FID(n_fake=400), of)["fid"]
        values.append(found.value)
        biases.append(found.settings["bias"])
        errors.append(found.stderr)
    value, bias = np.mean(values), np.mean(biases)
    assert value > 5 * np.std(values) / math.sqrt(10)
    assert bias == pytest.approx(value, rel=0.3)


@pytest.mark.parametrize("estimator", [FID(n_fake=300), KID(n_fake=300), MMD(n_fake=300, bandwidth=1.0)], ids=type)
def test_jackknife_errors_are_the_spread_over_draws(estimator: Any):
    """The error says how far values of independent samples and examples lie apart."""
    values, errors = [], []
    for seed in range(40):
        of = subject(points(torch.randn(300, 2)), lambda n: 1.5 * torch.randn(n, 2) + 1, seed=seed)
        (found,) = judge(estimator, of).values()
        values.append(found.value)
        errors.append(found.stderr)
    assert math.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(values, ddof=1), rel=0.4)


def test_jackknife_of_a_mean_is_its_standard_error():
    x = torch.randn(20, dtype=torch.float64)
    without = [float(x[torch.arange(20) != i].mean()) for i in range(20)]
    error, bias = jackknife(float(x.mean()), without)
    assert error == pytest.approx(float(x.std()) / math.sqrt(20)) and bias == pytest.approx(0, abs=1e-12)


# --- KID and MMD ----------------------------------------------------------------------------------------------------


def double_loop(x: Tensor, y: Tensor, k: Callable[[Tensor, Tensor], float]) -> float:
    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_mmd_is_the_double_sum(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gentrain.evaluation.kernels.ROWS", 2)  # blocks of blocks
    x, y = torch.randn(17, 3, dtype=torch.float64), torch.randn(11, 3, dtype=torch.float64) + 0.5
    kid = double_loop(x, y, lambda a, b: (float(a @ b) / 3 + 1) ** 3)
    assert unbiased_mmd(x, y, polynomial, blocks=3)[0] == pytest.approx(kid, rel=1e-9)

    def gaussians(a: Tensor, b: Tensor) -> float:
        return sum(math.exp(-float((a - b).square().sum()) / (2 * (0.7 * s) ** 2)) for s in (0.25, 0.5, 1, 2, 4))

    mmd = double_loop(x, y, gaussians)
    assert unbiased_mmd(x, y, Gaussians(0.7), blocks=4)[0] == pytest.approx(mmd, rel=1e-9)


@pytest.mark.parametrize("kernel", [polynomial, Gaussians(1.0)], ids=["polynomial", "gaussians"])
def test_mmd_is_unbiased(kernel: Any):
    """Its mean is 0 where both sets come from one distribution; the biased statistic would be at 9 deviations."""
    values = [unbiased_mmd(*torch.randn(2, 30, 2, dtype=torch.float64), kernel, 2)[0] for _ in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(300)


def test_kid_is_that_of_torch_fidelity():
    published = torch_fidelity("metric_kid")
    x, y = torch.rand(60, 10).double(), torch.rand(60, 10).double() ** 2
    # one subset of everything: nothing is drawn
    found = published.kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=60, verbose=False, rng_seed=0)
    expected = found[published.KEY_METRIC_KID_MEAN]
    assert unbiased_mmd(x, y, polynomial, blocks=5)[0] == pytest.approx(expected, rel=1e-9)


def test_the_bandwidth_is_the_median_distance_of_the_examples():
    x = torch.randn(50, 2)
    found = judge(MMD(n_fake=50), subject(points(x), lambda n: torch.randn(n, 2)))["mmd"]
    distances = torch.pdist(x.double())
    assert found.settings["sigma"] == pytest.approx(float(distances.sort().values[(len(distances) - 1) // 2]), rel=1e-6)
    with pytest.raises(DataError, match="bandwidth=null"):
        median_distance(torch.ones(5, 2, dtype=torch.float64))


# --- precision, recall, density, coverage ---------------------------------------------------------------------------


def naive(fake: Tensor, real: Tensor, k: int) -> dict[str, float]:
    def radius(i: int, own: Tensor) -> float:
        return sorted(math.dist(own[i].tolist(), o.tolist()) for j, o in enumerate(own) if j != i)[k - 1]

    balls, fake_balls = [radius(i, real) for i in range(len(real))], [radius(i, fake) for i in range(len(fake))]
    inside = [[math.dist(f.tolist(), r.tolist()) <= balls[j] + 1e-9 for j, r in enumerate(real)] for f in fake]
    reached = [[math.dist(f.tolist(), r.tolist()) <= fake_balls[i] + 1e-9 for i, f in enumerate(fake)] for r in real]
    return {
        "precision": sum(map(any, inside)) / len(fake),
        "recall": sum(map(any, reached)) / len(real),
        "density": sum(map(sum, inside)) / (k * len(fake)),
        "coverage": sum(any(row[j] for row in inside) for j in range(len(real))) / len(real),
    }


def clouds(kind: str) -> tuple[Tensor, Tensor]:
    if kind == "bits":  # full of ties
        return torch.randint(2, (50, 6)).double(), (torch.rand(40, 6) < 0.4).double()
    return torch.randn(50, 4, dtype=torch.float64), torch.randn(40, 4, dtype=torch.float64) * 0.6 + 0.4


@pytest.mark.parametrize("kind", ["reals", "bits"])
def test_prdc_is_what_loops_give(kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gentrain.evaluation.manifolds.ROWS", 7)
    real, fake = clouds(kind)
    found = manifolds(fake, real, 3)
    for metric, value in naive(fake, real, 3).items():
        assert float(getattr(found, metric).double().mean()) == pytest.approx(value), metric


def test_prdc_is_that_of_the_published_package():
    published = pytest.importorskip("prdc")
    real, fake = clouds("reals")
    found = manifolds(fake, real, 5)
    for metric, value in published.compute_prdc(real.numpy(), fake.numpy(), nearest_k=5).items():
        assert float(getattr(found, metric).double().mean()) == pytest.approx(value), metric


def test_prdc_tells_lost_variety_from_poor_quality():
    data = torch.randn(1000, 2)
    narrow = judge(PRDC(n_fake=1000), subject(points(data), lambda n: 0.2 * torch.randn(n, 2)))
    wide = judge(PRDC(n_fake=1000), subject(points(data), lambda n: 5 * torch.randn(n, 2)))
    same = judge(PRDC(n_fake=1000), subject(points(data), lambda n: torch.randn(n, 2)))
    assert narrow["precision"].value > 0.9 > 0.3 > narrow["recall"].value
    assert wide["recall"].value > 0.9 > 0.5 > wide["precision"].value
    assert same["density"].value == pytest.approx(1, abs=5 * same["density"].stderr)
    assert same["precision"].stderr == pytest.approx(
        math.sqrt(same["precision"].value * (1 - same["precision"].value) / 999), rel=1e-6
    )


# --- sliced Wasserstein ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(40, 40), (40, 33), (7, 100), (1, 5)])
def test_wasserstein_in_one_dimension(n: int, m: int):
    from scipy.stats import wasserstein_distance

    x, y = torch.randn(n, 3, dtype=torch.float64), torch.randn(m, 3, dtype=torch.float64) * 2
    expected = [wasserstein_distance(a, b) for a, b in zip(x.T.numpy(), y.T.numpy(), strict=True)]
    assert wasserstein(x, y, 1).tolist() == pytest.approx(expected)
    # any p: both sets repeated until they are of one size
    repeated = wasserstein(x.repeat_interleave(m, 0), y.repeat_interleave(n, 0), 2)
    assert wasserstein(x, y, 2).tolist() == pytest.approx(repeated.tolist())


def test_swd_on_a_line_is_wasserstein():
    x, y = torch.randn(500, 1), 3 * torch.rand(500, 1)
    found = judge(SWD(n_fake=500, projections=3, p=1.0), subject(points(x), lambda n: y.repeat(2, 1)[:n]))["swd"]
    assert found.value == pytest.approx(float(wasserstein(y.double(), x.double(), 1.0)[0]))
    assert found.stderr == pytest.approx(0, abs=1e-12)


def test_swd_of_a_shift():
    """W_2 along θ is |θᵀΔ|, whose mean square is |Δ|²/d."""
    x, delta = torch.randn(1000, 5), torch.tensor([1.0, 2.0, 0.0, 0.0, 2.0])
    found = judge(SWD(n_fake=1000), subject(points(x), lambda n: x + delta))["swd"]
    assert found.value == pytest.approx(math.sqrt(9 / 5), abs=4 * found.stderr) and found.stderr < 0.05


# --- memorisation ---------------------------------------------------------------------------------------------------


def test_nearest_finds_copies():
    """Every second sample is a training example."""
    train, test = torch.rand(600, 6), torch.rand(600, 6)

    def half(n: int) -> Tensor:
        copies = torch.arange(n) % 2 == 0
        return torch.where(copies[:, None], train[torch.randint(600, (n,))], torch.rand(n, 6))

    found = judge(Nearest(n_fake=500), subject(points(train, test), half))
    share, ratio = found["memorised_share"], found["memorisation_ratio"]
    assert share.value == pytest.approx(0.5 + 0.5 * 0.01, abs=4 * share.stderr) and share.stderr < 0.03
    assert ratio.value == pytest.approx(0.5, abs=4 * ratio.stderr)
    brute = torch.cdist(half(1), train, compute_mode="donot_use_mm_for_euclid_dist")  # a copy, to the bit
    assert float(brute.min()) == 0
    held_out = torch.cdist(test, train, compute_mode="donot_use_mm_for_euclid_dist").amin(1).mean()
    assert found["nearest_distance"].settings["held_out"] == pytest.approx(float(held_out), rel=1e-5)


def test_the_share_of_memorised_samples_is_exact():
    """The first tenth of the held-out distances 1, 2, … 101 ends at 11."""
    own = torch.tensor([0.0, 10.9, 11.1, 50.0]).double()
    share, error = Nearest(quantile=0.1).memorised(own, torch.arange(1, 102).double())
    assert share == 0.5 and error == pytest.approx(0.25, rel=0.3)  # √(½ ½ / 4)


def test_new_samples_are_not_memorised():
    of = subject(points(torch.rand(500, 3), torch.rand(2000, 3)), lambda n: torch.rand(n, 3))
    found = judge(Nearest(n_fake=2000), of)
    share, ratio = found["memorised_share"], found["memorisation_ratio"]
    assert share.value == pytest.approx(0.01, abs=4 * share.stderr) and 0 < share.stderr < 0.01
    assert ratio.value == pytest.approx(1, abs=4 * ratio.stderr)


def test_the_picture_shows_samples_beside_their_neighbours():
    source = digits()
    train = Pipeline(source, "unit", 10, 0)
    x = next(train.evaluation("train", 40)).x
    of = subject(source, lambda n: x[torch.arange(n) % 40], "unit")
    with seeded(0):
        (picture,) = [p for p in Nearest(n_fake=16, shown=16)(of) if isinstance(p, Picture)]
        (few,) = [p for p in Nearest(n_fake=4, shown=16)(of) if isinstance(p, Picture)]
        (four,) = [p for p in Nearest(n_fake=4, shown=4)(of) if isinstance(p, Picture)]
    assert np.array_equal(few.pixels, four.pixels), "no more are shown than there are"
    pairs = x[:16].repeat_interleave(2, 0)  # each sample's neighbour is itself
    assert np.array_equal(picture.pixels, gentrain.pictures.to_bytes(gentrain.pictures.grid(pairs, columns=8)))


# --- modes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "centres"), [(ring(), ring_centres(8, 2.0)), (grid(), grid_centres(5, 2.0))])
def test_modes_of_a_mixture(source: Source, centres: Tensor):
    modes, std = len(centres), source.spec.modes.std  # type: ignore[union-attr]
    for estimator in (MixtureModes(n_fake=1000), ModeCoverage(n_fake=1000)):  # both do it by the true centres
        # at 2.9 deviations from the centres, all modes alike
        found = judge(
            estimator, subject(source, lambda n: centres[torch.arange(n) % modes] + torch.tensor([2.9 * std, 0]))
        )
        assert found["modes_hit"].value == modes and found["high_quality"].value == 1
        assert found["mode_kl"].value == pytest.approx(0, abs=1e-9)
        # three quarters at the first mode, an eighth at the second, the others just outside of a third
        far = torch.stack([centres[0], centres[0], centres[0], centres[0], centres[0], centres[0], centres[1],
                           centres[2] + torch.tensor([0, 3.1 * std])])  # fmt: skip
        found = judge(estimator, subject(source, lambda n, far=far: far[torch.arange(n) % 8]))
        assert found["modes_hit"].value == 2 and found["high_quality"].value == 0.875
        p = torch.tensor([6 / 7, 1 / 7])
        assert found["mode_kl"].value == pytest.approx(float((p * (p * modes).log()).sum()), rel=1e-6)
        assert found["high_quality"].stderr == pytest.approx(math.sqrt(0.875 * 0.125 / 1000))
        assert found["mode_kl"].n == 875, "it is of the samples at modes alone"
    assert found["modes_hit"].settings["modes"] == modes


def test_data_hit_all_modes_with_the_share_of_a_gaussian():
    """P(|z| < 3) = 1 - e^(-9/2) in the plane."""
    source = ring()
    x = source.splits["test"].x
    found = judge(MixtureModes(n_fake=10_000), subject(source, lambda n: x[torch.randint(len(x), (n,))]))
    quality = found["high_quality"]
    assert found["modes_hit"].value == 8 and found["modes_hit"].stderr == 0
    assert quality.value == pytest.approx(1 - math.exp(-4.5), abs=4 * quality.stderr)
    nowhere = judge(MixtureModes(n_fake=100), subject(source, lambda n: torch.full((n, 2), 50.0)))
    one = torch.tensor([[0.0, 2.0]])  # one sample at a mode, of which nothing follows about shares
    lost = judge(MixtureModes(n_fake=100), subject(source, lambda n: torch.cat([one, torch.full((n - 1, 2), 50.0)])))
    assert lost["modes_hit"].value == 1 and "mode_kl" not in lost
    assert nowhere["modes_hit"].value == 0 and nowhere["high_quality"].value == 0 and "mode_kl" not in nowhere


def test_divergence_is_exact():
    counts, shares = torch.tensor([3, 1, 0]), torch.tensor([0.5, 0.25, 0.25])
    assert divergence(counts, shares) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(1.0))


def test_modes_of_labelled_images():
    """The samples are training digits of known labels, which the classifier knows by heart."""
    source = digits()
    train = source.splits["train"]
    assert train.y is not None
    weights = torch.tensor([0.4, 0.3, 0.2, 0.094, 0.006, 0, 0, 0, 0, 0])
    each = [train.x[train.y == c].float() / 16 for c in range(10)]

    def skewed(n: int) -> Tensor:
        rows = [each[c][torch.arange(round(float(w) * n)) % len(each[c])] for c, w in enumerate(weights)]
        return torch.cat(rows)

    found = judge(ModeCoverage(n_fake=1000), subject(source, skewed, "unit"))
    covered, kl = found["classes_covered"], found["label_kl"]
    assert covered.value == 4  # 0.6 % of the samples is less than a tenth of what the digit 4 has in the data
    data = torch.bincount(train.y, minlength=10) / len(train.y)
    p = torch.tensor(covered.settings["shares"])
    assert torch.allclose(p, weights, atol=0.004)
    expected = float(torch.special.xlogy(p, p / data).sum())
    assert kl.value == pytest.approx(expected, abs=1e-4) and 0 < kl.stderr < 0.1
    assert found["confident_share"].value > 0.95
    noise = judge(ModeCoverage(n_fake=1000), subject(source, lambda n: torch.rand(n, 1, 8, 8), "unit"))
    assert noise["confident_share"].value < 0.8 < noise["confident_share"].settings["confident_examples"]


# --- the classifier -------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An empty cache of one's own, and short trainings that are counted."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(classifier, "STEPS", 5)
    trained: list[int] = []
    train = classifier._train
    monkeypatch.setattr(classifier, "_train", lambda of: trained.append(1) or train(of))
    return trained


def fresh(support: Any = "unit", **settings: Any) -> Subject:
    return subject(digits(**settings), lambda n: torch.rand(n, 1, 8, 8), support)


def test_the_classifier_is_good():
    judge_ = classifier.classifier(fresh())
    assert judge_.accuracy > 0.97 and judge_.split == "test" and judge_.n == 270  # logistic regression has 0.96
    x, y = fresh().labelled("validation")
    assert float((judge_.network(x).argmax(1) == y).double().mean()) > 0.95
    z = judge_.network.features(fresh().examples("train"))
    assert z.shape == (1257, 64) and float(z.square().mean()) == pytest.approx(1, rel=1e-4)


def test_a_classifier_is_trained_once(counted: list[int]):
    first = classifier.classifier(fresh())
    of = fresh()
    second = classifier.classifier(of)
    assert classifier.classifier(of) is second and len(counted) == 1
    assert first.sha256 == second.sha256 and first.accuracy == second.accuracy
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(first.network(x), second.network(x))
    # grey levels are one representation, whatever the support; bits and other splits are others
    assert classifier.classifier(fresh("signed")).sha256 == first.sha256 and len(counted) == 1
    assert classifier.classifier(fresh("binary")).sha256 != first.sha256 and len(counted) == 2
    assert classifier.classifier(fresh(validation=100)).sha256 != first.sha256 and len(counted) == 3


def test_training_is_a_function_of_the_data(counted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = classifier.classifier(fresh("unit")).sha256
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert classifier.classifier(fresh("signed")).sha256 == first and len(counted) == 2
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("suffix", [".pt", ".json"])
def test_a_damaged_classifier_is_noticed(
    suffix: str, counted: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    first = classifier.classifier(fresh())
    (path,) = (tmp_path / "gentrain" / "classifiers").glob(f"*{suffix}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if suffix == ".pt" else 15] ^= 1
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        again = classifier.classifier(fresh())
    assert len(counted) == 2 and again.sha256 == first.sha256
    assert "damaged" in caplog.text and "training the classifier again" in caplog.text
    classifier.classifier(fresh())
    assert len(counted) == 2


def test_of_two_processes_one_trains(tmp_path: Path):
    script = (
        "import test_samples, torch; from gentrain.evaluation import classifier\n"
        "train = classifier._train; classifier.STEPS = 60\n"
        "classifier._train = lambda of: print('trained') or train(of)\n"
        "print(classifier.classifier(test_samples.fresh()).sha256)"
    )
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent)}
    both = [subprocess.Popen([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE, text=True) for _ in "ab"]
    said = [process.communicate(timeout=120)[0].split() for process in both]
    assert sorted(len(words) for words in said) == [1, 2] and said[0][-1] == said[1][-1]


def test_points_have_a_classifier_too():
    source = ring(n=2000)
    x, y = source.splits["test"].x, source.splits["test"].y
    of = subject(source, lambda n: torch.randn(n, 2))
    assert float((classifier.classifier(of).network(x).argmax(1) == y).double().mean()) == 1
    assert judge(FID(n_fake=100, features="classifier"), of)["fid"].unit == "squared distance (classifier)"
    assert judge(FID(n_fake=100), of)["fid"].unit == "squared distance (pixels)"


# --- what is shared, and what is refused ----------------------------------------------------------------------------


def test_estimators_share_their_samples(monkeypatch: pytest.MonkeyPatch):
    of = subject(points(torch.randn(3000, 2)), lambda n: torch.randn(n, 2))
    estimators = [FID(n_fake=2500), KID(n_fake=1500), SWD(n_fake=2500), PRDC(n_fake=2500), Nearest(n_fake=500)]
    shared = [judge(e, of) for e in estimators]
    assert of.model.calls == 3  # type: ignore[attr-defined]
    assert len(list(judged.samples(of, 3000))) == 3 and of.model.calls == 3  # type: ignore[attr-defined]
    # each alone, with nothing kept, finds the same
    for module in (judged, features):
        monkeypatch.setattr(module, "KEPT", 0)
    for estimator, found in zip(reversed(estimators), reversed(shared), strict=True):
        alone = judge(estimator, of)
        assert {m: f.value for m, f in alone.items()} == {m: f.value for m, f in found.items()}
    other = subject(points(of.examples("train")), lambda n: torch.randn(n, 2), seed=1)
    assert judge(FID(n_fake=2500), other)["fid"].value != shared[0]["fid"].value


def test_samples_are_a_function_of_the_seed_alone():
    source = points(torch.randn(10, 2))
    torch.manual_seed(1)
    few = torch.cat(list(judged.samples(subject(source, lambda n: torch.randn(n, 2)), 10)))
    after = torch.randn(1)
    torch.manual_seed(2)
    many = torch.cat(list(judged.samples(subject(source, lambda n: torch.randn(n, 2)), 1500)))
    assert many.shape == (1500, 2) and torch.equal(many[:10], few) and len(many.unique(dim=0)) == 1500
    torch.manual_seed(1)
    assert torch.equal(torch.randn(1), after)  # nothing was taken from the caller's generator
    (other,) = judged.samples(subject(source, lambda n: torch.randn(n, 2), seed=1), 10)
    assert not torch.equal(other, few)


def test_what_was_kept_goes_with_its_subject():
    before = len(judged._shelves)
    of = subject(points(torch.randn(100, 2)), lambda n: torch.randn(n, 2))
    judge(FID(n_fake=100), of)
    assert len(judged._shelves) == before + 1
    del of
    assert len(judged._shelves) == before


def test_fewer_examples_are_drawn_over_the_whole_split():
    """A data set may be sorted; the draw is the same for every model and seed."""
    x = torch.arange(1000.0)[:, None]
    found = [features.Space("pixels", lambda t: t).of_examples(subject(points(x), torch.zeros, seed=s), "train", 100)
             for s in (0, 1)]  # fmt: skip
    assert torch.equal(*found) and len(found[0].unique()) == 100
    assert float(found[0].mean()) == pytest.approx(499.5, abs=4 * 288.7 / 10)


def kinds(*estimators: Estimator) -> list[Any]:
    return [pytest.param(e, id=type(e).__name__) for e in estimators]


@pytest.mark.parametrize("estimator", kinds(FID(), KID(), MMD(), SWD(), PRDC(), Nearest(), ModeCoverage()))
def test_tokens_are_refused(estimator: Estimator):
    of = subject(pydoc(length=8), lambda n: torch.zeros(n, 8), "tokens")
    assert "tokens" in (estimator.unfit(of) or "")


def test_what_cannot_be_judged_is_refused_in_words(monkeypatch: pytest.MonkeyPatch):
    unlabelled = subject(bars(), lambda n: torch.zeros(n, 1, 3, 3), "binary")
    assert "no labels" in (ModeCoverage().unfit(unlabelled) or "")
    assert "ring" in (MixtureModes().unfit(unlabelled) or "")
    assert "split=test" in (Nearest().unfit(subject(bars(), torch.zeros, "binary", split="train")) or "")
    assert FID().unfit(unlabelled) is None
    with pytest.raises(UsageError, match=r"data=bars has no labels .* features=pixels"):
        judge(FID(features="classifier"), unlabelled)
    with pytest.raises(UsageError, match="n_reference=300: the test split of data=digits has 270"):
        judge(FID(n_fake=100, reference="test", n_reference=300), fresh())
    with pytest.raises(UsageError, match="n_fake=5: this estimator needs at least 6"):
        judge(PRDC(n_fake=5), unlabelled)
    with pytest.raises(UsageError, match=r"features=inception: there is no .*weights-inception"):
        monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nonexistent")
        judge(FID(features="inception"), fresh())
    with pytest.raises(UsageError, match="one or three channels"):
        judge(FID(features="inception"), subject(ring(), lambda n: torch.zeros(n, 2)))
    with pytest.raises(GentrainError, match="samples of Draws: some are NaN"):
        judge(FID(n_fake=10), subject(ring(), lambda n: torch.full((n, 2), math.nan)))


# --- through the command --------------------------------------------------------------------------------------------


def test_the_ledger_has_it_all(train: Callable[..., Any]):
    run = train("model=gan", "model.hidden=[8]", "data=digits").path
    fast = [f"metric.{name}.n_fake=100" for name in ("fid", "kid", "mmd", "swd", "prdc", "modes", "nearest")]
    overrides = ["metrics=[fid,kid,mmd,swd,prdc,modes,nearest]", *fast, "metric.swd.projections=8", "device=cpu"]
    rows = gentrain.evaluate(run, overrides)
    assert {r.kind for r in rows} == {"fid", "kid", "mmd", "swd", "prdc", "modes", "memorisation"}
    (fid,) = [r for r in rows if r.kind == "fid"]
    assert fid.settings["reference"] == "train" and fid.settings["n_real"] == 100 and fid.settings["n_fake"] == 100
    assert len(fid.settings["classifier"]) == 64 and fid.settings["classifier_accuracy"] > 0.97
    assert list((run / "samples").glob("nearest-*.png"))
    size = len(ledger.read(run))
    assert gentrain.evaluate(run, overrides) == rows and len(ledger.read(run)) == size  # read, not computed


def test_modes_of_a_mixture_are_counted_in_training(train: Callable[..., Any]):
    run = train("model=gan", "model.hidden=[8]", "data=ring", "data.n=100").path
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("validation/modes_hit" in line and "validation/high_quality" in line for line in lines)
