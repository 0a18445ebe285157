"""Grouping (TGR): by what members know, by their architecture, and whether it comes out alike twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
from figures import WAYS, Measured, rank_correlation
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from hf_dfml.data import FewShotDataset
from hf_dfml.learning.filter_fisher import filter_fisher, standardised_dissimilarities
from hf_dfml.learning.grouping import group_tasks
from hf_dfml.learning.probe import load_probe
from hf_dfml.learning.recognition import confusion, unfamiliarity
from hf_dfml.pool import ModelPool
from hf_dfml.pool.building.build import build_pool
from hf_dfml.pool.building.training import PoolRecipe
from hf_dfml.pool.teacher import Teacher
from hf_dfml.recovery.inversion import RecoveryConfig, recover
from hf_dfml.utils.images import to_unit
from hf_dfml.utils.seeding import fork
from mechanism.options import Options


def measure_grouping(found: Measured[Options], pool: ModelPool, real: Callable[[], FewShotDataset]) -> None:
    """Whether groups come from what members know, and come out alike from another recovery, by either measure."""
    options = found.options
    members = pool[: options.embedded]
    classes = [set(entry.class_names) for entry in members]
    shared = torch.tensor([[float(len(a & b)) for b in classes] for a in classes])
    ties = torch.rand(shared.shape, generator=fork(options.seed, "ties"))
    best = rank_correlation(shared + 1e-3 * (ties + ties.T), shared)
    found.note("grouping_overlap_ceiling", best, "the most that the next can be, as most pairs share no class")
    probe = load_probe(options.probe, pool, options.probe_size)
    measures: dict[str, Callable[[ModelPool, list[Shown]], Tensor]] = {
        "": partial(by_filters, probe, options),
        "_answers": by_answers,
    }
    recovered = [recovered_images(members, options, f"recovery-{seed}") for seed in (0, 1)]
    mixed = mixed_pool(options)
    kinds = [entry.architecture for entry in mixed]
    other = torch.tensor([[float(a != b) for b in kinds] for a in kinds])
    of_mixed = recovered_images(mixed, options, "mixed")
    photographs = [real_images(members, options, f"real-{seed}", real()) for seed in (0, 1) if options.real_images]
    for suffix, measure in measures.items():
        by = "what members take each other's images for" if suffix else "filters' Fisher information"
        matrices = [measure(members, shown) for shown in recovered]
        found.note(
            f"grouping_overlap{suffix}",
            -rank_correlation(matrices[0], shared),
            f"rank correlation of two members' dissimilarity, by {by}, with minus the number of classes they share "
            f"({len(members)} members, {options.embedded_images} recovered images a class)",
        )
        groups = [group_tasks(matrix, options.groups) for matrix in matrices]
        found.note(
            f"grouping_rand{suffix}",
            rand_index(*groups),
            f"adjusted Rand index of the {options.groups} groups from two recovery seeds",
        )
        found.note(
            f"grouping_within{suffix}",
            mean(shared_within(shared, part) for part in groups),
            "classes that two members of a group share, over what any two share (both seeds): 1 for random groups, "
            "less where unlike members are put together",
        )
        found.note(
            f"grouping_repeats{suffix}",
            rank_correlation(*matrices),
            "rank correlation of the dissimilarities from two recovery seeds",
        )
        if photographs:
            seen = [measure(members, shown) for shown in photographs]
            found.note(
                f"grouping_overlap_real{suffix}",
                -rank_correlation(seen[0], shared),
                f"as grouping_overlap{suffix}, with real images of the members' classes",
            )
            found.note(
                f"grouping_rand_real{suffix}",
                rand_index(*(group_tasks(matrix, options.groups) for matrix in seen)),
                "adjusted Rand index of the groups from two draws of real images",
            )
            found.note(
                f"grouping_recovered_real{suffix}",
                rank_correlation(matrices[0], seen[0]),
                "rank correlation of dissimilarities by recovered and by real images",
            )
        if suffix:
            matrix = measure(mixed, of_mixed)
        else:
            matrix = by_filters(load_probe(options.probe, mixed, options.probe_size), options, mixed, of_mixed)
        found.note(
            f"grouping_architecture{suffix}",
            rank_correlation(matrix, other),
            f"rank correlation of dissimilarity with another architecture ({len(mixed)} members of glyphs, "
            f"{', '.join(dict.fromkeys(map(str, kinds)))})",
        )


def shared_within(shared: Tensor, groups: Sequence[Sequence[int]]) -> float:
    """Mean number of classes shared by two members of a group, over that of any two."""
    pairs = torch.ones_like(shared, dtype=torch.bool).fill_diagonal_(False)
    together = torch.zeros_like(pairs)
    for group in groups:
        rows = torch.tensor(list(group))
        together[rows[:, None], rows] = True
    return float(shared[pairs & together].mean() / shared[pairs].mean())


class Shown(NamedTuple):
    """Images `(N, 3, H, W)` in [0, 1] of a member's classes, and their labels `(N,)`."""

    images: Tensor
    labels: Tensor


