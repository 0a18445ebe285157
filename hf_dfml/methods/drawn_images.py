"""Training images that are drawn by chance: of the kind that is asked for, or that members' answers tell most of."""

from __future__ import annotations

from torch import Tensor

from hf_dfml.methods.base import Context
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.recovery.information import IMAGES_OF_A_KIND, asked_members, information_of_drawn, questions
from hf_dfml.recovery.procedural import DRAWN
from hf_dfml.utils.checkpoint import Tree
from hf_dfml.utils.seeding import fork
from hf_dfml.utils.text import counted


def drawn_images(pool: TeacherPool, kind: str, count: int, size: int, context: Context) -> Tensor:
    """Images `(count, 3, size, size)` uint8, kept where the work is interrupted.

    Args:
        pool: the members, of whom some are asked which kind to draw.
        kind: one of `DRAWN`, or `drawn`: the one that they tell most of.
        count: how many.
        size: height and width.
        context: of the run.
    """
    draw = DRAWN[_telling_kind(pool, count, size, context) if kind == "drawn" else kind]
    stream = fork(context.seed, "procedural")
    return context.memo("procedural", lambda: {"images": draw(count, size, stream)})["images"]


def _telling_kind(pool: TeacherPool, count: int, size: int, context: Context) -> str:
    """The kind of drawn images that some members' answers tell most of; said, and asked once in a run."""
    asking, usual = questions(len(pool)), next(iter(DRAWN))

    def ask() -> Tree:
        # The questions are not worth a training set that is cut short.
        if pool.queries and not pool.queries.allows(asking + count * len(pool)):
            return {}
        with context.autocast():
            return information_of_drawn(pool, size, context.seed, context.device)

    told: dict[str, float] = context.memo("questions", ask)
    if not told:
        context.say(
            f"Training images: {usual}. The budget is too small to ask which drawn images the members' answers tell "
            f"most of ({asking:,} queries beside those of the training set): choose with --training_images, or begin "
            "anew with a larger --max_queries."
        )
        return usual
    kind = max(told, key=lambda each: told[each])
    figures = ", ".join(f"{nats:.3f} of {each}" for each, nats in told.items())
    context.say(
        f"Training images: {kind}, which the members' answers tell most of. Nats an image: {figures} "
        f"({counted(len(asked_members(len(pool))), 'member')}, {IMAGES_OF_A_KIND} images of each kind)."
    )
    return kind
