"""The networks of StackGAN: conditions, a critic of image and caption together, and the refiner of small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gentrain.models.auxiliary import Form
from gentrain.models.labels import beside
from gentrain.models.layers import DiagonalNormal, StandardNormal, double, halve, mlp
from gentrain.models.normalisation import Norm
from gentrain.models.players import leaky


class Augmentation(nn.Module):
    """q(ĉ | y) = N(μ(e), diag σ²(e)), with e the mean of the embeddings of y's words: (B, V) -> a distribution."""

    def __init__(self, words: int, embedding: int, condition: int):
        super().__init__()
        self.embedding = embed(words, embedding)
        self.moments = nn.Sequential(leaky(), nn.Linear(embedding, 2 * condition))

    def forward(self, words: Tensor) -> DiagonalNormal:
        return DiagonalNormal(*self.moments(self.embedding(words)).float().chunk(2, 1))


class MatchingCritic(nn.Module):
    """Whether an image is real and goes with its caption: features of x, and words (B, V) -> (B,).

    What the caption is embedded as joins the image's features before two more layers; so their match can be judged.
    """

    def __init__(self, form: Form, words: int, embedding: int):
        super().__init__()
        self.trunk, width = form.trunk()
        self.embedding = embed(words, embedding)
        self.verdict = mlp([width + embedding, 128, 1], leaky)

    def forward(self, features: Tensor, words: Tensor) -> Tensor:
        """From what `trunk` makes of x, whatever its caption is."""
        return self.verdict(torch.cat([features, self.embedding(words)], 1)).float().flatten()


def embed(words: int, size: int) -> nn.Linear:
    """(B, V) -> the mean of the words' vectors, (B, size), which start from N(0, I) as embeddings do."""
    layer = nn.Linear(words, size, bias=False)
    nn.init.normal_(layer.weight)
    return layer


class StageNetwork(nn.Module):
    """A stage's generator: `network` and the augmentation of its own."""

    def __init__(self, augmentation: Augmentation, condition: int, network: nn.Module):
        super().__init__()
        self.augmentation, self.network, self.unit = augmentation, network, StandardNormal(condition)

    def condition(self, words: Tensor, epsilon: Tensor) -> Tensor:
        """ĉ, (B, condition)."""
        return self.augmentation(words).draw(epsilon)[0]


class Refiner(nn.Module):
    """Small images (B, C, h, w) and conditions (B, d) -> (B, *shape), in [-1, 1].

    Args:
        shape: of the images it makes, 2^halvings times as wide. condition: d. channels: maps at the small images' size,
            twice as many at half of it, and half as many, down to 8, at each doubling. blocks: residual ones, at half
            the small images' size.
    """

    def __init__(self, shape: tuple[int, ...], halvings: int, condition: int, channels: int, blocks: int):
        super().__init__()
        norm = Norm("batch", 0)
        size = [shape[1] >> i for i in range(halvings + 2)]  # down to half of the small side, rounded
        maps = [max(channels >> i, min(channels, 8)) for i in reversed(range(halvings + 1))] + [2 * channels]
        small, width = maps[-2], maps[-1]
        self.encode = nn.Sequential(
            nn.Conv2d(shape[0], small, 3, padding=1), nn.ReLU(),
            halve(small, width, bias=False), *norm.layers(width, 2), nn.ReLU(),
        )  # fmt: skip
        self.join = nn.Sequential(
            nn.Conv2d(width + condition, width, 3, padding=1, bias=False), *norm.layers(width, 2), nn.ReLU()
        )
        self.blocks = nn.Sequential(*(Block(width, norm) for _ in range(blocks)))
        layers: list[nn.Module] = []
        for i in reversed(range(halvings + 1)):
            layers += [
                double(maps[i + 1], maps[i], (size[i], size[i]), bias=False),
                *norm.layers(maps[i], 2),
                nn.ReLU(),
            ]
        self.grow = nn.Sequential(*layers, nn.Conv2d(maps[0], shape[0], 3, padding=1), nn.Tanh())

    def forward(self, small: Tensor, condition: Tensor) -> Tensor:
        return self.grow(self.blocks(self.join(beside(self.encode(small), condition, maps=True))))


class Block(nn.Module):
    """A residual block (He et al. 2016): x + f(x), rectified."""

    def __init__(self, width: int, norm: Norm):
        super().__init__()
        self.change = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), *norm.layers(width, 2), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), *norm.layers(width, 2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.change(x))
