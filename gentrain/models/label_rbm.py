"""Restricted Boltzmann machines over examples and their labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import linear, one_hot, softplus

from gentrain import noise
from gentrain.errors import UsageError
from gentrain.models.base import Classifies, Codes, Completes, Conditional, Filters, Law, Reconstructs, StartsFromMean
from gentrain.models.energies import Enumerable
from gentrain.models.harmonium import BinaryHidden
from gentrain.models.rbm import RBM
from gentrain.types import NonNegativeInt, PositiveInt, Shape


class LabelUnits(BinaryHidden):
    """Visible units v = (x, y): D bits, then a group of K label units of which one is on, a softmax group.

    p(y | h) = softmax(b_y + Uᵀ_y h) with U the last K columns of W. Both F(x, y) and what follows from it by a sum over
    the K labels are exact: F(x) = -log Σ_y exp(-F(x, y)) and

        log p(y | x) = b_y + Σ_j softplus(c_j + U_jy + W_j x) - log Σ_y' (the same of y')

    (Larochelle & Bengio 2008, ICML, "Classification using discriminative restricted Boltzmann machines", eq. 2), where
    W x is computed once for all labels.

    Args:
        bits: D. classes: K. hidden: units.

    Parameters: `weight` W (hidden, D + K), `visible_bias` b (D + K), `hidden_bias` c.
    """

    support = "binary"

    def __init__(self, bits: PositiveInt, classes: PositiveInt, hidden: PositiveInt):
        super().__init__(bits + classes, hidden)
        self.bits, self.classes = bits, classes

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        """v (B, D + K) of bits or their probabilities x (B, …) and labels y (B,)."""
        x = x.flatten(1)
        return torch.cat([x, one_hot(y.long(), self.classes).to(x.dtype)], 1)

    def split(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Bits (B, D) and labels (B,), int64, of v."""
        return v[:, : self.bits], v[:, self.bits :].argmax(1)

    def units(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        if y is None:
            raise UsageError(
                f"{type(self).__name__} learns examples together with their labels, and these have none:"
                " use data with labels"
            )
        return self.join(x, y)

    def visible_probability(self, h: Tensor) -> Tensor:
        """p(v = 1 | h), (B, D + K)."""
        field = self.visible_field(h).float()
        return torch.cat([torch.sigmoid(field[:, : self.bits]), torch.softmax(field[:, self.bits :], 1)], 1)

    def sample_visible(self, h: Tensor) -> Tensor:
        return self.draw_visible(self.visible_field(h))

    def draw_visible(self, field: Tensor) -> Tensor:
        """v ~ p(v | h) given b + Wᵀh, (B, D + K)."""
        bits = noise.bernoulli(torch.sigmoid(field[:, : self.bits]))
        return self.join(bits, noise.categorical(field[:, self.bits :]))

    def chain(self, v: Tensor, k: int, y: Tensor | None = None) -> Tensor:
        """v (B, D + K) after k Gibbs steps; with labels y (B,) in the label units throughout, if they are given."""
        for _ in range(k):
            v = self.sample_visible(self.sample_hidden(self.hidden_probability(v)))
            v = v if y is None else self.join(v[:, : self.bits], y)
        return v

    def tosses(self, n: int, y: Tensor | None = None) -> Tensor:
        """Where chains begin: fair coin tosses for the bits, and labels y, or else even ones, (n, D + K)."""
        bits = noise.bernoulli(torch.full((n, self.bits), 0.5, device=self.device))
        if y is None:
            y = noise.categorical(torch.zeros(n, self.classes, device=self.device))
        return self.join(bits, y)

    def class_energies(self, x: Tensor) -> Tensor:
        """F(x, y) in nats for every label y, (B, K)."""
        x = x.flatten(1).to(self.weight.dtype)
        field = linear(x, self.weight[:, : self.bits], self.hidden_bias)
        columns = self.weight[:, self.bits :].unbind(1)
        hidden = torch.stack([softplus(field + column).sum(-1) for column in columns], 1)
        return -(x @ self.visible_bias[: self.bits])[:, None] - self.visible_bias[self.bits :] - hidden

    def marginal_free_energy(self, x: Tensor) -> Tensor:
        """F(x) = -log Σ_y exp(-F(x, y)) in nats, (B,)."""
        return -torch.logsumexp(-self.class_energies(x), 1)

    def log_class(self, x: Tensor) -> Tensor:
        """log p(y | x) in nats for every label y, (B, K)."""
        return torch.log_softmax(-self.class_energies(x), 1)


class LabelRBM(
    LabelUnits, Classifies, Conditional, Enumerable, Codes, Completes, Filters, Reconstructs, StartsFromMean
):
    """p(x, y) = Σ_h exp(-E(x, y, h)) / Z: an RBM whose visible units are an example and its label.

    The generative machine of Larochelle & Bengio (2008, ICML), and the top of Hinton, Osindero & Teh's (2006) network.
    As a model of x alone it sums over the labels; given y it is the RBM over x whose hidden biases are c + U_y.

    `free_energy`, `log_prob`, `codes` and `reconstruct` are of x, with the labels summed out, or with y (B,) given:
    `free_energy(x, y=y)` is that of both together, `log_prob(x, y=y)` is log p(x | y). `sample(n)` draws labels as
    well, from the model's own p(y), and with y draws given them.

    Args:
        shape: of one example, any; it is flattened inside.
        classes: K, labels 0…K-1.
        hidden: number of hidden units.
        burn_in: Gibbs steps of `sample`.

    Raises:
        UsageError: the data, or the examples to learn from, have no labels.

    >>> rbm = LabelRBM((1, 3, 3), classes=2, hidden=4)
    >>> x = rbm.sample(5, y=torch.tensor([0, 0, 0, 1, 1]))
    >>> x.shape, rbm.free_energy(x).shape, rbm.log_class(x).shape
    (torch.Size([5, 1, 3, 3]), torch.Size([5]), torch.Size([5, 2]))
    """

    classes: int
    sampling = ("burn_in",)

    def __init__(
        self,
        shape: Shape,
        classes: PositiveInt | None = None,
        hidden: PositiveInt = 500,
        burn_in: NonNegativeInt = 200,
    ):
        if classes is None:
            raise UsageError(
                "model=label_rbm is p(x, y), and these data have no labels y: use data with labels, or model=rbm"
            )
        super().__init__(math.prod(shape), classes, hidden)
        self.shape, self.burn_in = tuple(shape), burn_in
        self._partitions: tuple[list[Tensor], Tensor] | None = None

    def free_energy(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """F(x), or F(x, y) of labels y (B,), in nats, (B,)."""
        return self.marginal_free_energy(x) if y is None else self.energy_of_units(self.join(x, y))

    def examples(self, units: Tensor) -> Tensor:
        return units[:, : self.bits].view(-1, *self.shape)

    def _label(self, x: Tensor) -> Tensor:
        return noise.categorical(self.log_class(x))

    @torch.no_grad()
    def gibbs(self, x: Tensor, k: int) -> Tensor:
        """k steps of the chain over x and y from x and y ~ p(y | x), which is exact: so it keeps p(x)."""
        return self.examples(self.chain(self.join(x, self._label(x)), k))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """n independent chains from fair coin tosses after `burn_in` steps; labels y (n,) stay as they are given."""
        return self.examples(self.chain(self.tosses(n, y), self.burn_in, y))

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor, y: Tensor | None = None) -> Tensor:
        """By `burn_in` Gibbs steps with the known bits (and labels) clamped, from fair coin tosses."""
        x, known = x.flatten(1), known.flatten(1)
        v = self.tosses(len(x), y)
        for _ in range(self.burn_in):
            v[:, : self.bits] = torch.where(known, x.to(v.dtype), v[:, : self.bits])
            v = self.chain(v, 1, y)
        return torch.where(known, x.to(v.dtype), v[:, : self.bits]).view(-1, *self.shape)

    def completion(self, known: Tensor) -> Law:
        return "chain"

    def _expected(self, x: Tensor, y: Tensor | None) -> Tensor:
        """x with E[label units | x], or with y, (B, D + K)."""
        if y is not None:
            return self.join(x, y)
        return torch.cat([x.flatten(1), self.log_class(x).exp().to(x.dtype)], 1)

    def codes(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """p(h = 1 | x, y) at y = E[y | x], or at the labels given, (B, hidden)."""
        return self.hidden_probability(self._expected(x, y))

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """p(x = 1 | h) at h = `codes`: one mean-field step."""
        return self.examples(self.visible_probability(self.codes(x, y)))

    def filters(self) -> Tensor:
        """The rows of W that look at x, (hidden, *shape)."""
        return self.weight[:, : self.bits].reshape(-1, *self.shape)

    @torch.no_grad()
    def start_from_mean(self, mean: Tensor) -> None:
        self.visible_bias[: self.bits].copy_(torch.logit(mean.flatten().clamp(1e-3, 1 - 1e-3)))

    # --- small machines, exactly ---

    @torch.no_grad()
    def at(self, y: int) -> RBM:
        """The RBM that is p(x | y), with parameters of its own."""
        rbm = RBM(self.shape, self.hidden, self.burn_in).to(self.weight)
        rbm.weight.copy_(self.weight[:, : self.bits])
        rbm.visible_bias.copy_(self.visible_bias[: self.bits])
        rbm.hidden_bias.copy_(self.hidden_bias + self.weight[:, self.bits + y])
        return rbm

    @property
    def enumeration_bits(self) -> int:
        return min(self.bits, self.hidden) + (self.classes - 1).bit_length()

    @torch.no_grad()
    def log_partitions(self) -> Tensor:
        """log Σ_x exp(-F(x, y)) for every label y, (K,), float64: their sum over labels is Z.

        Kept until a parameter changes. Raises UsageError unless `enumerable`.
        """
        if not self.enumerable:
            raise UsageError(
                f"the exact partition function of {self.bits} visible units, {self.classes} labels and {self.hidden}"
                f" hidden units is a sum over 2^{self.enumeration_bits} states, 2^{self.limit} at most can be taken;"
                " fewer hidden units can be"
            )
        parameters = [self.weight, self.visible_bias, self.hidden_bias]
        if self._partitions is None or not all(map(torch.equal, parameters, self._partitions[0])):
            found = torch.stack([self.at(y).log_partition() for y in range(self.classes)])
            found = found + self.visible_bias[self.bits :].to(found)
            self._partitions = [p.detach().clone() for p in parameters], found
        return self._partitions[1]

    def log_partition(self) -> Tensor:
        return torch.logsumexp(self.log_partitions(), 0)

    @torch.no_grad()
    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """log p(x), or log p(x | y), in nats, (B,), exact, without gradient. Raises UsageError unless `enumerable`."""
        if y is None:
            return super().log_prob(x)
        return -self.free_energy(x, y) - self.log_partitions().to(x.device, torch.float32)[y.long()]

    @torch.no_grad()
    def exact_sample(self, n: int) -> Tensor:
        y = torch.multinomial(torch.softmax(self.log_partitions(), 0), n, replacement=True)
        counts = torch.bincount(y, minlength=self.classes).tolist()
        drawn = torch.cat([self.at(label).exact_sample(count) for label, count in enumerate(counts) if count])
        return drawn[torch.randperm(n, device=drawn.device)]
