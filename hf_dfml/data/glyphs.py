"""The embedded data set: characters of many scripts in random pose, ink and paper, drawn from matplotlib's fonts.

Whatever decides a pixel is integer arithmetic on font outlines and on the raw stream of PCG64, so no font renderer,
BLAS or vector unit has a say in it and every machine draws the same images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from importlib import resources

import numpy as np

from hf_dfml.data.outlines import fill_character

IMAGE_SIZE = 32
IMAGES_PER_CLASS = 100
FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif")
"""A class is drawn in those of these faces that hold its character."""

_MASK = 64
_MASK_EXTENT = _MASK - 8
_UNIT_BITS = 12
_UNIT = 1 << _UNIT_BITS
"""Fixed point of the pose: positions in pixels and matrix entries are multiples of 1/4096."""

# How much the images of a class differ. Set so that nearest class means on raw pixels stay poor (5-way, 1 and 5 shots:
# 26 and 39 % on the test classes) while a conv4 learns five classes from 80 images each to 99 %.
_ROTATION = 40
"""Degrees to either side."""
_SHEAR = 24
"""Sixty-fourths of a pixel a pixel, to either side."""
_EXTENT = (14, 26)
"""Longer side of a character in pixels."""
_SHIFT = 2
"""Pixels to either side."""
_PAPER = 80
"""Brightest channel of a background; the ink is brighter than the paper, like chalk."""
_CONTRAST = 60
"""Least difference of lightness, in levels of 256, that ink has where one of eight random inks does."""
_NOISE = 24
"""Levels to either side, a channel."""


def draw_classes(
    class_names: Sequence[str], images_per_class: int = IMAGES_PER_CLASS
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the images of some classes.

    A class's images depend on its character alone: neither on the other classes nor on how many images are asked for.

    Args:
        class_names: names from the class lists of `glyphs`.
        images_per_class: n.

    Returns:
        Images `(len(class_names) * n, 32, 32, 3)` uint8, and their labels int64, index into `class_names`, ascending.
    """
    images = np.concatenate([_draw_class(characters()[name], images_per_class) for name in class_names])
    return images, np.repeat(np.arange(len(class_names), dtype=np.int64), images_per_class)


@cache
def characters() -> dict[str, str]:
    """The character of every class of `glyphs` by the class's name, for example `greek_omega`: `ω`."""
    text = (resources.files(__package__) / "classes" / "glyphs.json").read_text(encoding="utf-8")
    return {name: character for split in json.loads(text).values() for name, character in split.items()}


class _Dice:
    """Uniform integers from the raw stream of PCG64, which numpy promises never to change."""

    def __init__(self, *seed: int) -> None:
        self.bits = np.random.PCG64(seed)

    def roll(self, low: int, high: int, *shape: int) -> np.ndarray:
        """int64 in low..high, both ends included."""
        raw = self.bits.random_raw(math.prod(shape)).reshape(shape) >> np.uint64(32)
        return low + ((raw * np.uint64(high - low + 1)) >> np.uint64(32)).astype(np.int64)


def _draw_class(character: str, n: int) -> np.ndarray:
    """`(n, 32, 32, 3)` uint8."""
    # A stream a purpose, so that the first images stay what they are when more are asked for.
    face_dice, pose_dice, colour_dice, noise_dice = (_Dice(ord(character), purpose) for purpose in range(4))
    masks = np.stack([mask for face in FACES if (mask := fill_character(face, character, _MASK)) is not None])
    face = face_dice.roll(0, len(masks) - 1, n)
    rows, columns = _looked_up(pose_dice.roll(0, (1 << 16) - 1, n, 5))
    samples = masks[face[:, None, None], rows, columns].astype(np.int32)
    coverage = (samples[:, ::2] + samples[:, 1::2])[..., None]
    coverage = coverage[:, :, ::2] + coverage[:, :, 1::2]
    paper, ink = _colours(colour_dice, n)
    blend = (paper * (4 * 255 - coverage) + ink * coverage) // (4 * 255)
    noise = noise_dice.roll(-_NOISE, _NOISE, n, IMAGE_SIZE, IMAGE_SIZE, 3)
    return np.clip(blend + noise.astype(np.int32), 0, 255).astype(np.uint8)


def _looked_up(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which row and column of the mask each of the 2 x 2 samples of each pixel looks up, `(n, 64, 64)` int32 twice.

    Args:
        pose: `(n, 5)` in 0..65535, spread over the ranges of rotation, shear, extent, and shift in x and y.
    """
    rotation = pose[:, 0] * (2 * _ROTATION + 1) // (1 << 16) - _ROTATION
    shear = pose[:, 1] * (2 * _SHEAR + 1) // (1 << 16) - _SHEAR
    low, high = _EXTENT
    extent = low * 64 + pose[:, 2] * (high - low) // (1 << 10)
    shift = (pose[:, 3:] - (1 << 15)) * (2 * _SHIFT) * _UNIT // (1 << 16)
    # Cosines are rounded to the fixed point before use, so the last bit of a machine's own does not matter.
    cosine, sine = (
        np.array([round(f(math.radians(degrees)) * _UNIT) for degrees in rotation.tolist()])
        for f in (math.cos, math.sin)
    )
    # The inverse pose takes a pixel to its mask cell: undo the shift, then the rotation, the shear and the scale.
    matrix = np.stack([cosine + shear * sine // 64, sine - shear * cosine // 64, -sine, cosine])
    a, b, c, d = (matrix * _MASK_EXTENT * 64 // extent)[:, :, None, None]
    samples = (2 * np.arange(2 * IMAGE_SIZE) + 1 - 2 * IMAGE_SIZE) * (_UNIT // 4)
    x = samples[None, None, :] - shift[:, 0, None, None]
    y = samples[None, :, None] - shift[:, 1, None, None]
    columns, rows = (
        ((along_x * x + along_y * y) >> 2 * _UNIT_BITS).astype(np.int32) + _MASK // 2
        for along_x, along_y in ((a, b), (c, d))
    )
    return np.clip(rows, 0, _MASK - 1), np.clip(columns, 0, _MASK - 1)


def _colours(dice: _Dice, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Paper and ink, `(n, 1, 1, 3)` in 0..255 each, the ink lighter by enough to be read."""
    rolled = dice.roll(0, 255, n, 9, 3)
    paper, inks = rolled[:, 0] * (_PAPER + 1) // 256, rolled[:, 1:]
    contrast = ((inks - paper[:, None]) * np.array([2, 5, 1])).sum(-1) // 8
    # The first of eight inks with enough contrast, or the one with most.
    ink = inks[np.arange(n), np.minimum(contrast, _CONTRAST).argmax(1)]
    return paper[:, None, None].astype(np.int32), ink[:, None, None].astype(np.int32)
