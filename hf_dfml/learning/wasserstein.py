r"""Distributionally robust learning over a Wasserstein ball of task embeddings (DRO, UAI 2022, Eqs. 7 and 8).

The worst case over all distributions of embeddings within a Wasserstein ball is, by Lagrangian duality, a worst case
for each embedding alone: :math:`\max_{e'} l(e') - \gamma \lVert e' - e\rVert^2`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hf_dfml.settings import Settings, option


class Ball(Settings):
    """How the worst embedding near a given one is searched."""

    gamma: float = option(2.0, "Price of the squared distance from the raw embedding.")
    ball_steps: int = option(3, "Gradient steps in e'; 0 trains without robustness.", least=0)
    ball_step_size: float = option(
        0.0, "Learning rate of these steps; 0: 1 / (2 gamma), with which each solves e' - e = grad l(e') / (2 gamma)."
    )
    ball_noise: float = option(0.01, "Standard deviation of the start of e' around e.")
    ball_radius: float = option(
        1.0, "Largest distance of e' from e: reached where gamma is below the curvature of l, and at times above."
    )


def worst_embedding(
    loss: Callable[[Tensor], Tensor], embedding: Tensor, ball: Ball, generator: torch.Generator
) -> Tensor:
    r"""Ascend :math:`l(e') - \gamma \lVert e' - e\rVert^2` from near `e`.

    Two traps of the formulation are avoided. At e' = e the penalty has no gradient, so that with one step from there
    gamma cancels: the start is `e` plus noise. And where `l` is quadratic in e' with a curvature above gamma (the
    usual case for a linear hyper-network) there is no maximum: e' never leaves the ball of `ball_radius` around `e`.
    A learning rate that does not follow gamma is a third: it overshoots for a large one, so that the radius alone
    decides for any gamma.

    Args:
        loss: l, of one embedding `(D,)`.
        embedding: e, `(D,)`.
        ball: gamma, steps and bounds.
        generator: draws the noise.

    Returns:
        e' without a graph; `embedding` itself (detached) if `ball.ball_steps` is 0.
    """
    center = embedding.detach()
    if ball.ball_steps == 0:
        return center
    noise = torch.randn(center.shape, generator=generator, dtype=center.dtype).to(center.device)
    point = _into_ball(center + ball.ball_noise * noise, center, ball.ball_radius)
    step_size = ball.ball_step_size or 0.5 / max(ball.gamma, 1e-6)
    for _ in range(ball.ball_steps):
        point = point.detach().requires_grad_()
        with torch.enable_grad():
            objective = loss(point) - ball.gamma * ((point - center) ** 2).sum()
            (gradient,) = torch.autograd.grad(objective, point)
        point = _into_ball(point.detach() + step_size * gradient, center, ball.ball_radius)
    return point


def wasserstein2(first: Tensor, second: Tensor) -> float:
    """2-Wasserstein distance between two clouds of equally heavy points, `(M, D)` and `(N, D)`; exact, by POT.

    Examples:
        >>> cloud = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> round(wasserstein2(cloud, cloud.flip(0) + torch.tensor([0.0, 3.0])), 4)
        3.0
    """
    import ot

    first, second = first.detach().cpu().double(), second.detach().cpu().double()
    cost = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    masses = [torch.full((len(cloud),), 1 / len(cloud), dtype=torch.float64) for cloud in (first, second)]
    return float(ot.emd2(*masses, cost)) ** 0.5


def largest_curvature(weight: Tensor) -> float:
    """Largest eigenvalue of `W^T W` for `W` `(P, D)`: the gamma above which the search has a finite maximum.

    The largest number of their type for weights that have grown out of all bounds.
    """
    products = weight.detach().T @ weight.detach()
    if not torch.isfinite(products).all():
        return torch.finfo(products.dtype).max
    return float(torch.linalg.eigvalsh(products.double())[-1])


def _into_ball(point: Tensor, center: Tensor, radius: float) -> Tensor:
    offset = point - center
    length = torch.linalg.vector_norm(offset)
    return center + offset * (radius / length.clamp(min=radius))
