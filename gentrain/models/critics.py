"""What models that are trained against a critic can do, as base classes like those of `gentrain.models.base`."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from gentrain.models.base import Codes, Decoder, Encodes, Reconstructs


class Adversarial(Decoder):
    """A decoder trained against a critic. Has the parts `generator` and `discriminator`."""

    generator: nn.Module
    discriminator: nn.Module
    judges_batches: bool = False
    """Whether the critic compares the examples of a batch, so that its output for one depends on the others, always and
    not only as batch normalisation does in training."""

    @abstractmethod
    def discriminate(self, x: Tensor) -> Tensor:
        """The critic's output, (B,), larger for what it takes for real. What the numbers mean is the objective's
        matter: in the games of Goodfellow et al. they are the log-odds that x is real."""


class Extended(Adversarial):
    """Has more to learn than a game of two losses teaches, a classifier or an encoder beside the players for instance,
    and objectives of its own for it."""


class Perceives(Adversarial):
    """Its critic judges by features of x that other losses may use: D(x) is a function of `features(x)`."""

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """The critic's last hidden layer, (B, d)."""


class Bidirectional(Decoder, Encodes, Reconstructs):
    """A decoder and an encoder, trained against a critic of pairs (x, z) that tells data with their codes from codes
    with what they are decoded to. Has the parts `generator`, `encoder` and `discriminator`."""

    generator: nn.Module
    encoder: nn.Module
    discriminator: nn.Module

    @abstractmethod
    def infer(self, x: Tensor) -> Tensor:
        """z ~ q(z|x), (B, *code), with gradients; in training the noise is `gentrain.noise`'s. Where q(z|x) is a
        point this is that point, else `codes` are its centre."""

    @abstractmethod
    def discriminate_pair(self, x: Tensor, z: Tensor) -> Tensor:
        """The critic's output, (B,), larger where it takes x for data and z for its code."""

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decode(self.codes(x))


class AutoencodingCritic(Extended, Codes, Reconstructs):
    """Its critic is an autoencoder that is to restore real examples alone: D(x) is minus the error it makes of x.

    `codes(x)` and `reconstruct(x)` are the critic's, with gradients.
    """
