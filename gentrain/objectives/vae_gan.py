"""The games of VAE-GAN and CVAE-GAN."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import kl_divergence
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from gentrain import noise
from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models import vae_gan
from gentrain.models.base import given
from gentrain.models.latent import draw
from gentrain.objectives.adversarial import Game, Round
from gentrain.objectives.judged import Plays
from gentrain.types import NonNegativeFloat, PositiveInt
from gentrain.update import Update

Step = tuple[Tensor, dict[str, Tensor]]
"""A player's loss and metrics."""


class Fakes(NamedTuple):
    """The two kinds of generated examples, (B, *shape) each: G(z), z ~ q(z|x), and G(z), z ~ p(z)."""

    restored: Tensor
    sampled: Tensor


class _Encoded(Plays):
    """The order of moves: critic, generator, encoder. Each meets the others as they have just become.

    The critic sees data, reconstructions and samples; the two kinds of fakes count half each, so that a critic that
    tells nothing apart says 1/2. (The papers' sums count each in full, and theirs then says 1/3.)
    """

    @abstractmethod
    def generator_loss(self, model: Any, batch: Batch, table: Round, fakes: Fakes, optimizer: Optimizer | None) -> Step:
        """The generator's loss, of fakes that lead to it alone, and metrics."""

    @abstractmethod
    def encoder_loss(self, model: Any, batch: Batch, restored: Tensor, kl: Tensor) -> Step:
        """The encoder's loss, of reconstructions that lead to it and KL(q(z|x) ‖ p(z)) in the mean, and metrics."""

    def before(self, model: Any, batch: Batch) -> Iterator[Update]:
        """Updates of further parts."""
        yield from ()

    def forward(self, model: vae_gan.EncodedGAN, batch: Batch, progress: float) -> Iterator[Update]:
        game, x, labels = self.game, batch.x, given(model, batch.y)
        yield from self.before(model, batch)
        q = model.encode(x, **labels)
        z = draw(q, 1)[0][0]
        optimizer: Optimizer | None = None
        for step in range(1, game.discriminator_steps + 1):
            with torch.set_grad_enabled(step == game.discriminator_steps):  # only the last fakes teach the generator
                prior = noise.sample(model.prior, len(x))
                fakes = Fakes(model.decode(z.detach(), **labels), model.decode(prior, **labels))
            table = Round(x, batch.y, prior, fakes.sampled, progress)
            loss, metrics = _mean(
                [game.discriminator_step(model, table._replace(fakes=fake.detach())) for fake in fakes]
            )
            optimizer = yield Update(loss, "discriminator", metrics=metrics)
            yield from game.after_discriminator(model, metrics)
        loss, metrics = self.generator_loss(model, batch, table, fakes, optimizer)
        yield Update(loss, "generator", metrics=metrics)
        kl = kl_divergence(q, model.prior).mean()
        loss, metrics = self.encoder_loss(model, batch, model.decode(z, **labels), kl)
        yield Update(loss, "encoder", metrics={"kl": kl.detach(), **metrics})


class VAEGAN(_Encoded):
    """A VAE in what the critic sees, and a game (Larsen et al. 2016, arXiv:1512.09300, algorithm 1).

        L_like = E_q[½ ‖D_l(x) - D_l(G(z))‖²]    -log p(D_l(x)|z), less a constant, of the critic's l-th hidden layer
        encoder      KL(q(z|x) ‖ p(z)) + L_like
        generator    γ L_like + the game's loss, of reconstructions and samples alike
        critic       the game's loss alone: L_like would make it see nothing

    γ weighs content against style: with a large one G restores, with a small one it looks real.

    Metrics: the game's; `likeness`, L_like as the encoder meets it, and `kl`, in nats an example.

    Args:
        game: the losses of the adversaries, of critics that give one number.
        layer: l, from 1; None is the critic's last hidden layer.
        gamma: γ.

    Raises:
        UsageError: a game that looks at more than what the critic says, or a layer that the critic lacks.
    """

    needs = vae_gan.VAEGAN
    parts = ("discriminator", "generator", "encoder")

    def __init__(self, game: Game | None = None, layer: PositiveInt | None = None, gamma: NonNegativeFloat = 0.1):
        super().__init__(game)
        self.layer, self.gamma = layer, gamma

    def require(self, model: vae_gan.VAEGAN) -> None:
        depth = model.discriminator.depth
        if self.layer is not None and self.layer > depth:
            raise UsageError(f"objective.layer={self.layer}: the model's critic has {depth} hidden layers; give one")

    def likeness(self, model: vae_gan.VAEGAN, x: Tensor, restored: Tensor) -> Tensor:
        """L_like of the batch."""
        layer = self.layer or model.discriminator.depth
        with torch.no_grad():
            seen = model.discriminator.perceive(x)[0][layer - 1]
        return _apart(seen, model.discriminator.perceive(restored)[0][layer - 1])

    def generator_loss(self, model: Any, batch: Batch, table: Round, fakes: Fakes, optimizer: Optimizer | None) -> Step:
        steps = [self.game.generator_step(model, table._replace(fakes=fake), optimizer) for fake in fakes]
        loss, metrics = _mean(steps)
        return loss + self.gamma * self.likeness(model, batch.x, fakes.restored), metrics

    def encoder_loss(self, model: Any, batch: Batch, restored: Tensor, kl: Tensor) -> Step:
        likeness = self.likeness(model, batch.x, restored)
        return kl + likeness, {"likeness": likeness.detach()}


