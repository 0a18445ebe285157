"""How alike tasks are by whether their classifiers recognise each other's recovered images (ours, no paper's).

A class of one member and a class of another are the same thing if each member takes the other's images for its own
class. No network but the members is asked, and nothing is assumed of their architectures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hf_dfml.pool.asking import answers_of
from hf_dfml.pool.teacher import Teacher
from hf_dfml.utils.images import to_uint8


def confusion(member: Teacher, shown: Iterable[tuple[Tensor, Tensor, int]]) -> Tensor:
    """What a member takes the classes of others for.

    Args:
        member: who is asked.
        shown: by member of the pool images `(N, 3, H, W)`, uint8 or in [0, 1], their labels `(N,)`, and how many
            classes it has.

    Returns:
        `(K, C)`, K the number of all members' classes: the mean of this member's probabilities over the images of
        each; zeros where a class has none.
    """
    means = []
    for images, labels, classes in shown:
        answers = answers_of(member, to_uint8(images))
        total = torch.zeros(classes, answers.shape[1], device=answers.device).index_add_(0, labels, answers)
        means.append(total / torch.bincount(labels, minlength=classes).clamp_min(1)[:, None])
    return torch.cat(means)


def unfamiliarity(confusions: Sequence[Tensor]) -> Tensor:
    r"""Dissimilarity of members: how seldom a class comes back when two of them name each other's images.

    :math:`1 - \sum_{ij} P_{ab}(j|i) P_{ba}(i|j) / \sqrt{C_a C_b}`, where :math:`P_{ab}(j|i)` is the probability that
    :math:`b` gives its class :math:`j` for images of :math:`a`'s class :math:`i`. The sum is at most the number of
    classes that two members can share.

    Args:
        confusions: by member the matrix `(K, C_m)` of `confusion`, whose rows are the classes of all members in their
            order, K in all.

    Returns:
        `(M, M)`, symmetric, zero on the diagonal, in [0, 1].

    Examples:
        >>> first = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])  # Two members of two classes:
        >>> second = torch.tensor([[1.0, 0.0], [0.5, 0.5], [1.0, 0.0], [0.0, 1.0]])  # the first of each is the same.
        >>> unfamiliarity([first, second])[0, 1].item()
        0.375
    """
    sizes = [matrix.shape[1] for matrix in confusions]
    named = [matrix.double().cpu().split(sizes) for matrix in confusions]
    count = len(sizes)
    alike = torch.zeros(count, count, dtype=torch.float64)
    for first in range(count):
        for second in range(first + 1, count):
            back = (named[second][first] * named[first][second].T).sum()
            alike[first, second] = alike[second, first] = back / (sizes[first] * sizes[second]) ** 0.5
    return (1 - alike).fill_diagonal_(0).clamp_(0, 1)
