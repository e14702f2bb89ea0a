"""How well a recurrent model predicts text, a character at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from gentrain.evaluation.estimator import Estimator, Finding, Subject, mean_and_error
from gentrain.models.sequence import Recurrent


class Text(Estimator):
    """-1/T Σ_t log p(x_t | what came before) over a split in its order, in nats and in bits a character.

    Two kinds, which are never ranked together:

        carried     the split is one text: what came before is all of it up to there, as the model's memory keeps it
        window-L    each window of L characters is a text of its own; the first of its characters, of whose past the
                    model sees little or nothing, count like all others

    Perplexity is exp of the former. Windows of nanoGPT's evaluation are drawn at random, of 256, and are given their
    first character; char-rnn carries its state over the last 5% of a text. What is left of a split beyond its last
    whole window is left out. The standard error is that of the windows' means; those of one text aren't quite
    independent.

    Args:
        reset: find the second kind too.
    """

    needs = (Recurrent,)

    def __init__(self, reset: bool = True):
        self.reset = reset

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        model = subject.model
        assert isinstance(model, Recurrent)
        windows = subject.examples()
        length = windows.shape[1]
        yield from _findings("carried", carried(subject, model, windows))
        if self.reset:
            found = [model.log_prob(piece).double() / length for piece in windows.split(500)]
            yield from _findings(f"window-{length}", torch.cat(found), length)


def carried(subject: Subject, model: Recurrent, windows: Tensor) -> Tensor:
    """log p of consecutive windows (N, L) given all before each, in nats a character, (N,)."""
    memory, found = model.blank(1), []
    for window in subject.track(windows, len(windows), "text"):
        log_p, memory = model.read(window[None], memory)
        found.append(log_p.double().mean())
    return torch.stack(found)


def _findings(kind: str, values: Tensor, length: int = 0) -> Iterator[Finding]:
    mean, error = mean_and_error(-values)
    settings = {"context": f"{length} characters at most" if length else "all before"}
    for unit, nats in (("nats/char", 1.0), ("bits/char", math.log(2))):
        yield Finding("cross_entropy", kind, mean / nats, error / nats, unit, len(values), settings)
