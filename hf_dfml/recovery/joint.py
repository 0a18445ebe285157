"""Joint inversion: images of a class that all members which know the class agree on.

Inversion of one classifier (DeepInversion, Yin et al., CVPR 2020, arXiv 1912.08795) finds images of that classifier's
own taste. Classes of different members that have the same name are one class here: its images are moved by one of
these members after the other, each with its own cross-entropy and batch-norm statistics, together with the images of
that member's other classes. An image of "chair" so becomes a chair to every member that knows chairs. A class that
one member alone knows (as all classes without names are) is moved by that member, as often as any other class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.teacher import Teacher
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.recovery.augment import random_roll
from hf_dfml.recovery.objective import InversionWeights, inversion_loss
from hf_dfml.recovery.prior import ImagePrior

BETAS = (0.9, 0.99)
"""Of the images' Adam."""
EPSILON = 1e-8
LEAD = 5.0
"""Updates by which classes may be ahead of each other without weight in the choice of the next member."""


@dataclass(frozen=True)
class JointConfig:
    """How the images of a round are recovered; the defaults fit 32-pixel networks.

    Attributes:
        images: of each class in a round.
        updates: of each image.
        lr: first learning rate of the images' Adam, in standard deviations of the pixels; it falls on a cosine to 0.
        weights: of the terms of the inversion objective.
        shift: pixels of random shift before a member sees the images.
        flip: whether batches are mirrored at random.
        coarse: first share of the updates, in which images have half of their resolution.
    """

    images: int = 10
    updates: int = 200
    lr: float = 0.1
    weights: InversionWeights = InversionWeights(tv_weight=0.1)
    shift: int = 2
    flip: bool = True
    coarse: float = 0.0

    def __post_init__(self) -> None:
        if self.images < 1 or self.updates < 0 or not 0 <= self.coarse <= 1:
            raise ValueError(
                f"Joint inversion of {self.images} images with {self.updates} updates, {self.coarse} of them coarse: "
                "expected at least 1 image, 0 or more updates, and a share between 0 and 1."
            )


def joint_classes(pool: TeacherPool, shown: Sequence[Sequence[int]] | None = None) -> dict[str, list[int]]:
    """Class names in the order of their first member, and the members that know each.

    Args:
        pool: the members.
        shown: of each member, which of its outputs are looked at; by default all.
    """
    known: dict[str, list[int]] = {}
    for index, entry in enumerate(pool):
        for name in _names(entry, shown[index] if shown else None):
            known.setdefault(name, []).append(index)
    return known


def _names(entry: PoolEntry, shown: Sequence[int] | None) -> Sequence[str]:
    return entry.class_keys if shown is None else [entry.class_keys[output] for output in shown]


