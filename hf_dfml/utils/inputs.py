"""Images (of any kind that `hf_dfml.utils.images` reads) and labels, singly or in folders -> one batch in [0, 1]."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_dfml.utils.images import (
    UNREADABLE,
    ImageLike,
    channels_first,
    read_image,
    read_pixels,
    to_unit,
)
from hf_dfml.utils.text import counted

logger = logging.getLogger(__name__)

Images = Tensor | np.ndarray | Sequence[ImageLike] | ImageLike
"""A batch `(B, C, H, W)` (NumPy: `(B, H, W, C)`), a sequence of images, one image, or a folder of image files."""

Labels = Sequence[Hashable] | Tensor | np.ndarray
"""One label an image."""

Row = TypeVar("Row")

SUFFIXES = tuple(
    ".png .apng .jpg .jpeg .jpe .jfif .mpo .jp2 .webp .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm".split()
)
"""How names of image files end, in small or capital letters."""


def as_batch(images: Images, size: tuple[int, int]) -> Tensor:
    """Images of any sizes and kinds as one batch.

    Args:
        images: see `Images`. Of a folder those files that can be read, in the order of `list_images`; a warning names
            each of the others. Files that are named themselves must all be readable.
        size: height and width that each is resized to; see `hf_dfml.utils.images`.

    Returns:
        `(B, 3, H, W)` float in [0, 1].

    Raises:
        ValueError: for another number of channels, pixels outside their range, a named file that is not a readable
            image, or no image at all.
        TypeError: for anything but an image.
        FileNotFoundError: for a path where there is nothing.
    """
    (batch,) = in_batches(images, size)
    return batch


def in_batches(images: Images, size: tuple[int, int], count: int | None = None) -> Iterator[Tensor]:
    """`as_batch`, in batches of `count` images (None: all in one), each decoded when it is asked for."""
    if isinstance(images, str | Path) and Path(images).is_dir():
        for part in _in_parts(_readable(list_images(images), size), count):
            yield torch.stack([image for image, _ in part])
    else:
        yield from _decoded(*_listed(images), size, count)


def _listed(images: Images) -> tuple[Tensor | list[Any], str]:
    """A batch or a list of images, and what errors call the one of an index."""
    if isinstance(images, np.ndarray):
        images = images.tolist() if images.dtype.kind in "OUS" else channels_first(images)
    if isinstance(images, Tensor) and images.dim() == 4:
        return images, "The batch"
    if isinstance(images, Tensor | Image.Image | str | Path | bytes | Mapping):
        return [images], "The image"
    return list(images), "Image {}"


def _decoded(items: Tensor | list[Any], name: str, size: tuple[int, int], count: int | None) -> Iterator[Tensor]:
    if isinstance(items, Tensor):
        # As a whole: what integers stand for is seen from all of them. uint8 stays uint8.
        pixels = read_pixels(items, size, name)
        yield from map(to_unit, pixels.split(count or len(pixels)))
        return
    if not items:
        raise ValueError("There are no images: expected at least one.")
    read = (to_unit(read_image(item, size, name=name.format(index))) for index, item in enumerate(items))
    yield from map(torch.stack, _in_parts(read, count))


def _in_parts(rows: Iterator[Row], count: int | None) -> Iterator[list[Row]]:
    while part := list(islice(rows, count)):
        yield part


def as_labels(labels: Labels) -> list[Any]:
    """One label an image as plain Python values: an element of a tensor or array becomes its number or text.

    Raises:
        ValueError: for one-hot rows, columns `(S, 1)`, a single text, and labels that are missing (NaN) or
            cannot be compared, such as lists.
    """
    rows = (
        "expected one label an image; of one-hot rows or probabilities give labels.argmax(1), of a column labels[:, 0]"
    )
    if isinstance(labels, str | bytes | Mapping):
        raise ValueError(
            f"Labels are a {type(labels).__name__}: expected a list, array or tensor, one label an image."
        )
    if isinstance(labels, Tensor | np.ndarray) and labels.ndim != 1:
        raise ValueError(f"Labels have the shape {tuple(labels.shape)}: {rows}.")
    plain = []
    for index, label in enumerate(labels):
        if isinstance(label, Tensor | np.ndarray) and label.ndim:
            raise ValueError(f"Label {index} has the shape {tuple(label.shape)}: {rows}.")
        value = label.item() if isinstance(label, Tensor | np.ndarray | np.generic) else label
        try:
            hash(value)
        except TypeError:
            raise ValueError(f"Label {index} is {value!r}, a {type(value).__name__}: {rows}.") from None
        if not isinstance(value, str) and str(value) in ("nan", "<NA>", "NaT"):
            raise ValueError(f"Label {index} is missing ({value}): give every image a label, or leave the image out.")
        plain.append(value)
    return plain


def labelled_batch(images: Images, labels: Labels | None, size: tuple[int, int]) -> tuple[Tensor, list[Any]]:
    """Images and the label of each.

    Args:
        images: as in `as_batch`; of a folder all files must be readable, as each has a label.
        labels: one label an image; None with a folder of class folders, whose names are the labels. Of these the files
            are taken that can be read.
        size: as in `as_batch`.

    Returns:
        A batch as `as_batch` gives it, and its labels as `as_labels` gives them.

    Raises:
        ValueError: as `as_batch` and `as_labels`, and if there are more or fewer labels than images, labels are
            missing, or a class folder has no readable image.
    """
    ((batch, names),) = labelled_batches(images, labels, size)[1]
    return batch, names


def labelled_batches(
    images: Images, labels: Labels | None, size: tuple[int, int], count: int | None = None
) -> tuple[list[Any], Iterator[tuple[Tensor, list[Any]]]]:
    """All labels, and `labelled_batch` in batches of `count` images (None: all in one).

    No image is decoded before its batch is asked for. The labels are those of all files of class folders, also of
    files that turn out not to be readable.
    """
    if labels is None:
        if not isinstance(images, str | Path):
            raise ValueError("Labels are missing: give one for each image, or a folder with a folder for each class.")
        files, names = list_class_folders(images)
        return names, _read_class_folders(Path(images), files, names, size, count)
    if isinstance(images, str | Path) and Path(images).is_dir():
        images = list_images(images)  # Each has a label, so that none may be left out.
    items, name = _listed(images)
    names = as_labels(labels)
    if len(names) != len(items):
        raise ValueError(f"There are {len(items)} images but {len(names)} labels: expected one label an image.")
    left = iter(names)
    return names, ((batch, list(islice(left, len(batch)))) for batch in _decoded(items, name, size, count))


def read_files(files: Sequence[Path], size: tuple[int, int]) -> tuple[Tensor, list[Path]]:
    """Those of some image files that can be read; a warning names each of the others.

    Args:
        files: the files.
        size: as in `as_batch`.

    Returns:
        A batch as `as_batch` gives it, and the files that it is of.

    Raises:
        ValueError: if none can be read.
        FileNotFoundError: if one does not exist.
    """
    images, kept = zip(*_readable(files, size), strict=True)
    return torch.stack(images), list(kept)


def _readable(files: Sequence[Path], size: tuple[int, int]) -> Iterator[tuple[Tensor, Path]]:
    """`read_files`, one after the other."""
    found, problem = False, "there are none"
    for file in files:
        try:
            image = as_batch([file], size)[0]
        except ValueError as error:
            problem = str(error)
            logger.warning("Left out: %s", problem)
            continue
        found = True
        yield image, file
    if not found:
        raise ValueError(f"None of the {len(files)} image files can be read: {problem}")


class FolderContent(NamedTuple):
    """What lies in a folder of images; hidden files and folders are passed over.

    Attributes:
        images: the files whose names are those of images, sorted by name.
        left_out: why each other file is none, in a sentence that names it.
        sub_folders: sorted by name; they are not searched.
    """

    images: list[Path]
    left_out: dict[Path, str]
    sub_folders: list[Path]


def look_into(folder: Path | str) -> FolderContent:
    """What lies in a folder of images; no file is opened."""
    found = FolderContent([], {}, [])
    for path in sorted(path for path in Path(folder).iterdir() if not path.name.startswith(".")):
        ending = path.suffix.lower()
        if path.is_dir():
            found.sub_folders.append(path)
        elif not path.is_file():
            found.left_out[path] = f"{path} is not a file: it may be a link to one that is gone."
        elif ending in SUFFIXES:
            found.images.append(path)
        elif ending in UNREADABLE:
            found.left_out[path] = f"{path} is not readable as an image: {UNREADABLE[ending]}."
        else:
            found.left_out[path] = f"{path}: names of images end in {', '.join(SUFFIXES)}."
    return found


def not_searched(sub_folders: Sequence[Path]) -> str:
    """How many folders inside a folder of images were not looked into, and which, without a full stop."""
    shown = ", ".join(map(str, sub_folders[:3])) + (", ..." if len(sub_folders) > 3 else "")
    return f"Not searched: {counted(len(sub_folders), 'sub-folder')} ({shown})"


def list_images(folder: Path | str) -> list[Path]:
    """The image files of a folder, sorted by name; a warning names each other file, and the sub-folders.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no image file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    found = look_into(folder)
    if not found.images:
        raise ValueError(nothing_in([folder], found))
    _warn(found, "Name one to use its images.")
    return found.images


