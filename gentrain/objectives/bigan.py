"""The game of an encoder and a generator against a critic of pairs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import Optimizer

from gentrain import noise
from gentrain.batch import Batch
from gentrain.models.critics import Bidirectional
from gentrain.objectives.adversarial import Round
from gentrain.objectives.judged import Judged, Plays, mirrored
from gentrain.update import Update


class BiGAN(Plays):
    """The critic tells pairs (x, E(x)) of data from pairs (G(z), z); E and G each make theirs look like the other's.

        min_{G,E} max_D  E_data log D(x, E(x)) + E_z log(1 - D(G(z), z))

    (Donahue et al. 2017, arXiv:1605.09782, eq. 3; with E(x) ~ q(z|x) Dumoulin et al. 2017, arXiv:1606.00704, eq. 2.)
    At the best critic that is 2 JS between the two joint distributions - log 4: least, and 0, where they are one.

    The losses are those of `game`. G has its generator's, and E the same with both kinds of pairs in changed places:
    in the non-saturating game, as in the papers' code, G maximises log D(G(z), z) and E log(1 - D(x, E(x))). A game's
    own terms for the critic (`regularise`) are of x and z together.

    Metrics: the game's; and `e_loss`.

    Args:
        game: the losses, of critics that give one number.

    Raises:
        UsageError: a game that looks at more than what the critic says.
    """

    needs = Bidirectional
    parts = ("discriminator", "generator", "encoder")

    def forward(self, model: Bidirectional, batch: Batch, progress: float) -> Iterator[Update]:
        game, rows, size = self.game, len(batch.x), batch.x[0].numel()

        def judge(pair: Tensor) -> Tensor:
            x, z = pair.split([size, pair.shape[1] - size], 1)
            return model.discriminate_pair(x.reshape(-1, *model.shape), z.reshape(-1, *model.prior.event_shape))

        view = Judged(model, model.discriminator, judge)
        other_way = Judged(model, model.discriminator, lambda pair: mirrored(game, judge(pair)))
        optimizer: Optimizer | None = None
        for step in range(1, game.discriminator_steps + 1):
            with torch.set_grad_enabled(step == game.discriminator_steps):  # only the last pairs teach G and E
                z = noise.sample(model.prior, rows)
                real, fake = _pair(batch.x, model.infer(batch.x)), _pair(model.decode(z), z)
            loss, metrics = game.discriminator_step(view, Round(real.detach(), None, z, fake.detach(), progress))
            optimizer = yield Update(loss, "discriminator", metrics=metrics)
            yield from game.after_discriminator(view, metrics)
        loss, metrics = game.generator_step(view, Round(real.detach(), None, z, fake, progress), optimizer)
        yield Update(loss, "generator", metrics=metrics)
        loss, _ = game.generator_step(other_way, Round(fake.detach(), None, z, real, progress), optimizer)
        yield Update(loss, "encoder", metrics={"e_loss": loss.detach()})


def _pair(x: Tensor, z: Tensor) -> Tensor:
    """Examples and codes side by side, (B, D + d)."""
    return torch.cat([x.flatten(1), z.flatten(1).to(x.dtype)], 1)
