"""Pixels: levels survive the round trip, resizing keeps what it must."""

import pytest
import torch

from hf_dfml.utils.images import resize, to_uint8, to_unit


def test_every_level_survives_the_round_trip():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_unit(levels)), levels)


def test_out_of_range_values_are_clipped():
    assert to_uint8(torch.tensor([-0.2, 1.3])).tolist() == [0, 255]


def test_resize_keeps_constants_and_passes_gradients():
    images = torch.full((1, 3, 84, 84), 0.3, requires_grad=True)
    small = resize(images, 32)
    assert small.shape == (1, 3, 32, 32)
    assert torch.allclose(small, torch.tensor(0.3))
    small.sum().backward()
    assert images.grad is not None and images.grad.sum() > 0


def test_resize_to_the_same_size_is_the_same_tensor():
    images = torch.rand(1, 3, 32, 32)
    assert resize(images, (32, 32)) is images


def test_what_has_its_form_already_stays():
    levels, unit = torch.tensor([0, 255], dtype=torch.uint8), torch.tensor([0.0, 1.0])
    assert to_uint8(levels) is levels and to_unit(unit) is unit
    with pytest.raises(ValueError, match="int64: expected floats in .* or uint8"):
        to_unit(torch.tensor([0, 255]))
