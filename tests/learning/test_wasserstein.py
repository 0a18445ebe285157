"""The worst embedding in a Wasserstein ball, and the two traps of the formulation (DRO, Eq. 8)."""

from dataclasses import replace

import pytest
import torch

from hf_dfml.learning.wasserstein import Ball, largest_curvature, wasserstein2, worst_embedding

DIM = 4
FREE = Ball(ball_radius=1e6, ball_step_size=0.01)


@pytest.fixture
def problem():
    """l(e') = |A e' - c|^2, as of a linear hyper-network."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(6, DIM, generator=generator, dtype=torch.float64)
    target = torch.randn(6, generator=generator, dtype=torch.float64)
    embedding = torch.randn(DIM, generator=generator, dtype=torch.float64)
    return (lambda point: ((matrix @ point - target) ** 2).sum()), embedding, matrix, target


def search(problem, **changes):
    loss, embedding, *_ = problem
    return worst_embedding(loss, embedding, replace(FREE, **changes), torch.Generator().manual_seed(1))


def test_gamma_cancels_in_one_step_from_the_raw_embedding(problem):
    # The trap, documented: without noise and with K_e = 1 the penalty has no gradient where the search starts.
    trapped = [search(problem, gamma=gamma, ball_steps=1, ball_noise=0.0) for gamma in (0.5, 2.0, 10.0)]
    assert torch.equal(trapped[0], trapped[1]) and torch.equal(trapped[1], trapped[2])


@pytest.mark.parametrize("way_out", [{"ball_steps": 1, "ball_noise": 0.1}, {"ball_steps": 3, "ball_noise": 0.0}])
def test_gamma_matters_with_noise_or_more_steps(problem, way_out):
    embedding = problem[1]
    near = search(problem, gamma=10.0, **way_out)
    far = search(problem, gamma=0.5, **way_out)
    assert (near - embedding).norm() < (far - embedding).norm() - 1e-4


def test_the_step_that_follows_gamma_solves_the_stationarity_condition(problem):
    """e' - e = grad l(e') / (2 gamma), step by step; a few are enough for a gamma well above the curvature."""
    loss, embedding, matrix, target = problem
    gamma = 8 * largest_curvature(matrix)
    found = search(problem, gamma=gamma, ball_steps=1, ball_step_size=0.0, ball_noise=0.0)
    assert torch.allclose(found, embedding + matrix.T @ (matrix @ embedding - target) / gamma)
    found = search(problem, gamma=gamma, ball_steps=12, ball_step_size=0.0)
    assert torch.allclose(found - embedding, matrix.T @ (matrix @ found - target) / gamma, atol=1e-8)


def test_a_large_gamma_has_the_closed_form_maximum(problem):
    _, embedding, matrix, target = problem
    gamma = 2 * largest_curvature(matrix)
    # Stationary: A^T (A e' - c) = gamma (e' - e).
    curvature = matrix.T @ matrix
    identity = torch.eye(DIM, dtype=torch.float64)
    expected = torch.linalg.solve(gamma * identity - curvature, gamma * embedding - matrix.T @ target)
    found = search(problem, gamma=gamma, ball_steps=2000, ball_step_size=0.2 / gamma)
    assert torch.allclose(found, expected, atol=1e-8)


def test_below_the_largest_curvature_only_the_radius_bounds_the_search(problem):
    _, embedding, matrix, _ = problem
    gamma = 0.5 * largest_curvature(matrix)
    runaway = search(problem, gamma=gamma, ball_steps=300, ball_step_size=0.1)
    assert not (runaway - embedding).norm() < 1e3
    held = search(problem, gamma=gamma, ball_steps=300, ball_step_size=0.1, ball_radius=0.25)
    assert (held - embedding).norm() == pytest.approx(0.25)


def test_it_raises_the_objective_and_carries_no_graph(problem):
    loss, embedding, *_ = problem
    worst = search(problem)
    assert loss(worst) - FREE.gamma * ((worst - embedding) ** 2).sum() > loss(embedding)
    assert not worst.requires_grad


def test_no_steps_train_without_robustness(problem):
    assert torch.equal(search(problem, ball_steps=0), problem[1])


def test_the_distance_is_that_of_the_best_matching():
    generator = torch.Generator().manual_seed(2)
    cloud = torch.randn(7, 3, generator=generator)
    shift = torch.tensor([0.3, -0.4, 0.0])
    assert wasserstein2(cloud, cloud[torch.randperm(7, generator=generator)]) == pytest.approx(0, abs=1e-6)
    assert wasserstein2(cloud, cloud + shift) == pytest.approx(0.5, rel=1e-5), "a translation by its length"
    assert wasserstein2(cloud[:1], cloud) == pytest.approx(
        ((cloud - cloud[0]) ** 2).sum(1).mean().sqrt().item(), rel=1e-5
    )
