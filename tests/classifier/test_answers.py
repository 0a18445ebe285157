"""Answers to files: order, thresholds, tables; files that cannot be read are listed with the reason."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from hf_dfml import Classifier, MetaModel
from hf_dfml.classifier import answers
from hf_dfml.classifier.answers import NONE, answer, lines, write_answers
from tests.classifier.conftest import CLASSES, labels, make_meta, pictures


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


@pytest.mark.parametrize(("bn", "estimated"), [("running", True), ("support", False)])
def test_an_estimate_that_would_take_minutes_is_not_made(monkeypatch, bn, estimated) -> None:
    """Under statistics of the support set each image that is left out is a network of its own."""
    monkeypatch.setattr(answers, "FITS", 5)
    learnt = make_meta().adapt(pictures(0, 2), labels(2), head="prototype", bn=bn)
    assert ("each left out in turn" in answers.estimate(learnt)) == estimated


def test_none_of_these(classifier: Classifier, folders: list[Path]) -> None:
    found = answer(classifier, folders, threshold=1.0)
    assert {row.label for row in found.answers} == {NONE} and found.answers[0].top[0][0] == "ant"
    with pytest.raises(ValueError, match=r"threshold=1\.5: expected a probability"):
        answer(classifier, folders, threshold=1.5)


def test_in_python_and_on_the_command_line_folders_are_the_same(
    classifier: Classifier, folders: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be read is left out and named; which file an answer is of can be known."""
    found = classifier.classify(folders[0], top_k=2)
    assert found == answer(classifier, [folders[0]], top_k=2)
    labels = [row.label for row in found.answers]
    for ask in (
        classifier.predict,
        classifier.predict_proba,
        classifier.top_k,
        classifier.logits,
        classifier.features,
    ):
        caplog.clear()
        assert len(ask(folders[0])) == len(found.answers)
        assert [record.getMessage() for record in caplog.records] == [
            f"Left out: {found.left_out[folders[0] / name]}" for name in ("d.heic", "b.png")
        ]
    assert classifier.predict(folders[0]) == classifier.predict([row.file for row in found.answers]) == labels
    assert [row for [(row, _)] in classifier.nearest(folders[0], 1)] == [
        row for [(row, _)] in classifier.nearest([row.file for row in found.answers], 1)
    ]
    with pytest.raises(ValueError, match=r"b\.png is not readable"):  # Each label is of a file.
        classifier.evaluate(folders[0], ["ant", "bee", "cow"])


def test_a_file_that_was_named_itself_must_be_readable(classifier: Classifier, folders: list[Path]) -> None:
    good, broken = folders[0] / "a.png", folders[0] / "b.png"
    for ask in (classifier.predict, classifier.classify):
        for named in (broken, [good, broken]):
            with pytest.raises(ValueError, match=r"b\.png is not readable as an image"):
                ask(named)
    with pytest.raises(ValueError, match="It was named itself; of a folder such files are left out"):
        classifier.classify([folders[0], broken])


def test_sub_folders_are_named_unless_they_are_searched(classifier: Classifier, folders: list[Path]) -> None:
    parent = folders[0].parent
    found = answer(classifier, [parent])
    assert [row.file.name for row in found.answers] == ["single.png"]
    assert found.sub_folders == [folders[0], folders[1]] and found.left_out == {}
    assert answer(classifier, [parent, folders[1]]).sub_folders == [folders[0]]
    written = json.loads(write_answers(parent / "answers.json", found).read_text())
    assert written["sub_folders"] == [str(folders[0]), str(folders[1])]
    (parent / "single.png").unlink()
    (parent / "answers.json").unlink()
    sentence = (
        r"holds no image: expected files such as .* Not searched: 2 sub-folders \(.*first, .*second\): name these"
    )
    for ask in (classifier.classify, classifier.predict):
        with pytest.raises(ValueError, match=sentence):
            ask(parent)


def test_nothing_to_read_is_an_error(classifier: Classifier, folders: list[Path]) -> None:
    for name in ("a.png", "c.png"):
        (folders[0] / name).unlink()
    for ask in (classifier.classify, classifier.predict):
        with pytest.raises(ValueError, match=r"None of the 1 image files can be read: .*b\.png"):
            ask(folders[0])
    (folders[0] / "b.png").unlink()
    for ask in (classifier.classify, classifier.predict):
        with pytest.raises(ValueError, match="first holds no image: expected files such as .*convert HEIC files"):
            ask(folders[0])
    with pytest.raises(ValueError, match=r"^top_k=0: expected 1 or more"):
        answer(classifier, folders, top_k=0)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        answer(classifier, ["nowhere"])
