"""Health in words: cheap checks for the well-known ways in which generative models fail.

A check measures one thing and says a line about it where it is bad: what it is, a number, and what usually helps. The
thresholds are coarse on purpose: they pass what papers report of models that work, and catch what no one would keep.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from gentrain.batch import Batch
from gentrain.evaluation.codes import active, nearest, unit_scaled
from gentrain.evaluation.estimator import Subject, seeded
from gentrain.models.base import Decoder, Density, LatentVariable, given
from gentrain.models.continuous import ContinuousFlow
from gentrain.models.critics import Adversarial
from gentrain.models.domains import Translator
from gentrain.models.energies import Harmonium, MarkovChain, Unnormalised
from gentrain.models.latent import centre, log_weights
from gentrain.objectives.adversarial import Game
from gentrain.objectives.judged import Plays
from gentrain.update import Objective

EXAMPLES = 500
"""Examples, and samples, that a check looks at: shares of them are known to 0.02, enough for coarse bounds."""


@dataclass(frozen=True)
class Sign:
    """A number that tells how a model fares; filed as `health/<name>`, well or not."""

    name: str
    number: float


@dataclass(frozen=True)
class Complaint(Sign):
    """A sign that something is wrong, and `line`, which says so with the number and with what usually helps."""

    line: str


@dataclass(frozen=True)
class Patient:
    """A subject, and what several checks want to see of it.

    Args:
        split: held-out examples, or training ones where there are none. samples: of the model, (n, *shape), or None
            where it takes too long to draw them. objective: that the model was trained by, where that is known.
    """

    subject: Subject
    split: str
    samples: Tensor | None
    objective: Objective | None = None

    def examples(self, split: str, n: int = EXAMPLES) -> Tensor:
        return self.subject.examples(split, n)

    def scaled(self, x: Tensor) -> Tensor:
        """Examples as vectors (N, D), images on [0, 1]."""
        return unit_scaled(x, self.subject.model.support, self.subject.spec.levels).flatten(1)


Check = Callable[[Patient], Iterator[Sign]]


def examine(subject: Subject, seed: int, thorough: bool = False, objective: Objective | None = None) -> list[Sign]:
    """All that the checks find, by name; those with a line are `Complaint`s.

    The draws come from `seed` alone, and leave training's generators as they are.

    Args:
        thorough: also draw samples that take many steps each, and compare samples with the whole of a large training
            split. That takes seconds, all else a fraction of one. Models with a density are not sampled: some need a
            pass for every element, and what samples would tell of them, the density tells better. Nor are translators,
            whose samples are translations of training inputs, near training examples as they should be.
        objective: that the model was trained by; None if that isn't known, and a critic's outputs are then taken for
            log-odds.
    """
    held_out = "validation" if subject.spec.sizes.get("validation") else "train"
    split = held_out if subject.split == "train" else subject.split
    model = subject.model
    with seeded(seed):
        quick = isinstance(model, Decoder | LatentVariable) and not isinstance(model, Density | ContinuousFlow)
        wanted = quick or (thorough and not isinstance(model, Density | Translator))
        drawn = model.sample(EXAMPLES) if wanted and model.support != "tokens" else None
        patient = Patient(subject, split, drawn, objective)
        limit = None if thorough else QUICK_SEARCH
        checks: list[Check] = [posterior, discriminator, diversity, mixing, generalisation]
        checks.append(lambda patient: memorisation(patient, limit))
        return [sign for check in checks for sign in check(patient)]


def complaints(signs: Sequence[Sign]) -> list[Complaint]:
    """The signs that something is wrong."""
    return [sign for sign in signs if isinstance(sign, Complaint)]


def judge(name: str, number: float, ill: bool, line: str) -> Sign:
    return Complaint(name, number, line) if ill else Sign(name, number)


# --- the checks -----------------------------------------------------------------------------------------------------

COLLAPSED = 0.1
"""Share of latent units that must be active. Working VAEs prune: 19 of 50 are left in Burda et al. 2016 (table 1), and
5 of 50 in the upper layer of their deeper model, of which they complain. With fewer, the latent space is idle."""


def posterior(patient: Patient) -> Iterator[Sign]:
    """Posterior collapse: q(z|x) is the prior whatever x, and the decoder does without z (Bowman et al. 2016)."""
    model = patient.subject.model
    if isinstance(model, LatentVariable):
        batches = patient.subject.batches(patient.split, EXAMPLES)
        means = [centre(model.encode(batch.x, **given(model, batch.y))).flatten(1) for batch in batches]
        used = active(torch.cat(means))
        count, total = int(used.sum()), len(used)
        line = (
            f"posterior collapse: {count} of {total} latent units active; KL warm-up (objective.warmup=0.3), a smaller"
            " objective.beta or a weaker decoder usually helps, or a smaller model.latent_dim if the bound is good"
        )
        yield judge("active_units", float(count), count < COLLAPSED * total, line)


WON = 0.97
"""Of the Jensen-Shannon divergence's greatest value, log 2. Near it the supports of data and samples are apart for D,
and D's gradient tells G nothing (Arjovsky & Bottou 2017, theorems 2.1 and 2.4)."""
PLAYERS = 100  # examples in a batch of the game, for batch normalisation's sake


