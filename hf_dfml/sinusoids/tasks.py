"""Sinusoid regression: tasks y = a sin(x + beta) + b that differ in amplitude, phase and offset."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

AMPLITUDES = (0.1, 5.0)
PHASES = (0.0, 2 * math.pi)
OFFSETS = (0.0, 3.0)
INPUTS = (-5.0, 5.0)


@dataclass(frozen=True)
class SinusoidTasks:
    """T regression tasks `y = a sin(x + beta) + b`.

    Source: DRO (Wang et al., UAI 2022), section 5.2: a in [0.1, 5], beta in [0, 2 pi], b in [0, 3], x in [-5, 5], all
    uniform.

    Attributes:
        amplitude: `(T,)`, a.
        phase: `(T,)`, beta, in radians.
        offset: `(T,)`, b.

    Examples:
        >>> tasks = SinusoidTasks.sample(3, torch.Generator().manual_seed(0))
        >>> x, y = tasks.sample_points(10, torch.Generator().manual_seed(1))
        >>> len(tasks), x.shape, y.shape
        (3, torch.Size([3, 10, 1]), torch.Size([3, 10, 1]))
    """

    amplitude: torch.Tensor
    phase: torch.Tensor
    offset: torch.Tensor

    @classmethod
    def sample(cls, num_tasks: int, generator: torch.Generator) -> SinusoidTasks:
        """Draw `num_tasks` tasks; the first n of more tasks are the n tasks of fewer."""
        unit = torch.rand(num_tasks, 3, generator=generator)
        a, beta, b = (
            low + (high - low) * column
            for (low, high), column in zip((AMPLITUDES, PHASES, OFFSETS), unit.T, strict=True)
        )
        return cls(a, beta, b)

    def __len__(self) -> int:
        return len(self.amplitude)

    def __getitem__(self, index: slice | torch.Tensor) -> SinusoidTasks:
        """The tasks chosen by a slice or by an index tensor."""
        return SinusoidTasks(self.amplitude[index], self.phase[index], self.offset[index])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Values y at x, both `(T, P, 1)`; an x of `(P, 1)` is shared by all tasks."""
        a, beta, b = (column[:, None, None] for column in (self.amplitude, self.phase, self.offset))
        return a * torch.sin(x + beta) + b

    def sample_points(self, num_points: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw `num_points` points of every task: x uniform in [-5, 5] and its y, both `(T, P, 1)`."""
        low, high = INPUTS
        x = low + (high - low) * torch.rand(len(self), num_points, 1, generator=generator)
        return x, self(x)
