"""Spaces small enough to sum over, exact distributions on them, and the test of draws against those."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributions import Distribution

from gentrain.models.base import Conditional, Density, Generative, LatentVariable
from gentrain.models.continuous import ContinuousFlow
from gentrain.models.energies import EnergyBased
from gentrain.models.latent import BinaryLatent

STATES = 1 << 14
"""The largest discrete space that is listed."""
CODES = 1 << 16
"""The most codes of bits that are summed over."""
CHUNK = 1 << 13
"""Points that a model is given at a time."""
COARSE = 3
"""A grid this many times as coarse tells how far an integral can be trusted."""
SHARP = 0.05
"""In nats: an integral that changes by more on a coarser grid is not trusted."""
IMPROBABLE = 1e-6
"""A statistic so large would turn up by chance once in a million checks: then the claim is held to be wrong."""


@dataclass(frozen=True)
class Space:
    """Points x_m with equal volumes: Σ_m p(x_m) exp(log_volume) = 1 for a mass (log_volume 0) or a density p.

    Args:
        points: (M, *shape). log_volume: of the cell around each.
        bin: the bin that each point lies in, (M,), int64. bins: number of them.
        locate: examples (B, *shape) to bins, (B,); -1 where an example lies in none.
        coarse: indices of the points that make a grid `COARSE` times as coarse; None for discrete spaces.
        levels: values of an element of a discrete space, else None.
        sides: of a cell of a grid, (D,); None for discrete spaces.
    """

    points: Tensor
    log_volume: float
    bin: Tensor
    bins: int
    locate: Callable[[Tensor], Tensor]
    coarse: Tensor | None = None
    levels: int | None = None
    sides: Tensor | None = None

    def log_total(self, log_p: Tensor) -> Tensor:
        """log Σ p over axis 0 of `log_p` (M, …), float64."""
        return torch.logsumexp(log_p.double(), 0) + self.log_volume

    def uncertainty(self, log_p: Tensor) -> float:
        """The largest change of `log_total` on the coarser grid: the fine grid's own error is far below it."""
        if self.coarse is None:
            return 0.0
        dims = round(math.log(len(log_p) / len(self.coarse), COARSE))
        coarse = torch.logsumexp(log_p[self.coarse].double(), 0) + self.log_volume + dims * math.log(COARSE)
        return float((coarse - self.log_total(log_p)).abs().max())

    def masses(self, log_p: Tensor) -> Tensor:
        """The normalised probability of each bin, (bins,), float64."""
        p = torch.softmax(log_p.double(), 0)
        return torch.zeros(self.bins, dtype=p.dtype, device=p.device).index_add_(0, self.bin, p)

    def draw(self, log_p: Tensor, n: int) -> Tensor:
        """n draws from exp(log_p), normalised, (n, *shape); on a grid evenly within the cells."""
        table = torch.softmax(log_p.double(), 0).cumsum(0)
        u = torch.rand(n, dtype=table.dtype, device=table.device) * table[-1]
        x = self.points[torch.searchsorted(table, u).clamp(max=len(table) - 1)]
        if self.sides is None:
            return x
        return x + ((torch.rand(n, len(self.sides), device=x.device) - 0.5) * self.sides).view_as(x)


