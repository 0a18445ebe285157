"""The inversion objective: what makes an image look, to a teacher, like one of its training images.

A term is a function in `TERMS` and a weight of the same name in `InversionWeights`: command lines, presets and every
recovery know it from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from hf_dfml.networks.folding import FoldedBatchNorm
from hf_dfml.pool.black_box.pool import BlackBox
from hf_dfml.pool.teacher import Teacher
from hf_dfml.recovery.patches import patch_in_images, patch_joints
from hf_dfml.settings import Settings, option


class InversionWeights(Settings):
    """Weights of the terms of the inversion loss of PURER, BiDf-MKD, FREE (Eq. 1) and TGR."""

    ce_weight: float = option(1.0, "Weight of the teacher's cross-entropy on the wanted labels.")
    bn_weight: float = option(1.0, "Weight of the distance to the stored batch-norm statistics.")
    tv_weight: float = option(0.0, "Weight of the total variation of pixels in [0, 1].")
    l2_weight: float = option(0.0, "Weight of the norm of pixels in [0, 1].")
    patch_weight: float = option(
        0.0,
        "Weight of the steps of pixels across the joints of patches (GradViT), for members whose first layer cuts "
        "images into patches (transformers, mixers, ConvNeXts), as images break there; nothing changes for others.",
    )


class _Moments(torch.autograd.Function):
    """Variance and mean of each channel, with their derivative in one pass over the images.

    PyTorch's own takes six; on a CPU that is a third of a step of pixels (conv4). The statistics are computed as
    its batch norm does it, in fewer passes than by `mean` and `var`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, C, ...)` -> two times `(C,)`."""
        mean, variance = torch.ops.aten.batch_norm_update_stats(x, None, None, 0.0)
        ctx.save_for_backward(x, mean)
        return variance, mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The derivative of the mean is 1/n, that of the variance 2 (x - mean) / n."""
        x, mean = ctx.saved_tensors
        by_variance, by_mean = (gradient * x.shape[1] / x.numel() for gradient in gradients)
        of_x, constant = (
            values.view(-1, *(1,) * (x.dim() - 2)) for values in (2 * by_variance, by_mean - 2 * by_variance * mean)
        )
        return torch.addcmul(constant, x, of_x)


class BatchNormDistance:
    """Collects, over one forward pass, how far each batch norm's input is from its running statistics."""

    def __init__(self) -> None:
        self.terms: list[Tensor] = []

    def total(self, like: Tensor) -> Tensor:
        """R_BN = sum over layers of the norms of the mean's and the variance's difference; zero without batch norm."""
        return torch.stack(self.terms).sum() if self.terms else like.new_zeros(())

    def observe(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Forward pre-hook of a batch-norm layer, or of what stays of one that was folded."""
        variance, mean = _Moments.apply(inputs[0])
        if isinstance(module, FoldedBatchNorm):
            variance, mean = module.before(variance, mean)
        stored_mean: Tensor = module.running_mean  # type: ignore[assignment]
        stored_variance: Tensor = module.running_var  # type: ignore[assignment]
        self.terms.append(
            torch.linalg.vector_norm(variance - stored_variance) + torch.linalg.vector_norm(mean - stored_mean)
        )


@contextmanager
def watch_batch_norm(teacher: nn.Module) -> Iterator[BatchNormDistance]:
    """Measure R_BN (DeepInversion, Yin et al., CVPR 2020, Eq. 4) during the forward passes inside the block.

    The teacher's weights and statistics are only read; its hooks are gone afterwards. A teacher that was folded
    with `watched` has the same distance.
    """
    distance = BatchNormDistance()
    handles = [
        layer.register_forward_pre_hook(distance.observe)
        for layer in teacher.modules()
        if isinstance(layer, FoldedBatchNorm) or (isinstance(layer, _BatchNorm) and layer.running_mean is not None)
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


class Seen(NamedTuple):
    """What a term is computed from.

    Attributes:
        images: `(B, 3, H, W)` in [0, 1], augmented.
        labels: `(B,)` the wanted classes.
        logits: `(B, C)` the teacher's.
        distance: of the batch's statistics to the teacher's; empty where `bn_weight` is 0.
        patch: height and width of the teacher's patches, in pixels of `images`; None where it cuts none, or
            `patch_weight` is 0.
    """

    images: Tensor
    labels: Tensor
    logits: Tensor
    distance: BatchNormDistance
    patch: tuple[float, float] | None


TERMS: dict[str, Callable[[Seen], Tensor]] = {
    "ce_weight": lambda seen: F.cross_entropy(seen.logits, seen.labels, reduction="none"),
    "bn_weight": lambda seen: seen.distance.total(seen.logits),
    "tv_weight": lambda seen: total_variation(seen.images),
    "l2_weight": lambda seen: torch.linalg.vector_norm(seen.images),
    "patch_weight": lambda seen: patch_joints(seen.images, seen.patch) if seen.patch else seen.logits.new_zeros(()),
}
"""The terms by the names of their weights: each gives one number, or one for each image."""

OF_A_BATCH = tuple(name for name in TERMS if name != "ce_weight")
"""Weights of the terms of a whole batch: they cannot be estimated image by image, as black boxes need it."""

FurtherTerm = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A term that a method adds to the inversion loss: augmented images, labels and the teacher's logits -> a scalar, or
one number an image."""


BoundaryLoss = Literal["kl", "legacy_linear"]
"""See `boundary_term`."""


def boundary_term(teacher_logits: Tensor, student_logits: Tensor, kind: BoundaryLoss = "kl") -> Tensor:
    r"""Minus the divergence of the student from the teacher, over the images on which both still agree.

    :math:`-\frac1B \sum_j \eta_j KL(M(x_j) \Vert F(x_j))` with :math:`\eta_j = 1[\arg\max M(x_j) = \arg\max F(x_j)]`
    (FREE, Eq. 1; the query sets of BiDf-MKD): images move towards the student's decision boundary, not past it.

    Args:
        teacher_logits: `(B, C)`.
        student_logits: `(B, C)` of the same classes.
        kind: `kl` as above. `legacy_linear` is what the released code of BiDf-MKD and FREE has in its place, for
            parity: the student is the target, and probabilities are passed where log-probabilities are expected, so
            that :math:`\sum_c p_F(c) (\log p_F(c) - p_M(c))` stands for the divergence. Of the teacher it is linear,
            and makes it less sure of what both agree on.

    Returns:
        A scalar. Of `kl` it is zero where teacher and student are equal or disagree on every image, else negative.
    """
    return boundary_terms(teacher_logits, student_logits, kind).mean()


def boundary_terms(teacher_logits: Tensor, student_logits: Tensor, kind: BoundaryLoss = "kl") -> Tensor:
    """What each image adds to `boundary_term`: two times `(..., C)` -> `(...)`."""
    agree = teacher_logits.argmax(-1) == student_logits.argmax(-1)
    teacher, student = teacher_logits.log_softmax(-1), student_logits.log_softmax(-1)
    if kind == "legacy_linear":
        divergence = (student.exp() * (student - teacher.exp())).sum(-1)
    else:
        divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return -(agree * divergence)


def inversion_loss(
    teacher: Teacher | BlackBox,
    images: Tensor,
    labels: Tensor,
    weights: InversionWeights,
    further: FurtherTerm | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss whose gradient moves `images` towards what `teacher` was trained on.

    Args:
        teacher: a frozen pool member.
        images: `(B, 3, H, W)` in [0, 1], already augmented.
        labels: `(B,)` the wanted class of each image.
        weights: weights of the terms.
        further: a term of the method's own.

    Returns:
        the scalar loss, and the teacher's logits `(B, C)` for further terms.
    """
    losses, logits = inversion_losses(teacher, images, labels, weights, further)
    return losses.mean(), logits


def inversion_losses(
    teacher: Teacher | BlackBox,
    images: Tensor,
    labels: Tensor,
    weights: InversionWeights,
    further: FurtherTerm | None = None,
) -> tuple[Tensor, Tensor]:
    """`inversion_loss` image by image, `(B,)`, whose mean it is, and the teacher's logits.

    Cross-entropy (and perhaps `further`) are an image's own; the other terms are the batch's and added to each image.
    """
    if teacher.answers_only and (weights.bn_weight or weights.patch_weight):
        raise ValueError(
            f"{teacher.entry.id} is a black box and shows no batch-norm statistics and no patches: set bn_weight and "
            "patch_weight to 0."
        )
    distance = BatchNormDistance()
    if weights.bn_weight:
        with watch_batch_norm(teacher) as distance:  # type: ignore[arg-type]  # It has batch norm to watch.
            logits = teacher(images)
    else:
        logits = teacher(images)
    patch = patch_in_images(teacher, images) if weights.patch_weight else None  # type: ignore[arg-type]  # No black box.
    seen = Seen(images, labels, logits, distance, patch)
    losses = logits.new_zeros(len(labels))
    for name, weight in vars(weights).items():
        if weight:
            losses = losses + weight * TERMS[name](seen)
    if further:
        losses = losses + further(images, labels, logits)
    return losses, logits
