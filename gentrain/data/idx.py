"""The IDX format of MNIST: two zero bytes, a type, the number of dimensions, each dimension, then the values.

Everything is checked before it is believed: a damaged file is named, with what was expected and what was found.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import numpy as np

from gentrain.errors import DataError

__all__ = ["md5_of", "read_bytes", "read_idx"]

# Values lie in the file with the most significant byte first.
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def md5_of(content: bytes) -> str:
    """MD5 in hex: a check against damage, as publishers of data sets give it."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def read_bytes(path: Path, md5: str | None = None, remedy: str = "") -> bytes:
    """The content of a file, checked against its MD5 if that is known.

    Raises:
        DataError: if the file can't be read, or its content is not what was published; `remedy` ends the message.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}{remedy}") from error
    if md5 is not None and (found := md5_of(content)) != md5:
        raise DataError(f"{path} is damaged ({len(content):,} bytes): its MD5 is {found}, expected {md5}{remedy}")
    return content


def read_idx(path: Path, dimensions: int, md5: str | None = None, remedy: str = "") -> np.ndarray:
    """The array in an IDX file, plain or compressed (`.gz`).

    Args:
        path: of the file.
        dimensions: how many the array must have: 3 for grey images, 1 for labels.
        md5: of the file as it lies, if known.
        remedy: the end of every error message.

    Raises:
        DataError: if the file is missing, damaged, cut short or no such array.
    """
    content = read_bytes(path, md5, remedy)
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is damaged: {error}{remedy}") from error
    head = content[:4]
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES:
        raise DataError(
            f"{path} is no IDX file: it begins with bytes {head.hex(' ') or '(none)'}, "
            f"expected 00 00 08 {dimensions:02x}{remedy}"
        )
    if head[3] != dimensions:
        raise DataError(f"{path} has {head[3]} dimensions, expected {dimensions}{remedy}")
    start = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    dtype = np.dtype(_TYPES[head[2]])
    expected = start + dtype.itemsize * math.prod(shape)
    if len(content) != expected:
        size = " x ".join(map(str, shape))
        raise DataError(f"{path} is damaged: {expected:,} bytes expected for {size}, {len(content):,} found{remedy}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape)
