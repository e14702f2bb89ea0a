"""Kullback-Leibler divergence between a density and the one its data were drawn from, where that is known."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gentrain.evaluation.estimator import Estimator, Finding, Subject, mean_and_error
from gentrain.evaluation.judged import samples
from gentrain.evaluation.likelihood import over_examples
from gentrain.models.base import Density
from gentrain.models.continuous import ContinuousFlow, density_kind
from gentrain.models.gaussian import mixture_log_prob
from gentrain.types import PositiveInt


class Divergence(Estimator):
    """KL in both directions to the mixture of Gaussians t that `data=ring` and `grid` are drawn from.

        forward_kl   KL(t ‖ p) = E_t[log t(x) - log p(x)] over held-out examples: large where p misses a mode
        reverse_kl   KL(p ‖ t) = E_p[log p(x) - log t(x)] over samples: large where p lies between modes

    Of a flow in continuous time log p is an estimate, and so they are of another kind.

    Args:
        n_fake: samples of the model.
    """

    needs = (Density, ContinuousFlow)

    def __init__(self, n_fake: PositiveInt = 10_000):
        self.n_fake = n_fake

    def unfit(self, subject: Subject) -> str | None:
        modes = subject.spec.modes
        if modes is None or modes.std == 0:
            return (
                f"was trained on data={subject.spec.name}, whose density is not known; those of data=ring and grid are"
            )
        return super().unfit(subject)

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        model, modes = subject.model, subject.spec.modes
        assert isinstance(model, Density | ContinuousFlow) and modes is not None
        how = "" if isinstance(model, Density) else f" by {density_kind(probes=None)}"
        centres = torch.tensor(modes.centres, device=subject.device)

        def ratio(x: torch.Tensor) -> torch.Tensor:
            return mixture_log_prob(x.flatten(1), centres, modes.std).double() - model.log_prob(x).double()

        values = over_examples(subject, "forward KL", lambda batch: ratio(batch.x))
        yield Finding("forward_kl", f"forward-kl{how}", *mean_and_error(values), "nats", len(values))
        values = -torch.cat([ratio(x) for x in samples(subject, self.n_fake)])
        yield Finding("reverse_kl", f"reverse-kl{how}", *mean_and_error(values), "nats", self.n_fake)
