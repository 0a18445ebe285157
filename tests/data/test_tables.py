"""Columns that can be guessed are, others are listed; damaged files are named."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from hf_dfml.data.tables import choose_columns, class_numbers, load_table, undecoded
from hf_dfml.utils.images import read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return file.getvalue()


def empty(**columns: str):
    import datasets

    kinds = {"Image": datasets.Image(), "ClassLabel": datasets.ClassLabel(names=["a"])}
    features = {name: kinds.get(kind) or datasets.Value(kind) for name, kind in columns.items()}
    return datasets.Dataset.from_dict({name: [] for name in columns}, features=datasets.Features(features))


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"image": "Image", "label": "ClassLabel"}, ("image", "label")),
        ({"img": "Image", "file": "string", "kind": "ClassLabel"}, ("img", "kind")),
        ({"raw": "binary", "species": "string", "width": "int64"}, ("raw", "species")),
    ],
)
def test_columns_are_guessed_where_there_is_one(columns, found):
    assert choose_columns(empty(**columns), "own", None, None) == found


def test_columns_that_cannot_be_guessed_are_listed():
    two = empty(a="Image", b="Image", c="string")
    listed = r"its columns are a \(Image\), b \(Image\), c \(string\)"
    with pytest.raises(
        ValueError, match=f"has 2 columns that may hold images: choose one with --image_column; {listed}"
    ):
        choose_columns(two, "own", None, None)
    assert choose_columns(two, "own", "b", None) == ("b", "c")
    with pytest.raises(ValueError, match="has no column 'x': choose one with --label_column; its columns are a"):
        choose_columns(two, "own", "a", "x")
    with pytest.raises(ValueError, match="has 0 columns that may hold labels"):
        choose_columns(empty(a="Image", n="int64"), "own", None, None)
    with pytest.raises(ValueError, match="has 2 columns that may hold labels"):
        choose_columns(empty(a="Image", fine="ClassLabel", coarse="ClassLabel"), "own", None, None)


def test_labels_of_another_type_are_refused():
    import datasets

    table = datasets.Dataset.from_dict({"several": [["a"], ["b"]], "share": [0.5, 0.1]})
    for column in ("several", "share"):
        with pytest.raises(
            ValueError, match=f"Column '{column}' of data set 'own' holds .*: expected one class an image"
        ):
            class_numbers(table, column, "own")


def test_cells_are_read_however_they_were_written(tmp_path):
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = datasets.Features({"image": datasets.Image()})
    tables = {
        "schema": datasets.Dataset.from_dict({"image": [Image.fromarray(PIXELS)]}, features=features).data.table,
        "struct": pa.table({"image": [{"bytes": png(), "path": None}]}),
        "bytes": pa.table({"image": [png()]}),
    }
    for name, table in tables.items():
        (tmp_path / name).mkdir()
        pq.write_table(table, tmp_path / name / "train.parquet")
        read = load_table(tmp_path / name)["train"]
        assert choose_columns(read.add_column("label", ["a"]), "own", None, None) == ("image", "label")
        (cell,) = undecoded(read, "image")
        assert np.array_equal(read_image(cell, (6, 6)).permute(1, 2, 0).numpy(), PIXELS)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"PAR1 and no more", "it is cut off or damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, reason):
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.parquet is not readable as Parquet: .*{reason}"):
        load_table(tmp_path)


def test_a_broken_readme_is_a_sentence(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": [png()]}), tmp_path / "train.parquet")
    (tmp_path / "README.md").write_text("---\nlicense: [mit\nconfigs:\n - : x\n---\n")
    with pytest.raises(ValueError, match="cannot be read .*the header of its README.md, is damaged"):
        load_table(tmp_path)


def test_labels_of_no_class_are_left_out(tmp_path, caplog):
    """A number beyond the names, as a damaged file may hold."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    sound = datasets.Dataset.from_dict({"image": [None] * 4, "label": [0, 1, 0, 1]}, features=features).data.table
    numbers = pa.array([0, 1, 2**40, -7], pa.int64())
    pq.write_table(
        sound.set_column(1, "label", numbers).replace_schema_metadata(sound.schema.metadata), tmp_path / "x.parquet"
    )
    names, found = class_numbers(load_table(tmp_path)["train"], "label", "own")
    assert names == ["a", "b"] and found.tolist() == [0, 1, -1, -1]
    assert "2 images of data set 'own' without a label" in caplog.text
