"""The uses of a trained model (`gentrain sample kind=…`) against answers known by algebra or enumeration."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import MODELS, bare_trainer, build, data_for, fit
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)
from torch.nn.functional import avg_pool2d

import gentrain
from gentrain import config
from gentrain.cli import main
from gentrain.data.pipeline import Pipeline
from gentrain.errors import UsageError
from gentrain.evaluation.conditioning import gibbs
from gentrain.evaluation.estimator import Subject, seeded
from gentrain.evaluation.views import missing
from gentrain.models.base import Encodes, Generative, LatentVariable, Reconstructs
from gentrain.models.corruption import Kind
from gentrain.models.rbm import RBM
from gentrain.tasks.sample import standard
from gentrain.truth.models import misfits
from gentrain.types import Support
from gentrain.uses.arithmetic import Arithmetic
from gentrain.uses.base import Use
from gentrain.uses.codes import Interpolate, Traverse, moments, slerp
from gentrain.uses.completion import Complete, Denoise
from gentrain.uses.drawing import Prior
from gentrain.uses.editing import Edit
from gentrain.uses.inversion import Invert
from gentrain.uses.restoration import SuperResolve


class Line(LatentVariable, Encodes):
    """x = A z + b + σ ε with z ~ N(0, I): everything about it is known, the posterior among it."""

    support = "real"

    def __init__(self, A: Tensor, b: Tensor, std: float):
        super().__init__()
        self.shape = (len(b),)
        self.register_buffer("A", A)
        self.b, self.std = b, std
        precision = torch.eye(A.shape[1]) + A.t() @ A / std**2
        self.covariance = torch.linalg.inv(precision)

    @property
    def prior(self) -> Distribution:
        d = self.A.shape[1]
        return Independent(Normal(torch.zeros(d), torch.ones(d)), 1)

    def encode(self, x: Tensor) -> Distribution:
        return MultivariateNormal((x - self.b) @ self.A @ self.covariance / self.std**2, self.covariance)

    def decode(self, z: Tensor) -> Distribution:
        return Independent(Normal(z @ self.A.t() + self.b, self.std), 1)

    def sample(self, n: int) -> Tensor:
        return self.decode(self.prior.sample(torch.Size([n]))).sample()

    def codes(self, x: Tensor) -> Tensor:
        return self.encode(x).mean


class Shifted(Line):
    """With the prior N((3, -1), 4 I), as a transformed distribution, which has no mean of its own."""

    @property
    def prior(self) -> Distribution:
        return TransformedDistribution(super().prior, AffineTransform(torch.tensor([3.0, -1.0]), 2.0))


def line(std: float = 0.1) -> Line:
    torch.manual_seed(5)
    return Line(torch.randn(4, 2), torch.randn(4), std)


def points(tmp_path: Path, n: int = 60) -> Subject:
    """Labelled points (·, 4) of a file, the label 0 about (0, 0, 0, 0) and the label 1 about (1, 2, 3, 4)."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    x = rng.normal(size=(n, 4)).astype(np.float32) + np.outer(y, [1.0, 2, 3, 4]).astype(np.float32)
    path = tmp_path / "points.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    source = build("model=gan", "data=npz", f"data.path={path}", "data.validation=0").source
    return Subject(line(), Pipeline(source, "real", 10, 0))


