"""Where the gradient of an inversion loss comes from: autograd through a white box, or queries to a black box.

A recovery optimises whatever makes its images (pixels, a generator) and needs, at each step, the gradient of its loss
with respect to the images that the teacher is shown. That gradient is treated as a constant and pulled back from the
images to what makes them by autograd (the chain rule of BiDf-MKD, Hu et al., ICML 2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
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
    r"""The gradient source of a black box: differences along random directions (BiDf-MKD, ICML 2023).

    For each image :math:`x \in \mathbb R^d` and :math:`u_1, \dots, u_q` uniform on the unit sphere,

    .. math:: \hat g = \frac dq \sum_j \frac{\ell(x + \mu u_j) - \ell(x)}{\mu}\, u_j .

    It is unbiased for linear losses. Its cosine with the true gradient is about :math:`\sqrt{q / d}` and its norm
    :math:`\sqrt{d / q}` times too long, which Adam does not notice. Perturbed pixels may leave [0, 1] by :math:`\mu`.
    That is the paper's estimator and the default; the options change one thing each and go together.

    - `central`: the difference is :math:`(\ell(x + \mu u) - \ell(x - \mu u)) / 2 \mu`, exact for quadratic losses
      too, for `2 q + 1` queries. Worth it where :math:`\mu` must be large.
    - `orthogonal`: directions that are asked together are an orthonormal frame. Unbiased as before; with as many
      directions as dimensions it is the gradient itself.
    - `frequencies`: directions are sums of the `frequencies` x `frequencies` lowest frequencies (of the orthonormal
      DCT-II) of each channel, a subspace of :math:`m = 3 k^2` dimensions that takes the place of :math:`d`. Unbiased
      for the gradient's projection on it, blind to the rest.
    - `memory`: the first direction is the last estimate of the same recovery, the others are orthogonal to it, and
      :math:`\hat g = \sum_j s_j u_j` of slopes :math:`s_j` is the gradient's projection on all of them (Cheng et al.,
      NeurIPS 2019 and 2021: prior-guided, here with the history as the prior). Where a step turns the true gradient by
      a cosine :math:`\rho`, the cosine grows from step to step towards :math:`\sqrt{(q / d) / (1 - \rho^2)}`. It
      leans towards its past and is not unbiased; images that are shifted or mirrored anew at each step have no past
      (`shift=0`, `flip=False`).

    Attributes:
        directions: q.
        mu: length of the difference, in pixels of [0, 1]. The released code's 0.005 is in normalised pixels; divided
            by a usual standard deviation of 4 per unit it is this default.
        directions_at_once: directions whose images are in memory together.
        central, orthogonal, frequencies, memory: see above; 0 frequencies: all pixels.
        resolution: least root mean square change of a pixel over a difference, whatever `mu` says. Images that travel
            as 8-bit PNG differ in steps of 1 / 255: smaller differences drown in the rounding.
        queries: images that the loss was asked for so far, `B * queries_per_image` a call.
    """

    directions: int = 100
    mu: float = 0.00125
    directions_at_once: int = 20
    central: bool = False
    orthogonal: bool = False
    frequencies: int = 0
    memory: bool = False
    resolution: float = 0.0
    queries: int = field(default=0, init=False)
    _last: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if min(self.directions, self.directions_at_once) < 1 or self.mu <= 0:
            raise ValueError(
                f"A zero-order gradient needs directions and a positive length, found {self.directions} directions "
                f"({self.directions_at_once} at once) of length {self.mu}."
            )
        if self.frequencies < 0 or self.resolution < 0:
            raise ValueError(
                f"frequencies={self.frequencies} and resolution={self.resolution} of a zero-order gradient: expected "
                "no negative number."
            )

    @property
    def queries_per_image(self) -> int:
        """Images that one estimate asks for, for each image of the batch."""
        return 1 + self.directions * (2 if self.central else 1)

    def forget(self) -> None:
        """Begin anew with other images; `recover` says so at its start."""
        self._last = None

    @torch.no_grad()
    def __call__(self, losses: ImageLosses, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mean loss of `images` `(B, 3, H, W)` and the estimate of its gradient."""
        exact = images.detach().to(torch.promote_types(images.dtype, torch.float32))
        # Also where the rest is done in half precision, in whose rounding such small differences drown.
        with torch.autocast(images.device.type, enabled=False):
            loss, gradient = self._estimate(losses, exact, generator)
        return loss, gradient.to(images.dtype)

    def _estimate(self, losses: ImageLosses, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        # Directions are many: they are drawn where the images are, from a stream that starts from the run's.
        seed = int(torch.randint(2**62, (), generator=generator))
        stream = torch.Generator(images.device).manual_seed(seed)
        space = _Subspace.of(images, self.frequencies)
        prior = self._prior((len(images), space.dimensions))
        mu = max(self.mu, self.resolution * math.sqrt(images[0].numel()))
        centre = losses(images)
        total = images.new_zeros(len(images), space.dimensions)
        at_once = min(self.directions_at_once, space.dimensions) if self.orthogonal else self.directions_at_once
        for start in range(0, self.directions, at_once):
            count = min(at_once, self.directions - start)
            draws = torch.randn(
                count, len(images), space.dimensions, generator=stream, device=images.device, dtype=images.dtype
            )
            unit = self._frame(draws, prior, first=start == 0)
            moved = mu * space.images_of(unit)
            ahead = losses(images + moved)
            slopes = (ahead - losses(images - moved)) / (2 * mu) if self.central else (ahead - centre) / mu
            total += torch.einsum("qb,qbm->bm", slopes, unit)
        self.queries += len(images) * self.queries_per_image
        if self.memory:
            self._last = F.normalize(total, dim=-1)
        scale = 1.0 if self.memory else space.dimensions / self.directions
        return centre.mean(), scale / len(images) * space.images_of(total)

    def _prior(self, shape: tuple[int, int]) -> Tensor | None:
        """The last estimate as unit vectors `(B, m)`, if it was of these images."""
        return self._last if self.memory and self._last is not None and self._last.shape == shape else None

    def _frame(self, draws: Tensor, prior: Tensor | None, *, first: bool) -> Tensor:
        """Unit vectors `(q, B, m)` from as many normal ones; `first`: of the call, where the prior's place is."""
        if prior is not None:
            draws = draws - (draws * prior).sum(-1, keepdim=True) * prior
            if first:
                draws = torch.cat([prior[None], draws[1:]])
        if self.orthogonal:
            return torch.linalg.qr(draws.permute(1, 2, 0)).Q.permute(2, 0, 1)
        return F.normalize(draws, dim=-1)


Estimator = Literal["sphere", "central", "orthogonal", "low_frequency", "memory"]

ESTIMATORS: dict[Estimator, dict[str, Any]] = {
    "sphere": {},
    "central": {"central": True},
    "orthogonal": {"orthogonal": True},
    "low_frequency": {"frequencies": 8, "orthogonal": True},
    "memory": {"memory": True},
}
"""Names of estimators and what they are options of `ZeroOrderGradient`; `benchmarks/zero_order.py` compares them."""


@dataclass(frozen=True)
class _Subspace:
    """Directions in which images are changed, in coordinates of an orthonormal basis.

    Attributes:
        shape: `(3, H, W)`.
        rows, columns: `(k, H)` and `(k, W)`, the lowest frequencies of the DCT-II; None: pixels are the coordinates.
    """

    shape: tuple[int, int, int]
    rows: Tensor | None = None
    columns: Tensor | None = None

    @classmethod
    def of(cls, images: Tensor, frequencies: int) -> _Subspace:
        shape = (images.shape[-3], images.shape[-2], images.shape[-1])
        if not frequencies:
            return cls(shape)
        return cls(shape, *(_cosines(size, frequencies).to(images) for size in shape[1:]))

    @property
    def dimensions(self) -> int:
        if self.rows is None or self.columns is None:
            return math.prod(self.shape)
        return self.shape[0] * len(self.rows) * len(self.columns)

    def images_of(self, coordinates: Tensor) -> Tensor:
        """`(..., m)` -> `(..., 3, H, W)`, of the same length."""
        if self.rows is None or self.columns is None:
            return coordinates.unflatten(-1, self.shape)
        waves = coordinates.unflatten(-1, (self.shape[0], len(self.rows), len(self.columns)))
        return self.rows.T @ waves @ self.columns


def _cosines(size: int, frequencies: int) -> Tensor:
    """The first rows `(k, size)` of the orthonormal DCT-II, in double precision."""
    order = torch.arange(min(frequencies, size), dtype=torch.float64)[:, None]
    place = torch.arange(size, dtype=torch.float64) + 0.5
    rows = torch.cos(math.pi / size * order * place) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows
