"""Training in stages: which objective is on, layers that stay as they are, unrolling, resuming across boundaries."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import bare_trainer, build, differences, fit, learned, resumed
from scipy.stats import chisquare
from torch import Tensor

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.autoencoder import Autoencoder
from gentrain.models.base import Generative
from gentrain.models.deep_autoencoder import DeepAutoencoder, StackedAutoencoder
from gentrain.models.harmonium import LinearRBM
from gentrain.objectives.contrastive import CD
from gentrain.objectives.denoising import Denoising
from gentrain.objectives.greedy import Finetune, Greedy
from gentrain.objectives.reconstruction import Reconstruction
from gentrain.objectives.stages import Stages
from gentrain.trainer import Trainer
from gentrain.update import Objective, Score, Update

STACKS = ["deep_autoencoder", "stacked"]


class Spy(Objective):
    """Notes when it begins and which progress it is told; keeps a count between steps."""

    needs = Generative
    count: Tensor

    def __init__(self, part: str = ""):
        super().__init__()
        self.parts = (part,)
        self.seen: list[float] = []
        self.begun = 0
        self.register_buffer("count", torch.zeros(()))

    def begin(self, model: Generative) -> None:
        self.begun += 1

    def forward(self, model: Generative, batch: Batch, progress: float) -> Iterator[Update]:
        self.seen.append(progress)
        self.count += 1
        yield Update(metrics={"count": self.count.clone()})

    def validate(self, model: Generative, batch: Batch) -> dict[str, Score]:
        return {"count": Score(self.count.expand(len(batch.x)), "count")}


def staged(*shares: float) -> tuple[Stages, list[Spy]]:
    spies = [Spy(f"part{i % 2}") for i in range(len(shares))]
    stages = {f"s{i}": {"share": s, "objective": spy} for i, (s, spy) in enumerate(zip(shares, spies, strict=True))}
    return Stages(stages), spies


# --- which stage ------------------------------------------------------------------------------------------------------


def test_each_stage_has_its_share_and_a_progress_of_its_own() -> None:
    objective, spies = staged(1, 2, 1)
    x = Batch(torch.zeros(3, 2))
    for step in range(40):
        for update in objective(torch.nn.Identity(), x, step / 40):
            assert update.loss is None
    assert [len(spy.seen) for spy in spies] == [10, 20, 10]
    for spy, length in zip(spies, (10, 20, 10), strict=True):
        assert spy.seen == pytest.approx([i / length for i in range(length)])
    assert [spy.begun for spy in spies] == [0, 1, 1], "the first stage follows no other"
    assert objective.parts == ("part0", "part1")


def test_a_stage_without_a_share_is_left_out_and_the_next_begins() -> None:
    stages, (first, middle, second, last) = staged(0, 1, 0, 0)
    x = Batch(torch.zeros(4, 2))
    for progress in (0.0, 0.5, 0.999):
        list(stages(torch.nn.Identity(), x, progress))
    assert (first.begun, middle.begun, second.begun, last.begun) == (0, 1, 0, 0)
    assert middle.seen == [0.0, 0.5, 0.999] and not (first.seen or second.seen or last.seen)


def test_held_out_numbers_are_those_of_the_stage_that_is_on() -> None:
    objective, spies = staged(0.5, 0.5)
    x, model = Batch(torch.zeros(3, 2)), torch.nn.Identity()
    for progress, spy in ((0.0, spies[0]), (0.4, spies[0]), (0.5, spies[1]), (0.9, spies[1])):
        list(objective(model, x, progress))
        assert torch.equal(objective.validate(model, x)["count"].values, spy.count.expand(3))
    assert [int(spy.count) for spy in spies] == [2, 2]


def test_a_stage_that_was_resumed_does_not_begin_again() -> None:
    objective, _ = staged(0.5, 0.5)
    x, model = Batch(torch.zeros(3, 2)), torch.nn.Identity()
    for progress in (0.2, 0.6):
        list(objective(model, x, progress))
    other, spies = staged(0.5, 0.5)
    list(other(model, x, 0.0))  # it knows its stage by now, and must forget it
    other.load_state_dict(objective.state_dict())
    list(other(model, x, 0.7))
    assert spies[1].begun == 0 and int(spies[1].count) == 2
    earlier, _ = staged(0.5, 0.5)
    list(earlier(model, x, 0.2))
    other.load_state_dict(earlier.state_dict())
    list(other(model, x, 0.7))
    assert spies[1].begun == 1, "the state that was loaded had not got there"


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ({}, "at least one stage"),
        ({"a": {"share": 0, "objective": CD()}}, r"stages=\['a'\]: give at least one stage a share above 0"),
        ({"a": {"share": -1, "objective": CD()}}, r"stages.a.share=-1"),
        ({"a": {"share": "x", "objective": CD()}}, r"stages.a.share=x"),
        ({"a": {"share": 1, "objective": {"k": 1}}}, r"stages.a.objective"),
        ({"a": {"objective": CD()}}, r"stages.a: a stage is"),
    ],
)
def test_what_is_no_stage_is_refused(stages: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Stages(stages)


# --- layers -----------------------------------------------------------------------------------------------------------


def trainer_of(folder: Path, model: str, *more: str) -> Trainer:
    return bare_trainer(
        folder, f"model={model}", "data=digits", "model.hidden=[12,8,3]", "trainer.steps=24", "trainer.log_every=5",
        "trainer.sample_every=0", "trainer.evaluate_every=0", "trainer.checkpoint_every=0", "optim.weight_decay=0.1",
        *more,
    )  # fmt: skip


@pytest.mark.parametrize("name", STACKS)
def test_finished_layers_are_bit_identical(name: str, tmp_path: Path) -> None:
    """12 steps for three layers, 12 for the network; weight decay and momentum would move whatever they reach."""
    trainer = trainer_of(tmp_path, name)
    advance, states = trainer._train_step, []
    states.append(copy.deepcopy(trainer.model.state_dict()))

    def step() -> None:
        advance()
        states.append(copy.deepcopy(trainer.model.state_dict()))

    trainer._train_step = step  # type: ignore[method-assign]
    fit(trainer)
    for i in range(24):
        moved = {d.split(".")[1] for d in differences(states[i], states[i + 1])}
        current = f"layer{i // 4 + 1}" if i < 12 else "network"
        allowed = {current, "unrolled"} if i == 12 else {current}
        assert current in moved and moved - {"gaussian"} <= allowed, (i, moved)
    assert states[12]["unrolled"] == 0 and states[13]["unrolled"] == 1


@pytest.mark.parametrize(("name", "tied"), [("deep_autoencoder", True), ("stacked", True), ("stacked", False)])
def test_the_network_is_born_as_the_stacks_way_up_and_down(name: str, tied: bool) -> None:
    options = [] if tied else ["model.tied=false"]
    made = build(f"model={name}", "data=digits", "model.hidden=[12,8,3]", *options)
    model = made.model
    assert isinstance(model, DeepAutoencoder | StackedAutoencoder)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    model.eval()
    x = made.pipeline.batch(0).x
    h = x.flatten(1)
    for i in (1, 2, 3):  # by hand
        ends = model.ends(i)
        assert torch.equal(ends.weight.t(), ends.back) == tied
        h = h @ ends.weight.t() + ends.up
        h = torch.sigmoid(h) if i < 3 else h
    torch.testing.assert_close(model.codes(x), h)
    y = h
    for i in (3, 2, 1):
        y = torch.sigmoid(y @ model.ends(i).back.t() + model.ends(i).down)
    torch.testing.assert_close(model.reconstruct(x).flatten(1), y)
    before = model.codes(x), model.reconstruct(x), model.filters()
    model.unroll()
    assert model.unrolled == 1
    for a, b in zip(before, (model.codes(x), model.reconstruct(x), model.filters()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    first = model.get_parameter("network.encoder.1.weight")
    with torch.no_grad():
        first.add_(1)
    assert not torch.equal(model.codes(x), before[0]), "from then on the network has weights of its own"
    assert torch.equal(model.ends(1).weight.view_as(before[2]), before[2])


def test_dropout_leaves_inputs_of_the_encoders_layers_out_in_training_alone() -> None:
    """Of W h + c with h_j kept and divided by 1 - p the mean is the whole's, the variance Σ_j w_j² h_j² p/(1 - p)."""
    torch.manual_seed(3)
    model = StackedAutoencoder((1, 2, 2), levels=2, hidden=[6, 2])
    model.unroll()
    for p in model.network.parameters():
        torch.nn.init.normal_(p)
    x = torch.rand(1, 1, 2, 2)
    hidden = model.network["encoder"][:3](x)
    last = model.get_submodule("network.encoder.3")
    assert isinstance(last, torch.nn.Linear)
    many = x.expand(40_000, 1, 2, 2)
    codes = model.noisy_codes(many, [0.0, 0.4])
    deviation = (hidden * last.weight).square().sum(1).mul(0.4 / 0.6).sqrt()
    torch.testing.assert_close(codes.std(0), deviation, rtol=0.02, atol=0)
    assert bool(((codes.mean(0) - model.codes(x)[0]).abs() < 4 * deviation / 200).all())
    # some of 40,000 have lost every input of the first layer, and none all the others' too
    first = model.network["encoder"][:3](torch.zeros_like(x))
    lost = (model.noisy_codes(many, [0.9, 0.0]) - last(first)).abs().amax(1) < 1e-5
    assert lost.float().mean().item() == pytest.approx(0.9**4, abs=0.01)
    assert float(model.noisy_codes(many, [0.9, 0.9]).sub(last(first)).abs().amax(1).lt(1e-5).float().mean()) < 0.01

    batch, tuning = Batch(torch.rand(50, 1, 2, 2)), Finetune(dropout=[0.2, 0.5])
    model.train()
    one, other = (next(tuning(model, batch, 0.0)).loss for _ in range(2))
    assert one is not None and other is not None and one != other
    model.eval()
    held_out = tuning.validate(model, batch)["cross_entropy"].values
    assert torch.equal(held_out, Finetune().validate(model, batch)["cross_entropy"].values)
    with pytest.raises(UsageError, match=r"objective.dropout=\[0.2, 0.5, 0.5\]: there are 2 layers"):
        Finetune(dropout=[0.2, 0.5, 0.5]).require(model)


