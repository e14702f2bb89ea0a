"""UNIT: two domains with one space of codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import log_softmax

from gentrain.errors import UsageError
from gentrain.models.coupled import Coupled, CoupledCritic, Inwards, Layout, Outwards
from gentrain.models.domains import Adapts, TranslatesBack
from gentrain.models.translation import KeepsInputs
from gentrain.types import PositiveInt, Shape


class Coders(nn.Module):
    """Encoders, whose last layers are tied, and decoders, whose first ones are.

    Args:
        layout: of both. latent: d, numbers of a code.
    """

    def __init__(self, layout: Layout, latent: int):
        super().__init__()
        self.encoders, self.decoders = Inwards(layout), Outwards(layout, latent)
        self.code = nn.Linear(self.encoders.features, latent)

    def of_x(self, x: Tensor) -> Tensor:
        return self.code(self.encoders.of_x(x)).float()

    def of_pair(self, pair: Tensor) -> Tensor:
        return self.code(self.encoders.of_pair(pair)).float()


class UNIT(Coupled, KeepsInputs, TranslatesBack, Adapts):
    """Two VAEs with one space of codes, and a critic of each domain (Liu et al. 2017, arXiv:1703.00848).

        q(z|x) = N(E_x(x), I),   q(z|pair) = N(E_pair(pair), I),   x = G_x(z),   pair = G_pair(z),   p(z) = N(0, I)

    A translation goes through the code: x = G_x(E_pair(pair)). That both domains have the same codes is assumed, and
    built in by ties: only the first layers of encoders and critics and the last ones of decoders are a domain's own.
    The paper's networks are deeper, with codes that are maps.

    For domain adaptation (section 4.2) the critics' tied features also tell labels: they learn those of x, and may then
    be asked for labels of `pair`, of which they are told none.

    Args:
        shape: of one example.
        levels: number of values an element can take in the data, None for reals.
        classes: K, the labels of x, for `adapt`.
        network: `mlp`, or `conv` for images with sides of 8 to 64. hidden, channels, norm: see `Layout`.
        latent_dim: d, numbers of a code.
        alike: whether both domains' own layers start from the same weights: for sets that look alike.
        adapt: whether the critics tell labels.
        inputs: examples of `pair` that are kept; samples are translations of these.

    Raises:
        UsageError: as of `Layout`; labels are to be told, and the data have none.

    >>> import torch
    >>> model = UNIT((1, 8, 8), levels=17, latent_dim=4, hidden=[16], channels=4, network="conv", inputs=5).eval()
    >>> x = model.translate(torch.zeros(3, 1, 8, 8))
    >>> x.shape, model.encode(x).shape, model.translate_back(x).shape
    (torch.Size([3, 1, 8, 8]), torch.Size([3, 4]), torch.Size([3, 1, 8, 8]))
    """

    generator: Coders

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        classes: PositiveInt | None = None,
        network: Literal["mlp", "conv"] = "mlp",
        latent_dim: PositiveInt = 64,
        hidden: Sequence[PositiveInt] = (512, 256),
        channels: PositiveInt | None = None,
        norm: Literal["none", "batch", "layer"] = "layer",
        alike: bool = False,
        adapt: bool = False,
        inputs: PositiveInt = 64,
    ):
        super().__init__(shape, inputs)
        if adapt and classes is None:
            raise UsageError("model.adapt=true: the labels of x are to be told, and these data have none; set it false")
        layout = Layout(self.shape, levels is not None, network, tuple(hidden), channels, norm, alike)
        self.support = "signed" if layout.bounded else "real"
        self.latent_dim, self.adapt = latent_dim, adapt
        self.generator = Coders(layout, latent_dim)
        self.discriminator = CoupledCritic(layout, classes or 0 if adapt else 0)

    def encode(self, x: Tensor) -> Tensor:
        """The mean of q(z|x), whose covariance is I, (B, d)."""
        return self.generator.of_x(x)

    def encode_pair(self, pair: Tensor) -> Tensor:
        """That of q(z|pair), (B, d)."""
        return self.generator.of_pair(pair)

    def decode(self, z: Tensor) -> Tensor:
        """G_x(z), (B, *shape)."""
        return self.generator.decoders.to_x(z)

    def decode_pair(self, z: Tensor) -> Tensor:
        """G_pair(z), (B, *shape)."""
        return self.generator.decoders.to_pair(z)

    def translate(self, pair: Tensor) -> Tensor:
        return self.decode(self.encode_pair(pair))

    def translate_back(self, x: Tensor) -> Tensor:
        return self.decode_pair(self.encode(x))

    @property
    def knows_labels(self) -> bool:
        return self.adapt

    def log_class(self, x: Tensor) -> Tensor:
        return log_softmax(self.discriminator.labels(self.discriminator.body.of_x(x)), 1)

    def log_class_pair(self, pair: Tensor) -> Tensor:
        return log_softmax(self.discriminator.labels(self.discriminator.body.of_pair(pair)), 1)
