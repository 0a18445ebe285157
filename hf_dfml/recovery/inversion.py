"""Recovery of one task from one teacher: by the weights of a generator, or by the pixels themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from hf_dfml.networks.generator import Generator
from hf_dfml.pool.teacher import Teacher
from hf_dfml.recovery.augment import random_crop_flip, random_roll
from hf_dfml.recovery.objective import InversionWeights, inversion_loss
from hf_dfml.recovery.task import Task


@dataclass(frozen=True)
class RecoveryConfig:
    """How one task is recovered from one teacher; the defaults are TGR's (SYSTEMS 1.4 and 6.2)."""

    recovery: Literal["generator", "pixels"] = field(
        default="generator",
        metadata={
            "help": "What is optimised: a generator and its inputs (CMI; the papers), or the pixels (DeepInversion; "
            "much cheaper on a CPU, with a rate of about 0.1)."
        },
    )
    recovery_steps: int = field(default=200, metadata={"help": "Adam steps for one task."})
    recovery_lr: float = field(default=1e-3, metadata={"help": "Rate of Adam in the recovery."})
    images_per_class: int = field(default=30, metadata={"help": "Images recovered for each class of a teacher."})
    latent_dim: int = field(default=256, metadata={"help": "Length of the generator's input."})
    generator_width: int = field(default=64, metadata={"help": "Channels of the generator's last hidden layer."})
    ce_weight: float = field(default=1.0, metadata={"help": "Weight of the teacher's cross-entropy."})
    bn_weight: float = field(default=1.0, metadata={"help": "Weight of the batch-norm statistics."})
    tv_weight: float = field(default=0.0, metadata={"help": "Weight of the total variation."})
    l2_weight: float = field(default=0.0, metadata={"help": "Weight of the norm of the pixels."})
    shift: int = field(
        default=4, metadata={"help": "Pixels of random shift before a teacher or student sees an image."}
    )
    flip: bool = field(default=True, metadata={"help": "Mirror images at random (off where mirrored classes differ)."})

    @property
    def weights(self) -> InversionWeights:
        """The weights of the inversion objective."""
        return InversionWeights(self.ce_weight, self.bn_weight, self.tv_weight, self.l2_weight)


def recover(teacher: Teacher, config: RecoveryConfig, size: int, generator: torch.Generator) -> Task:
    """Recover `images_per_class` images for each class of one teacher.

    Args:
        teacher: a frozen pool member.
        config: what is optimised, for how long, under which objective.
        size: height and width of the images; each teacher resizes to its own.
        generator: the source of all randomness, on the CPU.

    Returns:
        The images of the cheapest step, class after class.
    """
    make = _generator_images if config.recovery == "generator" else _pixel_images
    device = next(teacher.parameters()).device
    labels = torch.arange(teacher.num_classes, device=device).repeat_interleave(config.images_per_class)
    images = make(teacher, labels, config, size, generator)
    return Task(images.clamp(0, 1), labels, teacher.class_names, teacher.entry.id)


def _generator_images(
    teacher: Teacher, labels: Tensor, config: RecoveryConfig, size: int, generator: torch.Generator
) -> Tensor:
    """CMI's way: the weights of a fresh generator and its inputs are optimised together."""
    network = Generator(config.latent_dim, config.generator_width, size).to(labels.device)
    network.reset_parameters(generator)
    latent = torch.randn(len(labels), config.latent_dim, generator=generator).to(labels.device).requires_grad_()
    optimizer = torch.optim.Adam([*network.parameters(), latent], config.recovery_lr, (0.5, 0.999))

    def augment(images: Tensor) -> Tensor:
        return random_crop_flip(images, generator, padding=config.shift, flip=config.flip)

    return _best_iterate(lambda: network(latent), augment, teacher, labels, config, optimizer)


def _pixel_images(
    teacher: Teacher, labels: Tensor, config: RecoveryConfig, size: int, generator: torch.Generator
) -> Tensor:
    """DeepInversion's way (Yin et al., CVPR 2020): normalised pixels, projected into the valid range at each step."""
    mean = torch.tensor(teacher.entry.mean, device=labels.device).view(1, 3, 1, 1)
    std = torch.tensor(teacher.entry.std, device=labels.device).view(1, 3, 1, 1)
    lowest, highest = -mean / std, (1 - mean) / std
    pixels = torch.randn(len(labels), 3, size, size, generator=generator).to(labels.device)
    pixels = pixels.clamp(lowest, highest).requires_grad_()
    optimizer = torch.optim.Adam([pixels], config.recovery_lr)
    # A projection after each step, not a clamp in the graph: a clamped pixel would get no gradient and stay stuck.
    optimizer.register_step_post_hook(lambda *_: pixels.data.clamp_(lowest, highest))  # type: ignore[arg-type]

    def augment(images: Tensor) -> Tensor:
        return random_roll(images, generator, pixels=config.shift, flip=config.flip)

    return _best_iterate(lambda: mean + std * pixels, augment, teacher, labels, config, optimizer)


def _best_iterate(
    produce: Callable[[], Tensor],
    augment: Callable[[Tensor], Tensor],
    teacher: Teacher,
    labels: Tensor,
    config: RecoveryConfig,
    optimizer: torch.optim.Optimizer,
) -> Tensor:
    """Minimise the inversion loss of `augment(produce())`; the images of the cheapest step, without a graph."""
    best = produce().detach()
    lowest = torch.full((), float("inf"), device=labels.device)
    for _ in range(config.recovery_steps):
        images = produce()
        loss, _ = inversion_loss(teacher, augment(images), labels, config.weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # torch.where instead of an if: reading the loss would make the accelerator wait at every step. It comes
        # before the step, which may change `images` in place.
        with torch.no_grad():
            better = loss < lowest
            best = torch.where(better, images, best)
            lowest = torch.where(better, loss, lowest)
        optimizer.step()
    return best
