"""PCA by streaming sums, against scikit-learn, eigenvalues and the closed form of probabilistic PCA."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import bare_trainer, build, fit
from scipy.stats import kstest, multivariate_normal
from sklearn.decomposition import PCA as Reference
from torch import Tensor

from gentrain.data.embedded import digits
from gentrain.errors import UsageError
from gentrain.models.pca import FLOOR, PCA, PPCA


@pytest.fixture(scope="module")
def data() -> Tensor:
    """Three hundred points in six dimensions, none of them a direction of its own; far from the origin."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.2, 0.1])
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    return (torch.randn(300, 6, generator=generator) * scales) @ turn + 100


def fitted(x: Tensor, kind: type[PCA] = PCA, latent_dim: int = 2, pieces: tuple[int, ...] = (1, 99, 200)) -> PCA:
    model = kind(tuple(x.shape[1:]), latent_dim=latent_dim)
    for piece in x.split(list(pieces)):
        model.accumulate(piece)
    return model


@pytest.mark.parametrize("latent_dim", [1, 3, 6])
def test_it_is_the_reference(data: Tensor, latent_dim: int) -> None:
    model = fitted(data, latent_dim=latent_dim)
    reference = Reference(latent_dim).fit(data.double().numpy())
    found = model.components()
    np.testing.assert_allclose(found.mean, reference.mean_, rtol=1e-9)
    np.testing.assert_allclose(found.variances, reference.explained_variance_ * 299 / 300, rtol=1e-6)
    np.testing.assert_allclose((found.axes.numpy() * reference.components_).sum(1).__abs__(), 1, atol=1e-8)
    restored = reference.inverse_transform(reference.transform(data.double().numpy()))
    np.testing.assert_allclose(model.reconstruct(data), restored, atol=1e-4)
    np.testing.assert_allclose(model.codes(data).abs(), np.abs(reference.transform(data.double())), atol=1e-4)


@pytest.mark.parametrize("latent_dim", [1, 2, 5, 6])
def test_the_error_is_the_sum_of_the_eigenvalues_left_out(data: Tensor, latent_dim: int) -> None:
    model = fitted(data, latent_dim=latent_dim)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(data.double().t(), correction=0)).flip(0)
    error = (data.double() - model.reconstruct(data).double()).square().sum(1).mean()
    assert float(error) == pytest.approx(float(eigenvalues[latent_dim:].sum()), abs=1e-5)  # of float32
    assert float(model.components().rest) == pytest.approx(
        float(eigenvalues[latent_dim:].mean().nan_to_num()), rel=1e-6
    )


def test_how_the_examples_come_makes_no_difference(data: Tensor) -> None:
    one, other = fitted(data), fitted(data.flip(0), pieces=(150, 150))
    for a, b in zip(one.components(), other.components(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    before = one.components().mean
    one.accumulate(data[:1] + 50)
    assert not torch.equal(one.components().mean, before), "a new example is not forgotten for what was kept"


@pytest.mark.parametrize("latent_dim", [1, 4, 6])
def test_ppca_is_its_gaussian(data: Tensor, latent_dim: int) -> None:
    """Against scipy, with the covariance W Wᵀ + σ² I from scikit-learn's eigenvalues rather than the model's."""
    model = fitted(data, PPCA, latent_dim)
    assert isinstance(model, PPCA)
    S = np.cov(data.double().numpy().T, bias=True)
    values, vectors = np.linalg.eigh(S)
    values, vectors = values[::-1], vectors[:, ::-1]
    rest = values[latent_dim:].mean() if latent_dim < 6 else 0
    W = vectors[:, :latent_dim] * np.sqrt(values[:latent_dim] - rest)
    gaussian = multivariate_normal(data.double().numpy().mean(0), W @ W.T + rest * np.eye(6))
    x = torch.cat([data[:50], data[:50] + torch.linspace(-2, 2, 6)])
    np.testing.assert_allclose(model.log_prob(x), gaussian.logpdf(x.double().numpy()), rtol=1e-4)
    # its own draws: whitened by the exact covariance they are standard normal in every direction
    torch.manual_seed(1)
    white = np.linalg.solve(np.linalg.cholesky(gaussian.cov), (model.sample(40_000).double().numpy() - gaussian.mean).T)
    assert all(kstest(row, "norm").pvalue > 1e-4 for row in white)
    assert np.abs(np.cov(white) - np.eye(6)).max() < 6 * math.sqrt(2 / 40_000)


def test_no_other_noise_is_likelier(data: Tensor) -> None:
    model = fitted(data, PPCA)
    assert isinstance(model, PPCA)
    best = model.log_prob(data).sum()
    _, _, variances, rest = model.components()
    for factor in (0.8, 1.25):
        model._kept = [model.count, model.total], model.components()._replace(rest=rest * factor)
        assert model.log_prob(data).sum() < best
        model._kept = [model.count, model.total], model.components()._replace(rest=rest, variances=variances * factor)
        assert model.log_prob(data).sum() < best


def test_data_in_a_plane_have_a_finite_density() -> None:
    x = torch.randn(100, 1, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0, 2.0, 0.0]])
    model = fitted(x, PPCA, 1, (100,))
    assert isinstance(model, PPCA)
    assert model.log_prob(x).isfinite().all() and FLOOR == 1e-6


def test_an_epoch_is_the_fit_and_what_there_is_to_see(tmp_path: Path) -> None:
    trainer = fit(bare_trainer(
        tmp_path, "model=pca", "data=digits", "model.latent_dim=10", "data.batch_size=10", "data.validation=0",
        "trainer.epochs=1", "trainer.steps=null",
    ))  # fmt: skip
    model = trainer.model
    assert isinstance(model, PCA)
    x = torch.cat([trainer.pipeline.batch(step).x for step in range(trainer.pipeline.steps_per_epoch)])
    assert int(model.count) == len(x) and len(digits().splits["train"]) - len(x) < 10
    reference = Reference(10).fit(x.flatten(1).double().numpy())
    error = (x - model.reconstruct(x)).square().flatten(1).sum(1).double().mean()
    assert float(error) == pytest.approx(reference.noise_variance_ * (len(x) - 1) / len(x) * 54, rel=1e-5)
    assert model.filters().shape == (10, 1, 8, 8) and model.sample(3).shape == (3, 1, 8, 8)


def test_what_it_can_not_do_is_said() -> None:
    with pytest.raises(UsageError, match=r"model.latent_dim=3.*2 components at most"):
        build("model=pca", "data=ring", "model.latent_dim=3")
    with pytest.raises(UsageError, match="train it for a step"):
        PCA((2,), latent_dim=1).sample(2)
    assert PPCA((2,), latent_dim=1).log_prob(torch.zeros(1, 2)).item() == pytest.approx(-math.log(2 * math.pi))


def test_thirty_components_of_mnist(mnist_root: Path) -> None:
    """13.87 in Hinton & Salakhutdinov (2006); here from a quarter of the images, whose error must lie just above it."""
    made = build("model=pca", "data=mnist", f"data.root={mnist_root}", "data.validation=0", "data.batch_size=5000")
    for step in range(3):
        list(made.objective(made.model, made.pipeline.batch(step), 0.0))
    assert isinstance(made.model, PCA)
    x = next(made.pipeline.evaluation("test", 10_000)).x
    error = float((x - made.model.reconstruct(x)).square().flatten(1).sum(1).mean())
    assert 13.86 < error < 13.95
