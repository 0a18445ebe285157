"""Learn, classify and pack, without a page."""

from __future__ import annotations

import base64
import io
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_dfml import Classifier, MetaModel
from hf_dfml.classifier import files
from hf_dfml.classifier.answers import estimate
from hf_dfml.demo import html
from hf_dfml.demo.lesson import classify, learn, pack, read_pictures, stored_lesson
from hf_dfml.demo.subject import Subject, open_subject
from tests.classifier.conftest import CLASSES
from tests.pool.members import write_pool

Photos = dict[str, list[str]]


@pytest.fixture
def subject(meta_folder: Path) -> Subject:
    return open_subject(str(meta_folder))


def test_what_a_page_is_about(meta_folder: Path, classifier_folder: Path, tmp_path: Path) -> None:
    model, known = open_subject(str(meta_folder)), open_subject(str(classifier_folder))
    assert model.name == "my-meta" and model.classifier is None and isinstance(model.model, MetaModel)
    assert known.name == "my-classifier" and known.model is None and known.classifier is not None
    with pytest.raises(FileNotFoundError):
        open_subject(str(tmp_path / "missing"))


def test_a_lesson_is_what_adapt_learns(subject: Subject, meta_folder: Path, photos: Photos) -> None:
    """Whatever the order of the classes; empty rows are passed over; unreadable files are named without their path."""
    rows = [("cow", photos["cow"]), ("", []), (" bee ", photos["bee"] + photos["bad"]), ("ant", photos["ant"])]
    lesson = learn(subject, rows)
    files = photos["cow"] + photos["bee"] + photos["ant"]
    names = ["cow"] * 2 + ["bee"] * 2 + ["ant"] * 2
    expected = MetaModel.from_pretrained(meta_folder).adapt(files, names)
    assert lesson.classifier.classes == tuple(CLASSES) and lesson.labels == tuple(names)
    assert lesson.classifier.predict_proba(photos["new"]).equal(expected.predict_proba(photos["new"]))
    assert lesson.left_out[0].startswith("broken.png is not readable as an image")
    assert lesson.left_out[1] == "phone.heic is not readable as an image: convert HEIC files to JPEG or PNG."


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "needs at least two classes"),
        ([("ant", "ant")], "needs at least two classes"),
        ([("ant", "ant"), ("", "bee")], "^Class 2 has pictures but no name"),
        ([("ant", "ant"), ("bee", None)], "^Class 'bee' has no pictures"),
        ([("ant", "ant"), ("ant", "bee")], "^Two classes are called 'ant'"),
        ([("ant", "ant"), ("bee", "bad")], "^Class 'bee' has no picture that can be read: broken.png is not"),
    ],
)
def test_what_cannot_be_learnt(subject: Subject, photos: Photos, rows: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learn(subject, [(name, photos[files] if files else []) for name, files in rows])


def test_answers_with_the_nearest_examples(subject: Subject, photos: Photos) -> None:
    lesson = learn(subject, [(name, photos[name]) for name in CLASSES])
    shown, left_out = classify(lesson, photos["new"] + photos["bad"])
    assert [row.picture.file.name for row in shown] == ["new-ant.png", "new-bee.png", "new-cow.png"]
    assert [row.top for row in shown] == lesson.classifier.top_k(photos["new"], 5) and len(left_out) == 2
    for row, near in zip(shown, lesson.classifier.nearest(photos["new"], 3), strict=True):
        assert [neighbour.label for neighbour in row.nearest] == [lesson.labels[index] for index, _ in near]
        assert [neighbour.similarity for neighbour in row.nearest] == [value for _, value in near]
    itself, _ = classify(lesson, photos["bee"][:1])
    assert itself[0].nearest[0].thumbnail == itself[0].picture.thumbnail
    with pytest.raises(ValueError, match="^There are no pictures to classify"):
        classify(lesson, [])
    with pytest.raises(ValueError, match="^None of these files is a picture that can be read: broken.png"):
        classify(lesson, photos["bad"])


def test_a_stored_classifier_shows_the_examples_that_it_has(
    classifier_folder: Path, photos: Photos, tmp_path: Path
) -> None:
    classifier = Classifier.from_pretrained(classifier_folder)
    shown, _ = classify(stored_lesson(classifier), photos["new"])
    assert [row.top[0][0] for row in shown] == CLASSES and all(len(row.nearest) == 3 for row in shown)
    bare = Classifier.from_pretrained(classifier.save_pretrained(tmp_path / "bare"))
    shown, _ = classify(stored_lesson(bare), photos["new"])
    assert [row.top[0][0] for row in shown] == CLASSES and all(row.nearest == [] for row in shown)


def test_the_download_is_the_classifier(subject: Subject, photos: Photos, tmp_path: Path) -> None:
    lesson = learn(subject, [(name, photos[name]) for name in CLASSES])
    for support in (False, True):
        file = pack(lesson.classifier, tmp_path / "packed", store_support=support)
        zipfile.ZipFile(file).extractall(tmp_path / str(support))
        again = Classifier.from_pretrained(tmp_path / str(support) / "my-classifier")
        assert file.name == "my-classifier.zip" and (again.support is not None) == support
        assert again.predict_proba(photos["new"]).equal(lesson.classifier.predict_proba(photos["new"]))


def test_a_whole_pool_is_taught_too(photos: Photos, tmp_path: Path) -> None:
    write_pool(tmp_path / "my-pool", 3)
    lesson = learn(open_subject(str(tmp_path / "my-pool")), [(name, photos[name]) for name in CLASSES])
    assert lesson.classifier.origin.name == "my-pool" and len(classify(lesson, photos["new"])[0][0].nearest) == 3
    assert zipfile.ZipFile(pack(lesson.classifier, tmp_path / "packed")).testzip() is None


def test_a_download_works_elsewhere_or_is_refused(photos: Photos, tmp_path: Path, monkeypatch) -> None:
    write_pool(tmp_path / "home" / "my-pool", 2)
    lesson = learn(open_subject(str(tmp_path / "home" / "my-pool")), [(name, photos[name]) for name in CLASSES])
    packed = zipfile.ZipFile(pack(lesson.classifier, tmp_path / "packed"))
    assert b"home" not in packed.read("my-classifier/pool.lock.json")
    packed.extractall(tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "home")
    again = Classifier.from_pretrained(tmp_path / "elsewhere" / "my-classifier")
    assert again.predict_proba(photos["new"]).equal(lesson.classifier.predict_proba(photos["new"]))
    monkeypatch.setattr(files, "SMALL", 1000)
    with pytest.raises(ValueError, match="member m-0 is neither on the Hub nor small: push the pool first"):
        pack(again, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_thumbnails_are_small_and_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # Turned by a quarter.
    Image.new("RGB", (800, 400), "red").save(tmp_path / "photo.jpg", exif=exif)
    array = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(array).save(tmp_path / "tiny.png")
    (large, tiny), left_out = read_pictures([tmp_path / "photo.jpg", str(tmp_path / "tiny.png")])
    opened = [Image.open(io.BytesIO(base64.b64decode(picture.thumbnail.split(",")[1]))) for picture in (large, tiny)]
    assert opened[0].size == (80, 160) and (np.array(opened[1]) == array).all() and left_out == []


def test_names_are_escaped(subject: Subject, photos: Photos) -> None:
    lesson = learn(subject, [("<b onclick=1>", photos["ant"]), ('"x" & y', photos["bee"])])
    pages = html.answers(*classify(lesson, photos["new"])) + html.learnt(lesson, estimate(lesson.classifier))
    pages += html.known(lesson) + html.error("<i>") + html.message("<i>")
    assert "<b onclick" not in pages and "<i>" not in pages and "&lt;b onclick=1&gt;" in pages
    assert set(re.findall(r'alt="([^"]*)"', pages)) == {
        "new-ant.png",
        "new-bee.png",
        "new-cow.png",
        "A picture of &lt;b onclick=1&gt;",
        "A picture of &quot;x&quot; &amp; y",
    }


def test_a_stored_classifier_says_what_it_knows(classifier_folder: Path) -> None:
    text = html.known(stored_lesson(Classifier.from_pretrained(classifier_folder)))
    assert (
        "3 classes: <strong>ant, bee, cow</strong>" in text and "On its own 9 pictures, each left out in turn" in text
    )