def test_a_layer_learns_from_what_lies_below_it() -> None:
    """Greedy training is the inner objective on the codes of the layers below, draw for draw."""
    made = build("model=stacked", "data=digits", "model.hidden=[12,8,3]")
    model, batch = made.model, made.pipeline.batch(0)
    assert isinstance(model, StackedAutoencoder)
    inner = Denoising("mask", 0.3)
    greedy = Greedy([12, 8, 3], inner)
    for progress, i in ((0.0, 1), (0.4, 2), (0.9, 3)):
        torch.manual_seed(0)
        (update,) = greedy(model, batch, progress)
        h = batch.x
        for below in range(1, i):
            layer = model.layer(below)
            assert isinstance(layer, Autoencoder)
            h = layer.codes(h.flatten(1) if below > 1 else h).detach()
        torch.manual_seed(0)
        (wanted,) = inner(model.layer(i), Batch(h), 0.0)
        assert update.part == f"layer{i}" and torch.equal(update.loss, wanted.loss)
        assert {*update.metrics} == {f"layer{i}/{name}" for name in wanted.metrics}
        assert {*greedy.validate(model, batch)} == {f"layer{i}/cross_entropy"}
        assert update.loss is not None
        used = torch.autograd.grad(update.loss, [*model.layer1.parameters()], allow_unused=True)
        assert (i == 1) == any(g is not None for g in used)


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("pause", [4, 11, 12, 13])
def test_stopping_at_and_around_a_boundary_changes_nothing(name: str, pause: int, tmp_path: Path) -> None:
    more = ["optim.schedule=cosine", "trainer.ema=0.8"]
    whole = fit(trainer_of(tmp_path / "whole", name, *more))
    first = fit(trainer_of(tmp_path / "parts", name, *more), until=pause)
    second = fit(resumed(trainer_of(tmp_path / "parts", name, *more)))
    assert differences(learned(whole.state_dict()), learned(second.state_dict())) == []
    assert whole.report.filed == first.report.filed + second.report.filed  # type: ignore[attr-defined]
    assert whole.averaged.unrolled > 0  # type: ignore[operator]


