"""From a run folder or a checkpoint file back to a model: the file alone is enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from gentrain import checkpoint, config
from gentrain.device import own_randomness
from gentrain.errors import UsageError
from gentrain.models.base import Generative
from gentrain.signatures import Unreadable, check_value, parameters
from gentrain.update import Objective


def load(
    run: str | Path,
    trust: Sequence[str] = (),
    device: str | torch.device = "cpu",
    sampling: Mapping[str, Any] | None = None,
) -> Generative:
    """The model of a run folder (its newest checkpoint) or of a checkpoint file, in eval mode.

    The weights are the running average where the run kept one.

    Args:
        run: folder or file. trust: packages of your own that its `_target_` may name. device: where to put it.
        sampling: the model's arguments by which it draws, such as {"burn_in": 1000}, where they differ from the run's.

    Raises:
        CheckpointError: missing, damaged or foreign. UsageError: its model is not in a trusted package, or `sampling`
            names what it doesn't draw by, or a value it doesn't take.
    """
    path, state = checkpoint.find(Path(run).expanduser())
    return restore(path, state, trust, sampling).to(device)


def restore(
    path: Path, state: dict[str, Any], trust: Sequence[str] = (), sampling: Mapping[str, Any] | None = None
) -> Generative:
    """The model of an already loaded checkpoint `state`."""
    plain = config.resolve(stored_config(state))
    node = {**plain["model"], **_drawing(plain["model"]["_target_"], sampling or {}, trust)}
    with own_randomness(0):  # the weights it starts with are about to be replaced, and cost the caller no draw
        try:
            model = config.build(node, trust, Generative)
            if sampling:  # the objective knows what the weights have learned: guidance wants labels left out
                config.build(plain["objective"], trust, Objective).require(model)
        except UsageError as error:
            if not sampling:
                raise
            raise UsageError(f"sampling={dict(sampling)}: {error}") from error
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


def _drawing(target: str, sampling: Mapping[str, Any], trust: Sequence[str]) -> Mapping[str, Any]:
    """`sampling`, if the model that `target` names draws by it.

    Raises:
        UsageError: it doesn't, or the value isn't of the right type.
    """
    factory = config.locate(target, trust)
    known = factory.sampling if isinstance(factory, type) and issubclass(factory, Generative) else ()
    for key, value in sampling.items():
        if key not in known:
            can = f"; it has {', '.join(known)}" if known else ""
            raise UsageError(f"sampling.{key}: is nothing that {factory.__name__} draws by{can}")
        with suppress(Unreadable):
            check_value(parameters(target)[key].annotation, value, f"sampling.{key}")
    return sampling
