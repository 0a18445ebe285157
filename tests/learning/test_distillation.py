"""Distillation: a divergence is zero at equality and positive elsewhere; the form in the released code is not."""

import pytest
import torch

from hf_dfml.learning.distillation import distillation_loss


def gradient(kind, teacher, student):
    student = student.clone().requires_grad_()
    loss = distillation_loss(teacher, student, kind=kind)
    return loss.item(), torch.autograd.grad(loss, student)[0]


def test_loss_and_gradient_vanish_where_student_and_teacher_agree():
    logits = torch.randn(6, 5, dtype=torch.float64)
    loss, slope = gradient("kl", logits, logits + 3.0)  # A constant added to all logits changes no probability.
    assert loss == pytest.approx(0, abs=1e-12) and slope.abs().max() < 1e-12


def test_it_is_the_divergence_of_the_definition():
    teacher, student = torch.randn(2, 8, 5, dtype=torch.float64)
    p, q = teacher.softmax(-1), student.softmax(-1)
    assert distillation_loss(teacher, student).item() == pytest.approx(((p * (p / q).log()).sum() / 8).item())
    assert distillation_loss(teacher, student) > 0


def test_the_legacy_form_pushes_even_at_equality():
    logits = torch.randn(6, 5, dtype=torch.float64)
    _, slope = gradient("legacy_linear", logits, logits)
    assert slope.abs().max() > 1e-4


def test_the_legacy_form_has_the_slope_of_a_linear_agreement():
    teacher, student = torch.randn(2, 4, 3, dtype=torch.float64)
    agreement = student.clone().requires_grad_()
    expected = torch.autograd.grad(-(teacher.softmax(-1) * agreement.softmax(-1)).sum() / (4 * 3), agreement)[0]
    assert torch.allclose(gradient("legacy_linear", teacher, student)[1], expected)
