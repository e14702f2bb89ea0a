"""Labels as inputs of networks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gentrain.errors import UsageError
from gentrain.models.base import Conditional, Generative


def one_hot(model: Generative, y: Tensor | None, rows: int) -> Tensor:
    """Labels y (B,) of `rows` examples as zeros and a one, (B, K), for a conditional model of K classes.

    Raises:
        UsageError: as of `checked`.
    """
    y = checked(model, y, rows)
    assert isinstance(model, Conditional) and model.classes
    return functional.one_hot(y.long(), model.classes).float()


def checked(model: Generative, y: Tensor | None, rows: int) -> Tensor:
    """Labels y (B,) of `rows` examples for a conditional model of K classes.

    Raises:
        UsageError: there are none, another number of them than of examples, or one that the model doesn't know.
    """
    assert isinstance(model, Conditional) and model.classes
    name, classes = type(model).__name__, model.classes
    if y is None:
        raise UsageError(f"{name}: the labels are missing; give y, one for each example")
    if y.shape != (rows,):
        raise UsageError(f"{name}: y has the shape {tuple(y.shape)}; give one label for each of the {rows} examples")
    # On a GPU asking would stall every step, and what trains are the labels of data that fit the model.
    if rows and not torch.compiler.is_compiling() and (y.device.type == "cpu" or not model.training):
        wrong = y[(y < 0) | (y >= classes)]
        if len(wrong):
            raise UsageError(f"{name}: there is no label {int(wrong[0])}; the model knows 0 to {classes - 1}")
    return y


def beside(x: Tensor, label: Tensor, maps: bool) -> Tensor:
    """x (B, …) and one-hot labels (B, K) as one input: as feature maps that are on or off, or flat.

    >>> beside(torch.zeros(1, 1, 2, 2), torch.tensor([[0.0, 1.0]]), maps=True).shape
    torch.Size([1, 3, 2, 2])
    >>> beside(torch.zeros(1, 1, 2), torch.tensor([[0.0, 1.0]]), maps=False)
    tensor([[0., 0., 0., 1.]])
    """
    if maps:
        return torch.cat([x, label[..., None, None].expand(-1, -1, *x.shape[-2:]).to(x.dtype)], 1)
    return torch.cat([x.flatten(1), label.to(x.dtype)], 1)
