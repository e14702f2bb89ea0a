"""What models that translate have in common."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.base import TakesReference
from gentrain.models.domains import TranslatesBack, Translator
from gentrain.types import PositiveInt, Shape


class KeepsInputs(Translator, TakesReference):
    """Draws its samples by translating examples that it keeps of the training set, chosen by the run's seed.

    Args:
        shape: of one example. inputs: how many it keeps.
    """

    inputs: Tensor
    reference_option = "model.inputs"

    def __init__(self, shape: Shape, inputs: PositiveInt):
        super().__init__()
        self.shape = tuple(shape)
        self.register_buffer("inputs", torch.zeros(inputs, *shape))

    @property
    def reference_size(self) -> int:
        return len(self.inputs)

    def take_reference(self, batch: Batch) -> None:
        if batch.pair is None:
            raise UsageError(f"{type(self).__name__} learns from pairs, and these data have none; take data=paired")
        self.inputs.copy_(batch.pair)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Translations of n of the kept inputs, drawn with replacement."""
        return self.translate(self.inputs[torch.randint(len(self.inputs), (n,), device=self.inputs.device)])


class JudgedPairs(Translator):
    """Learns by a critic of pairs (x, what it was made of). Has the parts `generator` and `discriminator`."""

    generator: nn.Module
    discriminator: nn.Module

    @abstractmethod
    def judge(self, x: Tensor, pair: Tensor) -> Tensor:
        """The critic's outputs, larger where it takes x (B, *shape) for what belongs to `pair`: (B * P,) for P patches
        of each example, the first example's first."""


class JudgedDomains(TranslatesBack):
    """Learns by a critic of each domain. The parts `generator` and `discriminator` are both."""

    generator: nn.Module
    discriminator: nn.Module

    @abstractmethod
    def judge(self, x: Tensor) -> Tensor:
        """Of the critic of x's domain, larger where it takes x for real: (B * P,), as of `JudgedPairs`."""

    @abstractmethod
    def judge_pair(self, pair: Tensor) -> Tensor:
        """The same of the domain of `pair`."""
