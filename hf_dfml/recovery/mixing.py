"""A training set from recovered images: crops, mirror images and mixtures of what different members have shown."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_dfml.recovery.augment import random_crop_flip
from hf_dfml.settings import Settings, option
from hf_dfml.utils.images import to_uint8, to_unit

IMAGES_AT_ONCE = 1000


class MixingConfig(Settings):
    """How recovered images become a training set."""

    num_images: int = option(32000, "Images of the training set.", least=1)
    mix_alpha: float = option(
        1.0, "Mixing coefficients are of Beta(alpha, alpha): 1 is uniform, 0 mixes nothing.", least=0
    )
    mix_members: bool = option(False, "Mix images of different members only, not any two images.")
    crop_padding: int = option(4, "Reflected pixels around an image before it is cropped.", least=0)


def mix_recovered(
    images: Tensor, members: Tensor, config: MixingConfig, generator: torch.Generator, *, flip: bool = True
) -> Tensor:
    """Crops of recovered images, mirrored by chance and mixed in pairs (mix-up, Zhang et al., arXiv 1710.09412).

    Every recovered image is the first of a pair equally often (up to one); its partner is any, drawn uniformly.

    Args:
        images: `(R, 3, H, W)` uint8.
        members: `(R,)` which member each was recovered from.
        config: how many, and how they are mixed.
        generator: the source of all randomness, on the CPU.
        flip: whether images are mirrored by chance.

    Returns:
        `(num_images, 3, H, W)` uint8.

    Raises:
        ValueError: if partners must be of another member and there is one member only.
    """
    count = config.num_images
    rounds = -(-count // len(images))
    first = torch.cat([torch.randperm(len(images), generator=generator) for _ in range(rounds)])[:count]
    second = _partners(first, members.cpu(), generator, other=config.mix_members)
    weight = mixing_coefficients(count, config.mix_alpha, generator)
    mixed = torch.empty(count, *images.shape[1:], dtype=torch.uint8, device=images.device)
    for rows in torch.arange(count).split(IMAGES_AT_ONCE):
        left, right = (
            random_crop_flip(
                to_unit(images[chosen[rows].to(images.device)]),
                generator,
                padding=config.crop_padding,
                flip=flip,
                border="reflect",
            )
            for chosen in (first, second)
        )
        share = weight[rows].to(images.device)[:, None, None, None]
        mixed[rows.to(images.device)] = to_uint8(share * left + (1 - share) * right)
    return mixed


def mixing_coefficients(count: int, alpha: float, generator: torch.Generator) -> Tensor:
    """`count` numbers in [0, 1] of Beta(alpha, alpha); all 1 where `alpha` is 0.

    Raises:
        ValueError: if `alpha` is negative.
    """
    from scipy.special import betaincinv

    if alpha < 0:
        raise ValueError(f"mix_alpha={alpha}: expected 0 (no mixing) or a positive number.")
    if alpha == 0:
        return torch.ones(count)
    # By the inverse of the distribution function, as torch.distributions draws from the global generator only.
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    return torch.from_numpy(betaincinv(alpha, alpha, uniform.numpy())).float()


def _partners(first: Tensor, members: Tensor, generator: torch.Generator, *, other: bool) -> Tensor:
    """Rows that are mixed with the rows `first`: any, or any of another member."""
    if not other:
        return torch.randint(len(members), (len(first),), generator=generator)
    order = members.argsort(stable=True)
    counts = members.bincount()
    starts = counts.cumsum(0) - counts
    of_others = len(members) - counts[members[first]]
    if not of_others.all():
        raise ValueError(
            "There is one member only, so there are no images of another one to mix with: --mix_members false."
        )
    # A position among the rows of all other members, in the order of the members; one's own rows are stepped over.
    position = (torch.rand(len(first), generator=generator, dtype=torch.float64) * of_others).long()
    own = members[first]
    return order[position + (position >= starts[own]) * counts[own]]
