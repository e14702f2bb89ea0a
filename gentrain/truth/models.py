"""What models claim by their base classes, each claim against an answer known some other way."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from gentrain.models.base import (
    Codes,
    Decoder,
    Density,
    Filters,
    Generative,
    LatentVariable,
    Reconstructs,
    evenly,
    given,
)
from gentrain.models.continuous import ContinuousFlow
from gentrain.models.critics import Adversarial, AutoencodingCritic, Bidirectional
from gentrain.models.diffusion import Diffuses
from gentrain.models.domains import Couples, TranslatesBack, Translator
from gentrain.models.energies import Bounded, EnergyBased, Enumerable, Harmonium, PseudoLikelihood, Unnormalised
from gentrain.truth.base import Case, Unchecked, Verdict, claims, differences
from gentrain.truth.spaces import (
    SHARP,
    STATES,
    Space,
    around,
    exact_log_prob,
    follow,
    over,
    sigmas,
)

ROUNDING = 1e-4
"""What float32 may do to a sum of probabilities, or to a log-probability of tens of nats."""
SIGMAS = 6.0
"""Standard errors between an unbiased estimate and the truth that are still chance."""
ROWS = 16
"""Examples that the costlier checks take."""


# --- all that a model computes ----------------------------------------------------------------------------------------


def misfits(x: Tensor, model: Generative, levels: int | None, n: int) -> list[str]:
    """What is wrong with `x` as n examples of the model's: shape, finite, values in the support, not all the same."""
    if x.shape != (n, *model.shape):
        return [f"shape {tuple(x.shape)}, not {(n, *model.shape)}"]
    found = [] if x.isfinite().all() else ["not finite"]
    low, high, whole = {
        "binary": (0, 1, True),
        "unit": (0, 1, False),
        "signed": (-1, 1, False),
        "levels": (0, (levels or 2) - 1, True),
        "tokens": (0, (levels or 2) - 1, True),
        "real": (-math.inf, math.inf, False),
    }[model.support]
    if x.min() < low or x.max() > high:
        found.append(f"values from {x.min():g} to {x.max():g} in the support {model.support}")
    if whole and not (x == x.round()).all():
        found.append(f"fractions in the support {model.support}")
    if n > 1 and torch.equal(x, x[:1].expand_as(x)):
        found.append("all the same")
    return found


