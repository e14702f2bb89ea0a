"""Completions against p(missing | known) by enumeration or in closed form, and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import build
from torch import Tensor, nn
from torch.distributions import Distribution, MultivariateNormal

import gentrain
from gentrain.cli import main
from gentrain.comparison.ranking import Measure, direction
from gentrain.data.pipeline import Pipeline
from gentrain.errors import UsageError
from gentrain.evaluation.completion import Completion
from gentrain.evaluation.conditioning import Effort, codes_given, complete, gibbs, law, restored
from gentrain.evaluation.estimator import Finding, Subject, seeded
from gentrain.evaluation.views import BlockMeans, Luminance, Pixels, View
from gentrain.models.base import Completes, Conditions, Decoder, Generative, LatentVariable, Law
from gentrain.models.boltzmann import Boltzmann
from gentrain.models.dbm import DBM
from gentrain.models.dbn import DBN
from gentrain.models.energies import EnergyBased
from gentrain.models.eonade import EONADE
from gentrain.models.factorial import Factorial
from gentrain.models.fvsbn import FVSBN
from gentrain.models.gated_pixel_cnn import GatedPixelCNN
from gentrain.models.histogram import Histogram
from gentrain.models.label_rbm import LabelRBM
from gentrain.models.layers import UnitNormal
from gentrain.models.made import MADE
from gentrain.models.mixtures import BernoulliMixture, GaussianMixture
from gentrain.models.nade import NADE
from gentrain.models.pca import PPCA
from gentrain.models.rbm import RBM
from gentrain.models.sbn import SBN
from gentrain.models.vae import VAE
from gentrain.truth.spaces import chi_square, critical, quadrature
from gentrain.uses.completion import Denoise, note_of
from gentrain.uses.editing import Edit, read_paint, supported
from gentrain.uses.restoration import SuperResolve

SHAPE = (1, 3, 4)
HIDDEN = 5
"""Of twelve bits so many are hidden: 32 states agree with what is known."""


def upper() -> Tensor:
    """The first seven bits."""
    return (torch.arange(12) < 12 - HIDDEN).view(SHAPE)


def scattered() -> Tensor:
    return (torch.tensor([1, 0, 1, 1, 0, 0, 1, 1, 0, 1, 1, 0]) > 0).view(SHAPE)


def agreeing(x: Tensor, known: Tensor) -> Tensor:
    """The 32 states that have x's known bits, number b with the bits of b in what is hidden."""
    points = x.expand(1 << HIDDEN, *x.shape).clone()
    points[:, ~known] = torch.tensor(list(product((0.0, 1.0), repeat=HIDDEN)))
    return points


@torch.no_grad()
def exact(model: Generative, points: Tensor) -> Tensor:
    """log p of the states, up to a constant: nothing of `complete` is in it."""
    if isinstance(model, LatentVariable):
        found = quadrature(model, points)
        assert not isinstance(found, str)
        return found.log_p
    return -model.free_energy(points) if isinstance(model, EnergyBased) else model.log_prob(points)  # type: ignore


def off(draws: Tensor, known: Tensor, log_p: Tensor) -> float:
    """Chi-square of completions against the normalised `log_p` of `agreeing`, in units of what chance allows."""
    place = 2 ** torch.arange(HIDDEN - 1, -1, -1)
    seen = (draws[:, ~known].long() * place).sum(1).bincount(minlength=1 << HIDDEN)
    statistic, freedom = chi_square(seen, torch.softmax(log_p.double(), 0) * len(draws))
    return statistic / critical(freedom)


def shaken(model: nn.Module, scale: float = 0.7) -> nn.Module:
    for p in model.parameters():
        nn.init.normal_(p, std=scale)
    return model.eval()


def counted(model: Factorial | Histogram) -> Generative:
    model.accumulate((torch.rand(400, *SHAPE) < torch.linspace(0.2, 0.9, 12).view(SHAPE)).float())
    return model


