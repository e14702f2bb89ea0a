"""What models that translate have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.base import TakesReference, Translator
from gentrain.types import PositiveInt, Shape


class KeepsInputs(Translator, TakesReference):
    """Draws its samples by translating examples that it keeps of the training set, chosen by the run's seed.

    Args:
        shape: of one example. inputs: how many it keeps.
    """

    inputs: Tensor

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
