"""Recovery from members of many classes within a stated memory: some of their classes, and a few images at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_dfml.pool.teacher import Teacher
from hf_dfml.utils.memory import bytes_for_backward

ALWAYS = 64
"""So many images are never too many to be recovered at once."""


def chosen_classes(count: int, most: int, generator: torch.Generator) -> list[int]:
    """Which of a member's `count` classes a recovery shows: all, or `most` (0: all) at random, in their order."""
    if not 0 < most < count:
        return list(range(count))
    return sorted(torch.randperm(count, generator=generator)[:most].tolist())


def in_parts(classes: Sequence[int], each: int, most: int) -> list[tuple[list[int], int]]:
    """Classes, and how many images of each, part by part: `most` images a part, and `each` of every class in all.

    Examples:
        >>> in_parts([3, 5, 8], 2, 4)
        [([3, 5], 2), ([8], 2)]
        >>> in_parts([3], 5, 2)
        [([3], 2), ([3], 2), ([3], 1)]
    """
    if each > most:
        rest = [most] * (each // most) + [each % most] * (each % most > 0)
        return [([label], count) for label in classes for count in rest]
    step = most // each
    return [(list(classes[first : first + step]), each) for first in range(0, len(classes), step)]


def images_at_once(teacher: Teacher, wanted: int, gigabytes: float) -> int:
    """How many of `wanted` images can go forth and back through a member within a memory; at least one."""
    if wanted <= ALWAYS:
        return wanted
    assert teacher.entry.input_size is not None
    kept = bytes_for_backward(teacher, teacher.entry.input_size[-1], teacher.device)
    return max(1, min(wanted, int(gigabytes * 1e9 / max(1, kept))))
