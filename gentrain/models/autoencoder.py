"""Autoencoders: x to a code and back."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.nn.functional import linear

from gentrain.errors import UsageError
from gentrain.models.base import Decoder, Encodes, Reconstructs, StartsFromMean
from gentrain.models.layers import every_layer, mlp
from gentrain.models.pyramid import pyramid
from gentrain.noise import of_all_processes
from gentrain.types import OpenFraction, PositiveInt, Shape, Support

MARGIN = 1e-3
"""Where outputs begin at the data's mean, it is moved into [MARGIN, 1 - MARGIN]."""
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "linear": nn.Identity,
}


class FittedGaussian(nn.Module):
    """N(m, C) with the mean and covariance of the vectors that have come by, the newest counting most.

    A batch's weight falls by `decay` with each that follows, as in the running statistics of batch normalisation:
    codes of early training, of another encoder, are forgotten. Before any came it is N(0, I).

    Args:
        dim: of a vector. decay: the last 1/(1 - decay) batches or so count.

    >>> gaussian = FittedGaussian(1)
    >>> gaussian.observe(torch.tensor([[1.0], [3.0]]))
    >>> gaussian.mean, gaussian.covariance
    (tensor([2.]), tensor([[1.]]))
    """

    weight: Tensor
    mean: Tensor
    covariance: Tensor

    def __init__(self, dim: PositiveInt, decay: OpenFraction = 0.99):
        super().__init__()
        self.decay = decay
        self.register_buffer("weight", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("covariance", torch.eye(dim))

    @torch.no_grad()
    def observe(self, z: Tensor) -> None:
        """Take in a batch (B, dim), this process's share of it, in place."""
        z = of_all_processes(z.detach()).to(self.mean.dtype)
        self.weight.mul_(self.decay).add_(1 - self.decay)
        share = (1 - self.decay) / self.weight  # 1 for the first batch
        mean = z.mean(0)
        spread = z - mean
        step = mean - self.mean
        # the variance of a mixture: within its two parts, and between their means
        self.covariance.lerp_(spread.t() @ spread / len(z), share)
        self.covariance.add_(torch.outer(step, step) * (share * (1 - share)))
        self.mean.add_(share * step)

    def forward(self) -> MultivariateNormal:
        """The Gaussian; a variance of nothing is made 1e-6 of the mean variance, so that it has a density."""
        variance = self.covariance.diagonal().mean()
        ridge = (1e-6 * variance + 1e-12) * torch.eye(len(self.mean), device=self.mean.device)
        factor, failed = torch.linalg.cholesky_ex(self.covariance + ridge)
        if failed:  # rounding has made a small eigenvalue negative
            values, vectors = torch.linalg.eigh(self.covariance)
            root = vectors * values.clamp(min=float(1e-6 * variance + 1e-12)).sqrt()
            factor = torch.linalg.qr(root.t()).R.t()
            factor = factor * factor.diagonal().sign()
        return MultivariateNormal(self.mean, scale_tril=factor, validate_args=False)


class Restores(Decoder, Encodes, Reconstructs, StartsFromMean):
    """x -> code -> x, a decoder of codes that an encoder finds. What codes are drawn from, `prior`, says the class.

    Attributes:
        logistic: whether x is σ(outputs), so between 0 and 1, or the outputs themselves.
        size: elements of x. latent_dim: of the code.
    """

    logistic: bool
    size: int
    latent_dim: int

    def _set_space(self, shape: Sequence[int], levels: int | None, support: str, output: str, latent_dim: int) -> None:
        """Note what x and the code are.

        Raises:
            UsageError: a support that the data can't have, or an output that doesn't fit it.
        """
        if support == "auto":
            support = "real" if levels is None else "unit"
        if levels is None and support != "real":
            raise UsageError(f"model.support={support}: these data are real numbers without levels; use real or auto")
        if output == "logistic" and support == "real":
            raise UsageError("model.output=logistic gives numbers between 0 and 1, and these are reals; use linear")
        self.shape, self.size, self.latent_dim = tuple(shape), math.prod(shape), latent_dim
        self.support: Support = "binary" if support == "binary" else "unit" if support == "unit" else "real"
        self.logistic = support != "real" if output == "auto" else output == "logistic"

    @abstractmethod
    def codes(self, x: Tensor) -> Tensor:
        """The code of x, (B, latent_dim), with gradients."""

    @abstractmethod
    def outputs(self, z: Tensor) -> Tensor:
        """The decoder's answer (B, *shape) to codes z (B, latent_dim), before σ where it is logistic."""

    def restored(self, z: Tensor) -> Tensor:
        """x as the decoder gives it for codes z, (B, *shape); a linear output may leave [0, 1]."""
        return torch.sigmoid(self.outputs(z)) if self.logistic else self.outputs(z)

    def decode(self, z: Tensor) -> Tensor:
        """x for codes z, (B, *shape), in `support`: the nearest bits, grey levels or reals."""
        x = self.restored(z)
        if self.support == "binary":
            return x + (x.ge(0.5).to(x.dtype) - x).detach()  # gradients of the expectation
        return x.clamp(0, 1) if self.support == "unit" else x

    def reconstruct(self, x: Tensor) -> Tensor:
        """x's own restoration: of bits, the expected ones."""
        return self.restored(self.codes(x))

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        return self.decode(self.prior.sample(torch.Size([n])))


class Autoencoding(Restores):
    """x -> code -> x, trained to give back what went in. By itself that is no distribution over x.

    `sample` decodes codes drawn from a Gaussian fitted to those of training, which is `prior`. Codes of data need
    not be Gaussian, nor fill the space between them: what lies in the holes is decoded to no example at all.
    """

    gaussian: FittedGaussian

    def _set_space(self, shape: Sequence[int], levels: int | None, support: str, output: str, latent_dim: int) -> None:
        super()._set_space(shape, levels, support, output, latent_dim)
        self.gaussian = FittedGaussian(latent_dim)

    def observe(self, z: Tensor) -> None:
        """Take in codes of training examples, (B, latent_dim): what `prior` is fitted to."""
        self.gaussian.observe(z)

    @property
    def prior(self) -> MultivariateNormal:
        return self.gaussian()


class _Mirror(nn.Module):
    """A decoder whose weights are the encoder's own, transposed; only biases are its parameters.

    Args:
        encoder: linear layers in their order, with whatever comes between. activation: between the decoder's layers.
    """

    def __init__(self, encoder: nn.Sequential, activation: nn.Module):
        super().__init__()
        self._linears = tuple(layer for layer in encoder if isinstance(layer, nn.Linear))[::-1]  # no submodules
        self.activation = activation
        self.biases = nn.ParameterList(torch.zeros(layer.in_features) for layer in self._linears[:-1])

    def forward(self, z: Tensor) -> Tensor:
        for layer, bias in zip(self._linears[:-1], self.biases, strict=True):
            z = self.activation(linear(z, layer.weight.t(), bias))
        return linear(z, self._linears[-1].weight.t())


class EncoderDecoder(Restores):
    """An encoder, its mirror for a decoder, and a bias for each element of x."""

    encoder: nn.Sequential
    decoder: nn.Module

    def _set_networks(
        self,
        network: str,
        hidden: Sequence[int],
        channels: int | None,
        activation: str,
        tied: bool = False,
        dropout: Sequence[float] = (),
    ) -> None:
        """Make them.

        Raises:
            UsageError: `conv` asked of what is no image of a fitting size, or options that exclude each other.
        """
        between = ACTIVATIONS[activation]
        if network == "conv":
            if dropout:
                raise UsageError(f"model.dropout={[*dropout]} is for model.network=mlp; use [] with conv")
            if tied:
                raise UsageError(
                    "model.tied=true is for model.network=mlp: transposed convolutions have weights of own"
                )
            encoder, decoder = pyramid(self.shape, hidden, self.latent_dim, self.latent_dim, channels or 32, between)
        else:
            if channels is not None:
                raise UsageError(f"model.channels={channels} is for model.network=conv; an mlp has model.hidden")
            shares = every_layer("model.dropout", dropout, len(hidden) + 1)
            encoder = nn.Sequential(nn.Flatten(), *mlp([self.size, *hidden, self.latent_dim], between, dropout=shares))
            mirrored = [self.latent_dim, *reversed(hidden), self.size]
            decoder = _Mirror(encoder, between()) if tied else mlp(mirrored, between, bias=False)
        self.encoder, self.decoder = encoder, decoder
        self.bias = nn.Parameter(torch.zeros(self.size))

    def codes(self, x: Tensor) -> Tensor:
        return self.encoder(x.to(self.bias.dtype))

    def outputs(self, z: Tensor) -> Tensor:
        # The sum of a bfloat16 product and a float32 bias is float32: the loss is exact under autocast too.
        return (self.decoder(z).flatten(1) + self.bias).view(-1, *self.shape)

    @torch.no_grad()
    def start_from_mean(self, mean: Tensor) -> None:
        mean = mean.flatten()
        self.bias.copy_(torch.logit(mean.clamp(MARGIN, 1 - MARGIN)) if self.logistic else mean)


class Autoencoder(EncoderDecoder, Autoencoding):
    """x -> z = f(x) -> x̂ = g(z), trained to give x back (Rumelhart et al. 1986; Baldi & Hornik 1989).

    With `activation: linear`, a linear code and a linear output the least squared error is that of PCA with as many
    components, and the decoder's columns span the same space. A code with as many numbers as x, or more, can copy x
    without learning anything of it: `objective=denoising` and `contractive` are for those.

    Args:
        shape: of one example.
        levels: number of values an element can take in the data, None for reals.
        network: `mlp`, or `conv` for images with sides of 8 to 64 (stride-2 convolutions, then `hidden` layers).
        latent_dim: numbers in the code.
        hidden: units of the encoder's fully connected layers; the decoder mirrors them.
        channels: feature maps of the first convolution, doubled at each halving; None is 32. Only for `conv`.
        activation: of hidden layers and convolutions.
        code: `linear`, or `sigmoid`: numbers between 0 and 1.
        output: `linear`, `logistic`, or `auto`: linear for reals, else logistic.
        tied: the decoder's weights are the encoder's, transposed. Only for `mlp`.
        support: of x; `auto` is `real` for reals, else `unit`.

    Raises:
        UsageError: `conv` asked of something that is no image of a fitting size, options that exclude each other, or a
            support that the data can't have.

    >>> model = Autoencoder((1, 8, 8), levels=17, latent_dim=2, hidden=[16])
    >>> model.support, model.codes(torch.zeros(3, 1, 8, 8)).shape, model.sample(3).shape
    ('unit', torch.Size([3, 2]), torch.Size([3, 1, 8, 8]))
    """

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        network: Literal["mlp", "conv"] = "mlp",
        latent_dim: PositiveInt = 10,
        hidden: Sequence[PositiveInt] = (400,),
        channels: PositiveInt | None = None,
        activation: Literal["relu", "tanh", "sigmoid", "linear"] = "relu",
        code: Literal["linear", "sigmoid"] = "linear",
        output: Literal["auto", "linear", "logistic"] = "auto",
        tied: bool = False,
        support: Literal["auto", "binary", "unit", "real"] = "auto",
    ):
        super().__init__()
        self._set_space(shape, levels, support, output, latent_dim)
        self._set_networks(network, hidden, channels, activation, tied)
        self.code = ACTIVATIONS[code]()

    def codes(self, x: Tensor) -> Tensor:
        return self.code(super().codes(x))
