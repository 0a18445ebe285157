"""The boundary term of FREE's Eq. 1: its value, its mask, and where it moves images."""

import math

import pytest
import torch

from hf_dfml.learning.optimisation import parameters_of
from hf_dfml.methods.inversion import boundary_against, student_logits
from hf_dfml.networks import create_network
from hf_dfml.recovery.inversion import RecoveryConfig, recover
from hf_dfml.recovery.objective import InversionWeights, boundary_term, inversion_loss
from tests.recovery.test_meta_generator import meta_of, teacher_of


def logits_of(*rows):
    return torch.tensor(rows, dtype=torch.float64).log()


def test_it_is_minus_the_divergence_where_both_agree_and_nothing_where_they_do_not():
    teacher = logits_of([0.7, 0.3], [0.9, 0.1], [0.2, 0.8])
    student = logits_of([0.6, 0.4], [0.4, 0.6], [0.3, 0.7])
    first = 0.7 * torch.tensor(0.7 / 0.6).log() + 0.3 * torch.tensor(0.3 / 0.4).log()
    third = 0.2 * torch.tensor(0.2 / 0.3).log() + 0.8 * torch.tensor(0.8 / 0.7).log()
    assert boundary_term(teacher, student).item() == pytest.approx(-(first + third).item() / 3)


def test_the_released_form_is_linear_in_the_teacher_and_makes_it_less_sure():
    teacher = logits_of([0.7, 0.3], [0.9, 0.1]).requires_grad_()
    student = logits_of([0.6, 0.4], [0.4, 0.6])
    value = boundary_term(teacher, student, "legacy_linear")
    assert value.item() == pytest.approx(-(0.6 * (math.log(0.6) - 0.7) + 0.4 * (math.log(0.4) - 0.3)) / 2)
    # Of the probabilities the gradient is the student's; descending it takes from what the student is sure of.
    (slope,) = torch.autograd.grad(value, teacher)
    assert slope[0, 0] > 0 > slope[0, 1] and (slope[1] == 0).all()
    (other,) = torch.autograd.grad(boundary_term(teacher, student), teacher)
    assert other[0, 0] < 0 < other[0, 1]


def test_it_vanishes_with_its_gradient_at_equality():
    logits = torch.randn(5, 3, requires_grad=True)
    term = boundary_term(logits, logits.detach())
    term.backward()
    assert term.item() == pytest.approx(0, abs=1e-7) and logits.grad.abs().max() < 1e-6


def student_of(teacher, outputs):
    """A network that mostly agrees with the teacher on those of its outputs, and is not it."""
    student = create_network("conv4", num_classes=len(outputs), image_size=16, width=8)
    state = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    state |= {name: 0.5 * state[name][outputs] for name in ("fc.weight", "fc.bias")}
    student.load_state_dict(state)
    return student, parameters_of(student)


@pytest.mark.parametrize("five", [True, False], ids=["meta-generator", "from scratch"])
def test_images_recovered_with_it_divide_teacher_and_student(five):
    """Same randomness, with and without the term; measured: 1.9 and 1.24 times the divergence."""
    teacher = teacher_of(0, width=8)
    student, params = student_of(teacher, [0, 1, 2])

    def divergence(term):
        generator = torch.Generator().manual_seed(0)
        if five:
            meta = meta_of(adaptation_steps=60, adaptation_lr=0.01, latent_lr=0.01, images_per_class=4)
            task = meta.recover([teacher], generator, [term])[0][0]
        else:
            config = RecoveryConfig(
                recovery="pixels", recovery_steps=60, recovery_lr=0.1, images_per_class=4, bn_weight=0.0
            )
            task = recover(teacher, config, 16, generator, term)
        taught = teacher(task.images)
        learned = student_logits(student, params, task.images, 3)
        return (taught.log_softmax(1).exp() * (taught.log_softmax(1) - learned.log_softmax(1))).sum(1).mean().item()

    plain, hard = divergence(None), divergence(boundary_against(student, params, [0, 1, 2], 1.0))
    assert hard > 1.1 * plain
    assert all(parameter.grad is None for parameter in student.parameters())


def test_a_student_of_fewer_outputs_is_shown_the_chosen_classes_only():
    teacher = teacher_of(0, classes=5, width=8)
    student, params = student_of(teacher, [1, 4])
    images, labels = torch.rand(10, 3, 16, 16), torch.arange(5).repeat(2)
    term = boundary_against(student, params, [1, 4], 3.0)
    with_term, logits = inversion_loss(teacher, images, labels, InversionWeights(bn_weight=0.0), term)
    without, _ = inversion_loss(teacher, images, labels, InversionWeights(bn_weight=0.0))
    shown = (labels == 1) | (labels == 4)
    expected = 3 * boundary_term(logits[shown][:, [1, 4]], student_logits(student, params, images[shown], 2))
    assert expected < 0 and (with_term - without).item() == pytest.approx(expected.item(), rel=1e-3)


def test_a_constant_student_leaves_the_value_and_the_gradient_through_the_teacher():
    """The released form: the student's answers carry no gradient to the images."""
    teacher = teacher_of(0, width=8)
    student, params = student_of(teacher, [0, 1, 2])
    labels = torch.arange(3)
    values, gradients = [], []
    for constant in (False, True):
        images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        logits = teacher(images)
        value = boundary_against(student, params, [0, 1, 2], 2.0, constant=constant)(images, labels, logits)
        values.append(value.item())
        gradients.append(torch.autograd.grad(value, images)[0])
    fixed = student_logits(student, params, images, 3).detach()
    (expected,) = torch.autograd.grad(2 * boundary_term(teacher(images), fixed), images)
    assert values[0] == pytest.approx(values[1]) and values[0] < 0
    assert torch.allclose(gradients[1], expected, atol=1e-7) and not torch.allclose(*gradients, rtol=0.1)
