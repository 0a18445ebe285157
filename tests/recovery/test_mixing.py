"""The training set from recovered images: which images are mixed, and how."""

from dataclasses import replace

import pytest
import torch

from hf_dfml.recovery.augment import random_crop_flip
from hf_dfml.recovery.mixing import MixingConfig, mix_recovered, mixing_coefficients

PLAIN = MixingConfig(num_images=40, crop_padding=0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def flat_images(*levels):
    return torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8).contiguous()


def test_without_mixing_every_image_occurs_equally_often():
    images = flat_images(10, 20, 30, 40)
    mixed = mix_recovered(images, torch.zeros(4, dtype=torch.long), replace(PLAIN, mix_alpha=0.0), generator())
    values, counts = mixed[:, 0, 0, 0].unique(return_counts=True)
    assert values.tolist() == [10, 20, 30, 40] and counts.tolist() == [10] * 4


def test_a_mixture_lies_between_its_two_images():
    images, members = flat_images(0, 100), torch.tensor([0, 1])
    mixed = mix_recovered(images, members, replace(PLAIN, num_images=2000, mix_members=True), generator())
    levels = mixed[:, 0, 0, 0].float()
    assert levels.min() >= 0 and levels.max() <= 100
    # Uniform on [0, 100]: standard error of the mean 0.65, of the standard deviation about 0.4.
    assert abs(levels.mean() - 50) < 3 and abs(levels.std() - 28.9) < 2


def test_partners_are_of_another_member_and_all_of_them_occur():
    """Member 2 has two images whose mixture would be above 100."""
    images, members = flat_images(0, 200, 204, 0), torch.tensor([5, 2, 2, 0])
    mixed = mix_recovered(
        images, members, replace(PLAIN, num_images=400, mix_members=True, mix_alpha=1e4), generator()
    )
    levels = mixed[:, 0, 0, 0].float()
    assert levels.max() < 110, "a mixture of both images of member 2 would be about 202"
    assert (levels < 5).any() and (levels > 90).any()


def test_one_member_alone_has_no_other_to_mix_with():
    with pytest.raises(ValueError, match="--mix_members false"):
        mix_recovered(
            flat_images(1, 2), torch.zeros(2, dtype=torch.long), replace(PLAIN, mix_members=True), generator()
        )


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_coefficients_have_the_moments_of_the_beta_distribution(alpha):
    drawn = mixing_coefficients(20000, alpha, generator())
    assert drawn.min() >= 0 and drawn.max() <= 1 and abs(drawn.mean() - 0.5) < 0.015
    assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_coefficients_need_a_number_that_is_not_negative():
    with pytest.raises(ValueError, match="mix_alpha=-1"):
        mixing_coefficients(3, -1, generator())


def test_the_same_generator_gives_the_same_set_and_the_global_one_is_not_touched():
    images, members = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8), torch.arange(6)
    state = torch.get_rng_state()
    config = MixingConfig(num_images=30)
    first, second, third = (mix_recovered(images, members, config, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, third)
    assert torch.equal(torch.get_rng_state(), state)


def test_reflected_borders_let_no_black_in():
    images = torch.rand(30, 3, 8, 8) + 0.1
    crops = random_crop_flip(images, generator(), padding=3, flip=False, border="reflect")
    assert crops.min() >= 0.1
    padded = torch.nn.functional.pad(images, (3,) * 4, mode="reflect")
    for whole, crop in zip(padded, crops, strict=True):
        assert any(torch.equal(whole[:, r : r + 8, c : c + 8], crop) for r in range(7) for c in range(7))
