"""The evaluation of the sinusoid benchmark: fine-tune on a few points of each task, measure the error on others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_dfml.settings import Settings, option
from hf_dfml.sinusoids.tasks import SinusoidTasks
from hf_dfml.utils.seeding import fork

Parameters = dict[str, Tensor]


class RegressionProtocol(Settings):
    """How a regression network is examined; DRO gives tasks and shots, but not how it was fine-tuned."""

    shots: list[int] = option([5, 10], "Support points of a task.", least=1, common=True)
    queries: int = option(100, "Query points of a task.", least=1)
    tasks: int = option(100, "Test tasks of a seed, and as many for validation.", least=2)
    tune_lrs: list[float] = option(
        [0.001, 0.003, 0.01, 0.03],
        "Learning rates of fine-tuning to choose from on validation tasks, for each method.",
        above=0,
    )
    tune_steps: list[int] = option([10, 30, 100, 300], "Numbers of steps to choose from, likewise.")


@dataclass(frozen=True)
class Tuned:
    """The fine-tuning that was best on validation tasks."""

    lr: float
    steps: int


def adapt_to_tasks(network: nn.Module, params: Parameters, x: Tensor, y: Tensor, lr: float, steps: int) -> Parameters:
    """SGD on the squared error, all tasks side by side; differentiable with respect to `params`.

    Args:
        network: whose forward pass is used.
        params: parameters of each task's network by name, stacked along the first axis `(T, ...)`.
        x: support inputs `(T, K, 1)`.
        y: support outputs `(T, K, 1)`.
        lr: rate.
        steps: how many.

    Returns:
        The adapted parameters, stacked likewise.
    """
    gradient = torch.func.vmap(torch.func.grad(_error_of(network)))
    for _ in range(steps):
        slopes = gradient(params, x, y)
        params = {name: value - lr * slopes[name] for name, value in params.items()}
    return params


def task_errors(network: nn.Module, params: Parameters, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of each task `(T,)`; arguments as in `adapt_to_tasks`."""
    return torch.func.vmap(_error_of(network))(params, x, y)


def stacked(state: Mapping[str, Tensor], count: int) -> Parameters:
    """The same parameters for each of `count` tasks."""
    return {name: value.detach().expand(count, *value.shape) for name, value in state.items()}


def tune(network: nn.Module, protocol: RegressionProtocol, shots: int, seed: int) -> Tuned:
    """The rate and number of steps with the least error on validation tasks."""
    tasks, points = _draw(protocol, shots, seed, "validation")
    support, query = points
    best, least = Tuned(protocol.tune_lrs[0], 0), float("inf")
    with torch.no_grad():
        for lr in protocol.tune_lrs:
            params, done = stacked(network.state_dict(), len(tasks)), 0
            for steps in sorted(protocol.tune_steps):
                params, done = adapt_to_tasks(network, params, *support, lr, steps - done), steps
                error = task_errors(network, params, *query).mean().item()
                # A rate at which some task diverges gives NaN, which is no less than anything.
                if error < least:
                    best, least = Tuned(lr, steps), error
    return best


def regression_errors(network: nn.Module, protocol: RegressionProtocol, shots: int, seed: int, tuned: Tuned) -> Tensor:
    """Mean squared error on each test task of a seed, `(tasks,)`: the same tasks and points for every network."""
    tasks, (support, query) = _draw(protocol, shots, seed, "test")
    with torch.no_grad():
        params = adapt_to_tasks(network, stacked(network.state_dict(), len(tasks)), *support, tuned.lr, tuned.steps)
        return task_errors(network, params, *query)


def fitted_curves(
    network: nn.Module, protocol: RegressionProtocol, shots: int, seed: int, tuned: Tuned, x: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """What a fine-tuned network predicts at `x` `(P, 1)`: predictions and truth `(T, P)`, and the support points."""
    tasks, (support, _) = _draw(protocol, shots, seed, "test")
    with torch.no_grad():
        params = adapt_to_tasks(network, stacked(network.state_dict(), len(tasks)), *support, tuned.lr, tuned.steps)
        predicted = torch.func.vmap(lambda p: torch.func.functional_call(network, p, (x,)))(params)
    return predicted.squeeze(-1), tasks(x).squeeze(-1), support


def mean_and_spread(errors: Sequence[Tensor]) -> tuple[float, float]:
    """Mean over the seeds of a seed's mean error, and the standard deviation between seeds (0 for one)."""
    means = torch.stack([error.mean() for error in errors])
    return means.mean().item(), means.std().item() if len(means) > 1 else 0.0


def _error_of(network: nn.Module) -> Callable[[Parameters, Tensor, Tensor], Tensor]:
    def error(params: Parameters, x: Tensor, y: Tensor) -> Tensor:
        return ((torch.func.functional_call(network, params, (x,)) - y) ** 2).mean()

    return error


def _draw(
    protocol: RegressionProtocol, shots: int, seed: int, split: str
) -> tuple[SinusoidTasks, tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    generator = fork(seed, "sinusoid evaluation", split, shots)
    tasks = SinusoidTasks.sample(protocol.tasks, generator)
    return tasks, (tasks.sample_points(shots, generator), tasks.sample_points(protocol.queries, generator))
