"""Finite mixtures: of Bernoulli vectors and of Gaussians."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from gentrain.errors import UsageError
from gentrain.models.base import Categorises, Codes, Conditions, ExpectationMaximisation, Filters, Law, StartsFromMean
from gentrain.models.gaussian import Covariance, Gaussians
from gentrain.models.missing import masks_of
from gentrain.types import NonNegativeFloat, PositiveFloat, PositiveInt, Shape


class Mixture(ExpectationMaximisation, Categorises, Codes, Conditions, Filters, StartsFromMean):
    """p(x) = Σ_k π_k p_k(x) over K components; π = softmax(logits).

    `codes` are the responsibilities p(k|x), `filters` the components' means. Besides EM, gradients train it: all
    parameters are unconstrained.

    Attributes:
        mass: Σ_x p(k|x) of the examples that the statistics stand for, (K,).
    """

    mass: Tensor

    def __init__(self, shape: tuple[int, ...], components: int):
        super().__init__()
        self.shape, self.components = tuple(shape), components
        self.logits = nn.Parameter(torch.zeros(components))
        self.register_buffer("mass", torch.zeros(components))

    @abstractmethod
    def component_log_prob(self, x: Tensor) -> Tensor:
        """log p_k(x) in nats, (B, K)."""

    @abstractmethod
    def component_sample(self, k: int, n: int) -> Tensor:
        """n draws from p_k, (n, D)."""

    @abstractmethod
    def gather(self, x: Tensor, r: Tensor, keep: float) -> None:
        """Take x (B, D) with responsibilities r (B, K) into the statistics, which count for `keep` of what they did.

        Called before the same is done to `mass`.
        """

    def joint(self, x: Tensor) -> Tensor:
        """log π_k p_k(x) in nats, (B, K)."""
        return self.logits.log_softmax(0) + self.component_log_prob(x)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.joint(x).logsumexp(1)

    @property
    def categories(self) -> int:
        return self.components

    def log_category(self, x: Tensor) -> Tensor:
        return self.joint(x).log_softmax(1)

    def codes(self, x: Tensor) -> Tensor:
        return self.log_category(x).exp()

    @abstractmethod
    def known_joint(self, x: Tensor, known: Tensor) -> Tensor:
        """log π_k p_k(the known elements) in nats, (B, K)."""

    def completion(self, known: Tensor) -> Law:
        return "exact"

    @torch.no_grad()
    def log_conditional(self, x: Tensor, known: Tensor) -> Tensor:
        return (self.joint(x).double().logsumexp(1) - self.known_joint(x, known).double().logsumexp(1)).float()

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        k = torch.multinomial(self.logits.softmax(0), n, replacement=True)
        x = self.logits.new_empty(n, math.prod(self.shape))
        for i in k.unique().tolist():
            here = k == i
            x[here] = self.component_sample(i, int(here.sum()))
        return x.view(n, *self.shape)

    @torch.no_grad()
    def expect(self, x: Tensor, keep: float = 1.0) -> Tensor:
        joint = self.joint(x)
        r = joint.softmax(1)
        self.gather(x.flatten(1).to(r.dtype), r, keep)
        self.mass.mul_(keep).add_(r.sum(0))
        return joint.logsumexp(1)

    def seeds(self, x: Tensor) -> Tensor:
        """K of the examples x (B, *shape) that lie apart, (K, D): k-means++ (Arthur & Vassilvitskii 2007).

        Raises:
            UsageError: there are fewer.
        """
        from sklearn.cluster import kmeans_plusplus

        if len(x) < self.components:
            raise UsageError(
                f"model.components={self.components}: EM starts them from the first batch, which has {len(x)} examples;"
                f" set data.batch_size={self.components} or more"
            )
        flat = x.flatten(1)
        _, chosen = kmeans_plusplus(
            flat.double().cpu().numpy(), self.components, random_state=int(torch.randint(2**31, ()))
        )
        return flat[torch.as_tensor(chosen, device=x.device)].to(self.logits.dtype)


class BernoulliMixture(Mixture):
    """p(x) = Σ_k π_k Π_d μ_kd^x_d (1 - μ_kd)^(1 - x_d), x in {0,1}^D (Wolfe 1970; Bishop 2006, section 9.3.3).

    The M-step from n examples is μ_kd = (Σ_x p(k|x) x_d + s) / (Σ_x p(k|x) + 2s), π_k = (Σ_x p(k|x) + s) / (n + K s):
    the maximum a posteriori under Beta(1 + s, 1 + s) and Dirichlet(1 + s). One component is the factorial model.

    Args:
        shape: of one example.
        components: K.
        smoothing: s, pseudo-counts for each value and each component.

    >>> model = BernoulliMixture((1, 2, 2), components=2)
    >>> x = torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 1]]).repeat(50, 1).view(-1, 1, 2, 2)
    >>> model.start(x)
    >>> for _ in range(5):
    ...     _ = model.expect(x, keep=0.0)
    ...     model.maximise()
    >>> model.log_prob(x[:1]).exp().item() > 0.49, model.codes(x[:2]).argmax(1).unique().numel()
    (True, 2)
    """

    support = "binary"
    positive: Tensor

    def __init__(self, shape: Shape, components: PositiveInt = 20, smoothing: NonNegativeFloat = 0.01):
        super().__init__(tuple(shape), components)
        self.smoothing = smoothing
        self.mean_logits = nn.Parameter(0.5 * torch.randn(components, math.prod(shape)))
        self.register_buffer("positive", torch.zeros_like(self.mean_logits))

    @property
    def means(self) -> Tensor:
        """μ, (K, D)."""
        return self.mean_logits.sigmoid()

    def component_log_prob(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.mean_logits.t() - softplus(self.mean_logits).sum(1)

    def component_sample(self, k: int, n: int) -> Tensor:
        return torch.bernoulli(self.means[k].expand(n, -1))

    def gather(self, x: Tensor, r: Tensor, keep: float) -> None:
        self.positive.mul_(keep).addmm_(r.t(), x)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Means half-way, up to a quarter, between an example and the mean of all; even weights."""
        weight = 0.25 + 0.5 * torch.rand_like(self.mean_logits)
        means = torch.lerp(self.seeds(x), x.flatten(1).mean(0).to(weight.dtype), weight)
        self.mean_logits.copy_(means.clamp(1e-3, 1 - 1e-3).logit())
        self.logits.zero_()

    @torch.no_grad()
    def maximise(self) -> None:
        s = self.smoothing + 1e-6  # where there is none, what was never seen keeps a logit that arithmetic can use
        self.mean_logits.copy_(((self.positive + s) / (self.mass[:, None] - self.positive + s).clamp(min=s)).log())
        self.logits.copy_((self.mass + s).log())

    def filters(self) -> Tensor:
        return self.means.view(-1, *self.shape)

    def start_from_mean(self, mean: Tensor) -> None:
        """Of gradients alone; EM starts from examples."""
        with torch.no_grad():
            self.mean_logits.add_(mean.flatten().clamp(1e-3, 1 - 1e-3).logit())

    def known_joint(self, x: Tensor, known: Tensor) -> Tensor:
        seen = known.flatten(1).to(self.logits.dtype)
        bits = torch.where(known, x, 0).flatten(1).to(seen.dtype)
        return self.logits.log_softmax(0) + bits @ self.mean_logits.t() - seen @ softplus(self.mean_logits).t()

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor) -> Tensor:
        """A component given what is known, then its bits."""
        k = torch.multinomial(self.known_joint(x, known).softmax(1), 1)[:, 0]
        drawn = torch.bernoulli(self.means[k]).view_as(x).to(x.dtype)
        return torch.where(known, x, drawn)


