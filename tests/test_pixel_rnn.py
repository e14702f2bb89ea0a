"""PixelRNN: densities by enumeration, layers against torch's LSTM and a plain loop, what sees what, states kept."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from helpers import build
from torch import Tensor, nn

from gentrain.errors import UsageError
from gentrain.models import image_lstm
from gentrain.models.image_lstm import DiagonalBiLSTM, RowLSTM, skew, unskew
from gentrain.models.masked_convolution import groups
from gentrain.models.pixel_rnn import PixelRNN
from gentrain.truth.spaces import discrete, follow

Shape = tuple[int, int, int]
SPACES: list[tuple[Shape, int]] = [((1, 3, 3), 2), ((1, 2, 4), 2), ((1, 2, 3), 3), ((3, 2, 2), 2)]
Pixels = frozenset[tuple[int, int]]
every_cell = pytest.mark.parametrize("cell", ["row", "diagonal"])


def make(cell: Any, shape: Shape, levels: int = 2, seed: int = 0, **settings: Any) -> PixelRNN:
    """A tiny model with weights so large that its conditionals are far from even."""
    torch.manual_seed(seed)
    small = {"hidden": 6, "layers": 2, "kernel": 3, "head": 6, **settings}
    model = PixelRNN(shape, levels, cell, likelihood="bernoulli" if levels == 2 else "categorical", **small)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.mul_(2).add_(torch.randn_like(p), alpha=0.5 if "bias" in name else 0.1)
    return model.eval()


def examples(shape: Shape, levels: int, n: int = 4) -> Tensor:
    x = torch.randint(levels, (n, *shape))
    return x.float() if levels == 2 else x


@every_cell
@pytest.mark.parametrize(("shape", "levels"), SPACES)
def test_probabilities_sum_to_one_and_samples_follow_them(cell: str, shape: Shape, levels: int) -> None:
    model = make(cell, shape, levels)
    space = discrete(shape, levels, torch.float32 if levels == 2 else torch.int64)
    with torch.no_grad():
        log_p = model.log_prob(space.points)
    assert log_p.double().exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert log_p.std() > 0.5, "a distribution so even tests nothing"
    torch.manual_seed(1)
    statistic, allowed, words = follow(model.sample(5000), space, log_p)
    assert statistic < allowed, words


# --- layers -----------------------------------------------------------------------------------------------------------


def torch_lstm(state: Tensor) -> nn.LSTM:
    """torch's LSTM fed with sums of gates as they are; `state` is (hidden, 4 hidden): keep, take, show, new."""
    hidden = len(state)
    lstm = nn.LSTM(4 * hidden, hidden, batch_first=True, bias=False)
    keep, take, show, new = torch.eye(4 * hidden).chunk(4)
    f, i, o, g = state.t().chunk(4)
    assert isinstance(lstm.weight_ih_l0, Tensor) and isinstance(lstm.weight_hh_l0, Tensor)
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(torch.cat([take, keep, new, show]))  # torch's order: input, forget, cell, output
        lstm.weight_hh_l0.copy_(torch.cat([i, f, g, o]))
    return lstm


def test_down_a_column_the_row_lstm_is_an_lstm() -> None:
    torch.manual_seed(0)
    layer, x = RowLSTM(groups(4, 1), 3, 1), torch.randn(5, 4, 6, 1)
    expected, _ = torch_lstm(layer.state.weight[:, :, 1].t())(layer.gates(x)[..., 0].transpose(1, 2))
    torch.testing.assert_close(layer(x)[..., 0].transpose(1, 2), expected)


def test_along_a_row_the_diagonal_lstm_is_an_lstm() -> None:
    torch.manual_seed(0)
    layer, x = DiagonalBiLSTM(groups(4, 1), 3, 1), torch.randn(5, 4, 1, 6)
    expected, _ = torch_lstm(layer.state[0, :3])(layer.gates(x)[:, :12, 0].transpose(1, 2))
    torch.testing.assert_close(layer(x)[:, :, 0].transpose(1, 2), expected)


