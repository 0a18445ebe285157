"""The exam: mean accuracy and 95 % interval over few-shot episodes of classes that nobody has been trained on."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_dfml.data.episodes import EpisodeSampler
from hf_dfml.data.few_shot import FewShotDataset
from hf_dfml.evaluation.heads import (
    HEADS,
    ON_FEATURES,
    Adaptation,
    Adapter,
    Head,
    class_means,
    logistic_regression,
    mirrored,
)
from hf_dfml.evaluation.icfil import ICFILConfig
from hf_dfml.evaluation.results import Result, mean_and_interval
from hf_dfml.networks.functional import BatchNorm, functional_forward
from hf_dfml.networks.side_by_side import how_many
from hf_dfml.utils.images import resize, to_unit
from hf_dfml.utils.memory import keep_freed_memory
from hf_dfml.utils.processes import ALONE, Processes
from hf_dfml.utils.progress import progress as progress_bar
from hf_dfml.utils.provenance import this_command
from hf_dfml.utils.seeding import fork
from hf_dfml.utils.threads import thread_map

FeatureExtractor = Callable[[Tensor], Tensor]
"""Images `(B, 3, H, W)` in [0, 1] -> features `(B, D)`, the same for an image whatever the rest of the batch is."""

Item = TypeVar("Item")

PIXELS_AT_ONCE = 128 * 32 * 32
"""Pixels (of one channel) in a forward pass that computes features; with four times as many a CPU takes 1.5 times."""


@dataclass(frozen=True)
class Exam:
    """The meta-testing protocol; the defaults are the papers' but for the batch norm (theirs is transductive)."""

    ways: int = field(default=5, metadata={"help": "Classes of an episode."})
    shots: list[int] = field(default_factory=lambda: [1, 5], metadata={"help": "Support images a class."})
    queries: int = field(default=15, metadata={"help": "Query images a class."})
    episodes: int = field(default=600, metadata={"help": "Number of episodes."})
    bn: BatchNorm = field(
        default="support",
        metadata={"help": "Statistics that normalise the queries: of the support set, stored, or of all queries."},
    )
    head: Head = field(default="finetune", metadata={"help": f"One of {', '.join(HEADS)}."})
    inner_steps: int = field(
        default=10, metadata={"help": "SGD steps of `finetune` (and before `icfil`) on the support set."}
    )
    inner_lr: float = field(default=0.01, metadata={"help": "Learning rate of these steps."})
    seed: int = field(default=0, metadata={"help": "Seed of the episodes: with the same seed all sit the same exam."})
    split: str = field(
        default="test", metadata={"help": "Classes to load: validation to choose, test once at the end."}
    )
    icfil: ICFILConfig = field(default_factory=ICFILConfig, metadata={"help": "What `icfil` does."})

    def __post_init__(self) -> None:
        if self.episodes < 2:
            raise ValueError(f"An exam of {self.episodes} episodes has no interval: expected at least 2.")
        if self.queries < 1 or not self.shots:
            raise ValueError(f"An exam needs queries and shots, found {self.queries} queries and shots {self.shots}.")
        # The other fields are checked where they are used; these here so that a typo costs no training run.
        _ = self.adaptation

    @property
    def adaptation(self) -> Adaptation:
        """How a network is adapted to a support set in this exam."""
        return Adaptation(self.bn, self.head, self.inner_steps, self.inner_lr)


