"""What objectives claim: that their updates are sound, reach what they train, and mean what they are called."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from gentrain.batch import Batch
from gentrain.device import Device
from gentrain.models.base import Density, Generative, LatentVariable, evenly, given, kind_given
from gentrain.models.critics import Adversarial
from gentrain.models.diffusion import Diffuses
from gentrain.models.energies import EnergyBased, Enumerable, PseudoLikelihood, Unnormalised
from gentrain.objectives.adversarial import Game
from gentrain.objectives.contrastive import Contrastive
from gentrain.optim import Optim
from gentrain.parts import Part
from gentrain.truth.base import Case, Verdict, claims
from gentrain.truth.latent import bounds
from gentrain.truth.models import ROUNDING, ROWS, SIGMAS, require_smooth
from gentrain.truth.spaces import over, sigmas
from gentrain.update import Objective, Update, following

PROGRESS = (*(i / 12 for i in range(12)), 0.99)
"""Points of training at which updates are looked at: an objective in stages trains other layers later."""
STEPS = 60
"""Updates by which a loss must have fallen on a batch that stays the same."""


def parts_of(objective: Objective, model: Generative, optim: Optim) -> dict[str, Part]:
    """The parts that the objective trains, each with its optimizer, as the trainer makes them."""
    device = Device(model.device)
    return {name: Part(name, model, optim, None, device) for name in objective.parts}


def case_of(
    model: Generative,
    objective: Objective,
    optim: Optim,
    batches: Sequence[Batch],
    fresh: Callable[[], Generative],
    levels: int | None,
    n: int = 10_000,
    seed: int = 0,
) -> Case:
    """The case of a model as it was built: trained for a step a batch, shaken, and put into eval mode.

    A fault can hide at the start, where a bias is zero and whatever forgets it is right, and in even data, where every
    pixel is on half of the time. So the batches are drawn unevenly, and N(0, σ²) is added to all that the steps have
    moved, with σ such that no sum over units grows beyond order one.

    Raises:
        NonFiniteError: a step's loss or gradient is NaN or infinite.
    """
    case = Case(model, objective, optim, [uneven(batch, seed) for batch in batches], fresh, levels, n, seed)
    model.train()
    parts = parts_of(objective, model, optim)
    moved: set[int] = set()
    for step, batch in enumerate(case.batches):
        for update in played(objective(model, batch, step / len(batches)), parts):
            if update.loss is not None or update.grads is not None:
                parts[update.part].step(update, 1.0, step)
                own = parts[update.part].parameters.values()
                moved |= {id(p) for p in own if p.grad is not None and bool(p.grad.any())}
    shake([p for p in model.parameters() if id(p) in moved], seed)
    if isinstance(objective, Game):
        objective.begin(model)  # brings a critic that shaking has put out of its bounds back
    model.zero_grad(set_to_none=True)
    model.eval()
    return case


def uneven(batch: Batch, seed: int = 0) -> Batch:
    """As many examples, drawn from the batch with weights exp(a random projection of x, of unit variance)."""
    generator = torch.Generator().manual_seed(seed)
    x = batch.x.flatten(1).double().cpu()
    height = x @ torch.randn(x.shape[1], generator=generator, dtype=x.dtype)
    weights = torch.softmax((height - height.mean()) / (height.std() + 1e-6), 0)
    rows = torch.multinomial(weights, len(x), replacement=True, generator=generator).to(batch.x.device)
    return batch._replace(**{name: value[rows] for name, value in batch._asdict().items() if value is not None})


@torch.no_grad()
def shake(parameters: list[Tensor], seed: int = 0) -> None:
    """Add N(0, 1/fan) to weights, fan the larger of inputs and outputs, and N(0, 1/4) to vectors and scalars."""
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        fan = max(p[0].numel(), p[:, 0].numel()) if p.dim() >= 2 else 4
        p += (torch.randn(p.shape, generator=generator) / fan**0.5).to(p)


def played(updates: Iterator[Update], parts: Mapping[str, Part]) -> Iterator[Update]:
    """The updates, each computed after the part of the one before has answered, as in training."""
    done = None
    while (update := following(updates, done)) is not None:
        yield update
        part = None if update.loss is None and update.grads is None else parts.get(update.part)
        done = part.optimizer if part else None


def copies(case: Case) -> tuple[Generative, Objective]:
    """Model, in training mode, and objective, to be changed at will."""
    model, objective = copy.deepcopy((case.model, case.objective))
    return model.train(), objective


def gradients(update: Update, part: Part) -> dict[str, Tensor]:
    """Name within the part -> gradient, for those parameters that the update has one for."""
    if update.grads is not None:
        return dict(update.grads)
    assert update.loss is not None
    names, parameters = zip(*part.parameters.items(), strict=True)
    found = torch.autograd.grad(update.loss, parameters, allow_unused=True)
    return {name: g for name, g in zip(names, found, strict=True) if g is not None}


def _updates(case: Case) -> Iterator[tuple[Update, Part | None, list[str]]]:
    """Updates of several batches and stages of training, their part, and the parameters that changed on the way."""
    model, objective = copies(case)
    parts = parts_of(objective, model, case.optim)
    for i, progress in enumerate(PROGRESS):
        updates = played(objective(model, case.batches[i % len(case.batches)], progress), parts)
        while True:
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            update = next(updates, None)
            if update is None:
                break
            changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
            yield update, parts.get(update.part), changed


@claims("updates are sound", Generative)
def updates_are_sound(case: Case) -> Verdict:
    found: list[str] = []
    count = 0
    with torch.enable_grad():
        for update, part, changed in _updates(case):
            count += 1
            for name, value in update.metrics.items():
                fine = isinstance(value, Tensor) and value.numel() == 1 and bool(value.isfinite())
                found += [] if fine else [f"metric {name} is no finite scalar tensor"]
            if update.loss is None and update.grads is None:
                continue
            if part is None:
                found.append(f"part {update.part!r} is none of the objective's, {list(case.objective.parts)}")
                continue
            found += [f"{name} changes while an update is computed" for name in changed]
            if update.loss is not None and not (update.loss.numel() == 1 and bool(update.loss.isfinite())):
                found.append("the loss is no finite scalar")
                continue
            for name, g in gradients(update, part).items():
                p = part.parameters.get(name)
                if p is None or g.shape != p.shape:
                    found.append(f"the gradient of {name} fits no parameter of the part {part.name!r}")
                elif not g.isfinite().all():
                    found.append(f"the gradient of {name} is not finite")
    found += ["there are none"] if not count else []
    found = list(dict.fromkeys(found))
    return len(found), 0, "; ".join(found[:4]) or f"{count} updates with finite losses, gradients and metrics"


@claims("every parameter learns", Generative)
def every_parameter_learns(case: Case) -> Verdict | None:
    """A gradient that is not all zero reaches each trainable parameter at some stage of training, but for those of
    submodules that the objective says it leaves, and those that move all of a critic's outputs by as much: games of
    differences have nothing to teach these."""
    reached: set[str] = set()
    by_gradient: set[str] = set()
    with torch.enable_grad():
        for update, part, _ in _updates(case):
            if part is None or (update.loss is None and update.grads is None):
                continue
            by_gradient.add(part.name)
            reached |= {_full(part, name) for name, g in gradients(update, part).items() if g.any()}
    left = tuple(f"{name}." for name in case.objective.leaves)
    trainable = {name for name, p in case.model.named_parameters() if p.requires_grad and not name.startswith(left)}
    if not by_gradient:
        return None
    in_place = [f"{name}." for name in case.objective.parts if name not in by_gradient]
    missed = [n for n in trainable - reached if not n.startswith(tuple(in_place))] if "." not in in_place else []
    missed = [name for name, _ in case.model.named_parameters() if name in missed and not _shifts(case, name)]
    words = f"no gradient reaches {', '.join(missed[:6])}" if missed else f"{len(reached)} tensors get a gradient"
    return len(missed), 0, words


def _shifts(case: Case, name: str) -> bool:
    """Whether a game's critic gives every example as much more, or less, as this parameter moves."""
    model = copies(case)[0]
    if not (isinstance(model, Adversarial) and isinstance(case.objective, Game)):
        return False
    batch, parameter = case.batches[0], model.get_parameter(name)
    with torch.enable_grad():
        outputs = model.discriminate(batch.x, **given(model, batch.y))[:ROWS]
        (first, *others) = (
            torch.autograd.grad(output, parameter, retain_graph=True, allow_unused=True)[0] for output in outputs
        )
    return first is not None and bool(first.any()) and all(torch.equal(first, other) for other in others)


