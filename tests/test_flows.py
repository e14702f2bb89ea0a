"""Normalizing flows: layers and models against autograd's Jacobians, quadrature and closed forms."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import pytest
import torch
from helpers import SMALL, build, shaken
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, Normal

from gentrain import config
from gentrain import device as devices
from gentrain.data.pipeline import Pipeline
from gentrain.data.source import Split, make_source
from gentrain.errors import UsageError
from gentrain.evaluation.estimator import Subject
from gentrain.evaluation.likelihood import Exact
from gentrain.evaluation.logit import LogitLikelihood
from gentrain.models.flows import (
    BatchNormFlow,
    Bijection,
    Chain,
    Coupling,
    FactorOut,
    Flatten,
    Flow,
    Logit,
    MaskedAffine,
    Squeeze,
    alternating,
    channel_halves,
)
from gentrain.models.layers import MaskedMLP
from gentrain.models.maf import MAF, MixtureMADE
from gentrain.models.realnvp import RealNVP, ResNet
from gentrain.settings import DeviceSettings
from gentrain.tasks.assemble import assemble
from gentrain.tasks.check import check
from gentrain.truth.spaces import around, follow, grid, over

IMAGE = (2, 4, 4)
M = TypeVar("M", bound=nn.Module)


def fitted(model: Flow, x: Tensor, steps: int, lr: float = 5e-3) -> Flow:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for _ in range(steps):
        loss = -model.log_prob(x[torch.randint(len(x), (64,))]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def jacobian(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """d f(x) / d x of one example, (outputs, inputs)."""
    found = torch.autograd.functional.jacobian(lambda v: f(v[None])[0].flatten(), x)
    assert isinstance(found, Tensor)
    return found.reshape(-1, x.numel())


def log_dets(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.stack([jacobian(f, example).slogdet().logabsdet for example in x])


LAYERS: dict[str, tuple[tuple[int, ...], Callable[[], Bijection]]] = {
    "coupling of a vector": ((5,), lambda: Coupling(alternating((5,), 1), nn.Linear(5, 10))),
    "coupling by a checkerboard": (IMAGE, lambda: Coupling(alternating(IMAGE, 0), ResNet(2, 4, 1))),
    "coupling by channels": ((3, 2, 2), lambda: Coupling(channel_halves((3, 2, 2), 1), ResNet(3, 4, 1))),
    "autoregressive": ((5,), lambda: MaskedAffine(5, [7, 9])),
    "autoregressive, reversed": ((5,), lambda: MaskedAffine(5, [3], reverse=True)),
    "autoregressive, linear": ((3,), lambda: MaskedAffine(3, [])),
    "autoregressive, one element": ((1,), lambda: MaskedAffine(1, [4])),
    "batch normalisation": ((5,), lambda: BatchNormFlow((5,))),
    "batch normalisation of channels": (IMAGE, lambda: BatchNormFlow(IMAGE)),
    "logit": ((2, 3), lambda: Logit(0.05)),
    "logit at a narrow margin": ((2, 3), lambda: Logit(1e-6)),
    "squeeze": (IMAGE, Squeeze),
    "factor out": (IMAGE, lambda: FactorOut(IMAGE, Chain(Flatten((1, 4, 4)), MaskedAffine(16, [20])))),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_inverts_and_its_log_det_is_autograds(name: str):
    torch.manual_seed(0)
    shape, make = LAYERS[name]
    layer = shaken(make()).double()
    x = torch.rand(6, *shape, dtype=torch.float64)
    for _ in range(3):
        layer(3 * x + 1 if "logit" not in name else x)
    layer.eval()
    z, log_det = layer(x)
    assert log_det.shape == (6,) and z.dtype == torch.float64
    back, inverse_log_det = layer.inverse(z)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_log_det, -log_det)
    torch.testing.assert_close(log_det.detach(), log_dets(lambda v: layer(v)[0], x))
    if name not in ("squeeze", "autoregressive, one element"):
        assert log_det.abs().min() > 1e-3, "nothing is proved where nothing stretches"


@pytest.mark.parametrize("reverse", [False, True])
def test_an_autoregressive_layer_is_triangular_in_its_order(reverse: bool):
    torch.manual_seed(0)
    layer = shaken(MaskedAffine(6, [60, 60], reverse), 0.5)
    found = jacobian(lambda v: layer(v)[0], torch.rand(6))
    lower = found.flip(0, 1) if reverse else found
    assert torch.equal(lower, lower.tril()) and bool((lower.diagonal() > 0).all())
    assert bool((lower.tril(-1).abs().sum(1)[1:] > 1e-4).all()), "each element depends on those before"


@pytest.mark.parametrize("hidden", [[], [5], [9, 4], [30, 30]])
def test_element_by_element_is_as_many_whole_passes(hidden: list[int]):
    torch.manual_seed(0)
    network = shaken(MaskedMLP(7, hidden, 2))
    seen: list[Tensor] = []

    def element(d: int, raw: Tensor) -> Tensor:
        seen.append(raw)
        return torch.sin(raw[:, 0]) + raw[:, 1] + torch.linspace(0, 1, 3)

    x = network.generate(3, element)
    torch.testing.assert_close(torch.stack(seen, 1), network(x), atol=1e-5, rtol=1e-4)
    slow = torch.zeros(3, 7)
    for d in range(7):
        raw = network(slow)[:, d]
        slow[:, d] = torch.sin(raw[:, 0]) + raw[:, 1] + torch.linspace(0, 1, 3)
    torch.testing.assert_close(x, slow, atol=1e-5, rtol=1e-4)


def test_batch_normalisation_takes_the_batch_in_training_and_averages_in_eval():
    layer = shaken(BatchNormFlow((2, 3, 3), momentum=0.25, eps=1e-3))
    batches = [torch.randn(50, 2, 3, 3) * (i + 1) + i for i in range(6)]
    means, variances = torch.zeros(2), torch.ones(2)
    for i, x in enumerate(batches):
        z, log_det = layer(x)
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        torch.testing.assert_close(z.mean((0, 2, 3)), layer.shift, atol=1e-4, rtol=1e-4)
        expected = layer.log_scale.exp() * (variance / (variance + 1e-3)).sqrt()
        torch.testing.assert_close(z.std((0, 2, 3), correction=0), expected)
        by_hand = 9 * (layer.log_scale - 0.5 * (variance + 1e-3).log()).sum()
        torch.testing.assert_close(log_det, by_hand.expand(50))
        weight = max(1 / (i + 1), 0.25)
        means, variances = torch.lerp(means, mean, weight), torch.lerp(variances, variance, weight)
    torch.testing.assert_close((layer.mean, layer.variance), (means, variances))
    layer.eval()
    before = copy.deepcopy(layer.state_dict())
    z, log_det = layer(batches[0])
    torch.testing.assert_close(log_det, (9 * (layer.log_scale - 0.5 * (variances + 1e-3).log()).sum()).expand(50))
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    x = torch.randn(4, 2, 3, 3, requires_grad=True)
    z, log_det = layer.train()(x)
    found = torch.autograd.grad(z[0].sum() + 3 * log_det[0], x)[0]
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    gain = layer.log_scale.exp().view(1, 2, 1, 1) / (variance + 1e-3).sqrt()
    by_hand = (gain * (x - mean))[0].sum() - 3 * 9 * 0.5 * (variance + 1e-3).log().sum()
    torch.testing.assert_close(found, torch.autograd.grad(by_hand, x)[0])  # through the statistics too
    with pytest.raises(UsageError, match=r"data.batch_size=1"):
        BatchNormFlow((2,))(torch.zeros(1, 2))


def test_what_is_factored_out_is_done():
    """The first half of the code is the first half of the channels, whatever becomes of the rest."""
    inner = shaken(Chain(Flatten((1, 4, 4)), MaskedAffine(16, [8])))
    x = torch.randn(3, *IMAGE)
    z, log_det = FactorOut(IMAGE, inner)(x)
    assert torch.equal(z[:, :16], x[:, 0].flatten(1))
    assert torch.equal(z[:, 16:], inner(x[:, 1:])[0]) and torch.equal(log_det, inner(x[:, 1:])[1])


def test_masks():
    board, other = alternating(IMAGE, 0), alternating(IMAGE, 1)
    assert torch.equal(board, ~other) and int(board.sum()) == 16
    assert not bool((board[:, 1:] == board[:, :-1]).any()) and not bool((board[:, :, 1:] == board[:, :, :-1]).any())
    first, second = channel_halves(IMAGE, 0), channel_halves(IMAGE, 1)
    assert torch.equal(first, ~second) and bool(first[0].all()) and not bool(first[1].any())


# --- models -----------------------------------------------------------------------------------------------------------

MODELS: dict[str, Callable[[], Flow]] = {
    "maf": lambda: MAF((2,), hidden=[16]),
    "maf, normalised": lambda: MAF((2,), hidden=[16], layers=2, batch_norm=True),
    "maf on a mixture": lambda: MAF((2,), hidden=[16], layers=1, components=4),
    "made of mixtures": lambda: MAF((2,), hidden=[16], layers=0, components=4),
    "realnvp": lambda: RealNVP((2,), hidden=[16]),
    "realnvp, normalised": lambda: RealNVP((2,), hidden=[16], layers=3, batch_norm=True),
    "maf of levels": lambda: MAF((1, 4, 4), levels=4, hidden=[20], layers=3),
    "maf of levels on a mixture": lambda: MAF((1, 4, 4), levels=4, hidden=[20], layers=2, components=3, logit=1e-6),
    "realnvp of levels": lambda: RealNVP((1, 4, 4), levels=4, channels=4, layers=3, scales=3),
    "realnvp of colours": lambda: RealNVP((3, 2, 4), levels=4, channels=4, layers=2),
    "realnvp of levels by mlp": lambda: RealNVP((1, 3, 3), levels=4, network="mlp", hidden=[8], layers=3),
}


def data_of(model: Flow) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if model.support == "unit":
        level = torch.randint(4, (400, 1, 1, 1), generator=generator) * torch.randint(2, (400, *model.shape))
        return (level + torch.rand(400, *model.shape, generator=generator)) / 4
    x = torch.randn(400, 2, generator=generator)
    return torch.stack([x[:, 0], x[:, 0] ** 2 / 2 + 0.3 * x[:, 1]], 1)


@pytest.mark.parametrize("name", MODELS)
def test_a_trained_model_inverts_and_changes_variables(name: str):
    """x -> z -> x, and log p(x) is log p(z) + log |det| of autograd's Jacobian from x as it is, logit included."""
    torch.manual_seed(0)
    model = MODELS[name]()
    x = data_of(model)
    model = shaken(fitted(model, x, 20), 0.1).double()
    x = x[:3].double()
    z, log_det = model.transform(x)
    assert z.shape == (3, x[0].numel()) and torch.equal(model.codes(x), z)
    torch.testing.assert_close(model.invert(z), x)
    torch.testing.assert_close(model.decode(z), x)
    torch.testing.assert_close(log_det.detach(), log_dets(lambda v: model.transform(v)[0], x))
    torch.testing.assert_close(model.log_prob(x), model.prior.log_prob(z) + log_det)
    if "mixture" not in name:
        torch.testing.assert_close(model.prior.log_prob(z), Normal(0.0, 1.0).log_prob(z).sum(1))


