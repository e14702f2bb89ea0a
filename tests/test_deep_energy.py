"""The deep energy and its generator: both losses by hand, what each moves, and the energy as a score of strangeness."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import build
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gentrain.batch import Batch
from gentrain.evaluation.anomaly import auroc
from gentrain.models.deep_energy import DeepEnergy
from gentrain.objectives import deep_energy
from gentrain.update import Update


def small(seed: int = 0) -> DeepEnergy:
    torch.manual_seed(seed)
    model = DeepEnergy((2,), latent_dim=3, hidden=[6, 5], experts=4, sigma=0.7)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def test_the_energy_is_its_formula():
    model, x = small(), torch.randn(7, 2)
    E = model.energy
    found = model.free_energy(x)
    for i in range(7):
        f = E.features(x[i : i + 1])[0]
        experts = sum(
            math.log1p(math.exp(float((w @ f + c).detach())))
            for w, c in zip(E.experts.weight, E.experts.bias, strict=True)
        )
        assert float(found[i].detach()) == pytest.approx(
            float(x[i] @ x[i]) / 0.49 - float((E.bias @ x[i]).detach()) - experts, rel=1e-4
        )
    assert model.codes(x).shape == (7, 6)


def test_it_is_a_density():
    """The square outgrows the experts, whatever these are: exp(-E) can be integrated."""
    model = small()
    far = 1e3 * torch.nn.functional.normalize(torch.randn(50, 2))
    assert (model.free_energy(far) > 1e5).all()


def test_the_entropy_is_that_of_gaussians_with_the_scales_of_batch_normalisation():
    model = small()
    scales = [m.weight for m in model.generator if isinstance(m, nn.BatchNorm1d)]
    assert [len(s) for s in scales] == [6, 5]
    expected = sum(0.5 * math.log(2 * math.pi * math.e * float(g.detach()) ** 2) for s in scales for g in s)
    assert float(model.entropy().detach()) == pytest.approx(expected, rel=1e-5)
    assert float(model.entropy().detach()) == pytest.approx(
        float(sum(torch.distributions.Normal(0.0, s.detach().abs()).entropy().sum() for s in scales)), rel=1e-5
    )


def updates(model: DeepEnergy, objective: deep_energy.DeepEnergy, x: Tensor) -> list[Update]:
    torch.manual_seed(5)
    return list(objective(model, Batch(x), 0.0))


def test_losses_are_those_of_the_paper():
    model, x = small(), torch.randn(8, 2)
    energy, generator = updates(model, deep_energy.DeepEnergy(entropy=0.5, alpha=0.01), x)
    torch.manual_seed(5)
    fakes = model.decode(model.prior.sample(torch.Size([8])))
    on_x, on_fakes, entropy = model.free_energy(x), model.free_energy(fakes), model.entropy()
    squares = 0.01 * ((on_x**2).mean() + (on_fakes**2).mean())
    torch.testing.assert_close(energy.loss, on_x.mean() - on_fakes.mean() + squares)
    torch.testing.assert_close(generator.loss, on_fakes.mean() - 0.5 * entropy)
    assert (energy.part, generator.part) == ("energy", "generator")


def test_each_part_learns_from_its_own_loss():
    model, x = small(), torch.randn(8, 2)
    energy, generator = updates(model, deep_energy.DeepEnergy(), x)
    assert energy.loss is not None and generator.loss is not None
    to_generator = torch.autograd.grad(
        energy.loss, list(model.generator.parameters()), allow_unused=True, retain_graph=True
    )
    assert all(g is None for g in to_generator), "the energy's loss holds the generator still"
    grads = torch.autograd.grad(generator.loss, list(model.generator.parameters()))
    assert all(g.any() for g in grads)
    # more entropy, larger scales: at weight w each scale is pulled by w/γ
    scale = next(m.weight for m in model.generator if isinstance(m, nn.BatchNorm1d))
    pulls = []
    for weight in (0.0, 2.0):
        (_, generator) = updates(model, deep_energy.DeepEnergy(entropy=weight), x)
        assert generator.loss is not None
        pulls.append(torch.autograd.grad(generator.loss, scale)[0])
    torch.testing.assert_close(pulls[1] - pulls[0], -2.0 / scale, atol=1e-4, rtol=1e-3)


def test_the_generator_sees_the_energy_that_has_just_moved():
    model, x = small(), torch.randn(8, 2)
    torch.manual_seed(5)
    steps = deep_energy.DeepEnergy()(model, Batch(x), 0.0)
    next(steps)
    with torch.no_grad():
        model.energy.bias.add_(1.0)
    torch.manual_seed(5)
    fakes = model.decode(model.prior.sample(torch.Size([8])))
    torch.testing.assert_close(next(steps).loss, model.free_energy(fakes).mean() - model.entropy())


def test_together_they_find_the_data_and_the_energy_tells_strangers():
    """A ring of radius 2. The energy wavers as the generator follows it: what is judged is a running average."""
    assembly = build("model=deep_energy", "data=ring", "data.std=0.2", "data.batch_size=100", "model.hidden=[64,128]")
    model = assembly.model
    assert isinstance(model, DeepEnergy)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True)
    torch.manual_seed(2)
    moved = {name: list(model.get_submodule(name).parameters()) for name in ("energy", "generator")}
    optimizers = {name: torch.optim.Adam(own, 1e-3, betas=(0.5, 0.999)) for name, own in moved.items()}
    for step in range(500):
        for update in assembly.objective(model, Batch(assembly.pipeline.batch(step).x), 0.0):
            assert update.loss is not None
            optimizers[update.part].zero_grad()
            update.loss.backward(inputs=moved[update.part])
            optimizers[update.part].step()
        average.update_parameters(model)
    judge = average.module.eval()
    assert isinstance(judge, DeepEnergy)
    test = next(assembly.pipeline.evaluation("test", 1000, 1000)).x
    with torch.no_grad():
        own, strange = judge.free_energy(test), judge.free_energy(5 * torch.rand(1000, 2) - 2.5)
    assert auroc(own.double(), strange.double())[0] > 0.6
    assert 1.5 < float(judge.sample(1000).norm(dim=1).median()) < 2.5
