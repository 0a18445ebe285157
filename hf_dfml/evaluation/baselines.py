"""What a meta-model must beat: random weights, the pool's average, its best member, prototypes on its features."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from hf_dfml.data.few_shot import FewShotDataset
from hf_dfml.evaluation.frozen_features import evaluate_features
from hf_dfml.evaluation.heads import Head
from hf_dfml.evaluation.meta_testing import evaluate
from hf_dfml.evaluation.protocol import EvaluationProtocol
from hf_dfml.evaluation.results import Record, Result, ignore
from hf_dfml.learning.fusion import average_state
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.formats.loading import build_network
from hf_dfml.pool.model_pool import ModelPool
from hf_dfml.utils.processes import ALONE, Processes
from hf_dfml.utils.seeding import fork

logger = logging.getLogger(__name__)


def evaluate_baselines(
    pool: ModelPool,
    dataset: FewShotDataset,
    protocol: EvaluationProtocol,
    *,
    all_features: bool = True,
    heads: Sequence[Head] = ("prototype",),
    device: torch.device | str = "cpu",
    command: str | None = None,
    progress: bool = True,
    processes: Processes = ALONE,
    record: Record = ignore,
) -> list[Result]:
    """Evaluate the pool without any meta-learning, on the episodes of every other row.

    - `Random init`: the members' architecture with fresh weights, under the evaluation's head and batch norm.
    - `Average`: the element-wise average of the members of the most common architecture, likewise.
    - `Best member`: the member with the highest stored accuracy, likewise. (`First member` where none stores one.)
    - `Best member + prototype`: the same member's features, its running statistics, nearest class mean by cosine.
    - `All members + prototype`: all members' features side by side, likewise.

    The first three need networks that timm builds; a pool of transformers models has the last two only, and a warning
    says so.

    Args:
        pool: the teachers.
        dataset: classes of the evaluation.
        protocol: the protocol.
        all_features: whether to run the last one, which passes every image of the split through every member.
        heads: how features are compared in the last two: `prototype`, `mirrored`, or both.
        device: where.
        command: what a user types to get the rows again.
        progress: whether to show bars.
        processes: among which each evaluation is divided.
        record: is given the rows so far after each contestant.

    Returns:
        One row a contestant and number of shots.

    Raises:
        ValueError: if the pool is empty.
    """
    if not len(pool):
        raise ValueError("The pool has no member, so it sets no baseline: give one with at least one usable member.")
    pool = pool.resolve().to(device)
    options: dict[str, Any] = {"device": device, "command": command, "progress": progress, "processes": processes}
    best, best_name = best_member(pool)
    results: list[Result] = []
    kind = largest_kind(pool)
    if kind:
        results += evaluate(random_network(kind[0], protocol), dataset, protocol, method="Random init", **options)
        record(results)
        name = "Average" if len(kind) == len(pool) else f"Average, {len(kind)} of {len(pool)} members"
        results += evaluate(average_network(kind), dataset, protocol, method=name, **options)
        record(results)
    shown_below = protocol.bn == "running" and protocol.head in heads
    if best.library == "timm" and not shown_below:
        results += evaluate(pool.load(best).network, dataset, protocol, method=best_name, **options)
        record(results)
    if not kind or best.library != "timm":
        logger.warning("The pool's transformers members cannot be fine-tuned: some baselines are left out.")
    for head in heads:
        frozen = replace(protocol, head=head, bn="running")
        results += evaluate_features(
            pool.load(best).features, dataset, frozen, method=f"{best_name} + prototype", **options
        )
        record(results)
        if all_features:
            results += evaluate_features(
                (pool.load(entry).features for entry in pool),
                dataset,
                frozen,
                method=f"All {len(pool)} members + prototype",
                num_extractors=len(pool),
                **options,
            )
            record(results)
    return results


def best_member(pool: ModelPool) -> tuple[PoolEntry, str]:
    """The member with the highest stored accuracy and what tables call it; the first one where none stores any."""
    known = [entry for entry in pool if entry.val_accuracy is not None]
    if not known:
        return pool[0], "First member"
    return max(known, key=lambda entry: entry.val_accuracy or 0.0), "Best member"


def largest_kind(pool: ModelPool) -> ModelPool | None:
    """The members of the most common network that timm builds, or None where timm builds none of them."""
    kinds = Counter(_kind(entry) for entry in pool if entry.library == "timm")
    if not kinds:
        return None
    most_common = kinds.most_common(1)[0][0]
    return pool.filter(lambda entry: entry.library == "timm" and _kind(entry) == most_common)


def random_network(entry: PoolEntry, protocol: EvaluationProtocol) -> nn.Module:
    """The network of a member with fresh weights and `protocol.ways` outputs; the evaluation's seed fixes them."""
    seed = int(torch.randint(2**62, (), generator=fork(protocol.seed, "random init")))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(replace(entry, num_classes=protocol.ways, label_names=(), classes=None))


def average_network(pool: ModelPool) -> nn.Module:
    """The element-wise average of members that are networks of one shape, one member in memory at a time."""
    states = (pool.load(entry).network.state_dict() for entry in pool)
    network = copy.deepcopy(pool.load(0).network)
    network.load_state_dict(average_state(states, [entry.id for entry in pool]))
    return network


def _kind(entry: PoolEntry) -> tuple:
    return entry.architecture, entry.num_classes, entry.input_size, repr(sorted(entry.model_args.items()))
