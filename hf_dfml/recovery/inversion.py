"""Recovery of one task from one teacher: by the weights of a generator, or by the pixels themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from hf_dfml.networks.generator import Generator, compile_generator
from hf_dfml.pool.black_box.pool import BlackBox
from hf_dfml.pool.teacher import Teacher
from hf_dfml.recovery.augment import random_crop_flip, random_roll
from hf_dfml.recovery.gradient_source import (
    ESTIMATORS,
    Estimator,
    GradientSource,
    ZeroOrderGradient,
    autograd_gradient,
)
from hf_dfml.recovery.objective import FurtherTerm, InversionWeights, inversion_losses
from hf_dfml.recovery.pixels import Pixels
from hf_dfml.recovery.task import Task
from hf_dfml.settings import Settings, option, part


class InversionConfig(Settings):
    """What images are recovered from a teacher, under which objective, and how it sees them.

    Any recovery by a generator has these options; the defaults are those of TGR's released scripts.
    """

    images_per_class: int = option(30, "Images recovered for each class of a teacher.", least=1)
    latent_dim: int = option(256, "Length of the generator's input.", least=1)
    generator_width: int = option(64, "Channels of the generator's last hidden layer.", least=1)
    compile_generator: bool = option(
        False, "Compile the generator (torch.compile): up to a minute once, faster passes after it."
    )
    objective: InversionWeights = part(InversionWeights)
    shift: int = option(4, "Pixels of random shift before a teacher or student sees an image.", least=0)
    flip: bool = option(True, "Mirror images at random (off where mirrored classes differ).")


class RecoveryConfig(InversionConfig):
    """How one task is recovered from one teacher, from scratch; the defaults are those of TGR's released scripts."""

    recovery: Literal["generator", "pixels"] = option(
        "generator",
        "What is optimised: a generator and its inputs (CMI; the papers), or the pixels (DeepInversion; "
        "much cheaper on a CPU, with a learning rate of about 0.1).",
    )
    recovery_steps: int = option(200, "Adam steps for one task.", least=1)
    recovery_lr: float = option(1e-3, "Learning rate of Adam in the recovery.", above=0)


class EstimationConfig(Settings):
    """Where gradients of a recovery come from: back-propagation, or a teacher's answers (as of black boxes)."""

    gradient: Literal["autograd", "zero_order"] = option(
        "autograd", "Back-propagate through teachers, or estimate by queries alone (always so of black boxes)."
    )
    zero_order_directions: int = option(100, "q: random directions of an estimate.", least=1)
    zero_order_mu: float = option(
        0.00125, "Length of its differences, in pixels of [0, 1]; longer by itself for PNG and bare labels.", above=0
    )
    zero_order_estimator: Estimator = option(
        "sphere",
        "Estimate: `sphere` as in the paper, `central` differences, `orthogonal` directions, "
        "`low_frequency` ones, or with a `memory` of the last step (needs --shift 0 --flip false).",
    )
    zero_order_at_once: int = option(20, "Directions whose images are queried together.", least=1)

    def check_objective(self, recovery: InversionConfig) -> None:
        """Make sure that the gradient of a recovery's objective can be estimated, if it is to be.

        Raises:
            ValueError: if the objective has terms that cannot be estimated image by image, or images move between
                the steps of an estimator that remembers.
        """
        weights = vars(recovery.objective).items()
        found = [f"{name} {weight:g}" for name, weight in weights if weight and name != "ce_weight"]
        if self.gradient == "zero_order" and found:
            raise ValueError(
                "A zero-order gradient (black boxes have no other) is estimated image by image: set terms of the "
                f"whole batch to 0, found {', '.join(found)}."
            )
        moves = recovery.shift > 0 or recovery.flip
        if self.gradient == "zero_order" and self.zero_order_estimator == "memory" and moves:
            raise ValueError(
                "--zero_order_estimator memory goes on from the last step's estimate, which is of the same pixels: "
                "add --shift 0 --flip false, or choose another estimator."
            )

    def source(self) -> GradientSource:
        """Where gradients with respect to images come from."""
        if self.gradient == "autograd":
            return autograd_gradient
        return ZeroOrderGradient(
            self.zero_order_directions,
            self.zero_order_mu,
            self.zero_order_at_once,
            **ESTIMATORS[self.zero_order_estimator],
        )


