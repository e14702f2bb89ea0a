"""Log-likelihoods of flows in continuous time, by solving their equation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from torch import Tensor

from gentrain.evaluation.estimator import Estimator, Finding, Subject
from gentrain.evaluation.likelihood import findings, over_examples
from gentrain.models.base import given, kind_given
from gentrain.models.continuous import ContinuousFlow, density_kind
from gentrain.models.ode import Field, Solution, Solver
from gentrain.types import PositiveFloat, PositiveInt

FEW = 16
"""Elements of x up to which the trace is taken where `probes` is left to the estimator."""


class ODE(Estimator):
    """log p(x) = log p(z) - ∫ tr ∂v/∂x dt by dopri5 (Chen et al. 2018, arXiv:1806.07366), of a conditional model log
    p(x|y). An estimate: of the kind `ode` where the trace is taken, with the solver's error alone, and `ode-hutchinson`
    where random signs stand for it, which is unbiased but for that (Grathwohl et al. 2019, arXiv:1810.01367).

    Args:
        probes: random vectors an example, each of which costs one gradient in every evaluation of v; null takes the
            trace itself, by as many gradients as x has elements, if these are 16 or less, else one probe.
        examples: of the split, at most; null is all.
        rtol, atol: of the solver, in each step.
    """

    needs = (ContinuousFlow,)

    def __init__(
        self,
        probes: PositiveInt | None = None,
        examples: PositiveInt | None = 1000,
        rtol: PositiveFloat = 1e-5,
        atol: PositiveFloat = 1e-5,
    ):
        self.probes, self.examples = probes, examples
        self.solver = Solver("dopri5", rtol=rtol, atol=atol)

    def unfit(self, subject: Subject) -> str | None:
        stored = subject.spec.support in ("binary", "levels")
        if isinstance(subject.model, self.needs) and stored and "dequantization" not in subject.pipeline.protocol:
            return (
                f"was trained on the levels of data={subject.spec.name} as they are, at which a density has no bound;"
                " train it with data.dequantize=true"
            )
        return super().unfit(subject)

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        model, evaluations = subject.model, []
        assert isinstance(model, ContinuousFlow)
        probes = self.probes
        if probes is None and math.prod(subject.spec.shape) > FEW:
            probes = 1
        kind = kind_given(model, density_kind(probes))

        def counted(v: Field, x: Tensor, start: float, end: float) -> Solution:
            solution = self.solver(v, x, start, end)
            evaluations.append(solution.evaluations)
            return solution

        some = subject if self.examples is None else dataclasses.replace(subject, n=subject.size(limit=self.examples))
        values = over_examples(
            some,
            kind,
            lambda batch: model.log_prob(batch.x, **given(model, batch.y), probes=probes, solver=counted),
            batch_size=100,
        )
        taken = "the trace" if probes is None else f"{probes} probe{'s' if probes > 1 else ''}"
        found = {"by": taken, "evaluations": max(evaluations)}
        yield from findings(some, "log_likelihood", kind, values, **found)
