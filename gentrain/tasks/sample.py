"""Draw from a trained model: samples, reconstructions of test examples, walks through the code space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from gentrain import checkpoint, config, pictures
from gentrain.console import console
from gentrain.data.pipeline import Pipeline
from gentrain.device import Device, own_randomness
from gentrain.errors import UsageError
from gentrain.files import disk_error
from gentrain.models.base import Decoder, Generative, LatentVariable, Reconstructs
from gentrain.settings import SampleSettings, split_data
from gentrain.tasks.assemble import make_pipeline
from gentrain.tasks.load import restore, stored_config

STEPS = 10  # images on the way from one code to another


def main(cfg: DictConfig, overrides: Sequence[str] = ()) -> Path:
    """Write what `cfg`, a composed `sample` configuration, asks for; the file's path."""
    settings = config.record(SampleSettings, cfg)
    source = Path(settings.run).expanduser()
    path, state = checkpoint.find(source)
    model = restore(path, state, settings.trust)
    plain = config.resolve(stored_config(state))
    plain["trust"] = settings.trust  # not the one that came with the run
    x, columns = _draw(model, settings, plain)
    out = Path(settings.out) if settings.out else _default_folder(source) / f"{settings.kind}.{settings.format}"
    out = out.expanduser()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if settings.format == "npz":
            np.savez(out, x=x.cpu().numpy(), support=model.support, kind=settings.kind)
        else:
            pictures.save_png(out, pictures.show(x, model, plain["data"]["levels"], columns))
    except OSError as error:
        raise disk_error(error, out) from error
    console().print(str(out), markup=False, soft_wrap=True)
    return out


def _default_folder(source: Path) -> Path:
    run = source if source.is_dir() else source.parent.parent
    return run / "samples"


@torch.no_grad()
def _draw(model: Generative, settings: SampleSettings, plain: dict[str, Any]) -> tuple[Tensor, int | None]:
    """The examples of one kind, and how many of them make a row of the picture."""
    n, seed = settings.n, settings.seed
    if settings.kind == "prior":
        if settings.format == "png":
            return pictures.draw(model, n, seed), None
        with own_randomness(seed):
            return model.sample(n), None
    if settings.kind == "reconstruct":
        if not isinstance(model, Reconstructs):
            raise UsageError(f"kind=reconstruct: {type(model).__name__} can't encode an example; try kind=prior")
        return pictures.reconstructions(model, _examples(model, plain, n), seed), 8
    if not isinstance(model, LatentVariable | Decoder):
        raise UsageError(f"kind=interpolate: {type(model).__name__} has no code space; try kind=prior")
    rows = max(1, n // STEPS)
    x = _examples(model, plain, 2 * rows) if isinstance(model, LatentVariable) else None
    return pictures.interpolations(model, x, rows, STEPS, seed), STEPS


def _examples(model: Generative, plain: dict[str, Any], n: int) -> Tensor:
    """The first n test examples in the model's support."""
    _, own = split_data(plain["data"])
    source = config.build(own, plain["trust"])
    pipeline: Pipeline = make_pipeline(plain, source, model, Device(torch.device("cpu")))
    if n > source.spec.sizes["test"]:
        raise UsageError(f"n={n}: {source.spec.name} has {source.spec.sizes['test']} test examples; ask for fewer")
    return torch.cat([batch.x for batch in pipeline.evaluation("test", limit=n)])
