"""All members of a pool as one network: what each of them makes of an image, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_dfml.networks.info import Representation, set_input
from hf_dfml.pool.entry import MemberError
from hf_dfml.pool.teacher_pool import TeacherPool

MANY = 10
"""From so many members on their probabilities are taken, else their features, which say more where there are few."""
IMAGES_AT_ONCE = 64


class AllMembers(nn.Module):
    """The members of a pool side by side. They are loaded when they are asked, within the memory of the pool's cache.

    Args:
        pool: the members; each resizes and normalises images as it was trained with.
        seen: what is taken of them; None: features of fewer than `MANY` members that are not black boxes, else
            probabilities; `both` side by side, each of length 1.
        resident: whether all members are kept in memory as parts of this network, which an export needs.

    Raises:
        ValueError: if features of black boxes are asked for.
        MemberError: if a member cannot be used, such as one whose folder is gone.
    """

    def __init__(self, pool: TeacherPool, seen: Representation | None = None, *, resident: bool = False) -> None:
        super().__init__()
        if pool.answers_only and seen in ("features", "both"):
            raise ValueError("Black boxes show no features: use seen='answers'.")
        self.pool = pool.resolve()
        for entry in self.pool:
            if entry.problem is not None:
                raise MemberError(entry.id, entry.problem)
        self.seen: Representation = seen or ("answers" if pool.answers_only or len(pool) >= MANY else "features")
        self.members = nn.ModuleList(self.pool.stream()) if resident else None
        self.num_classes = 0
        sizes = [entry.input_size for entry in self.pool if entry.input_size]
        height, width = (max(size[side] for size in sizes) for side in (1, 2))
        # Each member has its own mean and std.
        set_input(self, (3, height, width), (0.0,) * 3, (1.0,) * 3, architecture="all_members")
        self.eval()

    def forward_features(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` in [0, 1] -> `(B, D)`: features of length 1 each, or probabilities."""
        members: Iterable[Any] = self.pool.stream() if self.members is None else self.members
        kinds = [
            torch.cat(parts, dim=-1) for parts in zip(*(self._see(each, images) for each in members), strict=True)
        ]
        return kinds[0] if len(kinds) == 1 else torch.cat([F.normalize(kind, dim=-1) for kind in kinds], dim=-1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The features: there is no classifier."""
        return x

    def reset_classifier(self, num_classes: int) -> None:
        """Nothing: there is no classifier."""

    def __deepcopy__(self, memo: dict[int, Any]) -> AllMembers:
        return self  # Its members are frozen, and the pool's cache is shared.

    def _see(self, member: Any, images: Tensor) -> list[Tensor]:
        """What is taken of a member: its features, its probabilities, or the one and the other."""
        parts = (images,) if self.members is not None else images.split(IMAGES_AT_ONCE)
        if self.seen == "features":
            return [_of_length_one([member.features(part) for part in parts])]
        if self.seen == "answers":
            return [_probabilities([member(part) for part in parts])]
        features, logits = zip(*(member.features_and_logits(part) for part in parts), strict=True)
        return [_of_length_one(features), _probabilities(logits)]


def _of_length_one(features: Sequence[Tensor]) -> Tensor:
    return F.normalize(torch.cat(list(features)).float(), dim=-1)


def _probabilities(logits: Sequence[Tensor]) -> Tensor:
    # Not of length 1 each: a member that is sure counts more.
    return torch.cat(list(logits)).float().softmax(-1)