class GaussianMixture(Mixture):
    """p(x) = Σ_k π_k N(x; μ_k, Σ_k), x in R^D (Dempster et al. 1977; Bishop 2006, section 9.2).

    The M-step is π_k ∝ Σ_x p(k|x), μ_k and Σ_k the mean and covariance of the examples so weighted, Σ_k with the floor
    added to its diagonal: without one the likelihood has no bound, for a component can close in on one example. The
    statistics are kept as weighted means and scatter around them, which add up without cancellation (Chan et al. 1983).

    Args:
        shape: of one example.
        components: K.
        covariance: `full`, `diagonal` or `spherical`.
        floor: added to every variance, in the data's unit squared; for gradients the least variance of an element given
            those before it.

    >>> model = GaussianMixture((2,), components=3)
    >>> model.sample(5).shape, torch.allclose(model.codes(torch.zeros(4, 2)).sum(1), torch.ones(4))
    (torch.Size([5, 2]), True)
    """

    support = "real"
    centre: Tensor
    scatter: Tensor

    def __init__(
        self,
        shape: Shape,
        components: PositiveInt = 10,
        covariance: Covariance = "full",
        floor: PositiveFloat = 1e-4,
    ):
        dim = math.prod(shape)
        super().__init__(tuple(shape), components)
        self.normals = Gaussians(components, dim, covariance, floor)
        self.floor = floor
        square = {"full": (dim, dim), "diagonal": (dim,), "spherical": (1,)}[self.normals.covariance]
        self.register_buffer("centre", torch.zeros(components, dim))
        self.register_buffer("scatter", torch.zeros(components, *square))

    def component_log_prob(self, x: Tensor) -> Tensor:
        return self.normals.log_prob(x.flatten(1))

    def component_sample(self, k: int, n: int) -> Tensor:
        return self.normals.transform(torch.randn(n, self.normals.dim, device=self.device), k)

    def gather(self, x: Tensor, r: Tensor, keep: float) -> None:
        new, old = r.sum(0), keep * self.mass
        share = (new / (old + new).clamp(min=1e-30))[:, None]  # of the new examples; 0 where a component has none
        mean = r.t() @ x / new.clamp(min=1e-30)[:, None]
        step = mean - self.centre
        # Σ r (x - m)(x - m)ᵀ of the new ones around their mean, and what the distance of the two means adds to it
        self.scatter.mul_(keep).add_(self._squares(x - mean[:, None], r.t()))
        self.scatter.add_(self._squares(step[:, None], (old * share[:, 0])[:, None]))
        self.centre.add_(share * step)

    def _squares(self, distance: Tensor, weight: Tensor) -> Tensor:
        """Σ_b w_kb δ_kb δ_kbᵀ of δ (K, B, D) and w (K, B): the matrix, its diagonal or that one's mean."""
        weighted = weight[..., None] * distance
        if self.normals.covariance == "full":
            return weighted.mT @ distance
        squares = (weighted * distance).sum(1)
        return squares if self.normals.covariance == "diagonal" else squares.mean(1, keepdim=True)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Means at examples that lie apart; one variance for all, of the distance to the nearest; even weights."""
        means, flat = self.seeds(x), x.flatten(1).to(self.logits.dtype)
        nearest = torch.cdist(flat, means, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        variance = (flat - means[nearest]).square().mean(0) + self.floor
        means += 0.1 * variance.sqrt() * torch.randn_like(means)  # examples may be the same
        if self.normals.covariance == "full":
            covariance = variance.diag().expand(self.components, -1, -1)
        else:
            covariance = variance if self.normals.covariance == "diagonal" else variance.mean().expand(1)
            covariance = covariance.expand(self.components, -1)
        self.normals.set_moments(means, covariance)
        self.logits.zero_()

    @torch.no_grad()
    def maximise(self) -> None:
        mass = self.mass.clamp(min=1e-30).view(-1, *[1] * (self.scatter.dim() - 1))
        covariance = self.scatter / mass
        if self.normals.covariance == "full":
            covariance.diagonal(dim1=1, dim2=2).add_(self.floor)
        else:
            covariance.add_(self.floor)
        self.normals.set_moments(self.centre, covariance)
        self.logits.copy_((self.mass / self.mass.sum()).clamp(min=1e-12).log())

    def filters(self) -> Tensor:
        return self.normals.mean.view(-1, *self.shape)

    def known_joint(self, x: Tensor, known: Tensor) -> Tensor:
        flat, total = x.flatten(1), self.logits.new_empty(len(x), self.components, dtype=torch.float64)
        for mask, rows in masks_of(known):
            parts = [self.normals.given(k, mask).log_known(flat[rows]) for k in range(self.components)]
            total[rows] = torch.stack(parts, 1)
        return self.logits.log_softmax(0) + total

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor) -> Tensor:
        """A component given what is known, then the rest by that Gaussian."""
        flat = torch.where(known, x, 0).flatten(1)
        k = torch.multinomial(self.known_joint(flat.view_as(x), known).softmax(1), 1)[:, 0]
        for mask, rows in masks_of(known):
            for i in k[rows].unique().tolist():
                here = rows & (k == i)
                flat[here] = self.normals.given(i, mask).fill(flat[here])
        return flat.view_as(x)

    def start_from_mean(self, mean: Tensor) -> None:
        """Of gradients alone; EM starts from examples."""
        with torch.no_grad():
            self.normals.mean.add_(mean.flatten())
