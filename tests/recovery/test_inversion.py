"""Recovery: what the objective measures, what it leaves alone, and that it recovers what the teacher knows."""

import shutil
from dataclasses import replace
from functools import partialmethod

import pytest
import timm
import torch
from torch import nn

from hf_dfml.networks import create_network
from hf_dfml.networks.generator import Generator
from hf_dfml.networks.info import batch_norms
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.teacher import Teacher
from hf_dfml.recovery.inversion import RecoveryConfig, recover
from hf_dfml.recovery.objective import InversionWeights, inversion_loss, total_variation, watch_batch_norm


def teacher_of(network, classes=3):
    entry = PoolEntry(
        id="org/teacher",
        architecture="conv4",
        num_classes=classes,
        input_size=(3, 16, 16),
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.2, 0.2),
        label_names=("zebra", "ant", "mole"),
    )
    return Teacher(entry, network)


@pytest.fixture
def teacher():
    network = create_network(
        "conv4", num_classes=3, image_size=16, width=8, generator=torch.Generator().manual_seed(3)
    )
    return teacher_of(network)


def test_the_statistics_term_vanishes_where_batch_and_running_statistics_agree():
    """Set each layer's running statistics to those of a batch, from the input on: R_BN of that batch is zero."""
    network = create_network("conv4", num_classes=3, image_size=16, width=8)
    teacher = teacher_of(network)
    images = torch.rand(12, 3, 16, 16)
    maps = (images - teacher.mean) / teacher.std
    for block in network.blocks:
        maps = block.conv(maps)
        block.bn.running_mean.copy_(maps.mean((0, 2, 3)))
        block.bn.running_var.copy_(maps.var((0, 2, 3), unbiased=False))
        maps = block.act(block.pool(block.bn(maps)))
    with watch_batch_norm(teacher) as distance:
        logits = teacher(images)
    assert len(distance.terms) == 4 and distance.total(logits) < 1e-4
    with watch_batch_norm(teacher) as distance:
        logits = teacher(torch.rand(12, 3, 16, 16) * 0.1)
    assert distance.total(logits) > 0.1


def test_the_gradient_of_the_statistics_term_is_that_of_its_formula(teacher):
    teacher, images = teacher.double(), torch.rand(6, 3, 16, 16, dtype=torch.double, requires_grad=True)
    inputs = []
    hooks = [block.bn.register_forward_pre_hook(lambda _, x: inputs.append(x[0])) for block in teacher.network.blocks]
    with watch_batch_norm(teacher) as distance:
        logits = teacher(images)
    total = distance.total(logits)
    plain = sum(
        torch.linalg.vector_norm(x.var((0, 2, 3), correction=0) - block.bn.running_var)
        + torch.linalg.vector_norm(x.mean((0, 2, 3)) - block.bn.running_mean)
        for x, block in zip(inputs, teacher.network.blocks, strict=True)
    )
    torch.testing.assert_close(total, plain)
    (wanted,) = torch.autograd.grad(plain, images, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(total, images)[0], wanted)
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("conv4", {"width": 8}),
        ("resnet10", {"widths": (4, 8, 8, 8)}),
        # What follows a batch norm writes into what it gave: rectifiers, and the sum with the shortcut.
        ("resnet18", {"channels": (4, 8, 8, 8)}),
        ("mobilenetv2_035", {}),
    ],
)
@pytest.mark.parametrize("small", [False, True], ids=["all folded", "one layer stays"])
def test_a_folded_teacher_has_the_same_loss_and_the_same_gradient(name, width, small):
    generator = torch.Generator().manual_seed(5)
    if name in ("conv4", "resnet10"):
        network = create_network(name, num_classes=3, image_size=16, **width, generator=generator)
    else:
        network = timm.create_model(name, num_classes=3, **width).eval()
    for layer in batch_norms(network).values():
        for tensor in (layer.running_mean, layer.weight.data, layer.bias.data):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        layer.weight.data.mul_(0.3).add_(0.1 * layer.weight.sign())
        layer.running_var.copy_(torch.rand(layer.running_var.shape, generator=generator) + 0.1)
    if small:
        next(iter(batch_norms(network).values())).weight.data[1] = 0.0
    teacher = teacher_of(network).double()
    twin = teacher.folded(watched=True)
    assert len(batch_norms(twin)) == small
    images, labels = torch.rand(6, 3, 16, 16, generator=generator, dtype=torch.double), torch.tensor([0, 1, 2] * 2)
    found = []
    for each in (teacher, twin):
        given = images.clone().requires_grad_()
        loss, logits = inversion_loss(each, given, labels, InversionWeights(tv_weight=0.1))
        found.append((loss, logits, torch.autograd.grad(loss, given)[0]))
    for plain, quick in zip(*found, strict=True):
        assert (plain - quick).norm() < 1e-10 * plain.norm()