def _full(part: Part, name: str) -> str:
    return f"{part.name}.{name}" if part.name else name


def _own_loss(case: Case, model: Generative, objective: Objective, part: str, seeds: int = 8) -> float:
    """The mean loss of the part's first update on the first batch, over fixed draws; model and objective may change."""
    total, batch, parts = 0.0, case.batches[0], parts_of(objective, model, case.optim)
    for seed in range(seeds):
        torch.manual_seed(seed)
        with torch.enable_grad():
            update = next(
                u for u in played(objective(model, batch, 0.99), parts) if u.part == part and u.loss is not None
            )
        assert update.loss is not None
        total += float(update.loss.detach())
    return total / seeds


def train_alone(case: Case, part: str) -> tuple[Generative, float, float]:
    """The model after STEPS updates of one part on a batch that stays the same; its loss before and after, both by the
    objective as it was: what that keeps from step to step, the weight of a term for instance, may have moved since."""
    model, objective = copies(case)
    parts, batch = parts_of(objective, model, case.optim), case.batches[0]
    before = _own_loss(case, *copies(case), part)
    with torch.enable_grad():
        for step in range(STEPS):
            for update in played(objective(model, batch, 0.99), parts):
                if update.part == part and (update.loss is not None or update.grads is not None):
                    parts[part].step(update, 1.0, step)
    return model, before, _own_loss(case, copy.deepcopy(model), copies(case)[1], part)


