"""The pool of the sinusoid benchmark and its evaluation."""

import pytest
import torch

from hf_dfml.sinusoids.evaluation import (
    RegressionProtocol,
    Tuned,
    adapt_to_tasks,
    fitted_curves,
    mean_and_spread,
    regression_errors,
    stacked,
    task_errors,
    tune,
)
from hf_dfml.sinusoids.mlp import Mlp
from hf_dfml.sinusoids.pool import SinusoidRecipe, build_sinusoid_pool, new_mlp
from hf_dfml.sinusoids.tasks import SinusoidTasks

SMALL = SinusoidRecipe(num_models=3, steps=60, points=20, lr=0.01)
PROTOCOL = RegressionProtocol(shots=[5], queries=20, tasks=4, tune_lrs=[0.01, 1e9], tune_steps=[2, 5])


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def error_of(network, task, x):
    return ((network(x) - task(x)[0]) ** 2).mean().item()


def test_the_network_has_the_papers_size():
    assert sum(parameter.numel() for parameter in Mlp().parameters()) == 50 * 2 + 50 * 51 + 51


def test_members_learn_their_own_task_and_not_another():
    pool, tasks, error = build_sinusoid_pool(SinusoidRecipe(num_models=3, steps=400), draw())
    x = torch.linspace(-5, 5, 200)[:, None]
    errors = torch.tensor([[error_of(pool.load(m).network, tasks[t : t + 1], x) for t in range(3)] for m in range(3)])
    assert errors.diagonal().max() < 0.3 and error < 0.3
    assert (errors.argmin(0) == torch.arange(3)).all() and (errors + 10 * torch.eye(3)).min() > 1


def test_training_all_at_once_is_training_each_alone():
    """The first step of Adam from shared weights, against PyTorch's own on one network."""
    recipe = SinusoidRecipe(num_models=2, steps=1, points=20)
    pool, tasks, _ = build_sinusoid_pool(recipe, draw())
    generator = draw()
    SinusoidTasks.sample(2, generator)
    network = new_mlp(generator)
    x, y = tasks.sample_points(20, generator)
    optimizer = torch.optim.Adam(network.parameters(), recipe.lr)
    ((network(x[1]) - y[1]) ** 2).mean().backward()
    optimizer.step()
    for name, tensor in network.state_dict().items():
        assert torch.allclose(pool.states[1][name], tensor, atol=1e-6), name


@pytest.mark.parametrize("shared", [True, False])
def test_initial_weights_are_shared_on_request_and_the_pool_is_reproducible(shared):
    recipe = SinusoidRecipe(num_models=2, steps=0, shared_init=shared)
    first, again = (build_sinusoid_pool(recipe, draw())[0] for _ in range(2))
    assert torch.equal(first.states[0]["fc.weight"], first.states[1]["fc.weight"]) == shared
    assert torch.equal(first.states[1]["fc.weight"], again.states[1]["fc.weight"])


def test_a_loaded_member_is_frozen_and_a_copy():
    pool = build_sinusoid_pool(SMALL, draw())[0]
    teacher = pool.load(1)
    assert teacher.entry is pool[1] and not any(parameter.requires_grad for parameter in teacher.network.parameters())
    teacher.network.fc.weight.zero_()
    assert pool.load(1).network.fc.weight.any()


def test_adapting_all_tasks_at_once_is_sgd_on_each():
    tasks = SinusoidTasks.sample(3, draw())
    x, y = tasks.sample_points(5, draw(1))
    network = new_mlp(draw(2))
    adapted = adapt_to_tasks(network, stacked(network.state_dict(), 3), x, y, lr=0.01, steps=4)
    alone = new_mlp(draw(2))
    optimizer = torch.optim.SGD(alone.parameters(), 0.01)
    for _ in range(4):
        optimizer.zero_grad()
        ((alone(x[2]) - y[2]) ** 2).mean().backward()
        optimizer.step()
    for name, tensor in alone.state_dict().items():
        assert torch.allclose(adapted[name][2], tensor, atol=1e-5), name
    expected = ((alone(x[2]) - y[2]) ** 2).mean().item()
    assert task_errors(network, adapted, x, y)[2].item() == pytest.approx(expected, rel=1e-4)


def test_tuning_rejects_a_rate_that_diverges_and_prefers_the_lower_error():
    network = new_mlp(draw())
    best = tune(network, PROTOCOL, 5, seed=0)
    assert best.lr == 0.01 and best.steps in (2, 5)


def test_all_networks_sit_the_same_evaluation():
    network = new_mlp(draw())
    first, again = (regression_errors(network, PROTOCOL, 5, seed, Tuned(0.01, 3)) for seed in (0, 0))
    other = regression_errors(network, PROTOCOL, 5, 1, Tuned(0.01, 3))
    assert first.shape == (4,) and torch.equal(first, again) and not torch.allclose(first, other)


def test_curves_are_those_of_the_evaluation():
    network = new_mlp(draw())
    x = torch.linspace(-5, 5, 30)[:, None]
    predicted, truth, (points, values) = fitted_curves(network, PROTOCOL, 5, 0, Tuned(0.01, 0), x)
    assert predicted.shape == truth.shape == (4, 30) and points.shape == values.shape == (4, 5, 1)
    assert torch.allclose(predicted[2], network(x).squeeze(), atol=1e-6), "no step: the network itself"


def test_the_spread_is_between_seeds():
    errors = [torch.tensor([0.0, 2.0]), torch.tensor([4.0, 6.0])]
    assert mean_and_spread(errors) == (3.0, pytest.approx(8**0.5))
    assert mean_and_spread(errors[:1]) == (1.0, 0.0)
