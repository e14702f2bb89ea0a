"""AdaGAN: the law of the weights, the mixture, what stays and what learns, and that boosting finds what is missed."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import bare_trainer, fit
from torch import Tensor

from gentrain.batch import Batch
from gentrain.cli import main
from gentrain.errors import UsageError
from gentrain.models.adagan import AdaGAN
from gentrain.objectives.adversarial import Minimax
from gentrain.objectives.boosting import Boosting, _drawn, shares
from gentrain.objectives.unrolled import Unrolled


def states(model: AdaGAN) -> list[dict[str, Tensor]]:
    return [{k: v.clone() for k, v in generator.state_dict().items()} for generator in model.generator]


class TestShares:
    @pytest.mark.parametrize("beta", [0.1, 0.5, 0.9, 1.0])
    def test_they_solve_the_theorems_equation(self, beta: float) -> None:
        ratio = torch.rand(50, generator=torch.Generator().manual_seed(1)) * 3
        w = shares(ratio, beta)
        assert w.sum().item() == pytest.approx(1, abs=1e-5)
        level = w * 50 * beta + (1 - beta) * ratio  # λ wherever there is a weight
        weighted = w > 0
        torch.testing.assert_close(
            level[weighted], level[weighted][0].expand(int(weighted.sum())), rtol=1e-4, atol=1e-5
        )
        assert ((1 - beta) * ratio[~weighted] >= level[weighted][0] - 1e-5).all()

    def test_they_bring_the_mixture_nearest_to_the_data(self) -> None:
        p_data, p_mixture, beta = torch.tensor([0.2] * 5), torch.tensor([0.6, 0.3, 0.1, 0, 0]), 0.4
        best = shares(p_mixture / p_data, beta)  # one example of each point: the data are even

        def js(q: Tensor) -> float:
            mixed = (1 - beta) * p_mixture + beta * q
            middle = (mixed + p_data) / 2
            return float(torch.special.xlogy(mixed, mixed / middle).sum() + (p_data * (p_data / middle).log()).sum())

        others = torch.distributions.Dirichlet(torch.ones(5)).sample(torch.Size([2000]))
        assert js(best) <= min(js(q) for q in others)

    def test_a_mixture_that_has_everything_leaves_the_data_as_they_are(self) -> None:
        torch.testing.assert_close(shares(torch.ones(8), 0.25), torch.full((8,), 1 / 8))

    def test_examples_are_drawn_by_them(self) -> None:
        weights = torch.tensor([0.0, 0.5, 0.3, 0.0, 0.2]).repeat(2000) / 2000
        torch.manual_seed(0)
        drawn = _drawn(weights) % 5
        counts = drawn.bincount(minlength=5) / len(drawn)
        assert counts[0] == counts[3] == 0
        for i, p in ((1, 0.5), (2, 0.3), (4, 0.2)):
            assert abs(counts[i] - p) < 5 * (p * (1 - p) / len(drawn)) ** 0.5


class TestModel:
    def test_samples_come_evenly_of_the_generators_that_have_begun(self) -> None:
        gan = AdaGAN((1,), components=4, latent_dim=2, hidden=[4])
        for k, generator in enumerate(gan.generator):
            for p in generator.parameters():
                p.data.zero_()
            generator[-2].bias.data.fill_(k)
        torch.manual_seed(0)
        for begun in (1, 3, 4):
            gan.begun.fill_(begun)
            counts = gan.sample(6000).round().long().flatten().bincount(minlength=4) / 6000
            for k in range(4):
                assert abs(counts[k] - (1 / begun if k < begun else 0)) < 5 * (0.25 / 6000) ** 0.5
        codes = torch.cat([torch.randn(4, 2), torch.eye(4)], 1)
        assert gan.decode(codes).flatten().tolist() == [0, 1, 2, 3]

    def test_chances_are_in_the_priors_density(self) -> None:
        gan = AdaGAN((1,), components=4, latent_dim=1, hidden=[4])
        gan.begun.fill_(3)
        z = torch.tensor([[0.0, 0, 0, 1, 0], [0.0, 0, 0, 0, 1]])
        half_log = -0.5 * torch.log(torch.tensor(2 * torch.pi))
        found = gan.prior.log_prob(z)
        torch.testing.assert_close(found[0], half_log - torch.log(torch.tensor(3.0)))
        assert found[1] < -10


class TestBoosting:
    def test_one_generator_after_another_learns_and_those_before_stay_bit_for_bit(self, tmp_path) -> None:
        words = ["model=adagan", "model.components=3", "model.hidden=[8]", "data=ring", "trainer.steps=30"]
        trainer = bare_trainer(tmp_path, *words, "trainer.evaluate_every=0", "trainer.sample_every=0")
        model = trainer.model
        assert isinstance(model, AdaGAN)
        seen = [states(model)]
        tellers = [[p.clone() for p in model.teller.parameters()]]
        advance = trainer._train_step

        def step() -> None:
            advance()
            seen.append(states(model))
            tellers.append([p.clone() for p in model.teller.parameters()])

        trainer._train_step = step  # type: ignore[method-assign]
        fit(trainer)
        changed = [
            [k for k in range(3) if any(not torch.equal(a[k][name], b[k][name]) for name in a[k])]
            for a, b in itertools.pairwise(seen)
        ]
        telling = [
            any(not torch.equal(p, q) for p, q in zip(a, b, strict=True)) for a, b in itertools.pairwise(tellers)
        ]
        # ten steps each; of the second's and the third's, the first quarter (progress below .25: three steps) tells
        assert changed == [[0]] * 10 + [[]] * 3 + [[1]] * 7 + [[]] * 3 + [[2]] * 7
        assert telling == [False] * 10 + [True] * 3 + [False] * 7 + [True] * 3 + [False] * 7
        assert int(model.begun) == 3

    def test_the_teller_learns_the_ratio_of_densities(self) -> None:
        torch.manual_seed(0)
        gan = AdaGAN((1,), components=2, latent_dim=1, hidden=[16], discriminator_hidden=[16])
        for p in gan.generator[0].parameters():
            p.data.zero_()
        boosting, optimizer = Boosting(telling=0.5), torch.optim.Adam(gan.teller.parameters(), 1e-2)
        # the mixture is always at 0; a quarter of the data are there
        x = torch.tensor([[0.0], [1.0], [1.0], [1.0]]).repeat(16, 1)
        for _ in range(300):
            for update in boosting(gan, Batch(x), 0.6):
                assert update.part == "teller" and update.loss is not None
                optimizer.zero_grad()
                update.loss.backward()
                optimizer.step()
        ratio = boosting.ratio(gan, torch.tensor([[0.0], [1.0]]))
        assert ratio[0].item() == pytest.approx(4, rel=0.1) and ratio[1].item() < 0.1
        # so that only the missed examples have a weight: (1 - β) 4 is above λ = β / (3/4)
        weights = shares(boosting.ratio(gan, x), 0.5)
        assert weights[x.flatten() == 0].sum() == 0

    def test_the_second_generator_goes_where_the_first_is_not(self, tmp_path) -> None:
        words = ["data=ring", "data.modes=2", "data.std=0.05", "model.components=2", "model.hidden=[32]"]
        more = ["model.latent_dim=2", "optim.lr=2e-3", "trainer.steps=1200", "data.batch_size=64"]
        trainer = bare_trainer(
            tmp_path, "model=adagan", *words, *more, "trainer.evaluate_every=0", "trainer.sample_every=0"
        )
        model = trainer.model
        assert isinstance(model, AdaGAN)
        centres = torch.tensor(trainer.pipeline.spec.centres)
        first = model.generator[0]
        for p in first.parameters():
            p.data.zero_()
        first[-2].bias.data.copy_(centres[0])  # the first stands on one mode, and stays there
        trainer.step = 600
        fit(trainer)
        assert torch.equal(first[-2].bias.data, centres[0])
        drawn = model.player(1).sample(500)
        nearest = torch.cdist(drawn, centres).argmin(1)
        assert (nearest == 1).float().mean() > 0.9

    def test_what_cant_be_boosted_is_refused_in_a_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(UsageError, match="is built on a game itself"):
            Boosting(Unrolled())
        Boosting(Minimax())
        assert main(["model=adagan", "objective@objective.game=feature_matching", "data=ring", "device=cpu"]) == 2
        assert "FeatureMatching" in capsys.readouterr().err
        assert main(["model=adagan", "objective.telling=1", "data=ring", "device=cpu"]) == 2
        assert "objective.telling=1" in capsys.readouterr().err, "a generator would have no time left to learn"
        assert main(["model=gan", "objective=boosting", "device=cpu"]) == 2
        assert "is no AdaGAN" in capsys.readouterr().err