FAMILIES: dict[str, tuple[Callable[[], nn.Module], bool, Law]] = {
    # how it is built, whether what is known must come first, what it claims
    "fvsbn": (lambda: FVSBN(SHAPE, levels=2), True, "exact"),
    "nade": (lambda: NADE(SHAPE, levels=2, hidden=6), True, "exact"),
    "made": (lambda: MADE(SHAPE, levels=2, hidden=[12]), True, "exact"),
    "gated_pixel_cnn": (lambda: GatedPixelCNN(SHAPE, levels=2, channels=4, blocks=1, kernel=3, head=4), True, "exact"),
    "bernoulli_mixture": (lambda: BernoulliMixture(SHAPE, components=3), False, "exact"),
    "factorial": (lambda: counted(Factorial(SHAPE, levels=2)), False, "exact"),
    "histogram": (lambda: counted(Histogram(SHAPE, levels=2)), False, "exact"),
    "rbm": (lambda: RBM(SHAPE, hidden=4, burn_in=150), False, "chain"),
    "label_rbm": (lambda: LabelRBM(SHAPE, classes=3, hidden=8, burn_in=150), False, "chain"),
    "boltzmann": (lambda: Boltzmann(SHAPE, hidden=3, burn_in=100), False, "chain"),
    "dbm": (lambda: DBM(SHAPE, hidden=[4, 3], burn_in=150), False, "chain"),
    "dbn": (lambda: DBN(SHAPE, hidden=[4, 3], burn_in=200), False, "chain"),
    "dbn, untied": (lambda: DBN(SHAPE, hidden=[4, 3], burn_in=200, classes=2), False, "chain"),
    "sbn": (lambda: SBN(SHAPE, hidden=[3, 2]), False, "chain"),
    "vae": (lambda: VAE(SHAPE, levels=2, latent_dim=1, hidden=[8]), False, "chain"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_completions_are_drawn_from_the_exact_conditional_of_twelve_bits(name: str):
    torch.manual_seed(4)
    make, first, claimed = FAMILIES[name]
    model = make()
    assert isinstance(model, Generative)
    if claimed != "exact" or not isinstance(model, Factorial | Histogram):
        shaken(model, 0.5 if isinstance(model, LatentVariable) else 1.0)
    if isinstance(model, DBN) and name.endswith("untied"):
        model.untie()  # its two directions are networks of their own, and no longer the same
        for p in (*model.recognition.parameters(), *model.generative.parameters()):
            p.data += 0.2 * torch.randn_like(p)
    known = upper() if first else scattered()
    x = (torch.rand(SHAPE) < 0.5).float()
    log_p = exact(model, agreeing(x, known))
    n = 8000
    draws = complete(model, torch.where(known, x, math.nan).expand(n, *SHAPE), known, Effort(sweeps=200))
    assert torch.equal(draws[:, known], x[known].expand(n, -1))
    assert law(model, known[None]) == claimed
    assert off(draws, known, log_p) < 1
    marginal = model.sample(n)  # what doesn't look at the known part is found out
    if not isinstance(model, Factorial):
        assert off(marginal, known, log_p) > 1
    if isinstance(model, Conditions):
        points = agreeing(x, known)
        own = model.log_conditional(points, known.expand_as(points))
        torch.testing.assert_close(own.double(), torch.log_softmax(log_p.double(), 0), atol=1e-4, rtol=0)


def test_eonade_completes_any_mask_by_the_orders_that_put_it_first():
    torch.manual_seed(0)
    model = shaken(EONADE(SHAPE, levels=2, hidden=[8], orderings=2))
    assert isinstance(model, EONADE)
    known, x = scattered(), (torch.rand(SHAPE) < 0.5).float()
    points, members = agreeing(x, known), []
    for order in model.orders:  # by its conditionals given any set, one element after the other
        now, total = known.expand_as(points).clone(), torch.zeros(len(points))
        for d in order.tolist():
            if not known.flatten()[d]:
                total = total + model.log_conditionals(points, now).flatten(1)[:, d]
                now.flatten(1)[:, d] = True
        members.append(total)
    log_p = torch.logsumexp(torch.stack(members), 0) - math.log(2)
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(model.log_conditional(points, known.expand_as(points)), log_p, atol=1e-4, rtol=0)
    draws = model.complete(x.expand(6000, *SHAPE), known.expand(6000, *SHAPE))
    assert off(draws, known, log_p) < 1


def test_out_of_order_an_autoregressive_model_says_that_it_approximates():
    model = NADE(SHAPE, levels=2, hidden=4)
    x = torch.zeros(2, *SHAPE)
    assert law(model, scattered()[None]) == "approximate" and law(model, upper()[None]) == "exact"
    assert note_of(model, upper()) is None and "no draws from it" in str(note_of(model, scattered()))
    with pytest.raises(UsageError, match="come first in its order"):
        model.log_conditional(x, scattered().expand_as(x))
    assert law(MADE(SHAPE, levels=2, hidden=[8], masks=2), upper()[None]) == "approximate"


def test_refusing_codes_mends_what_a_wrong_posterior_does():
    """Without it the same chain is far from p(missing | known)."""
    torch.manual_seed(1)
    model = shaken(VAE(SHAPE, levels=2, latent_dim=1, hidden=[8]), 0.9)
    assert isinstance(model, VAE)
    known, x = scattered(), (torch.rand(SHAPE) < 0.5).float()
    log_p = exact(model, agreeing(x, known))
    many, n = x.expand(6000, *SHAPE), known.expand(6000, *SHAPE)
    assert off(gibbs(model, many, n, 200), known, log_p) < 1
    plain = many
    for _ in range(30):
        plain = torch.where(n, many, model.decode(model.encode(plain).sample()).sample())
    assert off(plain, known, log_p) > 3


# --- reals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", ["full", "diagonal", "spherical"])
def test_a_mixture_of_gaussians_is_completed_by_its_conditional(covariance: str):
    torch.manual_seed(0)
    model = GaussianMixture((4,), 3, covariance)  # type: ignore[arg-type]
    shaken(model, 0.8)
    known, x = torch.tensor([False, True, True, False]), torch.randn(4)
    joint, marginal = [], []
    for k in range(3):
        factor = model.normals.scale_tril[k].detach().double()
        mean, matrix = model.normals.mean[k].detach().double(), factor @ factor.t()
        joint.append(MultivariateNormal(mean, matrix).log_prob(x.double()))
        marginal.append(MultivariateNormal(mean[known], matrix[known][:, known]).log_prob(x[known].double()))
    weights = model.logits.detach().double().log_softmax(0)
    exact = torch.logsumexp(weights + torch.stack(joint), 0) - torch.logsumexp(weights + torch.stack(marginal), 0)
    assert float(model.log_conditional(x[None], known[None])[0]) == pytest.approx(float(exact), abs=1e-4)
    draws = model.complete(torch.where(known, x, math.nan).expand(20_000, 4), known.expand(20_000, 4))
    # importance sampling from far away: E[x] = Σ w x / Σ w, w = p(x)/N(x; 0, 9)
    far = torch.randn(200_000, 2) * 3
    points = x.expand(len(far), 4).clone()
    points[:, ~known] = far
    w = torch.softmax(model.log_prob(points).double() + far.double().square().sum(1) / 18, 0)
    for power in (1, 2):
        wanted = (w[:, None] * far.double() ** power).sum(0)
        torch.testing.assert_close((draws[:, ~known].double() ** power).mean(0), wanted, atol=0.08, rtol=0.05)


def test_ppca_completes_by_the_regression_of_its_gaussian():
    torch.manual_seed(0)
    model, data = PPCA((3,), latent_dim=1), torch.randn(500, 1) @ torch.tensor([[1.0, 2.0, -1.0]])
    data = data + 0.3 * torch.randn(500, 3)
    model.accumulate(data)
    mean, axes, along, rest = model.components()
    matrix = (axes.t() * (along - rest)) @ axes + rest * torch.eye(3, dtype=torch.float64)
    known, x = torch.tensor([True, False, True]), torch.tensor([1.0, 99.0, -1.0])
    gain = matrix[1, [0, 2]] @ torch.linalg.inv(matrix[[0, 2]][:, [0, 2]])
    wanted = mean[1] + gain @ (x[known].double() - mean[[0, 2]])
    variance = matrix[1, 1] - gain @ matrix[[0, 2], 1]
    draws = model.complete(x.expand(20_000, 3), known.expand(20_000, 3))[:, 1].double()
    assert abs(float(draws.mean() - wanted)) < 5 * float((variance / 20_000).sqrt())
    assert float(draws.var() / variance) == pytest.approx(1, abs=5 * (2 / 20_000) ** 0.5)


class Affine(Decoder):
    """G(z) = A z + b, z ~ N(0, I)."""

    support = "real"
    A: Tensor
    b: Tensor

    def __init__(self, shape: tuple[int, ...], dim: int):
        super().__init__()
        self.shape = shape
        self.register_buffer("A", torch.randn(math.prod(shape), dim))
        self.register_buffer("b", torch.randn(math.prod(shape)))

    @property
    def prior(self) -> Distribution:
        return UnitNormal(torch.zeros(self.A.shape[1]), torch.ones(self.A.shape[1]))

    def decode(self, z: Tensor) -> Tensor:
        return (z @ self.A.t() + self.b).view(-1, *self.shape)

    def sample(self, n: int) -> Tensor:
        return self.decode(self.prior.sample(torch.Size([n])))


VIEWS: dict[str, tuple[tuple[int, ...], View]] = {
    "pixels": ((1, 2, 2), Pixels(torch.tensor([[[True, False], [False, True]]]))),
    "block means": ((1, 2, 4), BlockMeans(2, (1, 2, 4))),
    "luminance": ((3, 1, 2), Luminance((3, 1, 2))),
}


@pytest.mark.parametrize("name", VIEWS)
def test_codes_given_what_is_seen_follow_the_posterior_of_a_linear_decoder(name: str):
    """p(z | y) of y = V(A z + b) + σ ε is Gaussian with precision I + (V A)ᵀ V A/σ²."""
    torch.manual_seed(2)
    shape, view = VIEWS[name]
    model, sigma, n = Affine(shape, 3), 0.4, 4000
    x = model.sample(1)
    size = math.prod(shape)
    V = view(torch.eye(size).view(size, *shape)).flatten(1).t()
    M, seen = V @ model.A, V @ (x.flatten() - model.b)
    covariance = torch.linalg.inv(torch.eye(3) + M.t() @ M / sigma**2)
    mean = covariance @ M.t() @ seen / sigma**2
    unread = torch.where(view.known, x, 7.0) if isinstance(view, Pixels) else x
    with seeded(0):
        z = codes_given(model, view, unread.expand(n, *shape), Effort(steps=60, leapfrog=5, sigma=sigma))
    error = (covariance.diagonal() / n).sqrt()
    assert ((z.mean(0) - mean).abs() < 5 * error).all()
    torch.testing.assert_close(z.t().cov(), covariance, atol=0.05, rtol=0.12)


@pytest.mark.parametrize("name", VIEWS)
def test_the_nearest_of_which_as_much_is_seen_is_that_of_the_pseudo_inverse(name: str):
    shape, view = VIEWS[name]
    torch.manual_seed(5)
    z, x, size = torch.randn(6, *shape), torch.randn(6, *shape), math.prod(shape)
    A = view(torch.eye(size).view(size, *shape)).flatten(1).t()
    nearest = z.flatten(1) + (x - z).flatten(1) @ A.t() @ torch.linalg.pinv(A).t()
    torch.testing.assert_close(view.onto(z, x).flatten(1), nearest)


def test_of_a_decoder_a_picture_is_made_that_looks_like_what_is_seen():
    torch.manual_seed(0)
    model, view = Affine((1, 4, 4), 6), BlockMeans(2, (1, 4, 4))
    x = model.sample(5)
    with seeded(0):
        made, mean = restored(model, view, x, Effort(steps=80, leapfrog=8, sigma=0.02))
    assert torch.equal(made, mean) and float((view(made) - view(x)).abs().max()) < 0.15
    assert float((made - x).abs().max()) > 0.15  # two of six directions are seen by nobody


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (torch.ones(3, 3) > 0, "shape"),
        (torch.ones(2, *SHAPE), "bools"),
        (torch.ones(SHAPE) > 0, "all or nothing"),
        (torch.zeros(SHAPE) > 0, "all or nothing"),
    ],
)
def test_a_mask_that_is_none_is_one_line(known: Tensor, said: str):
    with pytest.raises(UsageError, match=said) as caught:
        complete(RBM(SHAPE, 4), torch.zeros(2, *SHAPE), known, Effort())
    assert "\n" not in str(caught.value)


