"""Knowledge distillation: what a student is asked to agree on with its teacher."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

KDLoss = Literal["kl", "legacy_linear"]


def distillation_loss(
    teacher_logits: Tensor, student_logits: Tensor, *, kind: KDLoss = "kl", temperature: float = 1.0
) -> Tensor:
    """KL(teacher || student), averaged over the batch (Hinton et al., 2015).

    Args:
        teacher_logits: `(B, C)`.
        student_logits: `(B, C)`.
        kind: `kl` is the papers' divergence. `legacy_linear` is what the released code of BiDf-MKD, FREE and TGR
            computes by passing probabilities where log-probabilities are expected: up to a constant, minus the mean
            product of the two probabilities over all `B * C` entries. It is kept for parity only.
        temperature: softens both distributions; the loss is scaled by its square.

    Returns:
        A scalar: `kl` is zero exactly where both distributions agree and positive elsewhere.
    """
    teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    student = F.log_softmax(student_logits / temperature, dim=-1)
    if kind == "legacy_linear":
        return (teacher.exp() * (teacher - student.exp())).mean()
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def cosine_distance(predicted: Tensor, targets: Tensor) -> Tensor:
    """Mean of one minus the cosine between the rows of two `(B, D)`: zero where they point the same way."""
    return 1 - F.cosine_similarity(predicted, targets, dim=-1).mean()


def similarity_loss(features: Tensor, targets: Tensor) -> Tensor:
    """Mean squared difference between the cosines of the student's features and the inner products of the targets.

    Similarity-preserving distillation (Tung and Mori, ICCV 2019, arXiv 1907.09682) on cosines, which are what a
    nearest-prototype classifier compares. Neither rotating nor scaling the features changes it, so that the two spaces
    may be of different dimension.

    The inner products of targets in fewer dimensions are compared as they are: they are the closest to the cosines
    of the full features, while targets scaled to length 1 would all be too similar. (CIFAR-FS, 24 members of 128
    features in 512 dimensions: root mean square error 0.0014, scaled 0.036.) An image has the cosine 1 with itself.

    Args:
        features: `(B, D)` of the student.
        targets: `(B, D')`, whose inner products are the teachers' cosines.
    """
    ours = F.normalize(features, dim=-1)
    difference = ours @ ours.T - targets @ targets.T
    return difference.fill_diagonal_(0).square().mean()


def neighbour_loss(
    features: Tensor, targets: Tensor, temperature: float = 0.05, target_temperature: float = 0.05
) -> Tensor:
    """KL divergence from each image's neighbours in the targets to its neighbours in the student's features.

    Similarity distillation (Fang et al., SEED, ICLR 2021, arXiv 2101.04731) within the batch: the cosines of an image
    with all others, through a softmax. Where `similarity_loss` weighs all pairs alike, this one looks at the closest.

    Args:
        features: `(B, D)` of the student.
        targets: `(B, D')`.
        temperature: divides the cosines of the features; the smaller, the fewer neighbours count.
        target_temperature: divides those of the targets.

    Returns:
        A scalar, zero exactly where both softmaxes agree.
    """
    ours, theirs = _neighbours(features, temperature), _neighbours(targets, target_temperature)
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def _neighbours(rows: Tensor, temperature: float) -> Tensor:
    """Logarithms of the softmax of each row's cosines with the other rows: `(B, B - 1)`."""
    rows = F.normalize(rows, dim=-1)
    count = len(rows)
    others = ~torch.eye(count, dtype=torch.bool, device=rows.device)
    return ((rows @ rows.T)[others].view(count, count - 1) / temperature).log_softmax(-1)
