"""What a pool shows of itself: images recovered from all members, and the ensemble view of mixtures of them.

Of a pool of black boxes the view is that of the probabilities, of images that are drawn by chance; or of images that
are recovered by gradients which are estimated from answers (as in BiDf-MKD).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from hf_dfml.learning.ensemble_features import (
    EnsembleProducts,
    EnsembleTargets,
    Probabilities,
    TargetConfig,
    add_products,
    ensemble_products,
    ensemble_targets,
    representations,
)
from hf_dfml.methods.base import Context
from hf_dfml.pool.black_box.pool import BlackBox
from hf_dfml.pool.sources.digests import weights_digest
from hf_dfml.pool.teacher import Teacher
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.recovery.gradient_source import ZeroOrderGradient
from hf_dfml.recovery.inversion import EstimationConfig, RecoveryConfig, recover
from hf_dfml.recovery.mixing import MixingConfig, mix_recovered
from hf_dfml.recovery.procedural import procedural_images
from hf_dfml.settings import Settings, flat, option, part
from hf_dfml.utils.checkpoint import Tree
from hf_dfml.utils.images import to_uint8
from hf_dfml.utils.progress import progress
from hf_dfml.utils.seeding import fork

if TYPE_CHECKING:
    from typing_extensions import Self

MEMBERS_AT_ONCE = 100
"""Members whose part in the targets is computed between two savings of an interrupted setup."""

SHOWN = 10
"""Members, and images of each, in a picture."""


class EnsembleViewConfig(Settings):
    """How images are recovered and mixed, and how the pool looks at them; the defaults fit 32 pixels and a CPU."""

    training_images: Literal["auto", "recovered", "procedural"] = option(
        "auto",
        "Where images come from: `recovered` from the members (and mixed), or `procedural` ones, which "
        "cost nothing; `auto` recovers from weights, and not from answers.",
    )
    recoveries: int = option(2, "Recoveries from each member.", least=1)
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
    target: TargetConfig = part(TargetConfig, whiten=0.1)

    def check(self) -> None:
        """Make sure that what is to be estimated can be."""
        self.estimation.check_objective(self.inversion)

    def for_black_boxes(self) -> Self:
        """The same without what answers do not give: features, statistics, terms of a whole batch."""
        return replace(
            self,
            training_images="recovered" if self.training_images == "recovered" else "procedural",
            target_outputs="probabilities",
            gradient="zero_order",
            bn_weight=0.0,
            tv_weight=0.0,
            l2_weight=0.0,
        )


class EnsembleView(NamedTuple):
    """The training set of a student.

    Attributes:
        images: `(N, 3, H, W)` uint8, crops and mixtures of what was recovered, or procedural ones.
        targets: the ensemble view of them.
        sample: recovered images `(n, 3, H, W)` uint8 of some members' first class and a title for each; perhaps none.
    """

    images: Tensor
    targets: EnsembleTargets
    sample: Tree


def view_of(pool: TeacherPool, config: EnsembleViewConfig, size: int, context: Context) -> EnsembleView:
    """Recover images from every member, mix them, and look at the mixtures through all members.

    Args:
        pool: the members.
        config: options; those of black boxes' are put right.
        size: height and width of the images.
        context: keeps the parts that are done, where the work is interrupted.

    Raises:
        ValueError: if there are too few images for the targets' dimensions; or if several processes would ask black
            boxes, whose questions only one can count.
        QueryBudgetError: if black boxes may not be asked for the next member's part; none of it was asked.
    """
    if pool.answers_only:
        config = config.for_black_boxes()
        if context.processes.count > 1:
            raise ValueError(
                f"{context.processes.count} processes would ask black boxes and each count for itself: run one."
            )
    images, sample = (_drawn if config.training_images == "procedural" else _recovered)(pool, config, size, context)
    return EnsembleView(images, ensemble_view(pool, images, config, context), sample)


def ensemble_view(pool: TeacherPool, images: Tensor, config: EnsembleViewConfig, context: Context) -> EnsembleTargets:
    """What all members make of images `(N, 3, H, W)` uint8; raises as `view_of`."""
    answers: list[Tree] = []
    if pool.answers_only:
        # Member by member, as what was asked is not asked again where the budget ends in between.
        answers = context.map_members("answers", partial(_ask, pool, images), pool, "Asking for the targets")
    products = (
        context.memo(f"targets-{first:04d}", partial(_products, pool, config, images, answers, first, context))
        for first in range(0, len(pool), MEMBERS_AT_ONCE)
    )
    return ensemble_targets(add_products(EnsembleProducts(*block) for block in products), config.target)


def _drawn(pool: TeacherPool, config: EnsembleViewConfig, size: int, context: Context) -> tuple[Tensor, Tree]:
    stream = fork(context.seed, "procedural")
    kept = context.memo("procedural", lambda: {"images": procedural_images(config.mixing.num_images, size, stream)})
    return kept["images"], {"images": kept["images"][:0], "titles": []}


def _recovered(pool: TeacherPool, config: EnsembleViewConfig, size: int, context: Context) -> tuple[Tensor, Tree]:
    recovery = partial(recover_member, pool, config, size, context)
    parts = context.map_members("recovered", recovery, pool, "Recovering images")
    members = torch.cat([torch.full((len(part["images"]),), index) for index, part in enumerate(parts)])
    recovered = torch.cat([part["images"] for part in parts])
    images = mix_recovered(recovered, members, config.mixing, fork(context.seed, "mixing"), flip=config.inversion.flip)
    return images, _first_of(parts, pool)


def recover_member(pool: TeacherPool, config: EnsembleViewConfig, size: int, context: Context, index: int) -> Tree:
    """`images` `(R, 3, size, size)` uint8, recovery after recovery, and `labels` `(R,)` of a member; perhaps cached.

    Raises:
        QueryBudgetError: if a black box may not be asked all that it takes; nothing was asked.
    """
    generator, teacher, source = fork(context.seed, "recovery", index), pool.load(index), config.estimation.source()
    if pool.queries:
        assert isinstance(source, ZeroOrderGradient)
        source.resolution = pool.resolution
        # Nothing is spent on a member whose recovery the budget would cut short.
        images = config.recoveries * teacher.num_classes * config.inversion.images_per_class
        pool.queries.require(images * config.inversion.recovery_steps * source.queries_per_image)

    def recovered() -> Tree:
        tasks = [recover(teacher, config.inversion, size, generator, source=source) for _ in range(config.recoveries)]
        return {
            "images": to_uint8(torch.cat([task.images for task in tasks])),
            "labels": torch.cat([task.labels for task in tasks]),
        }

    if config.estimation.gradient == "zero_order":
        return recovered()
    options = flat(config.inversion)
    del options["compile_generator"]  # It is the same but for rounding.
    with context.autocast():
        precision = torch.is_autocast_enabled(context.device.type)
        whole = {"recoveries": config.recoveries, "size": size, "bf16": precision}
        origin = {"member": weights_digest(teacher.entry), "seed": context.seed, "index": index}
        return context.cached(options | whole | origin, recovered)


def _ask(pool: TeacherPool, images: Tensor, index: int) -> Tree:
    if pool.queries:
        pool.queries.require(len(images))
    return {"answers": representations(partial(_probabilities, pool.load(index)), images).half()}


def _products(
    pool: TeacherPool,
    config: EnsembleViewConfig,
    images: Tensor,
    answers: list[Tree],
    first: int,
    context: Context,
) -> Tree:
    indices = range(first, min(first + MEMBERS_AT_ONCE, len(pool)))

    def members() -> Iterator[tuple[int, Teacher | Probabilities | Tensor]]:
        if answers:
            yield from ((index, answers[index]["answers"]) for index in indices)
            return
        teachers = zip(indices, pool.stream(indices), strict=True)
        bar = progress(teachers, description="Computing the targets", total=len(indices), unit="member")
        for index, teacher in bar:
            yield index, teacher if config.target.target_outputs == "features" else partial(_probabilities, teacher)

    return ensemble_products(members(), images, config.target, context.seed, context.processes)


def _probabilities(teacher: Teacher | BlackBox, images: Tensor) -> Tensor:
    return teacher(images).softmax(-1)


def _first_of(parts: list[Tree], pool: TeacherPool) -> Tree:
    """Images of one class of each of the first members, and its name above each."""
    rows, titles = [], []
    for entry, found in zip(pool, parts[:SHOWN], strict=False):
        row = found["images"][found["labels"] == 0][:SHOWN]
        rows.append(row)
        titles += [f"{entry.id}: {entry.class_names[0]}"] * len(row)
    return {"images": torch.cat(rows).cpu(), "titles": titles}
