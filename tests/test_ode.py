"""Solvers of dx/dt = v(x, t): their orders, their tolerances, their gradients; and the divergence of v."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.linalg import matrix_exp

from gentrain.errors import UsageError
from gentrain.models.ode import Method, Solver, with_divergence

TURN = torch.tensor([[-0.3, 2.0], [-1.5, 0.1]], dtype=torch.float64)
TIGHT = Solver("dopri5", rtol=1e-10, atol=1e-10)


def turning(x: Tensor, t: Tensor) -> Tensor:
    """x' = cos(t) A x, whose solution from t = 0 is exp(sin(t) A) x: both the state and the time matter."""
    return t.cos()[:, None] * (x @ TURN.T)


def turned(x: Tensor, t: float) -> Tensor:
    return x @ matrix_exp(math.sin(t) * TURN).T


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_the_error_goes_with_the_order_of_the_method(method: Method, order: int):
    x = torch.tensor([[1.0, -0.5], [0.2, 2.0]], dtype=torch.float64)
    errors = []
    for steps in (40, 80, 160):
        solution = Solver(method, steps)(turning, x, 0.0, 2.0)
        assert solution.evaluations == steps * max(order, 1)
        errors.append(float((solution.x - turned(x, 2.0)).norm()))
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


def test_adapted_steps_keep_to_the_tolerance():
    x = torch.tensor([[1.0, -0.5], [0.2, 2.0]], dtype=torch.float64)
    evaluations = []
    for tolerance in (1e-3, 1e-5, 1e-7, 1e-9):
        solution = Solver("dopri5", rtol=tolerance, atol=tolerance)(turning, x, 0.0, 2.0)
        assert float((solution.x - turned(x, 2.0)).abs().max()) < 10 * tolerance
        evaluations.append(solution.evaluations)
    assert evaluations == sorted(evaluations) and evaluations[0] < evaluations[-1] / 3
    # a fifth-order method: 100 times the accuracy for 100^(1/5) = 2.5 times the steps, in the limit
    assert evaluations[-1] / evaluations[-2] == pytest.approx(100**0.2, rel=0.15)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-8])
def test_the_adaptive_method_is_scipys_step_for_step(tolerance: float):
    start = [1.0, -0.5]

    def slope(t: float, x: list[float]) -> list[float]:
        return (math.cos(t) * (TURN @ torch.tensor(x, dtype=torch.float64))).tolist()

    theirs = solve_ivp(slope, (0.0, 2.0), start, method="RK45", rtol=tolerance, atol=tolerance)
    ours = Solver("dopri5", rtol=tolerance, atol=tolerance)(turning, torch.tensor([start]).double(), 0.0, 2.0)
    assert ours.evaluations == theirs.nfev
    assert ours.x[0].tolist() == pytest.approx(theirs.y[:, -1].tolist(), abs=1e-12)


def test_an_example_is_solved_alone_whatever_is_beside_it():
    def field(x: Tensor, t: Tensor) -> Tensor:  # the larger, the faster it turns
        return torch.stack([x[:, 1], -x[:, 0]], 1) * (1 + x.square().sum(1, keepdim=True)) * (1 + t)[:, None]

    x = torch.tensor([[0.1, 0.0], [1.0, 1.0], [3.0, 0.0]], dtype=torch.float64)
    solver = Solver("dopri5", rtol=1e-4, atol=1e-4)
    together, alone = solver(field, x), [solver(field, row[None]) for row in x]
    assert torch.equal(together.x, torch.cat([each.x for each in alone]))
    assert together.evaluations == max(each.evaluations for each in alone) > 2 * alone[0].evaluations


@pytest.mark.parametrize("solver", [Solver("rk4", 200), TIGHT], ids=lambda solver: solver.method)
def test_back_again(solver: Solver):
    x = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    there = solver(turning, x, 0.3, 1.7).x
    assert torch.allclose(there, turned(x, 1.7) @ torch.linalg.inv(matrix_exp(math.sin(0.3) * TURN)).T, atol=1e-7)
    assert torch.allclose(solver(turning, there, 1.7, 0.3).x, x, atol=1e-7)


@pytest.mark.parametrize("solver", [Solver("midpoint", 400), TIGHT], ids=lambda solver: solver.method)
def test_solutions_have_the_gradients_of_the_closed_form(solver: Solver):
    """x(1) = x(0) e^a: ∂x/∂x(0) = e^a and ∂x/∂a = x(0) e^a."""
    x, a = torch.tensor([[0.7]]).double().requires_grad_(), torch.tensor(0.8).double().requires_grad_()
    by_x, by_a = torch.autograd.grad(solver(lambda x, t: a * x, x).x.sum(), (x, a))
    assert by_x.item() == pytest.approx(math.exp(0.8), rel=1e-5)
    assert by_a.item() == pytest.approx(0.7 * math.exp(0.8), rel=1e-5)


@pytest.mark.parametrize(
    "field", [lambda x, t: x.square(), lambda x, t: x * torch.nan], ids=["it runs away", "it is no number"]
)
def test_what_can_not_be_solved_says_so(field):
    with pytest.raises(UsageError, match="made no more progress after"):
        Solver("dopri5")(field, torch.full((2, 1), 2.0))  # x' = x² from 2 is infinite at t = 1/2


def bending(x: Tensor, t: Tensor) -> Tensor:
    return torch.stack([x[:, 0] * x[:, 1], x[:, 1].sin() + x[:, 2], (x[:, 0] * t).tanh() * x[:, 2] ** 2], 1)


def trace(x: Tensor, t: Tensor) -> Tensor:
    """The divergence of `bending`, by hand."""
    return x[:, 1] + x[:, 1].cos() + 2 * (x[:, 0] * t).tanh() * x[:, 2]


def test_the_trace_is_the_divergence():
    torch.manual_seed(0)
    x, t = torch.randn(5, 3).double(), torch.rand(5).double()
    state = torch.cat([x, torch.full((5, 1), 7.0)], 1)  # the volume so far doesn't matter
    found = with_divergence(bending)(state, t)
    assert torch.equal(found[:, :3], bending(x, t))
    assert torch.allclose(found[:, 3], trace(x, t), atol=1e-12)


def test_all_signs_together_give_the_trace_exactly():
    """Σ over all 2^D vectors of signs of ε'Jε is 2^D tr J: off the diagonal the signs cancel."""
    torch.manual_seed(1)
    x, t = torch.randn(4, 3).double(), torch.rand(4).double()
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3))).double()[:, None].expand(-1, 4, -1)
    state = torch.cat([x, x[:, :1]], 1)
    assert torch.allclose(with_divergence(bending, signs)(state, t)[:, 3], trace(x, t), atol=1e-12)
    one = with_divergence(bending, signs[:1])(state, t)[:, 3]
    assert not torch.allclose(one, trace(x, t), atol=1e-2)


def test_the_volume_has_gradients_where_they_are_kept():
    x = torch.tensor([[0.3, -0.8, 1.1]], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.4], dtype=torch.float64)
    found = with_divergence(bending)(torch.cat([x, x.new_zeros(1, 1)], 1), t)[0, 3]
    assert torch.allclose(torch.autograd.grad(found, x)[0], torch.autograd.grad(trace(x, t).sum(), x)[0])
    with torch.no_grad():
        assert not with_divergence(bending)(torch.cat([x, x.new_zeros(1, 1)], 1), t).requires_grad
