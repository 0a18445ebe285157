"""A user's own images: class folders, splits of them, tables; what does not fit is said before any work."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_dfml.data import EpisodeSampler, Needs, folders, load_dataset, open_data


def write(folder: Path, name: str, colour: tuple[int, int, int], count: int = 3, size: int = 20) -> None:
    (folder / name).mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (size, size), colour).save(folder / name / f"{index:03}.png")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write(tmp_path / "photos", "owl", (250, 0, 0))
    write(tmp_path / "photos", "cat", (0, 250, 0), count=4)
    return tmp_path / "photos"


@pytest.fixture
def decoded(monkeypatch) -> list:
    """What is decoded, in order."""
    read: list = []
    original = folders.read_image
    monkeypatch.setattr(
        folders, "read_image", lambda item, *args, **more: read.append(item) or original(item, *args, **more)
    )
    return read


def test_class_folders_are_classes_sorted_by_name(photos):
    data = open_data(photos, image_size=12)
    assert data.class_names == ("cat", "owl") and data.images.shape == (7, 3, 12, 12) and data.name == "photos"
    assert data.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert data.by_class("owl")[:, :, 0, 0].tolist() == [[250, 0, 0]] * 3
    for spec in (str(photos), f"dir:{photos}"):
        assert torch.equal(open_data(spec, image_size=12).images, data.images)
    assert open_data(photos, "validation").images.shape == (7, 3, 84, 84)


def test_splits_are_recognised_by_their_names(tmp_path):
    for split, names in {"train": ("a", "b"), "val": ("c", "d"), "Test": ("e", "f", "g")}.items():
        for name in names:
            write(tmp_path / "data" / split, name, (9, 9, 9))
    assert open_data(tmp_path / "data", "validation").class_names == ("c", "d")
    assert open_data(tmp_path / "data", "test").class_names == ("e", "f", "g")
    write(tmp_path / "half" / "train", "a", (0, 0, 0))
    with pytest.raises(ValueError, match="half has the splits train: there is no 'test'"):
        open_data(tmp_path / "half", "test")
    with pytest.raises(ValueError, match="no split 'val': choose one of train, validation, test"):
        open_data(tmp_path / "data", "val")


def test_folders_beside_the_splits_are_no_classes(tmp_path):
    """Photos to be classified often lie beside those to learn from."""
    for name in ("a", "b"):
        write(tmp_path / "data" / "train", name, (9, 9, 9))
    write(tmp_path / "data", "new", (1, 1, 1))
    assert open_data(tmp_path / "data", "train").class_names == ("a", "b")
    with pytest.raises(ValueError, match="data has the splits train: there is no 'test'"):
        open_data(tmp_path / "data", "test")


def test_classes_may_be_called_like_splits(tmp_path):
    write(tmp_path, "train", (1, 1, 1))
    write(tmp_path, "test", (2, 2, 2))
    write(tmp_path, "tram", (3, 3, 3))
    assert open_data(tmp_path).class_names == ("test", "train", "tram")


def test_a_known_set_is_itself_unless_a_folder_is_meant(tmp_path, monkeypatch):
    assert torch.equal(open_data("glyphs", "validation").images, load_dataset("glyphs", "validation").images)
    write(tmp_path / "glyphs", "a", (1, 1, 1))
    write(tmp_path / "glyphs", "b", (1, 1, 1))
    monkeypatch.chdir(tmp_path)
    assert open_data("dir:glyphs").class_names == open_data("./glyphs").class_names == ("a", "b")


def test_too_few_images_are_named_with_settings_that_fit(tmp_path, decoded):
    for name, count in {"a": 16, "b": 20, "c": 16, "d": 9, "e": 5}.items():
        write(tmp_path / "photos", name, (9, 9, 9), count, size=4)
    with pytest.raises(ValueError) as error:
        open_data(tmp_path / "photos", needs=Needs(ways=5, shots=1, queries=15))
    assert str(error.value) == (
        "photos has 3 classes with at least 16 images; 5 ways of 1 shot and 15 queries need 5: use --ways 3 or "
        "--queries 4."
    )
    assert not decoded
    fits = open_data(tmp_path / "photos", image_size=4, needs=Needs(ways=5, shots=1, queries=4))
    EpisodeSampler(fits, ways=5, shots=1, queries=4)
    for needs, words in {
        (6, 1, 1): "5 classes with at least 2 images; 6 ways of 1 shot and 1 query need 6: use --ways 5.",
        (2, 30, 1): "0 classes with at least 31 images; .* add images or classes",
    }.items():
        with pytest.raises(ValueError, match=words):
            open_data(tmp_path / "photos", needs=Needs(*needs))


def test_classes_with_too_few_images_are_left_out_by_name(tmp_path, caplog, decoded):
    for name, count in {"a": 3, "b": 1, "c": 4}.items():
        write(tmp_path / "photos", name, (9, 9, 9), count)
    data = open_data(tmp_path / "photos", needs=Needs(ways=2, shots=1, queries=2))
    assert data.class_names == ("a", "c") and data.labels.tolist() == [0] * 3 + [1] * 4
    assert "Left out: classes with fewer than 3 images: b." in caplog.text
    assert len(decoded) == 7, "only what is kept is decoded"


def test_unreadable_images_are_left_out_and_their_class_with_them(photos, caplog):
    write(photos, "yak", (7, 7, 7))
    (photos / "cat" / "001.png").write_bytes(b"damaged")
    (photos / "owl" / "001.png").write_bytes(b"damaged")
    (photos / "cat" / "phone.HEIC").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        data = open_data(photos, image_size=4, needs=Needs(ways=2, shots=2, queries=1))
    assert data.class_names == ("cat", "yak") and data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.by_class("yak").unique().tolist() == [7]
    assert (
        "001.png is not readable as an image" in caplog.text
        and "phone.HEIC is not readable as an image: convert HEIC" in caplog.text
    )
    with pytest.raises(ValueError, match="2 classes with at least 3 images; 3 ways"):
        open_data(photos, needs=Needs(ways=3, shots=2, queries=1))


def test_no_more_is_decoded_than_memory_is_set_aside_for(tmp_path, caplog, decoded):
    for name in ("a", "b"):
        write(tmp_path / "photos", name, (9, 9, 9), count=50, size=4)
    data = open_data(tmp_path / "photos", image_size=4, max_bytes=20 * 48)
    first = list(decoded)
    assert data.images.numel() == 20 * 48 and data.labels.bincount().tolist() == [10, 10] and len(first) == 20
    assert "10 of a class are used at most" in caplog.text
    open_data(tmp_path / "photos", image_size=4, max_bytes=20 * 48)
    assert decoded[20:] == first, "the same each time"
    with pytest.raises(ValueError, match="16 images of each are more than the 20 that memory is set aside for"):
        open_data(tmp_path / "photos", image_size=4, max_bytes=20 * 48, needs=Needs(2, 1, 15))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dir:nowhere", "There is no folder nowhere"),
        ("./nowhere", "There is no folder nowhere"),
        ("one", "one has 1 class with at least 1 image; 2 ways of 1 shot need 2: add images or classes"),
        ("no/where", "'no/where' is none of cifar-fs, .*, not a folder here, nor to be had from the Hub"),
    ],
)
def test_what_is_not_there_or_has_one_class_is_refused(tmp_path, monkeypatch, spec, message):
    import datasets

    def unreachable(path, **more):
        raise ConnectionError(f"Couldn't reach '{path}' on the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "one", "cat", (0, 0, 0))
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        open_data(spec)


def animals(kind: str, names: list[str | None]):
    """A table of five images of those classes, and its pixels."""
    import datasets

    draw = np.random.default_rng(0)
    pixels = [draw.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in names]
    coded = [None if name is None else ["cat", "owl"].index(name) for name in names]
    types = {"ClassLabel": datasets.ClassLabel(names=["cat", "owl"]), "string": datasets.Value("string")}
    features = {"picture": datasets.Image(), "animal": types.get(kind, datasets.Value("int64"))}
    columns = {"picture": [Image.fromarray(array) for array in pixels], "animal": names if kind == "string" else coded}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features)), pixels


@pytest.mark.parametrize("kind", ["ClassLabel", "string", "int64"])
@pytest.mark.parametrize("stored", ["parquet", "disk"])
def test_tables_of_images_are_read_whatever_their_columns_are_called(tmp_path, caplog, kind, stored):
    table, pixels = animals(kind, ["owl", "cat", "owl", None, "cat"])
    if stored == "disk":
        table.save_to_disk(tmp_path / "own")
    else:
        (tmp_path / "own").mkdir()
        table.to_parquet(tmp_path / "own" / "train.parquet")
    label = None if kind != "int64" else "animal"
    data = open_data(tmp_path / "own", "test", image_size=16, label_column=label)
    assert data.class_names == (("0", "1") if kind == "int64" else ("cat", "owl"))
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(data.images.numpy(), np.stack([pixels[k].transpose(2, 0, 1) for k in (1, 4, 0, 2)]))
    assert "Left out: 1 image of data set 'own' without a label." in caplog.text


def test_tables_have_splits_and_revisions(tmp_path, monkeypatch):
    import datasets

    asked = []
    parts = datasets.DatasetDict(
        train=animals("string", ["owl", "cat"])[0], val=animals("string", ["cat", "owl", "owl"])[0]
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **more: asked.append((path, more)) or parts)
    assert len(open_data("hf:me/birds@v2", "validation", image_size=4)) == 3
    assert len(open_data("me/birds", "train", image_size=4)) == 2
    assert asked == [("me/birds", {"revision": "v2"}), ("me/birds", {})]
    with pytest.raises(ValueError, match="'me/birds' has the splits train, val: there is no 'test'"):
        open_data("me/birds", "test")
