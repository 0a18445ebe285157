"""Tables of images as `datasets` reads them: on the Hub, or in a folder (Parquet, Arrow, `save_to_disk`)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_dfml.utils.images import ImageLike, what_else
from hf_dfml.utils.text import counted

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)


def is_table(folder: Path) -> bool:
    """Whether a folder holds Parquet or Arrow files."""
    return any(file.suffix in (".parquet", ".arrow") for file in folder.rglob("*"))


def load_table(source: Path | str, revision: str | None = None) -> datasets.DatasetDict:
    """The parts of a table, images still encoded; errors of other libraries become a sentence.

    Args:
        source: a folder (a `Path`), or a data set's id on the Hub.
        revision: branch, tag or commit on the Hub.

    Raises:
        ValueError: if it cannot be read; a damaged Parquet file is named.
        ConnectionError, FileNotFoundError: if the Hub cannot be reached or has no such data set.
    """
    import datasets
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException
    from yaml import YAMLError

    if isinstance(source, Path):
        for file in sorted(source.rglob("*.parquet")):
            _check_parquet(file)
    try:
        if isinstance(source, Path) and any((source / name).is_file() for name in ("state.json", "dataset_dict.json")):
            found = datasets.load_from_disk(str(source))
        elif isinstance(source, Path) and not any(source.rglob("*.parquet")):
            found = datasets.load_dataset("arrow", data_files=sorted(map(str, source.rglob("*.arrow"))))
        elif revision:
            found = datasets.load_dataset(str(source), revision=revision)
        else:
            found = datasets.load_dataset(str(source))
    except (ConnectionError, FileNotFoundError):
        raise
    except (DatasetsError, ArrowException, YAMLError, ValueError, TypeError, KeyError, OSError) as error:
        cause = error.__cause__ or error
        detail = " ".join(str(cause).split())[:200]
        raise ValueError(
            f"The data set in {source} cannot be read ({type(cause).__name__}: {detail}): a file there, or the header "
            "of its README.md, is damaged; fetch it again or remove that file."
        ) from error
    return found if isinstance(found, datasets.DatasetDict) else datasets.DatasetDict(train=found)


def class_numbers(table: datasets.Dataset, column: str, name: str) -> tuple[list[str], np.ndarray]:
    """The classes in a column of labels, and for each row the number of its class, int64; -1 where there is none.

    Args:
        table: the rows.
        column: of `ClassLabel`, texts or integers.
        name: of the data set, for messages.

    Raises:
        ValueError: for labels of another type.
    """
    from datasets import ClassLabel

    feature: Any = table.features[column]
    values = table.select_columns(column).with_format("arrow")[:][column]
    kind = getattr(feature, "dtype", type(feature).__name__)
    if isinstance(feature, ClassLabel):
        names, numbers = list(feature.names), np.array(values.fill_null(-1).to_numpy(), dtype=np.int64)
        numbers[(numbers < 0) | (numbers >= len(names))] = -1  # Of no class that has a name.
    elif kind in ("string", "large_string", "bool") or "int" in kind:
        cells = values.to_pylist()
        # Texts are sorted as such, numbers as such; null is no class.
        distinct = sorted({cell for cell in cells if cell is not None})
        index = {cell: number for number, cell in enumerate(distinct)}
        names, numbers = [str(cell) for cell in distinct], np.array([index.get(cell, -1) for cell in cells], np.int64)
    else:
        raise ValueError(
            f"Column '{column}' of data set '{name}' holds {kind}: expected one class an image (ClassLabel, text "
            f"or integer); {columns_of(table)}."
        )
    if unlabelled := int((numbers < 0).sum()):
        logger.warning("Left out: %s of data set '%s' without a label.", counted(unlabelled, "image"), name)
    return names, numbers


def choose_columns(table: datasets.Dataset, name: str, image: str | None, label: str | None) -> tuple[str, str]:
    """The columns of images and of labels: those that are named, or the only ones that can be.

    Columns of images are of the type `Image`, else bytes with or without a path; of labels `ClassLabel`, else texts.

    Raises:
        ValueError: if there is no such column, or none or several can be one; the sentence lists the columns.
    """
    kinds = {column: _kind(feature) for column, feature in table.features.items()}

    def chosen(asked: str | None, wanted: Sequence[str], what: str) -> str:
        if asked is not None and asked in kinds:
            return asked
        found = next((found for kind in wanted if (found := [c for c in kinds if kinds[c] == kind])), [])
        if asked is None and len(found) == 1:
            return found[0]
        fault = f"has no column '{asked}'" if asked else f"has {counted(len(found), 'column')} that may hold {what}s"
        raise ValueError(f"Data set '{name}' {fault}: choose one with --{what}_column; {columns_of(table)}.")

    return chosen(image, ("Image", "bytes"), "image"), chosen(label, ("ClassLabel", "string"), "label")


def columns_of(table: datasets.Dataset) -> str:
    """The columns with their types, for messages."""
    return "its columns are " + ", ".join(f"{column} ({_kind(kind)})" for column, kind in table.features.items())


def undecoded(table: datasets.Dataset, column: str) -> Sequence[ImageLike]:
    """The cells of a column of images, read one by one as files (`{"bytes": ..., "path": ...}`), for `read_image`."""
    from datasets import Image

    if isinstance(table.features[column], Image):
        table = table.cast_column(column, Image(decode=False))
    return table.select_columns(column)[column]


def _kind(feature: Any) -> str:
    name = type(feature).__name__
    if name == "Value":
        kind = feature.dtype.removeprefix("large_")
        return "bytes" if kind == "binary" else kind
    return "bytes" if isinstance(feature, dict) and "bytes" in feature else name


def _check_parquet(file: Path) -> None:
    """Raise a ValueError that names a file that is not readable Parquet."""
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    try:
        read_metadata(file)
    except (ArrowException, OSError) as error:
        with file.open("rb") as content:
            reason = what_else(content.read(256)) or "it is cut off or damaged: fetch it again, or remove it"
        raise ValueError(f"{file} is not readable as Parquet: {reason}.") from error
