"""The answers of a classifier to image files, for people and for tables."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hf_dfml.classifier.classifier import QUERIES_AT_ONCE, Classifier
from hf_dfml.evaluation.heads import HEADS
from hf_dfml.utils.checkpoint import atomic_write
from hf_dfml.utils.inputs import FolderContent, as_batch, look_into, nothing_in
from hf_dfml.utils.text import counted

NONE = "none of these"
"""The label of an image whose most probable class is below the threshold."""
SUFFIXES = (".csv", ".json")
FITS = 50
"""Support images up to which a head that adapts the network is fitted once for each, to leave it out."""


class Answer(NamedTuple):
    """The most probable labels of a file with their probabilities, the best first.

    Attributes:
        file: the image.
        label: the best label, or `NONE`.
        top: labels and probabilities.
    """

    file: Path
    label: Any
    top: list[tuple[Any, float]]


class Answers(NamedTuple):
    """The answers to all files that could be read, and what of the folders has none.

    Attributes:
        answers: one for each file.
        left_out: why each other file of a folder was left out, in a sentence that names it.
        sub_folders: folders inside the folders, which were not searched.
    """

    answers: list[Answer]
    left_out: dict[Path, str]
    sub_folders: list[Path]


def answer(
    classifier: Classifier, queries: Path | str | Sequence[Path | str], *, top_k: int = 1, threshold: float = 0.0
) -> Answers:
    """Classify image files.

    Args:
        classifier: whose classes.
        queries: image files, and folders of them, or one of either. Files of a folder that cannot be read are left
            out; its sub-folders are not searched.
        top_k: labels of each image; all, where there are fewer.
        threshold: probability in [0, 1] below which the label is `NONE`.

    Raises:
        FileNotFoundError: if one of the queries does not exist.
        ValueError: if a file that was named itself cannot be read, or none of a folder, or an argument is out of
            range.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold}: expected a probability from 0 to 1.")
    if top_k < 1:
        raise ValueError(f"top_k={top_k}: expected 1 or more.")
    paths = [Path(query).expanduser() for query in ([queries] if isinstance(queries, str | Path) else queries)]
    listed, named = _files_of(paths), {path for path in paths if path.is_file()}
    files = list(dict.fromkeys(listed.images))
    if not files:
        raise ValueError(nothing_in(paths, listed))
    # Transductive statistics are of all images that are asked together.
    size = len(files) if classifier.how.bn == "transductive" else QUERIES_AT_ONCE
    found = Answers([], listed.left_out, listed.sub_folders)
    for first in range(0, len(files), size):
        images, kept = [], []
        for file in files[first : first + size]:
            try:
                images.append(as_batch([file], classifier.size)[0])
                kept.append(file)
            except ValueError as error:
                if file in named:
                    raise ValueError(f"{error} It was named itself; of a folder such files are left out.") from error
                found.left_out[file] = str(error)
        if kept:
            for file, top in zip(kept, classifier.top_k(images, top_k), strict=True):
                label, probability = top[0]
                found.answers.append(Answer(file, label if probability >= threshold else NONE, top))
    if not found.answers:
        unread = next(reason for file, reason in found.left_out.items() if file in files)
        raise ValueError(f"None of the {len(files)} image files can be read: {unread}")
    return found._replace(left_out=dict(sorted(found.left_out.items())))


def lines(answers: Iterable[Answer]) -> list[str]:
    """One line for each answer: file, label, probability, and further labels with theirs, separated by tabs."""
    return [
        "\t".join([str(row.file), str(row.label), f"{row.top[0][1]:.3f}", *(_words(row.top[1:]))]) for row in answers
    ]


def write_answers(path: Path, found: Answers) -> Path:
    """Write a `.csv` (file, label, probability, label_2, ...) or a `.json` file, which names what was left out too.

    Raises:
        ValueError: for another ending.
    """
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        content: dict[str, Any] = {
            "answers": [
                {
                    "file": str(row.file),
                    "label": row.label,
                    "top": [{"label": label, "score": round(score, 6)} for label, score in row.top],
                }
                for row in found.answers
            ],
            "left_out": [{"file": str(file), "reason": reason} for file, reason in found.left_out.items()],
            "sub_folders": [str(folder) for folder in found.sub_folders],
        }
        atomic_write(path, json.dumps(content, indent=1, default=str) + "\n")
        return path
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    more = range(2, max(len(row.top) for row in found.answers) + 1)
    writer.writerow(
        ["file", "label", "probability", *(name for k in more for name in (f"label_{k}", f"probability_{k}"))]
    )
    for row in found.answers:
        further = [value for label, score in row.top[1:] for value in (label, f"{score:.6f}")]
        writer.writerow([row.file, row.label, f"{row.top[0][1]:.6f}", *further])
    atomic_write(path, text.getvalue())
    return path


def estimate(classifier: Classifier) -> str:
    """How many images of its own support set are classified correctly, in a line, where it takes no minutes."""
    images, how = sum(classifier.shots), classifier.how
    one_pass = HEADS[how.head].on_features and how.bn == "running"
    if how.bn == "transductive" or (images > FITS and not one_pass):
        return f"Learnt {len(classifier.classes)} classes from {counted(images, 'image')}."
    if max(classifier.shots) < 2:
        return "Each class has one image: with two of a class the accuracy on your own images could be estimated."
    found = classifier.leave_one_out()
    return (
        f"On your own {counted(found.total, 'image')}, each left out in turn (head={how.head}, bn={how.bn}): {found}."
    )


def check_output(path: Path) -> None:
    """Refuse an ending that is not known, before any work.

    Raises:
        ValueError: for another ending than `SUFFIXES`.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} ends in '{path.suffix}': expected {' or '.join(SUFFIXES)}.")


def _files_of(queries: Sequence[Path]) -> FolderContent:
    """The files that are named, and what lies in the folders that are, in the order of the names."""
    found = FolderContent([], {}, [])
    for query in queries:
        if not query.exists():
            raise FileNotFoundError(f"There is no image file or folder {query}.")
        if not query.is_dir():
            found.images.append(query)
            continue
        inside = look_into(query)
        found.images.extend(inside.images)
        found.left_out.update(inside.left_out)
        # One that is named as well is searched.
        found.sub_folders.extend(folder for folder in inside.sub_folders if folder not in queries)
    return found


def _words(top: Sequence[tuple[Any, float]]) -> list[str]:
    return [word for label, score in top for word in (str(label), f"{score:.3f}")]
