r"""The joint representation of a pool in few dimensions, computed member after member.

The features of :math:`M` members side by side, each scaled to length :math:`1/\sqrt M`, have as inner products the
mean cosine :math:`K_{ij} = \frac1M \sum_m \langle f_m(x_i), f_m(x_j)\rangle`. Only these matter to a student, and they
are sums over the members, so that the `N x sum(D_m)` matrix of ensemble features is never needed:

- `pca`: :math:`K` between all `N` images and `n` of them, the landmarks, is added up (`4 N n` bytes). With
  :math:`K_{nn} = U \Lambda U^T`, the rows :math:`K_{Nn} U_d \Lambda_d^{-1/2}` are the ensemble features' projections
  on the first `d` principal directions (uncentred) of the landmarks' ensemble features (Nyström: Williams and Seeger,
  "Using the Nyström Method to Speed Up Kernel Machines", NeurIPS 2000).
- `random`: each member's features are multiplied by a Gaussian matrix of their own and added up (`4 N d` bytes), and
  the sums scaled to length 1. Inner products have a standard deviation of at most :math:`1/\sqrt d`.

The first direction, what all images have in common, carries most of the variance. With `whiten` = :math:`a`
principal directions are scaled by :math:`\lambda_i^{-a/2}`, so that the many weak ones are heard, and the targets to
length 1.

Measured on crops and mixtures of CIFAR-FS images, 24 conv4 members (3,072 features): the correlation of the targets'
inner products with :math:`K` over pairs of images is 0.9994, 0.9997 and 0.9999 with 128, 256 and 512 principal
directions, and 0.961 and 0.991 with 512 and 2,048 random ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_dfml.pool.teacher import Teacher
from hf_dfml.settings import Settings, option
from hf_dfml.utils.images import to_unit
from hf_dfml.utils.processes import ALONE, Processes
from hf_dfml.utils.seeding import fork

Probabilities = Callable[[Tensor], Tensor]
"""A member that only answers: images `(B, 3, H, W)` in [0, 1] -> probabilities `(B, C)`."""

PIXELS_AT_ONCE = 128 * 32 * 32
"""Pixels (of one channel) of a member's input in one forward pass; with 512 images conv4 is half as fast on a CPU."""

CHECKED = 500
"""Images on which the loss of the projection is measured: the last ones; where there are enough, no landmarks."""

SMALLEST = 1e-6
"""Directions whose variance is below this share of the first one's are left out: they are rounding errors."""


class TargetConfig(Settings):
    """What of the pool a student imitates, and how compactly it is kept."""

    target_outputs: Literal["features", "probabilities"] = option(
        "features", "The members' penultimate features, or their probabilities alone, as from black boxes."
    )
    target_dim: int = option(512, "Dimensions in which the joint representation is kept.", least=1)
    projection: Literal["pca", "random"] = option(
        "pca", "Principal directions (4 bytes x num_images x landmarks of memory), or random ones (less)."
    )
    whiten: float = option(0.0, "a: principal directions are scaled by their variance to the power -a/2; 0: as found.")
    landmarks: int = option(2000, "Images that the principal directions are fitted on.", least=1)


class EnsembleProducts(NamedTuple):
    """Sums over members, from which targets are made.

    Attributes:
        sums: `(N, n)` inner products with the landmarks, or `(N, d)` random projections.
        check: `(c, c)` inner products of the last images among each other.
        members: how many members.
    """

    sums: Tensor
    check: Tensor
    members: int


class EnsembleTargets(NamedTuple):
    """What a student imitates.

    Attributes:
        targets: `(N, target_dim)` in half precision.
        agreement: correlation between their inner products, before they are whitened, and those of the joint
            features, over the pairs of the last images.
        spread: `(target_dim,)`, the variances of the principal directions relative to the first one's; of random
            projections all 1.
    """

    targets: Tensor
    agreement: float
    spread: Tensor


def whitened(targets: Tensor, spread: Tensor, strength: float) -> Tensor:
    r"""Targets `(N, d)` whose directions are scaled by `spread` :math:`^{-a/2}`, in rows of length 1."""
    return F.normalize(targets * spread ** (-strength / 2), dim=-1)


def representation(member: Teacher | Probabilities, images: Tensor) -> Tensor:
    """What a member makes of images, in rows of length 1, so that inner products are cosines.

    Args:
        member: a teacher, whose penultimate features are taken; or a function that gives probabilities, whose
            centred logarithms (logits up to their mean) are.
        images: `(B, 3, H, W)` in [0, 1].

    Returns:
        `(B, D)`.
    """
    if isinstance(member, Teacher):
        return F.normalize(member.features(images).float(), dim=-1)
    # A probability of 0 is one that was rounded: the smallest one that half precision tells from it.
    logarithms = member(images).float().clamp_min(2.0**-24).log()
    return F.normalize(logarithms - logarithms.mean(-1, keepdim=True), dim=-1)


