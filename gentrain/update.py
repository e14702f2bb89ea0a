"""The contract between objectives and the trainer: an objective yields updates, the trainer carries them out.

An objective is a lazy generator. The trainer takes each update as it is yielded, steps that part's optimizer, and only
then asks for the next: a GAN's generator loss is computed against the discriminator that has just moved. One loss, a
game of several players, closed-form gradients and in-place estimation all fit this one contract.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from gentrain.batch import Batch


@dataclass(frozen=True, slots=True)
class Update:
    """One change of one part.

    Args:
        loss: a scalar to minimise by autograd, or
        grads: parameter name (within the part) -> ready gradient of the loss to minimise, or neither when the
            objective has already changed the model in place.
        part: name of the submodule whose parameters move; "" is the whole model.
        metrics: name -> scalar tensor. They stay tensors on the device until the report asks for them.
    """

    loss: Tensor | None = None
    part: str = ""
    grads: Mapping[str, Tensor] | None = None
    metrics: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.loss is not None and self.grads is not None:
            raise ValueError("an update has a loss or ready gradients, not both")


def following(updates: Iterator[Update], done: Optimizer | None) -> Update | None:
    """The next update, or None when there are no more.

    Args:
        updates: of one batch. done: the optimizer that has carried out the update before; None if there was none, or it
            needed none.
    """
    if done is not None and isinstance(updates, Generator):
        try:
            return updates.send(done)
        except StopIteration:
            return None
    return next(updates, None)


class Score(NamedTuple):
    """Per-example values (B,) of one evaluated quantity, and what kind of number it is: kinds are never mixed."""

    values: Tensor
    kind: str
    unit: str = "nats"


class Objective(nn.Module, ABC):
    """What is optimised and how.

    It is a module so that whatever it keeps between steps (chains, fast weights, running averages) lives in buffers
    allocated in the constructor, and so is checkpointed and moved to the device like everything else.

    Class attributes:
        needs: the capability (a base class of `gentrain.models.base` or `energies`) a model must have.
        excludes: capabilities of models that have what is needed and are still not trained in this way.
        parts: names of the submodules it trains, each with its own optimizer; "" is the whole model. An objective whose
            settings decide that sets its own in the constructor.
        leaves: names of submodules that it leaves as they are, on purpose; all else in the model is to learn.
        monitor: the `validate` quantity by which the best checkpoint is chosen (larger is better), or None where no
            honest one exists.
        continues: whether a row of a batch must go on where that row of the batch before ended (`Batch.starts`).
        compiled: names of methods that are functions of tensors alone, where a step spends its time: `device.compile`
            compiles these, and the model's networks where an objective names none.
    """

    needs: ClassVar[type]
    excludes: ClassVar[tuple[type, ...]] = ()
    parts: tuple[str, ...] = ("",)
    leaves: tuple[str, ...] = ()
    monitor: ClassVar[str | None] = None
    continues: ClassVar[bool] = False
    compiled: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def fits(cls, model: type) -> bool:
        """Whether models of this class can be trained by it."""
        return issubclass(model, cls.needs) and not issubclass(model, cls.excludes)

    def require(self, model: Any) -> None:
        """Refuse a model that `needs` admits and these settings don't; called once, before anything is written.

        Raises:
            UsageError: with the option, its value and a remedy.
        """

    def begin(self, model: Any) -> None:
        """Called when training by it starts after training by another, in `Stages`: the model may be changed here."""

    @abstractmethod
    def forward(self, model: Any, batch: Batch, progress: float) -> Iterator[Update]:
        """Yield the updates for one batch. `progress` in [0, 1) is the fraction of training that is done."""

    def fantasies(self, model: Any) -> Tensor | None:
        """The chains that it trains by, its fantasy particles, as examples (n, *shape); None if it keeps none."""
        return None

    def validate(self, model: Any, batch: Batch) -> dict[str, Score]:
        """Quantities measured on held-out data, per example; none unless the objective knows some."""
        return {}
