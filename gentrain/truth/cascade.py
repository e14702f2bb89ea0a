"""What decoders in steps claim: that the steps fit together, and that each learns by itself."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from gentrain.models.cascade import Cascade, up
from gentrain.models.lapgan import LAPGAN
from gentrain.objectives.cascade import OfStep
from gentrain.truth.base import Case, Verdict, claims, differences
from gentrain.truth.models import ROUNDING
from gentrain.truth.objectives import copies, opinions, parts_of, played, train_alone
from gentrain.update import Update


@claims("the pyramid's residuals give the image back", LAPGAN)
@torch.no_grad()
def residuals_rebuild(case: Case) -> Verdict:
    """With generators that give the residuals of examples, `decode` gives these examples."""
    model, x = copy.deepcopy(case.model), case.x
    assert isinstance(model, LAPGAN)
    images = [model.player(step, x)[1] for step in reversed(model.steps)]  # the finest first
    for k, step in enumerate(reversed(model.steps)):
        below = up(images[k + 1]) if k + 1 < len(images) else 0.0
        model.level(step).generator = _Always(images[k] - below)
    y = case.batches[0].y if model.classes else None
    off = float((model.decode(model.prior.sample(torch.Size([len(x)])), y) - x).abs().max())
    return off, ROUNDING, f"{len(x)} examples, {len(images)} levels: largest difference of a pixel"


class _Always(nn.Module):
    """A network that says one thing, whatever it is asked."""

    def __init__(self, answer: Tensor):
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer


@claims("a step that learns leaves the others as they are", Cascade)
def steps_learn_alone(case: Case) -> Verdict:
    """Weights, and what normalisation keeps, bit for bit."""
    model, objective = copies(case)
    assert isinstance(model, Cascade)
    parts, found, count = parts_of(objective, model, case.optim), [], 0
    for progress in (0.1, 0.9):
        for batch in case.batches[:2]:
            before = copy.deepcopy(model.state_dict())
            with torch.enable_grad():
                for update in played(objective(model, batch, progress), parts):
                    if update.loss is None and update.grads is None:
                        continue
                    parts[update.part].step(update, 1.0, 0)
                    count += 1
                    own, now = f"{update.part.partition('.')[0]}.", copy.deepcopy(model.state_dict())
                    changed = differences(before, now)
                    found += [f"{name} changes as {own} learns" for name in changed if not name[1:].startswith(own)]
                    before = now
    return len(found), 0, "; ".join(dict.fromkeys(found)) or f"{count} updates, each of one step"


@claims("each step's critic learns to tell, its generator to please it", Cascade)
def every_player_pulls_the_right_way(case: Case) -> Verdict | None:
    """As of a single game, for each step that learns at the end of training."""
    assert isinstance(case.model, Cascade)
    games = {game.step: game.game for game in case.objective.modules() if isinstance(game, OfStep)}
    last = {update.part for update in _at_the_end(case)}
    worst, words = -math.inf, []
    for step in case.model.steps:
        critic, maker = f"{step}.discriminator", f"{step}.generator"
        if step not in games or not {critic, maker} <= last:
            continue
        aim = games[step].aim
        before, told, pleased = (
            _of_step(case, model, step, aim)
            for model in (copies(case)[0], train_alone(case, critic)[0], train_alone(case, maker)[0])
        )
        parted, reached = told[0] - before[0], pleased[1] - before[1]
        worst = max(worst, -parted, -math.inf if aim is None else -reached)
        words.append(f"{step} {parted:+.3g}, {reached:+.3g}")
    return (worst, -1e-6, f"output for real minus generated, and for generated: {'; '.join(words)}") if words else None


def _at_the_end(case: Case) -> list[Update]:
    model, objective = copies(case)
    with torch.enable_grad():
        return list(played(objective(model, case.batches[0], 0.99), parts_of(objective, model, case.optim)))


def _of_step(case: Case, model: nn.Module, step: str, aim: float | None) -> tuple[float, float]:
    assert isinstance(model, Cascade)
    player, x = model.player(step, case.x)
    return opinions(player, x, case.batches[0].y, aim, case.seed, len(x))