class TestCodes:
    def test_a_great_circle_keeps_the_norm_and_halves_the_angle(self):
        torch.manual_seed(0)
        a, b = torch.randn(2, 50, 7).mul(3).unbind()
        t = torch.tensor(0.5)
        middle = slerp(a, b, t)
        assert torch.allclose(middle.norm(dim=-1), (a.norm(dim=-1) + b.norm(dim=-1)) / 2, atol=1e-4)
        for end in (a, b):  # half of the angle between them
            cosine = torch.cosine_similarity(middle, end, dim=-1)
            assert torch.allclose(2 * torch.acos(cosine), torch.acos(torch.cosine_similarity(a, b, dim=-1)), atol=1e-3)
        assert torch.allclose(slerp(a, b, torch.tensor(0.0)), a, atol=1e-5)
        assert torch.allclose(slerp(a, b, torch.tensor(1.0)), b, atol=1e-5)
        assert torch.allclose(slerp(a, 2 * a, t), 1.5 * a, atol=1e-4)

    def test_a_straight_way_leads_from_one_examples_code_to_the_other(self, tmp_path: Path):
        subject, model = points(tmp_path), line()
        drawn = Interpolate(steps=5)(model, 15, lambda: subject)
        z = drawn.arrays["z"].view(3, 5, 2)
        ends = model.codes(subject.examples(limit=6))
        assert torch.allclose(z[:, 0], ends[:3]) and torch.allclose(z[:, 4], ends[3:])
        assert torch.allclose(z[:, 1], 0.75 * ends[:3] + 0.25 * ends[3:], atol=1e-5)
        assert torch.allclose(drawn.x.view(3, 5, 4), z @ model.A.t() + model.b, atol=1e-5)

    def test_a_traversal_moves_one_dimension_from_end_to_end_of_the_prior(self, tmp_path: Path):
        subject, model = points(tmp_path), line()
        drawn = Traverse(dims=[1], steps=7, span=2.0, start="example")(model, 64, lambda: subject)
        z = drawn.arrays["z"]
        assert torch.allclose(z[:, 1], torch.linspace(-2, 2, 7))
        assert torch.equal(z[:, 0], model.codes(subject.examples(limit=1))[0, 0].expand(7))
        spread = model.codes(subject.examples()).var(0)
        shifted = Shifted(torch.eye(2), torch.zeros(2), 1.0)
        z = Traverse(dims=[0], steps=3, span=2.0)(shifted, 64, lambda: subject).arrays["z"]
        assert torch.allclose(z[:, 0], torch.tensor([-1.0, 3.0, 7.0]), atol=0.3)
        first = Traverse(steps=7)(model, 7, lambda: subject).arrays["dims"]
        assert first.tolist() == [int(spread.argmax())]  # the one in use most

    def test_the_moments_of_a_prior_without_formulas_are_those_of_its_draws(self):
        torch.manual_seed(0)
        mean, std = moments(Shifted(torch.eye(2), torch.zeros(2), 1.0))
        assert torch.allclose(mean, torch.tensor([3.0, -1.0]), atol=0.12) and torch.allclose(
            std, torch.tensor(2.0), atol=0.1
        )

    def test_the_difference_of_mean_codes_moves_one_label_to_another(self, tmp_path: Path):
        subject, model = points(tmp_path), line()
        drawn = Arithmetic(source=0, target=1, steps=3, scale=2.0)(model, 8, lambda: subject)
        codes = model.codes(subject.examples("train"))
        labels = subject.labelled("train")[1]
        way = codes[labels == 1].mean(0) - codes[labels == 0].mean(0)
        assert torch.allclose(drawn.arrays["way"], way, atol=1e-5)
        rows = drawn.x.view(2, 4, 4)
        x, y = subject.labelled()
        assert torch.equal(rows[:, 0], x[y == 0][:2])
        expected = (model.codes(rows[:, 0]) + 2 * way) @ model.A.t() + model.b
        assert torch.allclose(rows[:, 3], expected, atol=1e-4)
        with pytest.raises(UsageError, match="label 7"):
            Arithmetic(source=0, target=7)(model, 8, lambda: subject)


