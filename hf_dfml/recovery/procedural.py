"""Images that are drawn by chance: shapes that cover each other, and coloured noise, for training sets without data.

They show no class, but edges, textures and patches of many sizes, as photographs do, and answers to them tell what a
network makes of these (Baradad et al., "Learning to See by Looking at Noise", NeurIPS 2021, arXiv 2106.05963). Or they
show curves of a pen, as handwriting does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hf_dfml.utils.images import to_uint8

IMAGES_AT_ONCE = 1000
SHAPES = 40
"""Shapes of an image, the large ones below."""
CURVES = 4
"""Curves of an image of strokes, at most."""
POINTS = 48
"""Dots of the pen along a curve."""
DISTANCES_AT_ONCE = 2**24
"""From pixels to dots, that are in memory at once."""


def procedural_images(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Mixtures of dead leaves and coloured noise in random shares.

    Args:
        count: N.
        size: height and width in pixels.
        generator: the source of all randomness, on the CPU.

    Returns:
        `(N, 3, size, size)` uint8 on the CPU.
    """
    parts = []
    for rows in torch.arange(count).split(IMAGES_AT_ONCE):
        noise, leaves = coloured_noise(len(rows), size, generator), dead_leaves(len(rows), size, generator)
        share = torch.rand(len(rows), 1, 1, 1, generator=generator)
        parts.append(to_uint8(share * leaves + (1 - share) * noise))
    return torch.cat(parts)


def strokes(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Dark curves of a pen on a light ground, without colour.

    One to `CURVES` cubic Bezier curves of one width each, their ends and handles anywhere in the image.

    Args:
        count: N.
        size: height and width in pixels.
        generator: the source of all randomness, on the CPU.

    Returns:
        `(N, 3, size, size)` uint8 on the CPU.
    """
    along = torch.linspace(0, 1, POINTS)
    powers = torch.stack([(1 - along) ** 3, 3 * (1 - along) ** 2 * along, 3 * (1 - along) * along**2, along**3])
    pixels = torch.cartesian_prod(torch.arange(size), torch.arange(size)).float()
    parts = []
    for rows in torch.arange(count).split(max(1, DISTANCES_AT_ONCE // (CURVES * POINTS * size * size))):
        corners = size * (0.06 + 0.88 * torch.rand(len(rows), CURVES, 4, 2, generator=generator))
        dots = torch.einsum("nckd,kp->ncpd", corners, powers).flatten(1, 2)
        apart = torch.cdist(dots, pixels).view(len(rows), CURVES, POINTS, size, size).amin(2)
        width = size * (0.012 + 0.025 * torch.rand(len(rows), CURVES, 1, 1, generator=generator))
        drawn = torch.arange(CURVES) < torch.randint(1, CURVES + 1, (len(rows), 1), generator=generator)
        ink = (1 + width - apart).clamp(0, 1) * drawn[:, :, None, None]
        tone = torch.rand(2, len(rows), 1, 1, generator=generator)
        light, dark = 1 - 0.1 * tone[0], 0.2 * tone[1]
        parts.append(to_uint8((light + (dark - light) * ink.amax(1))[:, None].expand(-1, 3, -1, -1)))
    return torch.cat(parts)


def coloured_noise(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Noise whose amplitudes fall with the frequency, to a power of 0.5 to 2: `(N, 3, size, size)` in [0, 1]."""
    frequency = (torch.fft.fftfreq(size)[:, None] ** 2 + torch.fft.rfftfreq(size)[None] ** 2).sqrt()
    frequency[0, 0] = 1 / size  # The mean of an image is drawn below.
    exponent = 0.5 + 1.5 * torch.rand(count, 1, 1, 1, generator=generator)
    white = torch.randn(count, 3, size, size, generator=generator)
    # Channels have much in common, as in photographs.
    mixing = 1 + 0.5 * torch.randn(count, 3, 3, generator=generator)
    waves = torch.fft.rfft2(torch.einsum("nij,njhw->nihw", mixing, white)) / frequency**exponent
    waves = torch.fft.irfft2(waves, s=(size, size))
    waves = (waves - waves.mean((1, 2, 3), keepdim=True)) / waves.std((1, 2, 3), keepdim=True)
    mean = 0.3 + 0.4 * torch.rand(count, 3, 1, 1, generator=generator)
    contrast = 0.1 + 0.2 * torch.rand(count, 1, 1, 1, generator=generator)
    return (mean + contrast * waves).clamp(0, 1)


def dead_leaves(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Shaded ellipses and rectangles, each above the one before: `(N, 3, size, size)` in [0, 1]."""
    rows = torch.arange(size, dtype=torch.float32)[:, None]
    columns = rows.T
    images = torch.rand(count, 3, 1, 1, generator=generator).expand(count, 3, size, size)
    for index in range(SHAPES):
        draws = torch.rand(7, count, 1, 1, generator=generator)
        # The last ones are small, as they hide what is below.
        radius = (0.5 * size * (1 - index / SHAPES) ** 1.5 + 1) * (0.5 + draws[0])
        down, right, angle = rows - size * draws[1], columns - size * draws[2], math.pi * draws[3]
        along = down * angle.cos() + right * angle.sin()
        across = (right * angle.cos() - down * angle.sin()) / (0.3 + 0.7 * draws[4])
        ellipse = along.square() + across.square() < radius.square()
        rectangle = torch.maximum(along.abs(), across.abs()) < radius
        inside = torch.where(draws[5] < 0.6, ellipse, rectangle)[:, None]
        colour = torch.rand(count, 3, 1, 1, generator=generator)
        shade = 0.3 * (draws[6] - 0.5) * along / size
        images = torch.where(inside, (colour + shade[:, None]).clamp(0, 1), images)
    return images


DRAWN = {"procedural": procedural_images, "strokes": strokes}
"""Training images of a student that no member is asked to make, by their name."""
