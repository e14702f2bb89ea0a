"""From a data set to batches on the device, in the model's support, as pure functions of the step."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gentrain.batch import Batch
from gentrain.data.conversion import Conversion
from gentrain.data.pairs import Degradation
from gentrain.data.randomness import derive, sample_keys
from gentrain.data.source import SPLITS, Source, Split
from gentrain.errors import DataError, UsageError
from gentrain.types import Support

if TYPE_CHECKING:
    from gentrain.data.stacked import Stack

__all__ = ["Pipeline"]

# First words of the hashes from which streams of random numbers come: no two purposes share a stream.
_ORDER, _DRAW, _EVALUATION, _STATIC, _SOME = 1, 2, 3, 4, 6  # 5 is the samples' that evaluation draws
_PARTNER, _CHANGE = 7, 8
_MIXED = 9  # the seed of the one order of mixed held-out examples


class Pipeline:
    """Batches of a data set.

    The order of an epoch is a function of (seed, epoch) and the random draws of an example (binarization,
    dequantization) of (seed, epoch, index), so that `batch(step)` is a pure function: a resumed run needs no state of
    the data, and processes that share a batch see together exactly what one process alone would see. Held-out data are
    drawn with fixed keys, the same in every run and for every seed, so that their numbers can be compared.

    A source in streams is cut into batch_size stretches of consecutive examples, one for each row of a batch, and row i
    of a step goes on where row i of the step before ended. An epoch begins them anew, at places that (seed, epoch)
    shifts by whole examples; a stretch that reaches the end of the split goes on at its beginning.

    Of two domains each has an order and epochs of its own, both by the seed; held-out examples of the one come with
    those of the other in their order, from the beginning again where there are fewer.

    Args:
        source: the data set.
        support: where the model lives.
        batch_size: training examples of a step, over all processes.
        seed: of order and training draws.
        device: where batches are wanted. Sets that fit there stay there as stored (bytes).
        binarization: for binary models of grey levels: "dynamic", "static" or "threshold".
        dequantize: add uniform noise within each level, for unit, signed and real models.
        rank, world: this process takes the `rank`-th of `world` equal shares of each batch.

    Attributes:
        spec: of the data as stored.
        protocol: how stored values become the model's data, e.g. "binary, dynamic binarization".
        steps_per_epoch: whole batches in the training split; the rest of an epoch's order is left out.
        partner: the pipeline of the other domain, where there is one.
        one_set: whether the other domain is other examples of the same set, changed.

    Raises:
        UsageError: if data and support don't fit, or a change of images and the support don't, or the batch is larger
            than a training split, leaves nothing of streams, or doesn't divide among the processes.

    >>> from gentrain.data.embedded import digits
    >>> pipeline = Pipeline(digits(), "binary", batch_size=100, seed=0)
    >>> pipeline.batch(0).x.shape, pipeline.steps_per_epoch, pipeline.protocol
    (torch.Size([100, 1, 8, 8]), 12, 'binary, dynamic binarization')
    """

    def __init__(
        self,
        source: Source,
        support: Support,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        binarization: str = "dynamic",
        dequantize: bool = False,
        rank: int = 0,
        world: int = 1,
    ):
        self.spec = source.spec
        self.support: Support = support
        self.batch_size, self.seed = batch_size, seed
        self.streams = source.order == "stream"
        self.rank, self.world = rank, world
        self.device = torch.device(device)
        self.conversion = Conversion(source.spec, support, binarization, dequantize)
        self.protocol = self.conversion.protocol
        self._size = source.spec.sizes["train"]
        self._check_batch_size()
        self.steps_per_epoch = self._size // batch_size
        self._splits = {name: self._settle(name, split) for name, split in source.splits.items()}
        self._epoch: tuple[int, Tensor, Tensor] | None = None
        self._change = source.change
        self._pairing = source.partner if isinstance(source.partner, Degradation) else None
        if (self._change or self._pairing) and support not in ("unit", "signed"):
            raise UsageError(
                f"data={source.spec.name}: images are changed in grey or colour, for unit and signed models, and the"
                f" model models {support} data"
            )
        self.one_set = source.one_set
        self.partner: Pipeline | None = None
        if source.partner is not None and not isinstance(source.partner, Degradation):
            own = derive(_PARTNER, seed)
            self.partner = Pipeline(
                source.partner, support, batch_size, own, device, binarization, dequantize, rank, world
            )

    def _check_batch_size(self) -> None:
        if self.batch_size > self._size:
            raise UsageError(
                f"data.batch_size={self.batch_size} is more than the {self._size} training examples of "
                f"data={self.spec.name}: set it to {self._size} or less"
            )
        if self.streams and 2 * self.batch_size > self._size:
            raise UsageError(
                f"data.batch_size={self.batch_size}: the {self._size} training windows of data={self.spec.name} make "
                f"streams of one window each, with nothing to go on to; choose at most {max(self._size // 2, 1)}, "
                "or data.order=shuffled"
            )
        if self.batch_size % self.world:
            raise UsageError(
                f"data.batch_size={self.batch_size} doesn't divide among {self.world} processes: "
                f"make it a multiple of {self.world}"
            )

    def _settle(self, name: str, split: Split) -> Split:
        """The split where it will stay: on the device if it fits there, else in (or mapped into) host memory."""
        x = split.x
        if self.conversion.static:
            x = self.conversion.draw_once(x, self._fixed_keys(_STATIC, name, torch.arange(len(x))))
        if _fits(x, self.device):
            x = x.to(self.device)
        return Split(x, None if split.y is None else split.y.to(self.device, torch.int64))

    @staticmethod
    def _fixed_keys(purpose: int, split: str, index: Tensor) -> Tensor:
        return sample_keys(derive(purpose, SPLITS.index(split)), index)

    def _share(self, step: int) -> tuple[Tensor, Tensor]:
        """Data set indices of this process's examples at a step, and the keys of their draws, each (B / world,)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            order = self._order(epoch)
            keys = sample_keys(derive(_DRAW, self.seed, epoch), order)
            self._epoch = epoch, order.to(self.device), keys.to(self.device)
        _, order, keys = self._epoch
        share = self.batch_size // self.world
        start = within * self.batch_size + self.rank * share
        return order[start : start + share], keys[start : start + share]

    def _order(self, epoch: int) -> Tensor:
        """Data set indices in the order of an epoch, batch after batch."""
        if self.streams:
            start = derive(_ORDER, self.seed, epoch) % self._size
            rows = torch.arange(self.batch_size) * self.steps_per_epoch
            return ((start + torch.arange(self.steps_per_epoch)[:, None] + rows) % self._size).flatten()
        generator = torch.Generator().manual_seed(derive(_ORDER, self.seed, epoch) >> 1)
        return torch.randperm(self._size, generator=generator)

    def indices(self, step: int) -> Tensor:
        """Training set indices of this process's share of the batch at `step`, int64, (batch_size / world,)."""
        return self._share(step)[0]

    def batch(self, step: int) -> Batch:
        """This process's share of the training batch at `step` >= 0: a function of (seed, step) alone."""
        index, keys = self._share(step)
        batch = self._take(self._splits["train"], index, keys)
        if self.partner is not None:
            batch = _beside(batch, self.partner.batch(step))
        if not self.streams:
            return batch
        first = torch.ones_like if step % self.steps_per_epoch == 0 else torch.zeros_like
        return batch._replace(starts=first(index, dtype=torch.bool) | (index == 0))

    def _take(self, split: Split, index: Tensor, keys: Tensor) -> Batch:
        x = split.x.index_select(0, index.to(split.x.device)).to(self.device, non_blocking=True)
        x = self._changed(self._change, self.conversion(x, keys), keys)
        pair = None if self._pairing is None else self._changed(self._pairing, x, keys)
        return Batch(x, None if split.y is None else split.y.index_select(0, index), pair)

    def _changed(self, change: Degradation | None, x: Tensor, keys: Tensor) -> Tensor:
        if change is None:
            return x
        keys = sample_keys(_CHANGE, keys)  # the draws of a dequantization are others
        return change(x, keys) if self.support == "unit" else change((x + 1) / 2, keys) * 2 - 1

    def evaluation(
        self, split: str, batch_size: int | None = None, limit: int | None = None, mixed: bool = False
    ) -> Iterator[Batch]:
        """All of a split in its own order, the last batch as small as it comes.

        Every process gets all of it, and the draws depend on the example alone: not on the seed, the batch size or
        the limit.

        Args:
            split: "train", "validation" or "test".
            batch_size: examples at a time; training's batch size if None.
            limit: only the first so many examples.
            mixed: in one order drawn at random, the same in every run, so that a batch is like the whole: the halves of
                MNIST's test split were written by different people. Streams stay as they are.

        Raises:
            DataError: if the data set has no such split.
        """
        if split not in self._splits:
            remedy = "; set data.validation above 0" if split == "validation" else ""
            raise DataError(f"data={self.spec.name} has no {split} split, only {', '.join(self._splits)}{remedy}")
        return self._evaluate(split, batch_size or self.batch_size, limit, mixed and not self.streams)

    def _evaluate(self, name: str, batch_size: int, limit: int | None, mixed: bool) -> Iterator[Batch]:
        split = self._splits[name]
        order = torch.arange(len(split) if limit is None else min(limit, len(split)))
        if mixed:
            order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(_MIXED))]
        for start in range(0, len(order), batch_size):
            index = order[start : start + batch_size].to(self.device)
            batch = self._held_out(name, index)
            yield batch if self.partner is None else _beside(batch, self.partner._held_out(name, index))

    def _held_out(self, name: str, index: Tensor) -> Batch:
        index = index % len(self._splits[name])
        return self._take(self._splits[name], index, self._fixed_keys(_EVALUATION, name, index))

    def some(self, n: int) -> Batch:
        """n different training examples, chosen and drawn by the seed, the same in every process."""
        generator = torch.Generator().manual_seed(derive(_SOME, self.seed) >> 1)
        index = torch.randperm(self._size, generator=generator)[:n]
        keys = sample_keys(derive(_SOME, self.seed), index)
        batch = self._take(self._splits["train"], index.to(self.device), keys.to(self.device))
        return batch if self.partner is None else _beside(batch, self.partner.some(n))

    @property
    def other_domain(self) -> Pipeline:
        """The domain of `pair` by itself, whose examples are then x: of paired data, what is made of each."""
        if self.partner is not None:
            return self.partner
        view = copy.copy(self)
        view._change, view._pairing = self._pairing, None
        return view

    def counterpart(self, x: Tensor, back: bool = False) -> Tensor | None:
        """What each example of `pair` was, (B, *shape), before the change that makes this domain the other one, or if
        `back` what that makes of each of x; None of two sets, of a change that draws, or that can't be undone."""
        change = self._pairing if self.partner is None else self.partner._change if self.one_set else None
        if change is not None and not back:
            change = change.inverse
        if change is None or change.draws:
            return None
        return self._changed(change, x, torch.zeros(len(x), dtype=torch.int64))

    def answers(self, batch: Batch, back: bool = False) -> Tensor | None:
        """What each of `batch.pair` is to be translated to, or if `back` each of `batch.x`; None where nobody knows."""
        if self.spec.pairs == "paired":
            return batch.pair if back else batch.x
        given = batch.x if back else batch.pair
        return None if given is None else self.counterpart(given, back)

    def mean(self) -> Tensor:
        """The mean training example in the model's support, expected over the draws, float32, (*shape)."""
        return self.conversion.mean(self._splits["train"].x).to(self.device)

    def deviation(self) -> Tensor:
        """The standard deviation of each element over training examples and draws, float32, (*shape)."""
        return self.conversion.deviation(self._splits["train"].x).to(self.device)


def _beside(batch: Batch, other: Batch) -> Batch:
    return batch._replace(pair=other.x, pair_y=other.y)


def _fits(x: Tensor | Stack, device: torch.device) -> bool:
    """Whether a set may stay on the device: half of a GPU's free memory is left to the model."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return x.numel() * x.element_size() < free // 2
