"""What keeps a critic smooth: penalties on its gradient, and noise on what it sees. They go with any game."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gentrain import noise
from gentrain.types import Fraction, NonNegativeFloat, PositiveFloat

Critic = Callable[[Tensor], Tensor]


class Regularisers(nn.Module):
    """Terms of the critic's loss, and noise before it; each is off where its weight is null. They add up.

        r1                  γ/2 E_data ‖∇_x D(x)‖² (Mescheder et al. 2018, arXiv:1801.04406, eq. 9)
        r2                  the same over generated examples (there, eq. 10)
        gradient_penalty    λ E (‖∇_x D(x̂)‖ - target)², x̂ = εx + (1 - ε)G(z), ε ~ U(0, 1) of each pair
                            (Gulrajani et al. 2017, arXiv:1704.00028, eq. 3)
        noise               N(0, σ²) added to what a game's losses show the critic, σ falling linearly to 0 at
                            `noise_until` of training (Sønderby et al. 2017, arXiv:1610.04490; Arjovsky & Bottou 2017);
                            penalties, and what a critic tells besides, of labels or codes, go by x as they are

    Spectral normalisation, a third way to the same end, is the critic's own: `model.spectral_norm`.

    Args:
        r1, r2: γ. gradient_penalty: λ, 10 in the paper. target: norm that it pulls to, 1 for Wasserstein's critics.
        noise: σ at the start. noise_until: share of training after which there is none; 1 is the end.
    """

    def __init__(
        self,
        r1: NonNegativeFloat | None = None,
        r2: NonNegativeFloat | None = None,
        gradient_penalty: NonNegativeFloat | None = None,
        target: NonNegativeFloat = 1.0,
        noise: PositiveFloat | None = None,
        noise_until: Fraction = 1.0,
    ):
        super().__init__()
        self.r1, self.r2, self.gradient_penalty, self.target = r1, r2, gradient_penalty, target
        self.sigma, self.until = noise, noise_until

    def blur(self, progress: float) -> Callable[[Tensor], Tensor]:
        """What is done to examples (B, *shape) before the critic sees them at this point of training."""
        if not self.sigma or progress >= self.until:
            return lambda x: x
        sigma = self.sigma * (1 - progress / self.until)
        return lambda x: x + sigma * noise.normal(*x.shape, device=x.device)

    def penalties(self, critic: Critic, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Name -> weighted term, of a critic (B, *shape) -> (B,), and real and generated examples."""
        found: dict[str, Tensor] = {}
        for name, weight, x in (("r1", self.r1, real), ("r2", self.r2, fake)):
            if weight:
                found[name] = weight / 2 * gradient(critic, x).square().sum(1).mean()
        if self.gradient_penalty:
            share = noise.uniform(len(real), device=real.device, dtype=real.dtype).view(-1, *[1] * (real.dim() - 1))
            norm = gradient(critic, torch.lerp(fake, real, share)).norm(dim=1)
            found["gradient_penalty"] = self.gradient_penalty * (norm - self.target).square().mean()
        return found


def gradient(critic: Critic, x: Tensor) -> Tensor:
    """∇_x D(x) of each example, flat, (B, D), with gradients to the critic's parameters and to what x comes from.

    A critic whose layers mix the examples of a batch, as batch normalisation does, has no such thing: what comes then
    is the gradient of the sum, as everywhere.

    >>> gradient(lambda x: (x**2).sum(1), torch.tensor([[1.0, 2.0]])).detach()
    tensor([[2., 4.]])
    """
    # Of an x that comes from somewhere, a view: what else depends on it, an unrolled critic for one, is not D(x)'s.
    x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
    with torch.enable_grad():
        (found,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return found.flatten(1)