# --- the metric -------------------------------------------------------------------------------------------------------


class Says(Generative, Completes):
    """Fills in 1, or else what alternates between 0 and 1 from draw to draw."""

    def __init__(self, support: str, alternates: bool = False):
        super().__init__()
        self.shape, self.support, self.alternates = (1, 8, 8), support, alternates  # type: ignore[assignment]

    def sample(self, n: int) -> Tensor:
        return torch.ones(n, *self.shape)

    def complete(self, x: Tensor, known: Tensor) -> Tensor:
        value = torch.ones_like(x)
        if self.alternates:
            value[::2] = 0
        return torch.where(known, x, value)


def judged(model: Generative, **settings: object) -> dict[tuple[str, str], Finding]:
    source = build("model=vae", "model.hidden=[4]").source
    subject = Subject(model, Pipeline(source, model.support, 10, 0))
    with seeded(0):
        found = list(Completion(images=40, draws=4, **settings)(subject))  # type: ignore[arg-type]
    return {(f.metric, f.kind): f for f in found if isinstance(f, Finding)}


def test_errors_are_those_of_hidden_pixels_on_the_grey_scale():
    source = build("model=vae", "model.hidden=[4]").source
    x = Subject(Says("unit"), Pipeline(source, "unit", 10, 0)).examples(limit=40)[:, :, 4:]
    wanted = (x - 1).square().flatten(1).mean(1)
    for support in ("unit", "signed"):  # one scale for both
        found = judged(Says(support))
        for kind in ("draw, bottom 0.5", "mean of 4, bottom 0.5"):
            row = found["completion_error", kind]
            assert row.value == pytest.approx(float(wanted.mean()), abs=1e-6)
            assert row.stderr == pytest.approx(float(wanted.std()) / 40**0.5, abs=1e-6)
            assert row.unit == "squared error" and row.n == 40 and row.settings["law"] == "approximate"
    found = judged(Says("unit", alternates=True))
    draw, mean = (found["completion_error", f"{word}, bottom 0.5"].value for word in ("draw", "mean of 4"))
    assert draw == pytest.approx(float(((x - 1).square() + x.square()).mean() / 2), abs=1e-6)
    assert mean == pytest.approx(float((x - 0.5).square().mean()), abs=1e-6)


