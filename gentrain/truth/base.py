"""What a check is, what it is given, and how all that apply are carried out."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gentrain.batch import Batch
from gentrain.device import own_randomness
from gentrain.errors import GentrainError
from gentrain.models.base import Decoder, Generative, LatentVariable
from gentrain.optim import Optim
from gentrain.truth.spaces import Space, space_of
from gentrain.update import Objective


@dataclass(frozen=True)
class Check:
    """What became of one check.

    Args:
        name: what was claimed. held: whether it is so; None if that couldn't be checked, and `words` say why.
        measured, allowed: it holds where the first is at most the second. words: what was measured, in one line.
    """

    name: str
    held: bool | None
    measured: float
    allowed: float
    words: str


class Unchecked(Exception):
    """Raised by a check that can't be carried out here, with the reason."""


@dataclass
class Case:
    """What is proved: a model in eval mode whose parameters are all away from where they start, and its objective.

    Args:
        model, objective: on one device. optim: settings of the optimizer. batches: of training, on that device.
        fresh: builds the model anew, with other parameters. levels: values an element can take, None for reals.
        n: draws by which distributions are compared. seed: of every check's own draws.
    """

    model: Generative
    objective: Objective
    optim: Optim
    batches: Sequence[Batch]
    fresh: Callable[[], Generative]
    levels: int | None
    n: int = 10_000
    seed: int = 0

    @property
    def x(self) -> Tensor:
        """Some examples, (B, *shape)."""
        return self.batches[0].x

    @functools.cached_property
    def codes(self) -> Tensor | None:
        """As many codes as there are examples, where the model has codes."""
        if not isinstance(self.model, LatentVariable | Decoder):
            return None
        with own_randomness(self.seed):
            return self.model.prior.sample(torch.Size([len(self.x)]))

    @functools.cached_property
    def space(self) -> Space:
        """All of x's space.

        Raises:
            Unchecked: it is too large to sum over.
        """
        with own_randomness(self.seed):
            space = space_of(self.model, self.levels, self.x)
        if isinstance(space, str):
            raise Unchecked(space)
        return space


Verdict = tuple[float, float, str]
"""Measured, allowed, words. A check returns None where it has nothing to say of this model."""


@dataclass(frozen=True)
class Truth:
    """A claim, the classes (any of them) whose models make it, and the check of it."""

    claim: str
    about: tuple[type, ...]
    check: Callable[[Case], Verdict | None] = field(repr=False)


TRUTHS: list[Truth] = []


def claims(claim: str, *about: type) -> Callable[[Callable[[Case], Verdict | None]], Callable[[Case], Verdict | None]]:
    """Register a check of what models of the classes `about` claim."""

    def register(check: Callable[[Case], Verdict | None]) -> Callable[[Case], Verdict | None]:
        TRUTHS.append(Truth(claim, about, check))
        return check

    return register


def applicable(case: Case) -> int:
    """How many checks `prove` carries out."""
    return sum(isinstance(case.model, truth.about) for truth in truths())


def truths() -> Sequence[Truth]:
    """Every claim there is a check of."""
    from gentrain.truth import (  # noqa: F401 -- they register their checks
        annealing,
        autoregressive,
        bidirectional,
        bounded,
        cascade,
        completing,
        continuous,
        diffusion,
        invertible,
        labels,
        latent,
        learning,
        models,
        objectives,
        sequence,
        translation,
    )

    return TRUTHS


def prove(case: Case, only: Collection[str] | None = None) -> Iterator[Check]:
    """Every check that applies to the case, or `only` those claims; each with the same seed, none stopping another."""
    for truth in truths():
        if isinstance(case.model, truth.about) and (only is None or truth.claim in only):
            found = carry_out(truth.claim, functools.partial(truth.check, case), case.seed)
            if found is not None:
                yield found


def carry_out(claim: str, check: Callable[[], Verdict | None], seed: int) -> Check | None:
    """One check; what it raises is a check that failed."""
    try:
        with own_randomness(seed):
            verdict = check()
    except Unchecked as reason:
        return Check(claim, None, float("nan"), float("nan"), f"not checked: {reason}")
    except Exception as error:  # of a user's model: whatever it is, the other checks go on
        return Check(claim, False, float("nan"), float("nan"), blame(error))
    if verdict is None:
        return None
    measured, allowed, words = verdict
    return Check(claim, measured <= allowed, measured, allowed, words)  # NaN is at most nothing


def blame(error: Exception) -> str:
    """The error and the line of code that it came from, outside of installed libraries."""
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, GentrainError):
        return text
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
    where = f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    return f"raised {type(error).__name__}: {text}{where}"


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two nested structures of plain types and tensors differ, bit for bit; NaN equals NaN.

    >>> differences({"a": [1, 2.0]}, {"a": [1, 2.5]})
    ['.a[1]: 2.0 != 2.5']
    """
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
        return [] if same else [path]
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        extra = [f"{path}.{k} (in one only)" for k in {*a} ^ {*b}]
        return extra + [d for k in a if k in b for d in differences(a[k], b[k], f"{path}.{k}")]
    if isinstance(a, Sequence) and isinstance(b, Sequence) and not isinstance(a, str):
        if len(a) != len(b):
            return [f"{path} (lengths {len(a)}, {len(b)})"]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{path}[{i}]")]
    return [] if a == b and type(a) is type(b) else [f"{path}: {a} != {b}"]
