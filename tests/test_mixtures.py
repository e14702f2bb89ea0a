"""Histogram, mixtures and EM against enumeration, closed forms and scikit-learn."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from helpers import bare_trainer, build, fit
from torch import Tensor

from gentrain.batch import Batch
from gentrain.data.synthetic import bars_distribution
from gentrain.errors import UsageError
from gentrain.models.factorial import Factorial
from gentrain.models.histogram import Histogram
from gentrain.models.mixtures import BernoulliMixture, GaussianMixture, Mixture
from gentrain.objectives.em import EM
from gentrain.optim import Adam
from gentrain.truth.base import prove
from gentrain.truth.objectives import case_of
from gentrain.truth.spaces import chi_square, critical, discrete, follow


def steps(model: Mixture, x: Tensor, n: int, em: EM | None = None) -> list[float]:
    """The mean log-likelihood before each of n steps of plain EM, and after the last; the start is the model's."""
    em = em or EM(decay=None)
    em.seen = em.seen or em.batches  # so that it doesn't start the model
    found = [float(u.metrics["log_likelihood"]) for _ in range(n) for u in em(model, Batch(x), 0.0)]
    return [*found, float(model.log_prob(x).detach().mean())]


def clouds(n: int = 600, dim: int = 3, seed: int = 0) -> Tensor:
    """Draws from three Gaussians with correlations, (n, dim)."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(3, dim, dim, generator=generator)
    centre = 4 * torch.randn(3, dim, generator=generator)
    k = torch.randint(3, (n,), generator=generator)
    return centre[k] + (factor[k] @ torch.randn(n, dim, 1, generator=generator))[..., 0]


# --- histogram --------------------------------------------------------------------------------------------------------


class TestHistogram:
    def test_it_counts_states(self) -> None:
        torch.manual_seed(0)
        x = torch.randint(0, 3, (200, 2, 1, 2))
        model = Histogram((2, 1, 2), levels=3, smoothing=0.5)
        model.accumulate(x[:70])
        model.accumulate(x[70:])
        for state in itertools.product(range(3), repeat=4):
            wanted = (x.flatten(1) == torch.tensor(state)).all(1).sum() + 0.5
            found = model.log_prob(torch.tensor(state).view(1, 2, 1, 2)).exp()
            assert found.item() == pytest.approx(float(wanted) / (200 + 81 * 0.5), rel=1e-5)

    @pytest.mark.parametrize(
        ("shape", "levels", "stored", "support"),
        [((1, 3, 3), 2, "binary", "binary"), ((3,), 4, "levels", "levels"), ((2,), 20, "tokens", "tokens")],
    )
    def test_it_sums_to_one_and_samples_follow(self, shape, levels: int, stored, support: str) -> None:
        torch.manual_seed(0)
        model = Histogram(shape, levels, stored)
        assert model.support == support
        space = discrete(shape, levels)
        model.accumulate(space.points[torch.randint(len(space.points), (50,))].repeat(20, *[1] * len(shape)))
        log_p = model.log_prob(space.points)
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
        statistic, allowed, _ = follow(model.sample(20_000).float(), space, log_p)
        assert statistic < allowed

    def test_it_finds_the_distribution_of_bars(self, tmp_path: Path) -> None:
        trainer = fit(bare_trainer(tmp_path, "model=histogram", "data=bars", "trainer.epochs=1", "trainer.steps=null"))
        patterns, p = bars_distribution(3)
        found = trainer.model.log_prob(patterns.float()).double().exp()
        seen = 20 * trainer.step
        assert ((found - p).abs() < 5 * (p / seen).sqrt() + 512 * 0.1 / seen).all()

    def test_too_many_states_are_one_line(self) -> None:
        with pytest.raises(UsageError, match=r"2\^64 states of 1x8x8 binary.*2\^20.*data=bars"):
            build("model=histogram", "data=digits")
        with pytest.raises(UsageError, match="real numbers"):
            build("model=histogram", "data=ring")


# --- EM: Bernoulli ----------------------------------------------------------------------------------------------------


def known_bits(n: int = 20_000, repeat: int = 1) -> tuple[BernoulliMixture, Tensor]:
    """A mixture of three components over six bits, or so many times as many, and draws from it."""
    torch.manual_seed(0)
    truth = BernoulliMixture((6 * repeat,), components=3)
    means = torch.tensor(
        [[0.9, 0.9, 0.9, 0.1, 0.1, 0.2], [0.1, 0.2, 0.1, 0.9, 0.8, 0.9], [0.1, 0.9, 0.1, 0.9, 0.1, 0.9]]
    )
    with torch.no_grad():
        truth.mean_logits.copy_(means.logit().repeat(1, repeat))
        truth.logits.copy_(torch.tensor([0.5, 0.3, 0.2]).log() + 1)
    return truth, truth.sample(n)


class TestBernoulliMixture:
    def test_the_density_is_the_sum_over_components(self) -> None:
        truth, _ = known_bits(1)
        for state in itertools.product((0.0, 1.0), repeat=6):
            total = 0.0
            for weight, means in zip((0.5, 0.3, 0.2), truth.means.tolist(), strict=True):
                total += weight * math.prod(m if bit else 1 - m for m, bit in zip(means, state, strict=True))
            assert truth.log_prob(torch.tensor([state])).exp().item() == pytest.approx(total, rel=1e-5)

    def test_it_sums_to_one_and_samples_follow(self) -> None:
        truth, x = known_bits()
        space = discrete((6,), 2)
        log_p = truth.log_prob(space.points).detach()
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
        statistic, allowed, _ = follow(x, space, log_p)
        assert statistic < allowed

    @pytest.mark.parametrize("s", [0.0, 2.0])
    def test_plain_em_is_the_textbook_s(self, s: float) -> None:
        """One step against responsibilities and weighted means by a plain loop (Bishop 2006, eqs 9.56 to 9.60)."""
        _, x = known_bits(40)
        torch.manual_seed(1)
        model = BernoulliMixture((6,), components=2, smoothing=s)
        weights, means = model.logits.softmax(0).tolist(), model.means.tolist()
        r = []
        for row in x.tolist():
            joint = [
                w * math.prod(m if b else 1 - m for m, b in zip(mean, row, strict=True))
                for w, mean in zip(weights, means, strict=True)
            ]
            r.append([j / sum(joint) for j in joint])
        steps(model, x, 1)
        for k in range(2):
            mass = sum(row[k] for row in r)
            assert model.logits.softmax(0)[k].item() == pytest.approx((mass + s) / (40 + 2 * s), rel=1e-4)
            for d in range(6):
                ones = sum(row[k] * v[d] for row, v in zip(r, x.tolist(), strict=True))
                wanted = (ones + s) / (mass + 2 * s)
                assert model.means[k, d].item() == pytest.approx(wanted, rel=1e-4, abs=1e-6)

    def test_plain_em_never_falls(self) -> None:
        _, x = known_bits(500)
        torch.manual_seed(2)
        found = steps(BernoulliMixture((6,), components=4, smoothing=0.0), x, 60)
        assert all(b >= a - 1e-5 for a, b in itertools.pairwise(found)) and found[-1] > found[0] + 0.3

    def test_smoothing_is_a_prior_whose_posterior_never_falls(self) -> None:
        _, x = known_bits(60)
        torch.manual_seed(2)
        model, em, s = BernoulliMixture((6,), components=4, smoothing=2.0), EM(decay=None), 2.0
        found = []
        for _ in range(30):
            log_likelihood = steps(model, x, 1, em)[-1] * len(x)
            prior = s * (model.means.log().sum() + (1 - model.means).log().sum() + model.logits.log_softmax(0).sum())
            found.append(log_likelihood + float(prior.detach()))
        assert all(b >= a - 1e-3 for a, b in itertools.pairwise(found)) and found[-1] > found[0]

    @pytest.mark.parametrize(
        ("em", "size"), [(EM(batches=10, decay=None), 2000), (EM(), 200)], ids=["plain", "stepwise"]
    )
    def test_em_recovers_a_known_mixture(self, em: EM, size: int) -> None:
        """To six standard errors of the smallest component's means, of 4,000 draws."""
        truth, x = known_bits(repeat=3)
        model, batches = BernoulliMixture((18,), components=3), x.split(size)
        for i in range(300):
            list(em(model, Batch(batches[i % len(batches)]), 0.0))
        order = [int((model.means - m).square().sum(1).argmin()) for m in truth.means]
        assert sorted(order) == [0, 1, 2]
        assert (model.means[order] - truth.means).abs().max() < 6 * 0.4 / 4000**0.5
        assert (model.logits.softmax(0)[order] - truth.logits.softmax(0)).abs().max() < 6 * 0.5 / 20_000**0.5

    def test_one_component_is_the_factorial_model(self) -> None:
        _, x = known_bits(100)
        factorial, model = Factorial((6,), levels=2, smoothing=0.5), BernoulliMixture((6,), 1, smoothing=0.5)
        factorial.accumulate(x)
        steps(model, x, 1)
        torch.testing.assert_close(model.log_prob(x), factorial.log_prob(x), rtol=1e-4, atol=1e-4)

    def test_completions_follow_the_conditional(self) -> None:
        truth, _ = known_bits(1)
        known = torch.tensor([True, False, True, False, False, True])
        x = torch.tensor([1.0, 0, 0, 0, 0, 1])
        space = discrete((6,), 2)
        fits = (space.points[:, known] == x[known]).all(1)
        conditional = truth.log_prob(space.points).detach()[fits].double().softmax(0)
        rubbish = torch.where(known, x, torch.tensor(math.nan))
        drawn = truth.complete(rubbish.expand(20_000, -1), known.expand(20_000, -1))
        where = space.locate(drawn)
        observed = torch.bincount(where, minlength=64)
        assert int(observed[fits].sum()) == 20_000
        statistic, freedom = chi_square(observed[fits], conditional * 20_000)
        assert statistic < critical(freedom)


