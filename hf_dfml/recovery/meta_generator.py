"""FIVE: recovery in a few steps from a meta-learned generator (FREE, Wei et al., CVPR 2024)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from hf_dfml.networks.generator import Generator, compile_generator
from hf_dfml.pool.teacher import Teacher
from hf_dfml.recovery.augment import random_crop_flip
from hf_dfml.recovery.inversion import InversionConfig
from hf_dfml.recovery.objective import FurtherTerm, inversion_loss
from hf_dfml.recovery.task import Task
from hf_dfml.settings import Settings, option, part
from hf_dfml.utils.checkpoint import Tree
from hf_dfml.utils.processes import ALONE, Processes
from hf_dfml.utils.seeding import spawn

BETAS = (0.5, 0.999)


class MetaGeneratorConfig(Settings):
    """How tasks are recovered by a meta-generator; the defaults are FREE's (Wei et al., CVPR 2024, 5.1)."""

    inversion: InversionConfig = part(InversionConfig, images_per_class=20, bn_weight=0.0)
    adaptation_steps: int = option(
        5, "k: steps in which the meta-generator adapts to a teacher (FREE_5; 2 in FREE_2).", least=0
    )
    adaptation_lr: float = option(1e-3, "Learning rate of Adam for the generator's copy in them.", above=0)
    latent_lr: float = option(1e-3, "Learning rate of Adam for the generator's inputs in them.", above=0)
    meta_generator_lr: float = option(1e-3, "gamma: learning rate of the meta-generator's Adam.", least=0)
    meta_generator_adam: Literal["kept", "renewed"] = option(
        "kept",
        "Whether this Adam keeps its moments, or begins anew with each step (the released code), which moves every "
        "weight by the learning rate.",
    )


class MetaGenerator:
    r"""A generator from whose weights `adaptation_steps` steps recover a task from any teacher (FREE, Alg. 1).

    For each of `b` teachers a copy of the generator and fresh inputs take `k` steps of Adam on the inversion loss. One
    more forward pass, at the adapted weights, gives the images that are returned and the gradient :math:`g_i` of the
    loss there, which the meta-generator takes for its own (first order): a step along :math:`\frac1b\sum_i g_i`.

    The released code takes both from before the last step, sums over the teachers and forgets Adam's moments after
    every step; here the optimiser persists, unless `meta_generator_adam` is `renewed`.

    Args:
        config: steps, learning rates, and the weights of the objective.
        size: height and width of the images; each teacher resizes to its own.
        device: where the generator lives.
    """

    def __init__(self, config: MetaGeneratorConfig, size: int, device: torch.device | str = "cpu") -> None:
        self.config, recovery = config, config.inversion
        self.network = Generator(recovery.latent_dim, recovery.generator_width, size).to(device)
        self.optimizer = self._new_optimizer()

    def _new_optimizer(self) -> torch.optim.Adam:
        return torch.optim.Adam(self.network.parameters(), self.config.meta_generator_lr, BETAS)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw fresh weights; before the first recovery."""
        self.network.reset_parameters(generator)

    def recover(
        self,
        teachers: Sequence[Teacher],
        generator: torch.Generator,
        further: Sequence[FurtherTerm | None] | None = None,
        processes: Processes = ALONE,
    ) -> tuple[list[Task], dict[str, float]]:
        """Recover a task from each teacher and learn from it how the next ones are recovered.

        Args:
            teachers: `b` frozen pool members.
            generator: the source of all randomness, on the CPU.
            further: for each teacher a term of the method's own in the objective, such as the boundary term.
            processes: among which the teachers are divided.

        Returns:
            the tasks, `images_per_class` images for each class of a teacher, class after class; and the metric
            `generator_loss`, the mean loss after adaptation.
        """
        terms = further or [None] * len(teachers)
        items = zip(teachers, spawn(generator, len(teachers)), terms, strict=True)
        tasks, gradients, losses = zip(*processes.map(lambda item: self._recover_one(*item), items), strict=True)
        for parameter, parts in zip(self.network.parameters(), zip(*gradients, strict=True), strict=True):
            parameter.grad = torch.stack(parts).mean(0)
        if self.config.meta_generator_adam == "renewed":
            self.optimizer = self._new_optimizer()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return list(tasks), {"generator_loss": torch.stack(losses).mean().item()}

    def _recover_one(
        self, teacher: Teacher, generator: torch.Generator, further: FurtherTerm | None
    ) -> tuple[Task, tuple[Tensor, ...], Tensor]:
        """The k steps on a copy; the task, the gradient at the adapted weights and the loss there."""
        network = copy.deepcopy(self.network)
        task, loss = self._adapt(network, teacher, generator, further)
        return task, torch.autograd.grad(loss, list(network.parameters())), loss.detach()

    def _adapt(
        self, network: Generator, teacher: Teacher, generator: torch.Generator, further: FurtherTerm | None
    ) -> tuple[Task, Tensor]:
        """Take the k steps; the task and the loss at the adapted weights, with a graph to them."""
        config, recovery = self.config, self.config.inversion
        if recovery.compile_generator:
            compile_generator(network)
        device = next(network.parameters()).device
        labels = torch.arange(teacher.num_classes, device=device).repeat_interleave(recovery.images_per_class)
        latent = torch.randn(len(labels), recovery.latent_dim, generator=generator).to(device).requires_grad_()
        groups = [
            {"params": list(network.parameters()), "lr": config.adaptation_lr},
            {"params": [latent], "lr": config.latent_lr},
        ]
        optimizer = torch.optim.Adam(groups, betas=BETAS)

        def loss_of(images: Tensor) -> Tensor:
            augmented = random_crop_flip(images, generator, padding=recovery.shift, flip=recovery.flip)
            return inversion_loss(teacher, augmented, labels, recovery.objective, further)[0]

        for _ in range(config.adaptation_steps):
            loss = loss_of(network(latent))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        images = network(latent)
        entry = teacher.entry
        task = Task(images.detach().float(), labels, teacher.class_names, entry.id, entry.class_keys)
        return task, loss_of(images)

    def state_dict(self) -> Tree:
        """The meta-generator and its optimiser."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Tree) -> None:
        """Take over what `state_dict` gave."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


class SequentialGenerator(MetaGenerator):
    """A generator that is handed from teacher to teacher: each goes on from the weights that the last one left.

    The baseline of FREE's ablation (Table 5): as many steps a teacher as the meta-generator takes, no meta-learning.
    """

    def recover(
        self,
        teachers: Sequence[Teacher],
        generator: torch.Generator,
        further: Sequence[FurtherTerm | None] | None = None,
        processes: Processes = ALONE,
    ) -> tuple[list[Task], dict[str, float]]:
        """As in the base class, one teacher after the other; one process does it for all."""
        terms = further or [None] * len(teachers)
        streams = spawn(generator, len(teachers))

        def in_turn() -> tuple[list[Task], list[Tensor], Tree]:
            tasks, losses = [], []
            for teacher, stream, term in zip(teachers, streams, terms, strict=True):
                task, loss = self._adapt(self.network, teacher, stream, term)
                tasks.append(task)
                losses.append(loss.detach())
            return tasks, losses, self.network.state_dict()

        tasks, losses, weights = processes.once(in_turn)
        self.network.load_state_dict(weights)
        return tasks, {"generator_loss": torch.stack(losses).mean().item()}
