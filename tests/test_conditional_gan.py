"""Conditional GANs and critics that tell more: optimal critics on a discrete space, terms by hand, labels obeyed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import build
from torch import Tensor, nn

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.conditional_gan import ACGAN, CGAN, Projection
from gentrain.objectives.ac_gan import AuxiliaryClassifier
from gentrain.objectives.adversarial import Game, LabelSmoothing, NonSaturating
from gentrain.update import following

# Four states x, two labels y, all of 100 examples each: p(x|y) as rows, and what the generator makes of them.
P_DATA = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.4, 0.1, 0.1]])
P_MODEL = torch.tensor([[0.4, 0.1, 0.4, 0.1], [0.1, 0.3, 0.3, 0.3]])
STATES, LABELS = 4, 2


def exactly(p: Tensor, rows: int = 100) -> Tensor:
    """Every state as often as it is likely, one-hot, (rows, 4)."""
    counts = (p * rows).round().long()
    return nn.functional.one_hot(torch.arange(len(p)).repeat_interleave(counts), len(p)).float()


DATA = Batch(torch.cat([exactly(p) for p in P_DATA]), torch.arange(LABELS).repeat_interleave(100))
FAKES = torch.cat([exactly(p) for p in P_MODEL])


class Fixed(nn.Module):
    """A generator of FAKES, whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.free = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        return FAKES + 0 * self.free


def tabular(model: CGAN | ACGAN) -> CGAN | ACGAN:
    """With FAKES for generated examples."""
    model.generator = Fixed()  # type: ignore[assignment]
    return model


def learn(game: Game, model: CGAN | ACGAN) -> Tensor:
    """The critic learns all there is to learn of DATA and FAKES; its last loss."""
    optimizer = torch.optim.LBFGS(
        model.discriminator.parameters(), max_iter=400, tolerance_grad=1e-9, tolerance_change=0
    )

    def closure() -> Tensor:
        loss = next(iter(game(model, DATA, 0.0))).loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return closure().detach()


def one_layer(condition: str) -> CGAN:
    """Its critic sees one-hot states; without a hidden layer, but for the concatenating one, which needs it."""
    hidden = [16] if condition == "concat" else []
    torch.manual_seed(0)
    return CGAN((STATES,), classes=LABELS, condition=condition, latent_dim=2, hidden=[4], discriminator_hidden=hidden)  # type: ignore[arg-type]


@pytest.mark.parametrize("condition", ["concat", "projection"])
@pytest.mark.parametrize(("game", "alpha"), [(NonSaturating(), 0.0), (LabelSmoothing(0.2), 0.2)])
def test_the_best_critic_is_the_share_of_data_among_examples_of_its_label(condition: str, game: Game, alpha: float):
    model = one_layer(condition)
    learn(game, tabular(model))
    for label in range(LABELS):
        with torch.no_grad():
            d = torch.sigmoid(model.discriminate(torch.eye(STATES), y=torch.full((STATES,), label)))
        p, q = P_DATA[label], P_MODEL[label]
        torch.testing.assert_close(d, (1 - alpha) * p / (p + q), atol=2e-3, rtol=0)


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_a_projecting_critic_is_its_formula(network: str):
    torch.manual_seed(1)
    sizes = {"hidden": [5]} if network == "mlp" else {"channels": 3}
    model = CGAN((1, 8, 8), levels=17, classes=3, network=network, condition="projection", **sizes).eval()  # type: ignore[arg-type]
    x, y = torch.randn(4, 1, 8, 8), torch.tensor([2, 0, 2, 1])
    critic = model.discriminator
    assert isinstance(critic, Projection)
    phi, psi, v = critic.trunk(x), critic.verdict, critic.directions.weight.T
    by_hand = [phi[i] @ psi.weight[0] + psi.bias[0] + phi[i] @ v[y[i]] for i in range(4)]
    torch.testing.assert_close(model.discriminate(x, y=y), torch.stack(by_hand))
    assert torch.equal(model.features(x, y=y), phi)


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_a_concatenating_critic_sees_x_and_the_label_and_the_generator_z_and_the_label(network: str):
    torch.manual_seed(2)
    sizes = {"hidden": [5]} if network == "mlp" else {"channels": 3}
    model = CGAN((1, 8, 8), levels=17, classes=3, network=network, latent_dim=2, **sizes).eval()  # type: ignore[arg-type]
    x, z, y = torch.randn(2, 1, 8, 8), torch.randn(2, 2), torch.tensor([2, 0])
    seen: list[Tensor] = []
    model.generator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.discriminator.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.decode(z, y=y)
    model.discriminate(x, y=y)
    label = torch.tensor([[0.0, 0, 1], [1, 0, 0]])
    assert torch.equal(seen[0], torch.cat([z, label], 1))
    if network == "mlp":
        assert torch.equal(seen[1], torch.cat([x.flatten(1), label], 1))
    else:
        assert torch.equal(seen[1][:, :1], x)
        assert all((seen[1][i, 1 + k] == label[i, k]).all() for i in range(2) for k in range(3))


