"""PURER's dynamic data set: learnable images of every class of a pool, which all members move together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hf_dfml.data.episodes import Episodes
from hf_dfml.pool.teacher import Teacher
from hf_dfml.recovery.augment import random_roll
from hf_dfml.recovery.bank import RecoveredImages
from hf_dfml.recovery.objective import InversionWeights, inversion_loss
from hf_dfml.recovery.pixels import Pixels
from hf_dfml.settings import Settings, option, part
from hf_dfml.utils.images import to_uint8
from hf_dfml.utils.processes import ALONE, Processes
from hf_dfml.utils.seeding import spawn


class DynamicDatasetConfig(Settings):
    """How the images of a pool's classes are learnt; the defaults are those of PURER's released scripts."""

    images_per_class: int = option(
        20, "Images of each class name; at least the shots and queries of an episode together.", least=1
    )
    recovery_lr: float = option(0.25, "Learning rate of Adam for the (normalised) pixels.", above=0)
    objective: InversionWeights = part(InversionWeights, bn_weight=0.01, tv_weight=1e-4, l2_weight=1e-5)
    shift: int = option(2, "Pixels of random shift before a teacher sees its images.", least=0)


class DynamicDataset(RecoveredImages):
    """Learnable images by class name under one Adam (episode curriculum inversion: PURER, Hu et al., CVPR 2023).

    Classes of different members with the same name share their images. Pixels are learnt in the normalised space of
    the meta-model and brought back to [0, 1] after each step; a teacher resizes and normalises for itself, so that
    members of any input size and normalisation fit. (The released code never brings them back, and knows one
    normalisation only.)

    Args:
        config: number of images, learning rate and objective.
        size: height and width of the images.
        mean: per channel, of pixels in [0, 1]: with `std` the space in which pixels are learnt.
        std: per channel.
    """

    def __init__(self, config: DynamicDatasetConfig, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.config, self.size, self.mean, self.std = config, size, mean, std
        self._place: dict[str, int] = {}

    def begin(self, class_names: Iterable[str], generator: torch.Generator, device: torch.device | str) -> None:
        """Start with noise for each class; names (`PoolEntry.class_keys`) that occur twice are one class."""
        self._place = {name: index for index, name in enumerate(dict.fromkeys(class_names))}
        shape = (len(self._place), self.config.images_per_class, 3, self.size, self.size)
        self._hold(torch.randn(shape, generator=generator).to(device))

    @property
    def class_names(self) -> tuple[str, ...]:
        """All class names of the pool, in the order of their first member."""
        return tuple(self._place)

    def __getitem__(self, class_name: str) -> Tensor:
        """uint8 `(n, 3, H, W)`."""
        return to_uint8(self.pixels[self._place[class_name]])

    def count(self, class_name: str) -> int:
        """How many images a class has: the same for all."""
        return self.config.images_per_class

    def pick(self, class_name: str, rows: Tensor) -> Tensor:
        """The images `rows` of one class, `(B, 3, H, W)` in [0, 1], with a graph to the pixels."""
        return self.pixels[self._place[class_name], rows.to(self.pixels.values.device)]

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator, *, ways: int, shots: int, queries: int) -> Episodes:
        """Draw `count` episodes of images as they are now; see `RecoveredImages.sample`."""
        return super().sample(count, generator, ways=ways, shots=shots, queries=queries)

    def learnable_episode(self, generator: torch.Generator, *, ways: int, shots: int, queries: int) -> Episodes:
        """One episode whose images carry a graph to the pixels, for a loss that is to move them."""
        return super().sample(1, generator, ways=ways, shots=shots, queries=queries)

    @torch.no_grad()
    def newest(self, count: int) -> Tensor:
        """About `count` of the images, spread evenly over the classes, `(B, 3, H, W)` in [0, 1]."""
        return super().newest(count)

    def task_of(self, class_names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Images and labels as a member of these classes, in the order of its outputs, is to see them.

        Returns:
            images `(B, 3, H, W)` in [0, 1] with a graph to the pixels, class after class, and labels `(B,)`, which
            count in the order of `class_names`, whatever the order of the classes here (the released PURER-Plus
            mislabels classes that a member does not list in ascending order).
        """
        places = torch.tensor([self._place[name] for name in class_names], device=self.pixels.values.device)
        labels = torch.arange(len(places), device=places.device).repeat_interleave(self.config.images_per_class)
        return self.pixels[places].flatten(0, 1), labels

    def learn(
        self,
        teachers: Sequence[Callable[[], Teacher]],
        generator: torch.Generator,
        further: Callable[[], Tensor] | None = None,
        processes: Processes = ALONE,
    ) -> dict[str, float]:
        """One step of Adam on the sum of the members' inversion losses, each with the same weight.

        Args:
            teachers: load the members, one at a time in memory.
            generator: draws the shift of each member's images.
            further: a scalar with a graph to the pixels that is added to the sum.
            processes: among which the members are divided.

        Returns:
            the metric `inversion_loss`, the mean of the members' losses.
        """

        def inversion(load: Callable[[], Teacher], stream: torch.Generator) -> Tensor:
            teacher = load()
            images, labels = self.task_of(teacher.entry.class_keys)
            shifted = random_roll(images, stream, pixels=self.config.shift)
            return inversion_loss(teacher, shifted, labels, self.config.objective)[0]

        def gradient(term: tuple[Callable[[], Tensor], float]) -> tuple[Tensor, Tensor]:
            """Of one term, so that one member's graph is held at a time; and what it adds to the metric."""
            loss = term[0]()
            return torch.autograd.grad(loss, values)[0], term[1] * loss.detach()

        values = self.pixels.values
        streams = spawn(generator, len(teachers))
        terms: list[tuple[Callable[[], Tensor], float]] = [
            (partial(inversion, *pair), 1 / len(teachers)) for pair in zip(teachers, streams, strict=True)
        ]
        terms += [(further, 0.0)] if further else []
        values.grad, mean = processes.sum(gradient, terms, like=[values, values.new_empty(())])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.pixels.project()
        return {"inversion_loss": mean.item()}

    def state_dict(self) -> dict[str, Any]:
        """Class names, pixels and the optimiser."""
        return {
            "class_names": list(self._place),
            "pixels": self.pixels.values.detach(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str = "cpu") -> None:
        """Take over what `state_dict` gave, in place of `begin`."""
        self._place = {name: index for index, name in enumerate(state["class_names"])}
        self._hold(state["pixels"].to(device))
        self.optimizer.load_state_dict(state["optimizer"])

    def rename(self, keys: Mapping[str, str]) -> None:
        """Call classes by their keys; of two that are one class now, the first keeps its images."""
        places: dict[str, int] = {}
        for name, place in self._place.items():
            places.setdefault(keys.get(name, name), place)
        self._place = places

    def _hold(self, values: Tensor) -> None:
        self.pixels = Pixels(values, self.mean, self.std)
        self.optimizer = torch.optim.Adam([self.pixels.values], self.config.recovery_lr)
