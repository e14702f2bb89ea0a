"""The running average of a model's weights, which is evaluated and sampled in its place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class RunningAverage(AveragedModel):
    """θ̄ ← δ θ̄ + (1 - δ) θ of parameters, and of buffers that are averages themselves, as batch normalisation's.

    What counts is copied, and so are the vectors of spectral normalisation: the mean of two directions has neither
    their length nor their sign.

    Args:
        model: θ. decay: δ.

    >>> model = nn.BatchNorm1d(1)
    >>> average = RunningAverage(model, decay=0.9)
    >>> for step in range(2):
    ...     _ = model.running_mean.fill_(step), model.num_batches_tracked.fill_(step)
    ...     average.update_parameters(model)
    >>> average.module.running_mean.item(), average.module.num_batches_tracked.item()
    (0.10000000149011612, 1)
    """

    def __init__(self, model: nn.Module, decay: float):
        @torch.no_grad()
        def update(averages: Sequence[Tensor], now: Sequence[Tensor], _: Tensor | int) -> None:
            if averages[0].is_floating_point():
                torch._foreach_lerp_(averages, now, 1 - decay)  # type: ignore[arg-type]
            else:
                torch._foreach_copy_(averages, now)  # type: ignore[arg-type]

        super().__init__(model, multi_avg_fn=update, use_buffers=True)
        spectral = (name for name, _ in model.named_buffers() if name.endswith(("._u", "._v")))
        self.directions = [name for name in spectral if "parametrizations." in name]

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        super().update_parameters(model)
        for name in self.directions:
            self.module.get_buffer(name).copy_(model.get_buffer(name))
