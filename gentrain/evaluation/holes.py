"""Where the codes of data lie, and whether the prior draws its codes from there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from gentrain import pictures
from gentrain.evaluation.codes import binomial_error, nearest, numpy
from gentrain.evaluation.estimator import Estimator, Finding, Picture, Subject
from gentrain.evaluation.inversion import expected
from gentrain.models.base import Conditional, Decoder, Encodes, LatentVariable
from gentrain.types import PositiveInt

NEAR = 0.95
"""Of held-out examples' codes lie so near to a training example's code: what is farther lies in a hole."""
KEYS = 8192


class CodesMap(Estimator):
    """Why a plain autoencoder is no generative model: codes of data, draws of the prior, and what those are decoded to.

    The picture shows the codes in the plane (the first two principal components of more than two), by label where there
    are labels, the prior's draws as crosses, and beside it decoded draws, from the one nearest to a training example's
    code to the farthest. `hole_share` is the share of draws farther from every training code than 95% of held-out codes
    are: 0.05 if the prior were the distribution of codes, more where it draws from holes. Of a model with a posterior
    q(z|x) a code is a draw from it.

    Args:
        train: training examples whose codes are looked among. draws: of the prior. shown: decoded draws in the picture.
    """

    needs = (LatentVariable, Decoder)

    def __init__(self, train: PositiveInt = 10_000, draws: PositiveInt = 2000, shown: PositiveInt = 64):
        self.train, self.draws, self.shown = train, draws, shown

    def unfit(self, subject: Subject) -> str | None:
        model = subject.model
        if isinstance(model, Conditional) and model.classes:
            return "has codes that are to be read together with a label"
        if not isinstance(model, Encodes):
            return "has no way from an example to its code"
        return super().unfit(subject)

    def __call__(self, subject: Subject) -> Iterator[Finding | Picture]:
        model = subject.model
        assert isinstance(model, LatentVariable | Decoder) and isinstance(model, Encodes)
        known, _ = _codes(subject, "train", self.train)
        judged, labels = _codes(subject, subject.split, None)
        drawn = torch.cat([model.prior.sample(torch.Size([n])) for n in _chunks(self.draws)]).to(subject.device)
        usual, far = (nearest(z, known.split(KEYS), 1)[0][:, 0] for z in (judged, drawn.flatten(1)))
        share = float((far > torch.quantile(usual, NEAR)).double().mean())
        yield Finding("hole_share", "codes", share, binomial_error(share, len(far)), "share", len(far))
        if pictures.is_image(model.shape):
            order = far.argsort()
            rows = order[torch.linspace(0, len(order) - 1, min(self.shown, len(order))).round().long().to(order.device)]
            images = pictures.show(expected(model, drawn[rows]), model, subject.spec.levels)
            plane = _plane(judged, drawn.flatten(1))
            yield Picture("codes_map", pictures.codes_map(*plane, None if labels is None else numpy(labels), images))


def _chunks(n: int, size: int = 500) -> list[int]:
    return [size] * (n // size) + ([n % size] if n % size else [])


def _codes(subject: Subject, split: str, limit: int | None) -> tuple[Tensor, Tensor | None]:
    """Codes of a split, (N, d), and labels where there are any."""
    model, parts, labels = subject.model, [], []
    assert isinstance(model, Encodes)
    for batch in subject.batches(split, None if limit is None else min(limit, subject.spec.sizes[split])):
        z = model.encode(batch.x).sample() if isinstance(model, LatentVariable) else model.codes(batch.x)
        parts.append(z.flatten(1).float())
        labels += [] if batch.y is None else [batch.y]
    return torch.cat(parts), torch.cat(labels) if labels else None


def _plane(codes: Tensor, drawn: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Both sets in the plane: as they are, or in the first two principal components of the codes."""
    if codes.shape[1] == 1:
        return tuple(np.column_stack([numpy(z)[:, 0], np.zeros(len(z))]) for z in (codes, drawn))  # type: ignore
    if codes.shape[1] == 2:
        return numpy(codes), numpy(drawn)
    mean = codes.mean(0)
    axes = torch.linalg.eigh((codes - mean).t().double().cov().float()).eigenvectors[:, -2:].flip(1)
    return numpy((codes - mean) @ axes), numpy((drawn - mean) @ axes)
