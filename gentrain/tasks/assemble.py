"""From a checked configuration to the objects of a training: data, model, objective, optimizer settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from gentrain import config
from gentrain.data.pipeline import Pipeline
from gentrain.data.source import Source
from gentrain.device import Device
from gentrain.errors import UsageError, out_of_memory
from gentrain.models.base import Conditional, Density, Generative, Standardises, StartsFromMean, TakesReference
from gentrain.models.domains import LearnsFromPairs
from gentrain.models.energies import Unnormalised
from gentrain.optim import Optim
from gentrain.settings import split_data
from gentrain.update import Objective

FACTS = ("shape", "levels", "classes", "support", "vocabulary", "centres", "captions")


@dataclass
class Assembly:
    """Everything a training is made of, and the configuration (`plain`: resolved) it was made from."""

    plain: dict[str, Any]
    source: Source
    model: Generative
    objective: Objective
    pipeline: Pipeline
    optim: Optim

    @property
    def name(self) -> str:
        from gentrain.run import snake

        return f"{snake(type(self.model).__name__)}-{snake(type(self.objective).__name__)}"


def assemble(cfg: DictConfig, device: Device) -> Assembly:
    """Build and check everything, writing nothing. What the data turn out to be is noted in `cfg`.

    Raises:
        UsageError: something doesn't fit. DataError: the data can't be had. OutOfMemoryError: it is all too large.
    """
    plain = config.check(cfg)
    try:
        return _assemble(cfg, plain, device)
    except (RuntimeError, MemoryError) as error:
        if (full := out_of_memory(error, plain["data"]["batch_size"])) is not None:
            raise full from error
        raise


def _assemble(cfg: DictConfig, plain: dict[str, Any], device: Device) -> Assembly:
    trust = plain["trust"]
    _, own = split_data(plain["data"])
    source = config.build(own, trust, path="data")
    if not isinstance(source, Source):
        raise UsageError(f"data._target_={own['_target_']}: must return a gentrain.data.source.Source")
    _note_facts(cfg, source)
    plain = config.check(cfg)
    torch.manual_seed(plain["seed"])
    model = _build_model(plain, source)
    plain["data"]["dequantize"] = cfg.data.dequantize = _dequantize(plain["data"]["dequantize"], model, source)
    require_fit(model, config.locate(plain["objective"]["_target_"], trust), trust)
    objective = config.build(plain["objective"], trust, Objective, "objective")
    objective.require(model)
    if objective.continues and source.order != "stream":
        raise UsageError(
            f"objective={type(objective).__name__}: goes on where the batch before ended, and the training examples of"
            f" data={source.spec.name} come shuffled; set data.order=stream, or objective=likelihood"
        )
    optim = config.build(plain["optim"], trust, Optim, "optim")
    optim.check_parts(objective.parts)
    for part in objective.parts:
        optim.build(part, model.get_submodule(part))  # so that what it can't take is said before anything is written
    model, objective = model.to(device.torch), objective.to(device.torch)
    pipeline = make_pipeline(plain, source, model, device)
    if pipeline.batch_size == device.world and any(isinstance(m, nn.BatchNorm1d) for m in model.modules()):
        raise UsageError(
            f"data.batch_size={pipeline.batch_size}: batch normalisation has no variance in one example"
            f"{' a process' if device.world > 1 else ''}; use {2 * device.world} or more"
        )
    if isinstance(model, StartsFromMean):
        model.start_from_mean(pipeline.mean())
    if isinstance(model, Standardises):
        model.standardise(pipeline.mean(), pipeline.deviation())
    if isinstance(model, TakesReference):
        _give_reference(model, pipeline)
    device.synchronise(model)
    return Assembly(plain, source, model, objective, pipeline, optim)


def _give_reference(model: TakesReference, pipeline: Pipeline) -> None:
    wanted = model.reference_size
    for spec in (pipeline.spec, *([] if pipeline.partner is None else [pipeline.partner.spec])):
        if wanted > spec.sizes["train"]:
            raise UsageError(
                f"{model.reference_option}={wanted} is more than the {spec.sizes['train']} training examples of"
                f" data={spec.name}: set it to {spec.sizes['train']} or less"
            )
    if wanted:
        model.take_reference(pipeline.some(wanted))


def _dequantize(wanted: bool | None, model: Generative, source: Source) -> bool:
    """Whether noise is added to levels: what the user says, and if nothing, whether the model needs it.

    A density over unit, signed or real x has no bound at levels as they are: it grows with the sharpness of spikes.

    Raises:
        UsageError: the user says no, and the model is such a density; or yes, and it models the levels themselves.
    """
    stored = source.spec.support in ("binary", "levels")
    if stored and wanted and model.models_levels:
        raise UsageError(
            f"data.dequantize=true: {type(model).__name__} gives the levels of data={source.spec.name} themselves a"
            " probability, and noise would hide them; leave data.dequantize out"
        )
    needed = stored and isinstance(model, Density | Unnormalised) and model.support in ("unit", "signed", "real")
    if needed and wanted is False:
        raise UsageError(
            f"data.dequantize=false: {type(model).__name__} is a density over {model.support} x, which at the"
            f" levels of data={source.spec.name} has no bound; leave data.dequantize out"
        )
    return needed if wanted is None else wanted


def make_pipeline(plain: dict[str, Any], source: Source, model: Generative, device: Device) -> Pipeline:
    data = plain["data"]
    return Pipeline(
        source,
        model.support,
        batch_size=data["batch_size"],
        seed=plain["seed"],
        device=device.torch,
        binarization=data["binarization"],
        dequantize=data["dequantize"],
        rank=device.rank,
        world=device.world,
    )


def _note_facts(cfg: DictConfig, source: Source) -> None:
    spec = source.spec
    for key in FACTS:
        actual = getattr(spec, key)
        actual = list(actual) if isinstance(actual, tuple) else actual
        if actual is None and key not in cfg.data:  # of a run from before there was such a fact
            continue
        given = OmegaConf.to_container(cfg.data, resolve=True).get(key)  # type: ignore[union-attr]
        if given is not None and given != actual:
            raise UsageError(f"data.{key}={given}: {spec.name} has {key} {actual}; leave data.{key} out")
        OmegaConf.update(cfg, f"data.{key}", actual)


def _build_model(plain: dict[str, Any], source: Source) -> Generative:
    model = config.build(plain["model"], plain["trust"], Generative, "model")
    for fact in ("shape", "support"):
        if getattr(model, fact, None) is None:
            raise UsageError(f"model={plain['model']['_target_']}: sets no self.{fact} in its constructor")
    if tuple(model.shape) != tuple(source.spec.shape):
        raise UsageError(
            f"model.shape={list(model.shape)}: {source.spec.name} has {list(source.spec.shape)}; "
            "let it be ${data.shape}"
        )
    classes = _classes_of(model)
    if classes not in (None, source.spec.classes):
        raise UsageError(
            f"model.classes={classes}: {source.spec.name} has {source.spec.classes or 'no labels'}; "
            "let it be ${data.classes}"
        )
    if isinstance(model, LearnsFromPairs) and source.spec.pairs not in model.pairs:
        remedy = f"take data={' or '.join(model.pairs)}, e.g. data={model.pairs[0]} data@data.of=mnist"
        has = f"has {source.spec.pairs} examples" if source.spec.pairs else "has no pairs"
        raise UsageError(
            f"{type(model).__name__} learns from {' or '.join(model.pairs)} examples and data={source.spec.name}"
            f" {has}; {remedy}"
        )
    levels = plain["model"].get("levels")
    if model.support == "levels" and levels not in (None, source.spec.levels):
        raise UsageError(
            f"model.levels={levels}: {source.spec.name} has {source.spec.levels}; let it be ${{data.levels}}"
        )
    return model


def _classes_of(model: object) -> int | None:
    return model.classes if isinstance(model, Conditional) else None


def require_fit(model: Generative, objective: type[Objective], trust: list[str]) -> None:
    """Refuse an objective's class that needs what the model lacks, saying which pairs do fit."""
    if objective.fits(type(model)):
        return
    objectives = [o for o, cls in _classes("objective", trust) if cls.fits(type(model))]
    models = [m for m, cls in _classes("model", trust) if objective.fits(cls)]
    misfit = next((e.__name__ for e in objective.excludes if isinstance(model, e)), None)
    why = f"is of the kind {misfit}, which it can't train" if misfit else f"is no {objective.needs.__name__}"
    raise UsageError(
        f"model={type(model).__name__} with objective={objective.__name__}: the model {why}. "
        f"Objectives that fit the model: {', '.join(objectives) or 'none'}. "
        f"Models that fit the objective: {', '.join(models) or 'none'}"
    )


def _classes(group: str, trust: list[str]) -> Iterator[tuple[str, Any]]:
    for option in config.groups()[group]:
        target = OmegaConf.select(OmegaConf.load(config.conf_dir() / group / f"{option}.yaml"), "_target_")
        if target is not None:
            yield option, config.locate(target, trust)
