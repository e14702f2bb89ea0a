"""Draw from a trained model: samples, reconstructions, completions, walks through the code space."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from gentrain import checkpoint, config, pictures, texts
from gentrain.console import console
from gentrain.device import Device
from gentrain.errors import UsageError
from gentrain.evaluation.estimator import Subject, seeded
from gentrain.files import disk_error
from gentrain.models.base import Generative
from gentrain.models.sequence import Writes
from gentrain.run import snake
from gentrain.settings import SampleSettings, split_data
from gentrain.tasks.assemble import make_pipeline
from gentrain.tasks.load import restore, stored_config
from gentrain.uses.base import Drawn, Use


def main(cfg: DictConfig, overrides: Sequence[str] = ()) -> Path:
    """Write what `cfg`, a composed `sample` configuration, asks for; the file's path."""
    plain = config.check_sampling(cfg)
    settings = SampleSettings(**{k: plain[k] for k in SampleSettings.__dataclass_fields__})
    use = config.build(plain["kind"], settings.trust, Use)
    kind = snake(type(use).__name__)
    source = Path(settings.run).expanduser()
    path, state = checkpoint.find(source)
    model = restore(path, state, settings.trust)
    if (reason := use.unfit(model)) is not None:
        can = [name for name, other in standard().items() if other.unfit(model) is None]
        can.sort(key=lambda name: name != "prior")  # which everyone can, first
        raise UsageError(f"kind={kind}: {type(model).__name__} {reason}; try kind={' or '.join(can)}")
    trained = config.resolve(stored_config(state))
    trained["trust"] = settings.trust  # not the one that came with the run

    @functools.cache
    def data() -> Subject:
        _, own = split_data(trained["data"])
        pipeline = make_pipeline(trained, config.build(own, settings.trust), model, Device(torch.device("cpu")))
        return Subject(model, pipeline, seed=settings.seed)

    with seeded(settings.seed):
        drawn = use(model, settings.n, data)
    folder = (source if source.is_dir() else source.parent.parent) / "samples"
    form = _form(settings.format, model)
    out = Path(settings.out).expanduser() if settings.out else folder / f"{kind}.{form}"
    _write(out, drawn, model, kind, form, trained["data"]["levels"])
    console().print(str(out), markup=False, soft_wrap=True)
    return out


def _form(asked: str | None, model: Generative) -> str:
    """The format of the file.

    Raises:
        UsageError: the model's examples can't be shown in it.
    """
    text = isinstance(model, Writes)
    form = asked or ("txt" if text else "png")
    if form == ("png" if text else "txt"):
        what, other = ("text", "txt") if text else ("no text", "png")
        raise UsageError(f"format={form}: {type(model).__name__} writes {what}; choose {other} or npz")
    return form


def standard() -> Mapping[str, Use]:
    """Name -> use, every one in `conf/kind`, at the settings of its file."""
    nodes: dict[str, Any] = {n: config.read(config.conf_dir() / "kind" / f"{n}.yaml") for n in config.groups()["kind"]}
    return {name: config.build(config.resolve(node), (), Use) for name, node in nodes.items()}


def _write(out: Path, drawn: Drawn, model: Generative, kind: str, form: str, levels: int | None) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if form == "npz":
            arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in drawn.arrays.items()}
            np.savez(out, x=drawn.x.cpu().numpy(), support=model.support, kind=kind, **arrays)
        elif form == "txt":
            assert isinstance(model, Writes)
            out.write_text(texts.sheet(drawn.texts or model.texts(drawn.x)), encoding="utf-8")
        else:
            shown = drawn.x if drawn.shown is None else drawn.shown
            pictures.save_png(out, pictures.show(shown, model, levels, drawn.columns))
    except OSError as error:
        raise disk_error(error, out) from error
