"""Members that are worth nothing, found by what they answer to images that show nothing: no data is needed.

A pool may hold networks that were never trained, answer the same to every image, have their labels in another order,
are sure of everything (weights out of scale), or are copies of each other. They cost as much as others and teach what
is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.sources.digests import weights_digest
from hf_dfml.pool.teacher import Teacher
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.recovery.information import entropy, information
from hf_dfml.recovery.procedural import procedural_images
from hf_dfml.utils.images import to_unit
from hf_dfml.utils.progress import progress

FEW = 5
"""Of fewer members none is compared with the others."""
LITTLE = 0.02
"""Share of the pool's median information in an answer below which a member is left out."""
LESS = 0.5
"""The same share for a member without a trace of training, in a pool of which half of the members have one: the
answers of members that know characters tell little of procedural images, and random weights tell a quarter of that."""
SURE = 0.02
"""Share of the pool's median entropy of an answer below which a member is left out."""
ALIKE = 1e-3
"""Largest difference of two members' probabilities that makes one a copy of the other."""
AGREEMENT = 0.25
"""Share of the pool's median agreement below which a member is left out."""
NOISE = 3.0
"""Standard deviations of the mean of COMPARISONS correlations of unrelated answers, below which the pool's median
agreement says nothing."""
COMPARISONS = 16
"""With other members on a class of the same name: fewer correlations are left to chance. By ten, a good member of a
pool of 30 had a mean of .00 to .06 where .33 was usual."""
UNIFORM = 0.3
"""Share of 1/C by which all probabilities of an untrained network of C classes may differ from it."""


def unsound_members(pool: TeacherPool, generator: torch.Generator) -> dict[str, str]:
    """The members that a run should not learn from, by id, and one line of each that says why.

    Each member is asked about procedural images. Members are compared with the median of the pool, so that a pool of
    one kind is never refused as a whole; see `reasons`.

    Args:
        pool: members whose weights are seen.
        generator: the source of the images, on the CPU.
    """
    images = _images(pool, generator)
    answers, as_made = [], []
    for teacher in progress(pool.stream(), description="Asking members", total=len(pool), unit="member"):
        answers.append(_answers(teacher, images))
        as_made.append(_all_as_made(teacher.network))
    digests = [weights_digest(entry) for entry in pool]
    return {pool[index].id: reason for index, reason in reasons(list(pool), answers, digests, as_made).items()}


def doubtful_members(pool: TeacherPool, generator: torch.Generator) -> dict[str, str]:
    """The members that may never have been trained, by id, and one line of each that says what speaks for it.

    It is a suspicion, from the member alone: each weight of each normalisation layer is as layers are made (weights 1
    or 0, biases 0), which the first training step changes; or, of a network without such layers, each answer to
    procedural images is nearly uniform. A trained network whose normalisation layers were frozen as they were made is
    suspected wrongly.

    Args:
        pool: members whose weights are seen.
        generator: the source of the images, on the CPU.
    """
    images, found = None, {}
    for teacher in progress(pool.stream(), description="Looking at weights", total=len(pool), unit="member"):
        if _normalisation(teacher.network):
            if _all_as_made(teacher.network):
                found[teacher.entry.id] = "its normalisation layers are as they are before the first training step"
            continue
        images = _images(pool, generator) if images is None else images
        if _nearly_uniform(_answers(teacher, images)):
            found[teacher.entry.id] = "it answers every image with nearly the same probability for each class"
    return {id: f"may not be trained: {sign}" for id, sign in found.items()}


def _images(pool: TeacherPool, generator: torch.Generator) -> Tensor:
    """Procedural images `(N, 3, H, W)` uint8 of the size of the largest members'; fewer large ones."""
    size = pool.image_size
    return procedural_images(256 if size <= 40 else 128 if size <= 100 else 48, size, generator)


@torch.no_grad()
def _answers(teacher: Teacher, images: Tensor) -> Tensor:
    """Its probabilities `(N, C)`, on the CPU."""
    parts = [teacher(to_unit(part).to(teacher.device)).float().softmax(-1).cpu() for part in images.split(16)]
    return torch.cat(parts)


def _normalisation(network: nn.Module) -> list[nn.Module]:
    """The normalisation layers with a weight, of any kind."""
    kinds = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    return [layer for layer in network.modules() if isinstance(layer, kinds) and layer.weight is not None]


def _all_as_made(network: nn.Module) -> bool:
    """Whether there are normalisation layers, and no optimiser can have changed any."""
    layers = _normalisation(network)
    return bool(layers) and all(map(_as_made, layers))


