"""Estimators of how much of the data's variety samples have: the classes they show, the modes of a mixture they hit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gentrain.evaluation.classifier import classifier
from gentrain.evaluation.codes import binomial_error
from gentrain.evaluation.estimator import Estimator, Finding, Subject
from gentrain.evaluation.features import Space
from gentrain.evaluation.judged import how_many, labelled, samples
from gentrain.types import Fraction, PositiveFloat, PositiveInt

RESAMPLES = 200  # of the bootstrap


def bootstrap(counts: Tensor, statistic: Callable[[Tensor], float]) -> tuple[float, float]:
    """A statistic of counts (K,) and its standard error when the counted things are drawn again.

    >>> value, error = bootstrap(torch.tensor([50, 50]), lambda c: float(c[0] / c.sum()))
    >>> value, 0.03 < error < 0.07  # √(½ ½ / 100)
    (0.5, True)
    """
    counts = counts.double()
    total = int(counts.sum())
    drawn = torch.multinomial(counts / total, RESAMPLES * total, replacement=True).view(RESAMPLES, total)
    again = [statistic(torch.bincount(row, minlength=len(counts)).double()) for row in drawn]
    return statistic(counts), float(torch.tensor(again, dtype=torch.float64).std())


def divergence(counts: Tensor, shares: Tensor) -> float:
    """KL(p ‖ q) = Σ_i p_i log(p_i/q_i) in nats, with p the shares of `counts` (K,) and q the `shares` (K,).

    >>> divergence(torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.5]))
    0.0
    """
    p = counts.double() / counts.sum()
    return float(torch.special.xlogy(p, p).sum() - torch.special.xlogy(p, shares.double()).sum())


class ModeCoverage(Estimator):
    """Which classes the samples show, as a classifier of the data's own labels judges them.

        classes_covered   classes whose share among samples is at least `least` times that among the training examples
        label_kl          KL(labels of samples ‖ labels of training examples), in nats
        confident_share   samples that the classifier is surer of than `confidence`; the row's `confident_examples` is
                          the share of training examples that it is as sure of

    Of data whose channels are images with labels of their own (`stacked_mnist`) it judges each channel by itself, and
    adds what is published of these, together with `label_kl` (Metz et al. 2017, arXiv:1611.02163):

        modes_hit         classes, of 1,000 for three digits, with at least one sample

    Where the data are a mixture with known centres (`ring`, `grid`), those are used instead: see `MixtureModes`.
    Errors are the bootstrap's over the samples; the classifier's own errors come on top.

    Args:
        n_fake: samples. least: 0.1 is a share of 1 % for ten classes of one size. confidence: largest probability.
    """

    of_samples = True

    def __init__(self, n_fake: PositiveInt = 10_000, least: PositiveFloat = 0.1, confidence: Fraction = 0.9):
        self.n_fake, self.least, self.confidence = n_fake, least, confidence

    def unfit(self, subject: Subject) -> str | None:
        if subject.model.support == "tokens":
            return "models tokens, which this classifier doesn't take"
        if not labelled(subject) and subject.spec.modes is None:
            return f"was trained on data={subject.spec.name}, which has no labels"
        return super().unfit(subject)

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        if subject.spec.modes is not None:
            yield from MixtureModes(self.n_fake)(subject)
            return
        judge = classifier(subject)
        n_real = how_many(subject, "train", None, self.n_fake)
        labels = torch.cat([b.y.cpu() for b in subject.pipeline.evaluation("train", 500) if b.y is not None])
        data = torch.bincount(labels, minlength=subject.spec.classes or 0).double() / len(labels)
        logits = Space("logits", judge.network)
        real, fake = logits.of_examples(subject, "train", n_real), logits.of_samples(subject, self.n_fake)
        fake = fake.masked_fill((data == 0).to(fake.device), -math.inf)  # a class without examples is no answer
        counts = torch.bincount(fake.argmax(1).cpu(), minlength=len(data))
        settings = {"reference": "train", "classes": int((data > 0).sum()), **judge.settings}
        listed = len(counts) <= 100  # a thousand shares tell a reader nothing
        shares = {"shares": [round(float(s), 6) for s in counts / self.n_fake]} if listed else {}

        def covered(c: Tensor) -> float:
            return float(((c / c.sum() >= self.least * data) & (data > 0)).sum())

        if subject.spec.channel_classes is not None:
            value, error = bootstrap(counts, lambda c: float((c > 0).sum()))
            yield Finding("modes_hit", "modes", value, error, "modes", self.n_fake, settings)
        value, error = bootstrap(counts, covered)
        yield Finding("classes_covered", "modes", value, error, "classes", self.n_fake, {**settings, **shares})
        value, error = bootstrap(counts, lambda c: divergence(c, data))
        yield Finding("label_kl", "modes", value, error, "nats", self.n_fake, {**settings, **shares})
        sure, sure_of_data = (float((z.softmax(1).amax(1) > self.confidence).double().mean()) for z in (fake, real))
        yield Finding("confident_share", "modes", sure, binomial_error(sure, self.n_fake), "share", self.n_fake,
                      {**settings, "n_real": n_real, "confident_examples": sure_of_data})  # fmt: skip


ENOUGH = 10
"""Samples for each mode without which nothing is said of their shares."""


class MixtureModes(Estimator):
    """Which modes of a mixture of round Gaussians with known centres and deviation the samples hit.

    A sample within `deviations` standard deviations of the nearest centre is of high quality (Srivastava et al. 2017,
    arXiv:1705.07761). Of points in the plane 98.9 % are within three.

        modes_hit      modes with at least one sample of high quality
        high_quality   share of samples of high quality
        mode_kl        KL(modes of the high-quality samples ‖ all modes alike), in nats; none if these are fewer than
                       ten for each mode

    Args:
        n_fake: samples; published counts are of 2,500. deviations: radius of a mode in standard deviations.
    """

    of_samples = True
    cheap = True

    def __init__(self, n_fake: PositiveInt = 2500, deviations: PositiveFloat = 3.0):
        self.n_fake, self.deviations = n_fake, deviations

    def unfit(self, subject: Subject) -> str | None:
        if subject.spec.modes is None:
            return f"was trained on data={subject.spec.name}, whose modes are not known; data=ring and grid have such"
        return super().unfit(subject)

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        modes = subject.spec.modes
        assert modes is not None
        x = torch.cat(list(samples(subject, self.n_fake))).flatten(1).double()
        centres = torch.tensor(modes.centres, dtype=torch.float64, device=x.device)
        counts = hits(x, centres, self.deviations * modes.std).cpu()
        settings = {"modes": len(centres), "std": modes.std}
        shares = {"shares": [round(float(s), 6) for s in counts[:-1] / self.n_fake]}
        value, error = bootstrap(counts, lambda c: float((c[:-1] > 0).sum()))
        yield Finding("modes_hit", "modes", value, error, "modes", self.n_fake, {**settings, **shares})
        good = float(counts[:-1].sum() / counts.sum())
        error = binomial_error(good, self.n_fake)
        yield Finding("high_quality", "modes", good, error, "share", self.n_fake, settings)
        found = int(counts[:-1].sum())
        if found >= ENOUGH * len(centres):
            alike = torch.full((len(centres),), 1 / len(centres), dtype=torch.float64)
            value, error = bootstrap(counts[:-1], lambda c: divergence(c, alike))
            yield Finding("mode_kl", "modes", value, error, "nats", found, {**settings, **shares})


def hits(x: Tensor, centres: Tensor, radius: float) -> Tensor:
    """How many of x (N, d) have each of `centres` (M, d) nearest and within `radius`, and how many are of no mode,
    (M + 1,).

    >>> hits(torch.tensor([[0.1], [0.9], [5.0]]), torch.tensor([[0.0], [1.0], [2.0]]), radius=0.5)
    tensor([1, 1, 0, 1])
    """
    distance, mode = torch.cdist(x, centres, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    return torch.bincount(mode.where(distance <= radius, len(centres)), minlength=len(centres) + 1)