def recovered_images(pool: ModelPool, options: Options, name: str) -> list[Shown]:
    """By member what was recovered from it."""
    recovery = RecoveryConfig(
        recovery="pixels",
        recovery_steps=2 if options.quick else 60,
        recovery_lr=0.1,
        images_per_class=options.embedded_images,
        tv_weight=0.1,
        shift=2,
    )
    tasks = (
        recover(pool.load(index), recovery, entry.input_size[-1], fork(options.seed, "grouping", name, index))
        for index, entry in enumerate(pool)
        if entry.input_size
    )
    return [Shown(task.images, task.labels) for task in tasks]


def real_images(pool: ModelPool, options: Options, name: str, real: FewShotDataset) -> list[Shown]:
    """By member as many photographs of its classes."""
    found = []
    for index, entry in enumerate(pool):
        generator, drawn = fork(options.seed, "grouping", name, index), []
        for class_name in entry.class_names:
            rows = (real.labels == real.class_names.index(class_name)).nonzero().flatten()
            drawn.append(rows[torch.randperm(len(rows), generator=generator)[: options.embedded_images]])
        labels = torch.arange(len(drawn)).repeat_interleave(torch.tensor([len(rows) for rows in drawn]))
        found.append(Shown(to_unit(real.images[torch.cat(drawn)]), labels))
    return found


def by_filters(probe: Teacher, options: Options, pool: ModelPool, shown: list[Shown]) -> Tensor:
    """Dissimilarities by the Fisher information of a probe's filters."""
    embeddings = [
        filter_fisher(probe, images, fork(options.seed, "labels", index)) for index, (images, _) in enumerate(shown)
    ]
    return standardised_dissimilarities(torch.stack(embeddings))


def by_answers(pool: ModelPool, shown: list[Shown]) -> Tensor:
    """Dissimilarities by what members take each other's images for."""
    everything = [(*each, entry.num_classes or WAYS) for each, entry in zip(shown, pool, strict=True)]
    return unfamiliarity([confusion(pool.load(index), everything) for index in range(len(pool))])


def rand_index(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> float:
    """Adjusted for chance: 0 on average for random groups, 1 for the same groups."""
    labels = []
    for groups in (first, second):
        group_of = {member: number for number, group in enumerate(groups) for member in group}
        labels.append([group_of[member] for member in sorted(group_of)])
    return float(adjusted_rand_score(*labels))


def mixed_pool(options: Options) -> ModelPool:
    """Members of several architectures on one data set, built when missing."""
    recipe = replace(PoolRecipe.fast(flip=False), epochs=1 if options.quick else 6, batch_size=32)
    folders = []
    for arch in ("conv4", "conv4_64", "resnet10t")[: 2 if options.quick else 3]:
        folders.append(Path(options.mixed) / arch)
        count = 2 if options.quick else 5
        build_pool("glyphs", output=folders[-1], arch=arch, num_models=count, recipe=recipe, seed=options.seed)
    return ModelPool.open(",".join(map(str, folders))).resolve()