def _has_loss(case: Case, part: str) -> bool:
    model, objective = copies(case)
    updates = played(objective(model, case.batches[0], 0.99), parts_of(objective, model, case.optim))
    with torch.enable_grad():
        return any(u.part == part and u.loss is not None for u in updates)


@claims("the loss falls", Generative)
def loss_falls(case: Case) -> Verdict | None:
    """Each part alone, the others standing still, on one batch.

    Not of losses against chains: these move with the model, and the loss is of use for its gradient alone.
    """
    if isinstance(case.objective, Contrastive):
        return None
    parts = [part for part in case.objective.parts if _has_loss(case, part)]
    if not parts:
        return None
    worst, words = -math.inf, []
    for part in parts:
        _, before, after = train_alone(case, part)
        worst = max(worst, after - before)
        words.append(f"{f'{part}: ' if part else ''}{before:.4g} -> {after:.4g}")
    return worst, -1e-6, f"{'; '.join(words)} in {STEPS} steps on one batch"


def opinions(
    player: Generative, examples: Tensor, y: Tensor | None, aim: float | None, seed: int, n: int = 256
) -> tuple[float, float]:
    """What the critic says of real examples minus of n generated ones, and how well these do by a game's `aim`."""
    assert isinstance(player, Adversarial)
    torch.manual_seed(seed)
    with torch.no_grad():
        n = len(examples) if player.judges_batches else n  # such see batches as large as they were trained on
        labels = evenly(player, n)
        made = player.decode(player.prior.sample(torch.Size([n])), **labels)
        real, fake = player.discriminate(examples, **given(player, y)), player.discriminate(made, **labels)
    reached = fake if aim in (None, math.inf) else -(fake - aim).square()
    return float(real.mean() - fake.mean()), float(reached.mean())


@claims("the critic learns to tell, the generator to please it", Adversarial)
def players_pull_the_right_way(case: Case) -> Verdict | None:
    """The discriminator alone parts real from generated; the generator alone brings what the critic says of its
    examples nearer to what it aims at, which is up in most games."""
    if set(case.objective.parts) != {"discriminator", "generator"}:
        return None

    aim = case.objective.aim if isinstance(case.objective, Game) else math.inf
    before, critic, maker = (
        opinions(model, case.x, case.batches[0].y, aim, case.seed)
        for model in (copies(case)[0], train_alone(case, "discriminator")[0], train_alone(case, "generator")[0])
    )
    told, pleased = critic[0] - before[0], maker[1] - before[1]
    words = f"output for real minus generated {told:+.3g} as D learns alone"
    if aim is None:
        return -told, -1e-6, words
    goal = "for generated" if aim == math.inf else f"minus squared distance of generated from {aim:g}"
    return max(-told, -pleased), -1e-6, f"{words}, {goal} {pleased:+.3g} as G does"


@claims("losses stay finite at any logit", Adversarial)
def losses_stay_finite(case: Case) -> Verdict | None:
    game = case.objective
    if not isinstance(game, Game):
        return None
    with torch.enable_grad():
        logits = torch.tensor([-1e4, 1e4], requires_grad=True)
        losses = game.discriminator_loss(logits, logits), game.generator_loss(logits)
        (gradient,) = torch.autograd.grad(losses[0] + losses[1], logits)
    bad = sum(int((~v.isfinite()).sum()) for v in (*losses, gradient))
    return bad, 0, "both losses and their gradients at logits of -10,000 and 10,000"


