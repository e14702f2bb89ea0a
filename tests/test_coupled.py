"""Networks of two domains: what they share, UNIT's losses by hand, and changes that are found on a toy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn.functional import cross_entropy, softplus
from torch.testing import assert_close

from gentrain import noise
from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.cogan import CoGAN
from gentrain.models.unit import UNIT
from gentrain.objectives import coupled as objectives
from gentrain.objectives.feature_matching import FeatureMatching
from gentrain.objectives.least_squares import LeastSquares
from gentrain.optim import SGD
from gentrain.truth.base import Case, prove
from gentrain.update import Objective, Update, following

PATTERNS = torch.tensor([[1.0, -1, -1, 1], [-1, 1, -1, -1], [1, 1, 1, -1]])
SHARES = torch.tensor([0.6, 0.3, 0.1])
CHANGES = {"inversion": torch.neg, "permutation": lambda x: x[:, [2, 0, 3, 1]]}


def images(x: Tensor) -> Tensor:
    return x.view(-1, 1, 2, 2)


def toy(n: int, change: Any) -> Batch:
    """Three patterns, some more often than others, in a little noise; and, drawn apart from them, others, changed."""
    (x, y), (pair, pair_y) = (
        ((PATTERNS[label] + 0.1 * torch.randn(n, 4)).clamp(-1, 1), label)
        for label in (torch.multinomial(SHARES, n, replacement=True) for _ in range(2))
    )
    return Batch(images(x), y, images(change(pair)), pair_y)


def play(
    model: nn.Module, objective: Objective, batch: Batch, optimizers: dict[str, Any] | None = None
) -> list[Update]:
    """A step of the objective; without optimizers nothing moves."""
    updates, found, done = objective(model, batch, 0.0), [], None
    while (update := following(updates, done)) is not None:
        found.append(update)
        if optimizers and update.loss is not None:
            done = optimizers[update.part]
            part = list(model.get_submodule(update.part).parameters())
            for p, g in zip(part, torch.autograd.grad(update.loss, part, allow_unused=True), strict=True):
                p.grad = g
            done.step()
    return found


def train(model: nn.Module, objective: Objective, change: Any, steps: int) -> None:
    optimizers = {
        name: torch.optim.Adam(model.get_submodule(name).parameters(), 2e-3, (0.5, 0.999)) for name in objective.parts
    }
    model.train()
    for _ in range(steps):
        play(model, objective, toy(128, change), optimizers)
    model.eval()


def tiny_unit(**options: Any) -> UNIT:
    return UNIT((1, 2, 2), levels=256, classes=3, latent_dim=4, **{"hidden": [32, 32], "norm": "none", **options})


def tiny_cogan(**options: Any) -> CoGAN:
    return CoGAN((1, 2, 2), levels=256, latent_dim=4, **{"hidden": [32, 32], "norm": "none", **options})


def reached(output: Tensor, model: nn.Module) -> set[str]:
    """The parameters that the output depends on."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(output.square().sum(), parameters, allow_unused=True)
    return {name for name, g in zip(names, gradients, strict=True) if g is not None and g.any()}


def own(found: set[str], *parts: str) -> set[str]:
    """Those that begin with one of `parts`."""
    return {name for name in found if name.startswith(parts)}


