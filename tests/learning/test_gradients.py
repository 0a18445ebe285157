"""Gradient regularisation and BELL on quadratics, where everything has a closed form."""

from functools import partial

import pytest
import torch

from hf_dfml.learning.gradients import average_gradient, regularised_gradient, sequential_displacement

TASKS, SIZE = 3, 4


def quadratic(matrix, centre, params):
    """L_i = (theta - c)^T H (theta - c) / 2, so g_i = H (theta - c)."""
    offset = params["theta"] - centre
    return offset @ matrix @ offset / 2


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(TASKS, SIZE, SIZE, generator=generator, dtype=torch.float64)
    matrices = draws @ draws.mT / SIZE
    centres = torch.randn(TASKS, SIZE, generator=generator, dtype=torch.float64)
    theta = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    gradients = torch.stack([matrix @ (theta - centre) for matrix, centre in zip(matrices, centres, strict=True)])
    deviations = gradients - gradients.mean(0)
    regulariser = torch.stack([matrix @ d for matrix, d in zip(matrices, deviations, strict=True)]).mean(0)
    losses = [partial(quadratic, matrix, centre) for matrix, centre in zip(matrices, centres, strict=True)]
    return losses, {"theta": theta}, gradients, deviations, regulariser


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("strength", [1e-3, 0.3])
def test_the_update_is_the_mean_gradient_plus_lambda_times_the_regulariser(problem, order, strength):
    losses, params, gradients, _, regulariser = problem
    combined, _ = regularised_gradient(losses, params, strength=strength, order=order)
    # On quadratics the first-order form has no remainder either: gradients are linear in the displacement.
    assert torch.allclose(combined["theta"], gradients.mean(0) + strength * regulariser, atol=1e-12)


def test_metrics_are_the_closed_forms(problem):
    losses, params, gradients, deviations, _ = problem
    _, metrics = regularised_gradient(losses, params, strength=0.1)
    pairs = [float(gradients[i] @ gradients[j]) for i in range(TASKS) for j in range(TASKS) if i != j]
    assert metrics["gradient_variance"] == pytest.approx(float((deviations**2).sum()) / (2 * TASKS))
    assert metrics["gradient_inner_product"] == pytest.approx(sum(pairs) / len(pairs))


def test_zero_strength_is_plain_averaging(problem):
    losses, params, gradients, *_ = problem
    for order in ("first", "second"):
        combined, _ = regularised_gradient(losses, params, strength=0.0, order=order)
        assert torch.allclose(combined["theta"], gradients.mean(0))
    assert torch.allclose(average_gradient(losses, params)[0]["theta"], gradients.mean(0))


def test_identical_tasks_have_nothing_to_regularise(problem):
    losses, params, gradients, *_ = problem
    combined, metrics = regularised_gradient([losses[0]] * 4, params, strength=5.0)
    assert metrics["gradient_variance"] == pytest.approx(0, abs=1e-20)
    assert torch.allclose(combined["theta"], gradients[0])


def test_on_a_curved_loss_the_first_order_error_is_quadratic_in_lambda():
    tasks = [lambda p, c=c: ((p["theta"] - c) ** 4).sum() for c in (0.0, 1.0)]
    params = {"theta": torch.tensor([0.3, 2.0], dtype=torch.float64)}

    def error(strength):
        first, _ = regularised_gradient(tasks, params, strength=strength, order="first")
        second, _ = regularised_gradient(tasks, params, strength=strength, order="second")
        return (first["theta"] - second["theta"]).norm().item()

    assert error(1e-3) > 0
    assert error(1e-3) / error(5e-4) == pytest.approx(4, rel=0.05)


def test_the_parameters_are_left_alone(problem):
    losses, params, *_ = problem
    before = params["theta"].clone()
    regularised_gradient(losses, params, strength=0.5, order="second")
    assert torch.equal(params["theta"], before) and not params["theta"].requires_grad


@pytest.mark.parametrize("lr", [1e-2, 1e-3])
def test_bell_descends_the_sum_minus_alpha_times_the_earlier_gradients_through_the_later_hessians(problem, lr):
    """FREE, Lemma 1: (theta - theta~) / alpha = sum_i g_i - alpha sum_{j<i} H_i g_j + O(alpha^2)."""
    losses, params, gradients, *_ = problem
    zero = torch.zeros(SIZE, dtype=torch.float64)
    hessians = [
        torch.autograd.functional.hessian(lambda theta, one=one: one({"theta": theta}), zero) for one in losses
    ]
    earlier = sum(hessians[i] @ gradients[j] for i in range(TASKS) for j in range(i))
    pseudo = -sequential_displacement(losses, params, lr=lr)[0]["theta"] / lr
    remainder = (pseudo - (gradients.sum(0) - lr * earlier)).norm()
    assert remainder < 20 * lr**2 and lr * earlier.norm() > 100 * remainder


@pytest.mark.parametrize(("rule", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)])
def test_bell_is_the_displacement_of_an_optimiser_from_task_to_task(problem, rule, kind):
    losses, params, *_ = problem
    theta = params["theta"].clone().requires_grad_()
    optimizer = kind([theta], 0.3)
    for one in losses:
        optimizer.zero_grad()
        one({"theta": theta}).backward()
        optimizer.step()
    moved = sequential_displacement(losses, params, lr=0.3, rule=rule)[0]["theta"]
    assert torch.allclose(moved, theta.detach() - params["theta"])


def test_bell_depends_on_the_order_of_the_tasks_and_erm_does_not(problem):
    losses, params, *_ = problem
    backwards = losses[::-1]
    assert torch.allclose(
        average_gradient(losses, params)[0]["theta"], average_gradient(backwards, params)[0]["theta"]
    )
    there, back = (sequential_displacement(tasks, params, lr=0.1)[0]["theta"] for tasks in (losses, backwards))
    assert not torch.allclose(there, back, rtol=1e-2)


def test_bell_of_a_vanishing_rate_is_erm_and_reports_the_same_metrics(problem):
    losses, params, *_ = problem
    erm, expected = average_gradient(losses, params)
    moved, metrics = sequential_displacement(losses, params, lr=1e-9)
    assert torch.allclose(-moved["theta"] / (TASKS * 1e-9), erm["theta"], rtol=1e-4, atol=1e-5)
    assert metrics == expected == sequential_displacement(losses, params, lr=0.5)[1]
