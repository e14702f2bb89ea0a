"""Whether a model finds other data stranger than its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gentrain.errors import UsageError
from gentrain.evaluation.codes import squared_error, unit_scaled
from gentrain.evaluation.estimator import Estimator, Finding, Subject
from gentrain.evaluation.likelihood import ELBO
from gentrain.models.base import Conditional, Density, Generative, LatentVariable, Reconstructs
from gentrain.models.energies import Unnormalised
from gentrain.types import PositiveInt

Score = Callable[[Tensor], Tensor]


class Anomaly(Estimator):
    """How well a score tells the run's own test examples from those of another data set.

        anomaly_auroc                P(another's score > an own one's), ties counted half: 0.5 is chance, 1 perfect
        anomaly_average_precision    mean precision over the ranks of the others, put first by the score

    A score is high where the model is surprised, and is the kind of the row: -log p(x) (`exact`), -ELBO (`elbo`), the
    free energy (`free-energy`), the squared error of the reconstruction on [0, 1] (`recon`). A likelihood may well be
    higher on simpler images than on its own (Nalisnick et al. 2019, arXiv:1810.09136): below 0.5 is no error. Both sets
    come to the model in the same way. The AUROC's error is DeLong's, the average precision's the bootstrap's.

    Args:
        against: the other data set, as in `data=…`, or a mapping of its options: {set: npz, path: other.npz}.
        samples: draws of z an example, for the ELBO. resamples: of the bootstrap.
    """

    needs: ClassVar[tuple[type, ...]] = (Density, LatentVariable, Unnormalised, Reconstructs)
    limit: int | None = None  # examples of each set, at most

    def __init__(
        self, against: str | dict[str, Any] | None = None, samples: PositiveInt = 10, resamples: PositiveInt = 200
    ):
        self.against, self.samples, self.resamples = against, samples, resamples

    def unfit(self, subject: Subject) -> str | None:
        if self.against is None and isinstance(subject.model, self.needs):
            return "needs another data set to be told from: say data.anomaly=NAME, e.g. data.anomaly=fashion_mnist"
        model = subject.model
        if isinstance(model, Conditional) and model.classes and not isinstance(model, Density | Unnormalised):
            return "knows examples given their labels only, and other data's labels are others"
        return super().unfit(subject)

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        assert self.against is not None
        other = subject.elsewhere(self.against)
        name = other.spec.name
        if other.spec.shape != subject.spec.shape or (
            subject.model.support in ("levels", "tokens") and other.spec.levels != subject.spec.levels
        ):
            theirs, ours = (f"{s.name} {list(s.shape)} of {s.levels} levels" for s in (other.spec, subject.spec))
            raise UsageError(f"data.anomaly={name}: must hold examples like the run's own; {theirs}, {ours}")
        limit = min((n for n in (self.limit, subject.n) if n is not None), default=None)
        steps = math.ceil(subject.size(limit=limit) / 500)
        for kind, score in self._scores(subject).items():
            batches = subject.track(subject.batches(limit=limit), steps, f"anomaly, {kind}")
            own = torch.cat([score(batch.x) for batch in batches])
            strange = torch.cat([score(batch.x) for batch in other.evaluation("test", 500, limit)])
            own, strange = own.double().cpu(), strange.double().cpu()
            found = {"n_other": len(strange), "other": name}
            value, error = auroc(own, strange)
            unit, n = f"share (against {name})", len(own)
            yield Finding("anomaly_auroc", kind, value, error, unit, n, found)
            value, error = self._average_precision(own.numpy(), strange.numpy())
            yield Finding("anomaly_average_precision", kind, value, error, unit, n, found)

    def _scores(self, subject: Subject) -> Mapping[str, Score]:
        """Kind -> score, of everything that the model can say of an example."""
        model: Generative = subject.model
        scores: dict[str, Score] = {}
        if isinstance(model, Density):
            scores["exact"] = lambda x: -model.log_prob(x)
        if isinstance(model, LatentVariable):
            bound = ELBO(self.samples)
            scores["elbo"] = lambda x: -bound.bound(model, x)
        if isinstance(model, Unnormalised):
            scores["free-energy"] = model.free_energy
        if isinstance(model, Reconstructs) and model.support != "tokens":
            scores["recon"] = lambda x: squared_error(
                *(unit_scaled(t, model.support, subject.spec.levels) for t in (x, model.reconstruct(x)))
            )
        return scores

    def _average_precision(self, own: np.ndarray, strange: np.ndarray) -> tuple[float, float]:
        from sklearn.metrics import average_precision_score

        scores = np.concatenate([own, strange])
        is_strange = np.repeat([0, 1], [len(own), len(strange)])
        again = []
        for _ in range(self.resamples):  # either set drawn again by itself, from torch's seeded generator
            chosen = [torch.randint(len(s), (len(s),)).numpy() for s in (own, strange)]
            resampled = np.concatenate([own[chosen[0]], strange[chosen[1]]])
            again.append(average_precision_score(is_strange, resampled))
        return float(average_precision_score(is_strange, scores)), float(np.std(again, ddof=1))


def auroc(own: Tensor, strange: Tensor) -> tuple[float, float]:
    """P(strange > own) + ½ P(strange = own) and its standard error (DeLong et al. 1988), of scores (N,) and (M,).

    The area is the Mann-Whitney statistic; its variance is that of each score's placement among the others', divided by
    their number.

    >>> auroc(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))[0]
    0.875
    """
    from scipy.stats import rankdata

    n, m = len(own), len(strange)
    ranks = torch.from_numpy(rankdata(torch.cat([own, strange]).numpy()))
    above = (ranks[n:] - torch.from_numpy(rankdata(strange.numpy()))) / n  # share of own below each strange one
    below = 1 - (ranks[:n] - torch.from_numpy(rankdata(own.numpy()))) / m
    variance = sum(float(p.var()) / len(p) for p in (above, below) if len(p) > 1)
    return float(above.mean()), variance**0.5