def test_a_likelihood_stands_where_it_is_exact_and_nowhere_else():
    torch.manual_seed(0)
    model = shaken(BernoulliMixture((1, 8, 8), components=3))
    assert isinstance(model, BernoulliMixture)
    row = judged(model, mask="right")["completion_log_likelihood", "exact, right 0.5"]
    source = build("model=vae", "model.hidden=[4]").source
    x = Subject(model, Pipeline(source, "binary", 10, 0)).examples(limit=40).flatten(1)
    seen = (torch.arange(64) % 8 < 4).float()
    of_parts = [(x * p.log() + (1 - x) * (1 - p).log()) for p in model.means]
    weights = model.logits.log_softmax(0)
    both = torch.logsumexp(torch.stack([t.sum(1) for t in of_parts], 1) + weights, 1)
    left = torch.logsumexp(torch.stack([(t * seen).sum(1) for t in of_parts], 1) + weights, 1)
    assert row.value == pytest.approx(float((both - left).mean()), abs=1e-3) and row.unit == "nats"
    nade = NADE((1, 8, 8), levels=2, hidden=4)
    assert any(metric == "completion_log_likelihood" for metric, _ in judged(nade))
    assert not any(metric == "completion_log_likelihood" for metric, _ in judged(nade, mask="top"))


