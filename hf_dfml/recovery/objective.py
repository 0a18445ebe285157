"""The inversion objective: what makes an image look, to a teacher, like one of its training images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_dfml.pool.teacher import Teacher


@dataclass(frozen=True)
class InversionWeights:
    """Weights of the terms of the inversion loss (SYSTEMS sections 3.1, 4.2, 5.1, 6.2)."""

    ce: float = field(default=1.0, metadata={"help": "Cross-entropy of the teacher on the wanted labels."})
    bn: float = field(
        default=1.0, metadata={"help": "Distance of batch statistics to the stored batch-norm statistics."}
    )
    tv: float = field(default=0.0, metadata={"help": "Total variation in four directions."})
    l2: float = field(default=0.0, metadata={"help": "Norm of the pixels."})


class BatchNormDistance:
    """Collects, over one forward pass, how far each batch norm's input is from its running statistics."""

    def __init__(self) -> None:
        self.terms: list[Tensor] = []

    def total(self, like: Tensor) -> Tensor:
        """R_BN = sum over layers of the norms of the mean's and the variance's difference; zero without batch norm."""
        return torch.stack(self.terms).sum() if self.terms else like.new_zeros(())

    def observe(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Forward pre-hook of a batch-norm layer."""
        axes = [axis for axis in range(inputs[0].dim()) if axis != 1]
        variance, mean = torch.var_mean(inputs[0], dim=axes, correction=0)
        stored_mean: Tensor = module.running_mean  # type: ignore[assignment]
        stored_variance: Tensor = module.running_var  # type: ignore[assignment]
        self.terms.append(
            torch.linalg.vector_norm(variance - stored_variance) + torch.linalg.vector_norm(mean - stored_mean)
        )


@contextmanager
def watch_batch_norm(teacher: nn.Module) -> Iterator[BatchNormDistance]:
    """Measure R_BN (DeepInversion, Yin et al., CVPR 2020, Eq. 4) during the forward passes inside the block.

    The teacher's weights and statistics are only read; its hooks are gone afterwards.
    """
    distance = BatchNormDistance()
    handles = [
        module.register_forward_pre_hook(distance.observe)
        for module in teacher.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    try:
        yield distance
    finally:
        for handle in handles:
            handle.remove()


def total_variation(images: Tensor) -> Tensor:
    """R_TV of PURER: Frobenius norms, over the whole batch, of the differences along rows, columns and diagonals."""
    differences = (
        images[:, :, 1:] - images[:, :, :-1],
        images[..., 1:] - images[..., :-1],
        images[:, :, 1:, 1:] - images[:, :, :-1, :-1],
        images[:, :, 1:, :-1] - images[:, :, :-1, 1:],
    )
    return torch.stack([torch.linalg.vector_norm(difference) for difference in differences]).sum()


def inversion_loss(
    teacher: Teacher, images: Tensor, labels: Tensor, weights: InversionWeights
) -> tuple[Tensor, Tensor]:
    """The loss whose gradient moves `images` towards what `teacher` was trained on.

    Args:
        teacher: a frozen pool member.
        images: `(B, 3, H, W)` in [0, 1], already augmented.
        labels: `(B,)` the wanted class of each image.
        weights: weights of the terms.

    Returns:
        the scalar loss, and the teacher's logits `(B, C)` for further terms.
    """
    with watch_batch_norm(teacher) as distance:
        logits = teacher(images)
    loss = weights.ce * F.cross_entropy(logits, labels)
    if weights.bn:
        loss = loss + weights.bn * distance.total(logits)
    if weights.tv:
        loss = loss + weights.tv * total_variation(images)
    if weights.l2:
        loss = loss + weights.l2 * torch.linalg.vector_norm(images)
    return loss, logits
