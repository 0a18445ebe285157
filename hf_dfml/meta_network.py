"""The network of the meta-model: the one that is asked for, or the one that fits the pool."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from hf_dfml.networks import create_network
from hf_dfml.networks.timm_network import is_model
from hf_dfml.pool.backbone import open_backbone, started_from
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.run_config import AUTO, RunConfig
from hf_dfml.utils.seeding import fork
from hf_dfml.utils.text import counted

FALLBACK = "conv4"
"""The few-shot literature's usual network, for members whose own cannot be built or is not known."""
LARGEST_FALLBACK = 84
"""Pixels that it takes at most, as in the literature; members are asked at their own sizes."""


@dataclass(frozen=True)
class Choice:
    """Which network a meta-model is.

    Attributes:
        arch: its architecture; empty where it starts from a public network.
        image_size: height and width of its images in pixels; 0: the public network's own.
        reason: why, after "conv4 of 32 pixels, "; empty where it was asked for.
    """

    arch: str
    image_size: int
    reason: str = ""


def choose_network(pool: TeacherPool, config: RunConfig) -> Choice:
    """What `config` asks for, and for `--arch auto` the architecture of most members, from which a student can start.

    Of several that are as common it is the smallest. Where the members only answer, or are none that timm builds, it
    is `FALLBACK`.
    """
    if config.student_from:
        return Choice("", config.image_size)
    counts: Counter[str] = Counter()
    if not pool.answers_only:
        named = [entry.architecture for entry in pool if entry.library == "timm" and entry.architecture]
        counts.update(arch for arch in named if is_model(arch))
    if config.arch != AUTO:
        return Choice(config.arch, config.image_size or _largest(pool, config.arch))
    if not counts:
        why = "as the members only answer" if pool.answers_only else "as timm builds none of the members' own"
        return Choice(
            FALLBACK, config.image_size or min(LARGEST_FALLBACK, _largest(pool)), f"{why} (--arch names another)"
        )
    most = max(counts.values())
    sizes = {arch: num_parameters(arch, _largest(pool, arch)) for arch, count in counts.items() if count == most}
    arch = min(sizes, key=lambda each: (sizes[each], each))
    reason = f"like {most} of {counted(len(pool), 'member')}" + (", the smallest of those" if len(sizes) > 1 else "")
    reason += f": {sizes[arch] / 1e6:.2g} million parameters (--arch names another)"
    return Choice(arch, config.image_size or _largest(pool, arch), reason)


def meta_network(pool: TeacherPool, config: RunConfig, choice: Choice | None = None) -> nn.Module:
    """The network of the meta-model.

    One from `config.student_from`, with its image size and normalisation; or a fresh one with the mean of the
    members' normalisations.

    Raises:
        ValueError: if the public network cannot be used, or not with images of `config.image_size`.
        FileNotFoundError: if there is none of that name.
    """
    choice = choice or choose_network(pool, config)
    if config.student_from:
        backbone = open_backbone(config.student_from)
        own = (backbone.entry.input_size or (3, 224, 224))[-1]
        return started_from(
            backbone,
            num_classes=config.ways,
            image_size=choice.image_size or own,
            generator=fork(config.seed, "network"),
        )
    count = len(pool)
    mean, std = (
        tuple(sum(getattr(entry, name)[channel] for entry in pool) / count for channel in range(3))
        for name in ("mean", "std")
    )
    return create_network(
        choice.arch,
        num_classes=config.ways,
        image_size=choice.image_size,
        mean=mean,
        std=std,
        generator=fork(config.seed, "network"),
    )


def num_parameters(arch: str, image_size: int) -> int:
    """Parameters of an architecture with one output; none of them is allocated."""
    with torch.device("meta"):
        return sum(each.numel() for each in create_network(arch, num_classes=1, image_size=image_size).parameters())


def _largest(pool: TeacherPool, arch: str = "") -> int:
    """The largest image size of the members of an architecture, or of all members where none has it."""
    sizes = [(entry.architecture, entry.input_size[-1]) for entry in pool if entry.input_size]
    return max([size for own, size in sizes if own == arch] or [size for _, size in sizes])
