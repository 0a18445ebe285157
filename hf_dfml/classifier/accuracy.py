"""How many of some images were classified correctly, and what that says of others."""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

Z95 = 1.959964


class Accuracy(NamedTuple):
    """Images classified correctly, of how many.

    Examples:
        >>> print(Accuracy(8, 10))
        8 of 10 (80.0 %, 95 % interval 49.0 to 94.3 %)
    """

    correct: int
    total: int

    @property
    def mean(self) -> float:
        """The accuracy in [0, 1]."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval in [0, 1] by the score method, which holds for few images too (Wilson, JASA 1927)."""
        centre = (self.correct + Z95**2 / 2) / (self.total + Z95**2)
        half = Z95 / (self.total + Z95**2) * sqrt(self.total * self.mean * (1 - self.mean) + Z95**2 / 4)
        return max(0.0, centre - half), min(1.0, centre + half)

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.correct} of {self.total} ({100 * self.mean:.1f} %, "
            f"95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
        )
