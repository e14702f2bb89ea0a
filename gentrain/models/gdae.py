"""Denoising autoencoders as generative models: the Markov chain that corrupts and denoises."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from gentrain import noise
from gentrain.errors import UsageError
from gentrain.models import likelihoods
from gentrain.models.autoencoder import ACTIVATIONS
from gentrain.models.base import Codes, Completes, Generative, Reconstructs, StartsFromMean
from gentrain.models.corruption import Corruption
from gentrain.models.layers import mlp
from gentrain.types import NonNegativeFloat, NonNegativeInt, PositiveInt, Shape


class DenoisingChain(Generative):
    """π(x), the stationary distribution of the chain x̃ ~ C(x̃ | x), x ~ P(x | x̃).

    With P(x | x̃) the true posterior given the corruption, π is the data's distribution (Bengio et al. 2013, theorem 1).
    """

    @abstractmethod
    def corrupt(self, x: Tensor) -> Tensor:
        """x̃ ~ C(x̃ | x), (B, *shape)."""

    @abstractmethod
    def denoise(self, corrupted: Tensor) -> Distribution:
        """P(x | x̃), batch shape (B,), event shape `shape`."""

    @abstractmethod
    def draw(self, p: Distribution) -> Tensor:
        """x ~ P(x | x̃), (B, *shape), by the draws of `gentrain.noise`."""

    @abstractmethod
    def means(self, n: int) -> Tensor:
        """E[x | x̃] at the last step of n independent chains, (n, *shape)."""


class GDAE(DenoisingChain, Codes, Completes, Reconstructs, StartsFromMean):
    """A generalised denoising autoencoder: x̃ ~ C(x̃ | x), x ~ P_θ(x | x̃), again and again (Bengio et al. 2013,
    arXiv:1305.6663).

    P_θ(x | x̃) is a product of independent bits whose logits are a network's of x̃. One step can cross no wider a gap
    than the corruption spans: `objective=walkback` trains it from where the chain itself leads.

    Args:
        shape: of one example.
        levels: number of values an element can take in the data.
        hidden: units of the network's layers; codes are those of the middle one.
        activation: of its layers.
        corruption: C, `salt_and_pepper` (to 0 or 1), `mask` (to 0) or `gaussian`.
        level: the probability that an element is corrupted; of `gaussian` the noise's standard deviation.
        burn_in: steps of the chain before a sample is taken.

    Raises:
        UsageError: the data are real numbers, `level` is no probability, or there is no hidden layer.

    >>> model = GDAE((1, 8, 8), levels=17, hidden=[16], burn_in=5)
    >>> model.sample(3).shape, model.codes(torch.zeros(3, 1, 8, 8)).shape
    (torch.Size([3, 1, 8, 8]), torch.Size([3, 16]))
    """

    support, sampling = "binary", ("burn_in",)

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        hidden: Sequence[PositiveInt] = (500,),
        activation: Literal["relu", "tanh", "sigmoid", "linear"] = "relu",
        corruption: Literal["mask", "salt_and_pepper", "gaussian"] = "salt_and_pepper",
        level: NonNegativeFloat = 0.1,
        burn_in: NonNegativeInt = 100,
    ):
        super().__init__()
        if levels is None:
            raise UsageError("model=gdae is over bits, and these data are real numbers: use images, or data=bars")
        if not hidden:
            raise UsageError("model.hidden=[]: give the network one layer at least")
        self.shape, self.burn_in = tuple(shape), burn_in
        self.corruption = Corruption(corruption, level)
        self.likelihood = likelihoods.BernoulliLikelihood(self.shape)
        between, middle, size = ACTIVATIONS[activation], (len(hidden) + 1) // 2, math.prod(shape)
        self.encoder = nn.Sequential(nn.Flatten(), *mlp([size, *hidden[:middle]], between), between())
        self.decoder = mlp([*hidden[middle - 1 :], size], between, bias=False)  # the likelihood has the bias

    def corrupt(self, x: Tensor) -> Tensor:
        return self.corruption(x)

    def denoise(self, corrupted: Tensor) -> likelihoods.IndependentBits:
        p = self.likelihood(self.decoder(self.encoder(corrupted)))
        assert isinstance(p, likelihoods.IndependentBits)
        return p

    def draw(self, p: Distribution) -> Tensor:
        return noise.bernoulli(p.mean)

    @torch.no_grad()
    def sample(self, n: int, burn_in: int | None = None) -> Tensor:
        """n independent chains from fair coin tosses, after `burn_in` steps (None is the model's own)."""
        x = noise.bernoulli(torch.full((n, *self.shape), 0.5, device=self.device))
        for _ in range(self.burn_in if burn_in is None else burn_in):
            x = self.draw(self.denoise(self.corrupt(x)))
        return x

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor) -> Tensor:
        """By `burn_in` steps of the chain, from fair coin tosses, with the known bits put back after each.

        Near p(missing | known) as far as steps are near those of a chain that could be reversed: an approximation.
        """
        x = torch.where(known, x, noise.bernoulli(torch.full(x.shape, 0.5, device=x.device)).to(x))
        for _ in range(self.burn_in):
            x = torch.where(known, x, self.draw(self.denoise(self.corrupt(x))).to(x))
        return x

    @torch.no_grad()
    def means(self, n: int) -> Tensor:
        return self.denoise(self.corrupt(self.sample(n, max(0, self.burn_in - 1)))).mean

    def codes(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | x̃ = x]: nothing is corrupted."""
        return self.denoise(x).mean

    def start_from_mean(self, mean: Tensor) -> None:
        self.likelihood.start_from_mean(mean)
