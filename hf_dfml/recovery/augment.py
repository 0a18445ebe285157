"""Random shifts, crops and flips of image batches, drawn from an explicit generator and differentiable."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def random_crop_flip(
    images: Tensor,
    generator: torch.Generator,
    *,
    padding: int = 4,
    flip: bool = True,
    border: Literal["constant", "reflect"] = "constant",
) -> Tensor:
    """Shift each image of `(B, C, H, W)` by up to `padding` pixels and mirror half of them.

    What enters at the border is zeros (`constant`) or the image mirrored at its border (`reflect`).

    The released systems draw one crop and one flip for the whole batch; each image has its own here.
    """
    count, _, height, width = images.shape
    device = images.device
    top = torch.randint(0, 2 * padding + 1, (count, 1), generator=generator).to(device)
    left = torch.randint(0, 2 * padding + 1, (count, 1), generator=generator).to(device)
    rows = top + torch.arange(height, device=device)
    columns = left + torch.arange(width, device=device)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator).to(device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(images, (padding,) * 4, mode=border)
    index = torch.arange(count, device=device)[:, None, None]
    # Advanced indices around a slice put the channel last: (B, H, W, C).
    return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def random_roll(images: Tensor, generator: torch.Generator, *, pixels: int = 2, flip: bool = False) -> Tensor:
    """Roll the whole batch by one random offset of up to `pixels` in both directions, and perhaps mirror it.

    This is the jitter of DeepInversion (Yin et al., CVPR 2020) and PURER (Hu et al., CVPR 2023).
    """
    down, right = torch.randint(-pixels, pixels + 1, (2,), generator=generator).tolist()
    images = images.roll((down, right), dims=(2, 3))
    if flip and torch.rand((), generator=generator) < 0.5:
        images = images.flip(3)
    return images