# --- EM: Gaussian -----------------------------------------------------------------------------------------------------


def of_sklearn(model: GaussianMixture, x: Tensor, seed: int = 3) -> dict[str, Tensor]:
    """Give the model three examples as means and unit covariances, as scikit-learn is given them."""
    torch.manual_seed(seed)
    means = x[torch.randperm(len(x))[:3]]
    square = {"full": torch.eye(3).expand(3, 3, 3), "diagonal": torch.ones(3, 3), "spherical": torch.ones(3, 1)}
    model.normals.set_moments(means, square[model.normals.covariance])
    return {"means_init": means.double().numpy(), "weights_init": torch.full((3,), 1 / 3, dtype=torch.float64).numpy()}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("covariance", ["full", "diagonal", "spherical"])
def test_em_takes_scikit_learn_s_path(covariance: str) -> None:
    from sklearn.mixture import GaussianMixture as Reference

    x = clouds()
    model = GaussianMixture((3,), 3, covariance, floor=0.05)  # type: ignore[arg-type]
    start = of_sklearn(model, x)
    kind = {"full": "full", "diagonal": "diag", "spherical": "spherical"}[covariance]
    precisions = {"full": torch.eye(3).expand(3, 3, 3), "diagonal": torch.ones(3, 3), "spherical": torch.ones(3)}
    start["precisions_init"] = precisions[covariance].double().numpy()
    theirs = [
        Reference(3, covariance_type=kind, max_iter=n, tol=0, reg_covar=0.05, **start).fit(x.double().numpy())
        for n in range(1, 13)
    ]
    found = steps(model, x, 12)
    bounds = [reference.score(x.double().numpy()) for reference in theirs]
    assert found[1:] == pytest.approx(bounds, rel=1e-5)
    assert found[-1] > found[0] + 0.5
    torch.testing.assert_close(model.normals.mean.double(), torch.tensor(theirs[-1].means_), rtol=1e-3, atol=1e-3)
    matrix = model.normals.scale_tril @ model.normals.scale_tril.mT
    wanted = torch.tensor(theirs[-1].covariances_)
    shown = {"full": matrix, "diagonal": matrix.diagonal(dim1=1, dim2=2), "spherical": matrix[:, 0, 0]}[covariance]
    torch.testing.assert_close(shown.double(), wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model.codes(x).double(), torch.tensor(theirs[-1].predict_proba(x)), rtol=0, atol=2e-3)


