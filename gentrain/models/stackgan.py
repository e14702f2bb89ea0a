"""StackGAN: a first GAN draws what a label or a caption says, small; a second one draws it again, in full."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from gentrain.errors import UsageError
from gentrain.models.auxiliary import Form, Remembers
from gentrain.models.base import Conditional
from gentrain.models.captions import Captioned, Vocabulary
from gentrain.models.cascade import Cascade, down, sides
from gentrain.models.critics import Adversarial
from gentrain.models.labels import one_hot
from gentrain.models.layers import SMALLEST, StandardNormal
from gentrain.models.players import radford
from gentrain.models.stackgan_networks import Augmentation, MatchingCritic, Refiner, StageNetwork
from gentrain.types import PositiveInt, Shape


class StackGAN(Cascade, Captioned):
    """x = G_2(G_1(z, ĉ_1), ĉ_2): a small image of what a caption says, and from it the image (Zhang et al. 2017,
    arXiv:1612.03242).

    A label y is embedded as e(y): by a vector of its own, or where labels are captions ("a thick seven") by the mean of
    its words' vectors, so that words can be put together that no example has together. Each stage makes a condition of
    it by conditioning augmentation, a draw near what the caption means:

        ĉ = μ(e) + σ(e) ∘ ε,  ε ~ N(0, I)

    Stage I is a GAN of images at a fraction of the size. Stage II takes them, and not z: it halves the small image,
    joins ĉ_2 as maps, goes through residual blocks and doubles it up to full size. Each stage's critic judges an image
    together with the label. Stage II is trained with Stage I as it has become: see `objective=stackgan`.

    Embeddings are learned, by each of the four networks for itself; in the paper they come of a text encoder that was
    trained before. z is all noise: that of Stage I, ε_1 and ε_2. Images live in [-1, 1] (`signed`).

    Args:
        shape: of one example, a square image. levels: number of values an element can take in the data.
        classes: K, labels 0…K - 1, two or more. captions: what they say, as many texts; None if they say nothing.
        halvings: how many times Stage I's image is halved: by 1 it is 14 pixels wide where the example is 28.
        latent_dim: dimensions of Stage I's noise. embedding: of e(y). condition: of ĉ.
        channels: feature maps of both critics' first halving and of Stage I's generator at its highest resolution,
            doubled at each halving; of Stage II's at Stage I's resolution.
        hidden: units of Stage I's networks, where its images are too small for convolutions, under 8 pixels.
        blocks: residual blocks of Stage II.

    Raises:
        UsageError: no labels, images of another size, captions that are more or fewer than the labels.

    >>> gan = StackGAN((1, 8, 8), 17, 2, ["a thin one", "a thick one"], latent_dim=3, condition=2, channels=4)
    >>> gan.sample(3).shape, gan.sample_text(2, "thick").shape
    (torch.Size([3, 1, 8, 8]), torch.Size([2, 1, 8, 8]))
    """

    classes: int

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        classes: PositiveInt | None = None,
        captions: Sequence[str] | None = None,
        halvings: PositiveInt = 1,
        latent_dim: PositiveInt = 64,
        embedding: PositiveInt = 32,
        condition: PositiveInt = 16,
        channels: PositiveInt = 32,
        hidden: Sequence[PositiveInt] = (256, 512),
        blocks: PositiveInt = 2,
    ):
        super().__init__()
        if classes is None or classes < 2:
            have = "no labels" if classes is None else "one label"
            raise UsageError(f"StackGAN draws what a label says, and these data have {have}: use data with more")
        self.shape, self.support, self.classes = tuple(shape), "signed", classes
        self.halvings = halvings
        small = sides("stackgan", self.shape, levels, halvings, f"model.halvings={halvings}")[-1]
        self.vocabulary = Vocabulary(classes, captions)
        self.words = self.vocabulary.words
        reader = Reader(self.vocabulary, embedding, condition)
        self.stage1 = StageOne((self.shape[0], small, small), levels, reader, latent_dim, channels, hidden)
        self.stage2 = StageTwo(self.stage1, self.shape, levels, reader, channels, halvings, blocks)
        self.steps = ("stage1", "stage2")

    @property
    def prior(self) -> Distribution:
        return self.stage2.prior

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z, y), (B, *shape), for labels y (B,)."""
        return self.draw(z, self.vocabulary(one_hot(self, y, len(z))))

    def draw(self, z: Tensor, words: Tensor) -> Tensor:
        """(B, *shape) of captions as weights of words (B, V)."""
        return self.stage2.refine(self.stage1.draw(self.stage2.first_code(z), words), z, words)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """n draws, (n, *shape), of the labels y (n,) or of even ones."""
        if y is None:
            y = torch.randint(self.classes, (n,), device=self.device)
        return self.decode(self.prior.sample(torch.Size([n])), y)

    @torch.no_grad()
    def sample_text(self, n: int, text: str) -> Tensor:
        words = self.vocabulary.read(text).to(self.device).expand(n, -1)
        return self.draw(self.prior.sample(torch.Size([n])), words)

    def player(self, step: str, x: Tensor) -> tuple[Adversarial, Tensor]:
        if step == "stage2":
            return self.stage2, x
        for _ in range(self.halvings):
            x = down(x)
        return self.stage1, x


