"""A recovered task: images that a teacher classifies as its classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """What was recovered from one pool member.

    Attributes:
        images: `(B, 3, H, W)` in [0, 1].
        labels: `(B,)` class index in the order of the teacher's outputs.
        class_names: the teacher's class names in that order (anonymous ids where it has none).
        member: the id of the pool member.
        keys: what the names are compared by with those of other members (`PoolEntry.class_keys`); empty: themselves.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    member: str
    keys: tuple[str, ...] = ()

    def restrict(self, classes: list[int]) -> Task:
        """The part of the task that shows `classes`, relabelled 0, 1, ... in that order."""
        position = torch.full((len(self.class_names),), -1, device=self.labels.device)
        position[classes] = torch.arange(len(classes), device=self.labels.device)
        labels = position[self.labels]
        names = tuple(self.class_names[index] for index in classes)
        keys = tuple(self.keys[index] for index in classes) if self.keys else ()
        return Task(self.images[labels >= 0], labels[labels >= 0], names, self.member, keys)
