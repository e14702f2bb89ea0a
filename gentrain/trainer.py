"""The loop: it takes batches, carries out what the objective yields, and looks up now and then.

It knows no model and no objective by name. What happens at a step is a function of (configuration, step, state), so a
run that was stopped anywhere goes on as if it had not been.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gentrain import checkpoint
from gentrain.average import RunningAverage
from gentrain.data.pipeline import Pipeline
from gentrain.device import Device, rng_state, set_rng_state
from gentrain.errors import Interrupted, NonFiniteError
from gentrain.models.base import Generative
from gentrain.optim import Optim
from gentrain.parts import Part
from gentrain.report import Report
from gentrain.settings import TrainerSettings
from gentrain.signals import Stop
from gentrain.update import Objective, Update, following

POLL = 10  # steps between two looks at other processes' requests to stop


class Trainer:
    """Trains `model` by `objective` on the batches of `pipeline`.

    Args:
        optim: one optimizer's settings; each part of the objective gets its own optimizer.
        settings: when to end and how often to look up. keeper: files checkpoints (used by the main process only).
        look: called as look(trainer, what) with what = "evaluate" or "sample" at their intervals, on the main process.
            It changes nothing and may be interrupted; the function it returns files what was seen, and may return
            (metric, value) by which the best checkpoint is chosen.
        config: plain configuration that goes into every checkpoint.
    """

    def __init__(
        self,
        model: Generative,
        objective: Objective,
        pipeline: Pipeline,
        optim: Optim,
        settings: TrainerSettings,
        device: Device,
        report: Report,
        keeper: checkpoint.Keeper,
        look: Callable[[Trainer, str], Callable[[], tuple[str, float] | None]],
        config: dict[str, Any],
    ):
        self.model, self.objective, self.pipeline = model, objective, pipeline
        self.optim, self.settings, self.device = optim, settings, device
        self.report, self.keeper, self.look, self.config = report, keeper, look, config
        self.parts = {name: Part(name, model, optim, settings.clip, device) for name in objective.parts}
        self.ema = (
            RunningAverage(model, settings.ema)
            if settings.ema is not None and objective.parts  # counts and stored examples have no running average
            else None
        )
        self.total = settings.total_steps(pipeline.steps_per_epoch)
        self.step = 0
        self.elapsed = 0.0
        self._pending: dict[str, list[Tensor]] = {}
        self._saved = -1
        self._seen: list[str] = []  # the looks that were taken at this step

    @property
    def averaged(self) -> Generative:
        """The model to evaluate and sample: the running average of the weights where one is kept."""
        return self.model if self.ema is None else self.ema.module  # type: ignore[return-value]

    @property
    def progress(self) -> float:
        """The fraction of training that is done, in [0, 1): of the steps, or of the time if only that is given."""
        if self.total is not None:
            return min(self.step / self.total, 1 - 1e-9)
        assert self.settings.max_time is not None
        return min(self.elapsed / self.settings.max_time, 1 - 1e-9)

    @property
    def finished(self) -> bool:
        late = self.settings.max_time is not None and self.device.any(self.elapsed >= self.settings.max_time)
        return late or (self.total is not None and self.step >= self.total)

    def fit(self, stop: Stop) -> None:
        """Train to the end, or to a requested stop.

        Raises:
            Interrupted: a signal asked to stop; a checkpoint of this step is written.
            NonFiniteError: a loss or gradient is NaN or infinite. DiskError: a checkpoint can't be written.
        """
        with stop.worded():
            self._fit(stop)

    def _fit(self, stop: Stop) -> None:
        self.model.train()
        self.report.start(self.step)
        began, before = time.monotonic(), self.elapsed
        mark, marked = began, self.step
        while True:
            self._look_up(stop)
            if self._stop_agreed(stop):
                self.save()
                raise stop.error(f"at step {self.step:,}")
            if self.finished:
                break
            self._train_step()
            stop.deferred = True
            now = time.monotonic()
            self.elapsed = before + now - began
            if self.total is None:  # the clock then drives the schedules, and must be one clock
                self.elapsed = self.device.agree(self.elapsed)
            if self.step % self.settings.log_every == 0 or self.step == self.total:
                rate = (self.step - marked) * self.pipeline.batch_size / max(now - mark, 1e-9)
                self._log(rate)
                mark, marked = time.monotonic(), self.step
        self.save()

    def _train_step(self) -> None:
        """One batch: every update is carried out before the objective computes the next."""
        self.device.begin_step()
        progress = self.progress
        factor, momentum = self.optim.factor(progress), self.optim.momentum_at(progress)
        batch = self.pipeline.batch(self.step)
        updates, done = self.objective(self.model, batch, progress), None
        try:
            while (update := self._next(updates, done)) is not None:
                done = None
                if update.loss is not None or update.grads is not None:
                    self.parts[update.part].step(update, factor, self.step, momentum)
                    done = self.parts[update.part].optimizer
                for name, value in update.metrics.items():
                    value = (
                        value.detach().clone() if self.device.graphs else value.detach()
                    )  # the next replay writes it
                    self._pending.setdefault(name, []).append(value)
        except NonFiniteError as error:
            raise self._with_examples(error) from None
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        self.step += 1
        self._seen = []

    def _next(self, updates: Iterator[Update], done: Optimizer | None) -> Update | None:
        with self.device.autocast():
            return following(updates, done)

    def _look_up(self, stop: Stop) -> None:
        """Evaluate, sample and save when it is time. A look that a signal cuts short is taken again after resuming."""
        best = None
        with contextlib.suppress(Interrupted):
            for what, every in (("evaluate", self.settings.evaluate_every), ("sample", self.settings.sample_every)):
                if self._due(every) and what not in self._seen:
                    self._check()
                    best = self._look(what, stop) or best
                    self._seen.append(what)
        better = best is not None and self.keeper.improves(best[1])
        if better or self._due(self.settings.checkpoint_every):
            self.save(best if better else None)

    def _due(self, every: int) -> bool:
        return every > 0 and self.step > 0 and self.step % every == 0

    def _look(self, what: str, stop: Stop) -> tuple[str, float] | None:
        if not self.device.is_main:
            return None
        alone = self.device.world == 1  # of several processes none may stop by itself
        modules = (self.model, self.averaged)
        for module in modules:
            module.eval()
        try:
            with self.device.uncompiled(), stop.at_once() if alone else contextlib.nullcontext():
                file = self.look(self, what)
        finally:
            for module in modules:
                module.train()
        return file()

    def _check(self) -> None:
        try:
            for part in self.parts.values():
                part.check()
        except NonFiniteError as error:
            raise self._with_examples(error) from None

    def _with_examples(self, error: NonFiniteError) -> NonFiniteError:
        indices = ", ".join(map(str, self.pipeline.indices(error.step)[:8].tolist()))
        return NonFiniteError(f"{error} (examples {indices}, … of the training split)", error.step)

    def _stop_agreed(self, stop: Stop) -> bool:
        """Whether to stop here. Several processes must agree on the step, and ask each other only now and then."""
        if self.device.world == 1:
            return bool(stop.requested)
        if self.step % POLL or not self.device.any(bool(stop.requested)):
            return False
        stop.requested = self.device.agree(stop.requested) or stop.requested or 15
        return True

    def _log(self, rate: float) -> None:
        """File the means since the last line; here the metrics leave the device."""
        self._check()
        names = list(self._pending)
        means = [torch.stack([v.float() for v in self._pending[name]]).mean() for name in names]
        self.device.average(means)
        shown = {name: float(value) for name, value in zip(names, means, strict=True)}
        self._pending.clear()
        values = {f"train/{name}": value for name, value in shown.items()}
        for part in self.parts.values():
            suffix = f"/{part.name}" if part.name else ""
            values[f"optim/lr{suffix}"] = part.optimizer.param_groups[0]["lr"]
            values[f"optim/grad_norm{suffix}"] = float(part.norm)
        values["speed/examples_per_second"] = rate
        values["epoch"] = self.step / self.pipeline.steps_per_epoch
        self.report.scalars(self.step, values)
        eta = (self.total - self.step) * self.pipeline.batch_size / rate if self.total else None
        self.report.progress(self.step, shown, rate, eta)

    # --- state ---

    def save(self, best: tuple[str, float] | None = None) -> None:
        """Write a checkpoint of this step, unless it is there already."""
        if self._saved == self.step and best is None:
            return
        self._check()
        if self.device.is_main:
            self.report.flush()
            self.keeper.save(self.step, self.state_dict(), best)
        self._saved = self.step

    def state_dict(self) -> dict[str, Any]:
        return {
            "config": self.config,
            "step": self.step,
            "elapsed": self.elapsed,
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "objective": self.objective.state_dict(),
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "seen": list(self._seen),
            "pending": {name: torch.stack(values) for name, values in self._pending.items()},
            "rng": rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any], path: Any) -> None:
        """Take up the state of a checkpoint; `path` is named if it doesn't fit."""
        checkpoint.load_state(self.model, state["model"], path)
        checkpoint.load_state(self.objective, state["objective"], path)
        if self.ema is not None:
            checkpoint.load_state(self.ema, state["ema"], path)
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        self.step, self.elapsed, self._saved = state["step"], state["elapsed"], state["step"]
        self._seen = list(state["seen"])
        self._pending = {name: list(values.to(self.device.torch).unbind()) for name, values in state["pending"].items()}
        self.keeper.load_state_dict(state["keeper"], self.step)
        set_rng_state(state["rng"])
