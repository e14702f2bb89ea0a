"""Deep belief networks: likelihoods, bounds and samples against plain sums, up-down against a plain pass, stages."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers import bare_trainer, build, fit
from torch import Tensor
from torch.nn.functional import one_hot

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.evaluation.ais import anneal, betas
from gentrain.models.base import given
from gentrain.models.belief import Directed
from gentrain.models.dbn import DBN
from gentrain.models.label_rbm import LabelRBM
from gentrain.models.rbm import RBM
from gentrain.objectives.classify import Classify
from gentrain.objectives.contrastive import PCD
from gentrain.objectives.greedy import Greedy
from gentrain.objectives.up_down import UpDown
from gentrain.truth.spaces import chi_square, critical, discrete
from gentrain.update import Objective

X = discrete((1, 2, 2), 2).points


def tiny(hidden: tuple[int, ...] = (3, 2), classes: int | None = None, untied: bool = True, seed: int = 0) -> DBN:
    """Four bits, with weights of order one, larger ones to labels, or x would hardly know of them. Recognition and
    generation by weights of their own, or by the stack's."""
    torch.manual_seed(seed)
    model = DBN((1, 2, 2), hidden, classes, burn_in=30)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(1.5 * torch.randn_like(p))
        model.top.weight[:, model.sizes[-2] :] *= 3
    model.untied.fill_(untied)
    return model.eval()


def weights(model: DBN) -> tuple[Sequence[tuple[Tensor, Tensor]], Sequence[tuple[Tensor, Tensor]]]:
    """(W, c) upwards from x, and downwards to x, the latter from the lowest."""
    below = range(1, model.depth)
    if model.untied > 0:
        up = [(model.recognition.linear(i).weight, model.recognition.linear(i).bias) for i in below]
        down = [(model.generative.linear(-i).weight, model.generative.linear(-i).bias) for i in below]
        return up, down
    rbms = [model.get_submodule(f"layer{i}") for i in below]
    assert all(isinstance(rbm, RBM) for rbm in rbms)
    return (
        [(rbm.weight, rbm.hidden_bias) for rbm in rbms],  # type: ignore[misc]
        [(rbm.weight.t(), rbm.visible_bias) for rbm in rbms],  # type: ignore[misc]
    )


def bits(n: int) -> Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=n)))


def log_joint(model: DBN) -> Tensor:
    """log p(x, y) for all x of X and labels (one, where there are none), (16, K), by sums over everything."""
    _, down = weights(model)
    top, classes = model.top, model.classes or 1
    labels = torch.eye(classes) if model.classes else torch.zeros(1, 0)
    pens, tops = bits(model.sizes[-2]), bits(model.sizes[-1])
    memory = torch.zeros(len(pens), classes, dtype=torch.float64)  # log Σ_h_L exp(-E) of each h_{L-1} and y
    for i, h in enumerate(pens):
        for k in range(classes):
            v = torch.cat([h, labels[k]])
            energies = [-(g @ top.weight @ v) - top.visible_bias @ v - top.hidden_bias @ g for g in tops]
            memory[i, k] = torch.logsumexp(-torch.stack(energies).double(), 0)
    memory -= torch.logsumexp(memory.flatten(), 0)
    table, states = memory, pens
    for i in range(model.depth - 1, 0, -1):  # log p(h_{i-1}, y) from log p(h_i, y)
        W, c = down[i - 1]
        lower = bits(model.sizes[i - 1]) if i > 1 else X.flatten(1)
        p = torch.sigmoid(states @ W.t() + c).double()
        log_p = torch.stack([(lower * p[j].log() + (1 - lower) * (1 - p[j]).log()).sum(1) for j in range(len(p))], 1)
        table = torch.logsumexp(log_p[:, :, None] + table[None], 1)
        states = lower
    return table.detach()


CASES = [((3, 2), None, True), ((3, 2), 3, False), ((3, 2, 4), None, False), ((2, 3, 2), 2, True)]