class TestTies:
    @pytest.mark.parametrize("options", [{}, {"network": "conv", "channels": 2}], ids=["mlp", "conv"])
    def test_domains_share_all_but_the_layer_at_the_image(self, options: dict[str, Any]) -> None:
        model = UNIT((1, 16, 16), levels=256, classes=3, latent_dim=4, hidden=[8, 8], adapt=True, **options)
        x = torch.rand(4, 1, 16, 16) * 2 - 1
        body, encoders, decoders = "discriminator.body.", "generator.encoders.", "generator.decoders."
        for first, second, mine, others in (
            (model.encode(x), model.encode_pair(x), f"{encoders}x.", f"{encoders}pair."),
            (
                model.decode(torch.randn(4, 4)),
                model.decode_pair(torch.randn(4, 4)),
                f"{decoders}x.",
                f"{decoders}pair.",
            ),
            (model.discriminator.of_x(x), model.discriminator.of_pair(x), f"{body}x.", f"{body}pair."),
            (model.log_class(x), model.log_class_pair(x), f"{body}x.", f"{body}pair."),
        ):
            a, b = reached(first, model), reached(second, model)
            assert own(a, mine) and not own(a, others) and own(b, others) and not own(b, mine)
            assert a - own(a, mine) == b - own(b, others) and any(".shared." in name for name in a)
        kinds = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
        for part in (model.generator.encoders.x, model.generator.decoders.pair, model.discriminator.body.x):
            assert sum(isinstance(layer, kinds) for layer in part.modules()) == 1

    @pytest.mark.parametrize("kind", ["unit", "cogan"])
    def test_what_is_tied_stays_tied(self, kind: str) -> None:
        """After some steps the networks of both domains differ by their own layers, and by these alone."""
        torch.manual_seed(0)
        model = tiny_unit(adapt=True) if kind == "unit" else tiny_cogan()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        train(model, objectives.UNIT() if kind == "unit" else objectives.CoGAN(), torch.neg, 3)
        assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
        x, z = toy(5, torch.neg).x, torch.randn(5, 4)
        out = model.generator.decoders if isinstance(model, UNIT) else model.generator
        assert not torch.equal(model.decode(z), model.decode_pair(z))
        assert not torch.equal(model.discriminator.of_x(x), model.discriminator.of_pair(x))
        out.pair.load_state_dict(out.x.state_dict())
        model.discriminator.body.pair.load_state_dict(model.discriminator.body.x.state_dict())
        assert torch.equal(model.decode(z), model.decode_pair(z))
        assert torch.equal(model.discriminator.of_x(x), model.discriminator.of_pair(x))

    @pytest.mark.parametrize("alike", [True, False])
    def test_domains_may_start_alike(self, alike: bool) -> None:
        model, x, z = tiny_unit(alike=alike), toy(5, torch.neg).x, torch.randn(5, 4)
        assert torch.equal(model.encode(x), model.encode_pair(x)) is alike
        assert torch.equal(model.decode(z), model.decode_pair(z)) is alike
        assert torch.equal(model.discriminator.of_x(x), model.discriminator.of_pair(x)) is alike

    def test_each_half_of_a_batch_has_its_own_critic(self) -> None:
        model, batch = tiny_cogan(), toy(5, torch.neg)
        assert batch.pair is not None
        judged = model.judge_both(torch.cat([batch.x, batch.pair]))
        assert torch.equal(judged[:5], model.discriminator.of_x(batch.x))
        assert torch.equal(judged[5:], model.discriminator.of_pair(batch.pair))

    def test_one_code_gives_both(self) -> None:
        model, z = tiny_cogan().eval(), torch.randn(3, 4)
        for one, other in zip(model.decode_both(z), (model.decode(z), model.decode_pair(z)), strict=True):
            assert torch.equal(one, other)


