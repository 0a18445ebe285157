"""Rows of frozen members that share their passes: for all of them each image is seen once, and once mirrored."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from hf_dfml.evaluation.frozen_features import EpisodeImages
from hf_dfml.evaluation.heads.features import with_mirrored
from hf_dfml.evaluation.protocol import EvaluationProtocol, watched
from hf_dfml.evaluation.results import Result
from hf_dfml.networks.info import Representation
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.model_pool import ModelPool
from hf_dfml.pool.teacher import Teacher


class FrozenMembers:
    """A pool's members on the images of an evaluation, from which rows of several kinds are made.

    A pass through a member gives its features and its probabilities. All rows are scored while a member is at hand,
    so that no more is kept in memory than what one member makes of the images (and the last one of `of_one`),
    whatever the size of the pool.

    Args:
        pool: the members.
        images: of the evaluation's episodes.
        protocols: of the rows: the same episodes and a head by class means, with flips or without.
        kinds: what rows will be made of, `features` or `answers` or both.
        command: what a user types to get the rows again; this process's command by default.
        progress: whether to show a bar.
    """

    def __init__(
        self,
        pool: ModelPool,
        images: EpisodeImages,
        protocols: Sequence[EvaluationProtocol],
        kinds: Collection[Representation],
        *,
        command: str | None = None,
        progress: bool = True,
    ) -> None:
        self.pool, self.images, self.command, self.progress = pool, images, command, progress
        self.protocols = [
            replace(protocol, representation=kind) for kind in dict.fromkeys(kinds) for protocol in protocols
        ]
        self._kept: dict[str, list[Tensor]] = {}
        self._all: list[Result] | None = None

    def of_one(self, entry: PoolEntry, method: str) -> list[Result]:
        """Rows of one member's features.

        Args:
            entry: the member.
            method: how the table calls it.
        """
        self._kept = {entry.id: self._features(entry)}
        return self._rows([entry], method, ["features"])

    def of_all(self, kind: Representation, method: str) -> list[Result]:
        """Rows of all members side by side: of their features, of length 1 each, or of their probabilities.

        Args:
            kind: one of those that were named at the beginning.
            method: how the table calls them.
        """
        if self._all is None:
            self._all = self._rows(self.pool, method, ["features", "answers"])
        return [row for row in self._all if row.representation == kind]

    def _rows(self, entries: Sequence[PoolEntry], method: str, kinds: Collection[str]) -> list[Result]:
        started = time.monotonic()
        scorers = {
            index: self.images.scorer(protocol)
            for index, protocol in enumerate(self.protocols)
            if protocol.representation in kinds
        }
        for entry in watched(entries, method, len(entries), "member", self.progress and len(entries) > 1):
            features = self._features(entry)
            for index, scorer in scorers.items():
                scorer.add(features[index])
        seconds = (time.monotonic() - started) / len(scorers)
        return [row for scorer in scorers.values() for row in scorer.rows(method, seconds, self.command)]

    def _features(self, entry: PoolEntry) -> list[Tensor]:
        """What each of the protocols takes of a member: `(M, D)` each."""
        return self._kept.get(entry.id) or self.images.through(partial(self._see, self.pool.load(entry)))

    def _see(self, member: Teacher, images: Tensor) -> list[Tensor]:
        """The same of a batch `(B, 3, H, W)`."""
        views = [images, images.flip(-1)] if any(protocol.flips for protocol in self.protocols) else [images]
        passes = [member.features_and_logits(view) for view in views]
        found = {
            "features": [features.float() for features, _ in passes],
            "answers": [logits.softmax(-1) for _, logits in passes],
        }
        return [_as_row(found[protocol.representation], protocol) for protocol in self.protocols]


def _as_row(views: Sequence[Tensor], protocol: EvaluationProtocol) -> Tensor:
    """What a row adds up over the members, from what one gives of images and perhaps of their mirror images."""
    seen = with_mirrored(*views) if protocol.flips else views[0]
    # Probabilities as they are: a member that is sure counts more.
    return F.normalize(seen, dim=-1) if protocol.representation == "features" else seen
