"""How sure a pool is of what was recovered from it: the check by eye that a picture is worth learning from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_dfml.pool.names import class_keys
from hf_dfml.pool.teacher_pool import TeacherPool

ASKED = 5
"""Members that are asked about a class, of those that know it."""


@torch.no_grad()
def confidence(pool: TeacherPool, images: Tensor, names: Sequence[str]) -> Tensor:
    """The probability that members give to the class of each image, the mean over the first that know the class.

    Args:
        pool: members whose weights are here; black boxes would count it as queries.
        images: `(C, n, 3, H, W)` in [0, 1], n of each class.
        names: `(C,)` the classes.

    Returns:
        `(C, n)` in [0, 1] on the CPU; NaN for a class that no member knows.
    """
    sums, asked = torch.zeros(images.shape[:2]), torch.zeros(len(names), 1)
    wanted = {key: row for row, name in enumerate(names) for key in (name, *class_keys((name,)))}
    for index, entry in enumerate(pool):
        shown = {wanted[key]: output for output, key in enumerate(entry.class_keys) if key in wanted}
        shown = {row: output for row, output in shown.items() if asked[row] < ASKED}
        if shown:
            rows = list(shown)
            answers = pool.load(index)(images[rows].flatten(0, 1).to(pool.device)).softmax(-1).cpu()
            answers = answers.unflatten(0, (len(rows), -1))
            sums[rows] += torch.stack([part[:, output] for part, output in zip(answers, shown.values(), strict=True)])
            asked[rows] += 1
    return sums / asked.where(asked > 0, torch.nan)
