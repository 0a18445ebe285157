"""A user's own images as a few-shot data set: class folders, or a table of images on the Hub or on disk.

    photos/cat/1.jpg, photos/dog/2.jpg                     # class folders: every split is all of them
    photos/train/cat/1.jpg, photos/test/owl/9.jpg          # splits with class folders of their own
    my-table/train.parquet, org/name on the Hub            # a column of images and one of labels

Images are listed and counted first, so that what cannot work is refused before any is decoded; then those that are
kept are decoded one at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_dfml.data.few_shot import FewShotDataset, load_dataset
from hf_dfml.data.registry import DATASETS, IMAGENET_MEAN, IMAGENET_STD, SPLITS
from hf_dfml.data.tables import choose_columns, class_numbers, is_table, load_table, undecoded
from hf_dfml.utils.images import ImageLike, read_image, to_uint8
from hf_dfml.utils.inputs import list_class_folders
from hf_dfml.utils.progress import progress
from hf_dfml.utils.text import counted

logger = logging.getLogger(__name__)

IMAGE_SIZE = 84
MAX_BYTES = 2 << 30
"""Of the decoded images of a split: 100,000 images of 84 x 84 pixels, 14,000 of 224 x 224."""

ALIASES = {"val": "validation", "valid": "validation", "dev": "validation", "training": "train", "testing": "test"}
"""Other names of the splits."""


@dataclass(frozen=True)
class Needs:
    """What episodes need of a data set.

    Attributes:
        ways: classes of an episode.
        shots: support images of a class; of several kinds of episodes the most.
        queries: query images of a class.
    """

    ways: int = 2
    shots: int = 1
    queries: int = 0

    def kept(self, sizes: Sequence[int], name: str) -> list[int]:
        """The positions of the classes that have enough images.

        Args:
            sizes: the number of images of each class.
            name: of the data set.

        Raises:
            ValueError: if they are too few; the sentence says which settings fit.
        """
        wanted = self.shots + self.queries
        found = [index for index, size in enumerate(sizes) if size >= wanted]
        if len(found) >= self.ways:
            return found
        remedies = [f"--ways {len(found)}"] if len(found) > 1 else []
        if len(sizes) >= self.ways and self.queries:
            queries = sorted(sizes, reverse=True)[self.ways - 1] - self.shots
            remedies += [f"--queries {queries}"] if queries > 0 else []
        have = f"{len(found)} {'class' if len(found) == 1 else 'classes'} with at least {counted(wanted, 'image')}"
        ask = f"{self.ways} ways of {counted(self.shots, 'shot')}"
        ask += f" and {self.queries} {'query' if self.queries == 1 else 'queries'}" if self.queries else ""
        todo = " or ".join(remedies)
        raise ValueError(
            f"{name} has {have}; {ask} need {self.ways}: {f'use {todo}' if todo else 'add images or classes'}."
        )


@dataclass(frozen=True)
class _Listing:
    """Images that are not decoded yet: a cell or file each, and the number of its class."""

    name: str
    images: Sequence[ImageLike]
    labels: np.ndarray
    class_names: list[str]


def open_data(
    spec: str | Path,
    split: str = "test",
    *,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    needs: Needs | None = None,
    max_bytes: int = MAX_BYTES,
) -> FewShotDataset:
    """The images that a user names, one split of them.

    Args:
        spec: a data set of `hf_dfml.data.DATASETS`; a folder of class folders, or of `train`, `validation` and `test`
            with class folders in each (others beside these are not looked into); a folder of Parquet or Arrow files;
            or an image data set of the Hub, `org/name` or `org/name@revision`. `dir:` and `hf:` settle which.
        split: `train`, `validation` or `test`; all images where class folders or a table have no splits.
        data_dir: see `load_dataset`.
        image_size: height and width in pixels; default 84, and the own size of a set of `DATASETS`.
        image_column: of a table; the only column that can be one by default.
        label_column: likewise.
        needs: what episodes need. Classes with fewer images are left out by name. Not asked of `DATASETS`.
        max_bytes: of the decoded images. Where all are more, as many of each class as fit are drawn, always the same.

    Raises:
        FileNotFoundError: if there is nothing of that name.
        ValueError: for a split that is not there, columns that cannot be guessed, too few classes or images for
            `needs` (two classes of one image by default), or damaged files of a table.
    """
    name = str(spec)
    if name in DATASETS and not isinstance(spec, Path):
        return load_dataset(name, split, data_dir=data_dir, image_size=image_size)
    if split not in SPLITS:
        raise ValueError(f"There is no split '{split}': choose one of {', '.join(SPLITS)}.")
    size = image_size or IMAGE_SIZE
    needs = needs or Needs()
    listing = _list_images(spec, split, image_column, label_column)
    rows = _rows(listing, needs, max_bytes // (3 * size * size))
    stored, labels = _decode(listing, rows, size)
    kept = needs.kept(np.bincount(labels, minlength=len(listing.class_names)).tolist(), listing.name)
    if len(kept) < len(set(labels.tolist())):  # Files that are not readable made classes too small.
        chosen = np.isin(labels, kept)
        stored, labels = stored[chosen], labels[chosen]
    return FewShotDataset(
        name=listing.name,
        split=split,
        images=torch.from_numpy(stored),
        labels=torch.from_numpy(np.searchsorted(kept, labels)),
        class_names=tuple(listing.class_names[number] for number in kept),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def own_splits(spec: str | Path) -> tuple[str, ...]:
    """Which of `SPLITS` a user's images are divided into; none where they are class folders or one table.

    Raises:
        FileNotFoundError: if there is nothing of that name.
        ValueError: if a table is damaged.
    """
    if not isinstance(spec, Path) and spec in DATASETS:
        return SPLITS
    folder = folder_of(spec)
    if folder and not is_table(folder):
        found = set(_split_folders(folder))
    else:
        _, parts = _open_table(spec, folder)
        found = {ALIASES.get(part, part) for part in parts} if len(parts) > 1 else set()
    return tuple(split for split in SPLITS if split in found)


def folder_of(spec: str | Path) -> Path | None:
    """The folder of a user's images that is named; None for a data set of the Hub.

    Raises:
        FileNotFoundError: if it can only be a folder, and there is none.
    """
    name = str(spec)
    folder = Path(name.removeprefix("dir:")).expanduser()
    local = isinstance(spec, Path) or name.startswith(("dir:", ".", "/", "~"))
    if name.startswith("hf:") or not (local or folder.is_dir()):
        return None
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}: expected one with a folder of images for each class.")
    return folder


def _open_table(spec: str | Path, folder: Path | None) -> tuple[str, Mapping[str, Any]]:
    """Its name and its parts."""
    if folder:
        return _name(folder), load_table(folder)
    label, _, revision = str(spec).removeprefix("hf:").partition("@")
    try:
        return label, load_table(label, revision or None)
    except (ConnectionError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"'{spec}' is none of {', '.join(DATASETS)}, not a folder here, nor to be had from the Hub: {error}"
        ) from error


def _name(folder: Path) -> str:
    """What rows of results call a user's folder; never as one of `DATASETS`, which it is not."""
    folder = folder.resolve()
    if folder.name.lower() in (*SPLITS, *ALIASES):
        return f"{folder.parent.name}-{folder.name}"
    return f"own {folder.name}" if folder.name in DATASETS else folder.name


