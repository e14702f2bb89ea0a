"""Filling in what is missing of examples: what families share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.distributions import Distribution


class GivenPart:
    """N(x; μ, Σ) over D reals of which some are known: the density of these, and what the others are given them.

    With S the known and M the missing elements, x_M given x_S is N(μ_M + G (x_S - μ_S), Σ_MM - G Σ_SM), G = Σ_MS Σ_SS⁻¹
    (Bishop 2006, section 2.3.1). In float64.

    Args:
        mean, covariance: μ (D,), Σ (D, D). known: (D,), of bools.

    >>> part = GivenPart(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]]), torch.tensor([True, False]))
    >>> part.mean(torch.tensor([[2.0, 99.0]])).item(), round(part.factor.item() ** 2, 6)
    (1.0, 0.75)
    >>> part.log_known(torch.zeros(1, 2))  # -log(2π)/2
    tensor([-0.9189], dtype=torch.float64)
    """

    def __init__(self, mean: Tensor, covariance: Tensor, known: Tensor):
        covariance, self.known = covariance.double(), known
        self.centre, self.missing_centre = mean.double()[known], mean.double()[~known]
        rows = covariance[known]
        across = rows[:, ~known]
        self.seen = torch.linalg.cholesky(rows[:, known])
        self.gain = torch.cholesky_solve(across, self.seen).t()
        self.factor = torch.linalg.cholesky(covariance[~known][:, ~known] - self.gain @ across)

    def log_known(self, x: Tensor) -> Tensor:
        """log p(x_S) in nats, (B,), of x (B, D)."""
        away = (x.double()[:, self.known] - self.centre).t()
        square = torch.linalg.solve_triangular(self.seen, away, upper=False).square().sum(0)
        return -0.5 * (square + len(away) * math.log(2 * math.pi)) - self.seen.diagonal().log().sum()

    def mean(self, x: Tensor) -> Tensor:
        """E[x_M | x_S], (B, M)."""
        return self.missing_centre + (x.double()[:, self.known] - self.centre) @ self.gain.t()

    def fill(self, x: Tensor) -> Tensor:
        """x with x_M drawn given x_S, (B, D)."""
        filled, mean = x.clone(), self.mean(x)
        filled[:, ~self.known] = (mean + torch.randn_like(mean) @ self.factor.t()).to(x.dtype)
        return filled


def masks_of(known: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each set (D,) of elements that is known in some examples, and which these are, (B,), of `known` (B, *shape)."""
    masks, which = known.flatten(1).unique(dim=0, return_inverse=True)
    for i, mask in enumerate(masks):
        yield mask, which == i


@torch.no_grad()
def impute(
    x: Tensor,
    known: Tensor,
    sweeps: int,
    roam: Callable[[Tensor], Tensor],
    recognise: Callable[[Tensor], Distribution],
    log_joint: Callable[[Tensor, Tensor], Tensor],
    draw: Callable[[Tensor], Tensor],
) -> Tensor:
    """x (B, *shape) where `known`, elsewhere by a Markov chain over z and what is missing, which keeps p(z, missing |
    known): Metropolis within Gibbs (Mattei & Frellsen 2018, arXiv:1802.04826, section 3.2).

    z' ~ q(z'|x) takes z's place with probability min(1, p(x, z') q(z|x) / (p(x, z) q(z'|x))); the missing part is then
    drawn from p(x|z). Half of the sweeps come before, by `roam`, which approximates p(missing | known) only and moves
    faster: where q is far from the posterior hardly a move is accepted, and it is there that the chain has come.

    Args:
        x: with the missing part where the chain begins. sweeps: of the chain.
        roam: x to the x of another sweep, with all of it drawn.
        recognise: x to q(z|x). log_joint: x and z to log p(x, z) up to a constant, (B,). draw: z to x ~ p(x|z).
    """
    unadjusted = sweeps // 2
    for _ in range(unadjusted):
        x = torch.where(known, x, roam(x).to(x))
    z = recognise(x).sample()
    for _ in range(sweeps - unadjusted):
        q = recognise(x)
        other = q.sample()
        gain = log_joint(x, other) - log_joint(x, z) + q.log_prob(z) - q.log_prob(other)
        taken = torch.rand_like(gain).log() < gain
        z = torch.where(taken.view(-1, *[1] * (z.dim() - 1)), other, z)
        x = torch.where(known, x, draw(z).to(x))
    return x
