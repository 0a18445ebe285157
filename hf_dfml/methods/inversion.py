"""What the systems that recover tasks have in common: meta-model, optimiser, bank, their state and pictures."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_dfml.learning.distillation import KDLoss, distillation_loss
from hf_dfml.learning.inner_loop import Parameters, TaskLoss
from hf_dfml.learning.optimisation import calibrate_batch_norm
from hf_dfml.learning.replay import EpisodeConfig, check_episode
from hf_dfml.methods.base import Context, Method
from hf_dfml.networks.functional import functional_forward
from hf_dfml.networks.info import network_info, without_fused_attention
from hf_dfml.networks.stages import train_mode
from hf_dfml.pool.black_box.pool import BlackBox
from hf_dfml.pool.teacher import Teacher
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.recovery.augment import random_crop_flip
from hf_dfml.recovery.bank import MemoryBank, RecoveredImages
from hf_dfml.recovery.inversion import InversionConfig
from hf_dfml.recovery.objective import BoundaryLoss, FurtherTerm, boundary_term
from hf_dfml.recovery.task import Task
from hf_dfml.settings import Settings, option
from hf_dfml.utils.checkpoint import Tree
from hf_dfml.utils.images import to_unit

STATISTICS_IMAGES = 500
"""Recovered images from which a snapshot's running statistics are taken."""


class DistillationConfig(Settings):
    """How a student is distilled from a teacher on recovered images (BiDf-MKD, FREE, TGR)."""

    distillation_ce: float = option(1.0, "Weight of the student's cross-entropy beside KD.")
    kd_loss: KDLoss = option("kl", "`kl`, or the released code's `legacy_linear`.")


class RecoveryMethod(Method):
    """A method that learns from episodes of recovered images.

    Args:
        config: hyper-parameters.
        model: the meta-model, on its device.
        episode: MAML's episodes; the meta-model is evaluated with their inner steps and learning rate.
        bank: where the recovered images are.

    Attributes:
        size: height and width of the recovered images: those of the meta-model's input.
        episode_loop: the inner loop of the episodes, with the highest derivatives that the method takes.
        whole_tasks: whether all classes of a member are recovered at once, or no more than an episode has.
    """

    whole_tasks = True

    def __init__(self, config: Any, model: nn.Module, episode: EpisodeConfig, bank: RecoveredImages) -> None:
        super().__init__(config, model)
        without_fused_attention(model)
        train_mode(model)  # Batch norm is told whose statistics to take.
        self.episode_loop = episode.inner_loop
        self.size = network_info(model).image_size
        self.bank = bank
        self.optimizer = torch.optim.Adam(model.parameters(), episode.outer_lr)
        self.eval_inner_loop = (episode.inner_steps, episode.inner_lr)

    @property
    def ways(self) -> int:
        """Number of classes of the meta-model."""
        return network_info(self.model).num_classes

    def check_model(self) -> None:
        """Take one step of the replay, on noise."""
        check_episode(self.model, self.episode_loop)

    def require_classes(self, pool: TeacherPool) -> None:
        """Make sure that the pool knows enough classes for an episode.

        Raises:
            ValueError: if it does not.
        """
        known = count_of_names(pool)
        if known < self.ways:
            raise ValueError(f"The pool knows {known} classes, episodes have {self.ways}: ask for fewer --ways.")

    def snapshot(self, context: Context) -> nn.Module:
        """A copy of the meta-model with the batch-norm statistics of the newest recovered images."""
        model = copy.deepcopy(self.model)
        if len(self.bank):
            calibrate_batch_norm(model, self.bank.newest(STATISTICS_IMAGES))
        return model.eval()

    def state_dict(self) -> Tree:
        """Meta-model, optimiser and bank."""
        own = {"optimizer": self.optimizer.state_dict(), "bank": self.bank.state_dict()}
        return super().state_dict() | own

    def load_state_dict(self, state: Tree, pool: TeacherPool, context: Context) -> None:
        """Take over what `state_dict` gave."""
        super().load_state_dict(state, pool, context)
        self.optimizer.load_state_dict(state["optimizer"])
        self.bank.load_state_dict(state["bank"], context.device)

    def pictures(self, folder: Path) -> list[Path]:
        """Recovered images class by class, with the confidence of members that know the class."""
        from hf_dfml.recovery.confidence import confidence
        from hf_dfml.utils.pictures import class_rows

        if not len(self.bank):
            return []
        names = self.bank.class_names[:10]
        columns = min(10, min(len(self.bank[name]) for name in names))
        images = torch.stack([to_unit(self.bank[name][-columns:]) for name in names])
        sure = None if self.pool.answers_only else confidence(self.pool, images, names)
        return [class_rows(images, names, folder / "recovered.png", confidence=sure)]


