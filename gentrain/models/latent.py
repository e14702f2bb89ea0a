"""What bounds of log p(x) are made of: reparametrised draws from q(z|x), their weights, and KL(q ‖ p).

Draws come with their log-density: it costs less than to weigh z afterwards, and a flow need not be inverted. The first
axis of draws counts them, as in torch.distributions; log-densities are in nats.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints, kl_divergence

from gentrain import noise
from gentrain.errors import UsageError
from gentrain.models.base import Encodes, LatentVariable, Reconstructs, given

Map = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x (N, d) -> its image and the log-determinant of each, (N,)."""


class Reparametrised(Distribution, ABC):
    """A distribution over vectors whose draws are a smooth function z = g(ε) of as many standard normal numbers."""

    has_rsample = True

    @abstractmethod
    def draw(self, epsilon: Tensor) -> tuple[Tensor, Tensor]:
        """z = g(ε) and log q(z) for ε (…, *batch, d): (…, *batch, d) and (…, *batch), with gradients."""


class Discrete(Distribution, ABC):
    """A distribution over vectors of bits whose draws are a function of as many uniform numbers: no gradient goes
    through them.

    Args:
        like: a tensor of the batch shape and any event shape, for its device. event_shape: of a draw.
    """

    support = constraints.independent(constraints.boolean, 1)  # type: ignore[assignment]

    def __init__(self, like: Tensor, event_shape: torch.Size):
        self.like = like
        super().__init__(like.shape[:-1], event_shape, validate_args=False)

    @abstractmethod
    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """z and log q(z) for u from [0, 1)^d, (…, *batch, d): (…, *batch, d) and (…, *batch)."""

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        return self.draw(torch.rand(*sample_shape, *self.batch_shape, *self.event_shape, device=self.like.device))[0]

    @property
    @abstractmethod
    def centre(self) -> Tensor:
        """The code, of probabilities, that stands for an example."""


class Composed(Reparametrised):
    """A distribution given by `draw` and `log_prob` alone: it has no mean and no divergence in closed form.

    Args:
        like: a tensor of the batch and event shape, (*batch, d), for its device.
    """

    support = constraints.independent(constraints.real, 1)  # type: ignore[assignment]

    def __init__(self, like: Tensor):
        self.like = like
        super().__init__(like.shape[:-1], like.shape[-1:], validate_args=False)

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        return self.draw(torch.randn(*sample_shape, *self.like.shape, device=self.like.device))[0]

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        return self.rsample(sample_shape)


class Ancestral(Composed):
    """a ~ first, b ~ then(a), as one vector.

    Args:
        first: of a, (*batch, d_a). then: a (…, d_a) -> the distribution of b, (…, d_b). sizes: d_a and d_b.
        first_is_last: the vector is (b, a) rather than (a, b).

    >>> from gentrain.models.layers import DiagonalNormal
    >>> zero = torch.zeros(3, 1)
    >>> p = Ancestral(DiagonalNormal(zero, zero), lambda a: DiagonalNormal(a, 0 * a), (1, 1), like=torch.zeros(3, 2))
    >>> p.log_prob(torch.tensor([2.0, 2.0]).expand(3, 2))  # log N(2; 0, 1) + log N(2; 2, 1)
    tensor([-3.8379, -3.8379, -3.8379])
    """

    def __init__(
        self,
        first: Reparametrised,
        then: Callable[[Tensor], Reparametrised],
        sizes: tuple[int, int],
        like: Tensor,
        first_is_last: bool = False,
    ):
        super().__init__(like)
        self.first, self.then, self.sizes, self.first_is_last = first, then, sizes, first_is_last

    def _split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if self.first_is_last:
            b, a = z.split(self.sizes[::-1], -1)
        else:
            a, b = z.split(self.sizes, -1)
        return a, b

    def draw(self, epsilon: Tensor) -> tuple[Tensor, Tensor]:
        for_a, for_b = self._split(epsilon)
        a, log_a = self.first.draw(for_a)
        b, log_b = self.then(a).draw(for_b)
        return torch.cat([b, a] if self.first_is_last else [a, b], -1), log_a + log_b

    def log_prob(self, value: Tensor) -> Tensor:
        a, b = self._split(value)
        return self.first.log_prob(a) + self.then(a).log_prob(b)


