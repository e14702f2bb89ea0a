"""InfoGAN and CatGAN: bounds and entropies by hand and by enumeration, priors, and what categories are used for."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import build
from torch import Tensor, nn

from gentrain.batch import Batch
from gentrain.data.pipeline import Pipeline
from gentrain.data.source import Split, make_source
from gentrain.errors import UsageError
from gentrain.evaluation.decoder_ais import DecoderAIS
from gentrain.evaluation.estimator import Finding, Subject, seeded
from gentrain.evaluation.labels import Clusters, LabelAgreement
from gentrain.models.auxiliary import Auxiliary
from gentrain.models.base import Categorises, Conditional, Generative
from gentrain.models.catgan import CatGAN
from gentrain.models.infogan import FactorPrior, InfoGAN
from gentrain.models.mixtures import BernoulliMixture
from gentrain.objectives.adversarial import Game, NonSaturating, Round
from gentrain.objectives.catgan import Categorical
from gentrain.objectives.infogan import Information
from gentrain.optim import Adam
from gentrain.truth.base import prove
from gentrain.truth.objectives import case_of
from gentrain.update import following
from gentrain.uses.codes import Traverse

CENTRES = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
ADAM = Adam(2e-3, 0.0, "constant", 0.0, 0.0, None, (0.5, 0.999), 1e-8)


def play(game: Game, model: Auxiliary, steps: int) -> dict[str, Tensor]:
    """Train on three clusters; the last metrics."""
    optimizers = {part: ADAM.build(part, model.get_submodule(part)) for part in game.parts}
    shown: dict[str, Tensor] = {}
    for _ in range(steps):
        y = torch.randint(3, (96,))
        updates, done = game(model, Batch(CENTRES[y] + 0.2 * torch.randn(96, 2), y), 0.0), None
        while (update := following(updates, done)) is not None:
            done = optimizers[update.part]
            done.zero_grad()
            assert update.loss is not None
            update.loss.backward(inputs=list(model.get_submodule(update.part).parameters()))
            done.step()
            shown |= dict(update.metrics)
    return shown


STATES = 4


def toy(choices: int = STATES, numbers: int = 0, sigma: float | None = None) -> InfoGAN:
    """Four one-hot states, and a Q that is free to say anything of each."""
    torch.manual_seed(0)
    sizes = {"hidden": [8], "discriminator_hidden": [], "code_hidden": None, "code_deviation": sigma}
    return InfoGAN((STATES,), latent_dim=1, categories=[choices] if choices else [], numbers=numbers, **sizes)  # type: ignore[arg-type]


def made(p: Tensor, rows: int = 100) -> Round:
    """What is on the table when category c makes each state x in `rows` p(x|c) of `rows` cases, p (K, states)."""
    counts = (p * rows).round().long()
    category, state = (
        torch.cartesian_prod(torch.arange(len(p)), torch.arange(STATES)).repeat_interleave(counts.flatten(), 0).T
    )
    one_hot = nn.functional.one_hot
    z = torch.cat([torch.zeros(len(category), 1), one_hot(category, len(p)).float()], 1)
    fakes = one_hot(state, STATES).float()
    return Round(fakes, None, z, fakes, 0.0)


def information(p: Tensor) -> float:
    """I(c; x) in nats for even categories, by enumeration."""
    joint = p.double() / len(p)
    apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return float(torch.special.xlogy(joint, joint / apart.clamp_min(1e-300)).sum())


INVERTIBLE = torch.eye(STATES)[[2, 0, 3, 1]]
MERGING = torch.tensor([[1.0, 0, 0, 0], [1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.2, 0.8]])


@pytest.mark.parametrize("p", [INVERTIBLE, MERGING, torch.full((STATES, STATES), 0.25)])
def test_the_bound_lies_below_the_information_and_reaches_it(p: Tensor):
    model, table, game = toy(), made(p), Information()
    exact = information(p)
    with torch.no_grad():
        log_q = torch.log_softmax(model.discriminator(torch.eye(STATES))[1], 1)  # states x categories
        by_hand = math.log(STATES) + float((p / STATES * log_q.T).sum())
        found = game.terms(model, table, "generator")
    assert found.keys() == {"mi_categorical"}
    assert found["mi_categorical"].item() == pytest.approx(by_hand, abs=1e-5)
    assert by_hand < exact - 0.01 or exact == pytest.approx(0, abs=1e-9)
    optimizer = torch.optim.LBFGS(
        model.discriminator.parameters(), max_iter=100, tolerance_grad=1e-9, tolerance_change=0
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -game.terms(model, table, "discriminator")["mi_categorical"]
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    reached = -float(closure().detach())
    assert reached == pytest.approx(exact, abs=2e-3) and reached <= math.log(STATES) + 1e-6
    if p is INVERTIBLE:
        assert exact == pytest.approx(math.log(STATES))


@pytest.mark.parametrize("sigma", [None, 0.7])
def test_the_bound_of_numbers_is_their_log_density(sigma: float | None):
    model = toy(choices=0, numbers=2, sigma=sigma)
    z = torch.tensor([[0.3, 0.5, -1.0], [0.0, -0.2, 0.9]])
    x = torch.eye(STATES)[:2]
    with torch.no_grad():
        said = model.discriminator(x)[1]
        mean, log_variance = said.chunk(2, 1) if sigma is None else (said, torch.tensor(2 * math.log(sigma)))
        found = Information().terms(model, Round(x, None, z, x, 0.0), "generator")
    deviation = (log_variance / 2).exp()
    density = torch.exp(-((z[:, 1:] - mean) ** 2) / (2 * deviation**2)) / (deviation * math.sqrt(2 * math.pi))
    assert found.keys() == {"mi_continuous"}
    assert found["mi_continuous"].item() == pytest.approx(
        2 * math.log(2) + density.log().sum(1).mean().item(), abs=1e-5
    )


@pytest.mark.parametrize(("categorical", "continuous"), [(1.0, 0.1), (0.5, 2.0)])
def test_both_players_gain_by_information(categorical: float, continuous: float):
    torch.manual_seed(1)
    model = InfoGAN((2,), latent_dim=2, categories=[3, 2], numbers=1, hidden=[8])
    batch = Batch(torch.randn(10, 2))
    torch.manual_seed(2)
    updates = Information(None, categorical, continuous)(model, batch, 0.0)
    for name, own in (("d_loss", next(updates)), ("g_loss", next(updates))):
        assert own.loss is not None
        gain = categorical * own.metrics["mi_categorical"] + continuous * own.metrics["mi_continuous"]
        torch.manual_seed(2)
        plain = [update.metrics for update in Plain()(model, batch, 0.0)][name == "g_loss"]
        torch.testing.assert_close(own.loss.detach(), plain[name] - gain)
        assert own.metrics["mi_categorical"] < math.log(3) + math.log(2)


class Plain(NonSaturating):
    """The game alone, for critics that have more to learn."""

    excludes = ()


def test_codes_are_drawn_and_weighed_by_hand():
    prior = FactorPrior(2, [3, 2], 1, torch.zeros(()))
    torch.manual_seed(3)
    z = prior.sample((20_000,))
    noise, first, second, number = z.split([2, 3, 2, 1], 1)
    assert ((first.mean(0) - 1 / 3).abs() < 0.02).all() and ((second.mean(0) - 1 / 2).abs() < 0.02).all()
    assert (first.sum(1) == 1).all() and (second.sum(1) == 1).all()
    assert number.abs().max() <= 1 and number.std().item() == pytest.approx(1 / math.sqrt(3), abs=0.01)
    assert (noise.std(0) - 1).abs().max() < 0.03
    assert (prior.mean - z.mean(0)).abs().max() < 0.03 and (prior.stddev - z.std(0)).abs().max() < 0.03
    by_hand = -noise.square().sum(1) / 2 - math.log(2 * math.pi) - math.log(3) - math.log(2) - math.log(2)
    torch.testing.assert_close(prior.log_prob(z), by_hand)
    model = toy()
    pipeline = build("model=infogan", "data=digits").pipeline
    assert "isn't continuous" in (DecoderAIS().unfit(Subject(model, pipeline)) or "")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"categories": [], "numbers": 0}, "no codes to recognise"),
        ({"categories": [3, 1]}, "two or more"),
        ({"dense": [8]}, r"model.dense=\[8\] is for model.network=conv"),
    ],
)
def test_codes_that_are_none(settings: dict, said: str):
    with pytest.raises(UsageError, match=said):
        InfoGAN((2,), **settings)


def test_the_networks_of_the_paper_on_mnist_have_its_numbers_of_weights():
    """Chen et al. 2016, appendix C.1: a fully connected layer of 1,024 beside two convolutions, in either player."""
    model = InfoGAN((1, 28, 28), levels=256, network="conv", latent_dim=62, channels=64, dense=[1024])
    base, kernel = 7 * 7 * 128, 4 * 4
    generator = 74 * 1024 + 2 * 1024 + 1024 * base + 2 * 128 + kernel * 128 * 64 + 2 * 64 + kernel * 64 + 1
    trunk = kernel * 64 + 64 + kernel * 64 * 128 + 2 * 128 + base * 1024 + 2 * 1024
    heads = 1024 + 1 + 1024 * 128 + 128 + 128 * 12 + 12
    assert sum(p.numel() for p in model.generator.parameters()) == generator
    assert sum(p.numel() for p in model.discriminator.parameters()) == trunk + heads
    x = model.sample(2)
    assert x.shape == (2, 1, 28, 28) and model.features(x).shape == (2, 1024)


# --- categories as a game of their own --------------------------------------------------------------------------------


def h(p: list[float]) -> float:
    return -sum(q * math.log(q) for q in p if q > 0)


@pytest.mark.parametrize(("marginal", "weight"), [(1.0, 1.0), (0.5, 3.0)])
@pytest.mark.parametrize("labels", [False, True])
def test_entropies_of_categories_by_hand(labels: bool, marginal: float, weight: float):
    torch.manual_seed(8)
    model = CatGAN((2,), classes=2, labels=labels, latent_dim=2, hidden=[4], discriminator_hidden=[])
    with torch.no_grad():  # logits (x_0, 0): the log-odds of category 0
        model.discriminator.head.weight.copy_(torch.tensor([[1.0, 0], [0, 0]]))
        model.discriminator.head.bias.zero_()
    odds = [9.0, 1.0, 1 / 3]
    x = torch.tensor([[math.log(odd), 5.0] for odd in odds])
    y = torch.tensor([0, 1, 1])
    p = [[0.9, 0.1], [0.5, 0.5], [0.25, 0.75]]
    torch.testing.assert_close(model.discriminate(x), torch.tensor([-h(row) for row in p]))
    torch.testing.assert_close(model.log_category(x).exp(), torch.tensor(p))
    fakes = model.sample(3)
    model.generator = Constant(fakes)  # type: ignore[assignment]
    q = [[torch.sigmoid(f[0]).item(), torch.sigmoid(-f[0]).item()] for f in fakes]
    mean_p, mean_q = ([sum(row[k] for row in rows) / 3 for k in (0, 1)] for rows in (p, q))
    sure, unsure = (sum(h(row) for row in rows) / 3 for rows in (p, q))
    surprise = -(math.log(0.9) + math.log(0.5) + math.log(0.75)) / 3 if labels else 0.0
    critic, maker = list(Categorical(marginal, weight)(model, Batch(x, y), 0.0))
    assert critic.loss is not None and maker.loss is not None
    assert critic.loss.item() == pytest.approx(sure - unsure - marginal * h(mean_p) + weight * surprise, abs=1e-5)
    assert maker.loss.item() == pytest.approx(unsure - marginal * h(mean_q), abs=1e-5)
    assert critic.metrics["marginal_entropy"].item() == pytest.approx(h(mean_p), abs=1e-5)
    assert maker.metrics["generated_marginal_entropy"].item() == pytest.approx(h(mean_q), abs=1e-5)
    assert ("class_cross_entropy" in critic.metrics) is labels and model.knows_labels is labels


class Constant(nn.Module):
    """A generator of the same examples, whatever it is given."""

    def __init__(self, x: Tensor):
        super().__init__()
        self.x = nn.Parameter(x)

    def forward(self, z: Tensor) -> Tensor:
        return self.x


@pytest.mark.parametrize("labels", [False, True])
def test_clusters_are_categories_and_with_labels_theirs(labels: bool):
    torch.manual_seed(9)
    model = CatGAN((2,), classes=3, labels=labels, latent_dim=2, hidden=[32])
    play(Categorical(), model, 300)
    model.eval()
    found = model.log_category(CENTRES).argmax(1)
    if labels:
        assert torch.equal(model.log_class(CENTRES).argmax(1), torch.arange(3))
    else:
        assert len(found.unique()) == 3
        with pytest.raises(UsageError, match=r"model\.labels=true"):
            model.log_class(CENTRES)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data=bars"], "model.categories=null: give two or more; these data have no labels"),
        (["data=bars", "model.labels=true", "model.categories=3"], "3 of the ones and none"),
        (["data=digits", "model.labels=true", "model.categories=3"], "3 of the ones and 10"),
        (["data=digits", "objective=hinge"], "which it can't train"),
    ],
)
def test_what_does_not_fit_catgan_is_one_line(overrides: list[str], said: str):
    with pytest.raises(UsageError, match=said):
        build("model=catgan", *overrides)


# --- what categories are used for -------------------------------------------------------------------------------------


def test_categories_come_to_stand_for_clusters_without_labels():
    torch.manual_seed(4)
    model = InfoGAN((2,), latent_dim=2, categories=[3], numbers=0, hidden=[32], code_hidden=None)
    last = play(Information(), model, 400)
    model.eval()
    assert math.log(3) - 0.1 < last["mi_categorical"].item() < math.log(3) + 1e-5
    found = model.log_category(CENTRES).argmax(1)
    assert len(found.unique()) == 3, "each cluster is a category of its own"
    z = model.prior.sample((300,))
    with torch.no_grad():
        nearest = torch.cdist(model.decode(z), CENTRES).argmin(1)
    agree = found[nearest] == z[:, 2:].argmax(1)
    assert agree.float().mean() > 0.9, "and the generator draws it from there"


def test_walks_hold_the_noise_and_begin_in_every_category():
    torch.manual_seed(5)
    model = InfoGAN((1, 8, 8), levels=17, latent_dim=3, categories=[4, 2], numbers=2, hidden=[8])
    assert list(model.factors) == [9, 10]

    def nothing() -> Subject:
        raise AssertionError("no data are asked for")

    drawn = Traverse(steps=5, span=1.0)(model, 40, nothing)
    z = drawn.arrays["z"].view(2, 4, 5, 11)
    assert drawn.columns == 5 and drawn.arrays["dims"].tolist() == [9, 10]
    assert (z[..., :3] == 0).all()
    assert torch.equal(z[..., 3:7], torch.eye(4)[None, :, None].expand(2, 4, 5, 4))
    assert (z[..., 7:9] == torch.tensor([1.0, 0.0])).all()
    walk = torch.linspace(-1, 1, 5) / math.sqrt(3)
    torch.testing.assert_close(z[0, ..., 9], walk.expand(4, 5))
    torch.testing.assert_close(z[1, ..., 10], walk.expand(4, 5))
    assert (z[0, ..., 10] == 0).all() and (z[1, ..., 9] == 0).all()


class Sorter(Generative, Categorises, Conditional):
    """Finds the category x_0 of points, and draws them at the label asked for, but for every fourth."""

    shape, support, classes = (2,), "real", 3

    def __init__(self, categories: int):
        super().__init__()
        self._categories = categories

    @property
    def categories(self) -> int:
        return self._categories

    def log_category(self, x: Tensor) -> Tensor:
        return torch.log_softmax(20 * nn.functional.one_hot(x[:, 0].long(), self._categories).float(), 1)

    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        assert y is not None
        shown = torch.where(torch.arange(n) % 4 == 3, (y + 1) % 3, y)
        return torch.stack([20.0 * shown, torch.randn(n)], 1)


def points(category: list[int], label: list[int]) -> Split:
    return Split(torch.stack([torch.tensor(category).float(), torch.zeros(len(category))], 1), torch.tensor(label))


@pytest.mark.parametrize(
    ("matching", "categories", "error", "labels"),
    [
        ("one_to_one", 3, 2 / 6, [2, 0, 1]),
        ("one_to_one", 4, 3 / 6, [2, 0, 1, -1]),
        ("many_to_one", 4, 2 / 6, [2, 0, 1, 0]),
    ],
)
def test_categories_are_matched_on_training_examples_and_judged_on_others(matching, categories, error, labels):
    # Category 0 goes with label 2, 1 with 0, 2 with 1; 3, if there is such a one, with 0 again.
    extra = [3, 3, 3] if categories == 4 else []
    train = points([0] * 5 + [1] * 6 + [2] * 4 + [0] + extra, [2] * 5 + [0] * 6 + [1] * 4 + [0] + [0] * len(extra))
    last = 3 if categories == 4 else 1
    test = points([0, 1, 2, 0, 2, last], [2, 0, 1, 1, 0, 0])
    source = make_source("planted", "real", {"train": train, "test": test}, classes=3)
    subject = Subject(Sorter(categories), Pipeline(source, "real", batch_size=4, seed=0))
    with seeded(0):
        (found,) = Clusters(matching)(subject)
    assert (found.metric, found.kind, found.n) == ("cluster_error", "clusters", 6)
    assert found.value == pytest.approx(error) and found.settings["labels"] == labels


def test_label_agreement_is_the_share_of_samples_that_are_what_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.manual_seed(6)
    y = torch.arange(600) % 3
    x = torch.stack([20.0 * y, torch.randn(600)], 1)
    splits = {"train": Split(x[:400], y[:400]), "test": Split(x[400:], y[400:])}
    source = make_source("columns", "real", splits, classes=3)
    subject = Subject(Sorter(0), Pipeline(source, "real", batch_size=4, seed=0), data="columns")
    assert LabelAgreement().unfit(subject) is None and Clusters().unfit(subject) == "was built without categories"
    with seeded(0):
        (found,) = LabelAgreement(n_fake=1200)(subject)
    assert isinstance(found, Finding) and found.value == pytest.approx(0.75)
    assert found.settings["by_label"] == pytest.approx([0.75] * 3, abs=0.01)


class Unsure(BernoulliMixture):
    """Mixes up probabilities of a category and of an example in it."""

    def log_category(self, x: Tensor) -> Tensor:
        return self.joint(x)


@pytest.mark.parametrize(("kind", "held"), [(BernoulliMixture, True), (Unsure, False)])
def test_probabilities_of_categories_that_are_none_are_found(kind: type[BernoulliMixture], held: bool):
    from gentrain.objectives.likelihood import Likelihood

    torch.manual_seed(7)
    batches = [Batch((torch.rand(32, 1, 2, 2) < 0.5).float()) for _ in range(3)]

    def fresh() -> BernoulliMixture:
        return kind((1, 2, 2), components=3)

    case = case_of(fresh(), Likelihood(), ADAM, batches, fresh, 2)
    (check,) = prove(case, {"the categories' probabilities sum to one"})
    assert check.held is held