class Reader:
    """How captions are read; makes what each network has of its own for it.

    Args:
        vocabulary: shared by all. embedding, condition: as of `StackGAN`.
    """

    def __init__(self, vocabulary: Vocabulary, embedding: int, condition: int):
        self.vocabulary, self.embedding, self.condition = vocabulary, embedding, condition

    def augmentation(self) -> Augmentation:
        return Augmentation(self.vocabulary.size, self.embedding, self.condition)

    def critic(self, form: Form) -> MatchingCritic:
        critic = MatchingCritic(form, self.vocabulary.size, self.embedding)
        form.finish(critic.trunk)
        return critic


class Stage(Remembers, Adversarial, Conditional):
    """A stage as a game sees it: p(image | label) at its own size, and a critic of both."""

    classes: int
    generator: StageNetwork
    discriminator: MatchingCritic

    def __init__(self, shape: tuple[int, ...], vocabulary: Vocabulary):
        super().__init__()
        self.shape, self.support, self.classes = shape, "signed", len(vocabulary.rows)
        self._vocabulary = (vocabulary,)  # the model's, and of no stage

    def words(self, y: Tensor | None, rows: int) -> Tensor:
        """Labels (B,) as weights of words, (B, V)."""
        return self._vocabulary[0](one_hot(self, y, rows))

    def discriminate(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        features = self.recalled((x,), lambda: self.discriminator.trunk(x))  # for any label
        return self.discriminator(features, self.words(y, len(x)))

    @abstractmethod
    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Images of this stage, (B, *shape), for labels y (B,)."""

    def divergence(self, y: Tensor) -> Tensor:
        """KL(q(ĉ|y) ‖ N(0, I)) of labels (B,), in nats, (B,)."""
        augmentation = self.generator.augmentation
        return kl_divergence(augmentation(self.words(y, len(y))), self.generator.unit())

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        if y is None:
            y = torch.randint(self.classes, (n,), device=self.device)
        return self.decode(self.prior.sample(torch.Size([n])), y)


class StageOne(Stage):
    """Small images from noise and the condition. Its code is (z, ε_1)."""

    def __init__(
        self,
        shape: tuple[int, ...],
        levels: int | None,
        reader: Reader,
        latent_dim: int,
        channels: int,
        hidden: Sequence[int],
    ):
        super().__init__(shape, reader.vocabulary)
        network = "conv" if shape[1] >= SMALLEST else "mlp"
        form = Form(shape, levels, network, hidden, None, channels if network == "conv" else None, None, None, False)
        generator = form.generator(latent_dim + reader.condition)
        self.generator = StageNetwork(reader.augmentation(), reader.condition, generator)
        self.discriminator = reader.critic(form)
        self._lengths = [latent_dim, reader.condition]
        self.code = StandardNormal(sum(self._lengths))

    @property
    def prior(self) -> Distribution:
        return self.code()

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.draw(z, self.words(y, len(z)))

    def draw(self, z: Tensor, words: Tensor) -> Tensor:
        noise, epsilon = z.split(self._lengths, 1)
        condition = self.generator.condition(words, epsilon)
        return self.generator.network(torch.cat([noise, condition], 1)).float()


class StageTwo(Stage):
    """Images from Stage I's, and the condition. Its code is (z, ε_1, ε_2).

    To a game, as which `decode` serves, Stage I gives what it gives when all is learned, and learns nothing.
    """

    def __init__(
        self,
        first: StageOne,
        shape: tuple[int, ...],
        levels: int | None,
        reader: Reader,
        channels: int,
        halvings: int,
        blocks: int,
    ):
        super().__init__(shape, reader.vocabulary)
        self._first = (first,)  # the model's, and no part of this stage
        self._lengths = [sum(first._lengths), reader.condition]
        self.code = StandardNormal(sum(self._lengths))
        refiner = Refiner(shape, halvings, reader.condition, channels, blocks)
        self.generator = StageNetwork(reader.augmentation(), reader.condition, refiner.apply(radford))
        self.discriminator = reader.critic(Form(shape, levels, "conv", (), None, channels, None, None, False))

    @property
    def prior(self) -> Distribution:
        return self.code()

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        words = self.words(y, len(z))
        with torch.no_grad(), _resting(self._first[0]) as first:
            small = first.draw(self.first_code(z), words)
        return self.refine(small, z, words)

    def first_code(self, z: Tensor) -> Tensor:
        """Stage I's part of a code."""
        return z[:, : self._lengths[0]]

    def refine(self, small: Tensor, z: Tensor, words: Tensor) -> Tensor:
        """(B, *shape) of Stage I's images."""
        condition = self.generator.condition(words, z[:, self._lengths[0] :])
        return self.generator.network(small, condition).float()


@contextmanager
def _resting(first: StageOne) -> Iterator[StageOne]:
    """Within it Stage I is in eval mode: its normalisation is by what it has learned, and learns no more."""
    training = first.training
    first.eval()
    try:
        yield first
    finally:
        first.train(training)
