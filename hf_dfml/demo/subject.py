"""What a page is about: a stored classifier, or a model that is still to learn classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from hf_dfml.adapting import open_model
from hf_dfml.classifier import Classifier
from hf_dfml.classifier.files import is_classifier
from hf_dfml.meta_model import MetaModel
from hf_dfml.pool.teacher_pool import TeacherPool


@dataclass(frozen=True)
class Subject:
    """Either of two.

    Attributes:
        name: its Hub id, or the name of its folder.
        classifier: its classes are known.
        model: its classes are still to be learnt.
    """

    name: str
    classifier: Classifier | None = None
    model: MetaModel | TeacherPool | None = None


def open_subject(name: str, device: torch.device | str = "cpu") -> Subject:
    """The classifier or model of that name, a folder or a Hub id.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if what is there cannot be used.
    """
    folder = Path(name).expanduser()
    short = folder.resolve().name if folder.exists() else name
    if is_classifier(name):
        return Subject(short, classifier=Classifier.from_pretrained(name, device=device))
    return Subject(short, model=open_model(name, device))
