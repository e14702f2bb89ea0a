"""What an optimizer would do next, as a function that can be differentiated: nothing moves, its state stays as it is.

torch's optimizers change parameters in place and outside the graph. The same rules stand here as pure functions

    rule(θ, g, state, group) -> θ', state'        of one parameter, its gradient, its state and its group's settings

and `Ahead` takes them from where a real optimizer stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from gentrain.errors import UsageError

State = Mapping[str, Tensor]
Group = Mapping[str, Any]
Rule = Callable[[Tensor, Tensor, State, Group], tuple[Tensor, State]]


def _sgd(p: Tensor, g: Tensor, state: State, group: Group) -> tuple[Tensor, State]:
    g, momentum = g + group["weight_decay"] * p, group["momentum"]
    if not momentum:
        return p - group["lr"] * g, state
    velocity = momentum * state["momentum_buffer"] + g if "momentum_buffer" in state else g
    direction = g + momentum * velocity if group["nesterov"] else velocity
    return p - group["lr"] * direction, {"momentum_buffer": velocity}


def _adam(p: Tensor, g: Tensor, state: State, group: Group) -> tuple[Tensor, State]:
    return _by_moments(p, g + group["weight_decay"] * p, state, group)


def _adamw(p: Tensor, g: Tensor, state: State, group: Group) -> tuple[Tensor, State]:
    return _by_moments(p * (1 - group["lr"] * group["weight_decay"]), g, state, group)


def _by_moments(p: Tensor, g: Tensor, state: State, group: Group) -> tuple[Tensor, State]:
    first, second = group["betas"]
    step = _count(p, state)
    m = first * _kept("exp_avg", p, state) + (1 - first) * g
    v = second * _kept("exp_avg_sq", p, state) + (1 - second) * g.square()
    # torch: θ - lr m̂ / (√v̂ + ε), m̂ and v̂ being m and v over 1 - βᵗ
    root = _root(v) / _debias(second, step).sqrt() + group["eps"]
    p = p - group["lr"] / _debias(first, step) * m / root
    return p, {"step": step, "exp_avg": m, "exp_avg_sq": v}


def _rmsprop(p: Tensor, g: Tensor, state: State, group: Group) -> tuple[Tensor, State]:
    g = g + group["weight_decay"] * p
    v = group["alpha"] * _kept("square_avg", p, state) + (1 - group["alpha"]) * g.square()
    direction = g / (_root(v) + group["eps"])
    if not group["momentum"]:
        return p - group["lr"] * direction, {"square_avg": v}
    velocity = group["momentum"] * _kept("momentum_buffer", p, state) + direction
    return p - group["lr"] * velocity, {"square_avg": v, "momentum_buffer": velocity}


def _adagrad(p: Tensor, g: Tensor, state: State, group: Group) -> tuple[Tensor, State]:
    g = g + group["weight_decay"] * p
    total = state["sum"] + g.square()
    return p - group["lr"] * g / (_root(total) + group["eps"]), {"sum": total}


def _kept(name: str, p: Tensor, state: State) -> Tensor:
    return state[name] if name in state else torch.zeros_like(p)


def _count(p: Tensor, state: State) -> Tensor:
    return state["step"].float() + 1 if "step" in state else torch.ones((), device=p.device)


def _debias(beta: float, step: Tensor) -> Tensor:
    """1 - βᵗ, without the loss of digits that float32 has near β = 1."""
    return -torch.expm1(step * (math.log(beta) if beta else -math.inf))


def _root(v: Tensor) -> Tensor:
    """√v with gradient 0 at 0, where autograd's infinite one makes NaN of a unit that is never on."""
    positive = v > 0
    return torch.where(positive, torch.where(positive, v, 1.0).sqrt(), 0.0)


RULES: dict[type[Optimizer], Rule] = {SGD: _sgd, Adam: _adam, AdamW: _adamw, RMSprop: _rmsprop, Adagrad: _adagrad}
_OFF = {"amsgrad": False, "centered": False, "dampening": 0, "lr_decay": 0, "maximize": False}
"""Settings of torch's that none of ours has, where the rules above are right."""


class Ahead:
    """The next steps of an optimizer, on tensors of one's own, from where it stands.

    Gradients flow from the parameters after a step to those before and to the step's gradient, through the moments too.

    Args:
        optimizer: whose learning rates, settings and state are taken; it stays as it is.

    Attributes:
        parameters: the values θ so far, in the order of the optimizer's groups.

    Raises:
        UsageError: there is no rule for this optimizer, or for a setting of it.

    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> ahead = Ahead(SGD([weight], lr=0.1))
    >>> ahead.step([2 * ahead.parameters[0]])  # the gradient of θ²
    >>> ahead.parameters[0].detach(), weight.data
    (tensor([0.8000]), tensor([1.]))
    """

    def __init__(self, optimizer: Optimizer):
        self._rule = _rule(optimizer)
        self._groups = [group for group in optimizer.param_groups for _ in group["params"]]
        found = [p for group in optimizer.param_groups for p in group["params"]]
        states = [optimizer.state.get(p, {}) for p in found]
        self._states: list[State] = [{k: v for k, v in state.items() if v is not None} for state in states]
        self.parameters: list[Tensor] = [p.detach().requires_grad_() for p in found]

    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """Take one step along these gradients; as in torch, a parameter without one stays where it is."""
        for i, (p, g) in enumerate(zip(self.parameters, gradients, strict=True)):
            if g is not None:
                self.parameters[i], self._states[i] = self._rule(p, g, self._states[i], self._groups[i])

    def detach(self) -> None:
        """Cut the graph: what comes from here on is a function of the present values alone."""
        self.parameters = [p.detach().requires_grad_() for p in self.parameters]
        self._states = [{key: value.detach() for key, value in state.items()} for state in self._states]


def _rule(optimizer: Optimizer) -> Rule:
    name = type(optimizer).__name__
    if type(optimizer) not in RULES:
        raise UsageError(
            f"optim: {name} can't be differentiated through, as objective=unrolled must: take one of "
            f"{', '.join(sorted(rule.__name__.lower() for rule in RULES))}, or set objective.k=0"
        )
    for key, off in _OFF.items():
        if any(group.get(key, off) != off for group in optimizer.param_groups):
            raise UsageError(
                f"optim: {name} with {key} can't be differentiated through, as objective=unrolled must: leave {key} out"
            )
    return RULES[type(optimizer)]
