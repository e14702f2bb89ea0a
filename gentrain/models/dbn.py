"""The deep belief network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.special import entr

from gentrain import noise
from gentrain.errors import UsageError
from gentrain.models.base import Codes, Completes, Conditional, Filters, Law, Reconstructs, StartsFromMean
from gentrain.models.belief import Affine, Cascade, Directed, cascade
from gentrain.models.classifier import Discriminative
from gentrain.models.energies import Bounded, TemperedPath
from gentrain.models.enumeration import states
from gentrain.models.label_rbm import LabelRBM
from gentrain.models.missing import impute
from gentrain.models.rbm import RBM, RBMPath
from gentrain.models.stack import Stack
from gentrain.types import NonNegativeInt, PositiveInt, Shape


class DBN(Stack, Bounded, Discriminative, Conditional, Codes, Completes, Filters, Reconstructs, StartsFromMean):
    """p(x) = Σ_h p(x|h_1) p(h_1|h_2) … p(h_{L-2}|h_{L-1}) p(h_{L-1}, h_L): an RBM, the associative memory, on top of a
    sigmoid belief network (Hinton, Osindero & Teh 2006, Neural Computation 18:1527).

    It is made layer by layer, layer i of the stack an RBM between h_{i-1} and h_i, h_0 = x. Until `untie` layers below
    the top generate by W_iᵀ and recognise, q(h_i|h_{i-1}), by W_i; `untie` copies both into networks of their own,
    `generative` and `recognition`, which up-down then trains. Where a layer has as many units as the last but one,
    it begins as the transposed RBM below it: the network is then the same distribution as before it was added, and what
    the layer gains, the bound gains. So begin the first units of a layer that has more; the others begin as an RBM's
    do, at weights so small that they hardly change the distribution.

    With label units the top RBM is over (h_{L-1}, y): the network is a model of p(x, y), `sample(n, y=…)` holds the
    labels during its Gibbs chain, and p(y|x) is p(y|h_{L-1}) by free energies at the probabilities of h_{L-1} that a
    pass up without draws gives, as in the paper.

    With s_0 = x and draws s_i ~ q(h_i|s_{i-1}),

        log p(x) >= E[ Σ_i H(q(h_i|s_{i-1})) + log p(x|s_1) + Σ_{i>=2} log p(s_{i-1}|s_i) - F(s_{L-1}) ] - log Z

    with the top's free energy F (labels summed out) and partition function Z (Salakhutdinov & Murray 2008, eq. 22, for
    L = 2). `log_bound` is the bracket for one draw.

    Args:
        shape: of one example, any; it is flattened inside.
        hidden: units of h_1, …, h_L, at least two layers.
        classes: K, the number of labels in the data, None where there are none.
        labels: whether the top RBM has label units; None: where the data have labels.
        grey: values in [0, 1] are taken for probabilities of bits, and samples are such probabilities. There is then
            no likelihood, and no bound of one.
        burn_in: Gibbs steps in the top RBM before a sample is taken.

    Raises:
        UsageError: there are fewer than two layers; label units are asked for and the data have no labels.

    >>> dbn = DBN((1, 3, 3), hidden=[6, 5], classes=2)
    >>> x = dbn.sample(4, y=torch.tensor([0, 0, 1, 1]))
    >>> x.shape, dbn.log_bound(x).shape, dbn.log_class(x).shape, dbn.codes(x).shape
    (torch.Size([4, 1, 3, 3]), torch.Size([4]), torch.Size([4, 2]), torch.Size([4, 5]))
    """

    bound_kind = "dbn-bound"
    sampling = ("burn_in",)
    limit = 16
    """Units of the layers below the top one up to which `log_prob` sums over their states."""
    untied: Tensor

    def __init__(
        self,
        shape: Shape,
        hidden: Sequence[PositiveInt] = (500, 500),
        classes: PositiveInt | None = None,
        labels: bool | None = None,
        grey: bool = False,
        burn_in: NonNegativeInt = 200,
    ):
        super().__init__()
        if len(hidden) < 2:
            raise UsageError(
                f"model.hidden={list(hidden)}: a deep belief network has two layers at least; model=rbm has one"
            )
        if labels and classes is None:
            raise UsageError(
                "model.labels=true: these data have no labels; use data with labels, or model.labels=false"
            )
        self.shape, self.support, self.grey = tuple(shape), "unit" if grey else "binary", grey
        self.classes = None if labels is False else classes
        self.sizes = [math.prod(shape), *hidden]
        shapes = [self.shape, *((units,) for units in hidden[:-1])]
        layers = [RBM(s, units) for s, units in zip(shapes[:-1], hidden[:-1], strict=True)]
        if self.classes is None:
            top = RBM(shapes[-1], hidden[-1], burn_in)
        else:
            top = LabelRBM(shapes[-1], self.classes, hidden[-1], burn_in)
        self.stack([*layers, top])
        self.recognition = Directed(self.sizes[:-1])
        self.generative = Directed(self.sizes[-2::-1])
        self.register_buffer("untied", torch.zeros(()))
        self._copy()
        self._make_classifier(self.sizes, classes)

    @property
    def top(self) -> RBM | LabelRBM:
        """The associative memory, layer L."""
        layer = self.layer(self.depth)
        assert isinstance(layer, RBM | LabelRBM)
        return layer

    def _rbm(self, i: int) -> RBM:
        layer = self.layer(i)
        assert isinstance(layer, RBM)
        return layer

    # --- the stack ---

    def up(self, i: int, x: Tensor) -> Tensor:
        return self._rbm(i).hidden_probability(x) if i < self.depth else self.top.codes(x)

    @torch.no_grad()
    def begin(self, i: int) -> bool:
        """The first units of layer i begin as the transposed layer below it, where there are enough of them."""
        units, bits = self.sizes[i - 2], self.sizes[i - 1]
        if self.sizes[i] < units:
            return False
        new, below = self.layer(i), self._rbm(i - 1)
        assert isinstance(new, RBM | LabelRBM)
        new.weight[:units, :bits] = below.weight.t()
        new.visible_bias[:bits] = below.hidden_bias
        new.hidden_bias[:units] = below.visible_bias
        return True

    @torch.no_grad()
    def untie(self) -> None:
        """Begin `recognition` and `generative` where the stack has come to; they are the network from now on."""
        self._copy()
        self.untied.fill_(1)

    @torch.no_grad()
    def _copy(self) -> None:
        pairs = [(self.recognition, self._recognising(False)), (self.generative, self._generating(False))]
        for network, maps in pairs:
            for own, new in zip(network.maps(), maps, strict=True):
                own.weight.copy_(new.weight)
                own.bias.copy_(new.bias)

    @property
    def _is_untied(self) -> bool:
        return bool(self.untied > 0)  # a running average of the weights averages this number too

    def _recognising(self, untied: bool) -> list[Affine]:
        """From x to the logits of h_1, from h_1 to those of h_2, …."""
        if untied:
            return self.recognition.maps()
        return [Affine(rbm.weight, rbm.hidden_bias) for rbm in map(self._rbm, range(1, self.depth))]

    def _generating(self, untied: bool) -> list[Affine]:
        """From h_{L-1} to the logits of h_{L-2}, …, from h_1 to those of x."""
        if untied:
            return self.generative.maps()
        return [Affine(rbm.weight.t(), rbm.visible_bias) for rbm in map(self._rbm, range(self.depth - 1, 0, -1))]

    # --- the network ---

    def recognise(self, x: Tensor) -> Cascade:
        """q(h_1, …, h_{L-1} | x)."""
        return cascade(x.flatten(1), self._recognising(self._is_untied))

    def generate(self, h: Tensor) -> Cascade:
        """p(h_{L-2}, …, h_1, x | h_{L-1})."""
        return cascade(h, self._generating(self._is_untied))

    def expected(self, x: Tensor) -> Tensor:
        """The probabilities of h_{L-1} that a pass up without draws gives, (B, units)."""
        q = self.recognise(x)
        return q.layers(q.centre)[-1]

    def fantasies(self, h: Tensor) -> Tensor:
        """x (n, *shape) by a pass down from states h of h_{L-1}."""
        *between, last = self._generating(self._is_untied)
        for layer in between:
            h = noise.bernoulli(torch.sigmoid(layer(h)))
        x = torch.sigmoid(last(h)).view(-1, *self.shape)
        return x if self.grey else noise.bernoulli(x)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """n draws: Gibbs chains in the top RBM, from coin tosses, then a pass down; labels y (n,) are held if given.

        Without them a network with label units draws its own, from p(y).
        """
        top = self.top
        return self.fantasies(top.sample(n, y=y) if isinstance(top, LabelRBM) else top.sample(n))

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor, y: Tensor | None = None) -> Tensor:
        """By the top RBM's `burn_in` sweeps, from fair coin tosses, given labels y (B,) if there are any.

        Half of them are passes up, a Gibbs step on top and a pass down. The others are those of `impute`, with q the
        passes up, which keep p(missing | known).
        """
        top, shape = self.top, x.shape
        to = {"y": y} if isinstance(top, LabelRBM) and y is not None else {}

        def roam(x: Tensor) -> Tensor:
            q = self.recognise(x)
            h = q.layers(q.sample())[-1]
            if isinstance(top, LabelRBM) and y is not None:
                h = top.examples(top.chain(top.join(h, y), 1, y))
            else:
                h = top.gibbs(h, 1)
            return self.fantasies(h).flatten(1)

        def log_joint(x: Tensor, z: Tensor) -> Tensor:
            layers = [x, *z.split(self.sizes[1:-1], 1)]
            h = layers[-1]
            return self.generate(h).log_prob(torch.cat(layers[-2::-1], 1)) - top.free_energy(h, **to)

        def draw(z: Tensor) -> Tensor:
            p = torch.sigmoid(self._generating(self._is_untied)[-1](z[:, : self.sizes[1]]))
            return p if self.grey else noise.bernoulli(p)

        x, known = x.flatten(1).float(), known.flatten(1)
        x = torch.where(known, x, noise.bernoulli(torch.full_like(x, 0.5)))
        return impute(x, known, top.burn_in, roam, self.recognise, log_joint, draw).view(shape)

    def completion(self, known: Tensor) -> Law:
        return "approximate" if self.grey else "chain"

    def codes(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Probabilities of h_L by a pass up without draws, (B, units). Labels are summed out; y is not looked at."""
        return self.top.codes(self.expected(x))

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """A pass up, one mean-field step in the top RBM (with labels y where they are given), and a pass down."""
        top, h = self.top, self.expected(x)
        h = top.reconstruct(h, y) if isinstance(top, LabelRBM) else top.reconstruct(h)
        p = self.generate(h)
        return p.layers(p.centre)[-1].view(-1, *self.shape)

    def filters(self) -> Tensor:
        """What each unit of h_1 adds to the logits of x, (units, *shape)."""
        return self._generating(self._is_untied)[-1].weight.t().reshape(-1, *self.shape)

    @torch.no_grad()
    def start_from_mean(self, mean: Tensor) -> None:
        self._rbm(1).start_from_mean(mean)
        self._copy()

    # --- its classifier ---

    @property
    def knows_labels(self) -> bool:
        return self.classes is not None or self._is_classifier

    def own_log_class(self, x: Tensor) -> Tensor | None:
        return self.top.log_class(self.expected(x)) if isinstance(self.top, LabelRBM) else None

    def start_classifier(self) -> None:
        """From recognition's weights and the top's; where that has label units, theirs to h_L are the softmax's."""
        top, bits = self.top, self.sizes[-2]
        *layers, last = self.linear_layers()
        maps = [*self._recognising(self._is_untied), Affine(top.weight[:, :bits], top.hidden_bias)]
        for own, new in zip(layers, maps, strict=True):
            own.weight.copy_(new.weight)
            own.bias.copy_(new.bias)
        if isinstance(top, LabelRBM):
            last.weight.copy_(top.weight[:, bits:].t())
            last.bias.copy_(top.visible_bias[bits:])
        else:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    # --- likelihood ---

    @torch.no_grad()
    def log_bound(self, x: Tensor) -> Tensor:
        s = x.flatten(1).float()
        drawn, total = [s], torch.zeros(len(x), device=x.device)
        for layer in self._recognising(self._is_untied):
            p = torch.sigmoid(layer(s).float())
            s = noise.bernoulli(p)
            drawn.append(s)
            total += (entr(p) + entr(1 - p)).sum(-1)
        return total + self.generate(s).log_prob(torch.cat(drawn[-2::-1], 1)) - self.top.free_energy(s)

    @torch.no_grad()
    def tempered_units(self, x: Tensor) -> Tensor:
        """`expected`, and with label units E[y] there, (B, units)."""
        h, top = self.expected(x), self.top
        return torch.cat([h, top.log_class(h).exp()], 1) if isinstance(top, LabelRBM) else h

    def tempered(self, mean: Tensor, smoothing: float = 0.05) -> TemperedPath:
        """The path of `RBM.tempered` to the top RBM; label units begin at their mean."""
        top = self.top
        if not isinstance(top, LabelRBM):
            return top.tempered(mean, smoothing)
        bits = mean[: top.bits].cpu().double()
        p = ((bits + smoothing) / (1 + smoothing)).clamp(1e-5, 1 - 1e-5)
        labels = mean[top.bits :].cpu().double().clamp(min=1e-5)
        return _LabelPath(top, torch.cat([torch.logit(p), labels.log()]))

    @torch.no_grad()
    def log_partition(self) -> Tensor | None:
        return self.top.log_partition() if self.top.enumerable else None

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (B,), exact: a sum over the states of the layers below the top one.

        Raises:
            UsageError: these have more than `limit` units.
        """
        units, log_z = sum(self.sizes[1:-1]), self.log_partition()
        if units > self.limit or log_z is None:
            raise UsageError(
                f"the exact likelihood of hidden={self.sizes[1:]} is a sum over 2^{units} states of the layers below"
                f" the top one, which may have {self.limit} units at most; the metric `bound` bounds it"
            )
        s = states(units, self.top.weight)
        *between, last = self._generating(self._is_untied)
        h = s.split(self.sizes[-2:0:-1], 1)  # h_{L-1}, …, h_1
        above = -self.top.free_energy(h[0])
        if between:
            above = above + cascade(h[0], between).log_prob(s[:, self.sizes[-2] :])
        logits = last(h[-1])
        joint = x.flatten(1).to(logits) @ logits.t() - nn.functional.softplus(logits).sum(1) + above
        return torch.logsumexp(joint.double(), 1).sub(log_z.to(x.device)).float()


class _LabelPath(RBMPath):
    """The same from independent bits and an independent label; its states are those of both."""

    def __init__(self, rbm: LabelRBM, base: Tensor):
        self.bits, self.categories = rbm.bits, rbm.classes
        super().__init__(rbm, base)
        self.shape = (rbm.visible,)

    def log_states(self, field: Tensor) -> Tensor:
        return super().log_states(field[: self.bits]) + torch.logsumexp(field[self.bits :], 0)

    def draw(self, field: Tensor) -> Tensor:
        y = noise.categorical(field[:, self.bits :])
        one = nn.functional.one_hot(y, field.shape[1] - self.bits)
        return torch.cat([super().draw(field[:, : self.bits]), one.to(field.dtype)], 1)
