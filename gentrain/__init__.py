"""gentrain: train, evaluate, sample and compare every classic deep generative model with one trainer.

>>> import gentrain
>>> run = gentrain.train(["model=vae", "data=digits"])   # doctest: +SKIP
>>> model = gentrain.load(run.path)                      # doctest: +SKIP
>>> x = model.sample(64)                                 # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "compare", "evaluate", "load", "reproduce", "train"]

if TYPE_CHECKING:
    from gentrain.tasks.compare import compare
    from gentrain.tasks.evaluate import evaluate
    from gentrain.tasks.load import load
    from gentrain.tasks.reproduce import reproduce
    from gentrain.tasks.train import train


def __getattr__(name: str) -> Any:
    # torch takes over a second to import: `gentrain --help` and a mistyped option must not wait for it
    if name in ("compare", "evaluate", "load", "reproduce", "train"):
        from importlib import import_module

        return getattr(import_module(f"gentrain.tasks.{name}"), name)
    raise AttributeError(f"module 'gentrain' has no attribute {name!r}")
