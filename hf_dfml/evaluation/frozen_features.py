"""The evaluation of frozen features: each image is seen once, by one extractor after the other."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_dfml.data.few_shot import FewShotDataset
from hf_dfml.evaluation.heads import HEADS, FeatureHead, class_means, heads_on_features, with_flips
from hf_dfml.evaluation.protocol import (
    EvaluationProtocol,
    draw_episodes,
    episode_labels,
    images_of_rows,
    result_row,
    watched,
)
from hf_dfml.evaluation.results import Result
from hf_dfml.utils.processes import ALONE, Processes

FeatureExtractor = Callable[[Tensor], Tensor]
"""Images `(B, 3, H, W)` in [0, 1] -> features `(B, D)`, the same for an image whatever the rest of the batch is."""

PIXELS_AT_ONCE = 128 * 32 * 32
"""Pixels (of one channel) in a forward pass that computes features; with four times as many a CPU takes 1.5 times."""


def evaluate_features(
    extract: FeatureExtractor | Iterable[FeatureExtractor],
    dataset: FewShotDataset,
    protocol: EvaluationProtocol,
    *,
    method: str,
    num_extractors: int | None = None,
    device: torch.device | str = "cpu",
    command: str | None = None,
    progress: bool = True,
    processes: Processes = ALONE,
) -> list[Result]:
    """Evaluate frozen features; each image of the split is seen once and indexed by the episodes.

    Several extractors are put side by side, L2-normalised each. For a head `by_class_means` they are streamed: inner
    products add up over the parts of a concatenated feature, so that one extractor at a time is in memory, whatever
    the size of the pool. For other heads all features are kept, in half precision.

    Args:
        extract: one extractor or several, which may be loaded as they are asked for.
        dataset: classes of the evaluation.
        protocol: the protocol; `head` is one on features. Rows say `bn` is `running`, as features must not depend on
            the batch.
        method: how the table calls them.
        num_extractors: how many, for the progress bar, where `extract` has no length.
        device: where.
        command: what a user types to get the rows again; this process's command by default.
        progress: whether to show a bar.
        processes: among which the images of the split are divided; the rows are the same on all.

    Returns:
        One row a number of shots.

    Raises:
        ValueError: if the evaluation's head is another, or the data set has too few classes or images.
    """
    started = time.monotonic()
    images = EpisodeImages(dataset, protocol, device, processes)
    scorer = images.scorer(protocol)
    extractors: Iterable[FeatureExtractor] = [extract] if callable(extract) else extract
    total = len(extractors) if isinstance(extractors, list | tuple) else num_extractors
    for extractor in watched(extractors, method, total, "extractor", progress and total != 1):
        seen = with_flips(extractor) if protocol.flips else extractor
        scorer.add(*images.through(partial(_normalised, seen)))
    return scorer.rows(method, time.monotonic() - started, command)


class EpisodeImages:
    """The images of a data set that the episodes of an evaluation need, each once, and where the episodes have them.

    Args:
        dataset: classes of the evaluation.
        protocol: the episodes.
        device: where what is made of the images is.
        processes: among which the images are divided.

    Raises:
        ValueError: if the data set has too few classes or images.
    """

    def __init__(
        self,
        dataset: FewShotDataset,
        protocol: EvaluationProtocol,
        device: torch.device | str,
        processes: Processes = ALONE,
    ) -> None:
        self.dataset, self.device, self.processes = dataset, torch.device(device), processes
        drawn = {shots: draw_episodes(dataset, protocol, shots) for shots in protocol.shots}
        self.rows = torch.unique(torch.cat([rows.flatten() for pair in drawn.values() for rows in pair]))
        position = torch.full((len(dataset),), -1).index_put_((self.rows,), torch.arange(len(self.rows)))
        self.places = {shots: tuple(position[rows].to(self.device) for rows in pair) for shots, pair in drawn.items()}

    @torch.no_grad()
    def through(self, see: Callable[[Tensor], Sequence[Tensor]]) -> list[Tensor]:
        """What `see` makes of the images, a batch at a time.

        Args:
            see: a batch `(B, 3, H, W)` in [0, 1] -> one or more features `(B, D)`.

        Returns:
            As many features of all images, `(M, D)`.
        """
        height, width = self.dataset.images.shape[-2:]
        batch = max(1, PIXELS_AT_ONCE // (height * width))

        def features_of(part: Tensor) -> list[Tensor]:
            images = _channels_last(images_of_rows(self.dataset, part, (height, width), self.device))
            return [features.float() for features in see(images)]

        parts = self.processes.map(features_of, self.rows.split(batch))
        return [torch.cat(features) for features in zip(*parts, strict=True)]

    def scorer(self, protocol: EvaluationProtocol) -> Scorer:
        """What is given features of the images, part by part, and turns them into rows of results.

        Args:
            protocol: that of the episodes, perhaps under another adaptation; its head is one on features. Rows say
                `bn` is `running`.

        Raises:
            ValueError: if the head is another.
        """
        head = HEADS[protocol.head]
        if not issubclass(head, FeatureHead):
            raise ValueError(
                f"Frozen features cannot be fine-tuned: choose a head on features ({', '.join(heads_on_features())}), "
                f"found head='{protocol.head}'."
            )
        return (_ByClassMeans if head.by_class_means else _Kept)(replace(protocol, bn="running"), self)


class Scorer(ABC):
    """Takes features of the images of an evaluation, side by side but one part after the other; gives its rows.

    Args:
        protocol: the protocol.
        images: whose features are given.
    """

    def __init__(self, protocol: EvaluationProtocol, images: EpisodeImages) -> None:
        self.protocol, self.dataset, self.places = protocol, images.dataset, images.places

    @abstractmethod
    def add(self, features: Tensor) -> None:
        """A part `(M, D)` of all images' features."""

    @abstractmethod
    def accuracies(self, shots: int) -> Tensor:
        """Of each episode `(E,)` in [0, 1]."""

    def rows(self, method: str, seconds: float, command: str | None) -> list[Result]:
        """One row a number of shots.

        Args:
            method: how the table calls the features.
            seconds: that the features took; those of the scores are added, and the shots share them.
            command: what a user types to get the rows again; this process's command by default.
        """
        started = time.monotonic()
        accuracies = {shots: self.accuracies(shots).cpu() for shots in self.protocol.shots}
        each = (seconds + time.monotonic() - started) / len(accuracies)
        size = int(self.dataset.images.shape[-1])
        return [
            result_row(self.dataset, self.protocol, shots, method, values, each, command, size)
            for shots, values in accuracies.items()
        ]


