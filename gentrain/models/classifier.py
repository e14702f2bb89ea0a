"""A generative model that becomes a classifier: unrolled into a network for p(y|x), which is then trained as one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from gentrain.errors import UsageError
from gentrain.models.base import Classifies


class Discriminative(nn.Module, Classifies):
    """p(y|x) by a network of sigmoid layers and a softmax that begins where the model has come to.

    Until `begin_classifier` the labels' probabilities are the model's own, where it knows any; from then on those of
    the network, the part `classifier`, which is None where the data have no labels. The model's other parts stay as
    they are.
    """

    classifier: nn.Module | None
    classifying: Tensor

    def _set_classifier(self, network: nn.Module | None) -> None:
        """Called once, by the constructor, with a network from `features` to logits."""
        self.classifier = network
        self.register_buffer("classifying", torch.zeros(()))

    def _make_classifier(self, sizes: Sequence[int], classes: int | None) -> None:
        """The same for a network of layers one above the other. sizes: their units, x first."""
        layers: list[nn.Module] = [nn.Flatten()]
        for d_in, d_out in pairwise(sizes):
            layers += [nn.Linear(d_in, d_out), nn.Sigmoid()]
        self._set_classifier(None if classes is None else nn.Sequential(*layers, nn.Linear(sizes[-1], classes)))

    def linear_layers(self) -> list[nn.Linear]:
        """Those of a network of layers one above the other, the lowest first."""
        assert self.classifier is not None
        return [m for m in self.classifier.children() if isinstance(m, nn.Linear)]

    def features(self, x: Tensor) -> Tensor:
        """What the network sees of x, (B, …): x itself, unless a model adds what it knows of it."""
        return x

    @abstractmethod
    def start_classifier(self) -> None:
        """Set the network's parameters from the model's; called without gradients."""

    @abstractmethod
    def own_log_class(self, x: Tensor) -> Tensor | None:
        """log p(y|x) by the model itself, (B, K); None where it knows none."""

    @torch.no_grad()
    def begin_classifier(self) -> None:
        """Begin the network where the model has come to; p(y|x) is the network's from now on."""
        self.start_classifier()
        self.classifying.fill_(1)

    def logits(self, x: Tensor) -> Tensor:
        """The network's, (B, K)."""
        assert self.classifier is not None
        return self.classifier(self.features(x)).float()

    @property
    def _is_classifier(self) -> bool:
        return bool(self.classifying > 0)  # a running average of the weights averages this number too

    def log_class(self, x: Tensor) -> Tensor:
        own = torch.log_softmax(self.logits(x), 1) if self._is_classifier else self.own_log_class(x)
        if own is None:
            raise UsageError(
                f"{type(self).__name__} was trained without labels: it knows no p(y|x); train it with model.labels=true"
                " or as a classifier"
            )
        return own
