"""Standard image sets in torchvision's layout. What is there is read directly; torchvision only downloads.

Importing torchvision takes longer than reading MNIST, so it happens only when something has to be fetched.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import pickle
import queue
import shutil
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch

from gentrain.data.idx import md5_of, read_bytes, read_idx
from gentrain.data.places import data_root
from gentrain.data.source import Source, Split, hold_out, make_source
from gentrain.errors import DataError
from gentrain.types import NonNegativeInt

__all__ = ["cifar10", "fashion_mnist", "kmnist", "mnist", "svhn"]

log = logging.getLogger(__name__)

_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
_FASHION_MNIST_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
_CIFAR10_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
_SVHN_MD5 = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}
_SUMS = "MD5SUMS"
"""Written beside downloaded IDX files, in md5sum's format: damage is noticed also where no MD5 is known beforehand."""


def mnist(root: str | None = None, download: bool = True, validation: NonNegativeInt | None = None) -> Source:
    """Handwritten digits, 28 x 28 grey (LeCun et al. 1998): 50,000 / 10,000 / 10,000.

    Validation examples are the last of the training set. The other sets here have the same arguments and errors.

    Args:
        root: where data sets lie; None is `$GENTRAIN_DATA`, else the user's cache folder.
        download: fetch the files if they aren't there.
        validation: examples kept from training; 10,000 if None, and with 0 there are 60,000 to train on.

    Raises:
        DataError: if files are damaged, or missing and not to be had.
        UsageError: if `validation` leaves nothing to train on.
    """
    return _idx_set("mnist", "MNIST", _MNIST_MD5, root, download, validation)


def fashion_mnist(root: str | None = None, download: bool = True, validation: NonNegativeInt | None = None) -> Source:
    """Articles of clothing, 28 x 28 grey (Xiao et al. 2017): 50,000 / 10,000 / 10,000. Arguments: see `mnist`."""
    return _idx_set("fashion_mnist", "FashionMNIST", _FASHION_MNIST_MD5, root, download, validation)


def kmnist(root: str | None = None, download: bool = True, validation: NonNegativeInt | None = None) -> Source:
    """Cursive Japanese characters, 28 x 28 grey (Clanuwat et al. 2018): 50,000 / 10,000 / 10,000.
    Arguments: see `mnist`."""
    return _idx_set("kmnist", "KMNIST", {}, root, download, validation)


def cifar10(root: str | None = None, download: bool = True, validation: NonNegativeInt | None = None) -> Source:
    """Photographs of ten kinds, 32 x 32 colour (Krizhevsky 2009): 45,000 / 5,000 / 10,000. Arguments: see `mnist`."""
    place = data_root(root)
    folder = place / "cifar-10-batches-py"
    files = [folder / name for name in _CIFAR10_MD5]
    _provide("cifar10", place, files, "CIFAR10", download)
    parts: list[Split] = []
    for file in files:
        # Unpickling is safe here because the very bytes unpickled have the published checksum.
        record = pickle.loads(read_bytes(file, _CIFAR10_MD5[file.name], _remedy(folder)), encoding="latin1")
        parts.append(_split(record["data"].reshape(-1, 3, 32, 32), np.asarray(record["labels"])))
    y = torch.cat([part.y for part in parts[:5] if part.y is not None])
    x = torch.cat([part.x for part in parts[:5] if isinstance(part.x, torch.Tensor)])
    return _image_source("cifar10", Split(x, y), parts[5], validation, 5_000)


def svhn(root: str | None = None, download: bool = True, validation: NonNegativeInt | None = None) -> Source:
    """House numbers from street views, 32 x 32 colour (Netzer et al. 2011): 66,000 / 7,257 / 26,032.
    Arguments: see `mnist`."""
    place = data_root(root)
    files = [place / name for name in _SVHN_MD5]
    _provide("svhn", place, files, "SVHN", download)
    from scipy.io import loadmat

    splits: list[Split] = []
    for file in files:
        record = loadmat(io.BytesIO(read_bytes(file, _SVHN_MD5[file.name], _remedy(file))))
        labels = record["y"].astype(np.int64).reshape(-1) % 10  # the file calls the digit zero 10
        splits.append(_split(record["X"].transpose(3, 2, 0, 1), labels))
    return _image_source("svhn", splits[0], splits[1], validation, 7_257)


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    return Split(torch.from_numpy(np.array(images, dtype=np.uint8, order="C")), torch.from_numpy(labels.astype("i8")))


def _image_source(name: str, train: Split, test: Split, validation: int | None, default: int) -> Source:
    train, held = hold_out(train, validation, default, name)
    return make_source(name, "levels", {"train": train, "validation": held, "test": test}, levels=256, classes=10)


def _idx_set(
    name: str, dataset: str, md5: dict[str, str], root: str | None, download: bool, validation: int | None
) -> Source:
    """The four IDX files of MNIST and of the sets made to replace it."""
    place = data_root(root)
    folder = place / dataset / "raw"
    _provide(name, place, [folder / file for file in _IDX_FILES], dataset, download)
    sums = _read_sums(folder) | md5
    arrays = []
    for file in _IDX_FILES:
        path = _there(folder / file)
        assert path is not None, file
        known = sums.get(file) if path.suffix != ".gz" else None  # gzip has a checksum of its own
        arrays.append(read_idx(path, 3 if "images" in file else 1, known, _remedy(folder)))
    train, test = _split(arrays[0][:, None], arrays[1]), _split(arrays[2][:, None], arrays[3])
    return _image_source(name, train, test, validation, 10_000)


def _remedy(folder: Path) -> str:
    return f"; delete {folder} and run again to download it afresh (data.download=true)"