@torch.no_grad()
def outputs(model: Generative, x: Tensor, z: Tensor | None = None, y: Tensor | None = None) -> dict[str, Tensor]:
    """Everything that the model computes without a draw from x (and as many codes z and labels y), name -> (B, …)."""
    found: dict[str, Tensor] = {}
    to = given(model, y)
    if isinstance(model, Density) or (isinstance(model, Enumerable) and 1 << model.enumeration_bits <= STATES):
        found["log_prob"] = model.log_prob(x)
    if isinstance(model, Unnormalised):
        found["free_energy"] = model.free_energy(x)
    if isinstance(model, Bounded) and not model.bound_draws:
        found["log_bound"] = model.log_bound(x)
    if isinstance(model, Harmonium):
        found["hidden_probability"] = model.hidden_probability(model.units(x, y))
    if isinstance(model, PseudoLikelihood):
        found["pseudo_log_likelihood"] = model.pseudo_log_likelihood(x)
    if z is not None and isinstance(model, LatentVariable):
        found["encode"], found["decode"] = model.encode(x, **to).log_prob(z), model.decode(z, **to).log_prob(x)
    if z is not None and isinstance(model, Decoder):
        found["decode"] = model.decode(z, **to)
    if z is not None and isinstance(model, Couples):
        found["decode_pair"] = model.decode_pair(z)
    if isinstance(model, Adversarial):
        found["discriminate"] = model.discriminate(x, **to)
    if z is not None and isinstance(model, Bidirectional):
        found["discriminate_pair"] = model.discriminate_pair(x, z)
    if isinstance(model, Codes):
        found["codes"] = model.codes(x, **to)
    if isinstance(model, Reconstructs):
        found["reconstruct"] = model.reconstruct(x, **to)
    if isinstance(model, Translator) and not model.noisy:
        found["translate"] = model.translate(x)
    if isinstance(model, TranslatesBack) and not model.noisy:
        found["translate_back"] = model.translate_back(x)
    if isinstance(model, Diffuses):
        half = torch.full((len(x),), (model.steps + 1) // 2, device=x.device)
        found["term"] = model.term(x, half, torch.zeros_like(x), to.get("y"))
    if isinstance(model, Filters):
        found["filters"] = model.filters()
    return found


def outputs_of(case: Case, model: Generative, rows: int | None = None) -> dict[str, Tensor]:
    """`outputs` of `model`, on whatever device it is, for the case's first examples and codes."""
    z, y = (None if v is None else v[:rows].to(model.device) for v in (case.codes, case.batches[0].y))
    return outputs(model, case.x[:rows].to(model.device), z, y)


def seeded_sample(model: Generative, n: int, seed: int = 5) -> Tensor:
    torch.manual_seed(seed)
    return model.sample(n)


_SHAPES = {"codes": 2, "hidden_probability": 2}  # others: one number an example, or an example
_EXAMPLES = ("reconstruct", "filters", "decode_pair", "translate", "translate_back")


@claims("samples lie in the support", Generative)
def samples_fit(case: Case) -> Verdict:
    found = misfits(case.model.sample(256), case.model, case.levels, 256)
    found += misfits(case.model.sample(1), case.model, case.levels, 1)
    words = f"256 samples, and one: {'; '.join(found) or f'{tuple(case.model.shape)}, {case.model.support}'}"
    return len(found), 0, words


@claims("samples follow the seed", Generative)
def samples_follow_the_seed(case: Case) -> Verdict:
    first, again, other = (seeded_sample(case.model, 64, seed) for seed in (1, 1, 2))
    found = [] if torch.equal(first, again) else ["the same seed gives other samples"]
    found += ["another seed gives the same samples"] if torch.equal(first, other) else []
    return len(found), 0, "; ".join(found) or "one seed, the same 64 samples; another, others"


@claims("what it computes is finite and shaped", Generative)
def outputs_are_well_formed(case: Case) -> Verdict:
    x, bad = case.x, []
    found = outputs_of(case, case.model)
    for name, value in found.items():
        rows = value.shape[0] if name == "filters" else len(x)
        if name in _SHAPES:
            fits = value.dim() == _SHAPES[name] and len(value) == rows
        elif name in _EXAMPLES or (name == "decode" and isinstance(case.model, Decoder)):
            fits = value.shape == (rows, *case.model.shape)
        else:
            fits = value.shape == (rows,)
        bad += [] if fits else [f"{name} is {tuple(value.shape)} of {len(x)} examples"]
        bad += [] if value.isfinite().all() else [f"{name} is not finite"]
    return len(bad), 0, "; ".join(bad) or ", ".join(found) or "it only samples"


@claims("looking changes nothing", Generative)
def looking_changes_nothing(case: Case) -> Verdict:
    """In eval mode neither a sample nor an output changes a parameter or a buffer, and outputs are the same again."""
    before = copy.deepcopy(case.model.state_dict())
    first = outputs_of(case, case.model)
    sample = case.model.sample(8)
    second = outputs_of(case, case.model)
    found = [f"{name.removeprefix('.')} changes" for name in differences(before, case.model.state_dict())]
    found += [f"{name.removeprefix('.')} differs the second time" for name in differences(first, second)]
    found += ["samples carry a gradient"] if sample.requires_grad else []
    found += ["it is left in training mode"] if case.model.training else []
    return len(found), 0, "; ".join(found) or "state and outputs the same before and after sampling"


@claims("an example is judged by itself", Generative)
def examples_dont_meet(case: Case) -> Verdict | None:
    of_batches = isinstance(case.model, Adversarial) and case.model.judges_batches
    left_out = ("filters", "discriminate") if of_batches else ("filters",)
    together = {k: v for k, v in outputs_of(case, case.model).items() if k not in left_out}
    if not together:
        return None
    apart = outputs_of(case, case.model, 3)
    worst = {name: _relative(apart[name], value[:3]) for name, value in together.items()}
    name = max(worst, key=lambda key: worst[key])
    return worst[name], 1e-4, f"3 examples, alone and in a batch of {len(case.x)}; largest change, of {name}"


def _relative(a: Tensor, b: Tensor) -> float:
    """The largest difference relative to the size of b's values."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / (1e-6 + b.abs().max()))


@claims("a second device agrees", Generative)
def devices_agree(case: Case) -> Verdict:
    if not torch.cuda.is_available():
        raise Unchecked("there is no GPU here")
    here = case.x.device.type
    there = torch.device("cpu" if here == "cuda" else "cuda")
    moved = copy.deepcopy(case.model).to(there)
    ours, theirs = outputs_of(case, case.model), outputs_of(case, moved)
    if misfits(moved.sample(16), moved, case.levels, 16):
        return math.inf, 1e-3, f"samples on {there} lie outside the support"
    worst = max([_relative(theirs[name].to(case.x.device), ours[name]) for name in ours], default=0.0)
    return worst, 1e-3, f"largest change of {', '.join(ours) or 'nothing'} from {here} to {there}"


@claims("its state is all in the file", Generative)
def state_is_whole(case: Case) -> Verdict:
    """A model built anew, with the state loaded, gives the same outputs and samples bit for bit."""
    other = case.fresh().to(case.x.device)
    other.load_state_dict(copy.deepcopy(case.model.state_dict()))
    other.eval()
    ours, theirs = (outputs_of(case, m) | {"sample": seeded_sample(m, 16)} for m in (case.model, other))
    found = [name.removeprefix(".") for name in differences(ours, theirs)]
    words = f"{', '.join(found)} differ" if found else f"{', '.join(ours)} the same bit for bit"
    return len(found), 0, f"saved, and loaded into a new model: {words}"


# --- probabilities ----------------------------------------------------------------------------------------------------


@claims("probabilities sum to one", Density, Enumerable, ContinuousFlow)
def sums_to_one(case: Case) -> Verdict:
    model, space = case.model, case.space
    assert isinstance(model, Density | Enumerable | ContinuousFlow)
    _require_enumerable(case)
    log_p = over(model.log_prob, space.points)
    unsure = require_smooth(space, log_p)
    total = float(space.log_total(log_p).exp())
    what = f"{len(space.points):,} {'states' if space.coarse is None else 'points of a grid'}"
    beyond = 0.0 if space.coarse is None else 2e-3 + unsure  # what lies beyond the grid, and its own error
    # -F - log Z is a difference of two numbers that are as large as the model has units
    rounding = ROUNDING * (1 + abs(float(model.log_partition())) / 100 if isinstance(model, Enumerable) else 1)
    return abs(total - 1), rounding + beyond, f"the sum over {what} is {total:.6f}"


def _require_enumerable(case: Case) -> None:
    model = case.model
    if isinstance(model, Enumerable) and 1 << model.enumeration_bits > STATES:
        raise Unchecked(f"log Z is a sum over 2^{model.enumeration_bits} states")


@claims("log Z is the sum over all states", Enumerable)
def partition_is_the_sum(case: Case) -> Verdict:
    model = case.model
    assert isinstance(model, Enumerable)
    _require_enumerable(case)
    log_p = -over(model.free_energy, case.space.points)
    direct, found = float(case.space.log_total(log_p)), float(model.log_partition())
    what = f"{len(log_p):,} {'states' if case.space.coarse is None else 'points of a grid'}"
    beyond = 0.0 if case.space.coarse is None else 2e-3 + require_smooth(case.space, log_p)
    words = f"log_partition() is {found:.5f}, log Σ exp(-F) over {what} {direct:.5f}"
    return abs(found - direct), ROUNDING * (1 + abs(found)) + beyond, words


@claims("samples follow p(x)", Density, EnergyBased, LatentVariable, ContinuousFlow)
def samples_follow(case: Case) -> Verdict:
    space = case.space
    draws = over(lambda row: case.model.sample(len(row)), torch.empty(case.n))
    if isinstance(case.model, LatentVariable) and space.coarse is not None:  # an integral over z for each of its points
        found = around(draws, cells=3)
        if isinstance(found, str):
            raise Unchecked(found)
        space = found
    log_p = exact_log_prob(case.model, space)
    if isinstance(log_p, str):
        raise Unchecked(log_p)
    require_smooth(space, log_p)
    return follow(draws, space, log_p)


def require_smooth(space: Space, log_p: Tensor) -> float:
    """What the grid's sum may be off by.

    Raises:
        Unchecked: too much.
    """
    unsure = space.uncertainty(log_p)
    if unsure > SHARP:
        raise Unchecked("the density is too sharp for a grid")
    return unsure


@claims("a step of the chain keeps p(x)", EnergyBased)
def chain_keeps_the_distribution(case: Case) -> Verdict:
    model, space = case.model, case.space
    assert isinstance(model, EnergyBased)
    log_p = exact_log_prob(model, space)
    assert isinstance(log_p, Tensor)
    require_smooth(space, log_p)
    start = space.draw(log_p, case.n)
    once = model.gibbs(start, 1)
    statistic, allowed, words = follow(once, space, log_p)
    moved = float((once != start).flatten(1).any(1).float().mean())
    if moved == 0:
        return math.inf, allowed, "no chain moves in a step"
    kept = once.clone()
    model.gibbs(once, 1)
    if not torch.equal(once, kept):
        return math.inf, allowed, "a step writes into the states that it is given"
    return statistic, allowed, f"{words}, one step from exact draws; {moved:.0%} of the chains move"


@claims("the energy gradient is autograd's", Harmonium)
def energy_gradient_is_right(case: Case) -> Verdict:
    """∂ of mean F(data) - mean F(chain) is `energy_gradient` with h at its expectation."""
    model = case.model
    assert isinstance(model, Harmonium)
    x, v, y = case.x[:ROWS], model.gibbs(case.x[:7], 1), case.batches[0].y
    at_x, at_v = given(model, None if y is None else y[:ROWS]), given(model, None if y is None else y[-7:])
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        loss = model.free_energy(x, **at_x).mean() - model.free_energy(v, **at_v).mean()
        wanted = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    with torch.no_grad():
        data, chain = model.units(x, **at_x), model.units(v, **at_v)
        found = model.energy_gradient((data, model.hidden_probability(data)), (chain, model.hidden_probability(chain)))
    worst, where = 0.0, ""
    for (name, p), g in zip(parameters.items(), wanted, strict=True):
        g = torch.zeros_like(p) if g is None else g
        if name not in found:
            return math.inf, 1e-3, f"has no entry for {name}"
        off = float((found[name] - g).norm() / (1e-6 + g.norm()))
        worst, where = (off, name) if off >= worst else (worst, where)
    return worst, 1e-3, f"largest relative difference, of {where}"


@claims("pseudo-likelihood is the sum of conditionals", PseudoLikelihood)
def pseudo_likelihood_is_right(case: Case) -> Verdict:
    """Over every bit against enumerated conditionals, and over random bits without bias."""
    model, space = case.model, case.space
    assert isinstance(model, PseudoLikelihood)
    log_p = exact_log_prob(model, space)
    if isinstance(log_p, str) or space.levels is None:
        raise Unchecked("the conditionals can't be enumerated" if space.levels is None else str(log_p))
    table = log_p.view([space.levels] * math.prod(model.shape))
    conditionals = torch.stack([table - torch.logsumexp(table, i, keepdim=True) for i in range(table.dim())]).sum(0)
    exact = conditionals.flatten()
    found = over(model.pseudo_log_likelihood, space.points)
    worst = float((found - exact).abs().max())
    allowed = ROUNDING * (1 + float(exact.abs().max()))
    if worst > allowed:
        return worst, allowed, f"largest difference over {len(exact):,} states, in nats"
    some = torch.randint(len(exact), (ROWS,), device=exact.device)
    x = space.points[some].repeat(2000, *[1] * len(model.shape))
    draws = model.pseudo_log_likelihood(x, bits=2).view(2000, -1)
    off = sigmas(draws, exact[some], ROUNDING)
    return off, SIGMAS, f"all bits within {worst:.0e} nats of enumeration; two random bits, in standard errors"


# --- decoders and critics ---------------------------------------------------------------------------------------------


@claims("the decoder is smooth and in the support", Decoder)
def decoder_is_sound(case: Case) -> Verdict:
    """Examples lie in the support also far from the prior's middle, and a gradient reaches the code and the weights."""
    model = case.model
    assert isinstance(model, Decoder)
    z, to = model.prior.sample(torch.Size([ROWS])), evenly(model, ROWS)
    far = model.decode(100 * z, **to).detach()
    found = [f"{word} for codes x 100" for word in misfits(far, model, case.levels, ROWS)]
    with torch.enable_grad():
        z = z.requires_grad_()
        (model.decode(z, **to) ** 2).sum().backward(inputs=[z, *(p for p in model.parameters() if p.requires_grad)])
    found += [] if z.grad is not None and z.grad.isfinite().all() and z.grad.any() else ["no gradient reaches z"]
    within = model.generator if isinstance(model, Adversarial) else model
    lacks = [name for name, p in within.named_parameters() if p.requires_grad and p.grad is None]
    model.zero_grad(set_to_none=True)
    if isinstance(model, Adversarial) and lacks:
        found.append(f"no gradient reaches {', '.join(lacks)}")
    return len(found), 0, "; ".join(found) or "finite gradients with respect to z and the weights"


@claims("the critic's gradient reaches x", Adversarial)
def critic_is_smooth(case: Case) -> Verdict:
    model = case.model
    assert isinstance(model, Adversarial)
    with torch.enable_grad():
        x = case.x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model.discriminate(x, **given(model, case.batches[0].y)).sum(), x)
    blind = int((gradient.flatten(1).norm(dim=1) == 0).sum()) + int((~gradient.isfinite()).sum())
    return blind, len(x) // 4, f"examples of {len(x)} at which the logit has no gradient: it teaches nothing there"


@claims("the critic's output is minus an error", AutoencodingCritic)
def verdict_is_an_error(case: Case) -> Verdict:
    model, batch = case.model, case.batches[0]
    assert isinstance(model, AutoencodingCritic)
    with torch.no_grad():
        off = (batch.x - model.reconstruct(batch.x, **given(model, batch.y))).flatten(1).abs().amax(1)
        output = model.discriminate(batch.x, **given(model, batch.y))
    wrong = int(((output < 0) != (off > 0)).sum())
    return wrong, 0, f"{wrong} of {len(off)} examples whose output isn't 0 where they are restored, and below elsewhere"