@claims("the update descends -log p(x)", EnergyBased)
def update_descends(case: Case) -> Verdict | None:
    """The mean update against the exact gradient: contrastive divergence is biased, but must not lead uphill."""
    if len(case.objective.parts) > 1:
        return None
    space, (model, objective) = case.space, copies(case)
    assert isinstance(model, EnergyBased)
    require_smooth(space, -over(model.free_energy, space.points))
    (part,) = parts_of(objective, model, case.optim).values()
    batch, total, count = case.batches[0], {}, 0
    for i in range(80):  # the first half lets persistent chains find the distribution of a model that stands still
        with torch.enable_grad():
            for update in played(objective(model, batch, 0.5), {part.name: part}):
                if update.loss is None and update.grads is None:
                    return None
                for name, g in gradients(update, part).items() if i >= 40 else []:
                    total[name] = total.get(name, 0) + g
                    count += 1
    exact = exact_gradient(model, batch.x, space.points, batch.y)
    a = torch.cat([total[name].flatten() for name in exact if name in total]).double()
    b = torch.cat([g.flatten() for name, g in exact.items() if name in total]).double()
    angle = math.degrees(math.acos(max(-1.0, min(1.0, float(a @ b / (a.norm() * b.norm()))))))
    what = f"{len(space.points):,} {'states' if space.coarse is None else 'points of a grid'}"
    return angle, 89.0, f"degrees between the mean of 40 updates and the exact gradient over {what}"


def exact_gradient(model: EnergyBased, data: Tensor, states: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
    """Parameter -> gradient of the mean of -log p over `data`, by autograd through the sum over all `states`.

    Of a model with label units the data are examples together with labels y (B,), and p is that of both.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        energy = model.free_energy(data, **given(model, y)).mean()
        loss = energy + torch.logsumexp(-model.free_energy(states).double(), 0)
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found, strict=True)}


@claims("held-out numbers are what they are called", Generative)
def scores_are_true(case: Case) -> Verdict | None:
    """Every score of `validate` whose kind has a definition, in the mean over draws, against that definition."""
    model, objective, x, y = case.model, case.objective, case.x[:ROWS], case.batches[0].y
    y, repeats = None if y is None else y[:ROWS], 400
    many = Batch(x.repeat(repeats, *[1] * (x.dim() - 1)), None if y is None else y.repeat(repeats))
    with torch.no_grad():
        scores = objective.validate(model, many)
    worst, words = -1.0, []
    for name, score in scores.items():
        if score.values.shape != (repeats * len(x),) or not score.values.isfinite().all():
            return math.inf, SIGMAS, f"{name} is not one finite number an example"
        truth = _defined(model, score.kind, x, y)
        if truth is None:
            continue
        values = score.values.view(repeats, len(x)).double()
        error = float(truth.std(0).max()) / len(truth) ** 0.5 if len(truth) > 1 else 0.0
        off = sigmas(values, truth.mean(0), ROUNDING + error)
        worst = max(worst, off)
        words.append(f"{name} is {score.kind}" + (f" but off by {off:.0f} standard errors" if off > SIGMAS else ""))
    return None if worst < 0 else (worst, SIGMAS, f"{', '.join(words)}; largest distance in standard errors")


def _defined(model: Generative, kind: str, x: Tensor, y: Tensor | None) -> Tensor | None:
    """Draws (R, B) of the quantity that `kind` names, R = 1 where it is not random; None for other kinds."""
    with torch.no_grad():
        if kind == "exact" and isinstance(model, Density | Enumerable):
            return model.log_prob(x)[None]
        if kind == kind_given(model, "exact") and isinstance(model, Density | Enumerable):
            return model.log_prob(x, **given(model, y))[None]
        if kind == "free-energy" and isinstance(model, Unnormalised):
            return model.free_energy(x)[None]
        if kind == "pseudo" and isinstance(model, PseudoLikelihood):
            return model.pseudo_log_likelihood(x)[None]
        if isinstance(model, Diffuses) and kind == kind_given(model, "elbo"):
            many = model.bound(x.repeat(20, *[1] * (x.dim() - 1)), None if y is None else y.repeat(20))
            return many.view(20, len(x))
        if isinstance(model, LatentVariable):
            if kind == kind_given(model, "elbo"):
                return bounds(model, x, 1, 2000, y)
            k = kind.removeprefix("iwae-").partition(" ")[0]
            if k.isdigit() and kind == kind_given(model, f"iwae-{k}"):
                return bounds(model, x, int(k), 400, y)
    return None