@pytest.mark.parametrize("covariance", ["full", "diagonal", "spherical"])
class TestGaussianMixture:
    def test_plain_em_never_falls(self, covariance) -> None:
        x = clouds(300)
        model = GaussianMixture((3,), 4, covariance, floor=1e-9)
        torch.manual_seed(0)
        model.start(x)
        found = steps(model, x, 50)
        assert all(b >= a - 1e-5 for a, b in itertools.pairwise(found)) and found[-1] > found[0]

    def test_statistics_do_not_depend_on_how_examples_come(self, covariance) -> None:
        """Far from the origin, where sums of squares would cancel."""
        x = clouds(90) + 300
        models = [GaussianMixture((3,), 3, covariance) for _ in range(2)]
        for model in models:
            torch.manual_seed(0)
            model.start(x)
        models[0].expect(x, 0.0)
        for i, piece in enumerate(x.split(17)):
            models[1].expect(piece, float(i > 0))
        for model in models:
            model.maximise()
        for name, value in models[0].state_dict().items():
            torch.testing.assert_close(models[1].state_dict()[name], value, rtol=1e-3, atol=1e-3, msg=name)
        # and they are the moments: one component's are the whole's
        one = GaussianMixture((3,), 1, covariance, floor=1e-9)
        steps(one, x, 1)
        wanted = x.double().t().cov(correction=0)
        if covariance != "full":
            wanted = wanted.diagonal().diag()
        if covariance == "spherical":
            wanted = wanted.trace() / 3 * torch.eye(3)
        matrix = (one.normals.scale_tril @ one.normals.scale_tril.mT)[0].double()
        torch.testing.assert_close(matrix, wanted.double(), rtol=1e-3, atol=1e-3)

    def test_samples_have_its_moments(self, covariance) -> None:
        torch.manual_seed(0)
        x = clouds(400)
        model = GaussianMixture((3,), 2, covariance)
        model.start(x)
        steps(model, x, 20)
        weights, L = model.logits.softmax(0), model.normals.scale_tril
        mean = weights @ model.normals.mean
        far = model.normals.mean - mean
        wanted = torch.einsum("k,kij->ij", weights, L @ L.mT + far[:, :, None] * far[:, None])
        drawn = model.sample(40_000)
        torch.testing.assert_close(drawn.mean(0), mean.detach(), rtol=0, atol=0.2)
        torch.testing.assert_close(drawn.t().cov(), wanted.detach(), rtol=0.05, atol=0.05 * float(wanted.abs().max()))

    def test_the_log_density_is_torch_s(self, covariance) -> None:
        from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

        torch.manual_seed(0)
        model = GaussianMixture((3,), 2, covariance)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.5 * torch.randn_like(p))
        gaussians = MultivariateNormal(model.normals.mean, scale_tril=model.normals.scale_tril)
        x = clouds(20)
        wanted = MixtureSameFamily(Categorical(logits=model.logits), gaussians).log_prob(x)
        torch.testing.assert_close(model.log_prob(x), wanted, rtol=1e-4, atol=1e-4)

    def test_a_component_on_one_example_keeps_the_floor(self, covariance) -> None:
        x = torch.cat([torch.zeros(1, 3), 100 + clouds(50)])
        model = GaussianMixture((3,), 2, covariance, floor=0.01)
        model.normals.set_moments(
            x[[0, 1]],
            (torch.eye(3) if covariance == "full" else torch.ones(3 if covariance == "diagonal" else 1)).expand(
                2, *([3, 3] if covariance == "full" else [-1])
            ),
        )
        assert math.isfinite(steps(model, x, 5)[-1])
        torch.testing.assert_close(model.normals.scale[0], torch.full((3,), 0.1))


