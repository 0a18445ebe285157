"""A user's own images: class folders, splits of them, tables; what does not fit is said before any work."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from hf_dfml.data import load_dataset, open_data
from hf_dfml.data.folders import columns_of, require


def write(folder, name, colour, count=3, size=20):
    (folder / name).mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (size, size), colour).save(folder / name / f"{index}.png")


@pytest.fixture
def photos(tmp_path):
    write(tmp_path / "photos", "owl", (250, 0, 0))
    write(tmp_path / "photos", "cat", (0, 250, 0), count=4)
    return tmp_path / "photos"


def test_class_folders_are_classes_sorted_by_name(photos):
    data = open_data(photos, image_size=12)
    assert data.class_names == ("cat", "owl") and data.images.shape == (7, 3, 12, 12)
    assert data.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert data.by_class("owl")[:, 0].unique().tolist() == [250] and data.by_class("owl")[:, 1].unique().tolist() == [
        0
    ]
    assert torch.equal(open_data(f"dir:{photos}", image_size=12).images, data.images)


def test_splits_are_told_from_classes_by_their_names(tmp_path):
    for split, names in {"train": ("a", "b"), "val": ("c", "d"), "test": ("e", "f", "g")}.items():
        for name in names:
            write(tmp_path / "data" / split, name, (9, 9, 9))
    assert open_data(tmp_path / "data", "validation").class_names == ("c", "d")
    assert open_data(tmp_path / "data", "test").class_names == ("e", "f", "g")
    write(tmp_path / "half" / "train", "a", (0, 0, 0))
    with pytest.raises(ValueError, match="half has the splits train: there is no 'test'"):
        open_data(tmp_path / "half", "test")


def test_a_known_set_is_itself():
    assert torch.equal(open_data("glyphs", "validation").images, load_dataset("glyphs", "validation").images)


@pytest.mark.parametrize("coded", [True, False])
def test_tables_of_images_are_read_whatever_their_columns_are_called(tmp_path, coded):
    import datasets

    draw = np.random.default_rng(0)
    images = [Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(5)]
    names = ["owl", "cat", "owl", None, "cat"]
    labels = [None if name is None else ["cat", "owl"].index(name) for name in names] if coded else names
    kind = datasets.ClassLabel(names=["cat", "owl"]) if coded else datasets.Value("string")
    features = datasets.Features({"picture": datasets.Image(), "animal": kind})
    table = datasets.Dataset.from_dict({"picture": images, "animal": labels}, features=features)
    (tmp_path / "own").mkdir()
    table.to_parquet(str(tmp_path / "own" / "train.parquet"))
    data = open_data(tmp_path / "own", "train", image_size=16)
    assert data.class_names == ("cat", "owl") and data.labels.tolist() == [0, 0, 1, 1]
    expected = np.stack([np.asarray(images[index]).transpose(2, 0, 1) for index in (1, 4, 0, 2)])
    assert np.array_equal(data.images.numpy(), expected)
    with pytest.raises(ValueError, match="has no column 'x': name one with --label_column; its columns are picture"):
        columns_of(table, "own", None, "x")


def test_columns_that_cannot_be_guessed_are_listed():
    import datasets

    features = datasets.Features({"a": datasets.Image(), "b": datasets.Image(), "c": datasets.Value("string")})
    table = datasets.Dataset.from_dict({"a": [], "b": [], "c": []}, features=features)
    with pytest.raises(
        ValueError, match=r"2 columns that may be images: .*--image_column; .* a \(Image\), b \(Image\)"
    ):
        columns_of(table, "own", None, None)
    assert columns_of(table, "own", "b", None) == ("b", "c")


def test_too_few_images_are_named_with_settings_that_fit(photos):
    data = open_data(photos)
    require(data, ways=2, shots=[1, 2], queries=1)
    with pytest.raises(
        ValueError, match="2 classes of 3 to 4 images; 5 ways of 1 shots and 15 queries .*--ways 2 and --q"
    ):
        require(data, ways=5, shots=[1], queries=15)


def test_what_is_left_out_is_named(photos, caplog):
    (photos / "cat" / "phone.HEIC").write_bytes(b"x")
    (photos / "cat" / "notes.txt").write_text("x")
    with caplog.at_level(logging.WARNING):
        assert len(open_data(photos)) == 7
    text = caplog.text
    assert "phone.HEIC: convert HEIC files to JPEG or PNG" in text and "notes.txt: names of images end in" in text


@pytest.mark.parametrize("spec", ["dir:nowhere", "one"])
def test_what_is_not_there_or_has_one_class_is_refused(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "one", "cat", (0, 0, 0))
    with pytest.raises((FileNotFoundError, ValueError), match="There is no folder nowhere|has 1 class: few-shot"):
        open_data(spec)