def recover_jointly(
    pool: TeacherPool,
    config: JointConfig,
    size: int,
    generator: torch.Generator,
    *,
    shown: Sequence[Sequence[int]] | None = None,
    at_once: Sequence[int] | None = None,
    prior: ImagePrior | None = None,
) -> Tensor:
    """One round: some images of every class of a pool.

    A step takes the class with the fewest updates, one of the members that know it, and all images of each of this
    member's classes; those that have all their updates are shown to the member and stay as they are. So every image
    gets the same number of updates, however many members know its class.

    Args:
        pool: members whose weights are known.
        config: how many images, and how they are moved.
        size: height and width of the images; each member resizes to its own.
        generator: the source of all randomness, on the CPU.
        shown: of each member, which of its outputs have images; by default all.
        at_once: images that each member sees at once at most (those of one class at least): of more classes those
            with the fewest updates are taken. By default all.
        prior: for members that have no batch norm.

    Returns:
        `(classes, images, 3, size, size)` in [0, 1], classes in the order of `joint_classes`.
    """
    known = joint_classes(pool, shown)
    position = {name: index for index, name in enumerate(known)}
    outputs = [torch.tensor(list(of)) for of in shown or (range(entry.num_classes or 0) for entry in pool)]
    members = [
        torch.tensor([position[entry.class_keys[output]] for output in of.tolist()])
        for entry, of in zip(pool, outputs, strict=True)
    ]
    knowing = list(known.values())
    mean, std = (
        torch.tensor([getattr(entry, which) for entry in pool]).mean(0).view(3, 1, 1).to(pool.device)
        for which in ("mean", "std")
    )
    start = torch.randn(len(known), config.images, 3, size, size, generator=generator).to(pool.device)
    if config.coarse:
        start = 2 * _halved(start)  # The mean of four has half the deviation of one.
    images = (mean + std * start).clamp_(0, 1)
    moments = torch.zeros(2, *images.shape, device=pool.device)
    done = torch.zeros(len(known), dtype=torch.long)
    # Members that the pool's cache drops take theirs with them.
    twins: WeakKeyDictionary[Teacher, Teacher] = WeakKeyDictionary()
    while int(done.min()) < config.updates:
        member = _next_member(done.clamp_max(config.updates), members, knowing, generator)
        teacher, classes, labels = pool.load(member), members[member], outputs[member]
        most = max(1, at_once[member] // config.images) if at_once else len(classes)
        if most < len(classes):
            behind = done[classes].argsort(stable=True)[:most]
            classes, labels = classes[behind], labels[behind]
        labels = labels.to(pool.device).repeat_interleave(config.images)
        given = images[classes.to(pool.device)].flatten(0, 1).requires_grad_()
        seen = random_roll(given, generator, pixels=config.shift, flip=config.flip)
        if teacher not in twins:
            twins[teacher] = teacher.folded(watched=bool(config.weights.bn_weight))
        term = prior.term(teacher) if prior else None
        loss, _ = inversion_loss(twins[teacher], seen, labels, config.weights, term)
        gradient = torch.autograd.grad(loss, given)[0].view(len(classes), *images.shape[1:])
        # The mean over the batch made each image's share small; Adam does not mind the scale.
        for row, index in enumerate(classes.tolist()):
            if done[index] < config.updates:
                _adam(images[index], moments[:, index], gradient[row], int(done[index]), std, config)
                done[index] += 1
    return images


def _next_member(done: Tensor, members: list[Tensor], knowing: list[list[int]], generator: torch.Generator) -> int:
    """A member that knows the class with the fewest updates, and whose other classes have few as well."""
    behind = int((done + torch.rand(len(done), generator=generator)).argmin())
    candidates = knowing[behind]
    ahead = torch.stack([done[members[member]].float().mean() for member in candidates])
    return candidates[int((ahead + LEAD * torch.rand(len(candidates), generator=generator)).argmin())]


def _adam(images: Tensor, moments: Tensor, gradient: Tensor, step: int, std: Tensor, config: JointConfig) -> None:
    """Update number `step` (from 0) of images `(n, 3, H, W)`, in place; its learning rate is that of a cosine."""
    if step < config.coarse * config.updates:
        gradient = _halved(gradient)
    moments[0].lerp_(gradient, 1 - BETAS[0])
    moments[1].lerp_(gradient.square(), 1 - BETAS[1])
    first, second = (moment / (1 - beta ** (step + 1)) for moment, beta in zip(moments, BETAS, strict=True))
    rate = config.lr * (1 + torch.cos(torch.tensor(torch.pi * step / config.updates))) / 2
    images.sub_(rate * std * first / (second.sqrt() + EPSILON)).clamp_(0, 1)


def _halved(images: Tensor) -> Tensor:
    """Images `(..., 3, H, W)` with each block of 2 x 2 pixels at its mean."""
    height, width = images.shape[-2:]
    small = F.avg_pool2d(images.flatten(0, -4), 2, ceil_mode=True, count_include_pad=False)
    return F.interpolate(small, scale_factor=2)[..., :height, :width].view_as(images)
