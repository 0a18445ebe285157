"""Pixels: float in [0, 1] at every public boundary, uint8 where many are stored."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 pixels -> float in [0, 1], same shape."""
    return images.float() / 255


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Float in [0, 1] -> uint8 pixels, rounded to the nearest level, same shape."""
    return (images.detach() * 255).round_().clamp_(0, 255).to(torch.uint8)


def resize(images: torch.Tensor, size: int | tuple[int, int]) -> torch.Tensor:
    """Bilinear, antialiased, differentiable resize of `(B, C, H, W)` floats; a no-op where the size fits already.

    Args:
        images: `(B, C, H, W)`.
        size: the new `(height, width)`, or one number for both.
    """
    target = (size, size) if isinstance(size, int) else tuple(size)
    if tuple(images.shape[-2:]) == target:
        return images
    return F.interpolate(images, size=target, mode="bilinear", align_corners=False, antialias=True)
