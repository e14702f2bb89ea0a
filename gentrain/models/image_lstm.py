"""LSTMs over images: the row's, and the diagonal's in both directions (van den Oord et al. 2016, arXiv:1601.06759).

A layer runs over whole maps in training, a loop over rows or diagonals. In generation it goes pixel by pixel and keeps
the states, so that an image costs about as much arithmetic as one pass over it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentrain.models.masked_convolution import ConvCache, MaskedConv2d, groups


def lstm(gates: Tensor, cell: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The hidden state and the cell after a step, from the sums of the four gates along `dim`."""
    keep, take, show, new = gates.chunk(4, dim)
    cell = torch.sigmoid(keep) * cell + torch.sigmoid(take) * torch.tanh(new)
    return torch.sigmoid(show) * torch.tanh(cell), cell


class ImageLSTM(nn.Module):
    """A layer from maps (B, d_in, H, W) to hidden states (B, hidden, H, W).

    The input-to-state convolution is masked (B). The state-to-state one sees earlier pixels only, and so needs no mask.

    Args:
        inputs: colour group of each input map. hidden: units. channels: colours. directions: LSTMs side by side.
        kernel: width of the input-to-state convolution.
    """

    def __init__(self, inputs: Tensor, hidden: int, channels: int, directions: int, kernel: int):
        super().__init__()
        self.hidden = hidden
        self.gates = MaskedConv2d(kernel, "B", inputs, groups(hidden, channels).repeat(4 * directions), above=0)
        with torch.no_grad():  # what a cell holds it keeps at first: gradients reach far back
            self.gates.bias.view(directions, 4, hidden)[:, 0] = 1.0

    @abstractmethod
    def walk(self, n: int, width: int) -> Walk:
        """The same for n images of this width, pixel by pixel."""


class Walk(ABC):
    """An `ImageLSTM` that is carried out pixel by pixel."""

    def __init__(self, layer: ImageLSTM, n: int, width: int):
        self.n, self.width, self.hidden = n, width, layer.hidden
        self.gates = ConvCache(layer.gates, n, width)

    def zeros(self, *shape: int) -> Tensor:
        return self.gates.here.new_zeros(self.n, *shape)

    @abstractmethod
    def row(self) -> None:
        """A row is complete; the next begins."""

    @abstractmethod
    def pixel(self, j: int, h: Tensor) -> Tensor:
        """The hidden state (n, hidden) at column j, whose input is h (n, d_in). A later call for it replaces this."""


