"""A part of a model and the optimizer that moves it: backward, average, check, clip, step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gentrain.device import Device
from gentrain.errors import NonFiniteError
from gentrain.optim import Optim
from gentrain.update import Update


class Part:
    """One named submodule of a model ("" is all of it), its optimizer and, for fp16, its loss scaler.

    Args:
        name: of the part. model: that it belongs to. optim: settings of its optimizer.
        clip: largest gradient norm, or None. device: averages gradients over processes.
    """

    def __init__(self, name: str, model: nn.Module, optim: Optim, clip: float | None, device: Device):
        module = model.get_submodule(name)
        self.name = name
        self.parameters = {key: p for key, p in module.named_parameters() if p.requires_grad}
        self.optimizer = optim.build(name, module)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.clip = clip
        self.device = device
        self.norm = torch.zeros((), device=device.torch)
        self.scaler = torch.amp.GradScaler("cuda") if device.precision == "fp16" else None
        # A GPU is not asked every step whether all is finite: that would stall it. Its optimizer skips the step on
        # the device once `bad` is set, and `check` asks at the report's pace. On a CPU asking costs nothing.
        self.lazy = device.torch.type == "cuda" and "fused" in self.optimizer.defaults and self.scaler is None
        self.bad = torch.zeros((), device=device.torch)
        self.bad_step = torch.full((), -1, device=device.torch, dtype=torch.int64)

    def step(self, update: Update, factor: float, step: int, momentum: float | None = None) -> None:
        """Move the part by one update; `factor` multiplies the learning rates, `momentum` takes the place of its own.

        Raises:
            NonFiniteError: the loss or a gradient is NaN or infinite; nothing has moved.
        """
        self._gradients(update)
        grads = [p.grad for p in self.parameters.values() if p.grad is not None]
        self.device.average(grads)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        self.norm = torch.nn.utils.get_total_norm(grads)
        self._guard(update.loss, step)
        if self.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.clip, self.norm)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
            if momentum is not None:
                group["momentum"] = momentum
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()

    def _gradients(self, update: Update) -> None:
        if update.grads is not None:
            for key, grad in update.grads.items():
                self.parameters[key].grad = grad
            return
        assert update.loss is not None
        self.optimizer.zero_grad(set_to_none=True)
        loss = update.loss if self.scaler is None else self.scaler.scale(update.loss)
        # only this part's parameters collect: a generator's loss runs through the discriminator without touching it
        torch.autograd.backward(loss, inputs=list(self.parameters.values()))

    def _guard(self, loss: Tensor | None, step: int) -> None:
        total = self.norm if loss is None else self.norm + loss.detach()
        if self.scaler is not None:  # an infinite scaled gradient is the scaler's business: it skips and adapts
            total = total if loss is None else loss.detach()
        finite = torch.isfinite(total)
        if not self.lazy:
            if not finite:
                self._report(loss, step)
            return
        self.bad_step = torch.where((self.bad == 0) & ~finite, step, self.bad_step)
        self.bad = torch.maximum(self.bad, (~finite).to(self.bad.dtype))
        self.optimizer.found_inf = self.bad  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]

    def check(self) -> None:
        """Raise NonFiniteError if a lazily guarded step went wrong since the last look; that step was not taken."""
        if self.lazy and self.bad.item():
            self._report(None, int(self.bad_step.item()))

    def _report(self, loss: Tensor | None, step: int) -> None:
        where = f"part '{self.name}', " if self.name else ""
        rate = self.optimizer.param_groups[0]["lr"]
        value = "" if loss is None else f"loss {loss.item():g}, "
        broken = [k for k, p in self.parameters.items() if p.grad is not None and not p.grad.isfinite().all()]
        tensor = f"first bad gradient '{broken[0]}'" if broken else "gradients finite"
        if self.lazy:  # the gradients in sight are a later step's, where the same is likely, but not certain, to be bad
            tensor = "loss or gradient not finite" + (f", first bad gradient '{broken[0]}'" if broken else "")
        raise NonFiniteError(
            f"step {step + 1}: {where}{value}{tensor}, learning rate {rate:g}: stopped before the step;"
            " try a smaller optim.lr or trainer.clip=1",
            step,
        )

    def state_dict(self) -> dict:
        state = {"optimizer": self.optimizer.state_dict(), "norm": self.norm.detach().clone()}
        return state if self.scaler is None else {**state, "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if "norm" in state:  # a part that stands still in this stage of training goes on to report its last one
            self.norm = state["norm"].to(self.device.torch)
        if self.scaler is not None and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])