class TestLosses:
    def test_the_divergence_is_that_of_gaussians_an_element(self) -> None:
        mean = torch.randn(6, 3)
        q, p = (Independent(Normal(m, torch.ones(3)), 1) for m in (mean, torch.zeros(6, 3)))
        assert float(objectives.divergence(mean)) == pytest.approx(float(kl_divergence(q, p).mean()) / 3, rel=1e-5)

    def test_all_terms_by_hand(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With noise that is known: it is the same for every draw."""
        torch.manual_seed(0)
        model, batch = tiny_unit(adapt=True), toy(8, torch.neg)
        epsilon = torch.randn(8, 4)
        monkeypatch.setattr(noise, "normal", lambda *shape, **_: epsilon)
        x, y, pair = batch.x, batch.y, batch.pair
        assert y is not None and pair is not None
        critic = model.discriminator
        to_x, to_pair = model.decode(model.encode_pair(pair) + epsilon), model.decode_pair(model.encode(x) + epsilon)

        real = torch.cat([softplus(-critic.of_x(x)), softplus(-critic.of_pair(pair))]).mean()
        fake = torch.cat([softplus(critic.of_x(to_x)), softplus(critic.of_pair(to_pair))]).mean()
        labels = cross_entropy(critic.labels(critic.body.of_x(x)), y)
        alike = (critic.body.of_x(x) - critic.body.of_pair(to_pair)).abs().mean()
        alike = alike + (critic.body.of_pair(pair) - critic.body.of_x(to_x)).abs().mean()

        fooled = softplus(-critic.of_x(to_x)).mean() + softplus(-critic.of_pair(to_pair)).mean()
        again = model.encode_pair(to_pair), model.encode(to_x)
        terms = {
            "kl": 0.5 * (model.encode(x).square().mean() + model.encode_pair(pair).square().mean()),
            "error": (model.decode(model.encode(x) + epsilon) - x).abs().mean()
            + (model.decode_pair(model.encode_pair(pair) + epsilon) - pair).abs().mean(),
            "kl_cycle": 0.5 * (again[0].square().mean() + again[1].square().mean()),
            "cycle": (model.decode(again[0] + epsilon) - x).abs().mean()
            + (model.decode_pair(again[1] + epsilon) - pair).abs().mean(),
        }
        weights: dict[str, Any] = {"kl": 0.2, "error": 3.0, "kl_cycle": 0.7, "cycle": 5.0}
        others: dict[str, Any] = {"adversarial": 2.0, "classify": 0.4, "features": 0.6}
        objective = objectives.UNIT(**others, **weights)
        critics, generators = play(model, objective, batch)
        assert critics.part == "discriminator" and critics.loss is not None
        assert_close(critics.loss, real + fake + 0.4 * labels + 0.6 * alike)
        assert_close(critics.metrics["d_loss"], critics.loss.detach())
        assert generators.part == "generator" and generators.loss is not None
        total = 2.0 * fooled + sum(weights[name] * term for name, term in terms.items())
        assert_close(generators.loss, total)
        for name, term in terms.items():
            assert_close(generators.metrics[name], term)

    def test_cogan_plays_a_game_of_each_domain(self) -> None:
        torch.manual_seed(0)
        model, batch = tiny_cogan(), toy(8, torch.neg)
        assert batch.pair is not None
        torch.manual_seed(1)
        critics, generators = play(model, objectives.CoGAN(LeastSquares()), batch)
        torch.manual_seed(1)
        z, critic = noise.sample(model.prior, 8), model.discriminator
        of_real, of_fake = (
            torch.stack([critic.of_x(a), critic.of_pair(b)])
            for a, b in ((batch.x, batch.pair), (model.decode(z), model.decode_pair(z)))
        )
        game = LeastSquares()
        assert critics.loss is not None and generators.loss is not None
        assert_close(critics.loss, game.discriminator_loss(of_real, of_fake))
        assert_close(generators.loss, game.generator_loss(of_fake))

    def test_labels_of_the_other_domain_are_not_read(self) -> None:
        model, batch = tiny_unit(adapt=True), toy(8, torch.neg)
        losses = []
        for pair_y in (batch.pair_y, None):
            torch.manual_seed(2)
            losses.append([update.loss for update in play(model, objectives.UNIT(), batch._replace(pair_y=pair_y))])
        assert_close(losses[0], losses[1], rtol=0, atol=0)


class TestToy:
    @pytest.mark.parametrize("name", CHANGES)
    def test_unit_finds_the_change_and_carries_labels_over(self, name: str) -> None:
        """Only one way takes shares of 0.6, 0.3 and 0.1 to the same: nobody says which pattern belongs to which."""
        torch.manual_seed(0)
        model, change = tiny_unit(adapt=True), CHANGES[name]
        train(model, objectives.UNIT(error=10.0, cycle=10.0), change, 600)
        x, pair = images(PATTERNS), images(change(PATTERNS))
        assert (model.translate(pair) - x).abs().max() < 0.6 and (model.translate_back(x) - pair).abs().max() < 0.6
        assert model.log_class(x).argmax(1).tolist() == [0, 1, 2]
        assert model.log_class_pair(pair).argmax(1).tolist() == [0, 1, 2]


class Unsure(UNIT):
    """Gives log-odds for the other domain's labels."""

    def log_class_pair(self, pair: Tensor) -> Tensor:
        return super().log_class_pair(pair) + 1


class Fewer(UNIT):
    """Has one label fewer there."""

    def log_class_pair(self, pair: Tensor) -> Tensor:
        return super().log_class_pair(pair)[:, 1:].log_softmax(1)


class Misshapen(CoGAN):
    """Its other domain is flat."""

    def decode_pair(self, z: Tensor) -> Tensor:
        return super().decode_pair(z).flatten(1)


LABELS, SHAPED = "p(y|pair) sums to one", "what it computes is finite and shaped"


@pytest.mark.parametrize(
    ("kind", "claims"),
    [(UNIT, set()), (Unsure, {LABELS}), (Fewer, {LABELS}), (CoGAN, set()), (Misshapen, {SHAPED})],
)
def test_faults_are_found_by_the_claim_that_they_break(kind: Any, claims: set[str]) -> None:
    options = {"levels": 256, "latent_dim": 4, "hidden": [8]}
    options |= {"classes": 3, "adapt": True} if issubclass(kind, UNIT) else {}
    model, objective = kind((1, 2, 2), **options).eval(), objectives.CoGAN()
    sgd = SGD(0.1, 0.0, "constant", 0.0, 0.0, None, 0.0, False)
    case = Case(model, objective, sgd, [toy(16, torch.neg)], lambda: kind((1, 2, 2), **options), 256)
    assert {check.name for check in prove(case, {LABELS, SHAPED}) if check.held is False} == claims


class TestRefusals:
    def test_labels_to_tell_and_none_to_learn(self) -> None:
        with pytest.raises(UsageError, match=r"model\.adapt=true"):
            UNIT((1, 2, 2), levels=256, adapt=True)
        with pytest.raises(UsageError, match="no labels of x"):
            play(tiny_unit(adapt=True), objectives.UNIT(), toy(4, torch.neg)._replace(y=None))

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"channels": 4}, r"model\.channels=4"),
            ({"hidden": []}, r"model\.hidden=\[\]"),
            ({"network": "conv"}, "sides of 8 to 64"),
        ],
    )
    def test_networks_that_cannot_be(self, options: dict[str, Any], words: str) -> None:
        for make in (tiny_unit, tiny_cogan):
            with pytest.raises(UsageError, match=words):
                make(**options)

    def test_data_without_pairs_and_games_that_ask_for_more(self) -> None:
        with pytest.raises(UsageError, match="no pairs"):
            play(tiny_cogan(), objectives.CoGAN(), toy(4, torch.neg)._replace(pair=None))
        with pytest.raises(UsageError, match=r"objective\.game=FeatureMatching"):
            objectives.UNIT(FeatureMatching())
