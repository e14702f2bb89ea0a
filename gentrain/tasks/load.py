"""From a run folder or a checkpoint file back to a model: the file alone is enough."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from gentrain import checkpoint, config
from gentrain.device import own_randomness
from gentrain.models.base import Generative


def load(run: str | Path, trust: Sequence[str] = (), device: str | torch.device = "cpu") -> Generative:
    """The model of a run folder (its newest checkpoint) or of a checkpoint file, in eval mode.

    The weights are the running average where the run kept one.

    Args:
        run: folder or file. trust: packages of your own that its `_target_` may name. device: where to put it.

    Raises:
        CheckpointError: missing, damaged or foreign. UsageError: its model is not in a trusted package.
    """
    path, state = checkpoint.find(Path(run).expanduser())
    return restore(path, state, trust).to(device)


def restore(path: Path, state: dict[str, Any], trust: Sequence[str] = ()) -> Generative:
    """The model of an already loaded checkpoint `state`."""
    plain = config.resolve(stored_config(state))
    with own_randomness(0):  # the weights it starts with are about to be replaced, and cost the caller no draw
        model = config.build(plain["model"], trust, Generative)
    weights = state["model"]
    if state["ema"] is not None:
        weights = {k.removeprefix("module."): v for k, v in state["ema"].items() if k.startswith("module.")}
    checkpoint.load_state(model, weights, path)
    return model.eval()


def stored_config(state: dict[str, Any]) -> DictConfig:
    """The configuration inside a checkpoint, as Hydra composed it."""
    cfg = OmegaConf.create(state["config"])
    assert isinstance(cfg, DictConfig)
    return cfg
