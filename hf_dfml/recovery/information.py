"""What a member's answers tell of the images that it is asked about, and of which drawn images they tell most.

A student learns from answers, so that images to which a member always answers the same teach nothing. The information
of an answer is the entropy of the mean answer less the mean entropy of the answers, in nats. It depends on the number
of images, which therefore is the same for all kinds that are compared.
"""

from __future__ import annotations

from statistics import fmean

import torch
from torch import Tensor

from hf_dfml.pool.asking import answers_of
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.recovery.procedural import DRAWN
from hf_dfml.utils.progress import progress
from hf_dfml.utils.seeding import fork

MOST_ASKED = 20
"""Members that are asked which images to draw, at most; spread over the pool."""
IMAGES_OF_A_KIND = 64
"""Images of each kind that such a member is asked about."""


def entropy(probabilities: Tensor) -> Tensor:
    """Of distributions `(..., C)`, in nats: `(...)`."""
    return -torch.xlogy(probabilities, probabilities).sum(-1)


def information(answers: Tensor) -> Tensor:
    """Nats that an answer tells of the image: entropy of the mean answer less mean entropy of the answers.

    Args:
        answers: a member's probabilities `(N, C)` of N images.

    Returns:
        A scalar, 0 or more.
    """
    return (entropy(answers.mean(0)) - entropy(answers).mean()).clamp_min(0)


def asked_members(members: int) -> list[int]:
    """The positions of those who are asked in a pool of so many members."""
    count = min(members, MOST_ASKED)
    return [index * members // count for index in range(count)]


def questions(members: int) -> int:
    """Images that all of them together are asked about by `information_of_drawn`."""
    return len(asked_members(members)) * IMAGES_OF_A_KIND * len(DRAWN)


def information_of_drawn(pool: TeacherPool, size: int, seed: int, device: torch.device) -> dict[str, float]:
    """Nats that a member's answer tells of an image of each kind of `DRAWN`, mean over the members that are asked.

    Of members that return labels alone it is that of the labels' histogram, and of the most probable classes alone
    that of these: less than of all probabilities, but comparable between kinds of images.

    Args:
        pool: the members; black boxes count `questions(len(pool))` queries.
        size: height and width of the images.
        seed: the run's seed, which the images depend on.
        device: where the images are given to the members.

    Raises:
        QueryBudgetError: if black boxes may not be asked so much.
    """
    images = {
        kind: draw(IMAGES_OF_A_KIND, size, fork(seed, "questions", kind)).to(device) for kind, draw in DRAWN.items()
    }
    told: dict[str, list[float]] = {kind: [] for kind in images}
    asked = asked_members(len(pool))
    members = progress(pool.stream(asked), description="Asking about drawn images", total=len(asked), unit="member")
    for member in members:
        for kind, some in images.items():
            told[kind].append(float(information(answers_of(member, some))))
    return {kind: fmean(values) for kind, values in told.items()}
