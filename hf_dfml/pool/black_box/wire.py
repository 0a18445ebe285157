"""How images and answers travel: PNG files there, labels with scores back.

Images travel in steps of 1 / 255 and never outside of [0, 1]. A pool says so (`resolution`), and zero-order gradients
take their differences over at least one such step a pixel (root mean square): a length of 0.22 at 32 x 32 pixels;
0.00125 of the paper (Hu et al., ICML 2023) would be lost in the rounding. Where a pixel is 0 or 1, the half of a
difference that points outwards is lost.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from torch import Tensor

from hf_dfml.pool.queries import ServiceError
from hf_dfml.utils.images import to_uint8

PNG_STEP = 1 / 255
LARGEST_SCORE = 1e30


def as_png(images: Tensor) -> list[bytes]:
    """PNG files of images `(B, 3, h, w)` in [0, 1], rounded to the nearest of 256 levels."""
    from PIL import Image

    files = []
    for array in to_uint8(images.cpu().float()).permute(0, 2, 3, 1).numpy():
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG", compress_level=1)
        files.append(buffer.getvalue())
    return files


def answers_of(rows: Sequence[Sequence[tuple[str, float]]], count: int, classes: Sequence[str], source: str) -> Tensor:
    """Answers `(B, C)` from the labels and scores of each image; zero for classes that were not returned.

    Args:
        rows: for each image the labels that were returned, with their scores.
        count: the images that were sent.
        classes: names of the classes in the order of the columns.
        source: the address of the service, for messages.

    Raises:
        ServiceError: if there are more or fewer rows than images, a label is none of the classes or stands twice in a
            row, or a score is not a finite number.
    """

    def wrong(what: str) -> ServiceError:
        return ServiceError(f"{source} gave an answer that is not understood: {what}.")

    places = {name: index for index, name in enumerate(classes)}
    if len(rows) != count:
        raise wrong(f"{len(rows)} answers to {count} images")
    answers = [[0.0] * len(places) for _ in rows]
    for answer, row in zip(answers, rows, strict=True):
        if not all(isinstance(label, str) for label, _ in row):
            raise wrong("a label in it is not a text")
        if len({label for label, _ in row}) < len(row):
            raise wrong("a label stands twice in it")
        for label, score in row:
            if label not in places:
                known = ", ".join(repr(name) for name in list(places)[:5])
                raise wrong(f"it names a class {label!r}, which is none of the member's {len(places)} ({known}, ...)")
            if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) < LARGEST_SCORE:
                raise wrong(f"the score of {label!r} is {score!r}")
            answer[places[label]] = score
    return torch.tensor(answers).reshape(len(rows), len(places))
