"""The bank of recovered tasks: first in, first out for each class, and episodes that cross teachers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from hf_dfml.data.episodes import Episodes
from hf_dfml.pool.names import class_keys
from hf_dfml.recovery.task import Task
from hf_dfml.utils.images import to_uint8, to_unit


class RecoveredImages(ABC):
    """Recovered images by class *name*, from which episodes are drawn.

    Classes of different members with the same name share their images, so an episode crosses teachers (FREE, Eq. 4;
    BiDf-MKD's memory replay; PURER's dynamic data set).
    """

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """The classes that have at least one image."""

    @abstractmethod
    def __getitem__(self, class_name: str) -> Tensor:
        """uint8 `(n, 3, H, W)`, oldest first."""

    @abstractmethod
    def count(self, class_name: str) -> int:
        """How many images a class has."""

    @abstractmethod
    def pick(self, class_name: str, rows: Tensor) -> Tensor:
        """The images `rows` of one class, `(B, 3, H, W)` in [0, 1]."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that is stored."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any], device: torch.device | str = "cpu") -> None:
        """Take over what `state_dict` gave."""

    def __len__(self) -> int:
        return sum(self.count(name) for name in self.class_names)

    def ready(self, images: int) -> list[str]:
        """The classes with at least `images` images."""
        return [name for name in self.class_names if self.count(name) >= images]

    def sample(self, count: int, generator: torch.Generator, *, ways: int, shots: int, queries: int) -> Episodes:
        """Draw `count` episodes; within one, classes and images are distinct.

        Raises:
            ValueError: if fewer than `ways` classes have `shots + queries` images.
        """
        ready = self.ready(shots + queries)
        if len(ready) < ways:
            raise ValueError(
                f"There are {len(ready)} classes with at least {shots + queries} recovered images, "
                f"expected {ways}: "
                "recover more images per class, or ask for fewer shots or queries."
            )
        support, query, names = [], [], []
        for _ in range(count):
            chosen = [ready[i] for i in torch.randperm(len(ready), generator=generator)[:ways].tolist()]
            picks = [
                self.pick(name, torch.randperm(self.count(name), generator=generator)[: shots + queries])
                for name in chosen
            ]
            support.append(torch.cat([pick[:shots] for pick in picks]))
            query.append(torch.cat([pick[shots:] for pick in picks]))
            names.append(tuple(chosen))
        classes = torch.arange(ways, device=support[0].device)
        return Episodes(
            support=torch.stack(support),
            support_labels=classes.repeat_interleave(shots).expand(count, -1),
            query=torch.stack(query),
            query_labels=classes.repeat_interleave(queries).expand(count, -1),
            class_names=tuple(names),
        )

    def newest(self, count: int) -> Tensor:
        """About `count` of the newest images, spread evenly over the classes, `(B, 3, H, W)` in [0, 1]."""
        names = self.class_names
        if not names:
            raise ValueError("There are no recovered images: recover at least one task before asking for them.")
        each = max(1, count // len(names))
        return torch.cat(
            [self.pick(name, torch.arange(max(0, self.count(name) - each), self.count(name))) for name in names]
        )


class MemoryBank(RecoveredImages):
    """Recovered images by class name, at most `capacity` a class, the oldest leave first.

    Pixels are kept as uint8 on the device of the images: 3 KB an image of 32 pixels, 21 KB one of 84.

    Args:
        capacity: images a class.
        max_bytes: of all images together, shared out evenly: with many classes fewer images of each are kept.
    """

    def __init__(self, capacity: int, max_bytes: int = 2 << 30) -> None:
        self.capacity, self.max_bytes = capacity, max_bytes
        self._images: dict[str, Tensor] = {}
        self._names: dict[str, str] = {}  # By what names are compared by: the name that came first.

    def __getitem__(self, class_name: str) -> Tensor:
        """uint8 `(n, 3, H, W)`, oldest first."""
        return self._images[class_name]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that have at least one image, in the order of their first arrival."""
        return tuple(self._images)

    def count(self, class_name: str) -> int:
        """How many images a class has."""
        return len(self._images[class_name])

    def pick(self, class_name: str, rows: Tensor) -> Tensor:
        """The images `rows` of one class, `(B, 3, H, W)` in [0, 1]."""
        stored = self._images[class_name]
        return to_unit(stored[rows.to(stored.device)])

    def add(self, task: Task) -> None:
        """Store the images of `task` under their classes' names, or under what another member calls the same class."""
        keys = task.keys or task.class_names
        for index in task.labels.unique().tolist():
            name = self._names.setdefault(keys[index], task.class_names[index])
            new = to_uint8(task.images[task.labels == index])
            old = self._images.get(name)
            self._images[name] = new if old is None else torch.cat([old, new])
        each = min(self.capacity, max(1, self.max_bytes // (len(self._images) * task.images[0].numel())))
        for name, images in self._images.items():
            if len(images) > each:
                # A copy, as a part of a tensor keeps all of it in memory.
                self._images[name] = images[-each:].clone()

    def state_dict(self) -> dict[str, Any]:
        """The stored images by class, and the names by what they are compared by."""
        return {"images": dict(self._images), "names": dict(self._names)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str = "cpu") -> None:
        """Take over what `state_dict` gave."""
        self._images = {name: images.to(device) for name, images in state["images"].items()}
        self._names = dict(state.get("names", {}))
        if not self._names:  # Of an earlier version, which took other spellings for other classes.
            for name in self._images:
                key = name if "#" in name else class_keys((name,))[0]
                self._names.setdefault(key, name)
