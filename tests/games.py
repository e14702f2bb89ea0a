"""Shared by the tests of games: four states, a fixed generator, and a critic that can say anything."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from gentrain.batch import Batch
from gentrain.models.critics import Adversarial
from gentrain.objectives.adversarial import Game

P_DATA = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
P_MODEL = torch.tensor([0.4, 0.4, 0.1, 0.1], dtype=torch.float64)
ROWS = 100


class Proportions(Distribution):
    """Draws every state exactly as often as it is likely: expectations without noise."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, p: Tensor):
        super().__init__(event_shape=torch.Size([1]), validate_args=False)
        self.p = p

    def sample(self, sample_shape=torch.Size()) -> Tensor:  # noqa: B008
        counts = (self.p * sample_shape[0]).round().long()
        return torch.arange(len(self.p)).repeat_interleave(counts).float()[:, None]


class Table(Adversarial):
    """Four states, a fixed generator and a free output of the critic for each."""

    shape, support = (1,), "real"

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.discriminator = nn.Identity(), nn.Embedding(4, 1, dtype=torch.float64)

    @property
    def prior(self) -> Distribution:
        return Proportions(P_MODEL)

    def decode(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def discriminate(self, x: Tensor) -> Tensor:
        return self.discriminator(x.flatten().long()).flatten()

    def sample(self, n: int) -> Tensor:
        return self.decode(self.prior.sample(torch.Size([n])))


def table_batch() -> Batch:
    return Batch(Proportions(P_DATA).sample(torch.Size([ROWS])))


def train_critic(
    game: Game, model: Adversarial | None = None, batch: Batch | None = None
) -> tuple[Adversarial, Tensor]:
    """The model, else a table, whose critic has learned everything a smooth loss can teach, and its last loss."""
    torch.manual_seed(0)
    model, batch = model or Table(), batch or table_batch()

    def closure() -> Tensor:
        update = next(game(model, batch, 0.0))
        assert update.part == "discriminator" and update.loss is not None
        model.discriminator.zero_grad()
        update.loss.backward()
        return update.loss

    parameters = model.discriminator.parameters()
    torch.optim.LBFGS(parameters, max_iter=100, line_search_fn="strong_wolfe").step(closure)  # type: ignore[arg-type]
    return model, closure().detach()


def best_outputs(game: Game) -> tuple[Tensor, Tensor]:
    """What the best critic says of each of the table's states, (4,), and its loss."""
    table, loss = train_critic(game)
    return table.discriminate(torch.arange(4.0)[:, None]).detach(), loss