def evaluate(
    network: nn.Module,
    dataset: FewShotDataset,
    exam: Exam,
    *,
    method: str,
    device: torch.device | str | None = None,
    chunk_size: int | None = None,
    command: str | None = None,
    progress: bool = True,
    processes: Processes = ALONE,
) -> list[Result]:
    """Let a network sit the exam.

    Episodes depend on the exam's seed, the split, ways and shots alone, so that all contestants sit the same ones.

    Args:
        network: with timm's API and `pretrained_cfg`, whose mean, std and input size are applied to the images; it is
            not changed.
        dataset: classes of the exam; its own split is what the rows name.
        exam: the protocol. A network with another number of outputs than `exam.ways` is fine-tuned with a head that is
            rebuilt from each support set.
        method: how the table calls the network.
        device: where; by default where the network is.
        chunk_size: episodes in memory at once; by default as many as fit a small machine.
        command: what a user types to get the rows again; this process's command by default.
        progress: whether to show a bar.
        processes: among which the episodes are divided; the rows are the same on all.

    Returns:
        One row a number of shots.

    Raises:
        ValueError: if the data set has too few classes or images for the exam.
    """
    device = torch.device(device) if device is not None else next(network.parameters()).device
    network = network.to(device)
    if exam.head in ON_FEATURES and exam.bn == "running":
        size = _input_size(network)
        was_training = network.training
        network.eval()
        try:
            return evaluate_features(
                lambda images: functional_forward(network, {}, resize(images, size), source="running", features=True),
                dataset,
                exam,
                method=method,
                device=device,
                command=command,
                progress=progress,
                processes=processes,
            )
        finally:
            network.train(was_training)
    results = []
    for shots in exam.shots:
        started = time.monotonic()
        accuracies = episode_accuracies(
            network,
            dataset,
            exam,
            shots,
            chunk_size=chunk_size,
            processes=processes,
            description=f"{method}, {shots}-shot" if progress else "",
        )
        results.append(_result(dataset, exam, shots, method, accuracies, time.monotonic() - started, command))
    return results