class TransformedBy(Composed):
    """z = f(u), u ~ base, for an invertible f: log q(z) = log base(u) - log |det df/du|.

    Args:
        base: of u. push: u (N, d) -> f(u) and log |det df/du|, (N,). pull: z -> f⁻¹(z) and log |det df⁻¹/dz|.
        like: a tensor of the batch and event shape, (*batch, d).

    >>> from gentrain.models.layers import DiagonalNormal
    >>> zero, log_2 = torch.zeros(1, 1), torch.tensor(2.0).log()
    >>> twice = lambda u: (2 * u, log_2.expand(len(u)))
    >>> half = lambda z: (z / 2, -log_2.expand(len(z)))
    >>> TransformedBy(DiagonalNormal(zero, zero), twice, half, zero).log_prob(zero + 2)  # log N(2; 0, 4)
    tensor([-2.1121])
    """

    def __init__(self, base: Reparametrised, push: Map, pull: Map, like: Tensor):
        super().__init__(like)
        self.base, self.push, self.pull = base, push, pull

    def draw(self, epsilon: Tensor) -> tuple[Tensor, Tensor]:
        u, log_base = self.base.draw(epsilon)
        z, log_det = self._of_rows(self.push, u)
        return z, log_base - log_det

    def log_prob(self, value: Tensor) -> Tensor:
        u, log_det = self._of_rows(self.pull, value)
        return self.base.log_prob(u) + log_det

    @staticmethod
    def _of_rows(function: Map, x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det = function(x.reshape(-1, x.shape[-1]))
        return y.view(x.shape), log_det.view(x.shape[:-1])


class BinaryLatent(LatentVariable):
    """A latent variable of bits: p(x) = Σ_z p(x|z) p(z), and a draw of z has no gradient to what it was drawn by."""


class Unlabelled(LatentVariable, Encodes, Reconstructs):
    """What a latent-variable model of p(x) has by its prior, encoder and decoder alone."""

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        return self.decode(self.prior.sample(torch.Size([n]))).sample()

    def codes(self, x: Tensor) -> Tensor:
        return centre(self.encode(x))

    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | z] at the code that stands for x."""
        return self.decode(self.codes(x)).mean


def draw(q: Distribution, k: int) -> tuple[Tensor, Tensor]:
    """k draws of z an example with gradients, (k, B, *code), and log q(z|x) of each, (k, B).

    Processes that share a batch draw what one process would have drawn.

    Raises:
        UsageError: gradients are asked for, and this kind of q can't give them.
    """
    rows, *code = (*q.batch_shape, *q.event_shape)
    if isinstance(q, Reparametrised):
        return q.draw(noise.normal(rows, k, *code, device=_device(q)).transpose(0, 1))
    if not q.has_rsample and torch.is_grad_enabled():
        raise UsageError(
            f"q(z|x) is a {type(q).__name__}, whose draws carry no gradient to the encoder: ELBO and IWAE need a"
            " distribution with rsample"
        )
    if isinstance(q, Discrete):
        return q.draw(noise.uniform(rows, k, *code, device=_device(q)).transpose(0, 1))
    z = noise.replicate(lambda n: (q.rsample if q.has_rsample else q.sample)(torch.Size([n])), k)
    return z, q.log_prob(z)


def _device(q: Reparametrised | Discrete) -> torch.device:
    return q.like.device if isinstance(q, Composed | Discrete) else q.mean.device


def centre(q: Distribution) -> Tensor:
    """The code that stands for an example, (B, *code): q's mean, or its code at ε = 0 if q is `Composed`, or what a
    `Discrete` q says."""
    if isinstance(q, Discrete):
        return q.centre
    return q.draw(torch.zeros_like(q.like))[0] if isinstance(q, Composed) else q.mean


def log_likelihood(model: LatentVariable, x: Tensor, y: Tensor | None, z: Tensor) -> Tensor:
    """log p(x|z), of a conditional model log p(x|z, y), for codes z (k, B, *code): (k, B)."""
    k, rows = z.shape[:2]
    if k > 1:
        x = x.repeat(k, *[1] * (x.dim() - 1))
        y = None if y is None else y.repeat(k)
    return model.decode(z.flatten(0, 1), **given(model, y)).log_prob(x).view(k, rows)


def log_weights(model: LatentVariable, x: Tensor, y: Tensor | None, k: int) -> Tensor:
    """log p(x, z)/q(z|x) for k draws z of q(z|x) an example, (k, B)."""
    z, log_q = draw(model.encode(x, **given(model, y)), k)
    return log_likelihood(model, x, y, z) + model.prior.log_prob(z) - log_q


def divergence(q: Distribution, prior: Distribution, z: Tensor, log_q: Tensor) -> Tensor:
    """KL(q(z|x) ‖ p(z)), (B,): in closed form where torch knows one, else the mean of log q - log p over draws z."""
    try:
        return kl_divergence(q, prior)
    except NotImplementedError:
        return (log_q - prior.log_prob(z)).mean(0)
