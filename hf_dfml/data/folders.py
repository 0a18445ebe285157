"""A user's own images as a few-shot data set: a folder of class folders, or a table of images on the Hub or on disk.

    photos/cat/1.jpg, photos/dog/2.jpg                     # class folders: every split is all of them
    photos/train/cat/1.jpg, photos/test/owl/9.jpg          # splits with class folders of their own

A table (`datasets`) has a column of images and one of labels; see `open_data`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_dfml.data.few_shot import FewShotDataset, load_dataset, read_table, square_pixels
from hf_dfml.data.registry import DATASETS
from hf_dfml.utils.inputs import list_class_folders, open_image
from hf_dfml.utils.progress import progress

if TYPE_CHECKING:
    import datasets

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of natural photographs (ImageNet); an evaluated network normalises with its own."""


def open_data(
    spec: str | Path,
    split: str = "test",
    *,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> FewShotDataset:
    """The images that a user names, one split of them.

    Args:
        spec: a data set of `hf_dfml.data.DATASETS`; a folder of class folders, or of `train`, `validation` and `test`
            with class folders in each; or any image data set of the Hub or a folder of Parquet files. `dir:` and `hf:`
            settle which.
        split: `train`, `validation` or `test`; where the images have no splits, all of them.
        data_dir: see `load_dataset`.
        image_size: height and width in pixels; default 84, and a known data set's own.
        image_column: of a table; the only column of images by default.
        label_column: of a table; the only other column that can be one by default.

    Raises:
        FileNotFoundError: if there is nothing of that name.
        ValueError: for a split that is not there, columns that cannot be guessed, or fewer than two classes.
    """
    name = str(spec)
    if name in DATASETS:
        return load_dataset(name, split, data_dir=data_dir, image_size=image_size)
    size = image_size or 84
    folder = Path(name.removeprefix("dir:")).expanduser()
    if not name.startswith("hf:") and (folder.is_dir() or name.startswith("dir:")):
        if not any(folder.rglob("*.parquet")):
            return _of_folders(folder, split, size)
        name = str(folder)
    return _of_table(name.removeprefix("hf:"), split, size, image_column, label_column)


def require(dataset: FewShotDataset, *, ways: int, shots: Iterable[int], queries: int) -> None:
    """Make sure that episodes can be drawn, before any work.

    Raises:
        ValueError: with the numbers of classes and images that there are, and settings that fit them.
    """
    counts = sorted(torch.bincount(dataset.labels, minlength=len(dataset.class_names)).tolist(), reverse=True)
    wanted = max(shots) + queries
    enough = sum(count >= wanted for count in counts)
    if enough >= ways and min(counts) >= wanted:
        return
    smallest = min(counts)
    remedies = [f"--ways {len(counts)}"] if len(counts) < ways else []
    if smallest > max(shots):
        remedies.append(f"--queries {smallest - max(shots)}")
    raise ValueError(
        f"'{dataset.name}' ({dataset.split}) has {len(counts)} classes of {smallest} to {counts[0]} images; {ways} "
        f"ways of {max(shots)} shots and {queries} queries need {ways} classes of {wanted} images: "
        f"{'use ' + ' and '.join(remedies) if remedies else 'add images, or ask for fewer shots'}."
    )


def _of_folders(folder: Path, split: str, size: int) -> FewShotDataset:
    inside = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else {}
    known = {name: kind for kind, names in SPLIT_NAMES.items() for name in names}
    parts = {known[name]: path for name, path in inside.items() if name in known}
    if parts and len(parts) == len(inside):
        if split not in parts:
            raise ValueError(f"{folder} has the splits {', '.join(sorted(parts))}: there is no '{split}'.")
        place = parts[split]
    else:
        place = folder
    files, labels = list_class_folders(place)
    return _stored(folder.name, split, files, labels, size)


def _of_table(name: str, split: str, size: int, image_column: str | None, label_column: str | None) -> FewShotDataset:
    parts = read_table(name, name)
    table = next((parts[part] for part in SPLIT_NAMES.get(split, (split,)) if part in parts), None)
    if table is None:
        if len(parts) > 1:
            raise ValueError(f"Data set '{name}' has the splits {', '.join(parts)}: there is no '{split}'.")
        table = next(iter(parts.values()))
    images, labels = columns_of(table, name, image_column, label_column)
    feature = table.features[labels]
    values = table.select_columns(labels)[:][labels]
    coded = type(feature).__name__ == "ClassLabel"
    names = [feature.int2str(value) if coded and value is not None else value for value in values]
    rows = [row for row, value in enumerate(names) if value is not None]
    cells = (row[images] for row in table.select(rows).select_columns(images))
    return _stored(Path(name).name, split, cells, [str(names[row]) for row in rows], size)


def columns_of(table: datasets.Dataset, name: str, images: str | None, labels: str | None) -> tuple[str, str]:
    """The columns of images and of labels, as named or as they can be guessed.

    Raises:
        ValueError: if one is not there or there are several; the message lists the columns.
    """
    kinds = {column: type(feature).__name__ for column, feature in table.features.items()}
    listed = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())

    def chosen(asked: str | None, found: list[str], what: str) -> str:
        if asked is not None and asked in kinds:
            return asked
        if asked is None and len(found) == 1:
            return found[0]
        fault = f"has no column '{asked}'" if asked else f"has {len(found)} columns that may be {what}s"
        raise ValueError(f"Data set '{name}' {fault}: name one with --{what}_column; its columns are {listed}.")

    image = chosen(images, [column for column, kind in kinds.items() if kind == "Image"], "image")
    of_classes = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    texts = [column for column, kind in kinds.items() if kind == "Value" and table.features[column].dtype == "string"]
    return image, chosen(labels, of_classes or texts, "label")


def _stored(name: str, split: str, images: Iterable[Any], labels: list[str], size: int) -> FewShotDataset:
    """Images of any kind as a data set, sorted by class; memory is `3 x size x size` bytes an image."""
    class_names = tuple(sorted(set(labels)))
    if len(class_names) < 2:
        raise ValueError(f"'{name}' ({split}) has {len(class_names)} class: few-shot learning needs at least two.")
    numbers = np.array([class_names.index(label) for label in labels], dtype=np.int64)
    place = np.empty(len(labels), dtype=np.int64)
    place[np.argsort(numbers, kind="stable")] = np.arange(len(labels))
    stored = np.empty((len(labels), 3, size, size), dtype=np.uint8)
    for index, image in enumerate(progress(images, description=name, total=len(labels), unit="image")):
        stored[place[index]] = square_pixels(open_image(image), size)
    sorted_labels = torch.from_numpy(np.sort(numbers))
    return FewShotDataset(name, split, torch.from_numpy(stored), sorted_labels, class_names, MEAN, STD)