def episode_accuracies(
    network: nn.Module,
    dataset: FewShotDataset,
    exam: Exam,
    shots: int,
    *,
    chunk_size: int | None = None,
    processes: Processes = ALONE,
    description: str = "",
) -> Tensor:
    """Accuracies `(E,)` in [0, 1] of a network that is adapted to each episode of an exam, in its own precision.

    An accelerator has a chunk of episodes at once. On a CPU each of PyTorch's threads has one after the other.

    Args:
        network: as in `evaluate`, on its device.
        dataset: classes of the exam.
        exam: the protocol.
        shots: support images a class.
        chunk_size: episodes at once; by default as many as fit a small machine.
        processes: among which the episodes are divided.
        description: of the progress bar; none without.
    """
    weights = next(network.parameters())
    if weights.device.type == "cpu":
        keep_freed_memory()
    size = _input_size(network)
    adapter = Adapter(network, exam.ways, exam.adaptation, exam.icfil)
    support_rows, query_rows = draw_episodes(dataset, exam, shots)
    support_labels, query_labels = _labels(exam, shots, weights.device)
    at_once = how_many(network, exam.ways * shots * size[0] * size[1])
    # Whole groups of episodes that are worked on at once, so that rounding does not depend on chunks and processes.
    share = -(-exam.episodes // (processes.count * at_once)) * at_once
    chunk = chunk_size or min(_chunk_size(size, weights.device, at_once), share)
    chunks = list(zip(support_rows.split(chunk), query_rows.split(chunk), strict=True))

    def images_of(rows: Tensor) -> Tensor:
        return _images(dataset, rows, size, weights.device).to(weights.dtype)

    def accuracies_of(rows: tuple[Tensor, Tensor]) -> Tensor:
        predicted = _episode_logits(adapter, rows, images_of, support_labels, at_once).argmax(-1)
        return (predicted == query_labels).float().mean(-1).cpu()

    watched = _watched(chunks, description, len(chunks), "chunk", bool(description))
    return torch.cat(processes.map(accuracies_of, watched)).cpu()


def evaluate_features(
    extract: FeatureExtractor | Iterable[FeatureExtractor],
    dataset: FewShotDataset,
    exam: Exam,
    *,
    method: str,
    num_extractors: int | None = None,
    device: torch.device | str = "cpu",
    command: str | None = None,
    progress: bool = True,
    processes: Processes = ALONE,
) -> list[Result]:
    """Let frozen features sit the exam; each image of the split is seen once and indexed by the episodes.

    Several extractors are put side by side, each L2-normalised. But for the `linear` head they are streamed: inner
    products add up over the parts of a concatenated feature, so that one extractor at a time is in memory, whatever
    the size of the pool. `linear` keeps all features, in half precision.

    Args:
        extract: one extractor or several, which may be loaded as they are asked for.
        dataset: classes of the exam.
        exam: the protocol; `head` is `prototype`, `mirrored` or `linear`. Rows say `bn` is `running`, as features must
            not depend on the batch.
        method: how the table calls them.
        num_extractors: how many, for the progress bar, where `extract` has no length.
        device: where.
        command: what a user types to get the rows again; this process's command by default.
        progress: whether to show a bar.
        processes: among which the images of the split are divided; the rows are the same on all.

    Returns:
        One row a number of shots.

    Raises:
        ValueError: if the exam's head is another, or the data set has too few classes or images.
    """
    if exam.head not in ON_FEATURES:
        raise ValueError(
            f"Frozen features cannot be fine-tuned: ask for an exam with one of {', '.join(ON_FEATURES)}."
        )
    started = time.monotonic()
    device = torch.device(device)
    extractors: Iterable[FeatureExtractor] = [extract] if callable(extract) else extract
    drawn = {shots: draw_episodes(dataset, exam, shots) for shots in exam.shots}
    needed = torch.unique(torch.cat([rows.flatten() for pair in drawn.values() for rows in pair]))
    position = torch.full((len(dataset),), -1).index_put_((needed,), torch.arange(len(needed)))
    places = {shots: tuple(position[rows].to(device) for rows in pair) for shots, pair in drawn.items()}
    examiner = _Linear(exam, places) if exam.head == "linear" else _Prototypes(exam, places)
    total = len(extractors) if isinstance(extractors, list | tuple) else num_extractors
    for extractor in _watched(extractors, method, total, "extractor", progress and total != 1):
        seen = mirrored(extractor) if exam.head == "mirrored" else extractor
        examiner.add(_all_features(seen, dataset, needed, device, processes))
    accuracies = {shots: examiner.accuracies(shots).cpu() for shots in exam.shots}
    seconds = (time.monotonic() - started) / len(exam.shots)
    return [
        _result(dataset, exam, shots, method, accuracies[shots], seconds, command, bn="running")
        for shots in exam.shots
    ]


def draw_episodes(dataset: FewShotDataset, exam: Exam, shots: int) -> tuple[Tensor, Tensor]:
    """Rows of `dataset.images`, support `(E, N*K)` and query `(E, N*Q)`: the same for every contestant of an exam."""
    sampler = EpisodeSampler(dataset, exam.ways, shots, exam.queries)
    return sampler.sample_indices(exam.episodes, fork(exam.seed, "exam", dataset.split, exam.ways, shots))


class _Prototypes:
    """Nearest class mean by cosine on features that arrive in parts."""

    def __init__(self, exam: Exam, places: dict[int, tuple[Tensor, ...]]) -> None:
        self.exam, self.places = exam, places
        self.products: dict[int, Tensor] = {}
        self.lengths: dict[int, Tensor] = {}

    def add(self, features: Tensor) -> None:
        for shots, (support_rows, query_rows) in self.places.items():
            labels, _ = _labels(self.exam, shots, features.device)
            products, lengths = [], []
            # A few megabytes of gathered features at a time.
            for support, query in zip(support_rows.split(50), query_rows.split(50), strict=True):
                means = class_means(features[support], labels, self.exam.ways)
                products.append(features[query] @ means.mT)
                lengths.append(means.square().sum(-1))
            self.products[shots] = self.products.get(shots, 0) + torch.cat(products)
            self.lengths[shots] = self.lengths.get(shots, 0) + torch.cat(lengths)

    def accuracies(self, shots: int) -> Tensor:
        # All features are of one length, so that the query's does not matter to the order of the cosines.
        cosines = self.products[shots] / self.lengths[shots].clamp_min(1e-12).sqrt()[:, None]
        _, labels = _labels(self.exam, shots, cosines.device)
        return (cosines.argmax(-1) == labels).float().mean(-1)


class _Linear:
    """Logistic regression on features that arrive in parts."""

    def __init__(self, exam: Exam, places: dict[int, tuple[Tensor, ...]]) -> None:
        self.exam, self.places = exam, places
        self.parts: list[Tensor] = []

    def add(self, features: Tensor) -> None:
        self.parts.append(features.half())

    def accuracies(self, shots: int) -> Tensor:
        # Of length 1 altogether, like the features of a single extractor.
        features = torch.cat(self.parts, dim=1) / len(self.parts) ** 0.5
        support_labels, query_labels = _labels(self.exam, shots, features.device)
        accuracies = []
        for support, query in zip(*self.places[shots], strict=True):
            weight, bias = logistic_regression(features[support].float(), support_labels)
            logits = F.linear(features[query].float(), weight, bias)
            accuracies.append((logits.argmax(-1) == query_labels).float().mean())
        return torch.stack(accuracies)


def _episode_logits(
    adapter: Adapter,
    rows: tuple[Tensor, Tensor],
    images_of: Callable[[Tensor], Tensor],
    labels: Tensor,
    at_once: int,
) -> Tensor:
    """Logits `(E, N*Q, N)` of a chunk of episodes; rows `(E, N*K)` of the support and `(E, N*Q)` of the queries."""

    def one(support: Tensor, query: Tensor) -> Tensor:
        return adapter.logits(adapter.fit(support, labels, under_vmap=True), support, query, under_vmap=True)

    def some(adapter: Adapter, rows: tuple[Tensor, Tensor]) -> Tensor:
        support, query = map(images_of, rows)
        adapted = adapter.fit_each(support, labels)
        return torch.stack([adapter.logits(*each) for each in zip(adapted, support, query, strict=True)])

    with torch.no_grad():
        if adapter.how.head in ("linear", "icfil"):
            # scikit-learn takes one at a time, and an optimiser has threads of its own.
            return some(adapter, rows)
        if labels.device.type != "cpu":
            return torch.func.vmap(one)(*map(images_of, rows))
        # vmap has nothing to fill here: each thread takes as many episodes as are best worked on at once.
        groups = list(zip(*(part.split(at_once) for part in rows), strict=True))
        return torch.cat(thread_map(lambda: partial(some, copy.deepcopy(adapter)), groups))


def _all_features(
    extract: FeatureExtractor, dataset: FewShotDataset, rows: Tensor, device: torch.device, processes: Processes
) -> Tensor:
    """L2-normalised features `(len(rows), D)`."""
    height, width = dataset.images.shape[-2:]
    batch = max(1, PIXELS_AT_ONCE // (height * width))

    def features_of(part: Tensor) -> Tensor:
        images = _channels_last(_images(dataset, part, (height, width), device))
        return F.normalize(extract(images).float(), dim=-1)

    with torch.no_grad():
        return torch.cat(processes.map(features_of, rows.split(batch)))


def _images(dataset: FewShotDataset, rows: Tensor, size: tuple[int, int], device: torch.device) -> Tensor:
    """Images `(*rows.shape, 3, H, W)` in [0, 1], of the network's input size."""
    images = to_unit(dataset.images[rows.flatten().to(dataset.images.device)].to(device))
    return resize(images, size).unflatten(0, rows.shape)


def _channels_last(images: Tensor) -> Tensor:
    """The same images, laid out as a CPU's convolution and pooling want them (about twice as fast on conv4)."""
    return images.contiguous(memory_format=torch.channels_last) if images.device.type == "cpu" else images


def _labels(exam: Exam, shots: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Labels of an episode's support `(N*K,)` and queries `(N*Q,)`, both ordered by class."""
    ways = torch.arange(exam.ways, device=device)
    return ways.repeat_interleave(shots), ways.repeat_interleave(exam.queries)


def _input_size(network: nn.Module) -> tuple[int, int]:
    settings: dict = network.pretrained_cfg  # type: ignore[assignment]
    _, height, width = settings["input_size"]
    return height, width


def _chunk_size(size: tuple[int, int], device: torch.device, at_once: int) -> int:
    """Episodes in a chunk: 100 of 32x32 pixels; on a CPU 24, or as many as its threads work on at once."""
    pixels = size[0] * size[1]
    if device.type != "cpu":
        return max(1, 100 * 32 * 32 // pixels)
    return at_once * max(torch.get_num_threads(), 24 * 32 * 32 // (pixels * at_once))


def _result(
    dataset: FewShotDataset,
    exam: Exam,
    shots: int,
    method: str,
    accuracies: Tensor,
    seconds: float,
    command: str | None,
    bn: BatchNorm | None = None,
) -> Result:
    mean, interval = mean_and_interval(100 * accuracies)
    return Result(
        method=method,
        dataset=dataset.name,
        ways=exam.ways,
        shots=shots,
        bn=bn or exam.bn,
        head=exam.head,
        episodes=exam.episodes,
        metric="accuracy",
        mean=round(mean, 4),
        ci95=round(interval, 4),
        seed=exam.seed,
        split=dataset.split,
        seconds=round(seconds, 2),
        command=command or this_command(),
    )


def _watched(items: Iterable[Item], description: str, total: int | None, unit: str, shown: bool) -> Iterable[Item]:
    return progress_bar(items, description=description, total=total, unit=unit) if shown else items
