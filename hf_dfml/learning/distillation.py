"""Knowledge distillation: what a student is asked to agree on with its teacher."""

from __future__ import annotations

from typing import Literal

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
