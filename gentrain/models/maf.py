"""Masked autoregressive flows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from gentrain.models.flows import BatchNormFlow, Bijection, Chain, Flatten, Flow, MaskedAffine, bounded
from gentrain.models.layers import MaskedMLP, StandardNormal
from gentrain.types import NonNegativeInt, PositiveFloat, PositiveInt, Shape

WIDEST = 7.0
"""What |log σ| of a component of the base stays below."""


class MAF(Flow):
    """A chain of z_d = (x_d - μ_d(x_<d)) exp(-α_d(x_<d)), the order of the elements reversed from one to the next.

    Papamakarios, Pavlakou & Murray 2017 (arXiv:1705.07057). Each layer is a MADE (Germain et al. 2015), batch
    normalisation comes before each. Density takes one pass through the networks; sampling goes element by element, at
    the arithmetic of one pass. With `components` above 1 the base is no N(0, I) but one more MADE whose conditionals
    are mixtures of Gaussians (MAF MoG; with no layers, MADE MoG). x and `log_prob` are as in `Flow`.

    Args:
        shape: of one example.
        levels: number of values an element can take in the data, None for reals.
        layers: MADEs in a row.
        hidden: units of the layers of each MADE.
        components: Gaussians of each of the base's conditionals; 1 is N(0, I).
        batch_norm: whether there is any; None is for levels alone (see `BatchNormFlow`).
        logit: λ of y = logit(λ + (1 - 2λ) x), for levels.

    >>> flow = MAF((2,), hidden=[8])
    >>> z, log_det = flow.transform(torch.zeros(5, 2))
    >>> flow.support, z.shape, log_det.shape, flow.sample(3).shape
    ('real', torch.Size([5, 2]), torch.Size([5]), torch.Size([3, 2]))
    """

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        layers: NonNegativeInt = 5,
        hidden: Sequence[PositiveInt] = (100,),
        components: PositiveInt = 1,
        batch_norm: bool | None = None,
        logit: PositiveFloat = 0.05,
    ):
        size = math.prod(shape)
        batch_norm = levels is not None if batch_norm is None else batch_norm
        body: list[Bijection] = [Flatten(tuple(shape))]
        for i in range(layers):
            body += [BatchNormFlow((size,))] if batch_norm else []
            body.append(MaskedAffine(size, hidden, reverse=i % 2 == 1))
        if components == 1:
            prior: nn.Module = StandardNormal(size)
        else:
            body += [BatchNormFlow((size,))] if batch_norm else []
            prior = MixtureMADE(size, hidden, components, reverse=layers % 2 == 1)
        super().__init__(tuple(shape), levels, logit, Chain(*body), prior)


class MixtureMADE(nn.Module):
    """p(z) = Π_d Σ_k π_dk N(z_d; μ_dk, σ²_dk), all three functions of the elements before d; calling it gives p.

    Args:
        size: D. hidden: units of each layer. components: K. reverse: go from the last element to the first.
    """

    def __init__(self, size: int, hidden: Sequence[int], components: int, reverse: bool = False):
        super().__init__()
        self.components, self.reverse = components, reverse
        self.network = MaskedMLP(size, hidden, 3 * components)
        bias = self.network.layers[-1].bias
        assert isinstance(bias, nn.Parameter)
        with torch.no_grad():  # apart from the start: components that are alike stay alike
            bias.view(size, 3, components)[:, 1] += torch.linspace(-1, 1, components)

    def forward(self) -> AutoregressiveMixture:
        return AutoregressiveMixture(self)

    def conditional(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log π, μ and log σ, (…, K) each, from the network's output (…, 3 K)."""
        raw = raw.to(next(self.parameters()).dtype)  # shorter within autocast
        weight, loc, log_scale = raw.unflatten(-1, (3, self.components)).unbind(-2)
        return torch.log_softmax(weight, -1), loc, bounded(log_scale, WIDEST)


class AutoregressiveMixture(Distribution):
    """The distribution over vectors that a `MixtureMADE` computes."""

    def __init__(self, made: MixtureMADE):
        self.made = made
        super().__init__(event_shape=torch.Size([made.network.size]), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        flat = value.reshape(-1, value.shape[-1])
        flat = flat.flip(1) if self.made.reverse else flat
        log_weight, loc, log_scale = self.made.conditional(self.made.network(flat))
        e = (flat[..., None] - loc) * (-log_scale).exp()
        terms = log_weight - log_scale - 0.5 * e.square() - 0.5 * math.log(2 * math.pi)
        return torch.logsumexp(terms, -1).sum(1).view(value.shape[:-1])

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        def element(d: int, raw: Tensor) -> Tensor:
            log_weight, loc, log_scale = self.made.conditional(raw)
            k = torch.multinomial(log_weight.exp(), 1)
            mean, deviation = loc.gather(1, k)[:, 0], log_scale.gather(1, k)[:, 0].exp()
            return mean + deviation * torch.randn_like(mean)

        z = self.made.network.generate(math.prod(sample_shape), element)
        return (z.flip(1) if self.made.reverse else z).view(*sample_shape, -1)