def _as_made(layer: Any) -> bool:
    """Whether no optimiser can have changed it; timm makes the last one of a residual block with weights 0."""
    weight, bias = layer.weight, getattr(layer, "bias", None)
    assert isinstance(weight, Tensor)
    return bool(torch.logical_or(weight == 1, weight == 0).all()) and (bias is None or not bias.any())


def _nearly_uniform(answers: Tensor) -> bool:
    classes = answers.shape[-1]
    return float((answers * classes - 1).abs().max()) < UNIFORM


def reasons(
    entries: Sequence[PoolEntry], answers: Sequence[Tensor], digests: Sequence[str], as_made: Sequence[bool] = ()
) -> dict[int, str]:
    """Why members should be left out, by position.

    Args:
        entries: the members.
        answers: of each member, the probabilities `(N, C)` of the same images.
        digests: of each member's weights; the same for copies.
        as_made: of each member, whether all its normalisation layers are as they are before the first training step;
            by default none's are.
    """
    found = _copies(entries, answers, digests)
    told = torch.tensor([float(information(each)) for each in answers])
    doubt = torch.tensor([float(entropy(each).mean()) for each in answers])
    least = LITTLE * float(told.median()) if len(entries) >= FEW else 0.0
    for index, value in enumerate(told.tolist()):
        if value <= max(1e-7, least):
            found.setdefault(index, "answers nearly the same to every image: it is not trained, or broken")
    if len(entries) < FEW:
        return found
    fresh = torch.tensor(as_made or [False] * len(entries))
    if fresh.sum() <= len(entries) / 2:
        for index in (fresh & (told < LESS * told[~fresh].median())).nonzero().flatten().tolist():
            found.setdefault(
                index,
                "is not trained: its normalisation layers are as they are before the first training step, and its "
                "answers tell much less than those of others",
            )
    for index, value in enumerate(doubt.tolist()):
        if value < SURE * float(doubt.median()):
            found.setdefault(index, "is certain of every image, as networks with weights out of scale are")
    agreement = _agreement(entries, answers, left_out=set(found))
    known = agreement[agreement.isfinite()]
    usual = float(known.median()) if len(known) >= FEW else 0.0
    if usual < NOISE / (COMPARISONS * len(answers[0])) ** 0.5:
        return found  # Members of many kinds, or few images: who disagrees is left to chance.
    for index, value in enumerate(agreement.tolist()):
        if value < AGREEMENT * usual:
            found.setdefault(
                index,
                f"disagrees with the members that know the same classes (correlation {value:.2f}, of others "
                f"{usual:.2f}): its labels may be in another order, or wrong",
            )
    return found


def _copies(entries: Sequence[PoolEntry], answers: Sequence[Tensor], digests: Sequence[str]) -> dict[int, str]:
    found: dict[int, str] = {}
    for index in range(len(entries)):
        for other in range(index):
            if other in found or entries[index].class_keys != entries[other].class_keys:
                continue
            if digests[index] == digests[other]:
                found[index] = f"is a copy of {entries[other].id}: the same weights"
            # Answers that tell nothing are alike, too.
            elif information(answers[index]) > 1e-3 and _apart(answers[index], answers[other]) < ALIKE:
                found[index] = f"is a copy of {entries[other].id}: the same answers"
    return found


def _apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


def _agreement(entries: Sequence[PoolEntry], answers: Sequence[Tensor], left_out: set[int]) -> Tensor:
    """Mean correlation, over images, of a member's probabilities of its classes with those of others: `(M,)`.

    Not a number of members that have few classes in common with others.
    """
    columns: dict[str, list[tuple[int, Tensor]]] = {}
    for index, (entry, values) in enumerate(zip(entries, answers, strict=True)):
        if index in left_out:
            continue
        centred = values - values.mean(0)
        unit = centred / centred.norm(dim=0).clamp_min(1e-12)
        for name, column in zip(entry.class_keys, unit.T, strict=True):
            columns.setdefault(name, []).append((index, column))
    totals, counts, comparisons = torch.zeros(3, len(entries))
    for shared in columns.values():
        stacked = torch.stack([column for _, column in shared])
        others = stacked.sum(0) - stacked
        if len(shared) > 1:
            products = (stacked * others).sum(-1) / (len(shared) - 1)
            members = torch.tensor([index for index, _ in shared])
            totals.index_add_(0, members, products)
            counts.index_add_(0, members, torch.ones(len(shared)))
            comparisons.index_add_(0, members, torch.full((len(shared),), len(shared) - 1.0))
    return totals / counts.where(comparisons >= COMPARISONS, torch.nan)
