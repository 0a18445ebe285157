"""N-way K-shot episodes, drawn reproducibly from a `torch.Generator`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_dfml.data.few_shot import FewShotDataset
from hf_dfml.utils.images import to_unit


@dataclass(frozen=True)
class Episodes:
    """E few-shot tasks of N classes, each with K support and Q query images a class.

    Both sets are ordered by class: images `k*K .. k*K+K-1` of a support set have label k, and likewise for queries.

    Attributes:
        support: `(E, N*K, 3, H, W)` float in [0, 1].
        support_labels: `(E, N*K)` int64 in 0..N-1.
        query: `(E, N*Q, 3, H, W)` float in [0, 1].
        query_labels: `(E, N*Q)` int64 in 0..N-1.
        class_names: for each episode the names of its classes 0..N-1, or `None` where they have none.
    """

    support: torch.Tensor
    support_labels: torch.Tensor
    query: torch.Tensor
    query_labels: torch.Tensor
    class_names: tuple[tuple[str, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.support)

    def __getitem__(self, rows: slice) -> Episodes:
        """Some of the episodes."""
        return Episodes(
            self.support[rows],
            self.support_labels[rows],
            self.query[rows],
            self.query_labels[rows],
            self.class_names and self.class_names[rows],
        )

    def to(self, device: torch.device | str) -> Episodes:
        """The same episodes with their tensors on `device`."""
        return Episodes(
            self.support.to(device),
            self.support_labels.to(device),
            self.query.to(device),
            self.query_labels.to(device),
            self.class_names,
        )


class EpisodeSampler:
    """Draws episodes from a data set; the same generator state gives the same episodes, however they are chunked.

    Args:
        dataset: where images come from.
        ways: N, classes of an episode.
        shots: K, support images of a class.
        queries: Q, query images of a class, none of which is a support image.

    Raises:
        ValueError: if a number is below 1 (`queries` below 0), the set has fewer than `ways` classes, or one of its
            classes has fewer than `shots + queries` images.

    Examples:
        >>> from hf_dfml.data import load_dataset
        >>> sampler = EpisodeSampler(load_dataset("glyphs", "validation"), ways=5, shots=1, queries=15)
        >>> episodes = sampler.sample(2, torch.Generator().manual_seed(0))
        >>> episodes.support.shape, episodes.query.shape
        (torch.Size([2, 5, 3, 32, 32]), torch.Size([2, 75, 3, 32, 32]))
    """

    def __init__(self, dataset: FewShotDataset, ways: int = 5, shots: int = 1, queries: int = 15) -> None:
        if ways < 1 or shots < 1 or queries < 0:
            raise ValueError(
                f"An episode needs at least 1 class and 1 support image a class, and 0 or more queries; "
                f"asked were ways={ways}, shots={shots}, queries={queries}."
            )
        label = f"Data set '{dataset.name}' ({dataset.split})"
        if len(dataset.class_names) < ways:
            raise ValueError(
                f"{label} has {len(dataset.class_names)} classes: {ways}-way episodes need {ways} or more."
            )
        self.class_sizes = torch.bincount(dataset.labels.cpu(), minlength=len(dataset.class_names))
        smallest = int(self.class_sizes.argmin())
        if self.class_sizes[smallest] < shots + queries:
            raise ValueError(
                f"{label}: class '{dataset.class_names[smallest]}' has {int(self.class_sizes[smallest])} images, but "
                f"{shots} shots and {queries} queries need {shots + queries}; ask for fewer or leave the class out."
            )
        self.dataset = dataset
        self.ways, self.shots, self.queries = ways, shots, queries
        self.class_offsets = self.class_sizes.cumsum(0) - self.class_sizes

    def sample_indices(self, num_episodes: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of `dataset.images` that make the episodes, so that features computed once can be indexed instead.

        Args:
            num_episodes: E.
            generator: a CPU generator; it is advanced.

        Returns:
            Support rows `(E, N*K)` and query rows `(E, N*Q)`, int64 on the CPU.
        """
        size = self.shots + self.queries
        rows = torch.empty(num_episodes, self.ways, size, dtype=torch.int64)
        # One episode after the other, so that 600 at once and 6 times 100 are the same 600.
        for episode in range(num_episodes):
            classes = torch.randperm(len(self.class_sizes), generator=generator)[: self.ways]
            for way, k in enumerate(classes.tolist()):
                images = torch.randperm(int(self.class_sizes[k]), generator=generator)[:size]
                rows[episode, way] = self.class_offsets[k] + images
        return rows[:, :, : self.shots].flatten(1), rows[:, :, self.shots :].flatten(1)

    def sample(self, num_episodes: int, generator: torch.Generator) -> Episodes:
        """Draw `num_episodes` episodes, on the data set's device.

        Images of an episode are floats: 600 five-shot episodes of 84x84 pixels fill 5 GB, so draw them in chunks.
        """
        support_rows, query_rows = self.sample_indices(num_episodes, generator)
        images = self.dataset.images
        classes = self.dataset.labels.cpu()[support_rows[:, :: self.shots]]
        way = torch.arange(self.ways, device=images.device)
        return Episodes(
            support=to_unit(images[support_rows.to(images.device)]),
            support_labels=way.repeat_interleave(self.shots).repeat(num_episodes, 1),
            query=to_unit(images[query_rows.to(images.device)]),
            query_labels=way.repeat_interleave(self.queries).repeat(num_episodes, 1),
            class_names=tuple(tuple(self.dataset.class_names[k] for k in row) for row in classes.tolist()),
        )