# --- an auxiliary classifier ------------------------------------------------------------------------------------------


def classifying() -> ACGAN:
    torch.manual_seed(3)
    return ACGAN((STATES,), classes=LABELS, latent_dim=2, hidden=[4], discriminator_hidden=[])


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_classifiers_terms_are_cross_entropies(weight: float):
    model = tabular(classifying())
    game = AuxiliaryClassifier(weight=weight)
    updates = game(model, DATA, 0.0)
    critic = next(updates)
    with torch.no_grad():
        logits = model.discriminator(torch.eye(STATES))[1]
    surprise = torch.stack([torch.logsumexp(row, 0) - row for row in logits])  # -log p(y|x), states x labels
    real, fake = ((p.T * surprise).sum() / LABELS for p in (P_DATA, P_MODEL))
    plain = next(iter(Shallow()(model, DATA, 0.0))).loss
    assert critic.loss is not None and plain is not None
    torch.testing.assert_close(critic.metrics["class_real"], real)
    torch.testing.assert_close(critic.metrics["class_fake"], fake)
    torch.testing.assert_close(critic.loss, plain + weight * (real + fake))
    assert torch.equal(critic.metrics["d_loss"], critic.loss.detach())
    maker = next(updates)
    adversarial = -torch.log(torch.sigmoid(model.discriminate(FAKES))).mean()
    assert maker.loss is not None and "class_real" not in maker.metrics
    torch.testing.assert_close(maker.loss, adversarial + weight * fake)


class Shallow(NonSaturating):
    """The game alone, for critics that have more to learn."""

    excludes = ()


def test_the_best_auxiliary_classifier_is_the_posterior_over_data_and_generated_examples():
    """Over both, as the paper has it; and the verdict is still the share of data."""
    model = classifying()
    learn(AuxiliaryClassifier(), tabular(model))
    joint = (P_DATA + P_MODEL) / 2
    with torch.no_grad():
        torch.testing.assert_close(
            model.log_class(torch.eye(STATES)).exp(), (joint / joint.sum(0)).T, atol=2e-3, rtol=0
        )
        d = torch.sigmoid(model.discriminate(torch.eye(STATES)))
    p, q = P_DATA.mean(0), P_MODEL.mean(0)
    torch.testing.assert_close(d, p / (p + q), atol=2e-3, rtol=0)


def test_where_the_generator_is_right_the_classifier_is_that_of_the_data():
    model = classifying()
    model.generator = Fixed()  # type: ignore[assignment]
    model.generator.forward = lambda z: DATA.x + 0 * model.generator.free  # type: ignore[method-assign]
    learn(AuxiliaryClassifier(), model)
    with torch.no_grad():
        found = model.log_class(torch.eye(STATES)).exp()
    torch.testing.assert_close(found, (P_DATA / P_DATA.sum(0)).T, atol=2e-3, rtol=0)


def test_what_the_critic_says_is_computed_once_a_turn_and_never_remembered_beyond():
    torch.manual_seed(4)
    model, calls = ACGAN((2,), classes=2, latent_dim=2, hidden=[4]), []
    model.discriminator.trunk.register_forward_hook(lambda *call: calls.append(1))
    batch = Batch(torch.randn(6, 2), torch.arange(6) % 2)
    updates = AuxiliaryClassifier()(model, batch, 0.0)
    next(updates)
    assert len(calls) == 2, "real and generated examples, once each"
    before = model.discriminate(batch.x).detach()
    with torch.no_grad():
        for p in model.discriminator.parameters():
            p.mul_(-2)
    assert not torch.equal(model.discriminate(batch.x), before)
    next(updates)
    assert len(calls) == 5
    with model.remembering():
        first = model.discriminate(batch.x)
        assert model.discriminate(batch.x) is first
        others = {name: 3 * p for name, p in model.discriminator.named_parameters()}
        ahead = torch.func.functional_call(
            _Says(model), {f"model.discriminator.{k}": v for k, v in others.items()}, (batch.x,)
        )
        assert not torch.equal(ahead, first), "other parameters in their place are other parameters"


