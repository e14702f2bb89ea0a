"""Images one pixel after another, from the top left corner to the bottom right: what all such models share.

    log p(x) = Σ_i Σ_j Σ_c log p(x_cij | pixels before (i, j), channels before c of pixel (i, j))

A model gives the raw parameters of all pixels at once (`raw`, for training) and, to sample, those of one pixel after
the other from a `Cache` of what it has computed already. A `Head` makes distributions of raw parameters.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from gentrain.errors import UsageError
from gentrain.models import likelihoods
from gentrain.models.autoregressive import law, require_first
from gentrain.models.base import Autoregressive, Conditions, Law, StartsFromMean
from gentrain.types import Support


class Head(nn.Module, ABC):
    """From a network's raw numbers of a pixel to a distribution over the values of its channels.

    Attributes:
        shape: of one example, (C, H, W). outputs: raw numbers a pixel; their order is the head's. support: of x.

    Class attributes:
        tolerance: a draw is doubtful if its parameters need to change by no more than this, relative to 1 + the largest
            of them, to give another value. Rounding changes logits of trained networks by a millionth.
    """

    tolerance: ClassVar[float] = 3e-5

    shape: tuple[int, int, int]
    outputs: int
    support: Support

    @abstractmethod
    def network_input(self, x: Tensor) -> Tensor:
        """x as a network likes it: floats of order one."""

    @abstractmethod
    def parameters_of(self, raw: Tensor, x: Tensor, at: tuple[slice, slice]) -> Tensor:
        """Parameters (B, P, C, h, w) of the conditionals of x (B, C, h, w), the window `at` of images.

        Those of channel c are functions of raw (B, outputs, h, w) and of the channels before c of the same pixel.
        """

    @abstractmethod
    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """log p of every element of x (B, C, h, w) in nats, (B, C, h, w)."""

    @abstractmethod
    def noise(self, parameters: Tensor) -> Tensor:
        """Random numbers for `draw`: how many and of which kind depends on the shape of `parameters` (B, P) alone."""

    @abstractmethod
    def draw(self, parameters: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Values (B,) of one element, and by how much (B,) a parameter must change before a value does."""

    @abstractmethod
    def start_from_mean(self, mean: Tensor) -> None:
        """Set the biases such that raw = 0 gives `mean`, (C, H, W) in `support`."""


