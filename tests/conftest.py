"""Shared by all tests: one thread each (pytest-xdist runs them side by side), tiny runs, real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; spinning threads of parallel tests starve each other

import pytest

import gentrain
from gentrain.tasks.train import Outcome

collect_ignore = ["torchrun_story.py"]  # a program that torchrun starts; the search for doctests would import it

TINY = ["trainer.steps=12", "trainer.log_every=3", "trainer.evaluate_every=6", "trainer.sample_every=6"]
TINY += ["trainer.checkpoint_every=4", "data.batch_size=32", "device=cpu"]


@pytest.fixture
def mnist_root() -> str:
    """The folder with real MNIST in torchvision's layout; the test is skipped where there is none."""
    root = os.environ.get("GENTRAIN_DATA")
    if not root or not Path(root, "MNIST", "raw", "train-images-idx3-ubyte").exists():
        pytest.skip("needs real MNIST: set GENTRAIN_DATA to a folder with MNIST/raw/ in torchvision's layout")
    return root


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Outcome]:
    """train("model=rbm", …): a tiny run in this process, under tmp_path."""
    return lambda *overrides: gentrain.train([*TINY, f"output={tmp_path}/outputs", *overrides])


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "gentrain", *args]


@pytest.fixture
def cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """cli("model=rbm", …): the real command in a process of its own, in the folder tmp_path."""

    def run(*args: str, timeout: float = 120, env: dict[str, str] | None = None, cwd: Path | None = None):
        return subprocess.run(
            command(*args),
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=cwd or tmp_path,
            env={**os.environ, **(env or {})},
        )

    return run


def runs(root: Path) -> Sequence[Path]:
    """The run folders under an output folder, oldest first."""
    return sorted(p.parent for p in root.glob("*/*/*/config.yaml"))