@pytest.mark.parametrize("name", STACKS)
def test_stages_of_digits_end_well(name: str, tmp_path: Path) -> None:
    trainer = fit(bare_trainer(
        tmp_path, f"model={name}", "data=digits", "model.hidden=[60,8]", "trainer.steps=1000", "optim.lr=5e-3",
    ))  # fmt: skip
    model = trainer.model.eval()
    assert isinstance(model, DeepAutoencoder | StackedAutoencoder)
    x = next(trainer.pipeline.evaluation("test", 300)).x
    error = (x - model.reconstruct(x)).square().sum()
    assert error < 0.6 * (x - trainer.pipeline.mean()).square().sum()


# --- an RBM with linear hidden units ----------------------------------------------------------------------------------


def test_linear_hidden_units_are_integrated_out_rightly() -> None:
    """exp(-F(v)) against the integral of exp(-E(v, h)) over h, by a fine grid, up to one constant."""
    torch.manual_seed(0)
    rbm = LinearRBM((3,), hidden=1)
    with torch.no_grad():
        for p in rbm.parameters():
            p.copy_(torch.randn_like(p))
    v = torch.tensor([[float(b) for b in f"{i:03b}"] for i in range(8)])
    h = torch.linspace(-15, 15, 20_001, dtype=torch.float64)
    W, b, c = (p.double() for p in (rbm.weight[0], rbm.visible_bias, rbm.hidden_bias))
    energy = 0.5 * (h - c).square() - h * (v.double() @ W)[:, None] - (v.double() @ b)[:, None]
    integral = torch.logsumexp(-energy, 1)
    wanted = integral - integral[0]
    free = -(rbm.free_energy(v) - rbm.free_energy(v)[0]).double()
    torch.testing.assert_close(free, wanted, rtol=1e-5, atol=1e-5)
    weights = torch.softmax(-energy, 1)
    torch.testing.assert_close(rbm.hidden_probability(v)[:, 0].double(), weights @ h, rtol=1e-5, atol=1e-5)
    p = torch.softmax(-rbm.free_energy(v).double(), 0).detach()
    start = v[torch.multinomial(p, 40_000, replacement=True)]
    counts = torch.bincount((rbm.gibbs(start, 1) @ torch.tensor([4.0, 2.0, 1.0])).long(), minlength=8)
    assert chisquare(counts.numpy(), (p * 40_000).numpy()).pvalue > 1e-4
    data, chain = v[[1, 5]], v[[2, 3, 7]]
    loss = rbm.free_energy(data).mean() - rbm.free_energy(chain).mean()
    wanted = dict(zip(dict(rbm.named_parameters()), torch.autograd.grad(loss, list(rbm.parameters())), strict=True))
    found = rbm.energy_gradient((data, rbm.hidden_probability(data)), (chain, rbm.hidden_probability(chain)))
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model=deep_autoencoder", "data=ring"], "use model=stacked"),
        (["model=deep_autoencoder", "model.hidden=[]"], r"model.hidden=\[\]"),
        (["model=stacked", "model.hidden=[]"], r"model.hidden=\[\]"),
        (["model=stacked", "objective=reconstruction"], "pretrain_autoencoder"),
        (["model=stacked", "objective=pretrain_rbm"], "is no RBMStack"),
        (["model=deep_autoencoder", "objective.stages.pretrain.share=-1"], r"stages.pretrain.share=-1"),
        (["model=deep_autoencoder", "objective.stages.pretrain.objective.hidden=[3]"], "1 layers, and the model has 3"),
        (["model=stacked", "objective.stages.pretrain.objective.inner.level=2"], "level=2"),
        (["model=stacked", "objective.stages.pretrain.objective.inner.levle=2"], "levle"),
        (["model=deep_autoencoder", "objective.stages.pretrain.objective.inner.k=0"], r"inner.k=0"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(overrides: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words) as refusal:
        build(*overrides)
    assert "\n" not in str(refusal.value)


def test_parts_are_set_by_patterns() -> None:
    made = build(
        "model=deep_autoencoder", "optim=adam", "optim.parts={layer*: {lr: 0.5}, layer2: {lr: 0.25}}", "optim.lr=0.125"
    )
    rates = {
        part: made.optim.build(part, made.model.get_submodule(part)).defaults["lr"] for part in made.objective.parts
    }
    assert rates == {"layer1": 0.5, "layer2": 0.25, "layer3": 0.5, "network": 0.125}
    with pytest.raises(UsageError, match=r"optim.parts.lyaer\*"):
        build("model=deep_autoencoder", "optim=adam", "optim.parts={lyaer*: {lr: 0.5}}")


def test_an_inner_objective_that_can_not_train_a_layer_is_refused() -> None:
    model = DeepAutoencoder((1, 2, 2), levels=2, hidden=[3, 2])
    with pytest.raises(UsageError, match="layer 1 of DeepAutoencoder is no Autoencoding but RBM"):
        Greedy([3, 2], Reconstruction()).require(model)
    stages = Stages({"only": {"share": 1, "objective": Reconstruction()}})
    with pytest.raises(UsageError, match=r"stages.only: Reconstruction can't train DeepAutoencoder"):
        stages.require(model)
    Stages({"only": {"share": 1, "objective": Finetune()}}).require(model)
