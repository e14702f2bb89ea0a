"""Arithmetic with codes."""

from __future__ import annotations

import torch
from torch import Tensor

from gentrain.errors import UsageError
from gentrain.evaluation.codes import nearest, unit_scaled
from gentrain.evaluation.estimator import Subject
from gentrain.evaluation.inversion import expected
from gentrain.models.base import Decoder, Encodes, Generative, LatentVariable
from gentrain.types import NonNegativeInt, PositiveInt
from gentrain.uses.base import Data, Drawn, Use, draw_codes

LABELLED = 2000
"""Training examples whose labels those that a model makes get, by nearness; and how many it makes."""


class Arithmetic(Use):
    """x with an attribute exchanged: decode(code(x) + s (m_target - m_source)), m the mean code of a label's training
    examples (Larsen et al. 2016, arXiv:1512.09300, section 4.3; Radford et al. 2016).

    A row: a test example labelled `source`, and its code moved by growing parts of the way, from none (the
    reconstruction) to all of it. A model that can't encode makes the examples itself, the one that begins the row and
    those whose codes are averaged: each has the label of the nearest of LABELLED training examples.

    Args:
        source, target: labels.
        scale: s at the end of the row.
        steps: examples in a row after the first.
    """

    needs = (LatentVariable, Decoder)

    def __init__(
        self, source: NonNegativeInt = 0, target: NonNegativeInt = 1, scale: float = 1.0, steps: PositiveInt = 7
    ):
        self.source, self.target, self.scale, self.steps = source, target, scale, steps

    def __call__(self, model: Generative, n: int, data: Data) -> Drawn:
        assert isinstance(model, LatentVariable | Decoder)
        subject = data()
        rows = max(1, n // (self.steps + 1))
        x, codes, way = (
            self._encoded(model, subject, rows) if isinstance(model, Encodes) else self._made(model, subject)
        )
        x, codes = x[:rows], codes[:rows]
        t = torch.linspace(0, self.scale, self.steps, device=codes.device).view(1, -1, *[1] * way.dim())
        moved = expected(model, (codes[:, None] + t * way).flatten(0, 1)).view(len(x), self.steps, *model.shape)
        return Drawn(torch.cat([x[:, None].to(moved), moved], 1).flatten(0, 1), self.steps + 1, arrays={"way": way})

    def _encoded(self, model: Encodes, subject: Subject, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Test examples labelled `source`, their codes, and m_target - m_source."""
        way = self._mean(model, subject, self.target) - self._mean(model, subject, self.source)
        x, y = subject.labelled()
        x = x[y == self.source][:rows]
        if not len(x):
            raise UsageError(f"kind.source={self.source}: no {subject.split} example of {subject.spec.name} has it")
        return x, model.codes(x), way

    def _mean(self, model: Encodes, subject: Subject, label: int) -> Tensor:
        """The mean code of the training examples with a label."""
        total, count = torch.zeros((), dtype=torch.float64, device=subject.device), 0
        for batch in subject.batches("train"):
            if batch.y is None:
                raise UsageError(f"kind=arithmetic: data={subject.spec.name} has no labels to tell attributes by")
            x = batch.x[batch.y == label]
            total = total + model.codes(x).double().sum(0) if len(x) else total
            count += len(x)
        if not count:
            raise _unknown(subject, label)
        return (total / count).float()

    def _made(self, model: LatentVariable | Decoder, subject: Subject) -> tuple[Tensor, Tensor, Tensor]:
        """The same of examples that the model makes."""
        if not subject.spec.classes:
            raise UsageError(f"kind=arithmetic: data={subject.spec.name} has no labels to tell attributes by")
        known, labels = subject.labelled("train", LABELLED)
        if missing := [y for y in (self.source, self.target) if not bool((labels == y).any())]:
            raise _unknown(subject, missing[0])
        z = draw_codes(model, LABELLED)
        x = torch.cat([expected(model, part) for part in z.split(500)])
        made, real = (unit_scaled(t, model.support, subject.spec.levels).flatten(1) for t in (x, known))
        _, at = nearest(made, [real], 1)
        y = labels[at[:, 0]]
        if missing := [label for label in (self.source, self.target) if not bool((y == label).any())]:
            raise UsageError(
                f"kind=arithmetic: of {LABELLED} examples that {type(model).__name__} made none has the label"
                f" {missing[0]}; choose others by kind.source and kind.target"
            )
        way = z[y == self.target].mean(0) - z[y == self.source].mean(0)
        return x[y == self.source], z[y == self.source], way


def _unknown(subject: Subject, label: int) -> UsageError:
    return UsageError(f"no training example of {subject.spec.name} has the label {label}; see kind.source, kind.target")