def test_stepwise_em_with_decay_one_is_the_average_of_all_statistics() -> None:
    """η_t = 1/(t + 1): sums, with nothing forgotten."""
    em = EM(decay=1.0)
    assert [em.keep(t) for t in range(5)] == pytest.approx([0, 1, 1, 1, 1])
    x = clouds(100)
    model = GaussianMixture((3,), 2)
    for piece in x.split(20):
        list(em(model, Batch(piece), 0.0))
    assert model.mass.sum().item() == pytest.approx(100, rel=1e-5)


def test_stepwise_em_weighs_batches_as_the_papers_do() -> None:
    """S̄_t = (1 - η_t) S̄_{t-1} + η_t s̄_t by a plain loop; of one component the statistics don't hang on parameters."""
    x = clouds(140)
    model, em, average = GaussianMixture((3,), 1, floor=1e-9), EM(decay=0.6), torch.zeros(4)
    for t, piece in enumerate(x.split(20)):
        list(em(model, Batch(piece), 0.0))
        rate = (t + 1) ** -0.6
        average = (1 - rate) * average + rate * torch.cat([piece.mean(0), piece[:, :1].square().mean(0)])
        torch.testing.assert_close(model.normals.mean[0], average[:3], rtol=1e-4, atol=1e-4)
        variance = average[3] - average[0] ** 2
        torch.testing.assert_close(model.normals.scale[0, 0] ** 2, variance, rtol=1e-3, atol=1e-4)


