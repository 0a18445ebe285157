"""Answers to files: order, thresholds, tables; files that cannot be read are listed with the reason."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from hf_dfml import Classifier, MetaModel
from hf_dfml.classifier.answers import NONE, answer, lines, write_answers
from tests.classifier.conftest import CLASSES, labels, pictures


@pytest.fixture
def classifier(meta: MetaModel) -> Classifier:
    return meta.adapt(pictures(0, 3), labels(3), head="prototype", bn="running")


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """One of pictures and a broken file, one of a picture; and a single file."""
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    ant, bee, cow = pictures(1)
    ant.save(tmp_path / "first" / "a.png")
    bee.save(tmp_path / "first" / "c.png")
    (tmp_path / "first" / "b.png").write_bytes(b"nothing")
    (tmp_path / "first" / "d.heic").write_bytes(b"a phone's")
    (tmp_path / "first" / ".hidden").write_bytes(b"")
    cow.save(tmp_path / "second" / "x.png")
    ant.save(tmp_path / "single.png")
    return [tmp_path / "first", tmp_path / "second", tmp_path / "single.png"]


def test_several_folders_and_files_in_order(classifier: Classifier, folders: list[Path]) -> None:
    found = answer(classifier, [*folders, folders[2]], top_k=2)
    assert [row.file.name for row in found.answers] == ["a.png", "c.png", "x.png", "single.png"]
    assert [row.label for row in found.answers] == [*CLASSES, "ant"]
    assert [path.name for path in found.left_out] == ["b.png", "d.heic"]
    assert "convert HEIC files to JPEG or PNG" in found.left_out[folders[0] / "d.heic"]
    assert "b.png is not readable as an image" in found.left_out[folders[0] / "b.png"]
    (label, score), second = found.answers[0].top
    expected = classifier.predict_proba(folders[2])
    assert (label, score) == ("ant", pytest.approx(expected.max().item()))
    assert lines(found.answers)[0] == f"{folders[0] / 'a.png'}\tant\t{score:.3f}\t{second[0]}\t{second[1]:.3f}"


def test_tables(classifier: Classifier, folders: list[Path], tmp_path: Path) -> None:
    found = answer(classifier, folders, top_k=2)
    with write_answers(tmp_path / "out" / "answers.csv", found).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [*CLASSES, "ant"]
    assert list(rows[0]) == ["file", "label", "probability", "label_2", "probability_2"]
    content = json.loads(write_answers(tmp_path / "answers.json", found).read_text())
    assert content["answers"][0]["top"][0] == {"label": "ant", "score": round(found.answers[0].top[0][1], 6)}
    assert [row["file"] for row in content["left_out"]] == [str(folders[0] / name) for name in ("b.png", "d.heic")]
    with pytest.raises(ValueError, match=r"answers\.xlsx ends in '\.xlsx': expected \.csv or \.json"):
        write_answers(tmp_path / "answers.xlsx", found)


def test_none_of_these(classifier: Classifier, folders: list[Path]) -> None:
    found = answer(classifier, folders, threshold=1.0)
    assert {row.label for row in found.answers} == {NONE} and found.answers[0].top[0][0] == "ant"
    with pytest.raises(ValueError, match=r"threshold=1\.5: expected a probability"):
        answer(classifier, folders, threshold=1.5)


def test_nothing_to_read_is_an_error(classifier: Classifier, folders: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"None of the 1 image files can be read: .*b\.png"):
        answer(classifier, [folders[0] / "b.png"])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        answer(classifier, ["nowhere"])
