"""Images without labels: whatever lies in a folder and its sub-folders."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from hf_dfml.utils.images import read_image, to_uint8
from hf_dfml.utils.inputs import SUFFIXES
from hf_dfml.utils.progress import progress


def unlabelled_images(folder: Path | str, most: int, size: int, generator: torch.Generator) -> Tensor:
    """All images below a folder, or `most` of them at random.

    Args:
        folder: searched with its sub-folders.
        most: how many at most.
        size: height and width that they are resized to, in pixels.
        generator: the source of the choice, on the CPU.

    Returns:
        `(N, 3, size, size)` uint8.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in it.
        ValueError: if an image cannot be read.
    """
    files = find_images(folder)
    chosen = torch.randperm(len(files), generator=generator)[:most].tolist()
    images = torch.empty(len(chosen), 3, size, size, dtype=torch.uint8)
    for row, index in enumerate(progress(chosen, description="Reading images", total=len(chosen), unit="image")):
        images[row] = to_uint8(read_image(files[index], (size, size), name=str(files[index])))
    return images


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