class RowLSTM(ImageLSTM):
    """Row after row; the state-to-state convolution, of width 3, sees the row above: so a triangle of those before."""

    def __init__(self, inputs: Tensor, hidden: int, channels: int):
        super().__init__(inputs, hidden, channels, directions=1, kernel=3)
        self.state = nn.Conv1d(hidden, 4 * hidden, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = cell = x.new_zeros(len(x), self.hidden, x.shape[3])
        rows = []
        for gates in self.gates(x).unbind(2):
            hidden, cell = lstm(gates + self.state(hidden), cell, 1)
            rows.append(hidden)
        return torch.stack(rows, 2)

    def walk(self, n: int, width: int) -> RowWalk:
        return RowWalk(self, n, width)


class RowWalk(Walk):
    def __init__(self, layer: RowLSTM, n: int, width: int):
        super().__init__(layer, n, width)
        self.state = layer.state
        self.cell_above, self.above = self.zeros(self.hidden, width), self.zeros(4 * self.hidden, width)
        self.here, self.cell = self.zeros(self.hidden, width), self.zeros(self.hidden, width)

    def row(self) -> None:
        self.above = self.state(self.here)
        self.cell_above, self.cell = self.cell, self.cell_above

    def pixel(self, j: int, h: Tensor) -> Tensor:
        gates = self.gates.pixel(j, h) + self.above[:, :, j]
        hidden, self.cell[:, :, j] = lstm(gates, self.cell_above[:, :, j], 1)
        self.here[:, :, j] = hidden
        return hidden


def skew(x: Tensor) -> Tensor:
    """Each row moved right by its number: (…, H, W, d) -> (…, H, W + H - 1, d), so that diagonals become columns.

    >>> skew(torch.arange(1, 7).view(2, 3, 1))[..., 0]
    tensor([[1, 2, 3, 0],
            [0, 4, 5, 6]])
    """
    height, width = x.shape[-3:-1]
    flat = F.pad(x, (0, 0, 0, height)).flatten(-3, -2)
    return flat[..., : height * (width + height - 1), :].unflatten(-2, (height, width + height - 1))


def unskew(x: Tensor) -> Tensor:
    """Undoes `skew`: (…, H, W + H - 1, d) -> (…, H, W, d)."""
    height, diagonals = x.shape[-3:-1]
    flat = F.pad(x.flatten(-3, -2), (0, 0, 0, height))
    return flat.unflatten(-2, (height, diagonals + 1))[..., : diagonals - height + 1, :]


class DiagonalBiLSTM(ImageLSTM):
    """Diagonal after diagonal, from the top left corner and from the top right one: all of the pixels before.

    Each direction's state-to-state convolution sees the neighbour that it comes from, in the same row, and the one
    above. What comes from the right has seen pixels after this one in its row: so it is taken from the row above.
    """

    def __init__(self, inputs: Tensor, hidden: int, channels: int):
        super().__init__(inputs, hidden, channels, directions=2, kernel=1)
        bound = (2 * hidden) ** -0.5
        self.state = nn.Parameter(torch.empty(2, 2 * hidden, 4 * hidden).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        b, _, height, _ = x.shape
        # channels last: what is moved about are whole vectors of units
        gates = self.gates(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
        left, right = gates.chunk(2, 3)
        hidden = cell = x.new_zeros(2, b, height, self.hidden)
        columns = []
        for gate in skew(torch.stack([left, right.flip(2)])).unbind(3):
            # A state before its row begins is exactly zero: no gate has a bias there. Those after its end reach no row.
            neighbours = torch.cat([hidden, F.pad(hidden, (0, 0, 1, -1))], 3).flatten(1, 2)
            hidden, cell = lstm(gate + torch.bmm(neighbours, self.state).view(2, b, height, -1), cell, 3)
            columns.append(hidden)
        left, right = unskew(torch.stack(columns, 3)).unbind(0)
        return (left + F.pad(right.flip(2), (0, 0, 0, 0, 1, -1))).permute(0, 3, 1, 2)

    def walk(self, n: int, width: int) -> DiagonalWalk:
        return DiagonalWalk(self, n, width)


class DiagonalWalk(Walk):
    def __init__(self, layer: DiagonalBiLSTM, n: int, width: int):
        super().__init__(layer, n, width)
        self.state = layer.state
        self.here = self.zeros(width + 1, self.hidden)  # column j at j + 1
        self.cell = self.zeros(width + 1, self.hidden)
        self.above, self.right_above = self.zeros(width, self.hidden), self.zeros(width, self.hidden)
        self.right_gates = self.zeros(width, 4 * self.hidden)

    def row(self) -> None:
        self.above = self.here[:, 1:].clone()
        states = self.right_above.clone()
        hidden = cell = self.zeros(self.hidden)
        for j in reversed(range(self.width)):
            neighbours = torch.cat([hidden, self.right_above[:, j]], 1)
            hidden, cell = lstm(torch.addmm(self.right_gates[:, j], neighbours, self.state[1]), cell, 1)
            states[:, j] = hidden
        self.right_above = states

    def pixel(self, j: int, h: Tensor) -> Tensor:
        gates, self.right_gates[:, j] = self.gates.pixel(j, h).chunk(2, 1)
        neighbours = torch.cat([self.here[:, j], self.above[:, j]], 1)
        hidden, self.cell[:, j + 1] = lstm(torch.addmm(gates, neighbours, self.state[0]), self.cell[:, j], 1)
        self.here[:, j + 1] = hidden
        return hidden + self.right_above[:, j]
