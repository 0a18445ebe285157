"""What happens when a button of the page is pressed, without the page: learn, classify, pack."""

from __future__ import annotations

import base64
import io
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from hf_dfml.adapting import adapt
from hf_dfml.classifier import Classifier
from hf_dfml.classifier.files import write
from hf_dfml.demo.subject import Subject
from hf_dfml.utils.images import read_image, to_uint8

MAX_PIXELS = 4096 * 4096
"""Of one picture; a small file can hold many more."""
THUMBNAIL = 160
"""Pixels of the longer side of what the page shows."""
NEAREST = 3
FOLDER = "my-classifier"


class Picture(NamedTuple):
    """A picture file that can be read.

    Attributes:
        file: where it lies.
        thumbnail: a small copy, as the address of an `<img>`.
    """

    file: Path
    thumbnail: str


class Neighbour(NamedTuple):
    """A support picture that is like another picture; `similarity` is a cosine."""

    label: Any
    thumbnail: str
    similarity: float


class Shown(NamedTuple):
    """A picture with its labels and probabilities, the best first, and the nearest support pictures."""

    picture: Picture
    top: list[tuple[Any, float]]
    nearest: list[Neighbour]


@dataclass(frozen=True)
class Lesson:
    """A classifier, and what the page shows of its support set.

    Attributes:
        classifier: what answers.
        labels: the class of each support picture; empty where they are not known.
        thumbnails: each of them.
        left_out: why other files were not learnt from.
    """

    classifier: Classifier
    labels: tuple[Any, ...] = ()
    thumbnails: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def read_pictures(files: Sequence[Path | str]) -> tuple[list[Picture], list[str]]:
    """The files that are pictures, and a sentence about each of the others."""
    pictures, left_out = [], []
    for file in map(Path, files):
        try:
            pictures.append(Picture(file, thumbnail(read_image(file, max_pixels=MAX_PIXELS))))
        except ValueError as error:
            left_out.append(str(error).replace(str(file), file.name))
    return pictures, left_out


def learn(subject: Subject, classes: Sequence[tuple[str, Sequence[Path | str]]]) -> Lesson:
    """Learn classes from a few pictures of each.

    Args:
        subject: a model whose classes are still to be learnt.
        classes: names and picture files; those with neither are passed over.

    Raises:
        ValueError: for fewer than two classes, one without a name or a picture that can be read, or two of one name.
    """
    assert subject.model is not None
    found = [(number, name.strip(), files) for number, (name, files) in enumerate(classes, 1) if name.strip() or files]
    pictures: list[Picture] = []
    labels: list[str] = []
    left_out: list[str] = []
    for number, name, files in found:
        if not name:
            raise ValueError(f"Class {number} has pictures but no name: type its name.")
        if name in labels:
            raise ValueError(f"Two classes are called '{name}': give one of them another name.")
        if not files:
            raise ValueError(f"Class '{name}' has no pictures: add at least one.")
        readable, problems = read_pictures(files)
        if not readable:
            raise ValueError(f"Class '{name}' has no picture that can be read: {' '.join(problems)}")
        pictures += readable
        labels += [name] * len(readable)
        left_out += problems
    if len(found) < 2:
        raise ValueError("A classifier needs at least two classes: name them, and add a picture or more of each.")
    classifier = adapt(subject.model, [picture.file for picture in pictures], labels)
    if not classifier.origin.name:
        classifier.origin = replace(classifier.origin, name=subject.name)
    return Lesson(classifier, tuple(labels), tuple(picture.thumbnail for picture in pictures), tuple(left_out))


def stored_lesson(classifier: Classifier) -> Lesson:
    """A classifier that has its classes already, with its support pictures where they were stored with it."""
    if classifier.support is None or classifier.ways is None:
        return Lesson(classifier)
    labels = tuple(classifier.classes[way] for way in classifier.ways.tolist())
    return Lesson(classifier, labels, tuple(map(thumbnail, classifier.support)))


def classify(lesson: Lesson, files: Sequence[Path | str], top_k: int = 5) -> tuple[list[Shown], list[str]]:
    """The answers to picture files, and a sentence about each file that cannot be read.

    Raises:
        ValueError: if there is no file, or none can be read.
    """
    if not files:
        raise ValueError("There are no pictures to classify: add at least one.")
    pictures, left_out = read_pictures(files)
    if not pictures:
        raise ValueError(f"None of these files is a picture that can be read: {' '.join(left_out)}")
    readable = [picture.file for picture in pictures]
    answers = lesson.classifier.top_k(readable, top_k)
    nearest: list[list[Neighbour]] = [[] for _ in pictures]
    if lesson.thumbnails:
        nearest = [
            [Neighbour(lesson.labels[row], lesson.thumbnails[row], similarity) for row, similarity in rows]
            for rows in lesson.classifier.nearest(readable, NEAREST)
        ]
    return [Shown(*row) for row in zip(pictures, answers, nearest, strict=True)], left_out


def pack(classifier: Classifier, folder: Path, *, store_support: bool = False) -> Path:
    """A zip in `folder` of what `save_pretrained` writes, for any machine; one is packed anew for each call.

    Raises:
        ValueError: if the classifier cannot be stored, or needs members that are on this machine only.
    """
    with tempfile.TemporaryDirectory() as place:
        saved = write(classifier, Path(place) / FOLDER, store_support=store_support, for_elsewhere=True)
        folder.mkdir(parents=True, exist_ok=True)
        target = Path(tempfile.mkdtemp(dir=folder)) / f"{FOLDER}.zip"
        with zipfile.ZipFile(target, "w") as archive:  # Stored: weights cannot be compressed.
            for file in sorted(path for path in saved.rglob("*") if path.is_file()):
                archive.write(file, file.relative_to(place))
    return target


def thumbnail(image: Tensor) -> str:
    """A small copy of an image `(3, H, W)`, uint8 or in [0, 1], as the address of an `<img>`."""
    small = Image.fromarray(to_uint8(image).cpu().permute(1, 2, 0).contiguous().numpy())
    large = max(small.size) > THUMBNAIL
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer, kind = io.BytesIO(), "jpeg" if large else "png"
    small.save(buffer, kind, **({"quality": 85} if large else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