class InversionMethod(RecoveryMethod):
    """A method that recovers one task after the other and remembers them in a bank.

    Args:
        config: hyper-parameters, with a part `replay: ReplayConfig`.
        model: the meta-model, on its device.
    """

    bank: MemoryBank

    def __init__(self, config: Any, model: nn.Module) -> None:
        replay, episode = config.replay, config.replay.episode
        needed = episode.replay_shots + episode.replay_queries
        if replay.bank_per_class < needed:
            raise ValueError(
                f"bank_per_class={replay.bank_per_class}: an episode of {episode.replay_shots} shots and "
                f"{episode.replay_queries} queries takes {needed} images of a class."
            )
        bank = MemoryBank(replay.bank_per_class, int(replay.bank_memory_gb * 1e9))
        super().__init__(config, model, config.replay.episode, bank)
        self.newest: list[Task] = []

    @classmethod
    def kept_bytes(cls, config: Any, pool: TeacherPool, size: int) -> int:
        """Of the bank when it is full."""
        full = count_of_names(pool) * config.replay.bank_per_class * 3 * size * size
        return min(full, int(config.replay.bank_memory_gb * 1e9))

    def remember(self, tasks: Sequence[Task]) -> None:
        """Put recovered tasks into the bank."""
        for task in tasks:
            self.bank.add(task)
        self.newest = list(tasks)


def count_of_names(pool: TeacherPool) -> int:
    """How many classes a pool knows; those of one name (`hf_dfml.pool.names`) are one."""
    return len({name for entry in pool for name in entry.class_keys})


def sub_task(task: Task, ways: int, generator: torch.Generator) -> tuple[Task, list[int]]:
    """A task of at most `ways` classes and which of the teacher's outputs they are.

    A teacher of more classes than the meta-model has outputs gives a random choice of them at each step.
    """
    classes = choose_outputs(len(task.class_names), ways, generator)
    return (task if len(classes) == len(task.class_names) else task.restrict(classes)), classes


def choose_outputs(count: int, ways: int, generator: torch.Generator) -> list[int]:
    """At most `ways` of a teacher's `count` outputs, ascending: all of them, or a random choice."""
    if count <= ways:
        return list(range(count))
    return torch.randperm(count, generator=generator)[:ways].sort().values.tolist()


def teacher_logits(teacher: Teacher | BlackBox, images: torch.Tensor, outputs: list[int]) -> torch.Tensor:
    """The teacher's logits `(B, len(outputs))` for the chosen outputs, without a graph."""
    with torch.no_grad():
        return teacher(images)[:, outputs]


def student_logits(model: nn.Module, params: Parameters, images: torch.Tensor, count: int) -> torch.Tensor:
    """The meta-model's first `count` logits under batch statistics."""
    return functional_forward(model, params, images, source="batch")[:, :count]


def distillation_task(
    model: nn.Module,
    teacher: Teacher,
    task: Task,
    config: DistillationConfig,
    recovery: InversionConfig,
    generator: torch.Generator,
) -> TaskLoss:
    """`distillation_of` a task of all the teacher's classes, or of a random choice of them."""
    task, outputs = sub_task(task, network_info(model).num_classes, generator)
    return distillation_of(model, teacher, task, outputs, config, recovery, generator)


def distillation_of(
    model: nn.Module,
    teacher: Teacher | BlackBox,
    task: Task,
    outputs: list[int],
    config: DistillationConfig,
    recovery: InversionConfig,
    generator: torch.Generator,
) -> TaskLoss:
    """L_i = KD(teacher, student) + weight * CE, on one fixed augmentation of the task's images.

    FREE (Wei et al., CVPR 2024, Algorithm 2) has no CE, TGR's released code (Wei et al., ICML 2024) has it at 1.

    Args:
        model: the meta-model.
        teacher: the pool member.
        task: at most as many classes as the meta-model has outputs.
        outputs: which of the teacher's outputs the task's classes are.
        config: the loss.
        recovery: whose augmentation is used.
        generator: draws the augmentation.
    """
    images = random_crop_flip(task.images, generator, padding=recovery.shift, flip=recovery.flip)
    return partial(_distillation, model, config, images, task.labels, teacher_logits(teacher, images, outputs))


def _distillation(
    model: nn.Module, config: DistillationConfig, images: Tensor, labels: Tensor, targets: Tensor, params: Parameters
) -> Tensor:
    logits = student_logits(model, params, images, targets.shape[1])
    kd = distillation_loss(targets, logits, kind=config.kd_loss)
    return kd + config.distillation_ce * F.cross_entropy(logits, labels) if config.distillation_ce else kd


def boundary_against(
    model: nn.Module,
    params: Parameters,
    outputs: list[int],
    weight: float,
    *,
    constant: bool = False,
    kind: BoundaryLoss = "kl",
) -> FurtherTerm:
    """The boundary term of a recovery against the student that `params` are.

    Args:
        model: the meta-model.
        params: the student's parameters by name, held constant.
        outputs: which of the teacher's outputs the student's first ones are; images of other classes have no part.
        weight: of the term.
        constant: whether the student's answers are held constant, as in the released code; otherwise the gradient
            reaches the images through the student as well as through the teacher (Eq. 1 of FREE as it stands).
        kind: see `boundary_term`.
    """
    params = {name: value.detach() for name, value in params.items()}

    def term(images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        if len(outputs) < logits.shape[1]:
            shown = torch.isin(labels, torch.tensor(outputs, device=labels.device))
            images, logits = images[shown], logits[shown][:, outputs]
        with torch.no_grad() if constant else nullcontext():
            student = student_logits(model, params, images, len(outputs))
        return weight * boundary_term(logits, student, kind)

    return term
