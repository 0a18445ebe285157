"""The patch prior: pixels on both sides of a joint between two patches should be alike.

The first layer of a vision transformer (of an MLP-Mixer, of a ConvNeXt) looks at each patch of an image by itself, so
that nothing in it ties the last pixels of one patch to the first of the next: recovered images break there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hf_dfml.networks.info import network_info
from hf_dfml.pool.teacher import Teacher


def patch_in_images(teacher: Teacher, images: Tensor) -> tuple[float, float] | None:
    """Height and width of a member's patches in pixels of images `(B, 3, H, W)`, which it resizes to its own size.

    None for a member that cuts no patches.
    """
    info = network_info(teacher.network)
    patch = info.patch_size
    if patch is None:
        return None
    _, height, width = info.input_size
    return patch[0] * images.shape[-2] / height, patch[1] * images.shape[-1] / width


def patch_joints(images: Tensor, patch: tuple[float, float]) -> Tensor:
    r"""R_patch of GradViT (Hatamizadeh et al., CVPR 2022): the steps of pixels across the joints of a grid of patches.

    :math:`\sum_k \lVert x_{P k, :} - x_{P k - 1, :} \rVert_2 + \sum_k \lVert x_{:, P k} - x_{:, P k - 1} \rVert_2`:
    a norm for each joint, over the whole batch.

    Args:
        images: `(B, 3, H, W)` in [0, 1].
        patch: height and width P of a patch in pixels; a joint within a pixel is moved to the nearest border of one.

    Returns:
        A scalar, zero where no joint crosses the images.
    """
    rows, columns = (_joints(length, each) for length, each in zip(images.shape[-2:], patch, strict=True))
    down = images[..., rows, :] - images[..., [row - 1 for row in rows], :]
    right = images[..., columns] - images[..., [column - 1 for column in columns]]
    return torch.linalg.vector_norm(down, dim=(0, 1, 3)).sum() + torch.linalg.vector_norm(right, dim=(0, 1, 2)).sum()


def _joints(length: int, patch: float) -> list[int]:
    """The first pixel after each joint."""
    nearest = {math.floor(number * patch + 0.5) for number in range(1, math.ceil(length / patch))}
    return sorted(nearest - {0, length})
