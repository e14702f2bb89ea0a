"""Pictures of what a model does: image grids, scatter plots, curves. Pixels only; `gentrain.report` files them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gentrain.device import own_randomness
from gentrain.models.base import Codes, Filters, Generative, LatentVariable, Reconstructs, each_label, given
from gentrain.models.domains import TranslatesBack, Translator
from gentrain.models.gdae import DenoisingChain


def to_unit(x: Tensor, support: str, levels: int | None) -> Tensor:
    """Values of a support as brightness in [0, 1].

    >>> to_unit(torch.tensor([-1.0, 0.0, 1.0]), "signed", None)
    tensor([0.0000, 0.5000, 1.0000])
    """
    x = x.detach().float()
    if support == "signed":
        x = (x + 1) / 2
    elif support == "levels":
        x = x / ((levels or 256) - 1)
    return x.clamp(0, 1)


def grid(images: Tensor, columns: int | None = None, scale: int | None = None) -> Tensor:
    """Tile (N, C, H, W) images in [0, 1] into one (C, H', W') image, grey lines between them.

    Small images are enlarged by whole pixels until the grid is about 400 pixels wide.
    """
    n, _, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    scale = scale or max(1, round(400 / (columns * (width + 1))))
    images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    gap = 2
    step_y, step_x = height * scale + gap, width * scale + gap
    canvas = torch.full((images.shape[1], rows * step_y + gap, columns * step_x + gap), 0.5)
    for i, image in enumerate(images.cpu()):
        y, x = (i // columns) * step_y + gap, (i % columns) * step_x + gap
        canvas[:, y : y + height * scale, x : x + width * scale] = image
    return canvas


def to_bytes(image: Tensor) -> np.ndarray:
    """A (C, H, W) image in [0, 1] as (H, W, 3) bytes; one channel is grey, two are shown as red and green."""
    array = (image.clamp(0, 1) * 255).round().byte().cpu()
    if array.shape[0] == 1:
        array = array.expand(3, -1, -1)
    elif array.shape[0] == 2:
        array = torch.cat([array, torch.zeros_like(array[:1])])
    return array[:3].permute(1, 2, 0).contiguous().numpy()


def save_png(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path)


def side_by_side(blocks: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Pictures (H, W, 3), each under its title, in rows, together about three by two."""
    from PIL import Image, ImageDraw, ImageFont

    line, gap = 16, 8
    width, height = (gap + max(p.shape[axis] for _, p in blocks) for axis in (1, 0))
    height += line
    columns = min(len(blocks), max(1, round(math.sqrt(len(blocks) * 1.5 * height / width))))
    rows = math.ceil(len(blocks) / columns)
    sheet = Image.new("RGB", (gap + columns * width, gap + rows * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, (title, pixels) in enumerate(blocks):
        x, y = gap + i % columns * width, gap + i // columns * height
        pen.text((x, y), title, "black", font)
        sheet.paste(Image.fromarray(pixels), (x, y + line))
    return np.asarray(sheet).copy()


FRAMES = 100
"""Pictures of an animation at most, spread evenly over those there are."""


def save_gif(path: Path, frames: Sequence[Path], seconds: float = 8.0) -> tuple[int, int]:
    """PNG files as an animation that repeats, each round of `seconds` and a rest on the last; its width and height."""
    from PIL import Image

    chosen = [frames[i] for i in np.linspace(0, len(frames) - 1, min(len(frames), FRAMES)).round().astype(int)]
    first, *rest = (Image.open(frame).convert("RGB") for frame in chosen)
    each = round(1000 * min(0.5, seconds / len(chosen)))
    durations = [each] * len(rest) + [max(each, 1500)]
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0)
    return first.size


def is_image(shape: Sequence[int]) -> bool:
    return len(shape) == 3


def show(x: Tensor, model: Generative, levels: int | None, columns: int | None = None) -> np.ndarray:
    """Examples as (H, W, 3) bytes: a grid for images, a scatter plot for points."""
    if is_image(model.shape):
        return to_bytes(grid(to_unit(x, model.support, levels), columns))
    return scatter({"samples": x.detach().cpu().reshape(len(x), -1).numpy()})


def scatter(points: Mapping[str, np.ndarray]) -> np.ndarray:
    """The first two coordinates of each named set of points, as (H, W, 3) bytes."""
    figure, axes = _figure(5, 5)
    for name, p in points.items():
        axes.scatter(p[:, 0], p[:, min(1, p.shape[1] - 1)], s=4, alpha=0.5, label=name)
    axes.set_aspect("equal", "datalim")
    axes.legend(loc="upper right")
    return _render(figure)


def classes(points: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """Points (N, 2) in the plane, coloured by their labels (N,) if there are any, as (H, W, 3) bytes."""
    from matplotlib import colormaps

    figure, axes = _figure(6, 5)
    names = [] if labels is None else np.unique(labels)
    if labels is None or len(names) > 20:  # more colours than that are told apart by a scale, not by a legend
        drawn = axes.scatter(points[:, 0], points[:, 1], s=5, alpha=0.7, c=labels)
        if labels is not None:
            figure.colorbar(drawn, label="label")
        return _render(figure)
    palette = colormaps["tab10" if len(names) <= 10 else "tab20"]
    for i, name in enumerate(names):
        here = points[labels == name]
        axes.scatter(here[:, 0], here[:, 1], s=5, alpha=0.7, color=palette(i), label=str(name))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=3)
    return _render(figure)


def codes_map(codes: np.ndarray, drawn: np.ndarray, labels: np.ndarray | None, images: np.ndarray) -> np.ndarray:
    """Codes (N, 2), coloured by labels (N,), at most N draws (M, 2) as crosses, and `images` beside them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    drawn = drawn[: len(codes)]
    left.scatter(drawn[:, 0], drawn[:, 1], s=12, linewidths=0.6, c="black", marker="x", alpha=0.6, label="prior")
    left.scatter(codes[:, 0], codes[:, 1], s=10, alpha=0.7, c=labels, cmap="tab10", label="codes of data")
    left.legend(loc="upper right", fontsize=8)
    right.imshow(images)
    right.set_title("decoded draws, from the nearest to a code to the farthest", fontsize=9)
    right.set_axis_off()
    return _render(figure)


def curves(series: Mapping[str, Sequence[tuple[int, float]]]) -> np.ndarray:
    """One small plot per named series of (step, value), as (H, W, 3) bytes."""
    from matplotlib.figure import Figure

    columns = min(3, len(series))
    rows = math.ceil(len(series) / columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    for i, (name, values) in enumerate(series.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.plot(*zip(*values, strict=True), linewidth=1.2, marker="." if len(values) < 30 else None)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    return _render(figure)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _render(figure: Any) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


# --- what a model has to show ---------------------------------------------------------------------------------------


@torch.no_grad()
def draw(model: Generative, n: int, seed: int) -> tuple[Tensor, int | None]:
    """n examples from fixed noise: the same `seed` gives the same noise at every step of training. Of a conditional
    model about n, every label in turn, and how many of each, which make a row.

    Of a latent-variable model of images the *mean* of p(x|z) is shown, and of a denoising chain that of its last step,
    as is the custom: one pixel-wise draw from it would add noise that says nothing about the model. Everything else is
    shown as sampled.
    """
    labels, columns = each_label(model, n)
    n = len(labels["y"]) if labels else n
    with own_randomness(seed):
        if isinstance(model, DenoisingChain) and is_image(model.shape):
            return model.means(n), columns
        if isinstance(model, LatentVariable) and is_image(model.shape):
            return model.decode(model.prior.sample(torch.Size([n])).to(model.device), **labels).mean, columns
        return model.sample(n, **labels), columns


@torch.no_grad()
def reconstructions(model: Reconstructs, x: Tensor, y: Tensor | None, seed: int) -> Tensor:
    """Each example followed by its reconstruction, (2B, *shape); y are the labels that a conditional model needs."""
    with own_randomness(seed):
        pairs = torch.stack([x.float(), model.reconstruct(x, **given(model, y)).float()], dim=1)
    return pairs.flatten(0, 1)


@torch.no_grad()
def translations(
    model: Translator, x: Tensor, truth: Tensor | None, seed: int | None = None, *, back: bool = False
) -> Tensor:
    """Examples x, or if not `back` of the domain of `pair`, each beside its translation, (B, K, *shape): then what that
    translates back to, if the model goes both ways, and the true answer (B, *shape), if there is one.

    With a `seed` the model's noise is that of the seed; without, torch's global generators'.
    """
    there, again = model.translate, None
    if isinstance(model, TranslatesBack):
        there, again = (model.translate_back, model.translate) if back else (model.translate, model.translate_back)
    with contextlib.nullcontext() if seed is None else own_randomness(seed):
        found = [x, there(x)]
        found += [] if again is None else [again(found[1])]
    return torch.stack([t.float() for t in [*found, *([] if truth is None else [truth])]], 1)


def abreast(rows: Tensor, width: int = 9) -> tuple[Tensor, int]:
    """Rows (B, K, *shape) side by side, as many as there is room for: as (N, *shape), and the columns that they make.

    >>> tiles, columns = abreast(torch.zeros(7, 4, 1, 8, 8))
    >>> len(tiles), columns  # six rows of four, two abreast
    (24, 8)
    """
    across = min(len(rows), max(1, width // rows.shape[1]))
    rows = rows[: len(rows) // across * across]
    return rows.flatten(0, 1), across * rows.shape[1]


@torch.no_grad()
def filters(model: Filters, n: int) -> Tensor:
    """The model's first n filters, each scaled to [0, 1] by one common range so that dead ones look flat."""
    weights = model.filters()[:n].detach().float().cpu()
    reach = weights.abs().max().clamp_min(1e-12)
    return (weights / reach + 1) / 2


@torch.no_grad()
def codes(model: Codes, x: Tensor, seed: int) -> Tensor:
    with own_randomness(seed):
        return model.codes(x).float()
