"""A classifier of new classes, made from a few images of each.

classifier = meta.adapt(images, labels)
classifier.predict(queries), classifier.predict_proba(queries), classifier.top_k(queries, 3)
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_dfml.evaluation.heads import HEADS, Adaptation, Adapted, Head
from hf_dfml.utils.inputs import Images, as_batch, as_labels, list_class_folders, read_files

QUERIES_AT_ONCE = 256
Labels = Sequence[Hashable] | Tensor | np.ndarray


class Classifier:
    """A classifier of the classes of a support set.

    Attributes:
        classes: the labels as they were given, in the order of the probabilities' columns.
    """

    def __init__(
        self, head: Head, adapted: Adapted, support: Tensor, classes: Sequence[Any], size: tuple[int, int]
    ) -> None:
        self.classes = tuple(classes)
        self._head, self._adapted, self._support, self._size = head, adapted, support, size

    @classmethod
    def adapted(
        cls, network: nn.Module, images: Images, labels: Labels | None, how: Adaptation, size: tuple[int, int]
    ) -> Classifier:
        """Learn classes from a few images of each; the network itself stays as it is.

        Args:
            network: what is adapted.
            images: the support set, as `MetaModel.adapt` takes it.
            labels: the class of each image; None with a folder of class folders.
            how: the head, batch-norm statistics, and steps.
            size: `(height, width)` that images are resized to.

        Raises:
            ValueError: for fewer than two classes, a class folder without images, more or fewer labels than
                images, or images that cannot be used.
        """
        if labels is not None:
            support = as_batch(images, size)
        elif isinstance(images, str | Path):
            support, labels = _read_class_folders(images, size)
        else:
            raise ValueError("Labels are missing: give one for each image, or a folder with a folder for each class.")
        names = as_labels(labels)
        if len(names) != len(support):
            raise ValueError(f"There are {len(support)} images but {len(names)} labels: expected one label an image.")
        classes = list(dict.fromkeys(names))
        # Sorted where they can be, else as they first occur.
        if all(isinstance(name, str) for name in classes) or all(isinstance(name, int | float) for name in classes):
            classes.sort()
        if len(classes) < 2:
            raise ValueError(f"All images are of class {classes[0]!r}: a classifier needs at least two classes.")
        device = next(network.parameters()).device
        index = {name: way for way, name in enumerate(classes)}
        support = support.to(device)
        head = HEADS[how.head](network, len(classes), how)
        with torch.no_grad():
            adapted = head.fit(support, torch.tensor([index[name] for name in names], device=device))
        return cls(head, adapted, support, classes, size)

    def __repr__(self) -> str:
        shown = [repr(name) for name in self.classes[:5]] + ["..."] * (len(self.classes) > 5)
        how = self._head.how
        return f"Classifier({len(self.classes)} classes: {', '.join(shown)}; head={how.head}, bn={how.bn})"

    def predict(self, images: Images) -> list[Any]:
        """The most probable label of each image, as the label was given.

        Args:
            images: as in `MetaModel.adapt`, or a folder of image files (in the order of their names).
        """
        return [self.classes[way] for way in self.predict_proba(images).argmax(-1).tolist()]

    def predict_proba(self, images: Images) -> Tensor:
        """Probabilities `(B, N)` on the CPU, columns as `classes`."""
        queries = as_batch(images, self._size).to(self._support.device)
        whole = self._head.how.bn == "transductive"
        parts = [queries] if whole else queries.split(QUERIES_AT_ONCE)
        with torch.no_grad():
            logits = torch.cat([self._head.logits(self._adapted, self._support, part) for part in parts])
        return logits.softmax(-1).cpu()

    def top_k(self, images: Images, k: int = 5) -> list[list[tuple[Any, float]]]:
        """The `k` most probable labels of each image (all, where there are fewer) with their probabilities.

        Raises:
            ValueError: if `k` is less than 1.
        """
        if k < 1:
            raise ValueError(f"k={k}: expected 1 or more.")
        values, ways = self.predict_proba(images).topk(min(k, len(self.classes)))
        return [
            [(self.classes[way], value) for way, value in zip(*row, strict=True)]
            for row in zip(ways.tolist(), values.tolist(), strict=True)
        ]


def _read_class_folders(folder: Path | str, size: tuple[int, int]) -> tuple[Tensor, list[str]]:
    """The images below a folder of class folders that can be read, and the class of each."""
    files, labels = list_class_folders(folder)
    images, kept = read_files(files, size)
    class_of = dict(zip(files, labels, strict=True))
    names = [class_of[file] for file in kept]
    lost = sorted(set(labels) - set(names))
    if lost:
        raise ValueError(f"Class '{lost[0]}' has no readable image in {folder}: add one, or remove its folder.")
    return images, names