class LikelihoodHead(Head):
    """Bits or one of K levels, from logits: `bernoulli` and `categorical` of gentrain.models.likelihoods.

    raw is (B, P * C, h, w) with P logits for each channel, P the slower index; a bias for each element is added, which
    lets training start at the mean image.
    """

    def __init__(self, likelihood: likelihoods.BernoulliLikelihood | likelihoods.CategoricalLikelihood):
        super().__init__()
        self.likelihood = likelihood
        channels, height, width = likelihood.shape
        self.shape = (channels, height, width)
        self.outputs, self.support = likelihood.per_element * channels, likelihood.support

    def network_input(self, x: Tensor) -> Tensor:
        return self.likelihood.network_input(x)

    def parameters_of(self, raw: Tensor, x: Tensor, at: tuple[slice, slice]) -> Tensor:
        bias = self.likelihood.bias.view(-1, *self.shape)[..., at[0], at[1]]
        return raw.view(len(raw), -1, self.shape[0], *raw.shape[2:]) + bias

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        return self.likelihood.elements(parameters).log_prob(x)

    def noise(self, parameters: Tensor) -> Tensor:
        # -log E is a Gumbel variable, and the difference of two a logistic one: logits + noise decide (Gumbel-max).
        # Exponential draws are fine-grained near zero, where the unlikely values are decided.
        count = max(2, parameters.shape[1])
        gumbel = -torch.empty(len(parameters), count, device=parameters.device).exponential_().log_()
        return gumbel if parameters.shape[1] > 1 else gumbel[:, :1] - gumbel[:, 1:]

    def draw(self, parameters: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        score = parameters + noise
        if parameters.shape[1] == 1:
            return score[:, 0] > 0, score[:, 0].abs()
        best, where = score.topk(2, 1)
        return where[:, 0], best[:, 0] - best[:, 1]

    def start_from_mean(self, mean: Tensor) -> None:
        self.likelihood.start_from_mean(mean)


def choose(name: str, shape: tuple[int, ...], levels: int | None, over_levels: str) -> tuple[str, int]:
    """The likelihood that `name` says, and K: `auto` is bernoulli for two levels or one channel (binarized), else
    `over_levels`.

    Raises:
        UsageError: examples that are no images, or have no levels.
    """
    if len(shape) != 3:
        raise UsageError(f"the model takes images, and one example here has shape {list(shape)}; use e.g. data=digits")
    if levels is None:
        raise UsageError("the model takes bits or levels, and these data are real numbers; use e.g. data=digits")
    if name == "auto":
        name = "bernoulli" if levels == 2 or shape[0] == 1 else over_levels
    return name, levels


def choose_head(name: str, shape: tuple[int, ...], levels: int | None) -> LikelihoodHead:
    """`bernoulli`, `categorical`, or `auto`, as `choose` has it."""
    name, levels = choose(name, shape, levels, "categorical")
    likelihood = likelihoods.choose(name, tuple(shape), levels)
    assert isinstance(likelihood, likelihoods.BernoulliLikelihood | likelihoods.CategoricalLikelihood)
    return LikelihoodHead(likelihood)


class Cache(ABC):
    """What a model keeps of the pixels that are drawn, such that the next costs only what is new.

    It reads the canvas, (B, C, H, W), that it was made with. `row(i)` comes before the pixels of row i, when all above
    are drawn; `pixel(i, j)` when all before (i, j) are and, of that pixel itself, the channels so far.
    """

    def row(self, i: int) -> None:  # noqa: B027 -- most have something to do here, not all
        """All rows above i are drawn."""

    @abstractmethod
    def pixel(self, i: int, j: int) -> Tensor:
        """The raw parameters of pixel (i, j), (B, outputs)."""


class Recompute(Cache):
    """No cache: the whole image anew for every pixel. What the others are measured against."""

    def __init__(self, model: Raster, x: Tensor, y: Tensor | None):
        self.model, self.x, self.y = model, x, y

    def pixel(self, i: int, j: int) -> Tensor:
        return self.model.raw(self.model.head.network_input(self.x), self.y)[:, :, i, j]


class Raster(Autoregressive, Conditions, StartsFromMean):
    """An image model in raster order. A subclass sets `head` and `shape` and gives `raw` and, if it has one, `cache`.

    With `classes` set (and `Conditional` among its bases) everything takes labels y (B,); without them `log_prob` is
    the even mixture's.

    Class attributes:
        masks_channels: raw parameters of a channel depend on the channels before it by masks, and so are computed anew
            for every channel that is drawn; otherwise channels meet in the head only.
    """

    masks_channels: ClassVar[bool] = True
    shape: tuple[int, int, int]
    head: Head
    classes: int | None = None

    @abstractmethod
    def raw(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        """Raw parameters (B, head.outputs, H, W) from `head.network_input(x)`, (B, C, H, W)."""

    def cache(self, x: Tensor, y: Tensor | None) -> Cache:
        """A cache for drawing on the canvas x (B, C, H, W), whose values above row 0 don't exist."""
        return Recompute(self, x, y)

    @property
    def order(self) -> Tensor:
        """Pixel by pixel, the channels of one together."""
        return torch.arange(math.prod(self.shape)).view(self.shape).permute(1, 2, 0).flatten()

    def parameters_of(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Parameters of the conditionals, (B, P, C, H, W).

        Raises:
            UsageError: the model is conditional and there are no labels: a mixture has no parameters of this kind.
        """
        if self.classes is not None and y is None:
            raise UsageError(f"{type(self).__name__} is conditional: its conditionals are those given labels y")
        raw = self.raw(self.head.network_input(x), y)
        return self.head.parameters_of(raw, x, (slice(None), slice(None)))

    def conditionals(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.parameters_of(x, y).flatten(2).transpose(1, 2)

    def element_log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """log p of every element given those before it in nats, (B, C, H, W)."""
        return self.head.log_prob(self.parameters_of(x, y), x)

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        if self.classes is None or y is not None:
            return self.element_log_prob(x, y).flatten(1).sum(1)
        each = [self.log_prob(x, torch.full((len(x),), k, device=x.device)) for k in range(self.classes)]
        return torch.logsumexp(torch.stack(each), 0) - math.log(self.classes)

    def sample(self, n: int, y: Tensor | None = None, cached: bool = True) -> Tensor:
        """Draw n examples, (n, *shape). `cached=False` gives the same ones bit for bit, at the cost of a whole image a
        pixel."""
        dtype = torch.float32 if self.head.support == "binary" else torch.int64
        x = torch.zeros(n, *self.shape, dtype=dtype, device=self.device)
        if self.classes is not None and y is None:
            y = torch.randint(self.classes, (n,), device=self.device)
        return self._draw(x, torch.zeros_like(x, dtype=torch.bool), y, cached)

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor, y: Tensor | None = None, cached: bool = True) -> Tensor:
        """What is missing is drawn in raster order given what is known *before* it.

        That is p(missing | known) where all that is known comes first (the upper half of an image, say); what is known
        further on is kept and not anticipated. Without labels y a conditional model draws them given the known values
        before the first missing one.
        """
        x = torch.where(known, x, torch.zeros_like(x))
        if self.classes is not None and y is None:
            y = self._label(x, known)
        return self._draw(x, known, y, cached)

    def completion(self, known: Tensor) -> Law:
        return law(self.order.to(known.device), known)

    def log_conditional(self, x: Tensor, known: Tensor, y: Tensor | None = None) -> Tensor:
        """Without labels y a conditional model's is that of the even mixture."""
        require_first(self, known)
        if self.classes is None or y is not None:
            return self.element_log_prob(x, y).masked_fill(known, 0).flatten(1).sum(1)
        joint, seen = [], []
        for k in range(self.classes):
            log_p = self.element_log_prob(x, torch.full((len(x),), k, device=x.device))
            joint.append(log_p.flatten(1).sum(1))
            seen.append(log_p.masked_fill(~known, 0).flatten(1).sum(1))
        return torch.logsumexp(torch.stack(joint), 0) - torch.logsumexp(torch.stack(seen), 0)

    def _label(self, x: Tensor, known: Tensor) -> Tensor:
        """y ~ p(y | the known elements before the first missing one), (B,)."""
        assert self.classes is not None
        order = self.order.to(x.device)
        first = known.flatten(1)[:, order].cumprod(1)
        logits = []
        for k in range(self.classes):
            log_p = self.element_log_prob(x, torch.full((len(x),), k, device=x.device)).flatten(1)
            logits.append((log_p[:, order] * first).sum(1))
        return torch.distributions.Categorical(logits=torch.stack(logits, 1)).sample()

    @torch.no_grad()
    def _draw(self, x: Tensor, known: Tensor, y: Tensor | None, cached: bool) -> Tensor:
        """Fill x in, in place, where it isn't known.

        A cache does the same sums in another order, so its parameters differ in the last digits. A draw that such a
        difference might alter (one in ten thousands) is made again from the whole image: so images are the same bit for
        bit with and without a cache.
        """
        channels, height, width = self.shape
        whole = Recompute(self, x, y)
        cache = self.cache(x, y) if cached else whole
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            for i in range(height):
                cache.row(i)
                for j in range(width):
                    raw = torch.empty(0)
                    for c in range(channels):
                        if c == 0 or self.masks_channels:
                            raw = cache.pixel(i, j)
                        parameters = self._at(raw, x, i, j)[:, :, c]
                        noise = self.head.noise(parameters)
                        value, margin = self.head.draw(parameters, noise)
                        doubtful = margin < self.head.tolerance * (1 + parameters.abs().amax(1))
                        if cached and bool((doubtful & ~known[:, c, i, j]).any()):
                            value, _ = self.head.draw(self._at(whole.pixel(i, j), x, i, j)[:, :, c], noise)
                        x[:, c, i, j] = torch.where(known[:, c, i, j], x[:, c, i, j], value.to(x.dtype))
        return x

    def _at(self, raw: Tensor, x: Tensor, i: int, j: int) -> Tensor:
        """The parameters (B, P, C) of pixel (i, j) from its raw numbers (B, outputs)."""
        at = (slice(i, i + 1), slice(j, j + 1))
        return self.head.parameters_of(raw[:, :, None, None], x[:, :, *at], at)[..., 0, 0]

    def start_from_mean(self, mean: Tensor) -> None:
        self.head.start_from_mean(mean)