class _ByClassMeans(Scorer):
    """Nearest class mean by cosine on features that arrive in parts."""

    def __init__(self, protocol: EvaluationProtocol, images: EpisodeImages) -> None:
        super().__init__(protocol, images)
        self.products: dict[int, Tensor] = {}
        self.lengths: dict[int, Tensor] = {}

    def add(self, features: Tensor) -> None:
        for shots, (support_rows, query_rows) in self.places.items():
            labels, _ = episode_labels(self.protocol, shots, features.device)
            products, lengths = [], []
            # A few megabytes of gathered features at a time.
            for support, query in zip(support_rows.split(50), query_rows.split(50), strict=True):
                means = class_means(features[support], labels, self.protocol.ways)
                products.append(features[query] @ means.mT)
                lengths.append(means.square().sum(-1))
            self.products[shots] = self.products.get(shots, 0) + torch.cat(products)
            self.lengths[shots] = self.lengths.get(shots, 0) + torch.cat(lengths)

    def accuracies(self, shots: int) -> Tensor:
        # A query's own length does not matter to the order of its cosines.
        cosines = self.products[shots] / self.lengths[shots].clamp_min(1e-12).sqrt()[:, None]
        _, labels = episode_labels(self.protocol, shots, cosines.device)
        return (cosines.argmax(-1) == labels).float().mean(-1)


class _Kept(Scorer):
    """Any head on features that arrive in parts."""

    def __init__(self, protocol: EvaluationProtocol, images: EpisodeImages) -> None:
        super().__init__(protocol, images)
        self.head: type[FeatureHead] = HEADS[protocol.head]  # type: ignore[assignment]
        self.parts: list[Tensor] = []

    def add(self, features: Tensor) -> None:
        self.parts.append(features.half())

    def accuracies(self, shots: int) -> Tensor:
        # Of length 1 altogether, like the features of a single extractor.
        features = torch.cat(self.parts, dim=1) / len(self.parts) ** 0.5
        support_labels, query_labels = episode_labels(self.protocol, shots, features.device)
        accuracies = []
        for support, query in zip(*self.places[shots], strict=True):
            weight, bias = self.head.classifier(features[support].float(), support_labels, self.protocol.ways)
            logits = F.linear(features[query].float(), weight, bias)
            accuracies.append((logits.argmax(-1) == query_labels).float().mean())
        return torch.stack(accuracies)


def _normalised(extract: FeatureExtractor, images: Tensor) -> list[Tensor]:
    return [F.normalize(extract(images).float(), dim=-1)]


def _channels_last(images: Tensor) -> Tensor:
    """The same images, laid out as a CPU's convolution and pooling want them (about twice as fast on conv4)."""
    return images.contiguous(memory_format=torch.channels_last) if images.device.type == "cpu" else images
