"""Meta-testing: mean accuracy and 95 % interval over few-shot episodes of classes that nobody has been trained on."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from hf_dfml.data.few_shot import FewShotDataset
from hf_dfml.evaluation.frozen_features import evaluate_features
from hf_dfml.evaluation.heads import HEADS, Head, represented
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
    device = torch.device(device) if device is not None else next(network.parameters()).device
    network, size = network.to(device), _input_size(network)
    if HEADS[protocol.head].on_features and protocol.bn == "running":
        was_training = network.training
        network.eval()

        def features(images: Tensor) -> Tensor:
            return functional_forward(network, {}, resize(images, size), source="running", features=True)

        try:
            rows = evaluate_features(
                represented(network, features, protocol.representation),
                dataset,
                protocol,
                method=method,
                device=device,
                command=command,
                progress=progress,
                processes=processes,
            )
            return [replace(row, image_size=size[-1]) for row in rows]
        finally:
            network.train(was_training)
    results = []
    for shots in protocol.shots:
        started = time.monotonic()
        accuracies = episode_accuracies(
            network,
            dataset,
            protocol,
            shots,
            chunk_size=chunk_size,
            processes=processes,
            description=f"{method}, {shots}-shot" if progress else "",
        )
        seconds = time.monotonic() - started
        results.append(result_row(dataset, protocol, shots, method, accuracies, seconds, command, size[-1]))
    return results


@torch.inference_mode(False)  # Adaptation takes gradients, whatever the caller is in.
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
    weights = next(network.parameters())
    if weights.device.type == "cpu":
        keep_freed_memory()
    size = _input_size(network)
    head = HEADS[protocol.head](network, protocol.ways, protocol.adaptation, protocol.options)
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
        predicted = _episode_logits(head, rows, images_of, support_labels, at_once).argmax(-1)
        return (predicted == query_labels).float().mean(-1).cpu()

    bar = watched(chunks, description, len(chunks), "chunk", bool(description))
    return torch.cat(processes.map(accuracies_of, bar)).cpu()


def _episode_logits(
    head: Head,
    rows: tuple[Tensor, Tensor],
    images_of: Callable[[Tensor], Tensor],
    labels: Tensor,
    at_once: int,
) -> Tensor:
    """Logits `(E, N*Q, N)` of a chunk of episodes; rows `(E, N*K)` of the support and `(E, N*Q)` of the queries."""

    def one(support: Tensor, query: Tensor) -> Tensor:
        return head.logits(head.fit(support, labels, under_vmap=True), support, query, under_vmap=True)

    def some(head: Head, rows: tuple[Tensor, Tensor]) -> Tensor:
        support, query = map(images_of, rows)
        adapted = head.fit_each(support, labels)
        return torch.stack([head.logits(*each) for each in zip(adapted, support, query, strict=True)])

    with torch.no_grad():
        if not head.vectorises:
            return some(head, rows)
        if labels.device.type != "cpu":
            return torch.func.vmap(one)(*map(images_of, rows))
        # vmap has nothing to fill here: each thread takes as many episodes as are best worked on at once.
        groups = list(zip(*(part.split(at_once) for part in rows), strict=True))
        return torch.cat(thread_map(lambda: partial(some, copy.deepcopy(head)), groups))


def _input_size(network: nn.Module) -> tuple[int, int]:
    _, height, width = network_info(network).input_size
    return height, width


def _chunk_size(size: tuple[int, int], device: torch.device, at_once: int) -> int:
    """Episodes in a chunk: 100 of 32x32 pixels; on a CPU 24, or as many as its threads work on at once."""
    pixels = size[0] * size[1]
    if device.type != "cpu":
        return max(1, 100 * 32 * 32 // pixels)
    return at_once * max(torch.get_num_threads(), 24 * 32 * 32 // (pixels * at_once))
