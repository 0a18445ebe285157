"""Shifts and flips: which pixels land where."""

import torch

from hf_dfml.recovery.augment import random_crop_flip, random_roll


def test_a_crop_is_the_image_shifted_with_zeros_entering():
    images = torch.rand(20, 3, 8, 8) + 0.1
    shifted = random_crop_flip(images, torch.Generator().manual_seed(0), padding=2, flip=False)
    offsets = set()
    for image, crop in zip(images, shifted, strict=True):
        padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
        found = [(r, c) for r in range(5) for c in range(5) if torch.equal(padded[:, r : r + 8, c : c + 8], crop)]
        assert len(found) == 1
        offsets.add(found[0])
    assert len(offsets) > 5, "each image has its own shift"


def test_without_padding_an_image_is_itself_or_its_mirror():
    images = torch.rand(40, 3, 6, 6)
    out = random_crop_flip(images, torch.Generator().manual_seed(0), padding=0, flip=True)
    same = (out == images).flatten(1).all(1)
    mirrored = (out == images.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all() and 5 < same.sum() < 35


def test_gradients_return_to_the_pixels_they_came_from():
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    random_crop_flip(images, torch.Generator().manual_seed(1), padding=1).sum().backward()
    assert set(images.grad.unique().tolist()) <= {0.0, 1.0} and images.grad.mean() > 0.7


def test_roll_keeps_every_pixel_of_every_image():
    images = torch.rand(3, 3, 8, 8)
    rolled = random_roll(images, torch.Generator().manual_seed(0), pixels=2, flip=True)
    assert not torch.equal(rolled, images)
    assert torch.equal(rolled.flatten(1).sort(1).values, images.flatten(1).sort(1).values)
