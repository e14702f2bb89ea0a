"""Maximum likelihood of long sequences, by backpropagation through time in pieces."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gentrain import noise
from gentrain.batch import Batch
from gentrain.models.sequence import Memory, Recurrent
from gentrain.types import PositiveInt
from gentrain.update import Objective, Score, Update


class TBPTT(Objective):
    """Minimises -1/T Σ_t log p(x_t | all that came before) in nats an element, windows of T elements at a time.

    Truncated backpropagation through time (Williams & Peng 1990): the memory at a window's end is where the next window
    of the same stream begins, as a constant. What the model knows reaches back to the beginning of the stream,
    gradients to the beginning of the window. Needs data in streams (`data.order=stream`).

    Held-out windows are read from a blank memory, each by itself: `log_likelihood` is log p of the window, in nats, and
    `cross_entropy` the same an element and with the other sign, of the kind `window-T`. With the memory carried through
    a whole split it is another kind, `carried`, which `gentrain evaluate metrics=[text]` measures.

    Every process of a distributed run holds the memory of all streams and reads on in its own.

    Args:
        streams: rows of a batch over all processes, `${data.batch_size}`.
        layers, hidden: of the model, `${model.layers}` and `${model.hidden}`.
    """

    needs = Recurrent
    monitor = "log_likelihood"
    continues = True

    state: Tensor
    last: Tensor

    def __init__(self, streams: PositiveInt, layers: PositiveInt, hidden: PositiveInt):
        super().__init__()
        self.register_buffer("state", torch.zeros(streams, layers, 2, hidden))
        self.register_buffer("last", torch.full((streams,), -1))

    def forward(self, model: Recurrent, batch: Batch, progress: float) -> Iterator[Update]:
        assert batch.starts is not None, "the data are in no streams"
        state, last = (noise.own_rows(kept, len(batch.x)) for kept in (self.state, self.last))
        fresh = batch.starts
        before = Memory(
            state.masked_fill(fresh.view(-1, *[1] * (state.dim() - 1)), 0.0), last.masked_fill(fresh, -1)
        )  # fmt: skip
        log_p, after = model.read(batch.x, before)
        with torch.no_grad():
            self.state.copy_(noise.of_all_processes(after.state.detach()))
            self.last.copy_(noise.of_all_processes(after.last))
        loss = -log_p.mean()
        yield Update(loss, metrics={"cross_entropy": loss.detach()})

    @torch.no_grad()
    def validate(self, model: Recurrent, batch: Batch) -> dict[str, Score]:
        values, length = model.log_prob(batch.x), batch.x.shape[1]
        return {
            "log_likelihood": Score(values, "exact"),
            "cross_entropy": Score(-values / length, f"window-{length}", "nats/char"),
        }
