"""How a classifier sees its support set and other images, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from hf_dfml.classifier.answers import answer
from hf_dfml.classifier.classifier import Classifier
from hf_dfml.utils.pictures import feature_map
from hf_dfml.utils.text import counted


def draw_features(classifier: Classifier, path: Path | str, queries: Sequence[Path | str] = ()) -> Path:
    """Draw the support images, and queries as they are classified, where the network's features put them.

    Args:
        classifier: with its support images.
        path: the PNG file.
        queries: image files, and folders of them; those that cannot be read are passed over.

    Returns:
        The path written.

    Raises:
        ValueError: if the support images were not stored, or there are fewer than three images in all.
    """
    if classifier.support is None or classifier.ways is None:
        raise ValueError("The support images were not stored: draw the picture when the classifier is learnt.")
    support = classifier.features(classifier.support)
    answers = answer(classifier, queries).answers if queries else []
    asked = classifier.features([row.file for row in answers]) if answers else torch.empty(0, support.shape[1])
    shown = f"{counted(len(support), 'example image')} (large)"
    return feature_map(
        support,
        [str(classifier.classes[way]) for way in classifier.ways.tolist()],
        asked,
        path,
        query_labels=[str(row.label) for row in answers],
        title=shown + (f" and {counted(len(answers), 'image')} as classified" if answers else ""),
    )