class CVAEGAN(_Encoded):
    """Features of critic and classifier matched, and a game that moves the critic (Bao et al. 2017, arXiv:1703.10155).

        classifier    cross-entropy of data's labels
        critic        the game's loss
        generator     λ_pair L_G + λ_critic L_GD + λ_class L_GC
        encoder       λ_kl KL(q(z|x, y) ‖ p(z)) + λ_pair L_G

    with L_G = ½ ‖x - x'‖² + ½ ‖f_D(x) - f_D(x')‖² + ½ ‖f_C(x) - f_C(x')‖² of an example and its reconstruction,
    L_GD = ½ ‖E f_D(x) - E f_D(G(z, y))‖² of data and samples, and L_GC = Σ_y ½ ‖E f_C(x) - E f_C(G(z, y))‖² over the
    examples of each label; f are last hidden layers. The generator is taught by means, and never by what the critic
    says: where critic and data part, means still differ smoothly. Expectations are those of the batch, whose labels
    samples have too; the paper has moving averages of them for L_GC.

    Metrics: the game's for the critic; `kl` and `pair`, L_G, in the mean over examples; `critic_means`, L_GD, and
    `class_means`, L_GC; `class_loss` and `class_accuracy` of the classifier, before it moves.

    Args:
        game: the losses of the critic, one that gives one number. kl, pair, critic_means, class_means: λ.

    Raises:
        UsageError: a game that looks at more than what the critic says.
    """

    needs = vae_gan.CVAEGAN
    parts = ("classifier", "discriminator", "generator", "encoder")

    def __init__(
        self,
        game: Game | None = None,
        kl: NonNegativeFloat = 3.0,
        pair: NonNegativeFloat = 1.0,
        critic_means: NonNegativeFloat = 1e-3,
        class_means: NonNegativeFloat = 1e-3,
    ):
        super().__init__(game)
        self.kl, self.pair, self.critic_means, self.class_means = kl, pair, critic_means, class_means

    def before(self, model: vae_gan.CVAEGAN, batch: Batch) -> Iterator[Update]:
        given(model, batch.y)  # or it is said that there are no labels
        assert batch.y is not None
        y, told = batch.y.long(), model.classifier(batch.x).float()
        loss, right = cross_entropy(told, y), (told.argmax(1) == y).float().mean()
        yield Update(loss, "classifier", metrics={"class_loss": loss.detach(), "class_accuracy": right})

    def likeness(self, model: vae_gan.CVAEGAN, x: Tensor, restored: Tensor) -> Tensor:
        """L_G of the batch."""
        found = _apart(x.flatten(1), restored.flatten(1))
        for network in (model.discriminator, model.classifier):
            found = found + _apart(*_seen(network, x, restored))
        return found

    def generator_loss(self, model: Any, batch: Batch, table: Round, fakes: Fakes, optimizer: Optimizer | None) -> Step:
        pair = self.likeness(model, batch.x, fakes.restored)
        real, fake = _seen(model.discriminator, batch.x, fakes.sampled)
        critic = _apart(real.mean(0, keepdim=True), fake.mean(0, keepdim=True))
        real, fake = _seen(model.classifier, batch.x, fakes.sampled)
        assert batch.y is not None
        counts = real.new_zeros(model.classes, 1).index_add(0, batch.y.long(), real.new_ones(len(real), 1))
        sums = real.new_zeros(model.classes, real.shape[1]).index_add(0, batch.y.long(), real - fake)
        label = 0.5 * (sums / counts.clamp(min=1)).square().sum()
        loss = self.pair * pair + self.critic_means * critic + self.class_means * label
        return loss, {"critic_means": critic.detach(), "class_means": label.detach()}

    def encoder_loss(self, model: Any, batch: Batch, restored: Tensor, kl: Tensor) -> Step:
        pair = self.likeness(model, batch.x, restored)
        return self.kl * kl + self.pair * pair, {"pair": pair.detach()}


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """½ ‖a - b‖² in the mean over rows (B, d)."""
    return 0.5 * (a - b).square().sum(1).mean()


def _seen(network: Any, x: Tensor, fakes: Tensor) -> tuple[Tensor, Tensor]:
    """The network's last hidden layer of data, without gradient, and of fakes."""
    with torch.no_grad():
        real = network.perceive(x)[0][-1]
    return real, network.perceive(fakes)[0][-1]


def _mean(steps: Sequence[Step]) -> Step:
    """The mean of several losses, and of what is measured beside them."""
    names = steps[0][1]
    return (
        torch.stack([loss for loss, _ in steps]).mean(),
        {name: torch.stack([found[name] for _, found in steps]).mean() for name in names},
    )