@pytest.mark.parametrize("name", [name for name in MODELS if "levels" not in name and "colours" not in name])
def test_a_density_over_the_plane_sums_to_one_and_samples_follow_it(name: str):
    torch.manual_seed(0)
    model = MODELS[name]()
    model = shaken(fitted(model, data_of(model), 30), 0.1)
    x = model.sample(5000)
    space = around(x)
    assert not isinstance(space, str)
    log_p = over(model.log_prob, space.points)
    assert float(space.log_total(log_p)) == pytest.approx(0, abs=5e-3)
    statistic, critical, _ = follow(x, space, log_p)
    assert statistic < critical


@pytest.mark.parametrize("margin", [0.05, 0.2])
def test_a_density_of_levels_sums_to_one_on_the_widened_square(margin: float):
    """All its mass lies within λ/(1 - 2λ) of [0, 1]²; what is outside of it is drawn at the border."""
    torch.manual_seed(0)
    model = MAF((2,), levels=3, hidden=[8], layers=2, logit=margin, batch_norm=False)
    assert model.support == "unit"
    model = shaken(model, 0.5).eval()
    beyond = margin / (1 - 2 * margin)
    space = grid(torch.full((2,), -beyond), torch.full((2,), 1 + beyond), (2,), 20, 18)
    log_p = over(model.log_prob, space.points)
    assert float(space.log_total(log_p)) == pytest.approx(0, abs=5e-3)
    inside = ((space.points > 0) & (space.points < 1)).all(1)
    share = float(space.log_total(log_p[inside]).exp())
    assert 0.1 < share < 0.99, "both sides have mass"
    x = model.sample(4000)
    assert float(x.min()) == 0 and float(x.max()) == 1
    drawn = float(((x > 0) & (x < 1)).all(1).float().mean())
    assert drawn == pytest.approx(share, abs=0.01 + 5 * math.sqrt(share * (1 - share) / 4000))


