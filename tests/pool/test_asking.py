"""Asking members: the same answers however they are asked, and how that is chosen."""

from contextlib import nullcontext

import pytest
import torch

from hf_dfml.networks import create_network
from hf_dfml.networks.info import batch_norms
from hf_dfml.pool import asking
from hf_dfml.pool.asking import Asking, answers_of, operations
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.teacher import Teacher


def member(seed, name="conv4", classes=3):
    entry = PoolEntry(
        id=f"m{seed}", architecture=name, num_classes=classes, input_size=(3, 16, 16), mean=(0.5,) * 3, std=(0.3,) * 3
    )
    generator = torch.Generator().manual_seed(seed)
    network = create_network(name, num_classes=classes, image_size=16, generator=generator)
    for layer in batch_norms(network).values():
        layer.running_mean.copy_(0.1 * torch.randn(layer.running_mean.shape, generator=generator))
        layer.running_var.copy_(torch.rand(layer.running_var.shape, generator=generator) + 0.5)
    return Teacher(entry, network)


@pytest.fixture
def images():
    return torch.randint(256, (23, 3, 16, 16), generator=torch.Generator().manual_seed(9), dtype=torch.uint8)


@pytest.fixture
def float32(monkeypatch):
    """As on a device that does not compute in bfloat16, whatever this machine is."""
    monkeypatch.setattr(asking, "computes_in_bfloat16", lambda _: False)


def test_answers_are_those_of_the_members_as_they_are(images, float32, monkeypatch):
    monkeypatch.setattr(asking, "PIXELS_AT_ONCE", 8 * 16 * 16)
    members = [member(0), member(1), member(2, "resnet10"), member(3, classes=4)]
    ask = Asking(members[0], len(members), len(images))
    for each in members:
        torch.testing.assert_close(ask.probabilities(each, images), answers_of(each, images), rtol=0, atol=1e-5)


def test_compiled_members_of_a_kind_share_one_function(images, float32, monkeypatch):
    """Compiled by a stand-in for `torch.compile` that counts; batches have one size, the last one is filled up."""
    compiled, sizes = [], set()

    def compile(function, **_):
        compiled.append(function)

        def run(state, arguments):
            sizes.add(len(arguments[0]))
            return function(state, arguments)

        return run

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(asking, "has_compiler", lambda: True)
    monkeypatch.setattr(asking, "LONG", 0)
    monkeypatch.setattr(asking, "PIXELS_AT_ONCE", 8 * 16 * 16)
    members = [member(0), member(1), member(2, classes=4)]
    ask = Asking(members[0], len(members), len(images))
    assert ask.choice == "float32, compiled"
    for each in members:
        torch.testing.assert_close(ask.probabilities(each, images), answers_of(each, images), rtol=0, atol=1e-5)
    assert len(compiled) == 2 and sizes == {8}


def test_networks_of_other_arguments_share_no_function(images, float32, monkeypatch):
    """Weights of the same shapes, which two or four heads of attention take."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(asking, "has_compiler", lambda: True)
    monkeypatch.setattr(asking, "LONG", 0)
    members = []
    for heads in (2, 4):
        args = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": heads}
        generator, norm = torch.Generator().manual_seed(0), {"mean": (0.5,) * 3, "std": (0.3,) * 3}
        network = create_network(
            "vit_tiny_patch16_224", num_classes=3, image_size=16, generator=generator, **norm, **args
        )
        entry = PoolEntry(
            id=f"heads-{heads}",
            architecture="vit_tiny_patch16_224",
            num_classes=3,
            input_size=(3, 16, 16),
            **norm,
            model_args=args,
        )
        members.append(Teacher(entry, network))
    ask = Asking(members[0], len(members), len(images))
    for each in members:
        torch.testing.assert_close(ask.probabilities(each, images), answers_of(each, images), rtol=0, atol=1e-5)


def test_long_work_is_compiled_where_there_is_a_compiler(monkeypatch):
    first = member(0)
    many = 2 * int(asking.LONG / operations(first) / 10)
    monkeypatch.setattr(asking, "has_compiler", lambda: True)
    assert Asking(first, 10, many).compiles and not Asking(first, 10, many // 4).compiles
    assert not Asking(first, 10, many, "never").compiles
    monkeypatch.setattr(asking, "has_compiler", lambda: False)
    assert not Asking(first, 10, many).compiles


@pytest.mark.parametrize(("agreeing", "used"), [(1.0, True), (0.98, False)])
def test_bfloat16_is_used_where_the_answers_agree(images, monkeypatch, agreeing, used):
    monkeypatch.setattr(asking, "computes_in_bfloat16", lambda _: True)
    monkeypatch.setattr(asking, "agreement", lambda *_: agreeing)
    teacher = member(0)
    ask = Asking(teacher, 1, len(images))
    found, exact = ask.probabilities(teacher, images), answers_of(teacher, images)
    assert ask.choice.startswith("bfloat16")
    assert torch.allclose(found, exact, atol=0.05) and ((found - exact).abs().max() > 1e-4) == used


def test_agreement_is_the_share_of_equal_answers(images):
    teacher = member(0)
    few = images.float() / 255
    assert asking.agreement(teacher, few, nullcontext()) == 1.0
    with torch.no_grad():
        answers = teacher(few).argmax(-1)

    class Other:
        """Answers otherwise within the block."""

        def __enter__(self):
            teacher.network.fc.bias.data.copy_(torch.tensor([1e3, 0.0, 0.0]))

        def __exit__(self, *_):
            pass

    assert asking.agreement(teacher, few, Other()) == pytest.approx((answers == 0).float().mean().item())
