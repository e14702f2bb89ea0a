"""Layers of adversarial networks against plain loops: reference batches, minibatch features, spectral norm."""

from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SMALL, bare_trainer, build, fit
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, linear

import gentrain
from gentrain import config
from gentrain.batch import Batch
from gentrain.data.embedded import digits
from gentrain.data.pipeline import Pipeline
from gentrain.errors import UsageError
from gentrain.models.gan import DCGAN, GAN
from gentrain.models.minibatch import MinibatchDeviation, MinibatchDiscrimination
from gentrain.models.normalisation import Norm, ReferenceBatchNorm, VirtualBatchNorm
from gentrain.models.players import Network
from gentrain.objectives.adversarial import NonSaturating
from gentrain.optim import Adam
from gentrain.tasks.check import check, exact_resume
from gentrain.truth.base import prove
from gentrain.truth.objectives import case_of

R = 4
"""Examples in the reference batches here."""
ADAM = Adam(1e-3, 0.0, "constant", 0.0, 0.0, None, (0.9, 0.999), 1e-8)


def normalised(layer: ReferenceBatchNorm, values: Tensor, group: Tensor, channel: int) -> Tensor:
    """Some of a channel's values by the mean and the variance of a group of values."""
    mean = sum(group.flatten().tolist()) / group.numel()
    variance = sum((v - mean) ** 2 for v in group.flatten().tolist()) / group.numel()
    return layer.weight[channel] * (values - mean) / math.sqrt(variance + 1e-5) + layer.bias[channel]


@pytest.mark.parametrize("places", [(), (2, 3)])
@pytest.mark.parametrize("kind", [VirtualBatchNorm, ReferenceBatchNorm])
def test_normalisation_by_a_reference_by_hand(kind: type[ReferenceBatchNorm], places: tuple[int, ...]):
    torch.manual_seed(0)
    layer = kind(3, R).double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x = 5 + torch.randn(6 + R, 3, *places).double()
    found, reference = layer(x), x[6:]
    for c in range(3):
        for i in range(6 + R):
            own = i < 6 and kind is VirtualBatchNorm  # the reference goes by its own statistics
            group = torch.cat([reference[:, c], x[i : i + 1, c]]) if own else reference[:, c]
            torch.testing.assert_close(found[i, c], normalised(layer, x[i, c], group, c))


def test_statistics_far_from_zero_lose_nothing():
    """The difference of two mean squares would: 10,000² has no room for 1 in float32."""
    torch.manual_seed(0)
    x = torch.randn(5 + R, 2)
    layer = VirtualBatchNorm(2, R)
    torch.testing.assert_close(layer(x + 1e4), layer(x), atol=5e-3, rtol=0)


