"""Which checkpoint a run goes on from, and what may not have changed since it was written."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_dfml.pool.model_pool import ModelPool
from hf_dfml.pool.sources.lock import LOCK_NAME, locked_members
from hf_dfml.run_config import RunConfig
from hf_dfml.settings import flat
from hf_dfml.utils.checkpoint import load_values, newest_sound

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
LATEST = "latest"


def newest_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint of a run's folder, damaged or not; None where there is none."""
    return max((folder / CHECKPOINTS).glob("step-*"), default=None)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was written after."""
    return int(checkpoint.name.removeprefix("step-"))


def superseded(checkpoints: Path, *, every: int, keep: int) -> list[Path]:
    """The checkpoints of a folder that are kept no longer.

    The two newest are kept, if `keep` is two or more, and before them the newest of those of `every` steps.
    """
    written = sorted(checkpoints.glob("step-*"))
    due = [path for path in written[:-2] if step_of(path) % every == 0]
    kept = [*due, *written[-2:]][-keep:]
    return [path for path in written if path not in kept]


def refuse_other_run(folder: Path, asked: str | None) -> None:
    """Make sure that a folder's run goes on only where that was asked for.

    Args:
        folder: of the run.
        asked: `--resume_from_checkpoint`.

    Raises:
        FileExistsError: if the folder holds a run's checkpoints and no resume was asked for.
    """
    newest = None if asked else newest_checkpoint(folder)
    if newest:
        raise FileExistsError(
            f"{folder} already holds a run (up to {newest.name}): go on with --resume_from_checkpoint latest, or "
            "choose another --output_dir."
        )


def held_options(config: Any) -> dict[str, Any]:
    """The hyper-parameters of a method that may not change within a run."""
    return {name: value for name, value in flat(config).items() if name != "steps"}


def refuse_other_options(checkpoint: Path, stored: Mapping[str, Any], config: Any) -> None:
    """Make sure that a run goes on with its own hyper-parameters.

    An option that there was not when the checkpoint was written has had its default since.

    Args:
        checkpoint: the folder.
        stored: the hyper-parameters in it, by name.
        config: those of this run.

    Raises:
        ValueError: if they differ.
    """
    ours = held_options(config)
    # A method of one's own may have options without a default, which no checkpoint lacks.
    defaults = flat(type(config)()) if ours.keys() - stored.keys() else {}
    changed = sorted(name for name, value in ours.items() if {**defaults, **stored}[name] != value)
    if changed:
        raise ValueError(
            f"{checkpoint} was written with other values of {', '.join(changed)}: resume with that run's options, or "
            "start a new one in another --output_dir."
        )


def check_options(folder: Path, asked: str | None, config: Any) -> None:
    """`refuse_other_options` before any work, from the little of a checkpoint that says them."""
    if not asked or (asked == LATEST and not newest_checkpoint(folder)):
        return
    checkpoint = folder / CHECKPOINTS / newest_sound(folder / CHECKPOINTS)[0] if asked == LATEST else Path(asked)
    refuse_other_options(checkpoint, load_values(checkpoint, "method_config"), config)


def refuse_other_origin(checkpoint: Path, stored: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Make sure that a run goes on with its own seed, members and network.

    Args:
        checkpoint: the folder.
        stored: what it was written with, by the name that the error has for it.
        ours: the same of this run.

    Raises:
        ValueError: if they differ.
    """
    for what, value in ours.items():
        if stored.get(what, value) == value:
            continue
        lock = checkpoint.parent.parent / LOCK_NAME
        remedy = f" Its members as they were: --pool {lock}." if what == "members" and lock.is_file() else ""
        raise ValueError(
            f"{checkpoint} was written with other {what}: a run goes on with its own "
            f"(--seed, --pool, --num_members, --ways, --arch), or give the new one another --output_dir.{remedy}"
        )


def members_of_run(pool: ModelPool, config: RunConfig) -> ModelPool | None:
    """The members of a pool that the run which is resumed was begun with, as its lock file has them.

    A warning names each other member: it was left out when the run began, or was not in the pool yet. None where no
    run is resumed, its members are not known, or one of them is not in the pool any more.

    Args:
        pool: the members that can be used now.
        config: the run; `resume_from_checkpoint` says which one it goes on from.
    """
    asked = config.resume_from_checkpoint
    run = Path(config.output_dir) if asked == LATEST else Path(asked or "").parent.parent
    lock = run / LOCK_NAME
    if not asked or not lock.is_file():
        return None
    begun = locked_members(lock)
    if not begun <= {(entry.id, entry.revision) for entry in pool}:
        return None
    for entry in pool:
        if (entry.id, entry.revision) not in begun:
            logger.warning("Pool member left out: %s: the run in %s was begun without it.", entry.id, run)
    return pool.filter(lambda entry: (entry.id, entry.revision) in begun)
