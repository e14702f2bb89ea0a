"""Flow matching: the velocity field's regression on the velocities of straight paths from noise to data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from gentrain import noise
from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.base import given
from gentrain.models.flow_matching import FlowMatching
from gentrain.types import Fraction, NonNegativeFloat
from gentrain.update import Objective, Score, Update


class ConditionalFlowMatching(Objective):
    """E ‖v(x_t, t) - (x_1 - (1 - σ) x_0)‖² with x_t = (1 - (1 - σ) t) x_0 + t x_1, x_0 ~ N(0, I) and x_1 from the data:
    Lipman et al.'s optimal-transport path (2023, arXiv:2210.02747, eq. 20 to 23), at σ = 0 the rectified flow of Liu et
    al. (2023, arXiv:2209.03003). The minimiser is the field that carries N(0, I) at t = 0 to the data, blurred by σ, at
    t = 1. `loss` is the mean over elements.

    Args:
        sigma_min: σ.
        times: t is `uniform` in [0, 1], or `logit_normal`, the sigmoid of a standard normal, which dwells on the
            middle, where most is to be learned (Esser et al. 2024, arXiv:2403.03206); the minimiser is the same.
        coupling: of x_0 with x_1 in a batch: `independent`, or `batch_ot`, the pairing of least total squared
            distance, among examples of one label where the model is conditional, so that noise knows nothing of the
            label (Tong et al. 2024, arXiv:2302.00482; Pooladian et al. 2023, arXiv:2304.14772). Paths then hardly
            cross, and few steps solve them. It is computed on the CPU, in time that grows with the cube of the batch.
        label_dropout: the probability that a conditional model isn't told the label, which guidance needs.

    Raises:
        UsageError: guidance of a model that is always told the label.
    """

    needs = FlowMatching

    def __init__(
        self,
        sigma_min: NonNegativeFloat = 1e-5,
        times: Literal["uniform", "logit_normal"] = "uniform",
        coupling: Literal["independent", "batch_ot"] = "independent",
        label_dropout: Fraction = 0.1,
    ):
        super().__init__()
        if sigma_min >= 1:
            raise UsageError(f"objective.sigma_min={sigma_min:g}: is what is left of noise at the data; take below 1")
        self.sigma_min, self.times, self.coupling = sigma_min, times, coupling
        self.label_dropout = label_dropout

    def require(self, model: FlowMatching) -> None:
        if model.classes and model.guidance != 1 and self.label_dropout == 0:
            raise UsageError(
                f"model.guidance={model.guidance:g} needs the field without a label, which is learned where labels are"
                " dropped: set objective.label_dropout, e.g. to 0.1"
            )

    def forward(self, model: FlowMatching, batch: Batch, progress: float) -> Iterator[Update]:
        y = given(model, batch.y).get("y")
        if y is not None and self.label_dropout:
            dropped = noise.uniform(len(y), device=y.device) < self.label_dropout
            y = torch.where(dropped, model.classes or 0, y)
        loss = self.errors(model, batch.x, y, given(model, batch.y).get("y")).mean()
        yield Update(loss, metrics={"loss": loss.detach()})

    def validate(self, model: FlowMatching, batch: Batch) -> dict[str, Score]:
        y = given(model, batch.y).get("y")
        return {"velocity_error": Score(self.errors(model, batch.x, y, y), "velocity", "squared error")}

    def errors(self, model: FlowMatching, x: Tensor, told: Tensor | None, y: Tensor | None) -> Tensor:
        """The squared error of each example's velocity at a random time, the mean over its elements, (B,).

        Args:
            x: (B, *shape). told: labels that the model sees. y: those of the examples.
        """
        end = model.inward(x)
        start = noise.normal(*end.shape, device=end.device, dtype=end.dtype)
        if self.coupling == "batch_ot":
            start = self._couple(start, end, y)
        t = self._draw_times(len(x), end)
        left = 1 - self.sigma_min
        path = (1 - left * t)[:, None] * start + t[:, None] * end
        return (model.velocity(path, t, told) - (end - left * start)).square().mean(1)

    def _draw_times(self, rows: int, like: Tensor) -> Tensor:
        if self.times == "uniform":
            return noise.uniform(rows, device=like.device, dtype=like.dtype)
        return torch.sigmoid(noise.normal(rows, device=like.device, dtype=like.dtype))

    @staticmethod
    def _couple(start: Tensor, end: Tensor, y: Tensor | None) -> Tensor:
        """`start` with its rows in the order that suits `end`'s, over the whole batch of all processes."""
        start, end, rows = noise.of_all_processes(start), noise.of_all_processes(end), len(start)
        groups = [torch.arange(len(start), device=start.device)]
        if y is not None:
            y = noise.of_all_processes(y)
            groups = [torch.nonzero(y == label).flatten() for label in y.unique()]
        paired = start.clone()
        for group in groups:
            paired[group] = start[group][assign(start[group], end[group])]
        return noise.own_rows(paired, rows)


def assign(start: Tensor, end: Tensor) -> Tensor:
    """Which row of `start` (B, D) each row of `end` (B, D) gets for the least Σ ‖end - start‖², indices (B,).

    >>> assign(torch.tensor([[0.0], [5.0], [9.0]]), torch.tensor([[8.0], [1.0], [4.0]]))
    tensor([2, 0, 1])
    """
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(end.detach().double().cpu(), start.detach().double().cpu()).square()
    return torch.as_tensor(linear_sum_assignment(cost.numpy())[1], device=start.device)