def recover(
    teacher: Teacher | BlackBox,
    config: RecoveryConfig,
    size: int,
    generator: torch.Generator,
    further: FurtherTerm | None = None,
    *,
    renewed: Callable[[Tensor], FurtherTerm] | None = None,
    outputs: Sequence[int] | None = None,
    source: GradientSource = autograd_gradient,
) -> Task:
    """Recover `images_per_class` images for each class of one teacher.

    Args:
        teacher: a frozen pool member; a black box needs a `source` that asks for losses only.
        config: what is optimised, for how long, under which objective.
        size: height and width of the images; each teacher resizes to its own.
        generator: the source of all randomness, on the CPU.
        further: a term of the method's own in the objective, such as FREE's boundary term.
        renewed: instead of `further`: such a term made at each step from the images that the teacher is about to see
            `(B, 3, H, W)`, whatever versions of them a gradient source then asks for.
        outputs: which of the teacher's classes; all by default.
        source: where the gradient with respect to the images comes from.

    Returns:
        The images of the cheapest step, class after class.
    """
    make = _generator_images if config.recovery == "generator" else _pixel_images
    device = teacher.device
    if isinstance(source, ZeroOrderGradient):
        source.forget()
    # Estimates are those of black boxes to the last bit, which answer as they are.
    differentiable = source is autograd_gradient
    seen = teacher.folded(watched=bool(config.objective.bn_weight)) if differentiable else teacher  # type: ignore[union-attr]
    chosen = range(teacher.num_classes) if outputs is None else outputs
    labels = torch.tensor(list(chosen), device=device).repeat_interleave(config.images_per_class)

    def gradient_at(images: Tensor) -> tuple[Tensor, Tensor]:
        term = renewed(images) if renewed else further
        return source(partial(_losses, seen, labels, config, term), images, generator)

    images = make(teacher, labels, config, size, generator, gradient_at)
    position = torch.arange(len(chosen), device=device).repeat_interleave(config.images_per_class)
    names, keys = (tuple(every[k] for k in chosen) for every in (teacher.class_names, teacher.entry.class_keys))
    return Task(images.float().clamp(0, 1), position, names, teacher.entry.id, keys)


def _losses(
    teacher: Teacher | BlackBox, labels: Tensor, config: InversionConfig, further: FurtherTerm | None, images: Tensor
) -> Tensor:
    """The inversion loss of each image: `(..., B, 3, H, W)` in [0, 1], augmented -> `(..., B)`."""
    flat = images.flatten(0, -4)
    losses, _ = inversion_losses(teacher, flat, labels.repeat(len(flat) // len(labels)), config.objective, further)
    return losses.unflatten(0, images.shape[:-3])


LossAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Augmented images -> mean loss and its gradient."""


def _generator_images(
    teacher: Teacher | BlackBox,
    labels: Tensor,
    config: RecoveryConfig,
    size: int,
    generator: torch.Generator,
    gradient_at: LossAndGradient,
) -> Tensor:
    """CMI's way: the weights of a fresh generator and its inputs are optimised together."""
    network = Generator(config.latent_dim, config.generator_width, size).to(labels.device)
    network.reset_parameters(generator)
    if config.compile_generator:
        compile_generator(network)
    latent = torch.randn(len(labels), config.latent_dim, generator=generator).to(labels.device).requires_grad_()
    optimizer = torch.optim.Adam([*network.parameters(), latent], config.recovery_lr, (0.5, 0.999))
    augment = partial(random_crop_flip, generator=generator, padding=config.shift, flip=config.flip)
    return _best_iterate(lambda: network(latent), augment, config.recovery_steps, optimizer, gradient_at)


def _pixel_images(
    teacher: Teacher | BlackBox,
    labels: Tensor,
    config: RecoveryConfig,
    size: int,
    generator: torch.Generator,
    gradient_at: LossAndGradient,
) -> Tensor:
    """DeepInversion's way (Yin et al., CVPR 2020): normalised pixels, projected into the valid range at each step."""
    start = torch.randn(len(labels), 3, size, size, generator=generator).to(labels.device)
    pixels = Pixels(start, teacher.entry.mean, teacher.entry.std)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam([pixels.values], config.recovery_lr)
    optimizer.register_step_post_hook(lambda *_: pixels.project())  # type: ignore[arg-type]
    augment = partial(random_roll, generator=generator, pixels=config.shift, flip=config.flip)
    return _best_iterate(lambda: pixels.images, augment, config.recovery_steps, optimizer, gradient_at)


def _best_iterate(
    produce: Callable[[], Tensor],
    augment: Callable[[Tensor], Tensor],
    steps: int,
    optimizer: torch.optim.Optimizer,
    gradient_at: LossAndGradient,
) -> Tensor:
    """Minimise the mean loss of `augment(produce())`; the images of the cheapest step, without a graph."""
    best = produce().detach()
    lowest = torch.full((), float("inf"), device=best.device)
    for _ in range(steps):
        images = produce()
        seen = augment(images)
        loss, gradient = gradient_at(seen.detach())
        optimizer.zero_grad(set_to_none=True)
        # The chain rule from the images that the teacher saw to whatever made them.
        seen.backward(gradient)
        # torch.where instead of an if: reading the loss would make the accelerator wait at every step. It comes
        # before the step, which may change `images` in place.
        with torch.no_grad():
            better = loss < lowest
            best = torch.where(better, images, best)
            lowest = torch.where(better, loss, lowest)
        optimizer.step()
    return best
