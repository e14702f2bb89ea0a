"""Draw from a trained model: samples, reconstructions, completions, walks through the code space."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Outcome:
    """What was drawn from one run's model. `levels`: values of an element of its data."""

    model: Generative
    drawn: Drawn
    levels: int | None


def main(cfg: DictConfig, overrides: Sequence[str] = ()) -> Path:
    """Write what `cfg`, a composed `sample` configuration, asks for; the file's path."""
    plain = config.check_sampling(cfg)
    settings = SampleSettings(**{k: plain[k] for k in SampleSettings.__dataclass_fields__})
    use = config.build(plain["kind"], settings.trust, Use, "kind")
    kind = snake(type(use).__name__)
    sources = [Path(run).expanduser() for run in ([settings.run] if isinstance(settings.run, str) else settings.run)]
    if isinstance(settings.run, str):
        [source] = sources
        found = draw(source, use, settings)
        form = _form(settings.format, found.model)
        folder = (source if source.is_dir() else source.parent.parent) / "samples"
        out = Path(settings.out).expanduser() if settings.out else folder / f"{kind}.{form}"
        _write(out, found, kind, form)
    else:
        out = _together(sources, use, settings)
    console().print(str(out), markup=False, soft_wrap=True)
    return out


def _together(sources: Sequence[Path], use: Use, settings: SampleSettings) -> Path:
    """Write one picture with a block for each run.

    Raises:
        UsageError: there is none, no file is named, or pictures aren't what is asked for.
    """
    if not sources:
        raise UsageError("run=[]: name one run at least")
    if settings.out is None:
        raise UsageError(f"out=FILE.png: must be given, for the {len(sources)} runs share one picture")
    if settings.format not in (None, "png"):
        raise UsageError(f"format={settings.format}: several runs make one picture; leave it out, or name one run")
    blocks = []
    for source in sources:
        try:
            found = draw(source, use, settings)
            _form("png", found.model)
        except UsageError as error:
            raise UsageError(f"{source}: {error}") from error
        shown = found.drawn.x if found.drawn.shown is None else found.drawn.shown
        title = (source if source.is_dir() else source.parent.parent).absolute().parent.name
        blocks.append((title, pictures.show(shown, found.model, found.levels, found.drawn.columns)))
    out = Path(settings.out).expanduser()
    with _disk(out):
        pictures.save_png(out, pictures.side_by_side(blocks))
    return out


def draw(source: Path, use: Use, settings: SampleSettings) -> Outcome:
    """What `use` makes of the model of one run folder, or checkpoint file.

    Raises:
        UsageError: the model can't serve.
    """
    kind = snake(type(use).__name__)
    path, state = checkpoint.find(source)
    model = restore(path, state, settings.trust, settings.sampling)
    if (reason := use.unfit(model)) is not None:
        can = [name for name, other in standard().items() if other.unfit(model) is None]
        can.sort(key=lambda name: name != "prior")  # which everyone can, first
        raise UsageError(f"kind={kind}: {type(model).__name__} {reason}; try kind={' or '.join(can)}")
    trained = config.resolve(stored_config(state))
    trained["trust"] = settings.trust  # not the one that came with the run

    @functools.cache
    def data() -> Subject:
        _, own = split_data(trained["data"])
        source = config.build(own, settings.trust, path="data")
        pipeline = make_pipeline(trained, source, model, Device(torch.device("cpu")))
        return Subject(model, pipeline, seed=settings.seed)

    with config.speaking_of("kind", inspect.signature(type(use)).parameters), seeded(settings.seed):
        drawn = use(model, settings.n, data)
    if drawn.note is not None:
        console().print(drawn.note, markup=False, highlight=False, soft_wrap=True)
    return Outcome(model, drawn, trained["data"]["levels"])


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


def _write(out: Path, found: Outcome, kind: str, form: str) -> None:
    model, drawn = found.model, found.drawn
    with _disk(out):
        if form == "npz":
            arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in drawn.arrays.items()}
            np.savez(out, x=drawn.x.cpu().numpy(), support=model.support, kind=kind, **arrays)
        elif form == "txt":
            assert isinstance(model, Writes)
            out.write_text(texts.sheet(drawn.texts or model.texts(drawn.x)), encoding="utf-8")
        else:
            shown = drawn.x if drawn.shown is None else drawn.shown
            pictures.save_png(out, pictures.show(shown, model, found.levels, drawn.columns))


@contextlib.contextmanager
def _disk(out: Path) -> Iterator[None]:
    """`out` may be written within; an error of the disk's says so."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise disk_error(error, out) from error