def discriminator(patient: Patient) -> Iterator[Sign]:
    """A discriminator that has won: the share of log 2 that its estimate of JS(data ‖ samples) reaches.

    JS >= log 2 + (E log D(x) + E log(1 - D(G(z))))/2 for every D (Goodfellow et al. 2014, theorem 1). The networks
    are as in training, where batch normalisation takes its statistics from batches of one kind. Other critics than
    those of log-odds may tell the two apart as well as they can, and still teach the generator.
    """
    subject, objective = patient.subject, patient.objective
    game = objective.game if isinstance(objective, Plays) else objective
    if isinstance(subject.model, Adversarial) and (not isinstance(game, Game) or game.probability):
        model = copy.deepcopy(subject.model).train()
        losses = []
        rows = subject.pipeline.batch_size if model.judges_batches else PLAYERS  # such a critic knows its size of batch
        for batch in subject.batches(patient.split, max(EXAMPLES // rows, 1) * rows, rows):
            if len(batch.x) == 1 < rows:  # what is left over: batch normalisation has no statistics of one example
                continue
            labels = given(model, batch.y)
            fake = model.decode(model.prior.sample((len(batch.x),)).to(subject.device), **labels)
            told = softplus(-model.discriminate(batch.x, **labels)) + softplus(model.discriminate(fake, **labels))
            losses.append(told / 2)
        if not losses:
            return
        share = 1 - float(torch.cat(losses).mean()) / math.log(2)
        line = (
            f"the discriminator has won: it tells samples from data with {share:.3f} bits of 1, so the generator"
            " learns little; objective=label_smoothing, a smaller discriminator or learning rate for it, or noise on"
            " its inputs usually helps"
        )
        yield judge("discriminator", share, share > WON, line)


NARROW = 0.5
"""Of the data's variance. A single class of MNIST has four fifths of it (41.8 of 52.7, pixels in [0, 1]), so samples
with less than half have less variety than one class of the data."""
RARE, MISSING = 0.1, 0.5
"""A class counts as missing if it has under a tenth of its share in the data, a model as collapsed if half are. One
that has all classes, each a tenth of 500 samples, gets none below 1% by chance: 5 of an expected 50."""
FEW = 5  # samples a class without which nothing is said of classes
LABELLED = 2000  # examples whose labels stand for those of the samples nearest to them


def diversity(patient: Patient) -> Iterator[Sign]:
    """Mode collapse: the samples' mean squared distance from one another over that of held-out data, and how many of
    the data's classes are among the samples, by the label of the nearest example."""
    subject = patient.subject
    if patient.samples is None:
        return
    x = patient.scaled(patient.examples(patient.split))
    spread = float(x.var(0).sum()) if len(x) > 1 else 0.0
    game = isinstance(subject.model, Adversarial)
    remedy = ", objective=label_smoothing or another seed" if game else " or longer training"
    advice = f"a smaller learning rate{remedy} usually helps"
    if spread > 0:
        ratio = float(patient.scaled(patient.samples).var(0).sum()) / spread
        line = f"mode collapse: samples vary {ratio:.2g} times as much as the data do; {advice}"
        yield judge("diversity", ratio, ratio < NARROW, line)
    if (subject.spec.classes or 0) > 1:
        known, labels = subject.labelled(patient.split, LABELLED)
        _, at = nearest(patient.scaled(patient.samples), [patient.scaled(known)], 1)
        shares = torch.bincount(labels, minlength=subject.spec.classes or 0).double() / len(labels)
        reached = torch.bincount(labels[at[:, 0]], minlength=len(shares)).double() / len(at)
        there = shares > 0
        found, total = int((reached > RARE * shares)[there].sum()), int(there.sum())
        if len(at) < FEW * total:
            return
        line = f"mode collapse: {found} of {total} classes among the samples; {advice}"
        yield judge("classes", float(found), found <= MISSING * total, line)


CHAINS, SETTLE, STEPS = 50, 10, 25
REMEMBERS = math.exp(-STEPS / 200)
"""The correlation that an exponential decay with a time constant of 200 steps leaves: samples and pictures are taken
after 200 steps, and must have forgotten where they came from by then at least to 1/e."""


def mixing(patient: Patient) -> Iterator[Sign]:
    """A chain that doesn't mix: the autocorrelation of the Markov chain's states, over all elements, after STEPS steps.

    Chains start at data and first take SETTLE steps: those that fall into traps away from the data shall be seen there.
    """
    model = patient.subject.model
    if isinstance(model, MarkovChain):
        state = model.chain_step(model.chain_at(patient.examples(patient.split, CHAINS)), SETTLE)
        x, y = (model.chain_example(s) for s in (state, model.chain_step(state, STEPS)))
        before, after = ((t.float() - t.float().mean(0)).flatten() for t in (x, y))
        scale = float(before.norm() * after.norm())
        if scale > 0:  # else all chains have met: there is nothing to remember
            correlation = float(before @ after) / scale
            line = (
                f"the Markov chain doesn't mix: its states have a correlation of {correlation:.2f} after {STEPS} steps,"
                " so its samples are not the model's; weight decay (optim.weight_decay), a smaller learning rate or"
                f" {'objective=pcd' if isinstance(model, Harmonium) else 'a larger objective.k'} usually helps"
            )
            yield judge("chain_correlation", correlation, correlation > REMEMBERS, line)


OVERFITTED = 0.5
"""Of the standard deviation over examples: a typical held-out example then ranks below seven in ten training ones. The
500-unit RBMs of Salakhutdinov & Murray 2008 have gaps of 2.7 and 3.2 nats, where that deviation is about 30."""


def generalisation(patient: Patient) -> Iterator[Sign]:
    """The gap between training and held-out examples, in nats: of log p(x), of the ELBO, or, for an energy model, of
    -F(x), where the unknown log Z cancels (Hinton 2010, section 6)."""
    if patient.split == "train":
        return
    score = _scorer(patient)
    if score is None:
        return
    train, held = (
        torch.cat([score(batch).double() for batch in patient.subject.batches(split, EXAMPLES)])
        for split in ("train", patient.split)
    )
    if min(len(train), len(held)) < 2:
        return
    gap = float(train.mean() - held.mean())
    deviation = float(held.std())
    error = math.sqrt(float(train.var() / len(train) + held.var() / len(held)))
    line = (
        f"overfitting: training examples are {gap:.1f} nats likelier than held-out ones, whose own spread is"
        f" {deviation:.1f}; more data, fewer steps, weight decay (optim.weight_decay) or a smaller model usually helps"
    )
    yield judge("overfitting_gap", gap, gap > OVERFITTED * deviation and gap > 3 * error, line)


def _scorer(patient: Patient) -> Callable[[Batch], Tensor] | None:
    """What stands for log p(x), of a conditional model log p(x|y), (B,), up to a constant, if anything cheap does."""
    model = patient.subject.model
    if isinstance(model, Density):
        return lambda batch: model.log_prob(batch.x, **given(model, batch.y))
    if isinstance(model, Unnormalised):
        return lambda batch: -model.free_energy(batch.x)
    if isinstance(model, LatentVariable):
        return lambda batch: log_weights(model, batch.x, batch.y, 1).squeeze(0)
    return None


COPY = 1 / 3
"""A sample is a copy if its nearest training example is less than a third as far as the next one (Yoon et al. 2023;
Gu et al. 2023, arXiv:2310.02664)."""
COPIED = 0.1
"""Share of copies beyond that of held-out examples. Points in the plane pass for copies in one case of nine by chance
(3^-D in D dimensions): with 200 of each, chance makes a difference of 0.1 once in a thousand times."""
QUERIES = 200
QUICK_SEARCH = 5000
"""Training examples that are searched while training goes on: larger sets are hardly ever learned by heart, and are
searched by `gentrain evaluate`."""


def memorisation(patient: Patient, limit: int | None) -> Iterator[Sign]:
    """Samples that repeat training examples: the share of copies, held against that among held-out examples.

    Args:
        limit: don't look at training splits larger than this.
    """
    subject = patient.subject
    if patient.samples is None or patient.split == "train" or subject.size("train") > (limit or math.inf):
        return
    pairs = []
    for queries in (patient.samples[:QUERIES], patient.examples(patient.split, QUERIES)):
        keys = (patient.scaled(batch.x) for batch in subject.batches("train"))
        distances, _ = nearest(patient.scaled(queries), keys, 2)
        if distances.shape[1] < 2:
            return
        pairs.append(float((distances[:, 0] < COPY * distances[:, 1]).double().mean()))
    copies, chance = pairs
    line = (
        f"memorisation: {copies:.0%} of the samples are copies of training examples, {chance:.0%} of held-out ones are;"
        " more data, fewer steps or a smaller model usually helps"
    )
    yield judge("copies", copies, copies > chance + COPIED, line)