def test_the_diagonal_lstm_is_a_loop_over_pixels() -> None:
    torch.manual_seed(0)
    hidden, height, width = 3, 4, 5
    layer, x = DiagonalBiLSTM(groups(4, 1), hidden, 1), torch.randn(2, 4, height, width)

    def run(direction: int, gates: Tensor, from_side: int) -> Tensor:
        @functools.cache
        def state(i: int, j: int) -> tuple[Tensor, Tensor]:
            if i < 0 or not 0 <= j < width:
                return torch.zeros(2, hidden), torch.zeros(2, hidden)
            (beside, cell), (above, _) = state(i, j + from_side), state(i - 1, j)
            weights = layer.state[direction]
            f, n, o, g = (gates[:, :, i, j] + beside @ weights[:hidden] + above @ weights[hidden:]).chunk(4, 1)
            cell = f.sigmoid() * cell + n.sigmoid() * g.tanh()
            return o.sigmoid() * cell.tanh(), cell

        rows = [torch.stack([state(i, j)[0] for j in range(width)], -1) for i in range(height)]
        return torch.stack(rows, 2)

    left, right = layer.gates(x).chunk(2, 1)
    expected = run(0, left, -1)
    expected[:, :, 1:] += run(1, right, +1)[:, :, :-1]
    torch.testing.assert_close(layer(x), expected)


def test_skewing_is_undone() -> None:
    x = torch.randn(2, 4, 6, 3)
    assert torch.equal(unskew(skew(x)), x)
    assert torch.equal(skew(x)[0, 2, 2:8], x[0, 2])


