"""Deep autoencoders that begin as stacks: of RBMs, or of autoencoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from gentrain.errors import UsageError
from gentrain.models.autoencoder import ACTIVATIONS, MARGIN, Autoencoder
from gentrain.models.base import Filters
from gentrain.models.harmonium import BinaryVisible, LinearRBM
from gentrain.models.rbm import RBM
from gentrain.models.stack import AutoencoderStack, Ends, RBMStack, Unrolled
from gentrain.types import PositiveInt, Shape


class DeepAutoencoder(Unrolled, RBMStack, Filters):
    """A stack of RBMs, unrolled into an autoencoder and fine-tuned (Hinton & Salakhutdinov 2006, Science 313).

    All units are logistic but those of the code, which are real. Grey levels are taken for probabilities of bits. An
    RBM's examples are the probabilities of the hidden units below it.

    Args:
        shape: of one example.
        levels: number of values an element can take in the data.
        hidden: units of the layers, the last of them the code's: the paper's is [1000, 500, 250, 30].
        code: `linear`, real units with unit variance in pretraining, or `sigmoid`, bits.

    Raises:
        UsageError: the data are real numbers, which are no probabilities; or there is no layer.

    >>> model = DeepAutoencoder((1, 8, 8), levels=17, hidden=[16, 2])
    >>> model.layer1.visible, model.layer2, model.codes(torch.zeros(3, 1, 8, 8)).shape
    (64, LinearRBM(), torch.Size([3, 2]))
    """

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        hidden: Sequence[PositiveInt] = (500, 250, 30),
        code: Literal["linear", "sigmoid"] = "linear",
    ):
        super().__init__()
        _require_layers(hidden)
        if levels is None:
            raise UsageError(
                "model=deep_autoencoder takes bits and grey levels, and these data are real numbers; use model=stacked"
            )
        self._set_space(shape, levels, "unit", "logistic", hidden[-1])
        shapes = [self.shape, *((units,) for units in hidden[:-1])]
        kinds = [RBM] * (len(hidden) - 1) + [LinearRBM if code == "linear" else RBM]
        self.stack([kind(s, units) for kind, s, units in zip(kinds, shapes, hidden, strict=True)])
        self._make_network(hidden, ACTIVATIONS[code]())

    def up(self, i: int, x: Tensor) -> Tensor:
        return self._rbm(i).hidden_probability(x)

    def _rbm(self, i: int) -> BinaryVisible:
        layer = self.layer(i)
        assert isinstance(layer, BinaryVisible)
        return layer

    def ends(self, i: int) -> Ends:
        layer = self._rbm(i)
        return Ends(layer.weight, layer.hidden_bias, layer.weight.t(), layer.visible_bias)

    @torch.no_grad()
    def start_from_mean(self, mean: Tensor) -> None:
        self._rbm(1).visible_bias.copy_(torch.logit(mean.flatten().clamp(MARGIN, 1 - MARGIN)))

    def filters(self) -> Tensor:
        """The encoder's first weights, (units, *shape)."""
        return _first(self)


class StackedAutoencoder(Unrolled, AutoencoderStack, Filters):
    """Autoencoders of one layer each, stacked, unrolled and fine-tuned (Bengio et al. 2007; Vincent et al. 2010).

    Layer i encodes the codes of layer i - 1, by a sigmoid layer. Layers that learn by `denoising`
    make it a stacked denoising autoencoder, at `level=0` a plain one.

    Args:
        shape: of one example.
        levels: number of values an element can take in the data, None for reals.
        hidden: units of the layers, the last of them the code's.
        code: of the last layer, `linear` or `sigmoid`.
        tied: in pretraining a layer's weights downwards are those upwards, transposed.

    Raises:
        UsageError: there is no layer.

    >>> model = StackedAutoencoder((1, 8, 8), levels=17, hidden=[16, 2])
    >>> model.layer2.latent_dim, model.codes(torch.zeros(3, 1, 8, 8)).shape
    (2, torch.Size([3, 2]))
    """

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        hidden: Sequence[PositiveInt] = (500, 250, 30),
        code: Literal["linear", "sigmoid"] = "linear",
        tied: bool = True,
    ):
        super().__init__()
        _require_layers(hidden)
        self._set_space(shape, levels, "auto", "auto", hidden[-1])
        layers: list[Autoencoder] = []
        for i, units in enumerate(hidden, 1):
            below = (self.shape, levels) if i == 1 else ((hidden[i - 2],), 2)
            kind = code if i == len(hidden) else "sigmoid"
            layers.append(Autoencoder(*below, latent_dim=units, hidden=(), code=kind, tied=tied))
        self.stack(layers)
        self._make_network(hidden, ACTIVATIONS[code]())

    def up(self, i: int, x: Tensor) -> Tensor:
        return self._autoencoder_of(i).codes(x)

    def _autoencoder_of(self, i: int) -> Autoencoder:
        layer = self.layer(i)
        assert isinstance(layer, Autoencoder)
        return layer

    def ends(self, i: int) -> Ends:
        layer = self._autoencoder_of(i)
        (up,) = (m for m in layer.encoder.children() if isinstance(m, nn.Linear))
        down = [m for m in layer.decoder.children() if isinstance(m, nn.Linear)]  # none where they are tied
        return Ends(up.weight, up.bias, down[0].weight if down else up.weight.t(), layer.bias)

    def start_from_mean(self, mean: Tensor) -> None:
        self._autoencoder_of(1).start_from_mean(mean)

    def filters(self) -> Tensor:
        """The encoder's first weights, (units, *shape)."""
        return _first(self)


def _require_layers(hidden: Sequence[int]) -> None:
    if not hidden:
        raise UsageError("model.hidden=[]: a stack has one layer at least, the last of them the code")


def _first(model: Unrolled) -> Tensor:
    weight = model.ends(1).weight
    if bool(model.unrolled > 0):
        first = next(m for m in model.network["encoder"].children() if isinstance(m, nn.Linear))
        weight = first.weight
    return weight.view(-1, *model.shape)
