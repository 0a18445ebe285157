"""Images side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from hf_dfml.utils.images import to_uint8
from hf_dfml.utils.pictures.style import COLOURS, write

EMPTY = "#dddddd"
"""Of the part of a bar that is not filled."""


def image_grid(
    images: Tensor,
    path: Path | str,
    columns: int,
    titles: Sequence[str] | None = None,
    zoom: int | None = None,
    bars: Sequence[float] | None = None,
) -> Path:
    """Write images side by side into one PNG.

    Args:
        images: `(B, 3, H, W)` in [0, 1].
        path: the file; its folder is made.
        columns: images a row.
        titles: a short text above each image; one that repeats along a row is written once, across all of them.
        zoom: pixels of the picture for a pixel of an image; by default so many that an image is at least 64 wide.
        bars: a number in [0, 1] for each image, drawn as the filled part of a bar below it.

    Returns:
        The path written.

    Raises:
        ValueError: if there is no image, the shape is another, or the titles or bars are too few or too many.
    """
    from PIL import Image, ImageDraw, ImageFont

    if images.dim() != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"A grid needs images (B, 3, H, W) with B of at least 1, found {tuple(images.shape)}.")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"A grid of {len(images)} images needs as many titles, found {len(titles)}.")
    if bars is not None and len(bars) != len(images):
        raise ValueError(f"A grid of {len(images)} images needs as many bars, found {len(bars)}.")
    count, _, height, width = images.shape
    columns = max(1, min(columns, count))
    zoom = zoom or max(1, math.ceil(64 / width))
    gap, caption, bar = 2, 14 if titles else 0, 6 if bars else 0
    step_x, step_y = width * zoom + gap, height * zoom + gap + caption + bar
    rows = math.ceil(count / columns)
    canvas = Image.new("RGB", (columns * step_x + gap, rows * step_y + gap), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=11)
    pixels = to_uint8(images.cpu().float()).permute(0, 2, 3, 1).numpy()
    for index, array in enumerate(pixels):
        left, top = gap + index % columns * step_x, gap + index // columns * step_y
        if titles and (repeats := _repeats(titles, index, columns)):
            draw.text((left, top), _fit(titles[index], draw, font, repeats * step_x - gap), fill="black", font=font)
        tile = Image.fromarray(array).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
        canvas.paste(tile, (left, top + caption))
        if bars:
            below = top + caption + height * zoom + 1
            draw.rectangle((left, below, left + width * zoom - 1, below + bar - 3), fill=EMPTY)
            if filled := round(bars[index] * width * zoom):
                draw.rectangle((left, below, left + filled - 1, below + bar - 3), fill=COLOURS[0])
    return write(path, canvas.save)


def class_rows(
    images: Tensor,
    names: Sequence[str],
    path: Path | str,
    *,
    confidence: Tensor | None = None,
    zoom: int | None = None,
) -> Path:
    """Write recovered images class by class, with what the pool's members make of them.

    Args:
        images: `(C, n, 3, H, W)` in [0, 1], n of each class.
        names: `(C,)`, above the rows.
        path: the PNG file.
        confidence: `(C, n)` in [0, 1], the probability that members give to the row's class: a bar below each image,
            and its mean beside the name; NaN in the row of a class that no member could be asked about.
        zoom: see `image_grid`.

    Returns:
        The path written.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if images.dim() != 5 or len(names) != len(images):
        raise ValueError(f"Rows need images (C, n, 3, H, W) and C names, found {tuple(images.shape)}, {len(names)}.")
    columns, titles = images.shape[1], list(names)
    bars: list[float] | None = None
    if confidence is not None:
        if confidence.shape != images.shape[:2]:
            raise ValueError(f"Confidence must be {tuple(images.shape[:2])}, found {tuple(confidence.shape)}.")
        titles = [
            name if mean.isnan() else f"{name}: {mean:.0%}"
            for name, mean in zip(names, confidence.mean(1), strict=True)
        ]
        bars = confidence.nan_to_num(0.0).flatten().tolist()
    above = [title for title in titles for _ in range(columns)]
    return image_grid(images.flatten(0, 1), path, columns, above, zoom, bars)


def _repeats(titles: Sequence[str], index: int, columns: int) -> int:
    """How many images from `index` on to the end of its row have its title; 0 where the one before has it too."""
    start = index - index % columns
    if index > start and titles[index - 1] == titles[index]:
        return 0
    row = titles[index : start + columns]
    return next((count for count, title in enumerate(row) if title != row[0]), len(row))


def _fit(text: str, draw, font, width: int) -> str:  # noqa: ANN001
    end = ""
    while text and draw.textlength(text + end, font=font) > width:
        text, end = text[:-1], "…"
    return text + end
