from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hf_dfml.pool import ModelPool, PoolEntry, Teacher
from hf_dfml.pool.formats.loading import load_teacher
from hf_dfml.pool.formats.reading import read_entry


@pytest.fixture
def teacher(members) -> Teacher:
    return load_teacher(read_entry("m-0", members / "m-0"))


def test_images_are_normalised_with_the_members_own_scale(teacher):
    images = torch.rand(4, 3, 16, 16)
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    torch.testing.assert_close(teacher(images), teacher.network((images - mean) / std))


def test_uint8_is_divided_by_255(teacher, members):
    images = torch.randint(0, 256, (4, 3, 20, 20), dtype=torch.uint8)
    assert torch.equal(teacher(images), teacher(images.float() / 255))
    assert torch.equal(teacher.features(images), teacher.features(images.float() / 255))
    for pool in (ModelPool.from_dir(members), ModelPool.from_dir(members).as_black_box("logits")):
        assert torch.equal(pool.load("m-0")(images), pool.load("m-0")(images.float() / 255))
    with pytest.raises(ValueError, match="int64: expected floats in .* or uint8"):
        teacher(images.long())


def test_images_of_another_size_are_resized(teacher):
    images = torch.rand(2, 3, 40, 24)
    resized = F.interpolate(images, size=(16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(teacher(images), teacher(resized))


def test_features_are_what_the_classifier_is_given(teacher):
    images = torch.rand(4, 3, 16, 16)
    features = teacher.features(images)
    assert features.shape == (4, 16)
    torch.testing.assert_close(teacher.network.fc(features), teacher(images))


def test_features_and_logits_are_had_in_one_pass(teacher):
    images, passed = torch.rand(4, 3, 16, 16), []
    first = next(module for module in teacher.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_hook(lambda *_: passed.append(1))
    features, logits = teacher.features_and_logits(images)
    assert len(passed) == 1
    assert torch.equal(features, teacher.features(images)) and torch.equal(logits, teacher(images))


def test_gradients_reach_the_images_and_no_weight(teacher):
    images = torch.rand(2, 3, 24, 24, requires_grad=True)
    teacher(images).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_train_mode_is_refused(teacher):
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    torch.nn.Sequential(teacher).train()
    assert not any(module.training for module in teacher.modules())
    teacher(torch.rand(4, 3, 16, 16))
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_an_entry_without_metadata_makes_no_teacher():
    with pytest.raises(ValueError, match="Member org/m has no input size"):
        Teacher(PoolEntry(id="org/m", revision="0" * 40), torch.nn.Identity())
