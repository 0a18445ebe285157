"""Where the gradient of an inversion loss comes from: autograd through a white box, or queries to a black box.

A recovery optimises whatever makes its images (pixels, a generator) and needs, at each step, the gradient of its loss
with respect to the images that the teacher is shown. That gradient is treated as a constant and pulled back from the
images to what makes them by autograd (the chain rule of BiDf-MKD, SYSTEMS 4.3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

ImageLosses = Callable[[Tensor], Tensor]
"""Images `(..., B, 3, H, W)` in [0, 1] -> the loss of each `(..., B)`. Leading axes hold further versions of the same
batch: image `b` of every version has the same label."""

GradientSource = Callable[[ImageLosses, Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""From losses, images `(B, 3, H, W)` in [0, 1] and a source of randomness to the mean loss (a scalar) and its gradient
with respect to the images `(B, 3, H, W)`, both without a graph."""


def autograd_gradient(losses: ImageLosses, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The gradient source of a white box: back-propagation. Draws nothing from `generator`."""
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        loss = losses(leaf).mean()
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


@dataclass
class ZeroOrderGradient:
    r"""The gradient source of a black box: forward differences along random directions (BiDf-MKD, ICML 2023).

    For each image :math:`x \in \mathbb R^d` and :math:`u_1, \dots, u_q` uniform on the unit sphere,

    .. math:: \hat g = \frac dq \sum_j \frac{\ell(x + \mu u_j) - \ell(x)}{\mu}\, u_j .

    It is unbiased for linear losses. Its cosine with the true gradient is about :math:`\sqrt{q / d}` and its norm
    :math:`\sqrt{d / q}` times too long, which Adam does not notice. Perturbed pixels may leave [0, 1] by :math:`\mu`.

    Attributes:
        directions: q.
        mu: length of the difference, in pixels of [0, 1]. The released code's 0.005 is in normalised pixels; divided
            by a usual standard deviation of 4 per unit it is this default.
        directions_at_once: directions whose images are in memory together.
        queries: images that the loss was asked for so far, `B * (q + 1)` a call.
    """

    directions: int = 100
    mu: float = 0.00125
    directions_at_once: int = 20
    queries: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if min(self.directions, self.directions_at_once) < 1 or self.mu <= 0:
            raise ValueError(
                f"A zero-order gradient needs directions and a positive length, found {self.directions} directions "
                f"({self.directions_at_once} at once) of length {self.mu}."
            )

    @torch.no_grad()
    def __call__(self, losses: ImageLosses, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mean loss of `images` `(B, 3, H, W)` and the estimate of its gradient."""
        # Directions are many: they are drawn where the images are, from a stream that starts from the run's.
        seed = int(torch.randint(2**62, (), generator=generator))
        stream = torch.Generator(images.device).manual_seed(seed)
        images = images.detach()
        centre = losses(images)
        total = torch.zeros_like(images)
        for start in range(0, self.directions, self.directions_at_once):
            count = min(self.directions_at_once, self.directions - start)
            draws = torch.randn(count, *images.shape, generator=stream, device=images.device, dtype=images.dtype)
            unit = draws / torch.linalg.vector_norm(draws, dim=(-3, -2, -1), keepdim=True)
            slopes = (losses(images + self.mu * unit) - centre) / self.mu
            total += torch.einsum("qb,qb...->b...", slopes, unit)
        self.queries += len(images) * (self.directions + 1)
        mean_of_batch = images[0].numel() / self.directions / len(images)
        return centre.mean(), mean_of_batch * total
