"""InfoGAN: a generator some of whose codes can be read off its examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, OneHotCategorical, Uniform, constraints

from gentrain.errors import UsageError
from gentrain.models.auxiliary import Auxiliary, Form, TwoHeads
from gentrain.models.base import Categorises, Codes, Factors
from gentrain.models.layers import DiagonalNormal, mlp
from gentrain.models.players import leaky
from gentrain.types import NonNegativeInt, PositiveFloat, PositiveInt, Shape


class FactorPrior(Distribution):
    """z = (noise, categories, numbers): N(0, I), one-hot vectors, and U(-1, 1), independent.

    Its density is with respect to counting where z is categorical and to length elsewhere.

    Args:
        noise: dimensions of it. categories: K of each category, with even chances, or its chances, (K,), up to a
            factor. numbers: how many. like: a tensor, for its device.

    >>> prior = FactorPrior(1, [2], 1, torch.zeros(()))
    >>> prior.sample((3,)).shape, prior.log_prob(torch.tensor([0.0, 0, 1, 0.5]))  # -½ log 2π - log 2 - log 2
    (torch.Size([3, 4]), tensor(-2.3052))
    """

    arg_constraints = {}  # type: ignore[assignment]  # noqa: RUF012

    def __init__(self, noise: int, categories: Sequence[int | Tensor], numbers: int, like: Tensor):
        chances = [like.new_ones(k) if isinstance(k, int) else k for k in categories]
        self.lengths = [noise, *map(len, chances), numbers]
        zero, one = like.new_zeros(1), like.new_ones(1)
        self.blocks: list[Distribution] = [
            Independent(Normal(zero.expand(noise), one.expand(noise), validate_args=False), 1, validate_args=False),
            *(OneHotCategorical(p, validate_args=False) for p in chances),
            Independent(
                Uniform(-one.expand(numbers), one.expand(numbers), validate_args=False), 1, validate_args=False
            ),
        ]
        super().__init__(event_shape=torch.Size([sum(self.lengths)]), validate_args=False)

    @property
    def support(self):  # type: ignore[override]
        return constraints.cat([b.support for b in self.blocks], -1, self.lengths)

    @property
    def mean(self) -> Tensor:
        return torch.cat([b.mean for b in self.blocks])

    @property
    def variance(self) -> Tensor:
        return torch.cat([b.variance for b in self.blocks])

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        return torch.cat([b.sample(torch.Size(sample_shape)) for b in self.blocks], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        parts = zip(self.blocks, value.split(self.lengths, -1), strict=True)
        return torch.stack([b.log_prob(part) for b, part in parts]).sum(0)


class InfoGAN(Auxiliary, Categorises, Factors, Codes):
    """x = G(z) with z = (noise, c), c = (categories, numbers), and Q(c|x) on the critic's features (Chen et al. 2016).

    Q recognises the codes c that an example was made from: a softmax for each category, N(μ(x), σ² I) for the numbers,
    with a σ that is given, as in the authors' code, or N(μ(x), diag σ²(x)) with one that is learned.
    `objective=infogan` maximises the mutual information of c and G(z) through it (arXiv:1606.03657), so that the codes
    come to stand for what is distinct in the data: on MNIST the digit, slant and width.

    Images live in [-1, 1] (`signed`), points in the reals. `codes` are Q's probabilities of all categories and the
    means of the numbers; they don't lead back to x, which has noise besides. `log_category` is Q's of the first
    category.

    Args:
        latent_dim: dimensions of the noise; 62 in the paper, on MNIST.
        categories: K of each categorical code. numbers: of codes in [-1, 1].
        code_hidden: units of Q's own hidden layer; None is none.
        code_deviation: σ; None learns it. The information of a number has no ceiling then and can crowd out that of the
            categories: give it a small weight.
        dense: units of fully connected layers before a generator's convolutions and, in the same order, after a
            critic's: one of 1,024 in the paper, on MNIST.
        shape, levels, network, hidden, discriminator_hidden, channels, norm, discriminator_norm, spectral_norm: as of
            the `CGAN`.

    Raises:
        UsageError: no codes at all, a category of one, or a network that doesn't fit the data.

    >>> gan = InfoGAN((2,), latent_dim=3, categories=[4], numbers=1, hidden=[8])
    >>> gan.sample(5).shape, gan.codes(gan.sample(5)).shape
    (torch.Size([5, 2]), torch.Size([5, 5]))
    """

    discriminator: TwoHeads
    like: Tensor

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        network: Literal["mlp", "conv"] = "mlp",
        latent_dim: PositiveInt = 62,
        categories: Sequence[PositiveInt] = (10,),
        numbers: NonNegativeInt = 2,
        code_hidden: PositiveInt | None = 128,
        code_deviation: PositiveFloat | None = 1.0,
        hidden: Sequence[PositiveInt] = (256, 512),
        discriminator_hidden: Sequence[PositiveInt] | None = None,
        channels: PositiveInt | None = None,
        dense: Sequence[PositiveInt] = (),
        norm: Literal["batch", "none", "layer"] | None = None,
        discriminator_norm: Literal["batch", "none", "layer"] | None = None,
        spectral_norm: bool = False,
    ):
        super().__init__()
        if not categories and not numbers:
            raise UsageError(
                "model.categories=[] model.numbers=0: leaves no codes to recognise; give one, or model=gan"
            )
        if any(k < 2 for k in categories):
            raise UsageError(f"model.categories={list(categories)}: each is a choice of two or more")
        form = Form(
            tuple(shape), levels, network, hidden, discriminator_hidden, channels, norm, discriminator_norm,
            spectral_norm, dense,
        )  # fmt: skip
        self.shape, self.support = form.shape, form.support
        self.latent_dim, self.choices, self.numbers = latent_dim, tuple(categories), numbers
        self.register_buffer("like", torch.zeros(()), persistent=False)
        self.generator = form.generator(latent_dim + sum(categories) + numbers)
        trunk, width = form.trunk()
        between = [] if code_hidden is None else [code_hidden]
        self.code_deviation = code_deviation
        head = mlp([width, *between, sum(categories) + numbers * (2 if code_deviation is None else 1)], leaky)
        self.discriminator = TwoHeads(trunk, width, head)
        form.finish(self.discriminator)

    @property
    def prior(self) -> FactorPrior:
        return FactorPrior(self.latent_dim, self.choices, self.numbers, self.like)

    def opinion(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.discriminator(x)

    def recognise(self, x: Tensor) -> tuple[list[Tensor], DiagonalNormal]:
        """Q(c|x): log-probabilities of each category, (B, K), and the distribution of the numbers."""
        said, sigma = self.judge(x)[1], self.code_deviation
        *logits, rest = said.split([*self.choices, said.shape[1] - sum(self.choices)], -1)
        mean, log_variance = rest.chunk(2, -1) if sigma is None else (rest, torch.full_like(rest, 2 * math.log(sigma)))
        return [torch.log_softmax(each, 1) for each in logits], DiagonalNormal(mean, log_variance)

    def log_codes(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """log Q of the categories and of the numbers in z given x, in nats, (B,) each."""
        log_p, numbers = self.recognise(x)
        _, *chosen, wanted = z.split(self.prior.lengths, -1)
        each = [(c * p).sum(1) for c, p in zip(chosen, log_p, strict=True)]
        return sum(each, z.new_zeros(len(z))), numbers.log_prob(wanted)

    @property
    def code_entropies(self) -> tuple[float, float]:
        """H(c) in nats of the categories, Σ log K, and of the numbers, a differential entropy: d log 2."""
        return sum(math.log(k) for k in self.choices), self.numbers * math.log(2)

    @property
    def categories(self) -> int:
        return self.choices[0] if self.choices else 0

    def log_category(self, x: Tensor) -> Tensor:
        if not self.choices:
            raise UsageError("InfoGAN: model.categories=[] leaves nothing to sort examples into")
        return self.recognise(x)[0][0]

    def codes(self, x: Tensor) -> Tensor:
        log_p, numbers = self.recognise(x)
        return torch.cat([*(p.exp() for p in log_p), numbers.mean], 1)

    @property
    def factors(self) -> range:
        size = sum(self.prior.lengths)
        return range(size - self.numbers, size)

    def starts(self) -> Tensor:
        """The noise and numbers at 0, each of the first category in turn, the first choice of any others."""
        z = torch.zeros(max(1, self.categories), sum(self.prior.lengths), device=self.device)
        start = self.latent_dim
        for i, k in enumerate(self.choices):
            chosen = torch.arange(len(z), device=z.device) if i == 0 else torch.zeros(len(z), dtype=torch.int64)
            z[torch.arange(len(z)), start + chosen] = 1
            start += k
        return z
