"""The generator against the critic that its move leads to: unrolled games."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from gentrain.errors import UsageError
from gentrain.models.critics import Adversarial
from gentrain.objectives.adversarial import Game, Round
from gentrain.objectives.around import OnGame
from gentrain.objectives.differentiable import Ahead
from gentrain.types import NonNegativeInt


class Unrolled(OnGame):
    """Any game whose generator looks k steps of the critic ahead (Metz et al. 2017, arXiv:1611.02163).

        θ_0 = θ,  θ_{i+1} = step(θ_i, ∇_θ L_D(θ_i, φ)),  and the generator descends L_G(θ_k(θ, φ), φ) in φ

    The gradient in φ goes through all of θ_k: the critic's answer to a move is part of what the move costs, so the
    generator gains nothing by running to the one mode that the present critic likes. The critic itself takes one
    ordinary step a round, as in the game, and the k steps of the look-ahead are taken from there and then forgotten,
    with what batch normalisation saw on the way.

    As in the paper, all k steps are of the round's batch and fakes, and are steps of the critic's own optimizer: it
    begins with its moments and learning rate. They aren't clipped by `trainer.clip`. Of several processes each has its
    share of the batch, and the gradients of every step are averaged over them, differentiably. With k = 0 this is the
    game.

    Args:
        game: the losses; one with the plain loop of `Game`.
        k: steps to look ahead; 5 to 10 in the paper. Time and memory grow in proportion.
        second_order: go through θ_k; without, the generator meets a critic that is k steps ahead and takes it as given.

    Raises:
        UsageError: there is no differentiable rule for the critic's optimizer, the game's loop is its own, it looks
            ahead itself, or it moves the critic besides, as by clipping.
    """

    def __init__(self, game: Game | None = None, k: NonNegativeInt = 5, second_order: bool = True):
        super().__init__(game)
        inner = self.game
        while isinstance(inner, OnGame) and not isinstance(inner, Unrolled):
            inner = inner.game
        why = "looks ahead itself" if isinstance(inner, Unrolled) else "moves its critic after each step"
        if isinstance(inner, Unrolled) or inner.moves_critic:
            raise UsageError(
                f"objective.game={type(inner).__name__}: {why}, which a look-ahead can't follow; take e.g."
                " objective@objective.game=non_saturating"
            )
        self.k, self.second_order = k, second_order

    def generator_step(
        self, model: Adversarial, table: Round, optimizer: Optimizer | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.k:
            return super().generator_step(model, table, optimizer)
        if optimizer is None:
            raise ValueError("nothing has moved the critic: send its optimizer, as gentrain.update.following does")
        # Compiled networks have no second derivatives: here they run as written.
        with torch.compiler.set_stance("force_eager"):
            return self._against_the_answer(model, table, optimizer)

    def _against_the_answer(
        self, model: Adversarial, table: Round, optimizer: Optimizer
    ) -> tuple[Tensor, dict[str, Tensor]]:
        players, ahead = _Players(model, self.game), Ahead(optimizer)
        names = {p: name for name, p in players.named_parameters()}
        moved = [names[p] for group in optimizer.param_groups for p in group["params"]]
        # The look-ahead has running averages and the like of its own, which are forgotten with it.
        buffers = {name: b.clone() for name, b in players.named_buffers()}
        before = table if self.second_order else table._replace(fakes=table.fakes.detach())
        for _ in range(self.k):
            values = {**buffers, **dict(zip(moved, ahead.parameters, strict=True))}
            loss, _ = functional_call(players, values, ("discriminator_step", before))
            found = torch.autograd.grad(loss, ahead.parameters, create_graph=self.second_order, allow_unused=True)
            ahead.step(_averaged(found))
            if not self.second_order:
                ahead.detach()
        values = {name: b for name, b in buffers.items() if name.startswith("model.")}
        values |= dict(zip(moved, ahead.parameters, strict=True))
        return functional_call(players, values, ("generator_step", table, optimizer))


class _Players(nn.Module):
    """Model and game as one module, so that a turn can be played with other parameters in the place of their own."""

    def __init__(self, model: Adversarial, game: Game):
        super().__init__()
        self.model, self.game = model, game

    def forward(self, turn: str, *args: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return getattr(self.game, turn)(self.model, *args)


class _Average(torch.autograd.Function):
    """The mean over processes. Every one of them looks ahead to the same critic, so the gradient is averaged alike."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x)
        return x / dist.get_world_size()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return _Average.apply(gradient)


def _averaged(gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """As the trainer averages those of a step, but with a gradient."""
    if not (dist.is_available() and dist.is_initialized()):
        return gradients
    there = [g for g in gradients if g is not None]
    flat = _Average.apply(torch.cat([g.flatten() for g in there]))
    pieces = iter(flat.split([g.numel() for g in there]))  # type: ignore[union-attr]
    return [None if g is None else next(pieces).view_as(g) for g in gradients]
