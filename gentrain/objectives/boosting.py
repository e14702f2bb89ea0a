"""Boosting of generators: each learns from the examples that those before it make too rarely."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import softplus

from gentrain import noise
from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.adagan import AdaGAN
from gentrain.objectives.adversarial import Game
from gentrain.objectives.around import OnGame
from gentrain.types import OpenFraction
from gentrain.update import Update


def shares(ratio: Tensor, beta: float) -> Tensor:
    """How the next generator should weigh N examples, (N,), adding up to 1 (Tolstikhin et al. 2017, theorem 1).

        w_i = (λ - (1 - β) r_i)₊ / (N β)

    With r = p_mixture / p_data at the examples, (N,), and w as its target the mixture (1 - β) p_mixture + β p_new comes
    nearest to the data. λ is found among N values: that of the k examples with the smallest ratios for the largest k
    whose all are below it.

    >>> shares(torch.tensor([2.0, 2.0, 0.0, 0.0]), 0.5)  # half of the data are missed
    tensor([0.0000, 0.0000, 0.5000, 0.5000])
    """
    n, kept = len(ratio), (1 - beta) * ratio.double()
    ordered = kept.sort().values
    levels = (n * beta + ordered.cumsum(0)) / torch.arange(1, n + 1, device=ratio.device)
    level = levels[(ordered < levels).sum() - 1]  # true up to some k and false from there on
    return ((level - kept).clamp_min(0) / (n * beta)).to(ratio.dtype)


class Boosting(OnGame):
    """Any game, played by one generator and critic after another (AdaGAN, Tolstikhin et al. 2017, arXiv:1701.02386).

    Each of the model's K generators has an equal part of the training. The first learns the data. Before each further
    one begins, the teller learns to tell data from the mixture so far, D(x) = σ(its output), whose optimum knows
    p_mixture / p_data = (1 - D)/D; then the generator plays the game against data that are drawn from each batch, with
    replacement, by the `shares` of theorem 1 with β = 1/k. What came before stays as it is, bit for bit.

    Metrics: the game's; `t_loss` of the teller, and `weighted`, the share of a batch that has a weight at all.

    Args:
        game: the losses; one with the plain loop of `Game`.
        telling: share of a generator's part of the training, but of the first one's, that the teller has for itself.

    Raises:
        UsageError: the game's rounds are its own, or it is built on another one.
    """

    needs = AdaGAN
    excludes = ()

    def __init__(self, game: Game | None = None, telling: OpenFraction = 0.25):
        super().__init__(game)
        if isinstance(self.game, OnGame):
            raise UsageError(
                f"objective.game={type(self.game).__name__}: is built on a game itself, and boosting takes one of one"
                " generator and one critic; take e.g. objective@objective.game=hinge"
            )
        self.telling = telling
        self.parts = (*self.parts, "teller")

    def require(self, model: AdaGAN) -> None:
        super().require(model.player(0))

    def forward(self, model: AdaGAN, batch: Batch, progress: float) -> Iterator[Update]:
        k = min(int(progress * model.components), model.components - 1)
        within = progress * model.components - k
        if k and within < self.telling:
            yield self._tell(model, batch.x, k)
            return
        x, metrics = batch.x, {}
        if k:
            weights = shares(self.ratio(model, x), 1 / (k + 1))
            x = x[_drawn(weights)]
            metrics = {"weighted": (weights > 0).float().mean()}
        model.begun.fill_(k + 1)
        yield Update(metrics=metrics)
        yield from self.game(model.player(k), batch._replace(x=x, y=None), min(within, 1 - 1e-9))

    @torch.no_grad()
    def ratio(self, model: AdaGAN, x: Tensor) -> Tensor:
        """p_mixture / p_data at x by the teller, (B,)."""
        return torch.exp(-model.teller(x).float().flatten())

    def _tell(self, model: AdaGAN, x: Tensor, k: int) -> Update:
        z = noise.sample(model.noise(), len(x))
        which = (noise.uniform(len(x), device=x.device) * k).long()
        earlier = model.generator[:k].eval()  # batch normalisation by what it knows: they stay as they are
        with torch.no_grad():
            fakes = torch.stack([generator(z).float() for generator in earlier], 1)
        earlier.train()
        fakes = fakes[torch.arange(len(x), device=x.device), which]
        loss = softplus(-model.teller(x).float()).mean() + softplus(model.teller(fakes).float()).mean()
        return Update(loss, "teller", metrics={"t_loss": loss.detach()})


def _drawn(weights: Tensor) -> Tensor:
    """As many indices as there are weights (N,), drawn by them with replacement."""
    edges = weights.double().cumsum(0)
    u = noise.uniform(len(weights), device=weights.device).double() * edges[-1]
    return torch.searchsorted(edges, u, right=True).clamp(max=len(weights) - 1)
