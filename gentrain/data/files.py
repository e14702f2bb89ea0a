"""One's own data: folders of images, NumPy arrays, IDX files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import filelock
import numpy as np
import torch

from gentrain.data.idx import read_idx
from gentrain.data.places import cache_folder
from gentrain.data.randomness import fixed_permutation
from gentrain.data.source import Source, Split, hold_out, make_source, shares
from gentrain.errors import DataError, DiskError
from gentrain.types import NonNegativeInt, PositiveInt

__all__ = ["folder", "idx", "npz"]

log = logging.getLogger(__name__)

_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"])
_SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}
_CHUNK = 1024
_CACHE_VERSION = 1


def _divide(name: str, parts: dict[str, Split], validation: int | None, shuffle: bool = True) -> dict[str, Split]:
    """Complete the splits: a tenth of the training examples is for testing unless there is a test split, and a tenth
    (or `validation`) for validation unless there is one. The choice is a fixed permutation, not the run's seed's."""
    train = parts["train"]
    if shuffle:
        train = train[fixed_permutation(len(train))]
    if "test" not in parts:
        train, parts["test"] = hold_out(train, None, shares(len(train)), name)
    if "validation" not in parts:
        train, parts["validation"] = hold_out(train, validation, shares(len(train)), name)
    elif validation is not None:
        parts["validation"] = parts["validation"][:validation]
    return {"train": train, "validation": parts["validation"], "test": parts["test"]}


# ----------------------------------------------------------------------------------------------- folders of images


@dataclass(frozen=True)
class _Image:
    """A file of a folder: its place in it, and the split and label (if any) that follow from that."""

    place: str
    split: str
    label: str | None


def folder(
    path: str, size: PositiveInt = 32, channels: Literal[1, 3] = 3, validation: NonNegativeInt | None = None
) -> Source:
    """A folder of images: `path/…`, `path/label/…`, `path/train/…` or `path/train/label/…`.

    The images are decoded once, the shorter side resized to `size` and the centre cut out, into a memory-mapped file
    in the cache folder that later runs use for as long as no file of the folder changes.

    Args:
        path: the folder. Sub-folders named train, validation (or val, valid) and test are splits, any other is a label.
        size: width and height in pixels.
        channels: 3 for colour, 1 for grey.
        validation: examples for validation; if None all that the folder `validation` has, else a tenth.

    Raises:
        DataError: if the folder is missing, holds no images or mixes labelled and unlabelled ones, or an image can't
            be read.
        DiskError: if the cache can't be written.
    """
    top = Path(path).expanduser().absolute()
    images = _find_images(top, path)
    pixels = torch.from_numpy(_cached(top, images, size, channels))
    labels = sorted({image.label for image in images if image.label is not None})
    y = torch.tensor([labels.index(image.label) for image in images if image.label is not None]) if labels else None
    whole, parts, start = Split(pixels, y), {}, 0
    for key in ("train", "validation", "test"):  # the order in which _find_images lists them
        if count := sum(image.split == key for image in images):
            parts[key] = whole[start : start + count]
            start += count
    if "train" not in parts:
        raise DataError(f"data.path={path} has images in {', '.join(parts)} but none in train")
    splits = _divide("folder", parts, validation, shuffle=False)
    return make_source("folder", "levels", splits, levels=256, classes=len(labels) or None)


def _find_images(top: Path, path: str) -> list[_Image]:
    """The images of a folder split by split, within a split in the order of a hash of their names.

    Held-out examples are then a slice of the memory-mapped file, chosen the same way every time.
    """
    if not top.is_dir():
        raise DataError(f"data.path={path} is not a folder")
    found = []
    for where, folders, files in os.walk(top, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if Path(name).suffix.lower() in _SUFFIXES and not name.startswith("."):
                found.append(_classify((Path(where) / name).relative_to(top)))
    if not found:
        raise DataError(f"data.path={path} holds no images ({', '.join(sorted(_SUFFIXES))})")
    bare = next((image.place for image in found if image.label is None), None)
    if bare is not None and any(image.label is not None for image in found):
        raise DataError(f"data.path={path} has images with a label (in sub-folders) and without, e.g. {bare}")
    order = ("train", "validation", "test")
    return sorted(found, key=lambda image: (order.index(image.split), hashlib.sha256(image.place.encode()).digest()))


def _classify(place: Path) -> _Image:
    above = list(place.parts[:-1])
    split = _SPLIT_FOLDERS.get(above[0].lower()) if above else None
    if split is not None:
        above = above[1:]
    return _Image(place.as_posix(), split or "train", above[0] if above else None)


def _cached(top: Path, images: list[_Image], size: int, channels: int) -> np.ndarray:
    """The decoded images, (N, channels, size, size) uint8, memory-mapped; built if the folder has changed."""
    shape = (len(images), channels, size, size)
    what = hashlib.sha256(json.dumps([_CACHE_VERSION, str(top), size, channels]).encode()).hexdigest()[:16]
    listing = hashlib.sha256()
    for image in images:
        state = (top / image.place).stat()
        listing.update(f"{image.place}\0{state.st_mtime_ns}\0{state.st_size}\0".encode())
    home = cache_folder() / "folders" / what
    file = home / f"{listing.hexdigest()[:16]}.npy"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(home / ".lock"):  # of two processes one decodes, the other waits and finds it done
            if (cached := _map(file, shape)) is not None:
                return cached
            _build(file, top, images, shape)
            for old in home.glob("*.npy"):
                if old != file:
                    old.unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(f"the cache of decoded images in {home} can't be written: {error.strerror or error}") from error
    built = _map(file, shape)
    assert built is not None, file
    return built


def _map(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The memory-mapped array, or None if the file is absent or not what was meant to be written."""
    try:
        array = np.load(file, mmap_mode="c")  # private pages: torch wants memory it could write to
    except (OSError, ValueError, EOFError):
        return None
    return array if array.shape == shape and array.dtype == np.uint8 else None