class TestCompletion:
    def test_masks_hide_what_they_say(self):
        hidden = {region: missing((2, 4, 6), region, 0.5) for region in ("bottom", "top", "left", "right", "random")}
        assert all(h.float().mean() == 0.5 and torch.equal(h[0], h[1]) for h in hidden.values())
        assert hidden["bottom"][0, 2:].all() and hidden["top"][0, :2].all()
        assert hidden["left"][0, :, :3].all() and hidden["right"][0, :, 3:].all()
        torch.manual_seed(1)
        first = missing((1, 8, 8), "random", 0.5)
        torch.manual_seed(2)
        assert torch.equal(first, missing((1, 8, 8), "random", 0.5)), (
            "models are compared on one mask, whatever the seed"
        )
        centre = missing((1, 8, 8), "centre", 0.25)
        assert centre[0, 2:6, 2:6].all() and int(centre.sum()) == 16
        assert missing((6,), "bottom", 0.34).tolist() == [False] * 4 + [True] * 2

    def test_clamped_gibbs_is_the_exact_conditional_of_an_rbm(self):
        torch.manual_seed(3)
        rbm = RBM((1, 2, 3), hidden=3, burn_in=30)
        for p in rbm.parameters():
            torch.nn.init.normal_(p, std=0.9)
        known = torch.tensor([1, 1, 0, 1, 0, 0]).bool().view(1, 2, 3)
        x = torch.tensor([1.0, 0, 0, 1, 0, 0]).view(1, 2, 3)
        fillings = torch.tensor([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)]).float()
        states = x.flatten().repeat(8, 1)
        states[:, [2, 4, 5]] = fillings
        exact = torch.softmax(-rbm.free_energy(states.view(8, 1, 2, 3)).double(), 0)
        n = 20_000
        filled = rbm.complete(x.expand(n, 1, 2, 3), known.expand(n, 1, 2, 3))
        assert torch.equal(filled[:, known], x[known].expand(n, 3))
        seen = (filled.flatten(1)[:, [2, 4, 5]] @ torch.tensor([4.0, 2, 1])).long().bincount(minlength=8)
        chi_square = ((seen - n * exact) ** 2 / (n * exact)).sum()
        assert chi_square < 30.7  # of 7 degrees of freedom, one in 14,000

    def test_gibbs_with_the_exact_posterior_reaches_the_exact_conditional(self):
        model = line(std=0.5)
        known = torch.tensor([True, False, True, False])
        x = torch.tensor([0.5, 9.0, -1.0, 9.0])
        covariance = (model.A @ model.A.t() + 0.25 * torch.eye(4)).double()
        K = covariance[~known][:, known] @ torch.linalg.inv(covariance[known][:, known])
        mean = model.b[~known].double() + K @ (x[known] - model.b[known]).double()
        variance = (covariance[~known][:, ~known] - K @ covariance[known][:, ~known]).diagonal()
        torch.manual_seed(0)
        n = 20_000
        filled = gibbs(model, x.expand(n, 4), known.expand(n, 4), sweeps=60)
        assert torch.equal(filled[:, known], x[known].expand(n, 2))
        found = filled[:, ~known].double()
        assert ((found.mean(0) - mean).abs() < 5 * (variance / n).sqrt()).all()
        assert ((found.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / n)).all()

    def test_nothing_of_the_hidden_part_reaches_the_completion(self, tmp_path: Path):
        class Spy(RBM):
            def complete(self, x: Tensor, known: Tensor) -> Tensor:
                assert not x[~known].any()
                return super().complete(x, known)

        subject = Subject(Spy((1, 8, 8), 4, 2), Pipeline(build("model=rbm").source, "binary", 10, 0))
        drawn = Complete(mask="right", draws=3)(subject.model, 20, lambda: subject)
        rows = drawn.x.view(4, 5, 1, 8, 8)
        x = subject.examples(limit=4)
        assert torch.equal(rows[:, 0], x) and (rows[:, 1, :, :, 4:] == 0.5).all()
        assert torch.equal(rows[:, 2:, :, :, :4], x[:, None, :, :, :4].expand(4, 3, 1, 8, 4))

    def test_what_is_denoised_is_the_corrupted_example(self):
        subject = Subject(RBM((1, 8, 8), 4, 2), Pipeline(build("model=rbm").source, "binary", 10, 0))
        with seeded(3):
            drawn = Denoise("salt_and_pepper", level=0.5)(subject.model, 60, lambda: subject)
        x, noisy, clean = drawn.x.view(18, 3, 1, 8, 8).unbind(1)  # whole rows of nine
        assert torch.equal(x, subject.examples(limit=18))
        assert torch.equal(clean, subject.model.reconstruct(noisy))  # type: ignore[operator]
        changed = (x != noisy).float().mean()  # half of the corrupted half fall on what was there
        assert abs(changed - 0.25) < 5 * math.sqrt(0.25 * 0.75 / x.numel())

    @pytest.mark.parametrize("kind", ["mask", "salt_and_pepper", "gaussian"])
    def test_noise_is_that_of_the_picture_whatever_the_models_support(self, kind: Kind):
        class Same(Generative, Reconstructs):
            shape = (1, 8, 8)

            def __init__(self, support: Support):
                super().__init__()
                self.support, self.place = support, torch.nn.Parameter(torch.zeros(()))

            def sample(self, n: int) -> Tensor:
                return torch.zeros(n, *self.shape)

            def reconstruct(self, x: Tensor) -> Tensor:
                return x

        shown = []
        for support in ("unit", "signed"):
            subject = Subject(Same(support), Pipeline(build("model=rbm").source, support, 10, 0))
            with seeded(4):
                x = Denoise(kind, level=0.3)(subject.model, 30, lambda subject=subject: subject).x
            shown.append((x + 1) / 2 if support == "signed" else x)
        assert torch.allclose(*shown, atol=1e-6) and not torch.equal(shown[0][0], shown[0][1])

    def test_no_noise_cannot_be_taken_off(self):
        why = Denoise("gaussian", level=0.0).unfit(build("model=gan").model)
        assert why and "set kind.level above 0" in why