def nothing_in(folders: Sequence[Path], found: FolderContent) -> str:
    """What is wrong with folders that hold no image, and what to do."""
    expected = f"expected files such as {', '.join(SUFFIXES[:3])} in it."
    why = next(iter(found.left_out.values()), "")
    below = f"{not_searched(found.sub_folders)}: name these in its place." if found.sub_folders else ""
    return " ".join(filter(None, [f"{', '.join(map(str, folders))} holds no image: {expected}", why, below]))


def _warn(found: FolderContent, todo: str) -> None:
    for reason in found.left_out.values():
        logger.warning("Left out: %s", reason)
    if found.sub_folders:
        logger.warning("%s. %s", not_searched(found.sub_folders), todo)


def list_class_folders(folder: Path | str) -> tuple[list[Path], list[str]]:
    """The image files below a folder of class folders and the class of each, which is its folder's name.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has no sub-folders, or a class has no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}: expected one with a folder of images for each class.")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise ValueError(
            f"{folder} has no class folders: expected one folder of images for each class, such as {folder.name}/cat."
        )
    for path in look_into(folder).images:
        logger.warning("Left out: %s: it lies beside the class folders.", path)
    files: list[Path] = []
    labels: list[str] = []
    for path in classes:
        found = look_into(path)
        _warn(found, f"Move their images into {path} to learn from them.")
        if not found.images:
            within = [each.name for each in found.sub_folders]
            if within:
                raise ValueError(
                    f"{folder} was expected to hold one folder of images for each class, and {path.name} there holds "
                    f"folders itself ({', '.join(within[:3])}{', ...' if len(within) > 3 else ''}): name {path} if "
                    "these are the classes."
                )
            raise ValueError(f"Class '{path.name}' has no image in {path}: add one, or move the folder elsewhere.")
        files += found.images
        labels += [path.name] * len(found.images)
    return files, labels


def _read_class_folders(
    folder: Path, files: Sequence[Path], labels: Sequence[str], size: tuple[int, int], count: int | None
) -> Iterator[tuple[Tensor, list[str]]]:
    """The images below a folder of class folders that can be read, and the class of each."""
    class_of, seen = dict(zip(files, labels, strict=True)), set()
    for part in _in_parts(_readable(files, size), count):
        names = [class_of[file] for _, file in part]
        seen.update(names)
        yield torch.stack([image for image, _ in part]), names
    if lost := sorted(set(labels) - seen):
        raise ValueError(f"Class '{lost[0]}' has no readable image in {folder}: add one, or remove its folder.")
