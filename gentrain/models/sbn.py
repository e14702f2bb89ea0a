"""The sigmoid belief network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Bernoulli

from gentrain import noise
from gentrain.errors import UsageError
from gentrain.models.base import Filters, StartsFromMean
from gentrain.models.belief import Cascade, Directed, Helmholtz
from gentrain.models.latent import BinaryLatent, Unlabelled
from gentrain.models.likelihoods import MARGIN, IndependentBits
from gentrain.types import PositiveInt, Shape


class SBN(Helmholtz, BinaryLatent, Unlabelled, Filters, StartsFromMean):
    """p(x) = Σ_h p(x|h_1) p(h_1|h_2) … p(h_L), every layer independent bits given the layer above it (Neal 1992,
    Artificial Intelligence 56:71), p(s_i = 1 | s) = σ(W s + c)_i.

    The posterior is intractable. A second network with weights of its own takes its place, q(h|x) = q(h_1|x) q(h_2|h_1)
    …, factorial in the same way: together they are a Helmholtz machine (Hinton, Dayan, Frey & Neal 1995, Science
    268:1158). A code is the vector (h_1, …, h_L) of bits. `codes` are q's probabilities, of the layers above the first
    those at the probabilities below; `reconstruct` is p(x = 1 | h_1) at these.

    Args:
        shape: of one example, bits.
        hidden: units of h_1, …, h_L.

    Parts: `generative` and `recognition`.

    Raises:
        UsageError: there is no layer.

    >>> model = SBN((1, 3, 3), hidden=[4, 2])
    >>> x = model.sample(5)
    >>> q = model.encode(x)
    >>> x.shape, q.sample().shape, model.prior.log_prob(q.sample()).shape
    (torch.Size([5, 1, 3, 3]), torch.Size([5, 6]), torch.Size([5]))
    """

    support = "binary"
    generative: Directed
    recognition: Directed

    def __init__(self, shape: Shape, hidden: Sequence[PositiveInt] = (200, 200)):
        super().__init__()
        if not hidden:
            raise UsageError("model.hidden=[]: a belief network has one hidden layer at least")
        self.shape, self.hidden = tuple(shape), list(hidden)
        sizes = [math.prod(shape), *hidden]
        self.recognition = Directed(sizes)
        self.generative = Directed(sizes[::-1], prior=True)

    @property
    def prior(self) -> Cascade:
        """p(h_L) … p(h_1|h_2)."""
        assert self.generative.top is not None
        return Cascade(self.generative.top, self.generative.maps()[:-1], upside_down=True)

    def encode(self, x: Tensor) -> Cascade:
        return self.recognition.given(x.flatten(1))

    def decode(self, z: Tensor) -> IndependentBits:
        logits = self.generative.linear(-1)(z[..., : self.hidden[0]]).float()
        p = Bernoulli(logits=logits.unflatten(-1, self.shape), validate_args=False)
        return IndependentBits(p, len(self.shape), validate_args=False)

    @torch.no_grad()
    def dream(self, n: int) -> tuple[Tensor, Tensor]:
        z = noise.sample(self.prior, n)
        return noise.bernoulli(self.decode(z).mean), z

    def filters(self) -> Tensor:
        """What each unit of h_1 adds to the logits of x, (units, *shape)."""
        return self.generative.linear(-1).weight.t().reshape(-1, *self.shape)

    @torch.no_grad()
    def start_from_mean(self, mean: Tensor) -> None:
        self.generative.linear(-1).bias.copy_(torch.logit(mean.flatten().clamp(MARGIN, 1 - MARGIN)))