@pytest.mark.parametrize("model", ["ddpm", "flow_matching"])
def test_diffusion_keeps_the_blocks_it_is_shown(model: str):
    assembly = build(f"model={model}", "model.channels=8", "data=digits")
    subject = Subject(assembly.model.eval(), assembly.pipeline)
    with seeded(3):
        drawn = SuperResolve(factor=2, draws=3)(subject.model, 10, lambda: subject)
    x, seen, *made = drawn.x.view(2, 5, 1, 8, 8).unbind(1)
    for each in made:
        assert (avg_pool2d(each, 2) - avg_pool2d(x, 2)).abs().max() < 1e-3
        assert (each - seen).abs().max() > 0.3, "and the blocks are filled"
    assert (made[0] - made[1]).abs().max() > 0.3


USES = standard()


def quick(use: Use) -> Use:
    """With hardly a step where there is a search, or a chain that the use has brought along."""
    if isinstance(use, Invert):
        return Invert(steps=2, restarts=2)
    if isinstance(use, Complete):
        return Complete(draws=2, sweeps=2, steps=2, leapfrog=1)
    if isinstance(use, SuperResolve):
        return SuperResolve(draws=2, steps=2, leapfrog=1)
    return Edit(near=[1.0], steps=2) if isinstance(use, Edit) else use


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_that_a_model_allows_draws_from_it_the_same_for_the_same_seed(name: str, tmp_path: Path):
    trainer = fit(bare_trainer(tmp_path, f"model={name}", *data_for(name), "trainer.steps=1"))
    subject = Subject(model := trainer.model.eval(), trainer.pipeline)
    for use in USES.values():
        if use.unfit(model) is not None or (isinstance(use, Arithmetic) and not isinstance(model, Encodes)):
            continue  # after a step a generator makes no digit that arithmetic could be about
        use = quick(use)
        drawn = []
        for seed in (1, 1):
            with seeded(seed):
                drawn.append(use(model, 24, lambda: subject))
        assert torch.equal(drawn[0].x, drawn[1].x), type(use).__name__
        if isinstance(use, Prior):
            assert misfits(drawn[0].x, model, subject.spec.levels, len(drawn[0].x)) == []
        assert drawn[0].columns is None or len(drawn[0].x) % drawn[0].columns == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uses")
    return gentrain.train(
        [f"output={output}", "device=cpu", "model.hidden=[8]", "model.latent_dim=2", "trainer.steps=4"]
    ).path


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("kind=complet", "there is no kind 'complet'. Did you mean 'complete'"),
        ("kind=complete kind.mask=middle", "kind.mask=middle"),
        ("kind=complete kind.share=0", "kind.share=0"),
        ("kind=complete kind.share=1.5", "kind.share=1.5"),
        ("kind=complete kind.masks=top", "there is no key 'kind.masks'"),
        ("kind=traverse kind.dims=[0,9]", "there is no 9; codes have 2 dimensions"),
        ("kind=arithmetic kind.source=11", "the label 11"),
        ("kind.label=3", "draws without labels"),
        ("kind=denoise kind.level=2", "gentrain: kind.level=2 is the probability of mask: at most 1"),
        ("kind=complete kind.share=0.001", "gentrain: kind.share=0.001: hides all or nothing"),
        ("kind=interpolate kind.steps=1", "kind.steps=1"),
        ("kind._target_=os.system", "kind._target_=os.system"),
        ("sampling={burn_in:3}", "sampling.burn_in: is nothing that VAE draws by"),
        ("sampling=3", "sampling=3: must be"),
    ],
)
def test_a_bad_request_is_one_line_that_names_it(run: Path, words: str, complaint: str, capsys):
    assert main(["sample", f"run={run}", *words.split()]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and complaint in said


@pytest.fixture(scope="module")
def rbm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("rbm")
    words = ["model=rbm", "model.hidden=8", "data.batch_size=20", "trainer.steps=4"]
    return gentrain.train([f"output={output}", "device=cpu", *words]).path


def test_a_chain_of_no_steps_gives_the_coins_it_begins_with(rbm: Path, tmp_path: Path):
    out = tmp_path / "coins.npz"
    assert main(["sample", f"run={rbm}", "sampling={burn_in: 0}", "n=400", "format=npz", f"out={out}"]) == 0
    x = np.load(out)["x"]
    assert abs(x.mean() - 0.5) < 5 * 0.5 / math.sqrt(x.size)
    assert 0.02 < gentrain.load(rbm).sample(400).mean() < 0.45, "the model's own samples are as dark as its data"
    with seeded(0):
        assert np.array_equal(gentrain.load(rbm, sampling={"burn_in": 0}).sample(400).numpy(), x)


@pytest.mark.parametrize(
    ("sampling", "complaint"),
    [
        ("{burnin: 3}", "sampling.burnin: is nothing that RBM draws by; it has burn_in"),
        ("{hidden: 3}", "sampling.hidden: is nothing that RBM draws by; it has burn_in"),
        ("{burn_in: -1}", "sampling.burn_in=-1: must be a whole number of at least 0"),
    ],
)
def test_what_a_model_does_not_draw_by_is_refused(rbm: Path, sampling: str, complaint: str, capsys):
    assert main(["sample", f"run={rbm}", f"sampling={sampling}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and complaint in said


def test_what_the_model_refuses_is_said_of_sampling(tmp_path: Path):
    words = ["model=ddpm", "data=moons", "model.steps=20", "model.sample_steps=20", "model.hidden=[8]"]
    run = gentrain.train([f"output={tmp_path}", "device=cpu", "trainer.steps=2", *words]).path
    assert gentrain.load(run, sampling={"sampler": "ancestral", "sample_steps": 5}).sample(3).shape == (3, 2)
    with pytest.raises(UsageError, match=r"sampling=.*sample_steps=21: the chain has model.steps=20"):
        gentrain.load(run, sampling={"sample_steps": 21})
    with pytest.raises(UsageError, match=r"sampling.sampler=didm: must be ancestral \| ddim"):
        gentrain.load(run, sampling={"sampler": "didm"})


def test_guidance_is_refused_where_no_label_was_ever_left_out(tmp_path: Path):
    words = ["model=ddpm", "data=digits", "model.steps=5", "model.sample_steps=5", "model.channels=8"]
    words += ["model.conditional=true", "objective.label_dropout=0", "data.batch_size=8", "trainer.evaluate_every=0"]
    run = gentrain.train([f"output={tmp_path}", "device=cpu", "trainer.steps=1", *words]).path
    assert gentrain.load(run, sampling={"sample_steps": 2}).sample(2).shape == (2, 1, 8, 8)
    with pytest.raises(UsageError, match=r"sampling=\{'guidance': 3\}.*label_dropout"):
        gentrain.load(run, sampling={"guidance": 3})


def test_what_a_model_draws_by_stands_in_its_file():
    for name in MODELS:
        node = config.read(config.conf_dir() / "model" / f"{name}.yaml")
        assert set(config.locate(node["_target_"], ()).sampling) <= set(node), name


def test_a_kind_of_ones_own_is_a_class_and_a_file(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    (tmp_path / "conf/kind").mkdir(parents=True)
    (tmp_path / "conf/kind/dark.yaml").write_text("# Nothing\n_target_: my_uses.Dark\nvalue: 0.25\n")
    (tmp_path / "my_uses.py").write_text(
        "import torch\n"
        "from gentrain.uses.base import Drawn, Use\n\n\n"
        "class Dark(Use):\n"
        "    def __init__(self, value: float = 0.0):\n"
        "        self.value = value\n\n"
        "    def __call__(self, model, n, data):\n"
        "        return Drawn(torch.full((n, *model.shape), self.value))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ["--config-dir", str(tmp_path / "conf"), "kind=dark", "format=npz"]
    assert main(["sample", *own, f"run={run}"]) == 2 and "trust=[my_uses]" in capsys.readouterr().err
    assert main(["sample", *own, f"run={run}", "trust=[my_uses]", f"out={tmp_path}/x.npz", "kind.value=0.5"]) == 0
    assert (np.load(tmp_path / "x.npz")["x"] == 0.5).all()


def test_every_kind_says_in_its_file_what_it_takes():
    from gentrain.signatures import parameters

    for name in config.groups()["kind"]:
        node = config.read(config.conf_dir() / "kind" / f"{name}.yaml")
        assert set(node) == {"_target_", *parameters(node["_target_"])}, name
    assert functools.reduce(set.union, ({n} for n in USES)) == set(config.groups()["kind"])
