"""Labels learned by a network, and the numbers of p(y|x) on held-out data."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.base import Classifies
from gentrain.models.classifier import Discriminative
from gentrain.update import Objective, Score, Update


class Classify(Objective):
    """-log p(y|x) of the network that a model is unrolled into, the model itself staying as it is.

    Fine-tuning of a pretrained model: "a network that is discriminatively fine-tuned by backpropagation" (Hinton &
    Salakhutdinov 2006, Science 313:504).
    """

    needs = Discriminative
    parts = ("classifier",)

    def __init__(self) -> None:  # takes nothing, and says so where `config` reads it
        super().__init__()

    def require(self, model: Discriminative) -> None:
        if model.classifier is None:
            raise UsageError(
                f"{type(model).__name__} has no labels to be a classifier of: use data with labels, and leave"
                " model.classes ${data.classes}"
            )

    def begin(self, model: Discriminative) -> None:
        model.begin_classifier()

    def forward(self, model: Discriminative, batch: Batch, progress: float) -> Iterator[Update]:
        y = labels_of(batch)
        logits = model.logits(batch.x)
        loss = cross_entropy(logits, y)
        wrong = (logits.detach().argmax(1) != y).float().mean()
        yield Update(loss, part="classifier", metrics={"loss": loss.detach(), "error": wrong})

    @torch.no_grad()
    def validate(self, model: Discriminative, batch: Batch) -> dict[str, Score]:
        return class_scores(model.log_class(batch.x), labels_of(batch))


def labels_of(batch: Batch) -> Tensor:
    """The batch's labels, (B,), int64.

    Raises:
        UsageError: there are none.
    """
    if batch.y is None:
        raise UsageError("these data have no labels, which a classifier learns: use data with labels")
    return batch.y.long()


def class_scores(log_p: Tensor, y: Tensor) -> dict[str, Score]:
    """Whether the likeliest label by log p(y|x) (B, K) is another than y (B,), and -log p(y|x)."""
    return {
        "classification_error": Score((log_p.argmax(1) != y).float(), "classifier", "share"),
        "class_cross_entropy": Score(-log_p.gather(1, y[:, None].long())[:, 0], "classifier"),
    }


def own_class_scores(model: object, batch: Batch) -> dict[str, Score]:
    """The same of a model that knows p(y|x), where the batch has labels; else none."""
    if batch.y is None or not (isinstance(model, Classifies) and model.knows_labels):
        return {}
    return class_scores(model.log_class(batch.x), batch.y)