def test_a_linear_flow_reaches_the_entropy_of_gaussian_data():
    """Its greatest mean log-likelihood is -½ log det(2πe S), S the covariance of the data."""
    torch.manual_seed(0)
    x = torch.randn(4000, 3) @ torch.tensor([[1.0, 0.8, 0.0], [0.0, 0.5, -2.0], [0.0, 0.0, 0.3]]) + 1
    best = -0.5 * float(torch.logdet(2 * math.pi * math.e * torch.cov(x.t(), correction=0)))
    model = MAF((3,), layers=1, hidden=[])
    start = float(model.log_prob(x).mean().detach())
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -model.log_prob(x).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    reached = float(model.log_prob(x).mean().detach())
    # log-scales may depend on x too: six numbers more than the Gaussian has, worth about 6 / 2N nats of noise
    assert start < best - 1 and best - 1e-4 < reached < best + 20 / len(x)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_mixture_base_is_a_product_of_mixtures(reverse: bool):
    torch.manual_seed(0)
    made = shaken(MixtureMADE(3, [8], components=4, reverse=reverse), 0.5)
    p = made()
    z = p.sample((2, 5))
    assert z.shape == (2, 5, 3) and p.log_prob(z).shape == (2, 5)
    flat = z.view(10, 3).flip(1) if reverse else z.view(10, 3)
    weight, loc, log_scale = made.network(flat).unflatten(-1, (3, 4)).unbind(-2)
    scale = (log_scale / (1 + log_scale.abs() / 7)).exp()
    each = MixtureSameFamily(Categorical(logits=weight), Normal(loc, scale)).log_prob(flat)
    torch.testing.assert_close(p.log_prob(z).flatten(), each.sum(1))