def _there(file: Path) -> Path | None:
    """The file itself, or its compressed form, or None."""
    return next((path for path in (file, file.with_name(file.name + ".gz")) if path.is_file()), None)


def _read_sums(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / _SUMS).read_text().splitlines()
    except OSError:
        return {}
    return {name: md5 for md5, name in (line.split() for line in lines)}


# ---------------------------------------------------------------------------------------------------- downloading


def _provide(name: str, root: Path, files: list[Path], dataset: str, download: bool) -> None:
    """See that the files are there, downloading them if need be.

    One process downloads, others wait for it and find the files. They come into a folder of their own and are moved
    when complete and verified, so a file that is there is whole.
    """
    missing = next((file for file in files if _there(file) is None), None)
    if missing is None:
        return
    absent = f"data={name}: {missing.relative_to(root)} is not in {root}"
    ways = "put the files there or name another folder by data.root or $GENTRAIN_DATA; data=digits needs nothing"
    if not download:
        raise DataError(f"{absent}, and data.download=false; {ways}")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(root / f".{dataset}.lock"):
            if all(map(_there, files)):
                return
            partial = root / f".{dataset}.partial"
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
            try:
                _download(dataset, partial, f"{absent}", ways)
                _move_in(partial, root, files)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{absent}, and it can't be stored there: {error.strerror or error}; {ways}") from error


def _move_in(partial: Path, root: Path, files: list[Path]) -> None:
    fetched = [partial / file.relative_to(root) for file in files]
    if fetched[0].name in _IDX_FILES:
        sums = fetched[0].with_name(_SUMS)
        sums.write_text("".join(f"{md5_of(file.read_bytes())}  {file.name}\n" for file in fetched))
        fetched.insert(0, sums)
    for file in fetched:
        target = root / file.relative_to(partial)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)


def _download(dataset: str, folder: Path, absent: str, ways: str) -> None:
    """Have torchvision download a set into `folder`, with its progress bar and its checksums."""
    make: Callable[..., Any] = getattr(_torchvision().datasets, dataset)
    urls = _urls(make)
    if reason := _unreachable(urls):
        raise DataError(f"{absent}, and it can't be downloaded: {reason}; connect once, {ways}")
    log.info("downloading %s from %s", dataset, urls[0])
    calls = [{"split": "train"}, {"split": "test"}] if dataset == "SVHN" else [{}]
    try:
        with _impatient(), _quiet_unless_terminal():
            for arguments in calls:
                make(folder, download=True, **arguments)
    except (RuntimeError, OSError, EOFError) as error:  # EOFError: an archive cut short whose checksum isn't known
        reason = " ".join(str(error).split())
        raise DataError(f"{absent}, and the download failed: {reason}; try again, or {ways}") from error


def _urls(dataset: Any) -> list[str]:
    """Where torchvision would fetch a set's first file from, one URL for each mirror."""
    if hasattr(dataset, "mirrors"):
        return [mirror + dataset.resources[0][0] for mirror in dataset.mirrors]
    return [dataset.url] if isinstance(getattr(dataset, "url", None), str) else [dataset.split_list["train"][0]]


def _unreachable(urls: list[str], patience: float = 8.0) -> str | None:
    """Why none of the servers answers, or None if one does.

    All are asked at once, in threads that may be left behind: a name server that is silent can hold a look-up for
    longer than any socket's timeout.
    """
    answers: queue.Queue[str | None] = queue.Queue()

    def ask(url: str) -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=patience).close()
            answers.put(None)
        except urllib.error.HTTPError:  # a server that refuses is there
            answers.put(None)
        except (OSError, ValueError) as error:
            answers.put(f"{url.split('/')[2]}: {getattr(error, 'reason', error)}")

    for url in urls:
        threading.Thread(target=ask, args=(url,), daemon=True).start()
    reasons = []
    for _ in urls:
        try:
            reasons.append(answers.get(timeout=patience))
        except queue.Empty:
            reasons.append(f"{urls[0].split('/')[2]} doesn't answer")
        if reasons[-1] is None:
            return None
    return "no network? " + ", ".join(str(reason) for reason in reasons)


@contextlib.contextmanager
def _impatient(seconds: float = 20.0) -> Iterator[None]:
    """Sockets give up after so many seconds of silence; torchvision sets no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _quiet_unless_terminal() -> contextlib.AbstractContextManager[object]:
    """A progress bar belongs on a terminal; in a log file it is thousands of lines."""
    return contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())


_declared: list[torch.library.Library] = []


def _torchvision() -> Any:
    """torchvision with its datasets.

    A CPU-only torch can't load the compiled operators of the package index's torchvision, whose import then stumbles
    over two that it expects to exist (pytorch/vision#9085). Declaring them is enough: data sets don't call them.

    Raises:
        DataError: if torchvision is absent or doesn't go with the installed torch.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations:
        raise DataError("downloading this data set needs torchvision: pip install torchvision")
    try:
        if "torchvision" not in sys.modules and not _declared:
            for library in Path(found.submodule_search_locations[0]).glob("_C*.so"):
                with contextlib.suppress(OSError):
                    torch.ops.load_library(library)
            _declare("nms", "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _declare("qnms", "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision.datasets
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        raise DataError(
            f"torchvision doesn't go with torch {torch.__version__} ({' '.join(str(error).split())}): "
            "install the torchvision that matches the installed build of torch"
        ) from error
    return torchvision


def _declare(name: str, schema: str) -> None:
    if not hasattr(torch.ops.torchvision, name):
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define(schema)
        _declared.append(library)  # a declaration lasts as long as its library object