@pytest.mark.parametrize(("cell", "steps"), [("row", 5), ("diagonal", 5 + 8 - 1)])
def test_training_loops_over_rows_or_diagonals_and_sampling_visits_a_pixel_once(
    cell: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = make(cell, (1, 5, 7), layers=3), []
    step = image_lstm.lstm
    monkeypatch.setattr(image_lstm, "lstm", lambda *a: calls.append(a[1].numel()) or step(*a))
    model.log_prob(examples((1, 5, 7), 2))
    assert len(calls) == 3 * steps
    calls.clear()
    # A doubtful draw is made again from the whole image: none here, so that all calls are the cache's.
    monkeypatch.setattr(type(model.head), "tolerance", -1.0)
    model.sample(2)
    # the diagonal's goes from the right too in all rows above the last, and there has a column beyond the margin
    pixels = 5 * 7 + (4 * (8 + 1) if cell == "diagonal" else 0)
    assert calls == [2 * 6] * (3 * pixels)


# --- what sees what ---------------------------------------------------------------------------------------------------


def seen(model: PixelRNN, element: int) -> set[int]:
    """The elements of x that the parameters of one element's conditional depend on, by autograd."""
    torch.manual_seed(2)
    x = torch.rand(8, *model.shape, dtype=torch.float64, requires_grad=True)
    own = model.double().conditionals(x)[:, element]
    (gradient,) = torch.autograd.grad((own * torch.randn_like(own)).sum(), x)
    return set(torch.nonzero(gradient.abs().sum(0).flatten()).flatten().tolist())


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 3, 4)])
def test_the_diagonal_lstm_sees_all_that_is_before_and_nothing_else(shape: Shape) -> None:
    model = make("diagonal", shape, layers=2, hidden=9, head=24)
    order = model.order.tolist()
    for place in range(len(order)):
        assert seen(model, order[place]) == set(order[:place]), f"place {place}"


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 3, 5)])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_row_lstm_sees_a_triangle(shape: Shape, layers: int) -> None:
    channels, height, width = shape
    model = make("row", shape, layers=layers, hidden=9, head=24)

    @functools.cache
    def maps(layer: int, i: int, j: int) -> Pixels:
        """The pixels before (i, j) that the maps after so many layers see there."""
        if i < 0 or not 0 <= j < width:
            return frozenset()
        if layer == 0:
            near = {(i - 1, j - 1), (i - 1, j), (i - 1, j + 1), (i, j - 1)}
            return frozenset((r, s) for r, s in near if r >= 0 and 0 <= s < width)
        return maps(layer - 1, i, j) | state(layer, i, j)

    @functools.cache
    def state(layer: int, i: int, j: int) -> Pixels:
        if i < 0 or not 0 <= j < width:
            return frozenset()
        own = maps(layer - 1, i, j) | inputs(layer, i, j - 1)
        return own | state(layer, i - 1, j - 1) | state(layer, i - 1, j) | state(layer, i - 1, j + 1)

    def inputs(layer: int, i: int, j: int) -> Pixels:
        """What a neighbour's input sees: with what is of its own pixel, which is before (i, j + 1)."""
        here = {(i, j)} if channels > 1 and 0 <= j < width else set()
        return maps(layer - 1, i, j) | here

    # A state of the rows above has seen its own pixel's channels but the last, if there are several.
    order = model.order.tolist()
    for place in range(0, len(order), 2):
        c, i, j = (int(v) for v in torch.unravel_index(torch.tensor(order[place]), shape))
        found = seen(model, order[place])
        assert found <= set(order[:place]), "what follows is seen"
        pixels = {(e % (height * width) // width, e % width) for e in found} - {(i, j)}
        assert pixels == maps(layers, i, j), f"element {(c, i, j)}"
        own = {e // (height * width) for e in found if (e % (height * width) // width, e % width) == (i, j)}
        assert own == set(range(c))
    assert (0, width - 1) not in maps(layers, 1, 0), "on the row above, what lies far to the right is not seen"


# --- generation -------------------------------------------------------------------------------------------------------


@every_cell
@pytest.mark.parametrize(("shape", "levels"), [((1, 5, 7), 2), ((3, 4, 3), 5), ((3, 3, 3), 2)])
def test_the_states_kept_give_the_same_images_bit_for_bit(cell: str, shape: Shape, levels: int) -> None:
    model = make(cell, shape, levels)
    torch.manual_seed(3)
    first = model.sample(6)
    torch.manual_seed(3)
    assert torch.equal(model.sample(6, cached=False), first)
    known = torch.rand(6, *shape) < 0.5
    x = examples(shape, levels, 6)
    torch.manual_seed(4)
    completed = model.complete(x, known)
    torch.manual_seed(4)
    assert torch.equal(model.complete(x, known, cached=False), completed)
    assert torch.equal(completed[known], x[known]) and not torch.equal(completed, x)


@every_cell
@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 4, 3)])
def test_the_cache_computes_what_the_whole_image_gives(cell: str, shape: Shape) -> None:
    model = make(cell, shape).double()
    x = examples(shape, 2).double()
    with torch.no_grad():
        whole, cache = model.raw(model.head.network_input(x)), model.cache(x, None)
        for i in range(shape[1]):
            cache.row(i)
            for j in range(shape[2]):
                torch.testing.assert_close(cache.pixel(i, j), whole[:, :, i, j], rtol=1e-10, atol=1e-10)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["data=digits", "model.kernel=4"], "model.kernel=4: must be odd"),
        (["data=digits", "model.kernel=1"], "model.kernel=1: .* nothing"),
        (["data=bars", "model.kernel=7"], "model.kernel=7: too wide for images of 3x3 pixels; 5 at most"),
        (["data=ring"], r"takes images, .* shape \[2\]"),
    ],
)
def test_what_does_not_fit_is_one_line(overrides: list[str], named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        build("model=pixel_rnn", *overrides)
    assert "\n" not in str(caught.value)


def test_colours_need_maps() -> None:
    with pytest.raises(UsageError, match=r"model.hidden=2: every colour channel needs a map, 3 at least"):
        PixelRNN((3, 4, 4), levels=4, hidden=2)
    with pytest.raises(UsageError, match=r"model.head=1"):
        PixelRNN((3, 4, 4), levels=4, head=1)