@pytest.mark.parametrize(
    "words",
    [["model=maf", "model.components=3"], ["model=realnvp", "model.batch_norm=true"],
     ["model=realnvp", "data=bars", "data.size=4"]],
)  # fmt: skip
def test_claims_hold(words: list[str]):
    found = {c.name: c for c in check(words, n=3000)}
    assert [c for c in found.values() if c.held is False] == []
    assert found["the flow can be undone"].held and found["log |det| is the Jacobian's"].held


# --- levels, bits and logits ------------------------------------------------------------------------------------------


def subject_of(model: Flow, levels: int) -> Subject:
    torch.manual_seed(1)
    x = torch.randint(levels, (60, *model.shape)).to(torch.uint8)
    source = make_source("levels", "levels", {"train": Split(x), "test": Split(x)}, levels=levels)
    return Subject(model, Pipeline(source, "unit", 20, 0, dequantize=True))


@torch.no_grad()
def test_bits_and_logit_space_are_those_of_the_paper():
    """b(x) = -log p(y)/(D log 2) - log2(1 - 2λ) + 8 + 1/D Σ log2 σ(y) + log2(1 - σ(y)) (arXiv:1705.07057)."""
    margin = 0.05
    model = shaken(MAF((1, 2, 2), levels=256, hidden=[8], layers=2, logit=margin)).eval()
    subject = subject_of(model, 256)
    rows = {row.unit: row.value for row in Exact()(subject)}
    assert set(rows) == {"nats", "bits/dim"}
    x = subject.examples().double()
    y = torch.logit(margin + (1 - 2 * margin) * x).flatten(1)
    body = copy.deepcopy(model).double().body
    assert isinstance(body, Chain) and isinstance(body.layers[0], Logit) and isinstance(body.layers[1], Bijection)
    z, log_det = body.layers[1](y.view_as(x))
    log_p = Normal(0.0, 1.0).log_prob(z).sum(1) + log_det  # of y, from the layers behind the logit alone
    ends = (torch.sigmoid(y).log2() + torch.sigmoid(-y).log2()).mean(1)
    bits = -log_p / (4 * math.log(2)) - math.log2(1 - 2 * margin) + 8 + ends
    assert rows["bits/dim"] == pytest.approx(float(bits.mean()), abs=1e-4)
    [row] = LogitLikelihood(margin)(subject)
    assert row.value == pytest.approx(float(log_p.mean()), abs=1e-3)
    assert (row.kind, row.unit, row.n) == ("exact", "nats (logit 0.05)", 60)


