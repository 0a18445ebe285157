"""What a student of a pool is shown, and what the members answer: recovered or drawn images, asked about once.

Images are recovered from every member alone, and jointly from all members that know a class; crops and mixtures of
all of them are one training set. From members that only answer nothing is recovered, unless that is asked for: their
images are drawn by chance, of the kind that their answers tell most of. The answers are probabilities, whatever the
members are.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from hf_dfml.data.unlabelled import unlabelled_images
from hf_dfml.methods.base import Context
from hf_dfml.methods.drawn_images import drawn_images
from hf_dfml.networks.info import network_info
from hf_dfml.pool.asking import Asking, Compile, answers_of
from hf_dfml.pool.backbone import open_backbone
from hf_dfml.pool.sources.digests import weights_digest
from hf_dfml.pool.teacher import Teacher
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.recovery.gradient_source import ZeroOrderGradient
from hf_dfml.recovery.inversion import EstimationConfig, RecoveryConfig, recover
from hf_dfml.recovery.joint import JointConfig, joint_classes, recover_jointly
from hf_dfml.recovery.many_classes import ALWAYS, chosen_classes, images_at_once, in_parts
from hf_dfml.recovery.mixing import MixingConfig, mix_recovered
from hf_dfml.recovery.objective import OF_A_BATCH
from hf_dfml.recovery.prior import ImagePrior
from hf_dfml.settings import Settings, flat, option, part
from hf_dfml.utils.checkpoint import Tree
from hf_dfml.utils.images import to_uint8
from hf_dfml.utils.seeding import fork

if TYPE_CHECKING:
    from typing_extensions import Self

SHOWN = 10
"""Classes, and images of each, in a picture."""


class PoolImagesConfig(Settings):
    """How images are recovered and mixed; the defaults fit 32 pixels and a CPU."""

    training_images: Literal["auto", "recovered", "drawn", "procedural", "strokes"] = option(
        "auto",
        "Where images come from: `recovered` from the members (and mixed); or drawn by chance, which costs little: "
        "`procedural` ones (shapes and noise), `strokes` of a pen, for members that know handwriting or drawings, or "
        "`drawn`: those of the two that some members, asked about 64 of each, tell more of; `auto` recovers from "
        "weights, and is `drawn` where there are only answers.",
    )
    images: str | None = option(
        None, "Folder of unlabelled images, of anything, that are used in place of recovered or drawn ones."
    )
    recoveries: int = option(1, "Recoveries from each member alone.", least=0)
    joint_rounds: int = option(
        5, "Rounds of joint recovery, each of `images_per_class` images for every class name; 0: none.", least=0
    )
    joint_updates: int = option(200, "Updates of each image of a joint recovery.", least=1)
    joint_coarse: float = option(
        0.0,
        "First share of these updates, in which the images have half of their resolution.",
        least=0,
        most=1,
    )
    classes_per_member: int = option(
        50, "Classes shown by a recovery: of a member with more, so many at random, others each time; 0: all.", least=0
    )
    recovery_memory_gb: float = option(
        1.5, "Memory of a member's forward and backward pass: more images are recovered in parts.", above=0
    )
    prior: str | None = option(
        None,
        "Public network with batch norm (a folder, a Hub id, a timm name) whose statistics images of members without "
        "batch norm are to match.",
    )
    prior_weight: float = option(0.1, "Weight of the distance to these statistics.", above=0)
    compile: Compile = option(
        "auto",
        "Compile the members that are asked: `auto`, where that saves more time than it takes and there is a C++ "
        "compiler, or `never`.",
    )
    inversion: RecoveryConfig = part(
        RecoveryConfig,
        recovery="pixels",
        recovery_steps=120,
        recovery_lr=0.1,
        images_per_class=10,
        tv_weight=0.1,
        shift=2,
    )
    estimation: EstimationConfig = part(
        EstimationConfig, zero_order_directions=10, zero_order_estimator="low_frequency"
    )
    mixing: MixingConfig = part(MixingConfig)

    def check(self) -> None:
        """Make sure that what is to be estimated can be."""
        self.estimation.check_objective(self.inversion)

    def for_black_boxes(self) -> Self:
        """The same without what answers do not give: statistics, terms of a whole batch, joint recovery."""
        return replace(
            self,
            training_images="drawn" if self.training_images == "auto" else self.training_images,
            gradient="zero_order",
            recoveries=max(1, self.recoveries),
            joint_rounds=0,
            **dict.fromkeys(OF_A_BATCH, 0.0),
        )

    @property
    def joint(self) -> JointConfig:
        """A round of joint recovery."""
        of = self.inversion
        updates, first = self.joint_updates, self.joint_coarse
        return JointConfig(of.images_per_class, updates, of.recovery_lr, of.objective, of.shift, of.flip, first)


class PoolImages(NamedTuple):
    """The training set of a student.

    Attributes:
        images: `(N, 3, H, W)` uint8: crops and mixtures of what was recovered, or drawn images.
        answers: `(N, K)` in half precision: the probabilities of all members side by side.
        sample: recovered images `(n, 3, H, W)` uint8 of some classes, and a title for each; perhaps none.
    """

    images: Tensor
    answers: Tensor
    sample: Tree


def pool_images(pool: TeacherPool, config: PoolImagesConfig, size: int, context: Context) -> PoolImages:
    """Recover images, mix them, and ask all members about the mixtures.

    Args:
        pool: the members.
        config: options; those of black boxes' are put right.
        size: height and width of the images.
        context: keeps the parts that are done, where the work is interrupted.

    Raises:
        ValueError: if there is nothing to recover, or several processes would ask black boxes, whose questions only
            one can count.
        QueryBudgetError: if black boxes may not be asked for the next member's part; none of it was asked.
    """
    if pool.answers_only:
        config = config.for_black_boxes()
        if context.processes.count > 1:
            raise ValueError(
                f"{context.processes.count} processes would ask black boxes and each count for itself: run one."
            )
    make = _recovered if config.training_images in ("auto", "recovered") else _drawn
    images, sample = (_found if config.images else make)(pool, config, size, context)
    images = images.to(context.device)  # What was not kept on a disk is where it was drawn.
    asking = None if pool.answers_only else Asking(pool.load(0), len(pool), len(images), config.compile)
    described = f"Asking the members ({asking.choice})" if asking else "Asking the members"
    asked = context.map_members("answers", partial(_ask, pool, images, asking, context), pool, described)
    return PoolImages(images, torch.cat([part["answers"] for part in asked], dim=-1), sample)


def _drawn(pool: TeacherPool, config: PoolImagesConfig, size: int, context: Context) -> tuple[Tensor, Tree]:
    images = drawn_images(pool, config.training_images, config.mixing.num_images, size, context)
    return images, {"images": images[:0], "titles": []}


def _found(pool: TeacherPool, config: PoolImagesConfig, size: int, context: Context) -> tuple[Tensor, Tree]:
    """Images of a folder; of fewer than are wanted crops and mixtures."""

    def read() -> Tree:
        stream, wanted = fork(context.seed, "folder"), config.mixing.num_images
        images = unlabelled_images(str(config.images), wanted, size, stream)
        if len(images) == wanted:
            return {"images": images}
        alone = torch.zeros(len(images), dtype=torch.long)
        options = replace(config.mixing, mix_members=False)
        return {"images": mix_recovered(images, alone, options, stream, flip=config.inversion.flip)}

    kept = context.memo("folder", read)
    return kept["images"], {"images": kept["images"][:0], "titles": []}


def _recovered(pool: TeacherPool, config: PoolImagesConfig, size: int, context: Context) -> tuple[Tensor, Tree]:
    parts: list[Tree] = []
    jointly: list[Tree] = []
    prior = image_prior(config, context.device)
    if config.recoveries:
        recovery = partial(recover_member, pool, config, size, context, prior=prior)
        parts = context.map_members("recovered", recovery, pool, "Recovering images")
    if config.joint_rounds:
        round_of = partial(recover_round, pool, config, size, context, prior=prior)
        jointly = context.map_parts("joint", round_of, config.joint_rounds, "Recovering jointly", "round")
    if not parts and not jointly:
        raise ValueError("Nothing is recovered: set recoveries or joint_rounds to 1 or more.")
    # Mixed with images of another member; those of joint recovery are nobody's own.
    members = [torch.full((len(found["images"]),), index) for index, found in enumerate(parts)]
    members += [torch.full((found["images"][:, :, 0, 0, 0].numel(),), len(pool)) for found in jointly]
    images = torch.cat([found["images"].flatten(0, -4) for found in parts + jointly])
    stream, flip = fork(context.seed, "mixing"), config.inversion.flip
    mixed = mix_recovered(images, torch.cat(members), config.mixing, stream, flip=flip)
    known = joint_classes(pool, classes_shown(pool, config, context.seed))
    return mixed, _sample_of_classes(jointly, known) if jointly else _sample_of_members(parts, pool)


def recover_member(
    pool: TeacherPool,
    config: PoolImagesConfig,
    size: int,
    context: Context,
    index: int,
    *,
    prior: ImagePrior | None = None,
) -> Tree:
    """`images` `(R, 3, size, size)` uint8, recovery after recovery, and `labels` `(R,)` of a member; perhaps cached.

    Raises:
        QueryBudgetError: if a black box may not be asked all that it takes; nothing was asked.
    """
    generator, teacher, source = fork(context.seed, "recovery", index), pool.load(index), config.estimation.source()
    if pool.queries:
        assert isinstance(source, ZeroOrderGradient)
        source.resolution = pool.resolution
        # Nothing is spent on a member whose recovery the budget would cut short.
        images = config.recoveries * _shown(config, teacher.num_classes) * config.inversion.images_per_class
        pool.queries.require(images * config.inversion.recovery_steps * source.queries_per_image)

    each = config.inversion.images_per_class
    member = teacher if isinstance(teacher, Teacher) else None
    further = _image_terms(config, cuts=member is not None and bool(network_info(member.network).patch_size))
    term = prior.term(member) if prior and member else None
    shown = _shown(config, teacher.num_classes)
    most = shown * each

    def recovered() -> Tree:
        images, labels = [], []
        for _ in range(config.recoveries):
            classes = chosen_classes(teacher.num_classes, shown, generator)
            for some, count in in_parts(classes, each, most):
                options = replace(config.inversion, images_per_class=count)
                task = recover(teacher, options, size, generator, term, outputs=some, source=source)
                images.append(to_uint8(task.images))
                labels.append(torch.tensor(some, device=task.labels.device)[task.labels])
        return {"images": torch.cat(images), "labels": torch.cat(labels)}

    if config.estimation.gradient == "zero_order":
        return recovered()
    most = images_at_once(teacher, most, config.recovery_memory_gb)
    if shown < teacher.num_classes:
        further["classes_per_member"] = shown
    if most < shown * each:
        further["at_once"] = most
    with context.autocast():
        return context.cached(
            {
                **_recovery_options(config),
                "recoveries": config.recoveries,
                "size": size,
                "bf16": torch.is_autocast_enabled(context.device.type),
                "member": weights_digest(teacher.entry),
                "seed": context.seed,
                "index": index,
                **further,
            },
            recovered,
        )


def recover_round(
    pool: TeacherPool,
    config: PoolImagesConfig,
    size: int,
    context: Context,
    index: int,
    *,
    prior: ImagePrior | None = None,
) -> Tree:
    """`images` `(classes, images_per_class, 3, size, size)` uint8 of a round of joint recovery; perhaps cached."""
    shown = classes_shown(pool, config, context.seed)
    at_once = _at_once(pool, config, shown)
    further: Tree = {"shown": shown, "at_once": at_once} if shown or at_once else {}
    further |= _image_terms(config, cuts=True) | ({"coarse": config.joint_coarse} if config.joint_coarse else {})
    with context.autocast():
        return context.cached(
            {
                **_recovery_options(config),
                "joint": config.joint_updates,
                "size": size,
                "bf16": torch.is_autocast_enabled(context.device.type),
                "members": [weights_digest(entry) for entry in pool],
                "seed": context.seed,
                "index": index,
                **further,
            },
            lambda: {
                "images": to_uint8(
                    recover_jointly(
                        pool,
                        config.joint,
                        size,
                        fork(context.seed, "joint", index),
                        shown=shown,
                        at_once=at_once,
                        prior=prior,
                    )
                )
            },
        )


def classes_shown(pool: TeacherPool, config: PoolImagesConfig, seed: int) -> list[list[int]] | None:
    """The outputs of each member that joint recovery shows; None where it shows all. The same in every round."""
    most = config.classes_per_member
    if not most or all((entry.num_classes or 0) <= most for entry in pool):
        return None
    return [chosen_classes(entry.num_classes or 0, most, fork(seed, "classes", i)) for i, entry in enumerate(pool)]


def _shown(config: PoolImagesConfig, num_classes: int) -> int:
    return min(config.classes_per_member or num_classes, num_classes)


def _at_once(pool: TeacherPool, config: PoolImagesConfig, shown: list[list[int]] | None) -> list[int] | None:
    """Images that fit the memory of a recovery, for each member; None where all images do."""
    wanted = [_shown(config, entry.num_classes or 0) * config.inversion.images_per_class for entry in pool]
    if max(wanted) <= ALWAYS:
        return None
    found: dict[tuple, int] = {}
    for entry, images in zip(pool, wanted, strict=True):
        kind = (entry.architecture, entry.num_classes, entry.input_size)
        if kind not in found:
            found[kind] = images_at_once(pool.load(entry.id), images, config.recovery_memory_gb)
    at_once = [found[entry.architecture, entry.num_classes, entry.input_size] for entry in pool]
    return None if at_once == wanted else at_once


def image_prior(config: PoolImagesConfig, device: torch.device | str = "cpu") -> ImagePrior | None:
    """The prior for members without batch norm, if there is to be one.

    Args:
        config: options.
        device: where the images are.

    Raises:
        FileNotFoundError: if there is no such network.
        ValueError: if it has no batch norm.
    """
    return ImagePrior(open_backbone(config.prior).to(device), config.prior_weight) if config.prior else None


def _image_terms(config: PoolImagesConfig, cuts: bool) -> Tree:
    """What a cached recovery depends on by terms that are for some members only; `cuts`: perhaps into patches."""
    found: Tree = {"prior": config.prior, "prior_weight": config.prior_weight} if config.prior else {}
    weight = config.inversion.objective.patch_weight
    return found | {"patch_weight": weight} if weight and cuts else found


def _recovery_options(config: PoolImagesConfig) -> Tree:
    options = flat(config.inversion)
    del options["compile_generator"]  # It is the same but for rounding.
    del options["patch_weight"]  # Where it matters, it is among the `_image_terms`.
    return options


def _ask(pool: TeacherPool, images: Tensor, asking: Asking | None, context: Context, index: int) -> Tree:
    if pool.queries:
        pool.queries.require(len(images))
    member = pool.load(index)
    with context.autocast():
        answers = asking.probabilities(member, images) if asking else answers_of(member, images)
        return {"answers": answers.half()}


def _sample_of_classes(rounds: list[Tree], known: dict[str, list[int]]) -> Tree:
    """Images of the classes that most members know, and the name above each."""
    names = sorted(known, key=lambda name: -len(known[name]))[:SHOWN]
    bank = torch.cat([found["images"] for found in rounds], dim=1)[:, :SHOWN]
    rows = torch.cat([bank[list(known).index(name)] for name in names]).cpu()
    return {"images": rows, "titles": [name for name in names for _ in range(bank.shape[1])]}


def _sample_of_members(parts: list[Tree], pool: TeacherPool) -> Tree:
    """Images of one class of each of the first members, and its name above each."""
    rows, titles = [], []
    for entry, found in zip(pool, parts[:SHOWN], strict=False):
        first = int(found["labels"][0])
        row = found["images"][found["labels"] == first][:SHOWN]
        rows.append(row)
        titles += [f"{entry.id}: {entry.class_names[first]}"] * len(row)
    return {"images": torch.cat(rows).cpu(), "titles": titles}