def test_less_error_and_more_likelihood_are_better():
    of = [Measure(m, "draw", "x", "binary", "", "test") for m in ("completion_error", "completion_log_likelihood")]
    assert [direction(m) for m in of] == [-1, 1]


# --- pictures ---------------------------------------------------------------------------------------------------------


def subject_of(model: Generative) -> Subject:
    return Subject(model, Pipeline(build("model=vae", "model.hidden=[4]").source, model.support, 10, 0))


def test_paint_is_obeyed_the_more_the_less_the_code_is_held():
    """z = argmin ‖P(A z + b - paint)‖² + λ‖z - z_0‖² is a ridge regression."""
    torch.manual_seed(0)
    model = Affine((1, 8, 8), 5)
    subject = subject_of(model)
    with seeded(0):
        use = Edit(box=[0.25, 0.25, 0.5, 0.75], value=0.5, near=[5.0, 0.5], steps=300, lr=0.1)
        drawn = use(model, 10, lambda: subject)
    painted = torch.zeros(8, 8, dtype=torch.bool)
    painted[2:4, 2:6] = True
    rows, z = drawn.x.view(2, 5, 64), drawn.arrays["z"]
    x = subject.examples(limit=2).flatten(1)
    assert torch.equal(rows[:, 0], x) and (rows[:, 1][:, painted.flatten()] == 0.5).all()
    A, wanted = model.A[painted.flatten()], 0.5 - model.b[painted.flatten()]
    for column, weight in ((1, 5.0), (2, 0.5)):
        right = A.t() @ wanted[:, None] + weight * z[:, 0].t()
        exact = torch.linalg.solve(A.t() @ A + weight * torch.eye(5), right).t()
        torch.testing.assert_close(z[:, column], exact, atol=5e-3, rtol=0)


