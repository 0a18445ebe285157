"""Images drawn by chance: shapes and ranges, the seed alone decides, and what they have in common with photographs."""

import torch

from hf_dfml.recovery import procedural
from hf_dfml.recovery.procedural import coloured_noise, dead_leaves, procedural_images, strokes


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_seed_decides_and_images_differ(monkeypatch):
    monkeypatch.setattr(procedural, "IMAGES_AT_ONCE", 3)
    images = procedural_images(7, 16, stream())
    assert images.shape == (7, 3, 16, 16) and images.dtype == torch.uint8
    assert torch.equal(images, procedural_images(7, 16, stream()))
    assert not torch.equal(images, procedural_images(7, 16, stream(1)))
    assert len(images.flatten(1).unique(dim=0)) == 7


def test_strokes_are_dark_thin_and_without_colour(monkeypatch):
    monkeypatch.setattr(procedural, "DISTANCES_AT_ONCE", 3 * procedural.CURVES * procedural.POINTS * 24 * 24)
    images = strokes(7, 24, stream())
    assert images.shape == (7, 3, 24, 24) and images.dtype == torch.uint8
    assert torch.equal(images, strokes(7, 24, stream())) and not torch.equal(images, strokes(7, 24, stream(1)))
    assert len(images.flatten(1).unique(dim=0)) == 7
    assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])
    grounds = images.flatten(1).amax(1)
    assert grounds.min() >= 229
    # Each has ink, which covers little of it.
    inked = (images[:, 0] < 128).float().mean((1, 2))
    assert inked.min() > 0.01 and inked.mean() < 0.35


def test_both_kinds_stay_in_range_and_use_it():
    for draw in (coloured_noise, dead_leaves):
        images = draw(50, 32, stream())
        assert images.min() >= 0 and images.max() <= 1
        assert images.std() > 0.15 and images.mean((1, 2, 3)).std() > 0.03


def test_neighbouring_pixels_are_alike_as_in_photographs():
    for draw in (coloured_noise, dead_leaves):
        images = draw(50, 32, stream())
        centred = images - images.mean((2, 3), keepdim=True)
        alike = (centred[..., 1:] * centred[..., :-1]).mean() / centred.square().mean()
        assert alike > 0.5


def test_leaves_have_edges_and_flat_parts():
    steps = dead_leaves(50, 32, stream()).diff(dim=-1).abs().amax(1)
    assert (steps < 0.02).float().mean() > 0.3 and (steps > 0.3).float().mean() > 0.05