def discrete(shape: tuple[int, ...], levels: int, dtype: torch.dtype = torch.float32) -> Space:
    """All levels^D examples of `shape` with D elements in 0…levels-1; element i is digit i of the index.

    >>> discrete((2,), 3).points[5]
    tensor([2., 1.])
    """
    size = math.prod(shape)
    place = levels ** torch.arange(size)
    index = torch.arange(levels**size)
    points = (index[:, None] // place % levels).to(dtype).view(-1, *shape)

    def locate(x: Tensor) -> Tensor:
        digits = x.flatten(1)
        inside = ((digits == digits.round()) & (digits >= 0) & (digits < levels)).all(1)
        return torch.where(inside, (digits.nan_to_num().long() * place.to(x.device)).sum(1), -1)

    return Space(points, 0.0, index, len(index), locate, levels=levels)


def grid(low: Tensor, high: Tensor, shape: tuple[int, ...], bins: int, cells: int) -> Space:
    """The midpoints of a grid over the box from `low` to `high`, (D,) each with D of 1 or 2.

    Args:
        shape: of one example, with D elements. bins: along an axis. cells: points along an axis of a bin, a multiple
            of `COARSE`.
    """
    dims, side = len(low), bins * cells
    ticks = (torch.arange(side, device=low.device) + 0.5) / side
    axes = [lo + (hi - lo) * ticks for lo, hi in zip(low, high, strict=True)]
    points = torch.cartesian_prod(*axes).view(-1, *shape)
    place = bins ** torch.arange(dims - 1, -1, -1, device=low.device)
    number = torch.cartesian_prod(*[torch.arange(side, device=low.device)] * dims).view(-1, dims)
    centre = (number % COARSE == COARSE // 2).all(1)

    def locate(x: Tensor) -> Tensor:
        along = ((x.flatten(1) - low) / (high - low) * bins).floor()
        inside = ((along >= 0) & (along < bins)).all(1)
        return torch.where(inside, (along.nan_to_num().long() * place).sum(1), -1)

    volume = float(((high - low) / side).double().log().sum())
    return Space(
        points,
        volume,
        (number // cells * place).sum(1),
        bins**dims,
        locate,
        coarse=torch.nonzero(centre).flatten(),
        sides=(high - low) / side,
    )


def around(draws: Tensor, cells: int | None = None, beyond: float = 0.5) -> Space | str:
    """A grid over where `draws` (n, *shape) lie and `beyond`, on either side, by that share of their range.

    `cells` points along an axis of a bin; None are enough for densities that are not smooth. Or in words, why there is
    no grid.
    """
    flat = draws.flatten(1)
    if flat.shape[1] > 2:
        return f"{flat.shape[1]} real dimensions are too many for a grid, 2 at most"
    low, high = flat.min(0).values, flat.max(0).values
    margin = beyond * (high - low) + 1e-3
    return grid(low - margin, high + margin, tuple(draws.shape[1:]), *_fineness(flat.shape[1], cells))


def codes_around(model: LatentVariable, draws: Tensor, cells: int | None = None, beyond: float = 0.5) -> Space | str:
    """All codes of a model whose codes are bits; of others a grid over where `draws` (n, *code) lie, as of `around`."""
    if not isinstance(model, BinaryLatent):
        return around(draws, cells, beyond)
    bits = draws[0].numel()
    if 1 << bits > CODES:
        return f"{bits} bits are too many to sum over, {CODES.bit_length() - 1} at most"
    return _on(discrete(tuple(draws.shape[1:]), 2, draws.dtype), draws)


def _fineness(dims: int, cells: int | None = None) -> tuple[int, int]:
    """Bins along an axis, and points along an axis of a bin."""
    return (20, cells or 18) if dims == 2 else (100, cells or 36)


@torch.no_grad()
def space_of(model: Generative, levels: int | None, like: Tensor) -> Space | str:
    """All of the space that the model's x lives in, on the device and of the type of `like`, or why there is none."""
    size = math.prod(model.shape)
    if model.support in ("binary", "levels", "tokens"):
        count = 2 if model.support == "binary" else levels or 2
        if size * math.log2(count) > math.log2(STATES):
            return f"{count}^{size} states are too many to list"
        return _on(discrete(tuple(model.shape), count, like.dtype), like)
    if model.support == "real" or size > 2:
        cells = None
        if isinstance(model, ContinuousFlow):  # smooth, and many evaluations for each point, and label
            cells = 3 if isinstance(model, Conditional) and model.classes else 6
        return around(torch.cat([model.sample(4000).to(like), like]), cells)
    low = torch.full((size,), 0.0 if model.support == "unit" else -1.0, device=like.device)
    return grid(low, torch.ones_like(low), tuple(model.shape), *_fineness(size))


def _on(space: Space, like: Tensor) -> Space:
    """A discrete space on the device of `like`."""
    return replace(space, points=space.points.to(like), bin=space.bin.to(like.device))


@torch.no_grad()
def over(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x) a chunk at a time."""
    return torch.cat([function(piece) for piece in x.split(CHUNK)])


class AtLabel(LatentVariable):
    """A conditional model with its label held fixed: a model of x alone, for what is known of those."""

    def __init__(self, model: LatentVariable, label: int):
        super().__init__()
        self.model, self.label = model, label
        self.shape, self.support = model.shape, model.support

    def _to(self, n: int) -> dict[str, Tensor]:
        return {"y": torch.full((n,), self.label, device=self.model.device)}

    @property
    def prior(self) -> Distribution:
        return self.model.prior

    def encode(self, x: Tensor) -> Distribution:
        return self.model.encode(x, **self._to(len(x)))

    def decode(self, z: Tensor) -> Distribution:
        return self.model.decode(z, **self._to(len(z)))

    def sample(self, n: int) -> Tensor:
        return self.model.sample(n, **self._to(n))


@torch.no_grad()
def exact_log_prob(model: Generative, space: Space) -> Tensor | str:
    """log p at every point of the space, (M,), by whatever the model knows of it, or in words why that is unknown.

    log_prob itself; or -F up to a constant; or, with a code of one or two dimensions, ∫ p(x|z) p(z) dz, of a
    conditional model its mean over the labels.
    """
    if isinstance(model, Density | ContinuousFlow):
        return over(model.log_prob, space.points)
    if isinstance(model, EnergyBased):
        log_p = -over(model.free_energy, space.points)
        return log_p.double() - space.log_total(log_p)
    if isinstance(model, LatentVariable):
        labels = range(model.classes) if isinstance(model, Conditional) and model.classes else ()
        total = []
        for one in [AtLabel(model, label) for label in labels] or [model]:
            found = quadrature(one, space.points)
            if isinstance(found, str):
                return found
            total.append(found.log_p)
        return torch.logsumexp(torch.stack(total), 0) - math.log(len(total))
    return "the model knows no probability of x"


@dataclass(frozen=True)
class Integral:
    """log ∫ p(x, z) dz in nats, (B,), off by at most `unsure`; log p(x, z) at the points z of `codes`, (M, B).

    The latter is empty for more than `FEW` examples, where it would not fit.
    """

    log_p: Tensor
    unsure: float
    codes: Space
    log_joint: Tensor


FEW = 100
"""Examples whose integrals are taken finely enough for comparisons, and kept point by point."""


@torch.no_grad()
def quadrature(model: LatentVariable, x: Tensor) -> Integral | str:
    """∫ p(x|z) p(z) dz for each of x (B, *shape), in float64, or in words why it can't be had.

    By the midpoint rule, which converges faster than any power of the step for a smooth integrand with light tails.
    Where codes are bits it is their sum.
    """
    draws = model.prior.sample(torch.Size([20_000]))
    for cells in (6, 18):
        codes = codes_around(model, draws, cells, beyond=0.25)
        if isinstance(codes, str):
            return f"codes of {codes}"
        found = _integrate(model, x, codes)
        if found.unsure < (SHARP / 10 if len(x) <= FEW else SHARP):
            break
    return "p(x|z) is too sharp for a grid of codes" if found.unsure > SHARP else found


def _integrate(model: LatentVariable, x: Tensor, codes: Space) -> Integral:
    """The sum over the codes, a chunk of them at a time, and how much it differs from that over the coarser grid."""
    prior, points, total, coarser, kept = model.prior, codes.points, [], [], []
    on_coarse = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    if codes.coarse is not None:
        on_coarse[codes.coarse] = True
    for z, also in zip(points.split(CHUNK), on_coarse.split(CHUNK), strict=True):
        p, log_prior = model.decode(z), prior.log_prob(z).double()
        log_joint = torch.stack([p.log_prob(v.expand(len(z), *v.shape)).double() + log_prior for v in x], 1)
        total.append(torch.logsumexp(log_joint, 0))
        coarser.append(torch.logsumexp(log_joint[also], 0))
        kept += [log_joint] if len(x) <= FEW else []
    fine = torch.logsumexp(torch.stack(total), 0) + codes.log_volume
    coarse = torch.logsumexp(torch.stack(coarser), 0) + codes.log_volume + points[0].numel() * math.log(COARSE)
    unsure = 0.0 if codes.coarse is None else float((fine - coarse).abs().max())
    return Integral(fine, unsure, codes, torch.cat(kept) if kept else torch.empty(0))


def chi_square(observed: Tensor, expected: Tensor) -> tuple[float, int]:
    """Pearson's statistic of counts (cells,) and its degrees of freedom; cells expecting fewer than 5 are one cell.

    >>> chi_square(torch.tensor([8, 12]), torch.tensor([10.0, 10.0]))
    (0.8, 1)
    """
    observed, expected = observed.double(), expected.double()
    rare = expected < 5
    if rare.any():
        observed = torch.cat([observed[~rare], observed[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    kept = expected > 0
    if observed[~kept].sum() > 0:
        return math.inf, 1
    observed, expected = observed[kept], expected[kept]
    return round(float(((observed - expected) ** 2 / expected).sum()), 9), max(len(expected) - 1, 1)


def critical(freedom: int, p: float = IMPROBABLE) -> float:
    """What a chi-square variable exceeds with probability p.

    >>> round(critical(10, 0.05), 3)
    18.307
    """
    half = torch.tensor(freedom / 2, dtype=torch.float64)
    low, high = 0.0, 10.0 * freedom + 100.0
    for _ in range(60):
        middle = (low + high) / 2
        above = float(torch.special.gammaincc(half, torch.tensor(middle / 2, dtype=torch.float64))) > p
        low, high = (middle, high) if above else (low, middle)
    return high


def follow(draws: Tensor, space: Space, log_p: Tensor) -> tuple[float, float, str]:
    """The chi-square statistic of `draws` against exp(log_p) on `space`, its critical value, and both in words."""
    where = space.locate(draws)
    outside = int((where < 0).sum())
    mass = space.masses(log_p)
    strangers = outside if space.levels is not None else 0  # beyond a grid lies a part in thousands; no state is beyond
    observed = torch.bincount(where[where >= 0], minlength=space.bins)
    statistic, freedom = chi_square(observed, mass * int(observed.sum()))
    statistic = math.inf if strangers or outside > len(draws) // 100 else statistic
    return statistic, critical(freedom), f"chi-square of {len(draws):,} draws, {freedom} degrees of freedom"


def sigmas(estimates: Tensor, truth: Tensor, floor: float = 0.0) -> float:
    """The largest distance of a mean over axis 0 of `estimates` (R, …) from `truth` (…), in standard errors.

    `floor` is added to the errors: what rounding may do.
    """
    estimates = estimates.double()
    error = estimates.std(0) / len(estimates) ** 0.5 + floor + 1e-6 * truth.double().abs()
    return float(((estimates.mean(0) - truth.double()).abs() / error).max())
