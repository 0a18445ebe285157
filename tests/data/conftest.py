"""Small Parquet copies of the real sets, a private cache for `datasets`, and a guard against the network."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_dfml.data import dataset_info


@pytest.fixture(autouse=True)
def private_datasets_cache(tmp_path, monkeypatch) -> Path:
    """`datasets` reads its cache folder once, at import, so the environment alone cannot move it."""
    import datasets

    cache = tmp_path / "datasets-cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", cache / "downloads")
    monkeypatch.delenv("HF_DFML_DATA", raising=False)
    return cache


@pytest.fixture
def no_network(monkeypatch) -> None:
    """Any connection to another machine fails the test."""

    def refuse(self, address):
        raise AssertionError(f"A connection to {address} was opened.")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: refuse(None, args))


@pytest.fixture
def write_parquet() -> Callable:
    """A function that writes one Parquet file of the set `name` into `folder`: `images` are `(class name, pixels)`."""
    import datasets

    def write(
        folder: Path,
        name: str,
        images: list[tuple[str, np.ndarray]],
        *,
        part: str = "train",
        label_column: str | None = None,
        as_strings: bool = False,
    ) -> None:
        info = dataset_info(name)
        label_column = label_column or info.label_column
        class_names = sorted({class_name for names in info.classes.values() for class_name in names})
        names = [class_name for class_name, _ in images]
        features = {
            info.image_column: datasets.Image(),
            label_column: datasets.Value("string") if as_strings else datasets.ClassLabel(names=class_names),
        }
        columns = {
            info.image_column: [Image.fromarray(pixels) for _, pixels in images],
            label_column: names if as_strings else [class_names.index(class_name) for class_name in names],
        }
        folder.mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        table.to_parquet(folder / f"{part}.parquet")

    return write
