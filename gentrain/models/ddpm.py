"""Denoising diffusion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from gentrain.errors import UsageError
from gentrain.models.base import Conditional, Denoises, Onto, Restores, evenly
from gentrain.models.diffusion import Chain, Diffuses, DiscretizedNormal, Schedule, Variance, independent_normal, over
from gentrain.models.labels import checked
from gentrain.models.standard import Standardised
from gentrain.models.timed import Kind
from gentrain.models.timed import network as _network
from gentrain.types import Fraction, NonNegativeFloat, OpenFraction, PositiveInt, Shape


class DDPM(Diffuses, Standardised, Conditional, Restores, Denoises):
    """p(x_{t-1}|x_t) = N(μ(x_t, t), σ_t² I) from x_T ~ N(0, I), where μ is the mean of q(x_{t-1}|x_t, x_0) for the x_0
    that a network predicts (Ho et al. 2020, arXiv:2006.11239).

    Of an image's levels, on [-1, 1], p(x|x_1) is a Gaussian in bins; of reals, in the unit of their standard
    deviation, a Gaussian. What is predicted for x_0 is clipped to the range of an image. A sample's last step is
    without noise: the mean of p(x|x_1).

    The defaults are not the first paper's: on small images and after little training a cosine schedule with v gives
    better samples, a linear one with ε the better bound.

    `complete` replaces what is known at each step by a draw from q(x_t|x) and goes back and forth between two times so
    that the rest comes to suit it (RePaint: Lugmayr et al. 2022, arXiv:2201.09865): an approximation of p(missing |
    known), the nearer the more it goes. `restore` does so for what a linear map shows. `denoise` predicts x_0 at the
    time whose noise comes nearest. A conditional model does all of it without a label, which it has to have learned.

    Args:
        shape: of one example.
        levels: number of values an element can take in the data, None for reals.
        steps: T.
        schedule: `linear` (Ho et al.) or `cosine` (Nichol & Dhariwal 2021, arXiv:2102.09672).
        predict: the network's output: `epsilon`, the noise; `v` = √ᾱ ε - √(1-ᾱ) x (Salimans & Ho 2022,
            arXiv:2202.00512); or `x0`.
        variance: σ_t², see `Chain`; None is `posterior` for levels and `beta` for reals, whose density is smooth where
            the noise is small, so that x_{t-1} is no better known than that.
        sampler: `ancestral` draws from p(x_{t-1}|x_t); `ddim` from the chain with `eta` times its noise (Song et al.
            2021, arXiv:2010.02502).
        sample_steps: times at which a sample is taken, evenly over 1…T; None is all.
        eta: of `ddim`; 0 makes x a function of x_T.
        guidance: s of ε = ε_∅ + s (ε_y - ε_∅), of a conditional model (Ho & Salimans 2022, arXiv:2207.12598, with
            s = 1 + w): 0 leaves the label out, 1 is p(x|y), more exaggerates it.
        resamples: times that `complete` takes each of its `sample_steps`.
        network, hidden, channels, multipliers, blocks, attention, patch, dropout: see `gentrain.models.timed.network`.
        conditional: whether the model is of p(x|y).
        classes: number of labels in the data. The attribute of that name is None of a model that isn't conditional.

    Raises:
        UsageError: the network doesn't fit the shape, or options don't go together; by `bound`, x are no levels.

    >>> model = DDPM((1, 8, 8), levels=17, steps=10, sample_steps=5, channels=8)
    >>> x = model.sample(2)
    >>> model.support, x.shape, model.bound(x.sign()).shape
    ('signed', torch.Size([2, 1, 8, 8]), torch.Size([2]))
    """

    sampling = ("sampler", "sample_steps", "eta", "guidance", "resamples")

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        steps: PositiveInt = 1000,
        schedule: Schedule = "cosine",
        predict: Literal["epsilon", "v", "x0"] = "v",
        variance: Variance | None = None,
        sampler: Literal["ancestral", "ddim"] = "ddim",
        sample_steps: PositiveInt | None = 50,
        eta: Fraction = 0.0,
        guidance: NonNegativeFloat = 1.0,
        resamples: PositiveInt = 5,
        network: Kind = "auto",
        hidden: Sequence[PositiveInt] = (128, 128, 128),
        channels: PositiveInt | None = None,
        multipliers: Sequence[PositiveInt] | None = None,
        blocks: PositiveInt = 1,
        attention: bool = False,
        patch: PositiveInt = 1,
        dropout: OpenFraction = 0.0,
        conditional: bool = False,
        classes: PositiveInt | None = None,
    ):
        super().__init__(shape, each=False)
        if conditional and classes is None:
            raise UsageError("model.conditional=true needs labels, and these data have none")
        if guidance != 1 and not conditional:
            raise UsageError(f"model.guidance={guidance:g} is towards a label; it needs model.conditional=true")
        if eta and sampler == "ancestral":
            raise UsageError(f"model.eta={eta:g} is of model.sampler=ddim; the ancestral sampler has noise of its own")
        if sample_steps is not None and sample_steps > steps:
            raise UsageError(
                f"model.sample_steps={sample_steps}: the chain has model.steps={steps}; take as many at most"
            )
        self.support = "real" if levels is None else "signed"
        self.levels, self.steps, self.predict = levels, steps, predict
        self.models_levels = levels is not None
        self.sampler, self.eta, self.guidance, self.resamples = sampler, eta, guidance, resamples
        self.sample_steps = sample_steps or steps
        self.classes = classes if conditional else None
        self.chain = Chain(schedule, steps, variance or ("beta" if levels is None else "posterior"))
        self.network = _network(
            network,
            self.shape,
            self.classes,
            hidden=hidden,
            channels=channels,
            multipliers=multipliers,
            blocks=blocks,
            attention=attention,
            patch=patch,
            dropout=dropout,
        )

    def standardise(self, mean: Tensor, deviation: Tensor) -> None:
        if self.support == "real":
            super().standardise(mean, deviation)

    def _inward(self, x: Tensor) -> Tensor:
        return self.inward(x).view(-1, *self.shape) if self.support == "real" else x

    def noised(self, x: Tensor, t: Tensor, epsilon: Tensor) -> Tensor:
        return self.chain.noised(self._inward(x), t, epsilon)

    def snr(self, t: Tensor) -> Tensor:
        return self.chain.snr[t]

    @property
    def proposal(self) -> Tensor:
        return self.chain.proposal

    def error(self, x: Tensor, t: Tensor, epsilon: Tensor, y: Tensor | None = None) -> Tensor:
        found = self.network(self.noised(x, t, epsilon), t / self.steps, y)
        return (found - self.target(x, t, epsilon)).square().flatten(1).mean(1)

    def target(self, x: Tensor, t: Tensor, epsilon: Tensor) -> Tensor:
        """What the network is to predict, (B, *shape)."""
        if self.predict == "epsilon":
            return epsilon
        x = self._inward(x)
        if self.predict == "x0":
            return x
        return over(self.chain.signal[t], x) * epsilon - over(self.chain.noise[t], x) * x

    def share(self, t: Tensor) -> Tensor:
        snr = self.chain.snr[t]
        return {"epsilon": 1 / snr, "v": 1 / (1 + snr), "x0": torch.ones_like(snr)}[self.predict]

    def denoised(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, guidance: float = 1.0, clip: bool = True
    ) -> Tensor:
        """The x_0 predicted from x_t = x, in the chain's own unit, (B, *shape)."""
        found = self._guided(x, t / self.steps, y, guidance)
        signal, noise = over(self.chain.signal[t], x), over(self.chain.noise[t], x)
        if self.predict == "epsilon":
            found = (x - noise * found) / signal
        elif self.predict == "v":
            found = signal * x - noise * found
        return found.clamp(-1, 1) if clip and self.support == "signed" else found

    def _guided(self, x: Tensor, t: Tensor, y: Tensor | None, guidance: float) -> Tensor:
        """Every prediction is linear in x_0, so all can be guided alike."""
        if y is None or guidance == 0:
            return self.network(x, t)
        if guidance == 1:
            return self.network(x, t, y)
        none = torch.full_like(y, self.classes or 0)
        without, with_label = self.network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([none, y])).chunk(2)
        return without + guidance * (with_label - without)

    def term(self, x: Tensor, t: Tensor, epsilon: Tensor, y: Tensor | None = None, clip: bool = True) -> Tensor:
        chain = self.chain
        found, own = self.denoised(self.noised(x, t, epsilon), t, y, clip=clip), self._inward(x)
        kl = over(chain.weight[t], x) * (own - found).square() + over(chain.constant[t], x)
        return torch.where(t == 1, -self._decoder(found).log_prob(x), kl.flatten(1).sum(1))

    def _decoder(self, mean: Tensor) -> Distribution:
        """p(x|x_1) for its mean in the chain's unit."""
        if self.levels is not None:
            return Independent(DiscretizedNormal(mean, self.chain.deviation[1], self.levels), len(self.shape))
        scale = self.scale.view(self.shape)
        return independent_normal(self.outward(mean.flatten(1)), self.chain.deviation[1] * scale)

    def forth(self, x: Tensor, t: int) -> Distribution:
        return independent_normal(*self.chain.onwards(self._inward(x) if t == 1 else x, t - 1, t))

    def back(self, x: Tensor, t: int, y: Tensor | None = None) -> Distribution:
        found = self.denoised(x, torch.full((len(x),), t, device=x.device), y)
        if t == 1:
            return self._decoder(found)
        return independent_normal(self.chain.towards(x, found, t, t - 1, eta=1.0), self.chain.deviation[t])

    def bound(self, x: Tensor, y: Tensor | None = None, draws: int | None = None) -> Tensor:
        if self.levels is not None:
            level = (x + 1) / 2 * (self.levels - 1)
            if not bool(((level - level.round()).abs() < 1e-3).all()):
                raise UsageError(
                    "DDPM bounds the probability of levels, and these are dequantized: leave data.dequantize out"
                )
        return super().bound(x, y, draws)

    def prior_term(self, x: Tensor) -> Tensor:
        return self.chain.prior_term(self._inward(x))

    @property
    def times(self) -> list[int]:
        """T, …, 0: the times that sampling goes through."""
        return [round(self.steps * (1 - i / self.sample_steps)) for i in range(self.sample_steps + 1)]

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """n draws, of p(x|y) for labels y (n,); a conditional model draws these evenly if there are none."""
        y = evenly(self, n).get("y") if y is None else checked(self, y, n)
        x = torch.randn(n, *self.shape, device=self.device)
        eta = self.eta if self.sampler == "ddim" else 1.0
        for t, s in pairwise(self.times):
            x = self._step(x, t, s, y, eta)
        return self._outward(x)

    def _step(self, x: Tensor, t: int, s: int, y: Tensor | None, eta: float) -> Tensor:
        """A draw of x_s given x_t = x; for s = 0 the mean."""
        times = torch.full((len(x),), t, device=x.device)
        mean = self.chain.towards(x, self.denoised(x, times, y, self.guidance), t, s, eta)
        if s == 0 or eta == 0:
            return mean
        variance = self.chain.variance if self.sampler == "ancestral" else "posterior"
        return mean + eta * self.chain.backward_deviation(t, s, variance) * torch.randn_like(x)

    def _outward(self, x: Tensor) -> Tensor:
        return self.outward(x.flatten(1)) if self.support == "real" else x.clamp(-1, 1)

    @torch.no_grad()
    def restore(self, x: Tensor, onto: Onto) -> Tensor:
        self.network.require_unlabelled()
        given = self._inward(x)
        filled = torch.randn_like(given)
        for t, s in pairwise(self.times):
            last = s == 0
            for i in range(1 if last else self.resamples):
                if i > 0:
                    filled = self._forth(filled, s, t)
                drawn = self._step(filled, t, s, None, eta=1.0)
                wanted = given if last else self._forth(given, 0, s)
                filled = self.agreeing(drawn.flatten(1), wanted.flatten(1), onto).view_as(drawn)
        return self.settled(self._outward(filled), x, onto)

    @torch.no_grad()
    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        self.network.require_unlabelled()
        own = sigma if self.support == "signed" else sigma / float(self.scale[0])  # every element has the same scale
        t = 1 + int((self.chain.snr[1:].log() + 2 * math.log(own)).abs().argmin())
        seen = self.chain.signal[t] * self._inward(x)
        return self._outward(self.denoised(seen, torch.full((len(x),), t, device=x.device)))

    def _forth(self, x: Tensor, s: int, t: int) -> Tensor:
        """A draw from q(x_t|x_s = x)."""
        mean, deviation = self.chain.onwards(x, s, t)
        return mean + deviation * torch.randn_like(mean)
