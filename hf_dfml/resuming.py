"""Which checkpoint a run goes on from, and what may not have changed since it was written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_dfml.settings import flat
from hf_dfml.utils.checkpoint import load_values, newest_sound

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
