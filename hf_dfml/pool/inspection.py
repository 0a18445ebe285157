"""What `hf-dfml pool ls`, `hf-dfml pool check` and `hf-dfml pool map` show."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.model_pool import ModelPool
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.utils.pictures import member_map
from hf_dfml.utils.progress import progress
from hf_dfml.utils.text import counted

if TYPE_CHECKING:
    from rich.table import Table

logger = logging.getLogger(__name__)

_NUMBER = re.compile(r"(class[_ -]?)?\d+", re.IGNORECASE)
SHOWN = 3
"""Members that are named beside a class."""


def check_pool(pool: ModelPool) -> list[tuple[PoolEntry, str | None]]:
    """Load every member safely; each comes back with one line that says why it cannot be used, or None.

    A warning names members whose classes have numbers for names, which tie them together.
    """
    pool = pool.fetch()
    order = progress(pool.walk(), description="Checking members", total=len(pool), unit="member")
    checked = [(pool[index], pool.check(index)) for index in order]
    numbered = [entry.id for entry, problem in checked if not problem and _has_numbers_for_names(entry)]
    if len(numbered) > 1:
        logger.warning(
            "%s and %s call their classes by numbers alone, and equal numbers are one class: if theirs are different "
            "classes, give them names (label_names of timm, id2label of transformers).",
            numbered[0],
            counted(len(numbered) - 1, "other member"),
        )
    return checked


def _has_numbers_for_names(entry: PoolEntry) -> bool:
    return bool(entry.label_names) and all(_NUMBER.fullmatch(name) for name in entry.label_names)


def class_table(pool: TeacherPool) -> Table:
    """A table of the classes as they are matched (`hf_dfml.pool.names`), the most widely known first."""
    from rich.markup import escape
    from rich.table import Table

    known: dict[str, list[tuple[str, str]]] = {}
    for entry in pool.resolve():
        for key, name in zip(entry.class_keys, entry.class_names, strict=True):
            known.setdefault(key, []).append((entry.id, name))
    table = Table(title=f"{len(known)} classes")
    for column in ("class", "members", "called", "by"):
        table.add_column(column, overflow="fold", justify="right" if column == "members" else "left")
    for key, members in sorted(known.items(), key=lambda item: (-len(item[1]), item[0])):
        called = ", ".join(dict.fromkeys(name for _, name in members))
        by = ", ".join(id for id, _ in members[:SHOWN]) + (", ..." if len(members) > SHOWN else "")
        table.add_row(escape(key), str(len(members)), escape(called), escape(by))
    return table


def pool_table(pool: TeacherPool) -> Table:
    """A table of the members: what their configs say, no weights read. Columns that hold nothing are left out.

    What is there and is no member that can be used, such as a meta-model, is not counted as one and says why.
    """
    from rich.markup import escape
    from rich.table import Table

    entries = pool.resolve()
    rows = [_row(entry) for entry in entries]
    kept = [column for column in range(len(_COLUMNS)) if column == 0 or any(row[column] for row in rows)]
    skipped = sum(entry.problem is not None for entry in entries)
    title = counted(len(rows) - skipped, "member") + (f", {skipped} skipped" if skipped else "")
    table = Table(title=title)
    for column in kept:
        name = _COLUMNS[column]
        table.add_column(name, justify="right" if name in _NUMBERS else "left", overflow="fold", no_wrap=column == 0)
    for entry, row in zip(entries, rows, strict=True):
        # Names and problems quote foreign text, which is no markup.
        table.add_row(*(escape(row[column]) for column in kept), style="red" if entry.problem else None)
    return table


def pool_as_json(pool: TeacherPool) -> dict[str, Any]:
    """What `pool_table` shows, for a tool that reads: `answers` of black boxes, and `members`. No weights are read."""
    keys = ("id", "architecture", "num_classes", "input_size", "val_accuracy", "revision", "problem")
    members = [
        {**{key: getattr(entry, key) for key in keys}, "class_names": list(entry.label_names)}
        for entry in pool.resolve()
    ]
    return {"answers": pool.output if pool.answers_only else None, "members": members}


def draw_map(pool: TeacherPool, path: Path | str) -> Path:
    """Draw the usable members as a map: near each other where they know the same classes; the PNG file.

    Coloured by data set, their markers by architecture, as far as the members say them. No weights are read.

    Raises:
        ValueError: if fewer than two members can be used.
    """
    entries = [entry for entry in pool.resolve() if not entry.problem]
    if len(entries) < 2:
        raise ValueError(f"A map needs two members or more that can be used, found {len(entries)}.")
    classes = len({key for entry in entries for key in entry.class_keys})
    return member_map(
        [entry.class_keys for entry in entries],
        [entry.dataset or "data set not known" for entry in entries],
        path,
        kinds=[entry.architecture or "architecture not known" for entry in entries],
        names=[entry.id for entry in entries],
        title=f"{counted(len(entries), 'member')} of {classes} classes: near where they know the same ones",
    )


_COLUMNS = ("id", "arch", "classes", "input", "accuracy", "revision", "problem")
_NUMBERS = ("classes", "input", "accuracy")


def _row(entry: PoolEntry) -> list[str]:
    values = (
        entry.id,
        entry.architecture,
        entry.num_classes,
        "x".join(map(str, entry.input_size)) if entry.input_size else None,
        f"{100 * entry.val_accuracy:.1f} %" if entry.val_accuracy is not None else None,
        entry.revision[:8] if entry.revision else None,
        entry.problem,
    )
    return ["" if value is None else str(value) for value in values]