def test_where_a_model_completes_only_the_margin_around_the_paint_is_drawn():
    torch.manual_seed(0)
    model = shaken(RBM((1, 8, 8), 4, burn_in=5))
    assert isinstance(model, RBM)
    drawn = Edit(box=[0.0, 0.0, 0.25, 0.25], value=1.0, near=[1.0, 1.0], margin=1)(model, 8, lambda: subject_of(model))
    rows = drawn.x.view(2, 4, 8, 8)
    free = torch.zeros(8, 8, dtype=torch.bool)
    free[:3, :3] = True
    free[:2, :2] = False
    assert (rows[:, 1:, :2, :2] == 1).all()
    assert torch.equal(rows[:, 2:][..., ~free], rows[:, 1:2][..., ~free].expand(2, 2, -1))
    assert not torch.equal(rows[:, 2:][..., free], rows[:, 1:2][..., free].expand(2, 2, -1))


def test_paint_is_what_is_opaque_in_a_file(tmp_path: Path):
    from PIL import Image

    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[2, 3] = (255, 255, 255, 255)
    pixels[5, 1] = (0, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "paint.png")
    painted, paint = read_paint(tmp_path / "paint.png", (1, 8, 8))
    assert painted.nonzero().tolist() == [[0, 2, 3], [0, 5, 1]] and paint[painted].tolist() == [1.0, 0.0]
    assert supported(paint, "signed", None)[painted].tolist() == [1.0, -1.0]
    Image.fromarray(pixels[:, :, :3]).save(tmp_path / "opaque.png")
    for name, shape, said in (
        ("paint.png", (1, 9, 8), "is 8x8, examples are 9x8"),
        ("opaque.png", (1, 8, 8), "opaque everywhere"),
        ("none.png", (1, 8, 8), "can't be read"),
    ):
        with pytest.raises(UsageError, match=said):
            read_paint(tmp_path / name, shape)