def representations(member: Teacher | Probabilities, images: Tensor, processes: Processes = ALONE) -> Tensor:
    """`representation` of all images `(N, 3, H, W)` uint8, a batch at a time: `(N, D)`."""
    height, width = member.entry.input_size[1:] if isinstance(member, Teacher) else images.shape[-2:]  # type: ignore[index]
    batch = max(1, PIXELS_AT_ONCE // (height * width))
    with torch.no_grad():
        return torch.cat(processes.map(lambda part: representation(member, to_unit(part)), images.split(batch)))


def ensemble_products(
    members: Iterable[tuple[int, Teacher | Probabilities | Tensor]],
    images: Tensor,
    config: TargetConfig,
    seed: int,
    processes: Processes = ALONE,
) -> EnsembleProducts:
    """Pass all images through each member once and add up what the targets are made of.

    In memory are the sums, and one member with its features of all images (`4 N D_m` bytes).

    Args:
        members: index in the pool and member, or what `representations` gave of it; they may be loaded as they are
            asked for.
        images: `(N, 3, H, W)` uint8.
        config: the projection.
        seed: of the random projections; each member's depends on its index alone.
        processes: among which the images that a member sees are divided.
    """
    landmarks, checked = min(config.landmarks, len(images)), min(CHECKED, len(images))
    width = landmarks if config.projection == "pca" else config.target_dim
    sums = torch.zeros(len(images), width, device=images.device)
    check = torch.zeros(checked, checked, device=images.device)
    count = 0
    for index, member in members:
        if isinstance(member, Tensor):
            features = member.to(images.device, torch.float32)
        else:
            features = representations(member, images, processes)
        if config.projection == "pca":
            basis = features[:landmarks].T
        else:
            generator = fork(seed, "projection", index)
            basis = torch.randn(features.shape[1], width, generator=generator).to(images.device) / width**0.5
        sums.addmm_(features, basis)
        check.addmm_(features[-checked:], features[-checked:].T)
        count += 1
    return EnsembleProducts(sums, check, count)


def add_products(parts: Iterable[EnsembleProducts]) -> EnsembleProducts:
    """The sums over the members of all parts."""
    total, *others = parts
    for part in others:
        total = EnsembleProducts(total.sums + part.sums, total.check + part.check, total.members + part.members)
    return total


def ensemble_targets(products: EnsembleProducts, config: TargetConfig) -> EnsembleTargets:
    """The compact targets, and how well their inner products agree with those of the full joint representation.

    Args:
        products: of all members.
        config: the projection.

    Raises:
        ValueError: if there are fewer landmarks than dimensions.
    """
    if config.projection == "random":
        targets = F.normalize(products.sums, dim=-1)
        return EnsembleTargets(targets.half(), _agreement(targets, products), targets.new_ones(config.target_dim))
    targets, variances = _principal_components(products.sums / products.members, config.target_dim)
    agreement = _agreement(targets, products)
    spread = variances / variances[0]
    if config.whiten:
        targets = whitened(targets, spread, config.whiten)
    return EnsembleTargets(targets.half(), agreement, spread)


def _principal_components(kernel: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """`K_Nn U_d Lambda_d^(-1/2)`, `(N, dim)`, and `Lambda_d`; the first `n` rows of `K_Nn` are the landmarks'."""
    landmarks = kernel.shape[1]
    if landmarks < dim:
        raise ValueError(
            f"{dim} principal directions cannot be found from {landmarks} images: "
            "lower --target_dim, or raise --landmarks and --num_images."
        )
    values, vectors = torch.linalg.eigh(kernel[:landmarks].double())
    values, vectors = values[-dim:].flip(0), vectors[:, -dim:].flip(1)
    scale = torch.where(values > SMALLEST * values[0], values.rsqrt(), 0.0)
    return kernel @ (vectors * scale).float(), values.clamp_min(SMALLEST * values[0]).float()


def _agreement(targets: Tensor, products: EnsembleProducts) -> float:
    """Correlation of the last images' inner products, as kept in half precision, over all pairs of different ones."""
    kept = targets[-len(products.check) :].half().float()
    pairs = torch.ones_like(products.check, dtype=torch.bool).triu(1)
    both = torch.stack([products.check[pairs], (kept @ kept.T)[pairs]])
    return float(torch.corrcoef(both.double())[0, 1])
