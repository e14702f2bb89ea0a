"""Greedy layer-wise training, and the fine-tuning that follows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.layers import every_layer
from gentrain.models.stack import AutoencoderStack, RBMStack, Stack, Unrolled
from gentrain.objectives.reconstruction import Loss, Reconstruction
from gentrain.objectives.stages import Stages
from gentrain.types import OpenFraction, PositiveInt
from gentrain.update import Objective, Score, Update


class Greedy(Objective):
    """Trains the layers of a stack one after the other, an equal share of the training each (Hinton et al. 2006).

    Layer i learns by `inner` from what the finished layers below it make of x, which get no gradient and stay as they
    are. Metrics are those of what trains it, named `layer<i>/…`.

    Args:
        hidden: units of the layers, `${model.hidden}`: one part for each.
        inner: trains a single layer.
        sampled: a layer's examples are bits, drawn from the probabilities of the units below, and not these.
        top: trains the last layer, from which a belief network is sampled; None is `inner`.

    Raises:
        UsageError: `inner` or `top` trains several parts.
    """

    needs = Stack
    trained: Tensor

    def __init__(
        self,
        hidden: Sequence[PositiveInt],
        inner: Objective,
        sampled: bool = False,
        top: Objective | None = None,
    ):
        super().__init__()
        self.sampled = sampled
        for name, objective in (("inner", inner), ("top", top)):
            if objective is not None and tuple(objective.parts) != ("",):
                raise UsageError(
                    f"objective.{name}={type(objective).__name__}: trains the parts {', '.join(objective.parts)} of a"
                    " model; a layer is trained as a whole"
                )
        self.inner, self.top = inner, top
        self.parts = tuple(f"layer{i + 1}" for i in range(len(hidden)))
        self.register_buffer("trained", torch.ones((), dtype=torch.int64))
        self._at: int | None = None  # the same, without asking a device: None if a checkpoint may have been loaded
        self.register_load_state_dict_post_hook(_forget)

    def require(self, model: Stack) -> None:
        if model.depth != len(self.parts):
            raise UsageError(
                f"objective.hidden names {len(self.parts)} layers, and the model has {model.depth}; leave it"
                " ${model.hidden}"
            )
        for i in range(1, model.depth + 1):
            layer, objective = model.layer(i), self._of(i)
            if not objective.fits(type(layer)):
                raise UsageError(
                    f"objective.{'inner' if objective is self.inner else 'top'}={type(objective).__name__}: layer {i}"
                    f" of {type(model).__name__} is no {objective.needs.__name__} but {type(layer).__name__}"
                )
            objective.require(layer)

    def _of(self, i: int) -> Objective:
        """What trains layer i."""
        return self.inner if self.top is None or i < len(self.parts) else self.top

    def forward(self, model: Stack, batch: Batch, progress: float) -> Iterator[Update]:
        position = progress * model.depth
        i = min(int(position), model.depth - 1) + 1
        if i != self._at:
            if i > int(self.trained) and model.begin(i):
                yield Update()
            self.trained.fill_(i)
            self._at = i
        with torch.no_grad():
            x = model.upward(batch.x, i, self.sampled)
            if i == model.depth and isinstance(model, Unrolled):
                model.observe(model.up(i, x))
        for update in self._of(i)(model.layer(i), batch._replace(x=x), min(position - i + 1, 1 - 1e-9)):
            metrics = {f"layer{i}/{name}": value for name, value in update.metrics.items()}
            yield replace(update, part=f"layer{i}", metrics=metrics)

    def validate(self, model: Stack, batch: Batch) -> dict[str, Score]:
        i = int(self.trained)
        scores = self._of(i).validate(model.layer(i), batch._replace(x=model.upward(batch.x, i)))
        return {f"layer{i}/{name}": score for name, score in scores.items()}


def _forget(module: nn.Module, incompatible: object) -> None:
    assert isinstance(module, Greedy)
    module._at = None


class Finetune(Reconstruction):
    """Reconstruction by the network that a stack is unrolled into; its layers stay as they were pretrained.

    Args:
        loss: as in `Reconstruction`.
        dropout: the share of the inputs of each of the encoder's layers that is left out in training, the lowest first,
            the last for all that follow; () is without. Held-out numbers are of whole inputs.

    Raises:
        UsageError: shares for more layers than there are.
    """

    needs = Unrolled
    excludes = ()
    parts = ("network",)
    compiled = ()  # dropout draws

    def __init__(self, loss: Loss = "auto", dropout: Sequence[OpenFraction] = ()):
        super().__init__(loss)
        self.dropout = tuple(dropout)

    def require(self, model: Unrolled) -> None:
        super().require(model)
        every_layer("objective.dropout", self.dropout, model.depth)

    def code(self, model: Unrolled, seen: Tensor) -> Tensor:
        if self.dropout and model.training:
            return model.noisy_codes(seen, every_layer("objective.dropout", self.dropout, model.depth))
        return super().code(model, seen)

    def begin(self, model: Unrolled) -> None:
        model.unroll()


class PretrainRBM(Stages):
    """A stack of RBMs is trained layer by layer, unrolled and fine-tuned (Hinton & Salakhutdinov 2006).

    Args:
        stages: as in `Stages`.
    """

    needs = RBMStack

    def __init__(self, stages: Mapping[str, Any]):
        super().__init__(stages)


class PretrainAutoencoder(Stages):
    """A stack of autoencoders is trained layer by layer, unrolled and fine-tuned (Bengio et al. 2007).

    Args:
        stages: as in `Stages`.
    """

    needs = AutoencoderStack

    def __init__(self, stages: Mapping[str, Any]):
        super().__init__(stages)
