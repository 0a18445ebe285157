"""What the systems that recover tasks have in common: meta-model, optimiser, bank, their state and pictures."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from hf_dfml.learning.inner_loop import Parameters
from hf_dfml.learning.optimisation import calibrate_batch_norm
from hf_dfml.learning.replay import ReplayConfig
from hf_dfml.methods.base import Context
from hf_dfml.networks.functional import functional_forward
from hf_dfml.pool.model_pool import ModelPool
from hf_dfml.pool.teacher import Teacher
from hf_dfml.recovery.bank import MemoryBank
from hf_dfml.recovery.task import Task
from hf_dfml.utils.checkpoint import Tree
from hf_dfml.utils.images import to_unit

STATISTICS_IMAGES = 500
"""Recovered images from which a snapshot's running statistics are taken."""


class InversionMethod:
    """A method that learns from recovered tasks.

    Args:
        config: hyper-parameters; a `ReplayConfig` and whatever the method adds.
        model: the meta-model, on its device.
    """

    data_free = True

    def __init__(self, config: ReplayConfig, model: nn.Module) -> None:
        self.model = model
        self.bank = MemoryBank(config.bank_per_class)
        self.optimizer = torch.optim.Adam(model.parameters(), config.outer_lr)
        self.newest: list[Task] = []

    @property
    def ways(self) -> int:
        """Number of classes that the meta-model tells apart."""
        return int(self.model.num_classes)  # type: ignore[arg-type]

    def remember(self, tasks: Sequence[Task]) -> None:
        """Put every recovered task into the bank (FREE's released code keeps the last one only, SYSTEMS 5.3)."""
        for task in tasks:
            self.bank.add(task)
        self.newest = list(tasks)

    def snapshot(self, context: Context) -> nn.Module:
        """A copy of the meta-model with the batch-norm statistics of the newest recovered images."""
        model = copy.deepcopy(self.model)
        if len(self.bank):
            calibrate_batch_norm(model, self.bank.newest(STATISTICS_IMAGES))
        return model.eval()

    def state_dict(self) -> Tree:
        """Meta-model, optimiser and bank."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "bank": self.bank.state_dict(),
        }

    def load_state_dict(self, state: Tree, pool: ModelPool, context: Context) -> None:
        """Take over what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.bank.load_state_dict(state["bank"], context.device)

    def pictures(self, folder: Path) -> list[Path]:
        """A grid of recovered images, one row a class."""
        from hf_dfml.utils.pictures import image_grid

        if not len(self.bank):
            return []
        names = self.bank.class_names[:10]
        columns = min(10, min(len(self.bank[name]) for name in names))
        images = torch.cat([to_unit(self.bank[name][-columns:]) for name in names])
        titles = [name for name in names for _ in range(columns)]
        return [image_grid(images, folder / "recovered.png", columns=columns, titles=titles)]


def sub_task(task: Task, ways: int, generator: torch.Generator) -> tuple[Task, list[int]]:
    """A task of at most `ways` classes and which of the teacher's outputs they are.

    A teacher of more classes than the meta-model has outputs gives a random choice of them at each step.
    """
    if len(task.class_names) <= ways:
        return task, list(range(len(task.class_names)))
    classes = torch.randperm(len(task.class_names), generator=generator)[:ways].sort().values.tolist()
    return task.restrict(classes), classes


def teacher_logits(teacher: Teacher, images: torch.Tensor, outputs: list[int]) -> torch.Tensor:
    """The teacher's logits `(B, len(outputs))` for the chosen outputs, without a graph."""
    with torch.no_grad():
        return teacher(images)[:, outputs]


def student_logits(model: nn.Module, params: Parameters, images: torch.Tensor, count: int) -> torch.Tensor:
    """The meta-model's first `count` logits under batch statistics."""
    return functional_forward(model, params, images, source="batch")[:, :count]
