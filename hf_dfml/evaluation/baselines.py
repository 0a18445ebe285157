"""What a meta-model must beat: random weights, the pool's average, its best member, prototypes on its features."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_dfml.data.few_shot import FewShotDataset
from hf_dfml.evaluation.frozen_features import EpisodeImages
from hf_dfml.evaluation.frozen_members import FrozenMembers
from hf_dfml.evaluation.meta_testing import evaluate
from hf_dfml.evaluation.protocol import EvaluationProtocol
from hf_dfml.evaluation.results import Record, Result, ignore
from hf_dfml.learning.fusion import average_state
from hf_dfml.networks.info import Representation
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.formats.loading import build_network
from hf_dfml.pool.model_pool import ModelPool
from hf_dfml.pool.teacher import Teacher
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.utils.processes import ALONE, Processes
from hf_dfml.utils.seeding import fork

logger = logging.getLogger(__name__)

Rows = list[Result]


@dataclass(frozen=True)
class Setting:
    """What baselines are evaluated on.

    Attributes:
        pool: the teachers.
        kind: those of the most common network that timm builds, or None where timm builds none of them.
        protocol: the protocol of networks.
        frozen: the protocols of features, under running statistics.
        networks: `evaluate`, but for network, protocol and method.
        members: rows of features and probabilities, which share their passes.
    """

    pool: ModelPool
    kind: ModelPool | None
    protocol: EvaluationProtocol
    frozen: Sequence[EvaluationProtocol]
    networks: Callable[..., Rows]
    members: FrozenMembers


def random_init(at: Setting) -> Rows:
    """The members' architecture with fresh weights, under the evaluation's head and batch norm."""
    if not at.kind:
        return []
    return at.networks(random_network(at.kind[0], at.protocol), protocol=at.protocol, method="Random init")


def average(at: Setting) -> Rows:
    """The element-wise average of the members of the most common architecture, likewise."""
    if not at.kind:
        return []
    name = "Average" if len(at.kind) == len(at.pool) else f"Average, {len(at.kind)} of {len(at.pool)} members"
    return at.networks(average_network(at.kind), protocol=at.protocol, method=name)


def best(at: Setting) -> Rows:
    """The member with the highest stored accuracy, likewise; nothing where `best_features` are the same rows."""
    member, name = best_member(at.pool)
    if member.library != "timm" or at.protocol in at.frozen:
        return []
    return at.networks(at.pool.load(member).network, protocol=at.protocol, method=name)


def best_features(at: Setting) -> Rows:
    """The same member's features, its running statistics, nearest class mean by cosine."""
    member, name = best_member(at.pool)
    return at.members.of_one(member, f"{name} + prototype")


def all_features(at: Setting) -> Rows:
    """All members' features side by side, likewise; passes every image of the split through every member."""
    return at.members.of_all("features", f"All {len(at.pool)} members + prototype")


def all_answers(at: Setting) -> Rows:
    """All members' probabilities side by side, likewise; the passes are those of `all_features`."""
    return at.members.of_all("answers", f"All {len(at.pool)} members + prototype")


def probabilities_of(member: Teacher, images: Tensor) -> Tensor:
    """What a member answers: images `(B, 3, H, W)` in [0, 1] -> probabilities `(B, C)`."""
    return member(images).softmax(-1)


BASELINES: tuple[Callable[[Setting], Rows], ...] = (
    random_init,
    average,
    best,
    best_features,
    all_features,
    all_answers,
)
"""In the order of the tables."""

MADE_OF: dict[Callable[[Setting], Rows], Representation] = {
    best_features: "features",
    all_features: "features",
    all_answers: "answers",
}
"""What of the members' outputs baselines are made of that leave the members as they are."""


def evaluate_baselines(
    pool: ModelPool,
    dataset: FewShotDataset,
    protocol: EvaluationProtocol,
    *,
    baselines: Sequence[Callable[[Setting], Rows]] = BASELINES,
    flips: bool = False,
    device: torch.device | str = "cpu",
    command: str | None = None,
    progress: bool = True,
    processes: Processes = ALONE,
    record: Record = ignore,
) -> list[Result]:
    """Evaluate the pool without any meta-learning, on the episodes of every other row.

    A pool of transformers models has rows on features only, and a warning says so.

    Args:
        pool: the teachers.
        dataset: classes of the evaluation.
        protocol: the protocol, of which `representation` is that of meta-models: networks are seen by their features.
        baselines: which of `BASELINES`.
        flips: whether rows on features are made with flips too.
        device: where.
        command: what a user types to get the rows again.
        progress: whether to show bars.
        processes: among which each evaluation is divided.
        record: is given the rows of each baseline as they are measured.

    Returns:
        One row a contestant and number of shots. The first member stands for the best where none stores an accuracy.

    Raises:
        ValueError: if the pool is empty.
    """
    if not len(pool):
        raise ValueError("The pool has no member, so it sets no baseline: give one with at least one usable member.")
    pool = pool.resolve().to(device)
    options: dict[str, Any] = {"command": command, "progress": progress}
    # Fresh, averaged and single networks predict no answers of a pool's members, whatever a meta-model does.
    ours = replace(protocol.adaptation, representation="features")
    protocol = protocol.under(ours)
    prototypes = protocol.under(replace(ours, bn="running", head="prototype", flips=False))
    frozen = [replace(prototypes, flips=each) for each in ((False, True) if flips else (False,))]
    kinds = [MADE_OF[baseline] for baseline in baselines if baseline in MADE_OF]
    images = EpisodeImages(dataset, protocol, device, processes)
    at = Setting(
        pool=pool,
        kind=largest_kind(pool),
        protocol=protocol,
        frozen=frozen,
        networks=partial(evaluate, dataset=dataset, device=device, processes=processes, **options),
        members=FrozenMembers(pool, images, frozen, kinds, **options),
    )
    if not at.kind or best_member(pool)[0].library != "timm":
        logger.warning("The pool's transformers members cannot be fine-tuned: some baselines are left out.")
    results: Rows = []
    for baseline in baselines:
        rows = [replace(row, pool=pool_kind(pool)) for row in baseline(at)]
        results += rows
        record(rows)
    return results


def pool_kind(pool: TeacherPool) -> str:
    """What kind of pool it is, as the papers' tables distinguish them: `one architecture`, `several domains`, ..."""
    if pool.answers_only:
        return "black boxes"  # The papers' figures that we know are of pools whose weights are seen.
    if len({entry.dataset for entry in pool if entry.dataset}) > 1:
        return "several domains"
    count = len({entry.architecture for entry in pool})
    return {1: "one architecture", 3: "three architectures"}.get(count, f"{count} architectures")


def best_member(pool: ModelPool) -> tuple[PoolEntry, str]:
    """The member with the highest stored accuracy and what tables call it; the first one where none stores any."""
    known = [entry for entry in pool if entry.val_accuracy is not None]
    if not known:
        return pool[0], "First member (no accuracy stored)"
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
