"""Where data sets and caches lie."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder", "data_root"]


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/gentrain`, else `~/.cache/gentrain`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gentrain"


def data_root(root: str | None) -> Path:
    """`data.root`, else `$GENTRAIN_DATA`, else the cache folder."""
    return Path(root or os.environ.get("GENTRAIN_DATA") or cache_folder()).expanduser().absolute()