def test_a_whole_generator_by_hand():
    """The reference goes through every layer, by its own statistics, and the weights learn through it as well."""
    torch.manual_seed(1)
    gan = GAN((2,), latent_dim=3, hidden=[5, 4], norm="virtual", reference=R)
    layers: list[Any] = list(gan.generator)
    z, reference = torch.randn(6, 3), gan.generator.reference
    assert isinstance(reference, Tensor) and reference.shape == (R, 3)
    h, r = z, reference
    for i in (0, 3):
        dense, norm = layers[i], layers[i + 1]
        h, r = linear(h, dense.weight), linear(r, dense.weight)
        rows = []
        for example in h:
            group = torch.cat([r, example[None]])
            rows.append((example - group.mean(0)) / (group.var(0, correction=0) + 1e-5).sqrt())
        h, r = torch.stack(rows), (r - r.mean(0)) / (r.var(0, correction=0) + 1e-5).sqrt()
        h, r = (leaky_relu(norm.weight * v + norm.bias, 0.2) for v in (h, r))
    expected = linear(h, layers[6].weight, layers[6].bias)
    torch.testing.assert_close(gan.decode(z), expected)
    parameters = list(gan.generator.parameters())
    ours = torch.autograd.grad(gan.decode(z).square().sum(), parameters)
    theirs = torch.autograd.grad(expected.square().sum(), parameters)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def referred(norm: Any, **more: Any) -> GAN | DCGAN:
    """A model whose both players are normalised so, with a reference."""
    if more.pop("images", False):
        gan = DCGAN((1, 16, 16), levels=17, latent_dim=3, channels=2, norm=norm, reference=R, **more)
        examples = torch.rand(R, 1, 16, 16) * 2 - 1
    else:
        gan = GAN((2,), latent_dim=3, hidden=[6, 5], norm=norm, reference=R, **more)
        examples = torch.randn(R, 2)
    if gan.reference_size:
        gan.take_reference(Batch(examples))
    return gan


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize(("norm", "alone"), [("virtual", True), ("reference", True), ("batch", False)])
def test_an_example_depends_on_itself_and_the_reference(norm: str, alone: bool, images: bool):
    """In training: whatever else is in the batch, and on whichever process. Batch normalisation is otherwise."""
    torch.manual_seed(2)
    gan = referred(norm, images=images)
    z, others = torch.randn(6, 3), torch.randn(6, 3)
    x = gan.decode(z).detach()
    for play, inputs, strangers in ((gan.decode, z, others), (gan.discriminate, x, -x), (gan.features, x, -x)):
        with torch.no_grad():
            whole = play(inputs)
            elsewhere = play(torch.cat([inputs[:2], strangers[2:]]))[:2]
            shares = torch.cat([play(inputs[3:]), play(inputs[:3])]).roll(3, 0)
        assert torch.allclose(elsewhere, whole[:2], atol=1e-5) is alone
        assert torch.allclose(shares, whole, atol=1e-5) is alone
    if alone:
        reference = gan.generator.reference
        assert reference is not None
        reference.mul_(2)
        assert not torch.allclose(gan.decode(z), x, atol=1e-3), "another reference, another output"


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3, 3)])
def test_normalisation_by_the_example(shape: tuple[int, ...]):
    torch.manual_seed(3)
    x = 2 + 3 * torch.randn(shape)
    (layer,) = Norm("layer", 1).layers(4, len(shape) - 2)
    (batch,) = Norm("batch", 1).layers(4, len(shape) - 2)
    every = list(range(1, len(shape)))
    places = [i for i in range(len(shape)) if i != 1]
    for found, over in ((layer(x), every), (batch(x), places)):
        assert found.mean(over).abs().max() < 1e-5 and (found.var(over, correction=0) - 1).abs().max() < 1e-3
    if len(shape) == 4:
        (instance,) = Norm("instance", 1).layers(4, 2)
        assert instance(x).mean((2, 3)).abs().max() < 1e-5


@pytest.mark.parametrize("behind", [0, R])
def test_minibatch_features_by_a_double_loop(behind: int):
    torch.manual_seed(4)
    layer = MinibatchDiscrimination(5, kernels=3, dims=2, reference=behind)
    f = torch.randn(7 + behind, 5)
    found = layer(f)
    assert found.shape == (7, 5 + 3) and torch.equal(found[:, :5], f[:7])
    tensor = layer.tensor.weight.view(3, 2, 5)
    for i in range(7):
        for b in range(3):
            near = [math.exp(-(tensor[b] @ (f[i] - f[j])).abs().sum().item()) for j in range(7)]
            assert found[i, 5 + b].item() == pytest.approx(sum(near), rel=1e-5)
    same = layer(f[:1].expand(7 + behind, -1))
    torch.testing.assert_close(same[:, 5:], torch.full((7, 3), 7.0))


@pytest.mark.parametrize("behind", [0, R])
def test_the_batchs_deviation_by_a_loop(behind: int):
    torch.manual_seed(5)
    f = torch.randn(6 + behind, 2, 3, 3)
    found = MinibatchDeviation(behind)(f)
    units = f[:6].flatten(1)
    deviations = [
        math.sqrt(sum((v - float(column.mean())) ** 2 for v in column.tolist()) / 6) for column in units.unbind(1)
    ]
    torch.testing.assert_close(found[:, :2], f[:6])
    torch.testing.assert_close(found[:, 2], torch.full((6, 3, 3), sum(deviations) / len(deviations)))
    collapsed = f[:1].expand(6 + behind, -1, -1, -1).clone().requires_grad_()
    MinibatchDeviation(behind)(collapsed).sum().backward()
    assert collapsed.grad is not None and collapsed.grad.isfinite().all()


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("more", [{}, {"minibatch_features": 3, "minibatch_dims": 2}, {"minibatch_deviation": True},
                                  {"minibatch_features": 3, "minibatch_deviation": True}])  # fmt: skip
