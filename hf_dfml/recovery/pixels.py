"""Learnable pixels: what pixel-wise recoveries (DeepInversion, PURER) optimise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Pixels:
    """Images as a leaf of the graph, in a normalised space so that one learning rate suits all channels.

    Args:
        start: `(..., 3, H, W)` normalised pixels, for example standard normal numbers.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].

    Attributes:
        values: the leaf, `(..., 3, H, W)`, to be given to an optimiser.
    """

    def __init__(self, start: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = torch.tensor(mean, device=start.device).view(3, 1, 1)
        self.std = torch.tensor(std, device=start.device).view(3, 1, 1)
        self.values = start.clone().requires_grad_()
        self.project()

    @property
    def images(self) -> Tensor:
        """The images `(..., 3, H, W)` in [0, 1], with a graph to `values`."""
        return self.mean + self.std * self.values

    def __getitem__(self, index: Any) -> Tensor:
        """Some of the images in [0, 1], with a graph to `values`; the first axes are indexed as a tensor's."""
        return self.mean + self.std * self.values[index]

    @torch.no_grad()
    def project(self) -> None:
        """Bring `values` back to where the images are in [0, 1]; to be called after each step of the optimiser.

        A projection, not a clamp in the graph: a clamped pixel would get no gradient and stay stuck.
        """
        self.values.clamp_(-self.mean / self.std, (1 - self.mean) / self.std)
