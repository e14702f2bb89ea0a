"""Training of deep belief networks: contrastive wake-sleep, and the stages around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from gentrain import noise
from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.dbn import DBN
from gentrain.objectives.classify import own_class_scores
from gentrain.objectives.contrastive import CD, INSTANT
from gentrain.objectives.stages import Stages
from gentrain.types import PositiveInt
from gentrain.update import Objective, Score, Update


class UpDown(Objective):
    """The up-down algorithm, a contrastive form of wake-sleep (Hinton, Osindero & Teh 2006, section 5 and appendix B).

    Up: bits of all layers are drawn by the recognition weights, and the generative ones learn log p of each layer given
    the one above. Top: the RBM learns by CD-k from h_{L-1} and the labels. Down: from where its chain has come to, a
    pass down draws the layers below, and the recognition weights learn log q of each layer given the one below. So
    dreams begin near the data, and not, as in wake-sleep, wherever the model's chain is. All states are drawn before
    any weight moves.

    Metrics: `wake` and `sleep`, the losses of the generative and the recognition weights; `chain_distance`, the share
    of the bits of h_{L-1} and the labels by which the top's chain ends elsewhere.

    Args:
        hidden: units of the layers, `${model.hidden}`.
        k: Gibbs steps in the top RBM. k_final: as of `CD`, those at the end of training; the paper has 3, 6 and 10.
    """

    needs = DBN

    def __init__(self, hidden: Sequence[PositiveInt], k: PositiveInt = 3, k_final: PositiveInt | None = None):
        super().__init__()
        self.cd = CD(k, k_final)
        self.top = f"layer{len(hidden)}"
        self.parts = ("generative", self.top, "recognition")

    def require(self, model: DBN) -> None:
        if self.top != f"layer{model.depth}":
            raise UsageError(
                f"objective.hidden names {self.top[5:]} layers, and the model has {model.depth}; leave it"
                " ${model.hidden}"
            )

    def begin(self, model: DBN) -> None:
        model.untie()

    def forward(self, model: DBN, batch: Batch, progress: float) -> Iterator[Update]:
        model.untied.fill_(1)
        x, top = batch.x.flatten(1).float(), model.top
        with torch.no_grad():
            q = model.recognition.given(x)
            up = q.layers(q.draw(noise.uniform(len(x), *q.event_shape, device=x.device))[0])
            v = data = top.units(up[-1], batch.y)
            p = probability = top.hidden_probability(v)
            for _ in range(self.cd.steps(progress)):
                v = top.sample_visible(top.sample_hidden(p))
                p = top.hidden_probability(v)
            memory = top.examples(v)
            below = model.generative.given(memory)
            down = below.layers(below.draw(noise.uniform(len(x), *below.event_shape, device=x.device))[0])
            dream = torch.sigmoid(model.generative.maps()[-1]([memory, *down][-2])) if model.grey else down[-1]
            grads = top.energy_gradient((data, probability), (v, p))
        wake = -model.generative.given(up[-1]).log_prob(torch.cat([*up[-2::-1], x], 1)).mean()
        yield Update(wake, part="generative", metrics={"wake": wake.detach()})
        yield Update(grads=grads, part=self.top, metrics={"chain_distance": (data - v).abs().mean()})
        sleep = -model.recognition.given(dream).log_prob(torch.cat([*down[-2::-1], memory], 1)).mean()
        yield Update(sleep, part="recognition", metrics={"sleep": sleep.detach()})

    @torch.no_grad()
    def validate(self, model: DBN, batch: Batch) -> dict[str, Score]:
        scores = own_class_scores(model, batch)
        if model.grey:
            return scores
        bound = model.log_bound(batch.x)
        scores["variational_free_energy"] = Score(-bound, "variational-free-energy")
        if model.top.enumeration_bits <= INSTANT:
            log_z = model.log_partition()
            assert log_z is not None
            scores["bound"] = Score(bound - log_z.to(bound), model.bound_kind)
        return scores


class TrainDBN(Stages):
    """A deep belief network layer by layer, then as a whole: by up-down, or as a classifier.

    Args:
        stages: as in `Stages`.
    """

    needs = DBN

    def __init__(self, stages: Mapping[str, Any]):
        super().__init__(stages)
        self.leaves = tuple(p for p in ("generative", "recognition", "classifier") if p not in self.parts)