def test_a_view_that_examples_do_not_have_is_said_before_anything_is_drawn():
    vae = VAE((1, 6, 6), levels=2, latent_dim=2, hidden=[4])
    assert SuperResolve(factor=2).unfit(vae) is None
    assert "no blocks of 4x4" in str(SuperResolve(factor=4).unfit(vae))
    assert "LatentVariable or Decoder" in str(SuperResolve().unfit(RBM((1, 8, 8), 4)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    output = tmp_path_factory.mktemp("runs")
    common = [f"output={output}", "device=cpu", "model.hidden=[4]", "trainer.steps=2", "trainer.sample_every=0"]
    return [gentrain.train([*common, *own]).path for own in (["model.latent_dim=2"], ["model=made"])]


def test_several_runs_complete_the_same_examples_in_one_picture(runs: list[Path], tmp_path: Path, capsys):
    from PIL import Image

    out = tmp_path / "both.png"
    named = f"run=[{runs[0]},{runs[1]}]"
    words = ["kind=complete", "kind.draws=1", "kind.sweeps=2", "n=6"]
    assert main(["sample", named, *words, f"out={out}"]) == 0
    sheet = np.asarray(Image.open(out))
    alone = []
    for i, run in enumerate(runs):
        path = tmp_path / f"{i}.png"
        assert main(["sample", f"run={run}", *words, f"out={path}"]) == 0
        alone.append(np.asarray(Image.open(path)))
    height, width = alone[0].shape[:2]
    assert np.array_equal(sheet[24 : 24 + height, 8 : 8 + width], alone[0])
    places = ((24, 16 + width), (48 + height, 8))  # beside the first block, or below
    assert any(np.array_equal(sheet[y : y + height, x : x + width], alone[1]) for y, x in places)
    third = width // 3
    assert np.array_equal(alone[0][:, :third], alone[1][:, :third])  # the examples are the same
    capsys.readouterr()
    for words, said in (
        (["kind=complete"], "out=FILE.png"),
        (["kind=complete", f"out={out}", "format=npz"], "several runs make one picture"),
        (["kind=interpolate", f"out={out}"], "made-likelihood"),
        (["kind=colourise", f"out={out}"], "no colours"),
    ):
        assert main(["sample", named, *words]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and said in told, told


def test_noise_is_taken_off_by_the_codes_that_may_be_under_it():
    """z given x + level ε is N(m, C), C = (I + AᵀA/level²)⁻¹, m = C Aᵀ(x - b)/level²: whitened, draws are N(0, I)."""
    torch.manual_seed(0)
    model, level = Affine((1, 8, 8), 4), 2.0
    with seeded(0):
        drawn = Denoise("gaussian", level)(model, 720, lambda: subject_of(model))
    _, noisy, clean = drawn.x.view(-1, 3, 64).unbind(1)
    precision = torch.eye(4) + model.A.t() @ model.A / level**2
    mean = torch.linalg.solve(precision, model.A.t() @ (noisy - model.b).t() / level**2).t()
    z = torch.linalg.lstsq(model.A, (clean - model.b).t()).solution.t()
    white = (z - mean) @ torch.linalg.cholesky(precision)
    assert float(white.mean()) == pytest.approx(0, abs=5 / white.numel() ** 0.5)
    assert float(white.var()) == pytest.approx(1, abs=5 * (2 / white.numel()) ** 0.5)
    gan = Denoise("mask")
    assert "kind.noise=gaussian" in str(gan.unfit(model))
