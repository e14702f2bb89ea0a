"""Optimizers and learning-rate schedules as records that config can check and a trainer can build.

The learning rate is a pure function of progress, lr(t) = lr * factor(t) with t in [0, 1), so a schedule has no state
to save. Weight decay acts on parameters of two or more dimensions: weights, not biases or normalisation gains.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from gentrain.errors import UsageError, nearest
from gentrain.signatures import check_value
from gentrain.types import Fraction, NonNegativeFloat, OpenFraction, PositiveFloat

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

Schedule = Literal["constant", "linear", "cosine", "step", "stages", "harmonic"]


def schedule_factor(schedule: str, t: float, warmup: float = 0.0, final: float = 0.0) -> float:
    """The multiple of the base learning rate at progress t.

    After a linear rise over the first `warmup` of training, u in [0, 1) runs over the rest:
    constant 1; linear 1 - (1 - final) u; cosine final + (1 - final)(1 + cos πu)/2; step 0.1^⌊3u⌋ (two drops by ten);
    stages 10^(-i/7) in eight stages i, each three times as long as the one before (Burda et al. 2016);
    harmonic 1/i in equal shares i = 1, 2, … 1/final (Salakhutdinov & Murray 2008, beside CD-i).

    >>> [schedule_factor("linear", t) for t in (0.0, 0.5)]
    [1.0, 0.5]
    >>> round(schedule_factor("cosine", 0.5, final=0.2), 6)
    0.6
    >>> [round(schedule_factor("stages", epoch / 3280), 3) for epoch in (0, 0.9, 1.1, 3.9, 4.1, 1093.1, 3279)]
    [1.0, 1.0, 0.72, 0.72, 0.518, 0.1, 0.1]
    >>> [round(schedule_factor("harmonic", t, final=0.04), 4) for t in (0.0, 0.041, 0.5, 0.999)]
    [1.0, 0.5, 0.0769, 0.04]
    >>> schedule_factor("constant", 0.05, warmup=0.1)
    0.5
    """
    if t < warmup:
        return t / warmup
    u = (t - warmup) / (1 - warmup)
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1 - (1 - final) * u
    if schedule == "cosine":
        return final + (1 - final) * (1 + math.cos(math.pi * u)) / 2
    if schedule == "stages":
        return 10 ** (-math.floor(math.log(1 + u * (3**8 - 1), 3)) / 7)
    if schedule == "harmonic":
        return 1 / (1 + math.floor(u * round(1 / final)))
    return 0.1 ** math.floor(3 * u)


@dataclass(frozen=True)
class Optim:
    """What every optimizer takes.

    Args:
        lr: learning rate at factor 1.
        weight_decay: L2 penalty (decoupled for AdamW), on weights only.
        schedule, warmup, final: see `schedule_factor`.
        parts: part name -> settings of this optimizer that differ there, e.g. {discriminator: {lr: 4e-4}}; in a
            name `*` stands for anything, as in {layer*: {lr: 1e-2}}.
    """

    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    schedule: Schedule
    warmup: OpenFraction
    final: Fraction
    parts: dict[str, dict[str, Any]] | None

    form = "fused"  # torch's fastest form of this optimizer
    scheduled = ()  # settings that say how others change in training

    def factor(self, progress: float) -> float:
        return schedule_factor(self.schedule, progress, self.warmup, self.final)

    def momentum_at(self, progress: float) -> float | None:
        """The momentum of every part at this point of training; None leaves each its own."""
        return None

    def build(self, part: str, module: nn.Module) -> Optimizer:
        """The optimizer of one part, over its trainable parameters."""
        if self.schedule == "harmonic" and self.final == 0:
            raise UsageError("optim.final=0: optim.schedule=harmonic falls to 1, 1/2, 1/3, … final; give e.g. 0.04")
        scheduled = {*_SHARED, *self.scheduled}
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in scheduled} | {"lr": self.lr}
        own = self.of_part(part)
        hints = get_type_hints(type(self), include_extras=True)
        for key, value in own.items():
            valid = [*settings, "weight_decay"]
            if key not in valid:
                raise UsageError(
                    f"optim.parts.{part}.{key}: no such setting.{nearest(key, valid)} Valid: {', '.join(valid)}"
                )
            check_value(hints[key], value, f"optim.parts.{part}.{key}")
        decay = own.get("weight_decay", self.weight_decay)
        settings |= {key: value for key, value in own.items() if key != "weight_decay"}
        trainable = [p for p in module.parameters() if p.requires_grad]
        decays = [p.dim() >= 2 and decay > 0 for p in trainable]  # one group, one call, where nothing decays
        groups = [
            {"params": [p for p, d in zip(trainable, decays, strict=True) if d], "weight_decay": decay},
            {"params": [p for p, d in zip(trainable, decays, strict=True) if not d], "weight_decay": 0.0},
        ]
        return self._optimizer([group for group in groups if group["params"]], settings)

    def of_part(self, part: str) -> dict[str, Any]:
        """The settings that differ for a part; where several patterns fit it, a later one goes before an earlier.

        >>> sgd = SGD(0.1, 0.0, "constant", 0.0, 0.0, {"layer*": {"lr": 1.0}, "layer3": {"lr": 0.01}}, 0.9, False)
        >>> [sgd.of_part(part) for part in ("layer1", "layer3", "network")]
        [{'lr': 1.0}, {'lr': 0.01}, {}]
        """
        fitting = [own for name, own in (self.parts or {}).items() if fnmatch.fnmatchcase(part, name)]
        return {key: value for own in fitting for key, value in own.items()}

    def check_parts(self, parts: Iterable[str]) -> None:
        """Refuse settings for parts that the objective doesn't train."""
        parts = list(parts)
        for name in self.parts or {}:
            if not fnmatch.filter(parts, name):
                raise UsageError(
                    f"optim.parts.{name}: this objective trains {', '.join(repr(p) for p in parts)}"
                    f"; choose another optimizer, e.g. optim=adam"
                )

    def _optimizer(self, groups: list[dict[str, Any]], settings: dict[str, Any]) -> Optimizer:
        """torch's optimizer of the same name for these groups of parameters."""
        import torch

        return getattr(torch.optim, type(self).__name__)(groups, **{self.form: True}, **settings)