class _Says(nn.Module):
    def __init__(self, model: ACGAN):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.discriminate(x)


def test_another_game_can_be_put_inside():
    made = build(
        "model=ac_gan", "data=digits", "objective@objective.game=label_smoothing", "objective.game.smoothing=0.3"
    )
    game = made.objective
    assert isinstance(game, AuxiliaryClassifier) and isinstance(game.game, LabelSmoothing)
    real, fake = torch.tensor([0.5]), torch.tensor([-0.5])
    assert torch.equal(game.discriminator_loss(real, fake), LabelSmoothing(0.3).discriminator_loss(real, fake))
    with pytest.raises(
        UsageError, match=r"model=ACGAN with objective=NonSaturating.*Objectives that fit the model: ac_gan"
    ):
        build("model=ac_gan", "objective=non_saturating", "data=digits")


# --- labels -----------------------------------------------------------------------------------------------------------

Make = Callable[[], CGAN | ACGAN]
BOTH: dict[str, Make] = {
    "cgan": lambda: CGAN((2,), classes=3, latent_dim=2, hidden=[32]),
    "projection": lambda: CGAN((2,), classes=3, latent_dim=2, hidden=[32], condition="projection"),
    "ac_gan": lambda: ACGAN((2,), classes=3, latent_dim=2, hidden=[32]),
}
CENTRES = torch.tensor([[3.0, 0.0], [-3.0, 3.0], [-1.0, -4.0]])


@pytest.mark.parametrize("name", BOTH)
def test_samples_of_a_label_are_at_its_mode_and_those_of_none_at_all_evenly(name: str):
    torch.manual_seed(5)
    model = BOTH[name]()
    game = AuxiliaryClassifier() if isinstance(model, ACGAN) else NonSaturating()
    optimizers = {
        p: torch.optim.Adam(model.get_submodule(p).parameters(), 2e-3, betas=(0.5, 0.999)) for p in game.parts
    }
    for _ in range(400):
        y = torch.randint(3, (96,))
        updates, done = game(model, Batch(CENTRES[y] + 0.3 * torch.randn(96, 2), y), 0.0), None
        while (update := following(updates, done)) is not None:
            done = optimizers[update.part]
            done.zero_grad()
            assert update.loss is not None
            update.loss.backward(inputs=list(model.get_submodule(update.part).parameters()))
            done.step()
    model.eval()
    for label in range(3):
        x = model.sample(200, y=torch.full((200,), label))
        assert (torch.cdist(x, CENTRES).argmin(1) == label).float().mean() > 0.95
    torch.manual_seed(6)
    counts = torch.cdist(model.sample(3000), CENTRES).argmin(1).bincount(minlength=3)
    assert ((counts - 1000).abs() < 5 * (3000 * 2 / 9) ** 0.5 + 150).all()
    if isinstance(model, ACGAN):
        assert torch.equal(model.log_class(CENTRES).argmax(1), torch.arange(3))


@pytest.mark.parametrize("name", BOTH)
def test_bad_labels_are_one_line(name: str):
    model, z = BOTH[name](), torch.zeros(2, 2)
    with pytest.raises(UsageError, match="labels are missing"):
        model.decode(z)
    with pytest.raises(UsageError, match="one label for each of the 2"):
        model.decode(z, y=torch.zeros(3))
    for wrong in (3, -1):
        with pytest.raises(UsageError, match=f"there is no label {wrong}; the model knows 0 to 2"):
            model.sample(2, y=torch.tensor([0, wrong]))
    with pytest.raises(UsageError, match="these data have no labels"):
        game = AuxiliaryClassifier() if name == "ac_gan" else NonSaturating()
        next(iter(game(model, Batch(torch.zeros(4, 2)), 0.0)))
    if name != "ac_gan":
        with pytest.raises(UsageError, match="labels are missing"):
            model.discriminate(torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["model=cgan", "data=bars"],
            "CGAN is p.x.y., and these data have no labels y: use data with labels, or model=gan",
        ),
        (["model=ac_gan", "data=bars"], "ACGAN is p.x.y., and these data have no labels"),
        (["model=cgan", "data=digits", "model.classes=5"], "model.classes=5: digits has 10"),
        (["model=cgan", "data=ring", "model.network=conv"], "model.network=conv takes images.*use mlp"),
        (["model=cgan", "data=digits", "model.channels=8"], "model.channels=8 is for model.network=conv"),
    ],
)
def test_what_does_not_fit_is_one_line(overrides: list[str], said: str):
    with pytest.raises(UsageError, match=said):
        build(*overrides)
