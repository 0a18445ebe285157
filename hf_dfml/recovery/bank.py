"""The bank of recovered tasks: first in, first out for each class, and episodes that cross teachers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_dfml.data.episodes import Episodes
from hf_dfml.recovery.task import Task
from hf_dfml.utils.images import to_uint8, to_unit


class MemoryBank:
    """Recovered images by class *name*, at most `capacity` a class, the oldest leave first.

    Classes of different members with the same name share their place, so an episode crosses teachers (FREE, Eq. 4;
    BiDf-MKD's memory replay). Pixels are kept as uint8 on the device of the images.

    Args:
        capacity: images a class.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._images: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return sum(len(images) for images in self._images.values())

    def __getitem__(self, class_name: str) -> Tensor:
        """uint8 `(n, 3, H, W)`, oldest first."""
        return self._images[class_name]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that have at least one image, in the order of their first arrival."""
        return tuple(self._images)

    def add(self, task: Task) -> None:
        """Store the images of `task` under their classes' names."""
        for index in task.labels.unique().tolist():
            name = task.class_names[index]
            new = to_uint8(task.images[task.labels == index])
            old = self._images.get(name)
            self._images[name] = (new if old is None else torch.cat([old, new]))[-self.capacity :]

    def ready(self, images: int) -> list[str]:
        """The classes with at least `images` images."""
        return [name for name, stored in self._images.items() if len(stored) >= images]

    def sample(self, count: int, generator: torch.Generator, *, ways: int, shots: int, queries: int) -> Episodes:
        """Draw `count` episodes; within one, classes and images are distinct.

        Raises:
            ValueError: if fewer than `ways` classes have `shots + queries` images.
        """
        ready = self.ready(shots + queries)
        if len(ready) < ways:
            raise ValueError(
                f"The bank has {len(ready)} classes with at least {shots + queries} recovered images, "
                f"expected {ways}: "
                "recover more images per class, or ask for fewer shots or queries."
            )
        support, query, names = [], [], []
        for _ in range(count):
            chosen = [ready[i] for i in torch.randperm(len(ready), generator=generator)[:ways].tolist()]
            picks = [
                self._images[name][
                    torch.randperm(len(self._images[name]), generator=generator)[: shots + queries].to(
                        self._images[name].device
                    )
                ]
                for name in chosen
            ]
            support.append(torch.cat([pick[:shots] for pick in picks]))
            query.append(torch.cat([pick[shots:] for pick in picks]))
            names.append(tuple(chosen))
        classes = torch.arange(ways, device=support[0].device)
        return Episodes(
            support=to_unit(torch.stack(support)),
            support_labels=classes.repeat_interleave(shots).expand(count, -1),
            query=to_unit(torch.stack(query)),
            query_labels=classes.repeat_interleave(queries).expand(count, -1),
            class_names=tuple(names),
        )

    def newest(self, count: int) -> Tensor:
        """About `count` of the newest images, spread evenly over the classes, `(B, 3, H, W)` in [0, 1]."""
        if not self._images:
            raise ValueError("The bank is empty: recover at least one task before asking for its images.")
        each = max(1, count // len(self._images))
        return to_unit(torch.cat([images[-each:] for images in self._images.values()]))

    def state_dict(self) -> dict[str, Any]:
        """The stored images by class."""
        return {"images": dict(self._images)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str = "cpu") -> None:
        """Take over what `state_dict` gave."""
        self._images = {name: images.to(device) for name, images in state["images"].items()}
