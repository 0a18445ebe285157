"""Images without labels: whatever lies in a folder and its sub-folders."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from hf_dfml.utils.images import read_image, to_uint8
from hf_dfml.utils.inputs import SUFFIXES
from hf_dfml.utils.progress import progress

logger = logging.getLogger(__name__)


def unlabelled_images(folder: Path | str, most: int, size: int, generator: torch.Generator) -> Tensor:
    """All images below a folder, or `most` of them at random; a warning names each file that cannot be read.

    Args:
        folder: searched with its sub-folders.
        most: how many at most.
        size: height and width that they are resized to, in pixels.
        generator: the source of the choice, on the CPU.

    Returns:
        `(N, 3, size, size)` uint8.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in it.
        ValueError: if none can be read.
    """
    files = find_images(folder)
    order = torch.randperm(len(files), generator=generator).tolist()
    images = torch.empty(min(most, len(files)), 3, size, size, dtype=torch.uint8)
    count, problem = 0, ""
    with progress(description="Reading images", total=len(images), unit="image") as bar:
        for file in (files[index] for index in order):
            if count == len(images):
                break
            try:
                images[count] = to_uint8(read_image(file, (size, size)))
            except ValueError as error:
                problem = str(error)
                logger.warning("Left out: %s", problem)
                continue
            count += 1
            bar.update()
    if not count:
        raise ValueError(f"None of the {len(files)} image files in {folder} can be read: {problem}")
    return images[:count]


def find_images(folder: Path | str) -> list[Path]:
    """The image files in a folder and its sub-folders, by their names' endings, sorted.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}: expected one with images in it or its sub-folders.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise FileNotFoundError(f"{folder} holds no image: expected files such as {', '.join(SUFFIXES[:3])}.")
    return files
