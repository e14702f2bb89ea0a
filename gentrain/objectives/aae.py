"""The adversarial autoencoder's two phases."""

from __future__ import annotations

from collections.abc import Iterator

from torch.optim import Optimizer

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models import aae
from gentrain.objectives.adversarial import Game, Round
from gentrain.objectives.judged import Judged, Plays
from gentrain.objectives.reconstruction import Loss, Reconstruction
from gentrain.update import Score, Update


class AAE(Plays):
    """Reconstruction, and a game of codes, in turn on each batch (Makhzani et al. 2016, arXiv:1511.05644, section 2).

    First encoder and decoder together learn to restore x. Then the discriminator learns to tell draws from the prior
    from codes E(x), and the encoder, as the generator of codes, to have them taken for draws from the prior. The
    encoder has an optimizer for each of its two tasks.

    Metrics: the reconstruction's loss under its name, and the game's, for which the prior's draws are what is real.

    Args:
        game: its losses, of critics that give one number.
        loss: of the reconstruction: `squared_error`, `cross_entropy`, or `auto`: cross_entropy where outputs are
            logistic.

    Raises:
        UsageError: a game that looks at more than what the critic says.
    """

    needs = aae.AAE
    # The whole model, of which restoring x reaches encoder and decoder; and the players of the game.
    parts = ("", "discriminator", "encoder")

    def __init__(self, game: Game | None = None, loss: Loss = "auto"):
        super().__init__(game)
        self.reconstruction = Reconstruction(loss)

    def require(self, model: aae.AAE) -> None:
        self.reconstruction.require(model)

    def forward(self, model: aae.AAE, batch: Batch, progress: float) -> Iterator[Update]:
        game, y = self.game, batch.y
        if model.classes is not None and y is None:
            raise UsageError("model.supervised=true: these data have no labels; use data with labels")
        loss = self.reconstruction.errors(model, batch.x, batch.x)[0].mean()
        yield Update(loss, "", metrics={self.reconstruction.name(model): loss.detach()})
        view = Judged(model, model.discriminator, lambda z: model.discriminate_code(z, y))
        codes = model.codes(batch.x).float()  # of the encoder that has moved
        optimizer: Optimizer | None = None
        for _ in range(game.discriminator_steps):
            z = model.prior_codes(len(codes), y)
            table = Round(z, None, z, codes, progress)
            loss, metrics = game.discriminator_step(view, table._replace(fakes=codes.detach()))
            optimizer = yield Update(loss, "discriminator", metrics=metrics)
            yield from game.after_discriminator(view, metrics)
        loss, metrics = game.generator_step(view, table, optimizer)
        yield Update(loss, "encoder", metrics=metrics)

    def validate(self, model: aae.AAE, batch: Batch) -> dict[str, Score]:
        return self.reconstruction.validate(model, batch)
