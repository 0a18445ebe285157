"""A few-shot data set in memory: the images of one split's classes, sorted by class."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_dfml.data.registry import DatasetInfo, dataset_info
from hf_dfml.data.tables import class_numbers, load_table, undecoded
from hf_dfml.utils.images import ImageLike, read_image, to_uint8
from hf_dfml.utils.progress import progress

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class FewShotDataset:
    """Images of the classes of one split.

    Attributes:
        name: the data set's name.
        split: `train`, `validation` or `test`.
        images: `(M, 3, H, W)` uint8, sorted by class.
        labels: `(M,)` int64, index into `class_names`, ascending.
        class_names: the split's classes, in the order of their labels.
        mean: RGB mean of pixels in [0, 1], for normalisation.
        std: RGB standard deviation of pixels in [0, 1].
    """

    name: str
    split: str
    images: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_size(self) -> int:
        """Height and width of the images in pixels."""
        return self.images.shape[-1]

    def by_class(self, class_name: str) -> torch.Tensor:
        """All images of one class, `(n, 3, H, W)` uint8: a view, not a copy.

        Raises:
            ValueError: if the split has no such class.
        """
        if class_name not in self.class_names:
            raise ValueError(
                f"Data set '{self.name}' ({self.split}) has no class '{class_name}': it has "
                f"{len(self.class_names)} classes, from '{self.class_names[0]}' to '{self.class_names[-1]}'."
            )
        label = self.class_names.index(class_name)
        bounds = torch.searchsorted(
            self.labels.contiguous(), torch.tensor([label, label + 1], device=self.labels.device)
        )
        first, last = bounds.tolist()
        return self.images[first:last]

    def to(self, device: torch.device | str) -> FewShotDataset:
        """The same data set with its tensors on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


def load_dataset(
    name: str, split: str, *, data_dir: str | Path | None = None, image_size: int | None = None
) -> FewShotDataset:
    """Load the images of one split's classes, decoding nothing else.

    Args:
        name: one of `hf_dfml.data.DATASETS`.
        split: `train`, `validation` or `test`; the three have different classes.
        data_dir: folder that holds the set's own folder (`data_dir/cub`, `data_dir/cifar100`, ...) with its Parquet
            files. Default: the environment variable `HF_DFML_DATA`, and where that is not set, the Hub.
        image_size: height and width in pixels; default the set's own (`DatasetInfo.image_size`). Images of another
            size are resized (bilinear, antialiased), without keeping their aspect.

    Raises:
        FileNotFoundError: if `data_dir` has no folder for the set, or the set can be had neither there nor on the Hub.
        ValueError: for an unknown set or split, a missing column, or a class without images.

    Examples:
        >>> test = load_dataset("glyphs", "test")
        >>> len(test.class_names), test.images.shape
        (20, torch.Size([2000, 3, 32, 32]))
    """
    info = dataset_info(name)
    if split not in info.classes:
        raise ValueError(f"Data set '{name}' has no split '{split}': choose one of {', '.join(info.classes)}.")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size={image_size}: images need at least 1 pixel.")
    size = image_size or info.image_size
    class_names = info.classes[split]
    if name == "glyphs":
        from hf_dfml.data.glyphs import draw_classes

        drawn, labels = draw_classes(class_names)
        images: Iterable[ImageLike] = drawn
    else:
        table = _read_table(info, data_dir)
        rows, labels = _rows_of_classes(info, table, class_names)
        images = undecoded(table.select(rows), info.image_column)
        images = progress(images, description=f"{name} {split}", total=len(rows), unit="image")
    stored = np.empty((len(labels), 3, size, size), dtype=np.uint8)
    for index, image in enumerate(images):
        stored[index] = to_uint8(read_image(image, (size, size), name=f"Image {index} of '{name}'"))
    return FewShotDataset(
        name=name,
        split=split,
        images=torch.from_numpy(stored),
        labels=torch.from_numpy(labels),
        class_names=class_names,
        mean=info.mean,
        std=info.std,
    )


def local_copy(info: DatasetInfo, data_dir: str | Path | None) -> Path | None:
    """The folder of a data set's Parquet files on this disk; None where it is to be had from the Hub, or is drawn.

    Raises:
        FileNotFoundError: if there is no such folder where one is named (by `data_dir` or `HF_DFML_DATA`) or needed.
    """
    folder = data_dir or os.environ.get("HF_DFML_DATA")
    if info.name == "glyphs":
        return None
    if folder:
        source = Path(folder) / info.folder
        if not any(source.rglob("*.parquet")):
            fault = "holds no Parquet file" if source.is_dir() else "does not exist"
            hub = (
                f", or leave out data_dir and HF_DFML_DATA to read '{info.hub_id}' from the Hub" if info.hub_id else ""
            )
            raise FileNotFoundError(
                f"Data set '{info.name}' is expected in the folder {source}, which {fault}: "
                f"put its Parquet files there{hub}."
            )
        return source
    if info.hub_id is None:
        raise FileNotFoundError(
            f"Data set '{info.name}' has no repository on the Hub with the class names of its few-shot split: give "
            f"data_dir (or set HF_DFML_DATA), a folder with the Parquet files of the set in '{info.folder}'."
        )
    return None


def _read_table(info: DatasetInfo, data_dir: str | Path | None) -> datasets.Dataset:
    """All rows of the set, images still encoded."""
    import datasets

    source: Path | str | None = local_copy(info, data_dir)
    if source:
        parts = load_table(source)
    else:
        assert info.hub_id is not None
        try:
            parts = load_table(info.hub_id)
        except (ConnectionError, FileNotFoundError) as error:
            raise FileNotFoundError(
                f"Data set '{info.name}' could not be had from the Hub ('{info.hub_id}'): {error}. Without the Hub, "
                f"give data_dir (or set HF_DFML_DATA), a folder with the Parquet files of the set in '{info.folder}'."
            ) from error
        source = info.hub_id
    chosen = [parts[part] for part in info.merged_splits if part in parts]
    if not chosen:
        raise ValueError(
            f"Data set '{info.name}' in {source} has the splits {', '.join(parts)}: "
            f"expected one of {', '.join(info.merged_splits)}."
        )
    for column in (info.image_column, info.label_column):
        if column not in chosen[0].column_names:
            raise ValueError(
                f"Data set '{info.name}' in {source} has no column '{column}': "
                f"found {', '.join(chosen[0].column_names)}."
            )
    return datasets.concatenate_datasets(chosen)


def _rows_of_classes(
    info: DatasetInfo, table: datasets.Dataset, class_names: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the images of `class_names`, sorted by class and then by row, and their labels."""
    names, numbers = class_numbers(table, info.label_column, info.name)
    position = {name: label for label, name in enumerate(class_names)}
    ours = np.array([position.get(name, -1) for name in names], dtype=np.int64)
    # -1 is what the Hub's schema writes for an image without a class.
    labels = np.where(numbers >= 0, ours[numbers], -1)
    sizes = np.bincount(labels[labels >= 0], minlength=len(class_names))
    if not sizes.all():
        missing = class_names[int(np.argmin(sizes))]
        raise ValueError(
            f"Data set '{info.name}' has no image of class '{missing}' (column '{info.label_column}'): its classes "
            f"are called {', '.join(repr(name) for name in names[:3])} and so on; "
            f"use a copy of the set with the class names that our split lists."
        )
    rows = np.argsort(labels, kind="stable")[(labels < 0).sum() :]
    return rows, labels[rows]
