"""gentrain as a library: several trainings in one process, from any thread and folder, leaving nothing behind."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from conftest import TINY
from hydra.core.global_hydra import GlobalHydra

import gentrain
from gentrain.errors import NonFiniteError, UsageError
from gentrain.tasks.train import Outcome

BARS = [*TINY, "data=bars", "data.size=3", "model.hidden=[8]", "model.latent_dim=2"]


def in_thread(work: Callable[[], Any]) -> Any:
    """What `work` returns or raises in a thread other than the main one, as in a notebook's kernel or a server."""
    found: list[Any] = []

    def body() -> None:
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def surroundings() -> dict[str, Any]:
    """What a library must leave as it was."""
    loggers = [logging.getLogger(), logging.getLogger("gentrain"), logging.getLogger("hydra")]
    return {
        "folder": os.getcwd(),
        "arguments": list(sys.argv),
        "path": list(sys.path),
        "environment": dict(os.environ),
        "logging": [(one.level, list(one.handlers), one.propagate, one.disabled) for one in loggers],
        "signals": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)],
        "hydra": GlobalHydra.instance().hydra,
        "threads": {t for t in threading.enumerate() if not t.daemon},
        "default dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "hook": sys.excepthook,
    }


def weights(outcome: Outcome) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in gentrain.load(outcome.path).parameters()])


def test_training_twice_and_in_a_thread_gives_the_same_in_two_folders(train: Callable[..., Outcome]) -> None:
    first, second = train(*BARS), train(*BARS)
    third = in_thread(lambda: train(*BARS))
    assert len({first.path, second.path, third.path}) == 3
    assert torch.equal(weights(first), weights(second)) and torch.equal(weights(first), weights(third))
    assert first.step == 12 and first.test["elbo"].mean == third.test["elbo"].mean < 0
    for outcome in (first, second, third):
        assert (outcome.path / "status.json").exists()
        assert (outcome.path / "train.log").read_text().count(f"run {outcome.path}") == 1  # no handler stays behind


@pytest.mark.parametrize("how", [lambda work: work(), in_thread], ids=["main thread", "other thread"])
def test_nothing_is_left_behind(train: Callable[..., Outcome], how: Callable[..., Any]) -> None:
    how(lambda: train(*BARS))  # what is imported for the first time may register itself
    before = surroundings()
    outcome = how(lambda: train(*BARS))
    gentrain.load(outcome.path)
    with pytest.raises(NonFiniteError):
        how(lambda: train(*BARS, "optim.lr=1e30"))
    with pytest.raises(UsageError):
        how(lambda: train(*BARS, "optim.lrr=1"))
    assert surroundings() == before


def test_a_hydra_application_of_ones_own_is_not_disturbed(train: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "own.yaml").write_text("mine: 3\n")
    with hydra.initialize_config_dir(str(tmp_path / "conf"), version_base="1.3"):
        train(*BARS)
        assert hydra.compose("own").mine == 3
    assert not GlobalHydra.instance().is_initialized()


def test_the_current_folder_is_where_runs_go_and_may_change_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    outcome = gentrain.train(BARS)
    where = Path(os.path.abspath(outcome.path))
    assert where.is_relative_to(tmp_path / "a" / "outputs")
    monkeypatch.chdir(tmp_path / "b")
    x = gentrain.load(where).sample(3)
    assert x.shape == (3, 1, 3, 3)
    assert gentrain.load(os.path.relpath(where)).sample(1).shape == (1, 1, 3, 3)
    assert list((tmp_path / "b").iterdir()) == []


def test_outcome_and_model_are_what_the_run_folder_says(train: Callable[..., Outcome]) -> None:
    outcome = train(*BARS, "trainer.ema=0.9")
    model = gentrain.load(outcome.path)
    assert not model.training and model.support == "binary"
    state = torch.load(outcome.path / "checkpoints" / "step-00000012.pt", weights_only=True)
    name, averaged = next((k, v) for k, v in state["ema"].items() if k.endswith("weight"))
    assert torch.equal(model.state_dict()[name.removeprefix("module.")], averaged)
    assert not torch.equal(state["model"][name.removeprefix("module.")], averaged)
