"""The sigmoid belief network and wake-sleep: probabilities against plain loops, gradients against the delta rule."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from helpers import build
from torch import Tensor

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.latent import draw
from gentrain.models.sbn import SBN
from gentrain.objectives.wake_sleep import WakeSleep
from gentrain.truth.latent import bounds
from gentrain.truth.spaces import discrete, quadrature


def tiny(hidden: tuple[int, ...] = (3, 2), seed: int = 0) -> SBN:
    """Four bits, with weights of order one."""
    torch.manual_seed(seed)
    model = SBN((1, 2, 2), hidden)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p))
    return model


def sigmoid(a: float) -> float:
    return 1 / (1 + math.exp(-a))


def likelihood(layer: torch.nn.Linear, below: tuple[int, ...], above: tuple[int, ...]) -> float:
    """P(below | above) by a loop over units."""
    p = 1.0
    for i, s in enumerate(below):
        on = sigmoid(layer.bias[i].item() + sum(layer.weight[i, j].item() * t for j, t in enumerate(above)))
        p *= on if s else 1 - on
    return p


def test_p_of_x_is_the_sum_over_all_hidden_states() -> None:
    model, states = tiny(), discrete((1, 2, 2), 2).points
    found = quadrature(model, states)
    assert not isinstance(found, str) and found.unsure == 0
    top = [sigmoid(float(a)) for a in model.generative.top.tolist()]  # type: ignore[union-attr]
    for x, log_p in zip(states.flatten(1).int().tolist(), found.log_p.tolist(), strict=True):
        total = 0.0
        for h2 in itertools.product((0, 1), repeat=2):
            prior = math.prod(p if s else 1 - p for p, s in zip(top, h2, strict=True))
            for h1 in itertools.product((0, 1), repeat=3):
                above = likelihood(model.generative.linear(1), h1, h2)
                total += prior * above * likelihood(model.generative.linear(2), tuple(x), h1)
        assert log_p == pytest.approx(math.log(total), abs=1e-5)
    assert found.log_p.exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_q_is_the_product_over_its_layers_and_draws_bring_their_weight() -> None:
    model, x = tiny(), discrete((1, 2, 2), 2).points
    q = model.encode(x)
    z, log_q = q.draw(torch.rand(7, len(x), 5))
    torch.testing.assert_close(log_q, q.log_prob(z))
    for b, k in ((3, 0), (12, 4)):
        h1, h2 = tuple(z[k, b, :3].int().tolist()), tuple(z[k, b, 3:].int().tolist())
        up = likelihood(model.recognition.linear(1), h1, tuple(x[b].flatten().int().tolist()))
        wanted = math.log(up * likelihood(model.recognition.linear(2), h2, h1))
        assert log_q[k, b].item() == pytest.approx(wanted, abs=1e-5)
    mean = torch.sigmoid(model.recognition.linear(1)(x.flatten(1)))
    torch.testing.assert_close(q.centre[:, :3], mean)
    torch.testing.assert_close(q.centre[:, 3:], torch.sigmoid(model.recognition.linear(2)(mean)))


def test_bounds_rise_to_the_exact_likelihood() -> None:
    model, x = tiny((3,)), discrete((1, 2, 2), 2).points
    found = quadrature(model, x)
    assert not isinstance(found, str)
    torch.manual_seed(0)
    ladder = [bounds(model, x, k, 4000 // k).mean() for k in (1, 4, 40)]
    assert ladder[0] + 0.05 < ladder[1] and ladder[1] + 0.02 < ladder[2] < found.log_p.mean() + 0.01
    assert bounds(model, x, 20_000, 1)[0] == pytest.approx(found.log_p, abs=0.1)


def delta_rule(layer: torch.nn.Linear, s: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the mean of -log P(target | s) with respect to W and c."""
    error = torch.sigmoid(s @ layer.weight.t() + layer.bias) - target
    return error.t() @ s / len(s), error.mean(0)


def test_either_phase_is_the_delta_rule_at_states_held_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = tiny(), torch.bernoulli(torch.full((6, 1, 2, 2), 0.5))
    torch.manual_seed(5)
    with torch.no_grad():
        z = draw(model.encode(x), 1)[0][0]
    dream, cause = torch.bernoulli(torch.full((9, 1, 2, 2), 0.5)), torch.bernoulli(torch.full((9, 5), 0.5))
    monkeypatch.setattr(model, "dream", lambda n: (dream, cause))
    torch.manual_seed(5)
    wake, sleep = WakeSleep()(model, Batch(x), 0.0)
    assert (wake.part, sleep.part) == ("generative", "recognition")
    generative, recognition = model.generative, model.recognition

    v, h1, h2 = x.flatten(1), z[:, :3], z[:, 3:]
    wanted = [torch.sigmoid(generative.top) - h2.mean(0)]  # type: ignore[arg-type]
    wanted += [*delta_rule(generative.linear(1), h2, h1), *delta_rule(generative.linear(2), h1, v)]
    found = torch.autograd.grad(wake.loss, [*generative.parameters()], retain_graph=True)  # type: ignore[arg-type]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)

    v, h1, h2 = dream.flatten(1), cause[:, :3], cause[:, 3:]
    wanted = [*delta_rule(recognition.linear(1), v, h1), *delta_rule(recognition.linear(2), h1, h2)]
    found = torch.autograd.grad(sleep.loss, [*recognition.parameters()], retain_graph=True)  # type: ignore[arg-type]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)

    for update, other in ((wake, recognition), (sleep, generative)):
        crossing = torch.autograd.grad(update.loss, [*other.parameters()], allow_unused=True)  # type: ignore[arg-type]
        assert all(g is None for g in crossing)


def test_wake_sleep_raises_the_exact_likelihood() -> None:
    x = discrete((1, 2, 2), 2).points
    p = torch.full((16,), 0.2 / 14).double()
    p[0] = p[-1] = 0.4
    torch.manual_seed(0)
    model = SBN((1, 2, 2), [4, 3])
    optimizers = {part: torch.optim.Adam(model.get_submodule(part).parameters(), 0.02) for part in WakeSleep.parts}

    def exact() -> float:
        found = quadrature(model, x)
        assert not isinstance(found, str)
        return float(found.log_p @ p)

    before = exact()
    for _ in range(400):
        batch = Batch(x[torch.multinomial(p, 32, replacement=True)])
        for update in WakeSleep()(model, batch, 0.0):
            optimizers[update.part].zero_grad()
            assert update.loss is not None
            update.loss.backward(inputs=[*model.get_submodule(update.part).parameters()])
            optimizers[update.part].step()
    entropy = float((p * p.log()).sum())
    assert exact() > before + 0.5 * (entropy - before)


def test_reparametrising_objectives_are_refused() -> None:
    for objective in ("elbo", "iwae"):
        with pytest.raises(UsageError, match=r"BinaryLatent.*wake_sleep"):
            build("model=sbn", f"objective={objective}")
    with pytest.raises(UsageError, match="is no Helmholtz"):
        build("model=vae", "objective=wake_sleep")
    with pytest.raises(UsageError, match=r"model.hidden=\[\]"):
        build("model=sbn", "model.hidden=[]")
    assert isinstance(quadrature(SBN((2,), [20]), torch.zeros(1, 2)), str)