_SHARED = {f.name for f in fields(Optim)}


@dataclass(frozen=True)
class Adam(Optim):
    """Kingma & Ba 2015, in torch's fused form."""

    betas: tuple[OpenFraction, OpenFraction]
    eps: PositiveFloat


@dataclass(frozen=True)
class AdamW(Optim):
    """Loshchilov & Hutter 2019: Adam with decoupled weight decay."""

    betas: tuple[OpenFraction, OpenFraction]
    eps: PositiveFloat


@dataclass(frozen=True)
class SGD(Optim):
    """Stochastic gradient descent, v <- momentum v + g + weight_decay θ, θ <- θ - lr v.

    Args:
        momentum_final: what momentum is after the first `momentum_switch` of training; None leaves it.
    """

    momentum: OpenFraction
    nesterov: bool
    momentum_final: OpenFraction | None = None
    momentum_switch: Fraction = 0.02

    scheduled = ("momentum_final", "momentum_switch")

    def momentum_at(self, progress: float) -> float | None:
        """
        >>> sgd = SGD(0.1, 0.0, "constant", 0.0, 0.0, None, 0.5, False, momentum_final=0.9, momentum_switch=0.02)
        >>> [sgd.momentum_at(t) for t in (0.0, 0.019, 0.02, 0.5)]
        [0.5, 0.5, 0.9, 0.9]
        """
        if self.momentum_final is None:
            return None
        return self.momentum if progress < self.momentum_switch else self.momentum_final

    def _optimizer(self, groups: list[dict[str, Any]], settings: dict[str, Any]) -> Optimizer:
        if settings["nesterov"] and settings["momentum"] == 0:
            raise UsageError("optim.nesterov=true needs optim.momentum above 0")
        if self.momentum_final is not None and settings["momentum"] != self.momentum:
            raise UsageError(
                f"optim.momentum_final={self.momentum_final}: is that of every part; leave it out, or"
                " optim.parts.*.momentum"
            )
        return super()._optimizer(groups, settings)


@dataclass(frozen=True)
class RMSprop(Optim):
    """Tieleman & Hinton 2012."""

    alpha: OpenFraction
    eps: PositiveFloat
    momentum: OpenFraction

    form = "foreach"


@dataclass(frozen=True)
class Adagrad(Optim):
    """Duchi, Hazan & Singer 2011."""

    eps: PositiveFloat
    initial_accumulator_value: NonNegativeFloat

    form = "foreach"
