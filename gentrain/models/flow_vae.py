"""The variational autoencoder whose posterior, prior or both are made richer by normalizing flows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torch.distributions import Distribution

from gentrain.errors import UsageError
from gentrain.models.flows import Bijection, Chain, Coupling, alternating, start_as_identity
from gentrain.models.latent import Reparametrised, TransformedBy, Unlabelled
from gentrain.models.layers import DiagonalNormal, mlp
from gentrain.models.vae import GaussianVAE
from gentrain.types import PositiveInt, Shape


class FlowVAE(Unlabelled, GaussianVAE):
    """A `VAE` with q(z|x) the law of z = f(u), u ~ N(μ(x), diag σ²(x)), or p(z) that of z = g(u), u ~ N(0, I), or both.

    log q(z|x) = log N(u; μ, σ²) - log |det df/du| (Rezende & Mohamed 2015, arXiv:1505.05770); f is the same for all x.
    A flow in the prior (Chen et al. 2017, arXiv:1611.02731) widens the family of p as much as one in q narrows the gap
    of the bound. f and g are affine couplings that begin as the identity, `flows` of them, so both directions take one
    pass. `codes` is f(μ(x)), which is not q's mean.

    Args:
        posterior, prior: `gaussian`, or `flow`.
        flows: couplings in each flow; every other one moves the same half of z.
        flow_hidden: units of the layers of each coupling's network. Others: as of the `VAE`.

    Raises:
        UsageError: as of the `VAE`, and a code of one dimension, which has no halves.

    >>> import torch
    >>> model = FlowVAE((1, 8, 8), levels=17, latent_dim=2, hidden=[16], flows=2, flow_hidden=[8])
    >>> q = model.encode(torch.zeros(5, 1, 8, 8))
    >>> q.log_prob(q.sample()).shape, model.sample(3).shape
    (torch.Size([5]), torch.Size([3, 1, 8, 8]))
    """

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        network: Literal["mlp", "conv"] = "mlp",
        latent_dim: PositiveInt = 20,
        hidden: Sequence[PositiveInt] = (400,),
        channels: PositiveInt | None = None,
        activation: Literal["relu", "tanh"] = "relu",
        likelihood: Literal["auto", "bernoulli", "gaussian", "categorical", "discretized_logistic"] = "auto",
        posterior: Literal["gaussian", "flow"] = "flow",
        prior: Literal["gaussian", "flow"] = "gaussian",
        flows: PositiveInt = 4,
        flow_hidden: Sequence[PositiveInt] = (64,),
    ):
        super().__init__(shape, levels, network, latent_dim, hidden, channels, activation, likelihood)
        if latent_dim < 2:
            raise UsageError(
                f"model.latent_dim={latent_dim}: a coupling moves one half of z by the other; use 2 or more"
            )
        self.posterior_flow = _flow(latent_dim, flows, flow_hidden) if posterior == "flow" else None
        self.prior_flow = _flow(latent_dim, flows, flow_hidden) if prior == "flow" else None

    @property
    def prior(self) -> Reparametrised:
        unit, flow = self._prior(), self.prior_flow
        return unit if flow is None else TransformedBy(unit, flow.inverse, flow, like=self._prior.zero)

    def encode(self, x: Tensor) -> Reparametrised:
        mean, log_variance = self.encoder(self.likelihood.network_input(x)).float().chunk(2, -1)
        normal, flow = DiagonalNormal(mean, log_variance), self.posterior_flow
        return normal if flow is None else TransformedBy(normal, flow, flow.inverse, like=mean)

    def decode(self, z: Tensor) -> Distribution:
        return self.likelihood(self.decoder(z))


def _flow(dim: int, layers: int, hidden: Sequence[int]) -> Bijection:
    couplings = []
    for i in range(layers):
        network = mlp([dim, *hidden, 2 * dim])
        start_as_identity(network[-1])
        couplings.append(Coupling(alternating((dim,), i % 2), network))
    return Chain(*couplings)