def test_logit_space_is_for_dequantized_levels():
    made = build("model=maf", "data=moons")
    estimator = LogitLikelihood()
    assert "dequantized" in (estimator.unfit(Subject(made.model, made.pipeline)) or "")
    made = build("model=maf", "data=digits")
    assert estimator.unfit(Subject(made.model, made.pipeline)) is None
    with pytest.raises(UsageError, match=r"below 0\.5"):
        LogitLikelihood(0.5)


@pytest.mark.parametrize(
    ("words", "dequantized", "protocol"),
    [
        (["model=maf", "data=digits"], True, "unit, uniform dequantization"),
        (["model=realnvp", "data=bars"], True, "unit, uniform dequantization"),
        (["model=maf", "data=digits", "data.dequantize=true"], True, "unit, uniform dequantization"),
        (["model=maf", "data=ring"], False, "real"),
        (["model=vae", "data=digits"], False, "binary, dynamic binarization"),
        (["model=dcgan", "data=digits"], False, "signed"),
        (["model=dcgan", "data=digits", "data.dequantize=true"], True, "signed, uniform dequantization"),
        (["model=factorial", "data=digits", "model.likelihood=categorical"], False, "levels"),
    ],
)
def test_a_model_gets_the_noise_it_needs_and_the_configuration_says_so(
    words: list[str], dequantized: bool, protocol: str
):
    cfg = config.compose("train", [*SMALL, *words])
    made = assemble(cfg, devices.setup(DeviceSettings(**config.check(cfg)["device"])))
    assert made.plain["data"]["dequantize"] is dequantized and cfg.data.dequantize is dequantized
    assert made.pipeline.protocol == protocol


def test_a_density_of_bare_levels_is_refused():
    with pytest.raises(UsageError, match=r"data\.dequantize=false: MAF is a density over unit x.*leave"):
        build("model=maf", "data=digits", "data.dequantize=false")
    assert build("model=maf", "data=ring", "data.dequantize=false").plain["data"]["dequantize"] is False


# --- what doesn't fit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RealNVP((1,)), "couples elements with others"),
        (lambda: RealNVP((1, 1, 1), levels=4), "couples elements with others"),
        (lambda: RealNVP((1, 28, 28), levels=4, scales=4), r"scales=4: 28x28 pixels can be halved 2 times.*scales=3"),
        (lambda: RealNVP((1, 3, 4), levels=4, scales=2), r"model.scales=2: 3x4.*halved 0 times"),
        (lambda: RealNVP((4,), network="conv"), "takes images"),
        (lambda: RealNVP((4,), channels=8), r"model.channels=8 is for model.network=conv"),
        (lambda: RealNVP((1, 4, 4), levels=4, network="mlp", scales=2), r"model.scales=2 is for model.network=conv"),
        (lambda: MAF((4,), levels=4, logit=0.5), r"model.logit=0.5"),
    ],
)  # fmt: skip
def test_what_a_flow_can_not_split_is_said(make: Callable[[], Flow], said: str):
    with pytest.raises(UsageError, match=said):
        make()


@pytest.mark.parametrize(
    ("model", "count"),
    [(RealNVP((5,)), 6), (RealNVP((1, 8, 8), levels=4, channels=4), 6 + 6 + 4),
     (RealNVP((3, 4, 4), levels=4, channels=4, layers=5, scales=2), 5 + 4)],
)  # fmt: skip
def test_couplings_of_a_row_keep_what_the_one_before_changed(model: RealNVP, count: int):
    masks = [m.mask for m in model.modules() if isinstance(m, Coupling)]
    assert len(masks) == count and all(bool(m.any()) and not bool(m.all()) for m in masks)
    for before, mask in pairwise(masks):  # of one row where the shape stays
        assert before.shape != mask.shape or torch.equal(mask, ~before)


def test_scales_follow_the_sides():
    def scales(*shape: int) -> int:
        return 1 + sum(isinstance(m, Squeeze) for m in RealNVP(shape, levels=4, channels=4, layers=2).modules())

    assert [scales(1, 28, 28), scales(1, 8, 8), scales(3, 32, 32), scales(1, 3, 3), scales(1, 4, 2)] == [3, 3, 3, 1, 1]
    assert MAF((1,)).sample(3).shape == (3, 1)