@pytest.mark.parametrize(("hidden", "classes", "untied"), CASES)
def test_exact_likelihood_bound_and_samples_against_the_sum_over_all_states(
    hidden: tuple[int, ...], classes: int | None, untied: bool
) -> None:
    model = tiny(hidden, classes, untied)
    joint = log_joint(model)
    exact = torch.logsumexp(joint, 1)
    assert float(exact.exp().sum()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(model.log_prob(X).double(), exact, atol=1e-4, rtol=1e-5)

    log_z = model.log_partition()
    assert log_z is not None
    torch.manual_seed(1)
    draws = torch.stack([model.log_bound(X).double() for _ in range(2000)]) - log_z
    assert ((draws.mean(0) - exact) < 5 * draws.std(0) / len(draws) ** 0.5 + 1e-4).all()
    torch.testing.assert_close(draws.mean(0), exact_bound(model) - log_z, atol=0.2, rtol=0.02)

    samples = (model.sample(20_000).flatten(1) @ torch.tensor([1.0, 2.0, 4.0, 8.0])).long()
    statistic, freedom = chi_square(torch.bincount(samples, minlength=16), 20_000 * exact.exp())
    assert statistic < critical(freedom)
    for y in range(classes or 0):
        clamped = model.sample(20_000, y=torch.full((20_000,), y)).flatten(1) @ torch.tensor([1.0, 2.0, 4.0, 8.0])
        expected = 20_000 * torch.softmax(joint[:, y], 0)
        statistic, freedom = chi_square(torch.bincount(clamped.long(), minlength=16), expected)
        assert statistic < critical(freedom)


def exact_bound(model: DBN) -> Tensor:
    """E_q[log p*(x, h) - log q(h|x)] for all x of X, by the sum over all h."""
    up, down = weights(model)
    total = torch.zeros(len(X), dtype=torch.float64)
    for h in itertools.product(*(bits(n) for n in model.sizes[1:-1])):
        for j, x in enumerate(X.flatten(1)):
            log_q = log_p = torch.zeros((), dtype=torch.float64)
            for (W, c), (V, b), (low, high) in zip(up, down, pairwise((x, *h)), strict=True):
                q, p = torch.sigmoid(W @ low + c).double(), torch.sigmoid(V @ high + b).double()
                log_q = log_q + torch.where(high > 0, q, 1 - q).log().sum()
                log_p = log_p + torch.where(low > 0, p, 1 - p).log().sum()
            log_p = log_p - model.top.free_energy(h[-1][None])[0].double()
            total[j] += (log_q.exp() * (log_p - log_q)).detach()
    return total


def test_a_transposed_layer_on_top_leaves_the_distribution_as_it_is() -> None:
    """Tied at birth: then Q is the true posterior, and the bound is the likelihood (Hinton et al. 2006, section 4)."""
    model = tiny((3, 4), untied=False)
    assert model.begin(2)
    rbm = model.get_submodule("layer1")
    assert isinstance(rbm, RBM)
    torch.testing.assert_close(model.log_prob(X), rbm.log_prob(X), atol=1e-5, rtol=1e-5)
    log_z = model.log_partition()
    assert log_z is not None
    torch.testing.assert_close((exact_bound(model) - log_z).float(), rbm.log_prob(X), atol=1e-4, rtol=1e-5)
    labelled = tiny((3, 4), classes=2, untied=False)
    assert labelled.begin(2)
    top = labelled.top
    torch.testing.assert_close(top.weight[:, :3], labelled.get_submodule("layer1").weight.t())  # type: ignore[union-attr]
    assert top.weight.shape == (4, 5) and not tiny((3, 2)).begin(2)
    wide = tiny((3, 6), untied=False)
    with torch.no_grad():  # what units without weights do to p*(x) is the same for all x
        wide.top.weight[4:] = 0
    assert wide.begin(2)
    torch.testing.assert_close(wide.log_prob(X), wide.get_submodule("layer1").log_prob(X), atol=1e-5, rtol=1e-5)  # type: ignore[operator]


def test_annealing_reaches_log_z_of_a_top_with_labels() -> None:
    model = tiny((4, 3), classes=3)
    path = model.tempered(torch.cat([torch.full((4,), 0.3), torch.tensor([0.5, 0.3, 0.2])]))
    torch.manual_seed(0)
    *_, weights = anneal(path, path.start(2000), [*pairwise(betas([(1.0, 100)]))])
    log_z, w = model.log_partition(), weights.exp()
    assert log_z is not None
    ratio = math.exp(float(log_z) - path.log_partition)
    assert abs(float(w.mean()) - ratio) < 5 * float(w.std()) / len(w) ** 0.5
    reached = path.start(2000)
    for _ in range(30):
        reached = path.transition(reached, 1.0)
    label = path.example(reached)[:, 4:]
    assert (label.sum(1) == 1).all()
    p = torch.softmax(model.top.log_partitions(), 0)  # type: ignore[union-attr]
    statistic, freedom = chi_square(label.sum(0), 2000 * p)
    assert statistic < critical(freedom)


def test_labels_by_free_energy_against_the_sum_over_the_top_units() -> None:
    model = tiny((3, 2), classes=3)
    top, h = model.top, torch.sigmoid(X.flatten(1) @ weights(model)[0][0][0].t() + weights(model)[0][0][1])
    for j in range(len(X)):
        scores = []
        for y in torch.eye(3):
            v = torch.cat([h[j], y])
            scores.append(
                sum(torch.exp(g @ top.weight @ v + top.visible_bias @ v + top.hidden_bias @ g) for g in bits(2))
            )
        wanted = torch.stack(scores).log().log_softmax(0)  # type: ignore[arg-type]
        torch.testing.assert_close(model.log_class(X)[j], wanted, atol=1e-5, rtol=1e-4)


# --- up-down ----------------------------------------------------------------------------------------------------------


def test_up_down_is_the_pass_of_the_papers_appendix() -> None:
    """Every gradient against outer products of states drawn in the same order, all before any weight moves."""
    hidden = (3, 2, 3, 4)
    model, x, y = tiny(hidden, classes=2), X[[3, 6, 9, 12, 5]], torch.tensor([0, 1, 1, 0, 1])
    torch.manual_seed(3)
    updates = list(UpDown(hidden, k=2)(model, Batch(x, y), 0.0))
    assert [u.part for u in updates] == ["generative", "layer4", "recognition"]

    def passed(s: Tensor, network: Directed) -> list[Tensor]:
        """s and all the layers drawn after it."""
        sizes = [len(network.linear(i).bias) for i in (1, 2, 3)]
        states = [s]
        for i, u in enumerate(torch.rand(5, sum(sizes)).split(sizes, 1), 1):
            states.append((u < torch.sigmoid(network.linear(i)(states[-1]))).float())
        return states

    def deltas(network: Directed, states: list[Tensor]) -> list[Tensor]:
        found = []
        for i, (s, target) in enumerate(pairwise(states), 1):
            error = torch.sigmoid(network.linear(i)(s)) - target
            found += [error.t() @ s / 5, error.mean(0)]
        return found

    torch.manual_seed(3)
    up, top = passed(x.flatten(1), model.recognition), model.top
    data = chain = torch.cat([up[-1], one_hot(y, 2).float()], 1)
    p = probability = torch.sigmoid(data @ top.weight.t() + top.hidden_bias)
    for _ in range(2):
        field = (torch.rand(p.shape) < p).float() @ top.weight + top.visible_bias
        pen = (torch.rand(5, 3) < torch.sigmoid(field[:, :3])).float()
        gumbel = field[:, 3:] - (-torch.rand(5, 2).log()).log()
        chain = torch.cat([pen, one_hot(gumbel.argmax(1), 2).float()], 1)
        p = torch.sigmoid(chain @ top.weight.t() + top.hidden_bias)
    down = passed(chain[:, :3], model.generative)
    wanted = deltas(model.generative, up[::-1]), deltas(model.recognition, down[::-1])
    for update, gradient in zip((updates[0], updates[2]), wanted, strict=True):
        found = torch.autograd.grad(update.loss, [*model.get_submodule(update.part).parameters()])  # type: ignore[arg-type]
        for a, b in zip(found, gradient, strict=True):
            torch.testing.assert_close(a, b)
    grads = updates[1].grads
    assert grads is not None
    torch.testing.assert_close(grads["weight"], (p.t() @ chain - probability.t() @ data) / 5)
    torch.testing.assert_close(grads["visible_bias"], (chain - data).mean(0))
    torch.testing.assert_close(grads["hidden_bias"], (p - probability).mean(0))


def descend(model: DBN, objective: Objective, batches: list[Batch], rate: float = 0.02) -> None:
    """Adam on every part, as the trainer would have it."""
    optimizers = {part: torch.optim.Adam(model.get_submodule(part).parameters(), rate) for part in objective.parts}
    for i, batch in enumerate(batches):
        for update in objective(model, batch, i / len(batches)):
            if update.loss is None and update.grads is None:
                continue
            module = model.get_submodule(update.part)
            optimizers[update.part].zero_grad()
            if update.loss is not None:
                update.loss.backward(inputs=[*module.parameters()])
            for name, g in (update.grads or {}).items():
                module.get_parameter(name).grad = g
            optimizers[update.part].step()


def skewed(n: int) -> tuple[Tensor, list[Batch]]:
    """A distribution over X whose bits go together, p (16,), and n batches of it with labels: how many bits are on."""
    p = torch.full((16,), 0.2 / 14).double()
    p[0] = p[-1] = 0.4
    torch.manual_seed(0)
    rows = [torch.multinomial(p, 32, replacement=True) for _ in range(n)]
    return p, [Batch(X[r], (X[r].flatten(1).sum(1) > 2).long()) for r in rows]


@pytest.mark.parametrize("classes", [None, 2])
def test_up_down_raises_the_exact_likelihood(classes: int | None) -> None:
    p, batches = skewed(500)
    torch.manual_seed(0)
    model = DBN((1, 2, 2), (4, 3), classes)
    before = float(model.log_prob(X).double() @ p)
    descend(model, UpDown((4, 3)), batches, 0.03)
    entropy = float((p * p.log()).sum())
    assert float(model.log_prob(X).double() @ p) > before + 0.5 * (entropy - before)


# --- stages -----------------------------------------------------------------------------------------------------------


def parameters(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_finished_layers_stay_bit_for_bit_and_the_next_begins_transposed(tmp_path: Path) -> None:
    overrides = ["model=dbn", "data=bars", "data.labels=true", "model.hidden=[7,9,8]", "trainer.steps=12"]
    trainer = bare_trainer(tmp_path, *overrides, "optim.schedule=constant")
    model, objective = trainer.model, trainer.objective
    moved: dict[str, set[int]] = {}
    states = [parameters(model)]
    advance = trainer._train_step

    def step() -> None:
        advance()
        states.append(parameters(model))

    trainer._train_step = step  # type: ignore[method-assign]
    fit(trainer)
    for i, (before, after) in enumerate(pairwise(states)):
        for name in before:
            if not torch.equal(before[name], after[name]):
                moved.setdefault(name.split(".")[0], set()).add(i)
    ends = {"layer1": {0, 1}, "layer2": {2, 3}, "layer3": {4, 5, *range(6, 12)}}
    assert {name: steps for name, steps in moved.items() if name in ends} == ends
    assert moved["generative"] == moved["recognition"] == set(range(6, 12)) and "classifier" not in moved
    assert objective.leaves == ("classifier",)
    first, second = states[2]["layer1.weight"], states[3]["layer2.weight"]  # layer 2 has as many units as x
    assert second.shape == (9, 7) and (second - first.t()).norm() < 0.5 * first.norm()
    assert model.untied == 1  # type: ignore[comparison-overlap]


def test_the_last_layer_may_have_an_objective_of_its_own(tmp_path: Path) -> None:
    top = "{_target_: gentrain.objectives.contrastive.PCD, hidden: 8, particles: 5}"
    overrides = ["model=dbn", "objective=greedy", "data=bars", "model.hidden=[7,6,8]", "trainer.steps=6"]
    trainer = bare_trainer(tmp_path, *overrides, f"objective.stages.greedy.objective.top={top}")
    [greedy] = [m for m in trainer.objective.modules() if isinstance(m, Greedy)]
    assert isinstance(greedy.top, PCD)
    chains, metrics = [greedy.top.particles.clone()], []
    x = torch.zeros(4, 1, 3, 3)
    for progress in (0.0, 0.4, 0.7, 0.9):
        metrics.append([set(update.metrics) for update in greedy(trainer.model, Batch(x), progress)])
        chains.append(greedy.top.particles.clone())
    assert [torch.equal(a, b) for a, b in pairwise(chains)] == [True, True, False, False]
    assert {"layer2/chain_distance"} in metrics[1] and {"layer3/hidden_activity"} in metrics[2]
    with pytest.raises(UsageError, match=r"objective\.hidden=7: .* which are 8;"):
        Greedy([7, 6, 8], greedy.inner, top=PCD(7)).require(trainer.model)
    with pytest.raises(UsageError, match=r"objective\.top=UpDown: trains the parts"):
        Greedy([7, 6, 8], greedy.inner, top=UpDown([7, 6, 8]))


def test_the_classifier_begins_where_the_network_is_and_learns_alone() -> None:
    _, batches = skewed(200)
    model = tiny((5, 4), classes=2)
    h = model.expected(X)
    top = torch.sigmoid(h @ model.top.weight[:, :5].t() + model.top.hidden_bias)
    wanted = top @ model.top.weight[:, 5:] + model.top.visible_bias[5:]
    own = model.log_class(X)
    objective = Classify()
    objective.begin(model)
    torch.testing.assert_close(model.logits(X), wanted)
    torch.testing.assert_close(model.log_class(X), wanted.log_softmax(1))
    assert not torch.allclose(model.log_class(X), own)
    before = parameters(model)
    descend(model, objective, batches)
    changed = {name.split(".")[0] for name, p in parameters(model).items() if not torch.equal(p, before[name])}
    assert changed == {"classifier"}
    y = (X.flatten(1).sum(1) > 2).long()
    assert (model.log_class(X).argmax(1) == y)[[0, 15]].all()
    scores = objective.validate(model, Batch(X, y))
    torch.testing.assert_close(scores["class_cross_entropy"].values, -model.log_class(X)[range(16), y])
    torch.testing.assert_close(scores["classification_error"].values.bool(), model.log_class(X).argmax(1) != y)


def test_without_labels_nothing_is_known_of_them_before_the_classifier() -> None:
    torch.manual_seed(0)
    model = DBN((1, 2, 2), (3, 2), classes=2, labels=False)
    assert isinstance(model.top, RBM) and not model.knows_labels and given(model, torch.zeros(3)) == {}
    with pytest.raises(UsageError, match="trained without labels"):
        model.log_class(X)
    model.begin_classifier()
    assert model.knows_labels and torch.allclose(model.log_class(X).exp(), torch.full((16, 2), 0.5))
    assert isinstance(DBN((1, 2, 2), (3, 2), classes=2).top, LabelRBM)


def test_grey_levels_are_probabilities_and_have_no_bound() -> None:
    made = build("model=dbn", "data=digits", "model.grey=true", "model.hidden=[8,8]")
    x = made.model.sample(50)
    assert made.model.support == "unit" and ((x > 0) & (x < 1)).float().mean() > 0.9
    assert "variational_free_energy" not in UpDown([8, 8]).validate(made.model, made.pipeline.batch(0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.hidden=[5]"], "model=rbm has one"),
        (["data=bars", "model.labels=true"], "model.labels=true: these data have no labels"),
        (["data=bars", "objective=dbn_classifier"], "no labels to be a classifier of"),
        (["objective.stages.up_down.objective.hidden=[3]"], "1 layers, and the model has 2"),
        (["objective=cd"], "is no Harmonium"),
        (["model=rbm", "objective=up_down"], "is no DBN"),
        (["objective.stages.up_down.objective.k_final=1"], "k_final=1"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(overrides: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words) as refusal:
        build("model=dbn", *overrides)
    assert "\n" not in str(refusal.value)