def _list_images(spec: str | Path, split: str, image_column: str | None, label_column: str | None) -> _Listing:
    folder = folder_of(spec)
    if folder and not is_table(folder):
        files, labels = list_class_folders(_split_folder(folder, split))
        class_names, numbers = np.unique(labels, return_inverse=True)
        return _Listing(_name(folder), files, numbers, class_names.tolist())
    label, parts = _open_table(spec, folder)
    named = {ALIASES.get(part, part): part for part in parts}
    if split not in named and len(parts) > 1:
        raise ValueError(f"Data set '{label}' has the splits {', '.join(parts)}: there is no '{split}'.")
    table = parts[named.get(split, next(iter(parts)))]
    image_column, label_column = choose_columns(table, label, image_column, label_column)
    names, numbers = class_numbers(table, label_column, label)
    return _Listing(label, undecoded(table, image_column), numbers, names)


def _split_folder(folder: Path, split: str) -> Path:
    """The folder of a split's class folders: the folder itself unless it has splits with class folders."""
    parts = _split_folders(folder)
    if parts and split not in parts:
        names = ", ".join(sorted(path.name for path in parts.values()))
        raise ValueError(f"{folder} has the splits {names}: there is no '{split}'.")
    return parts[split] if parts else folder


def _split_folders(folder: Path) -> dict[str, Path]:
    """The folders of the splits, none where the folder holds class folders itself; `new` beside `train` is neither."""
    inside = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    named = {ALIASES.get(path.name.lower(), path.name.lower()): path for path in inside}
    parts = {name: path for name, path in named.items() if name in SPLITS}
    return parts if any(below.is_dir() for path in parts.values() for below in path.iterdir()) else {}


def _rows(listing: _Listing, needs: Needs, room: int) -> np.ndarray:
    """The rows to decode, sorted by class: of classes with enough images, and no more than there is room for."""
    sizes = np.bincount(listing.labels[listing.labels >= 0], minlength=len(listing.class_names))
    kept = needs.kept(sizes.tolist(), listing.name)
    few = [listing.class_names[number] for number, size in enumerate(sizes) if size and number not in set(kept)]
    if few:
        wanted = counted(needs.shots + needs.queries, "image")
        logger.warning("Left out: classes with fewer than %s: %s.", wanted, ", ".join(few))
    most = room // len(kept)
    if most < needs.shots + needs.queries:
        raise ValueError(
            f"{listing.name} has {len(kept)} classes: {needs.shots + needs.queries} images of each are more than the "
            f"{room} that memory is set aside for. Use smaller images, fewer classes, or a larger max_bytes."
        )
    if sizes[kept].max() > most:
        logger.warning("%s: %s of a class are used at most, as more would fill the memory.", listing.name, most)
    draw = np.random.default_rng(0)
    rows = []
    for number in kept:
        found = np.flatnonzero(listing.labels == number)
        rows.append(found if len(found) <= most else np.sort(draw.permutation(found)[:most]))
    return np.concatenate(rows)


def _decode(listing: _Listing, rows: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 pixels `(M, 3, size, size)` and class numbers of the rows that can be read; a warning names the others."""
    stored = np.empty((len(rows), 3, size, size), dtype=np.uint8)
    kept: list[int] = []
    for row in progress(rows.tolist(), description=listing.name, total=len(rows), unit="image"):
        try:
            image = read_image(listing.images[row], (size, size), name=f"Row {row} of {listing.name}")
        except (ValueError, FileNotFoundError) as error:
            logger.warning("Left out: %s", error)
            continue
        stored[len(kept)] = to_uint8(image)
        kept.append(row)
    return stored[: len(kept)], listing.labels[kept]