def _build(file: Path, top: Path, images: list[_Image], shape: tuple[int, ...]) -> None:
    """Decode into a temporary file and rename it: the cache is whole or absent."""
    log.info("decoding %d images of %s once", len(images), top)
    temporary = file.with_suffix(".tmp")
    try:
        with temporary.open("wb") as out:
            # Plain writes, for a full disk is then an error; through a memory map it would be a fatal signal.
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(out, header)
            _decode_all(out, [top / image.place for image in images], shape)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _decode_all(out: IO[bytes], paths: list[Path], shape: tuple[int, ...]) -> None:
    _, channels, size, _ = shape
    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 16)) as pool:  # Pillow decodes outside the GIL
        for start in range(0, len(paths), _CHUNK):
            for image in pool.map(lambda path: _decode(path, size, channels), paths[start : start + _CHUNK]):
                out.write(image.tobytes())


def _decode(path: Path, size: int, channels: int) -> np.ndarray:
    """One image, (channels, size, size): upright, shorter side resized, centre cut out."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip rather than scale
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            image = image.convert("L" if channels == 1 else "RGB")
            cut = min(image.size)
            left, above = (image.width - cut) // 2, (image.height - cut) // 2
            box = (left, above, left + cut, above + cut)
            pixels = np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box=box))
    except Exception as error:  # decoders of a dozen formats fail in as many ways
        raise DataError(f"{path} can't be read as an image: {error}; mend or remove it") from error
    return pixels.reshape(size, size, channels).transpose(2, 0, 1)


# ----------------------------------------------------------------------------------------------------------- arrays


def npz(path: str, layout: Literal["auto", "hwc", "chw"] = "auto", validation: NonNegativeInt | None = None) -> Source:
    """Arrays of a NumPy file: `x` [, `y`], or `x_train` [, `y_train`, `x_validation`, `x_test`, …] (or `train_x`, …).

    Booleans and integers 0 and 1 are bits, integers 0…255 levels, floats real numbers. Examples are (D,), (H, W) or
    (channels, H, W) after conversion. What is missing of validation and test splits is a tenth of the training
    examples each.

    Args:
        path: of the `.npz` file.
        layout: where the channels of (N, ., ., .) arrays are; "auto" finds an axis of 1 or 3.
        validation: examples for validation; if None all that the file has for it, else a tenth.

    Raises:
        DataError: if the file is missing or damaged, has no such arrays, or they are ambiguous or don't fit.
    """
    arrays = _load_arrays(Path(path).expanduser())
    xs = {key: found for key in _SPLIT_KEYS if (found := _pick(arrays, "x", key)) is not None}
    if "train" not in xs:
        raise DataError(f"{path} has no array x or x_train, only {', '.join(sorted(arrays)) or 'nothing'}")
    support, levels = _judge(path, xs)
    parts, classes = {}, 0
    for key, x in xs.items():
        y = _pick(arrays, "y", key)
        labels = None if y is None else _labels(path, key, y, len(x))
        classes = max(classes, 0 if labels is None else int(labels.max()) + 1)
        images = np.ascontiguousarray(_channels_first(path, x, layout), np.float32 if support == "real" else np.uint8)
        parts[key] = Split(torch.from_numpy(images), labels)
    splits = _divide("npz", parts, validation)
    return make_source("npz", support, splits, levels=levels, classes=classes or None)


_SPLIT_KEYS = {"train": ("train", ""), "validation": ("validation", "valid", "val"), "test": ("test",)}


def _load_arrays(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise DataError(f"{file} does not exist")
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded as archive:
                return {name: archive[name] for name in archive.files}
    except Exception as error:  # zip, header and pickle errors of several kinds
        raise DataError(f"{file} can't be read as arrays: {error}; save plain arrays by numpy.savez") from error
    raise DataError(f"{file} holds a single array: save it by numpy.savez(file, x=array)")


def _pick(arrays: dict[str, np.ndarray], what: str, split: str) -> np.ndarray | None:
    for key in _SPLIT_KEYS[split]:
        for name in (f"{what}_{key}", f"{key}_{what}") if key else (what,):
            if name in arrays:
                return arrays[name]
    return None


def _judge(path: str, xs: dict[str, np.ndarray]) -> tuple[Literal["binary", "levels", "real"], int | None]:
    """What the arrays hold, and the number of levels."""
    for key, x in xs.items():
        if x.ndim < 2 or not x.size:
            raise DataError(f"{path}: the {key} array is shaped {x.shape}, expected (examples, …)")
    kinds = {x.dtype.kind for x in xs.values()}
    if kinds == {"f"}:
        bad = next((key for key, x in xs.items() if not np.isfinite(x).all()), None)
        if bad is not None:
            raise DataError(f"{path}: the {bad} array has NaN or infinite values")
        return "real", None
    if not kinds <= set("bui"):
        found = ", ".join(f"{key} {x.dtype}" for key, x in xs.items())
        raise DataError(f"{path}: arrays must be all floats, or all booleans or integers; found {found}")
    low, high = min(int(x.min()) for x in xs.values()), max(int(x.max()) for x in xs.values())
    if low < 0 or high > 255:
        raise DataError(f"{path}: integers must lie in 0…255, found {low}…{high}; save real numbers as floats")
    return ("binary", 2) if high <= 1 else ("levels", 256)


def _channels_first(path: str, x: np.ndarray, layout: str) -> np.ndarray:
    if x.ndim == 3:
        return x[:, None]
    if x.ndim != 4:
        if x.ndim == 2:
            return x
        raise DataError(f"{path}: an array shaped {x.shape} is neither points, (N, D), nor images, (N, H, W[, C])")
    if layout == "auto":
        first, last = x.shape[1] in (1, 3), x.shape[3] in (1, 3)
        if first == last:
            raise DataError(
                f"{path}: where are the channels of an array shaped {x.shape}? Say data.layout=chw or data.layout=hwc"
            )
        layout = "chw" if first else "hwc"
    return x if layout == "chw" else x.transpose(0, 3, 1, 2)


def _labels(path: str, key: str, y: np.ndarray, count: int) -> torch.Tensor:
    if y.dtype.kind not in "bui" or y.size != len(y) or len(y) != count:
        raise DataError(f"{path}: {key} labels must be {count} integers, found {y.dtype} shaped {y.shape}")
    labels = torch.from_numpy(y.reshape(-1).astype(np.int64))
    if int(labels.min()) < 0:
        raise DataError(f"{path}: {key} labels begin at {int(labels.min())}, expected 0 or more")
    return labels


# -------------------------------------------------------------------------------------------------------- IDX files


def idx(
    images: str,
    labels: str | None = None,
    test_images: str | None = None,
    test_labels: str | None = None,
    validation: NonNegativeInt | None = None,
) -> Source:
    """Grey images in the format of MNIST's files, plain or compressed (`.gz`).

    Args:
        images: training images, unsigned bytes (N, H, W).
        labels: their labels, integers (N,).
        test_images: test images; if None a tenth of the training images.
        test_labels: their labels.
        validation: training examples kept for validation; a tenth if None.

    Raises:
        DataError: if a file is missing or damaged, or images and labels don't fit.
    """
    parts = {"train": _idx_split(images, labels, "train")}
    if test_images is not None:
        parts["test"] = _idx_split(test_images, test_labels, "test")
    elif test_labels is not None:
        raise DataError("data.test_labels needs data.test_images")
    found = [int(part.y.max()) for part in parts.values() if part.y is not None]
    splits = _divide("idx", parts, validation)
    return make_source("idx", "levels", splits, levels=256, classes=max(found) + 1 if found else None)


def _idx_split(images: str, labels: str | None, key: str) -> Split:
    pixels = read_idx(Path(images).expanduser(), 3)
    if pixels.dtype != np.uint8:
        raise DataError(f"{images} holds {pixels.dtype.name} values, expected unsigned bytes")
    if not pixels.size:
        raise DataError(f"{images} holds no images: it is shaped {pixels.shape}")
    x = torch.from_numpy(np.array(pixels[:, None]))
    if labels is None:
        return Split(x)
    return Split(x, _labels(labels, key, read_idx(Path(labels).expanduser(), 1), len(x)))
