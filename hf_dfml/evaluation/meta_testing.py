"""Meta-testing: mean accuracy and 95 % interval over few-shot episodes of classes that nobody has been trained on."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_dfml.data.few_shot import FewShotDataset
from hf_dfml.evaluation.frozen_features import EpisodeImages
from hf_dfml.evaluation.heads import HEADS, FeatureHead, Head
from hf_dfml.evaluation.heads.features import combined, logits_of_each, views
from hf_dfml.evaluation.protocol import (
    EvaluationProtocol,
    draw_episodes,
    episode_labels,
    images_of_rows,
    result_row,
    watched,
)
from hf_dfml.evaluation.results import Result
from hf_dfml.networks.functional import functional_forward
from hf_dfml.networks.info import network_info
from hf_dfml.networks.side_by_side import how_many
from hf_dfml.utils.images import resize
from hf_dfml.utils.memory import keep_freed_memory
from hf_dfml.utils.processes import ALONE, Processes
from hf_dfml.utils.threads import thread_map


def evaluate(
    network: nn.Module,
    dataset: FewShotDataset,
    protocol: EvaluationProtocol,
    *,
    method: str,
    device: torch.device | str | None = None,
    chunk_size: int | None = None,
    command: str | None = None,
    progress: bool = True,
    processes: Processes = ALONE,
) -> list[Result]:
    """Evaluate a network.

    Episodes depend on the evaluation's seed, the split, ways and shots alone: all contestants get the same ones.

    Args:
        network: any that `network_info` knows; its mean, std and input size are applied to the images, and it is not
            changed.
        dataset: classes of the evaluation; its own split is what the rows name.
        protocol: the protocol. A network with another number of outputs than `protocol.ways` is fine-tuned with a head
            that is rebuilt from each support set.
        method: how the table calls the network.
        device: where; by default where the network is.
        chunk_size: episodes in memory at once; by default as many as fit a small machine.
        command: what a user types to get the rows again; this process's command by default.
        progress: whether to show a bar.
        processes: among which the episodes are divided; the rows are the same on all.

    Returns:
        One row a number of shots.

    Raises:
        ValueError: if the data set has too few classes or images for the evaluation.
    """
    (rows,) = evaluate_each(
        network,
        dataset,
        [protocol],
        method=method,
        device=device,
        chunk_size=chunk_size,
        command=command,
        progress=progress,
        processes=processes,
    )
    return rows


def evaluate_each(
    network: nn.Module,
    dataset: FewShotDataset,
    protocols: Sequence[EvaluationProtocol],
    *,
    method: str,
    device: torch.device | str | None = None,
    chunk_size: int | None = None,
    command: str | None = None,
    progress: bool = True,
    processes: Processes = ALONE,
) -> Iterator[list[Result]]:
    """Evaluate a network under several protocols, which share the passes that they have in common.

    Heads on features under the same batch norm and on the same episodes share their passes, whatever they make of the
    features and whether they see mirror images too; `seconds` of their rows is an equal share of what these took. The
    accuracies are those of `evaluate`, bit for bit.

    Args:
        network: as in `evaluate`.
        dataset: as in `evaluate`.
        protocols: each with an adaptation of its own (`EvaluationProtocol.under`).
        method: as in `evaluate`, as are all further arguments.

    Yields:
        For each protocol in turn one row a number of shots, as soon as they are known.

    Raises:
        ValueError: if the data set has too few classes or images for the evaluation.
    """
    device = torch.device(device) if device is not None else next(network.parameters()).device
    network = network.to(device)
    found: dict[int, list[Result]] = {}
    for place, protocol in enumerate(protocols):
        if place not in found:
            alike = _passes(protocol)
            further = [other for other in range(place + 1, len(protocols)) if alike == _passes(protocols[other])]
            places = [place, *(further if alike else ())]
            some = [protocols[each] for each in places]
            if _sees_images_once(protocol):
                rows = _frozen_rows(network, dataset, some, method, device, command, processes)
            else:
                rows = _episode_rows(network, dataset, some, method, chunk_size, command, progress, processes)
            found |= dict(zip(places, rows, strict=True))
        yield found[place]


def _passes(protocol: EvaluationProtocol) -> Hashable | None:
    """What protocols have in common that share their passes; None for one that shares them with no other."""
    kind = HEADS[protocol.head]
    shares = issubclass(kind, FeatureHead) and kind.shares_passes()
    if _sees_images_once(protocol):
        how: Hashable = "each image once"
    elif shares:
        how = (protocol.bn, kind.vectorises)
    else:
        return None
    return how, protocol.ways, tuple(protocol.shots), protocol.queries, protocol.episodes, protocol.seed


def _sees_images_once(protocol: EvaluationProtocol) -> bool:
    return HEADS[protocol.head].on_features and protocol.bn == "running"


def _frozen_rows(
    network: nn.Module,
    dataset: FewShotDataset,
    protocols: Sequence[EvaluationProtocol],
    method: str,
    device: torch.device,
    command: str | None,
    processes: Processes,
) -> list[list[Result]]:
    """Rows of each protocol of a head on features under stored statistics, which are the same in all episodes."""
    started, size, was_training = time.monotonic(), _input_size(network), network.training
    images = EpisodeImages(dataset, protocols[0], device, processes)
    scorers = [images.scorer(protocol) for protocol in protocols]
    flips = any(protocol.flips for protocol in protocols)

    def features(images: Tensor) -> Tensor:
        return functional_forward(network, {}, resize(images, size), source="running", features=True)

    def see(images: Tensor) -> list[Tensor]:
        seen = views(features, flips, images)
        return [F.normalize(combined(network, seen, each.adaptation).float(), dim=-1) for each in protocols]

    network.eval()
    try:
        for scorer, given in zip(scorers, images.through(see), strict=True):
            scorer.add(given)
    finally:
        network.train(was_training)
    seconds = (time.monotonic() - started) / len(protocols)
    found = [scorer.rows(method, seconds, command) for scorer in scorers]
    return [[replace(row, image_size=size[-1], architecture=_architecture(network)) for row in rows] for rows in found]


def _episode_rows(
    network: nn.Module,
    dataset: FewShotDataset,
    protocols: Sequence[EvaluationProtocol],
    method: str,
    chunk_size: int | None,
    command: str | None,
    progress: bool,
    processes: Processes,
) -> list[list[Result]]:
    """Rows of each protocol, of one head or of heads that share their passes, adapted to each episode."""
    found: list[list[Result]] = [[] for _ in protocols]
    for shots in protocols[0].shots:
        started = time.monotonic()
        accuracies = _accuracies(
            network,
            dataset,
            protocols,
            shots,
            chunk_size=chunk_size,
            processes=processes,
            description=f"{method}, {shots}-shot" if progress else "",
        )
        seconds, size = (time.monotonic() - started) / len(protocols), _input_size(network)[-1]
        for rows, protocol, values in zip(found, protocols, accuracies, strict=True):
            row = result_row(dataset, protocol, shots, method, values, seconds, command, size)
            rows.append(replace(row, architecture=_architecture(network)))
    return found


def episode_accuracies(
    network: nn.Module,
    dataset: FewShotDataset,
    protocol: EvaluationProtocol,
    shots: int,
    *,
    chunk_size: int | None = None,
    processes: Processes = ALONE,
    description: str = "",
) -> Tensor:
    """Accuracies `(E,)` in [0, 1] of a network that is adapted to each episode of an evaluation, in its own precision.

    An accelerator has a chunk of episodes at once. On a CPU each of PyTorch's threads has one after the other.

    Args:
        network: as in `evaluate`, on its device.
        dataset: classes of the evaluation.
        protocol: the protocol.
        shots: support images a class.
        chunk_size: episodes at once; by default as many as fit a small machine.
        processes: among which the episodes are divided.
        description: of the progress bar; none without.
    """
    (accuracies,) = _accuracies(
        network, dataset, [protocol], shots, chunk_size=chunk_size, processes=processes, description=description
    )
    return accuracies


@torch.inference_mode(False)  # Adaptation takes gradients, whatever the caller is in.
def _accuracies(
    network: nn.Module,
    dataset: FewShotDataset,
    protocols: Sequence[EvaluationProtocol],
    shots: int,
    *,
    chunk_size: int | None,
    processes: Processes,
    description: str,
) -> Tensor:
    """`episode_accuracies` under each protocol, of one head or of heads that share their passes: `(P, E)`."""
    weights = next(network.parameters())
    if weights.device.type == "cpu":
        keep_freed_memory()
    protocol, size = protocols[0], _input_size(network)
    heads: list[Head] = []
    for each in protocols:
        # The first one copies the network where that must be.
        seen = heads[0].network if heads else network
        heads.append(HEADS[each.head](seen, each.ways, each.adaptation, each.options))
    support_rows, query_rows = draw_episodes(dataset, protocol, shots)
    support_labels, query_labels = episode_labels(protocol, shots, weights.device)
    at_once = how_many(network, protocol.ways * shots * size[0] * size[1])
    # Whole groups of episodes that are worked on at once, so that rounding does not depend on chunks and processes.
    share = -(-protocol.episodes // (processes.count * at_once)) * at_once
    chunk = chunk_size or min(_chunk_size(size, weights.device, at_once), share)
    chunks = list(zip(support_rows.split(chunk), query_rows.split(chunk), strict=True))

    def images_of(rows: Tensor) -> Tensor:
        return images_of_rows(dataset, rows, size, weights.device).to(weights.dtype)

    def accuracies_of(rows: tuple[Tensor, Tensor]) -> Tensor:
        logits = _episode_logits(heads, rows, images_of, support_labels, at_once)
        predicted = torch.stack([each.argmax(-1) for each in logits])
        return (predicted == query_labels).float().mean(-1).cpu()

    bar = watched(chunks, description, len(chunks), "chunk", bool(description))
    return torch.cat(processes.map(accuracies_of, bar), dim=1).cpu()


def _episode_logits(
    heads: Sequence[Head],
    rows: tuple[Tensor, Tensor],
    images_of: Callable[[Tensor], Tensor],
    labels: Tensor,
    at_once: int,
) -> Sequence[Tensor]:
    """Of each head logits `(E, N*Q, N)` of a chunk of episodes; rows `(E, N*K)` of support, `(E, N*Q)` of queries."""

    def one(support: Tensor, query: Tensor) -> tuple[Tensor, ...]:
        if len(heads) > 1:
            return tuple(logits_of_each(heads, support, labels, query, under_vmap=True))  # type: ignore[arg-type]
        (head,) = heads
        return (head.logits(head.fit(support, labels, under_vmap=True), support, query, under_vmap=True),)

    def some(heads: Sequence[Head], rows: tuple[Tensor, Tensor]) -> list[Tensor]:
        support, query = map(images_of, rows)
        if len(heads) > 1:
            pairs = zip(support, query, strict=True)
            found = [logits_of_each(heads, part, labels, asked) for part, asked in pairs]  # type: ignore[arg-type]
        else:
            (head,) = heads
            adapted = head.fit_each(support, labels)
            found = [[head.logits(*each)] for each in zip(adapted, support, query, strict=True)]
        return [torch.stack(logits) for logits in zip(*found, strict=True)]

    with torch.no_grad():
        if not heads[0].vectorises:
            return some(heads, rows)
        if labels.device.type != "cpu":
            return torch.func.vmap(one)(*map(images_of, rows))
        # vmap has nothing to fill here: each thread takes as many episodes as are best worked on at once.
        groups = list(zip(*(part.split(at_once) for part in rows), strict=True))
        parts = thread_map(lambda: partial(some, copy.deepcopy(heads)), groups)
        return [torch.cat(logits) for logits in zip(*parts, strict=True)]


def _architecture(network: nn.Module) -> str:
    return network_info(network).settings.get("architecture") or type(network).__name__


def _input_size(network: nn.Module) -> tuple[int, int]:
    _, height, width = network_info(network).input_size
    return height, width


def _chunk_size(size: tuple[int, int], device: torch.device, at_once: int) -> int:
    """Episodes in a chunk: 100 of 32x32 pixels; on a CPU 24, or as many as its threads work on at once."""
    pixels = size[0] * size[1]
    if device.type != "cpu":
        return max(1, 100 * 32 * 32 // pixels)
    return at_once * max(torch.get_num_threads(), 24 * 32 * 32 // (pixels * at_once))
