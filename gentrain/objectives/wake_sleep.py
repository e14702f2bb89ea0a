"""The wake-sleep algorithm."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gentrain.batch import Batch
from gentrain.models.belief import Helmholtz
from gentrain.models.latent import draw
from gentrain.objectives.elbo import ELBO
from gentrain.update import Objective, Score, Update


class WakeSleep(Objective):
    """Two networks teach each other by maximum likelihood (Hinton, Dayan, Frey & Neal 1995, Science 268:1158).

    Wake: z ~ q(z|x) of the data, and the generative network learns log p(x, z). Sleep: (x, z) ~ p, a dream, and the
    recognition network learns log q(z|x). No gradient passes through a draw. The wake phase ascends the evidence lower
    bound. The sleep phase descends KL(p(z|x) ‖ q(z|x)) over dreams, not the bound's KL(q ‖ p) over data: the two
    together ascend no common function, and the `elbo` may fall.

    Metrics: `wake` and `sleep`, the losses -log p(x, z) and -log q(z|x); `elbo`, by the wake phase's draws.
    """

    needs = Helmholtz
    parts = ("generative", "recognition")
    monitor = "elbo"

    def __init__(self) -> None:  # takes nothing, and says so where `config` reads it
        super().__init__()

    def forward(self, model: Helmholtz, batch: Batch, progress: float) -> Iterator[Update]:
        x = batch.x
        with torch.no_grad():
            z, log_q = (t.squeeze(0) for t in draw(model.encode(x), 1))
        log_joint = model.prior.log_prob(z) + model.decode(z).log_prob(x)
        wake = -log_joint.mean()
        metrics = {"wake": wake.detach(), "elbo": (log_joint.detach() - log_q).mean()}
        yield Update(wake, part="generative", metrics=metrics)
        x, z = model.dream(len(x))
        sleep = -model.encode(x).log_prob(z).mean()
        yield Update(sleep, part="recognition", metrics={"sleep": sleep.detach()})

    @torch.no_grad()
    def validate(self, model: Helmholtz, batch: Batch) -> dict[str, Score]:
        return ELBO().validate(model, batch)