def test_an_epoch_of_batches_is_one_step_of_plain_em(tmp_path: Path) -> None:
    common = [
        "model=gaussian_mixture",
        "data=ring",
        "data.n=600",
        "data.std=0.3",
        "model.components=4",
        "trainer.log_every=1",
    ]
    whole = bare_trainer(tmp_path / "a", *common, "data.batch_size=600", "objective.decay=null", "trainer.steps=8")
    parts = bare_trainer(
        tmp_path / "b",
        *common,
        "data.batch_size=100",
        "objective.decay=null",
        "objective.batches=6",
        "trainer.steps=48",
    )
    x = next(whole.pipeline.evaluation("train", 600)).x
    for trainer in (whole, parts):
        torch.manual_seed(5)
        trainer.model.start(x)
        trainer.objective.seen = trainer.objective.batches  # begun: the first batch is not the start
        fit(trainer)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], value, rtol=1e-3, atol=1e-3, msg=name)
    rises = [row["train/log_likelihood"] for row in whole.report.filed]
    assert all(b >= a - 1e-4 for a, b in itertools.pairwise(rises))


def test_em_finds_the_eight_modes_of_the_ring(tmp_path: Path) -> None:
    trainer = fit(
        bare_trainer(
            tmp_path,
            "model=gaussian_mixture",
            "model.components=8",
            "model.floor=1e-6",
            "data=ring",
            "data.batch_size=200",
            "trainer.steps=300",
        )
    )
    centres = torch.tensor(trainer.pipeline.spec.centres)
    model = trainer.model
    distance = torch.cdist(centres, model.normals.mean)
    assert sorted(distance.argmin(1).tolist()) == list(range(8)) and distance.min(1).values.max() < 0.01
    assert ((model.normals.scale - 0.02).abs() < 0.004).all()
    assert (model.logits.softmax(0) - 1 / 8).abs().max() < 0.03


def test_gradients_reach_what_em_finds() -> None:
    """At a fixed point of EM the gradient of the likelihood is zero (Fisher's identity)."""
    x = clouds(300)
    for model in (GaussianMixture((3,), 2, floor=1e-12), BernoulliMixture((3,), 2, smoothing=0.0)):
        data = x if isinstance(model, GaussianMixture) else (x > 0).float()
        torch.manual_seed(0)
        model.start(data)
        before = torch.autograd.grad(model.log_prob(data).mean(), list(model.parameters()))
        steps(model, data, 400)
        after = torch.autograd.grad(model.log_prob(data).mean(), list(model.parameters()))
        assert max(float(g.norm()) for g in before) > 0.02
        assert max(float(g.norm()) for g in after) < 2e-3


def test_too_few_examples_to_start_from_are_one_line(tmp_path: Path) -> None:
    trainer = bare_trainer(tmp_path, "model=bernoulli_mixture", "model.components=50", "data=digits")
    with pytest.raises(UsageError, match=r"model.components=50: .* 20 examples; set data.batch_size=50"):
        fit(trainer)


class Forgetful(BernoulliMixture):
    def gather(self, x: Tensor, r: Tensor, keep: float) -> None:
        super().gather(x, r, 0.0)


class Contrary(BernoulliMixture):
    @torch.no_grad()
    def maximise(self) -> None:
        super().maximise()
        self.mean_logits.copy_(self.mean_logits.roll(1, 1))


@pytest.mark.parametrize(
    ("kind", "broken"),
    [(BernoulliMixture, set()), (Forgetful, {"EM's statistics add up"}), (Contrary, {"EM climbs"})],
)
def test_check_finds_what_is_wrong_with_em(kind: type[BernoulliMixture], broken: set[str]) -> None:
    torch.manual_seed(0)
    patterns = bars_distribution(3)[0].float()
    batches = [Batch(patterns[torch.randint(len(patterns), (32,))]) for _ in range(10)]
    adam = Adam(1e-2, 0.0, "constant", 0.0, 0.0, None, (0.9, 0.999), 1e-8)
    case = case_of(kind((1, 3, 3), 4), EM(), adam, batches, lambda: kind((1, 3, 3), 4), 2)
    found = {c.name: c for c in prove(case, {"EM climbs", "EM's statistics add up"})}
    assert len(found) == 2 and {name for name, c in found.items() if not c.held} == broken