def test_inversion_changes_nothing_in_the_teacher(teacher):
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    config = RecoveryConfig(recovery="pixels", recovery_steps=3, recovery_lr=0.1, images_per_class=2, tv_weight=0.1)
    recover(teacher, config, 16, torch.Generator().manual_seed(0))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(module._forward_pre_hooks for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_loss_is_the_weighted_sum_of_its_terms(teacher):
    images, labels = torch.rand(6, 3, 16, 16), torch.tensor([0, 0, 1, 1, 2, 2])

    def loss(**weights):
        named = {f"{name}_weight": weights.get(name, 0.0) for name in ("ce", "bn", "tv", "l2")}
        return inversion_loss(teacher, images, labels, InversionWeights(**named))[0].item()

    assert loss(ce=1.0) == pytest.approx(nn.functional.cross_entropy(teacher(images), labels).item())
    assert loss(l2=1.0) == pytest.approx(images.norm().item(), rel=1e-5)
    assert loss(tv=1.0) == pytest.approx(total_variation(images).item())
    together = loss(ce=2.0, bn=0.5, tv=0.1, l2=0.01)
    assert together == pytest.approx(
        2 * loss(ce=1.0) + 0.5 * loss(bn=1.0) + 0.1 * loss(tv=1.0) + 0.01 * loss(l2=1.0), rel=1e-4
    )


def test_total_variation_of_a_step_edge():
    """One vertical edge of height 1 in a 4x4 image of one channel: 4 horizontal and 3 + 3 diagonal differences."""
    image = torch.zeros(1, 1, 4, 4)
    image[..., 2:] = 1
    assert total_variation(image).item() == pytest.approx(4**0.5 + 2 * 3**0.5)


@pytest.mark.parametrize(
    "config",
    [
        RecoveryConfig(
            recovery="pixels", recovery_steps=60, recovery_lr=0.1, images_per_class=4, shift=1, bn_weight=0.01
        ),
        RecoveryConfig(
            recovery_steps=80, recovery_lr=1e-2, images_per_class=4, generator_width=8, shift=1, bn_weight=0.01
        ),
    ],
    ids=["pixels", "generator"],
)
def test_the_teacher_recognises_what_was_recovered_in_its_own_order_of_classes(teacher, config):
    task = recover(teacher, config, 16, torch.Generator().manual_seed(0))
    assert task.images.shape == (12, 3, 16, 16) and 0 <= task.images.min() and task.images.max() <= 1
    assert task.class_names == ("zebra", "ant", "mole") and task.member == "org/teacher"
    assert task.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    # The statistics of a random network are not those of images, so their term has next to no weight here.
    assert (teacher(task.images).argmax(1) == task.labels).float().mean() > 0.8


def test_a_recovery_is_repeated_by_its_generator_and_fits_any_size(teacher):
    config = RecoveryConfig(recovery="pixels", recovery_steps=2, recovery_lr=0.1, images_per_class=2)
    first, second = (recover(teacher, config, 20, torch.Generator().manual_seed(4)) for _ in range(2))
    assert first.images.shape[-1] == 20 and torch.equal(first.images, second.images)


def test_the_distance_has_no_second_derivative_and_says_so():
    network = nn.Sequential(nn.BatchNorm2d(3))
    images = torch.rand(4, 3, 5, 5, requires_grad=True)
    with watch_batch_norm(network) as distance:
        network(images)
    (gradient,) = torch.autograd.grad(distance.total(images), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


@pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_generator_recovers_the_same_and_is_compiled_once(teacher, monkeypatch, backend):
    monkeypatch.setattr(Generator, "compile", partialmethod(nn.Module.compile, backend=backend))
    config = RecoveryConfig(recovery_steps=2, images_per_class=2, generator_width=4, latent_dim=8)

    def task(**changes):
        return recover(teacher, replace(config, **changes), 16, torch.Generator().manual_seed(0)).images

    torch._dynamo.reset()
    plain = task()
    torch.testing.assert_close(task(compile_generator=True), plain, rtol=0, atol=1e-4)
    compiled = sum(torch._dynamo.utils.counters["aot_autograd"].values())
    assert compiled
    task(compile_generator=True)
    assert sum(torch._dynamo.utils.counters["aot_autograd"].values()) == compiled, "the next generator takes it over"


def test_without_a_compiler_nothing_is_compiled(teacher, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match="none was found: install"):
        recover(teacher, RecoveryConfig(compile_generator=True), 16, torch.Generator())
