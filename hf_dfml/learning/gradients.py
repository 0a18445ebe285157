"""How the gradients of several tasks become one: averaging (ERM), one after the other (BELL), regularised (TGR)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from hf_dfml.learning.inner_loop import Parameters, TaskLoss


def average_gradient(tasks: Sequence[TaskLoss], params: Parameters) -> tuple[Parameters, dict[str, float]]:
    """Empirical risk minimisation: the mean of the tasks' gradients, and how well they agree."""
    gradients, losses = zip(*(_gradient(task, params) for task in tasks), strict=True)
    mean = _mean(gradients)
    return mean, {"loss": sum(losses) / len(losses), **_agreement(gradients)}


def regularised_gradient(
    tasks: Sequence[TaskLoss],
    params: Parameters,
    *,
    strength: float,
    order: Literal["first", "second"] = "first",
) -> tuple[Parameters, dict[str, float]]:
    r"""Implicit gradient regularisation (TGR, ICML 2024, section on heterogeneous tasks).

    Descends :math:`\frac1T\sum_i L_i + \lambda R` with
    :math:`R(\theta) = \frac{1}{2T}\sum_i \lVert g_i - \bar g\rVert^2`, which pulls the tasks' gradients together.

    Args:
        tasks: `T` losses as functions of the parameters.
        params: where the gradient is taken.
        strength: lambda.
        order: `first` evaluates each task's gradient at the displaced point
            :math:`\theta + \lambda (g_i - \bar g)`, the displacement held constant, without second derivatives.
            `second` differentiates R exactly. On a smooth network both agree up to O(lambda^2). On one with ReLU and
            max pooling they do not, even at the paper's lambda of 1e-3: a displacement that crosses kinks meets
            curvature that the second derivative at theta does not have (benchmarks/mechanisms.py measures both).
            (The released code differentiates through the displacement, which doubles lambda.)

    Returns:
        the gradient by name and the metrics `loss`, `gradient_variance` (R) and `gradient_inner_product`.
    """
    second = order == "second"
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    gradients, losses = zip(*(_gradient(task, leaves, create_graph=second) for task in tasks), strict=True)
    mean = _mean(gradients)
    deviations = [((gradient[name] - mean[name]) ** 2).sum() for gradient in gradients for name in leaves]
    variance = torch.stack(deviations).sum() / (2 * len(tasks))
    if second:
        # Written as the gradient of a scalar so that autograd supplies the Hessian-vector products.
        extra = torch.autograd.grad(variance, list(leaves.values()), allow_unused=True)
        combined = {
            name: (mean[name] if part is None else mean[name] + strength * part).detach()
            for name, part in zip(leaves, extra, strict=True)
        }
    else:
        displaced = [
            _gradient(
                task,
                {name: value.detach() + strength * (gradient[name] - mean[name]) for name, value in leaves.items()},
            )[0]
            for task, gradient in zip(tasks, gradients, strict=True)
        ]
        combined = _mean(displaced)
    return combined, {
        "loss": sum(losses) / len(losses),
        "gradient_variance": float(variance.detach()),
        **_agreement(gradients),
    }


def sequential_displacement(
    tasks: Sequence[TaskLoss], params: Parameters, *, lr: float, rule: Literal["sgd", "adam"] = "sgd"
) -> tuple[Parameters, dict[str, float]]:
    r"""BELL's inner loop (FREE, CVPR 2024, Alg. 2): one step on each task, one task after the other.

    With :math:`\tilde\theta_0 = \theta` and :math:`\tilde\theta_i = \tilde\theta_{i-1} - \alpha \nabla
    L_i(\tilde\theta_{i-1})` the paper moves :math:`\theta` by :math:`\epsilon (\tilde\theta_b - \theta)`. Up to
    :math:`O(\alpha^2)`

    .. math:: (\theta - \tilde\theta_b) / \alpha = \sum_i g_i - \alpha \sum_{j<i} H_i g_j,

    and over random orders of the tasks the second sum is half the gradient of the inner products of all pairs: the
    step also makes the tasks' gradients agree (Lemma 1, Theorem 1).

    Args:
        tasks: `b` losses as functions of the parameters, in the order of the steps.
        params: where the sequence starts.
        lr: alpha.
        rule: of the inner steps: plain SGD as in the paper, or an Adam that starts without moments, as in the
            released code.

    Returns:
        :math:`\tilde\theta_b - \theta` by name, and the metrics `loss` and `gradient_inner_product`, both at
        `params`, as of the other functions here.
    """
    gradients, losses = zip(*(_gradient(task, params) for task in tasks), strict=True)
    start = {name: value.detach() for name, value in params.items()}
    current = {name: value.clone().requires_grad_() for name, value in start.items()}
    values = list(current.values())
    optimizer: torch.optim.Optimizer = torch.optim.SGD(values, lr) if rule == "sgd" else torch.optim.Adam(values, lr)
    for position, task in enumerate(tasks):
        passed = _gradient(task, current)[0] if position else gradients[0]
        for name, value in current.items():
            value.grad = passed[name].detach().clone()
        optimizer.step()
    moved = {name: value.detach() - start[name] for name, value in current.items()}
    return moved, {"loss": sum(losses) / len(losses), **_agreement(gradients)}


def _gradient(task: TaskLoss, params: Parameters, create_graph: bool = False) -> tuple[Parameters, float]:
    leaves = params if create_graph else {name: value.detach().requires_grad_() for name, value in params.items()}
    loss = task(leaves)
    gradients = torch.autograd.grad(loss, list(leaves.values()), create_graph=create_graph, allow_unused=True)
    return {
        name: torch.zeros_like(leaves[name]) if gradient is None else gradient
        for name, gradient in zip(leaves, gradients, strict=True)
    }, loss.item()


def _mean(gradients: Sequence[Parameters]) -> Parameters:
    return {name: torch.stack([gradient[name] for gradient in gradients]).mean(0) for name in gradients[0]}


def _agreement(gradients: Sequence[Parameters]) -> dict[str, float]:
    """Mean inner product over the pairs of different tasks (FREE, Fig. 5)."""
    count = len(gradients)
    if count < 2:
        return {}
    flat = torch.stack([torch.cat([part.detach().flatten() for part in gradient.values()]) for gradient in gradients])
    products: Tensor = flat @ flat.T
    off_diagonal = products.sum() - products.diagonal().sum()
    return {"gradient_inner_product": (off_diagonal / (count * (count - 1))).item()}