def test_the_critic_is_its_last_layer_on_its_features(images: bool, more: dict):
    torch.manual_seed(6)
    gan = referred("virtual", images=images, **more)
    x = gan.sample(7)
    last: Any = gan.discriminator[-1]
    expected = linear(gan.features(x), last.weight.flatten(1), last.bias).flatten()
    torch.testing.assert_close(gan.discriminate(x), expected)
    assert gan.judges_batches is bool(more)
    together = torch.equal(gan.discriminate(x)[:3], gan.discriminate(torch.cat([x[:3], -x[3:]]))[:3])
    assert together is not bool(more)


def matrices(network: nn.Module) -> list[Tensor]:
    """Each layer's weight as Miyato et al. flatten it: a row for each output."""
    return [m.weight.detach().flatten(1) for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


@pytest.mark.parametrize("images", [False, True])
def test_spectral_norm_is_one(images: bool):
    torch.manual_seed(7)
    gan = referred("none", images=images, spectral_norm=True, minibatch_features=2)
    with torch.no_grad():
        for name, p in gan.discriminator.named_parameters():
            p.mul_(3 if "weight" in name else 1)
        x = gan.sample(5)
        for _ in range(300):
            gan.discriminate(x)
    found = matrices(gan.discriminator)
    assert len(found) == 4
    for weight in found:
        assert torch.linalg.svdvals(weight)[0].item() == pytest.approx(1, abs=1e-3)
    assert not any("parametrizations" in name for name, _ in gan.generator.named_parameters())
    gan.eval()
    before = copy.deepcopy(gan.state_dict())
    gan.discriminate(x)
    assert all(torch.equal(v, before[k]) for k, v in gan.state_dict().items()), "the power iteration rests in eval mode"


def test_a_critic_of_bounded_layers_is_lipschitz():
    torch.manual_seed(8)
    gan = referred("none", spectral_norm=True)
    with torch.no_grad():
        for _ in range(200):
            gan.discriminate(torch.randn(5, 2))
        a, b = 3 * torch.randn(500, 2), 3 * torch.randn(500, 2)
        slope = (gan.discriminate(a) - gan.discriminate(b)).abs() / (a - b).norm(dim=1)
    assert slope.max() <= 1 + 1e-3


def test_dcgans_start_is_under_the_spectral_norm():
    torch.manual_seed(9)
    critic = DCGAN((1, 32, 32), levels=256, channels=32, spectral_norm=True).discriminator
    originals = [p for name, p in critic.named_parameters() if name.endswith("original")]
    assert len(originals) == 4 and all(p.std().item() == pytest.approx(0.02, rel=0.1) for p in originals)


def test_the_power_iteration_goes_by_the_weights_alone():
    """So processes that hold the same weights and see other shares of a batch stay together."""
    torch.manual_seed(10)
    here = referred("none", spectral_norm=True)
    there = copy.deepcopy(here)
    here.discriminate(torch.randn(5, 2))
    there.discriminate(torch.randn(3, 2))
    ours, theirs = here.state_dict(), there.state_dict()
    assert any("_u" in name for name in ours) and all(torch.equal(v, theirs[k]) for k, v in ours.items())


EVERYTHING = {"minibatch_features": 3, "minibatch_deviation": True, "spectral_norm": True}


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("norm", ["none", "batch", "layer", "instance", "virtual", "reference"])
def test_gradients_reach_everything(norm: str, images: bool):
    if norm == "instance" and not images:
        return
    torch.manual_seed(11)
    gan = referred(norm, images=images, **EVERYTHING)
    x = gan.sample(8).clone() + 0.1
    for update in NonSaturating()(gan, Batch(x), 0.0):
        part = gan.get_submodule(update.part)
        assert update.loss is not None
        names, parameters = zip(*part.named_parameters(), strict=True)
        for name, g in zip(names, torch.autograd.grad(update.loss, parameters), strict=True):
            assert g.isfinite().all() and g.any(), name


def test_a_critic_that_compares_a_batch_in_secret_is_found():
    claim = "an example is judged by itself"
    for says, held in ((True, True), (False, False)):
        torch.manual_seed(13)
        gan = referred("virtual", minibatch_features=3)
        gan.judges_batches = says
        batches = [Batch(torch.randn(20, 2)) for _ in range(3)]
        case = case_of(gan, NonSaturating(), ADAM, batches, partial(copy.deepcopy, gan), None)
        (found,) = prove(case, {claim})
        assert found.held is held and ("discriminate" in found.words) is not says


def test_what_was_built_before_is_built_the_same():
    torch.manual_seed(12)
    gan, dcgan = GAN((2,), latent_dim=2, hidden=[3]), DCGAN((1, 16, 16), levels=17, latent_dim=2, channels=2)
    assert list(gan.state_dict()) == [f"{part}.{i}.{p}" for part, layers in (("generator", (0, 2)),
        ("discriminator", (1, 3))) for i in layers for p in ("weight", "bias")]  # fmt: skip
    critic = [name for name in dcgan.state_dict() if name.startswith("discriminator.")]
    assert critic == ["discriminator.0.weight", "discriminator.0.bias", "discriminator.2.weight",
        *(f"discriminator.3.{p}" for p in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
        "discriminator.5.weight", "discriminator.5.bias"]  # fmt: skip
    assert gan.reference_size == dcgan.reference_size == 0 and not gan.judges_batches
    torch.manual_seed(12)
    plain = nn.Sequential(nn.Linear(2, 3), nn.LeakyReLU(0.2), nn.Linear(3, 2), nn.Unflatten(1, (2,)),
                          nn.Flatten(), nn.Linear(2, 3), nn.LeakyReLU(0.2), nn.Linear(3, 1))  # fmt: skip
    for ours, theirs in zip(gan.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


# --- dropout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [[0.4, 0.0], [0.0, 0.4]])
def test_dropout_of_the_discriminators_inputs_is_of_training_alone(where: list[float]):
    """With w_j x_j kept and divided by 1 - p the variance is Σ_j w_j² x_j² p/(1 - p), the mean the whole's."""
    torch.manual_seed(0)
    gan = GAN((3,), discriminator_hidden=[1], activation="relu", discriminator_dropout=where)
    first, last = (layer for layer in gan.discriminator if isinstance(layer, nn.Linear))
    with torch.no_grad():
        first.weight.fill_(0.5), first.bias.zero_(), last.weight.fill_(2.0), last.bias.fill_(0.3)
    x = torch.tensor([[1.0, 2.0, 3.0]])  # the hidden unit is 3, the output 6.3
    found = gan.discriminate(x.expand(40_000, 3))
    variance = 14 * 0.4 / 0.6 if where[0] else 36 * 0.4 / 0.6
    assert found.var().item() == pytest.approx(variance, rel=0.03)
    assert found.mean().item() == pytest.approx(6.3, abs=4 * (variance / 40_000) ** 0.5)
    assert gan.eval().discriminate(x).item() == pytest.approx(6.3, abs=1e-6)


# --- from the command line --------------------------------------------------------------------------------------------


def built(*overrides: str) -> GAN | DCGAN:
    model = build(*overrides).model
    assert isinstance(model, GAN | DCGAN)
    return model


def kept(network: Network) -> Tensor:
    """Its reference."""
    assert network.reference is not None
    return network.reference


VIRTUAL = ["model=gan", "data=ring", "data.n=200", "model.hidden=[6,5]", "model.norm=virtual", "model.reference=9"]


def test_the_reference_is_training_examples_and_follows_the_seed():
    ours, again, other = (built(*VIRTUAL, f"seed={seed}") for seed in (1, 1, 2))
    examples = next(build(*VIRTUAL).pipeline.evaluation("train", 200)).x
    critic = kept(ours.discriminator)
    assert critic.shape == (9, 2)
    assert len({int((examples == row).all(1).nonzero()[0]) for row in critic}) == 9
    for part in ("discriminator", "generator"):
        reference, same, another = (kept(getattr(model, part)) for model in (ours, again, other))
        assert torch.equal(reference, same) and not torch.equal(reference, another)


def test_the_reference_lies_where_the_model_lives():
    model = built("model=dcgan", "data=digits", "model.channels=2", "model.discriminator_norm=reference")
    reference = kept(model.discriminator)
    assert reference.shape == (128, 1, 8, 8) and -1 <= reference.min() < -0.9 and 0.9 < reference.max() <= 1
    assert model.generator.reference is None, "a setting each"


def test_the_reference_stays_the_same_and_is_in_the_file(tmp_path: Path):
    trainer = bare_trainer(tmp_path, *VIRTUAL, "trainer.steps=3", "trainer.ema=0.9")
    before = {k: v.clone() for k, v in trainer.model.state_dict().items() if k.endswith("reference")}
    assert len(before) == 2
    fit(trainer)
    loaded = gentrain.load(tmp_path / "step-00000003.pt")
    for state in (trainer.model.state_dict(), loaded.state_dict()):
        assert all(torch.equal(state[k], v) for k, v in before.items())


def test_every_process_has_the_same_reference():
    pipelines = [Pipeline(digits(), "signed", 20, seed=3, rank=rank, world=2) for rank in (0, 1)]
    ours, theirs = (pipeline.some(30) for pipeline in pipelines)
    assert torch.equal(ours.x, theirs.x) and ours.y is not None and torch.equal(ours.y, theirs.y)
    assert len(set(ours.y.tolist())) > 5, "mixed, in whatever order the set is"


def test_what_models_claim_holds_with_all_of_it():
    layers = ["model.norm=virtual", "model.minibatch_features=3", "model.spectral_norm=true", "model.reference=7"]
    found = check(["model=gan", *layers], n=500)
    assert [c for c in found if c.held is False] == [] and sum(c.held is True for c in found) >= 12


@pytest.mark.parametrize("model", ["gan", "dcgan"])
def test_all_of_it_resumes_bit_for_bit(model: str):
    data = ["data=digits", "model.channels=2"] if model == "dcgan" else ["data=ring", "model.hidden=[6,5]"]
    layers = ["model.norm=virtual", "model.minibatch_features=3", "model.spectral_norm=true", "model.reference=7"]
    layers += ["model.discriminator_dropout=[0.2,0.5]"] if model == "gan" else []
    differing, _, words = exact_resume(config.compose("train", [*SMALL, f"model={model}", *data, *layers]))
    assert differing == 0, words


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.norm=virtual", "model.reference=5000"], "model.reference=5000 is more than the 200 training examples"),
        (["model.norm=instance"], "model.norm=instance: must be batch | none | layer | virtual | reference"),
        (["model.norm=batchnorm"], "Did you mean 'batch'?"),
        (["model.hidden=[6]", "model.discriminator_norm=layer"], "model.discriminator_norm=layer"),
        (["model.hidden=[6]", "model.discriminator_dropout=[0,0,0]"], "there are 2 layers; give no more shares"),
        (["model.minibatch_features=-1"], "model.minibatch_features=-1"),
        (["model.norm=batch", "data.batch_size=1"], "data.batch_size=1: batch normalisation has no variance"),
    ],
)
def test_what_is_refused(overrides: list[str], said: str):
    with pytest.raises(UsageError) as error:
        build("model=gan", "data=ring", "data.n=200", *overrides)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["instance", "batchnorm"])
def test_from_python_as_well(kind: Any):
    with pytest.raises(UsageError, match=f"norm={kind}"):
        GAN((2,), hidden=[4, 4], norm=kind)


def test_one_example_is_a_batch_for_other_normalisations():
    assert (
        build("model=gan", "data=ring", "data.n=200", "data.batch_size=1", "model.norm=layer").pipeline.batch_size == 1
    )


def test_a_reference_that_never_came_is_seen():
    network = GAN((2,), hidden=[4, 4], norm="virtual", reference=R).discriminator
    assert isinstance(network, Network) and network(torch.randn(3, 2)).isnan().all()
