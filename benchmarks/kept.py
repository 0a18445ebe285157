"""What a folder was measured with, so that nothing that other settings have left is taken for what is asked now."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_dfml.pipeline import open_pool
from hf_dfml.pool import ModelPool
from hf_dfml.pool.entry import WEIGHTS_NAME
from hf_dfml.run_config import RunConfig
from hf_dfml.settings import Settings, flat
from hf_dfml.utils.checkpoint import atomic_write

ASKED = "asked.json"
CHANGES_NOTHING = {
    "baselines",
    "check_members",
    "checkpoint_every",
    "data_dir",
    "device",
    "finetuned_rows",
    "keep_checkpoints",
    "log_with",
    "max_minutes",
    "num_threads",
    "output_dir",
    "patience_minutes",
    "pool_disk_gb",
    "pool_memory_gb",
    "private",
    "push_to_hub",
    "recovery_cache",
    "resume_from_checkpoint",
}
"""Options that say where, how fast, and what is kept or shown beside."""


def claim(
    folder: Path, *settings: Settings, members: Sequence[str] = (), but: Collection[str] = (), of_a_run: bool = False
) -> None:
    """Note in a folder what is measured there. The same settings find it again, others are refused.

    Args:
        folder: of the benchmark, or of one of its parts; made where it is missing.
        settings: all that the figures depend on.
        members: ids of the pool's.
        but: options whose values have folders of their own below it.
        of_a_run: whether it is the folder of one run, which may have been begun by a recipe.

    Raises:
        SystemExit: if the folder holds what was measured with other settings, or a run that is no benchmark's.
    """
    left_out = CHANGES_NOTHING | set(but)
    asked = {name: value for each in settings for name, value in flat(each).items() if name not in left_out}
    asked = json.loads(json.dumps(asked | ({"members": list(members)} if members else {}), default=str))
    note = folder / ASKED
    if note.is_file() and any(path != note for path in folder.rglob("*") if path.is_file()):
        before = json.loads(note.read_text(encoding="utf-8"))
        changed = [name for name in {**before, **asked} if not _alike(before.get(name), asked.get(name))]
        if changed:
            kept = ", ".join(_said(name, before.get(name)) for name in changed)
            now = ", ".join(_said(name, asked.get(name)) for name in changed)
            raise SystemExit(f"{folder} holds what was measured with {kept}, not {now}: name another --output_dir.")
        return
    if not of_a_run and ((folder / WEIGHTS_NAME).is_file() or (folder / "checkpoints").is_dir()):
        raise SystemExit(f"{folder} holds a run, whose results would be replaced: name another --output_dir.")
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(note, json.dumps(asked, indent=1) + "\n")


def members_of(config: RunConfig, folder: Path) -> ModelPool:
    """The pool of `--pool`: of a folder that was claimed the members that were noted there, as far as they are there.

    Which members are worth learning from is seen from those whose weights are on this disk, which an interrupted
    command has changed.
    """
    note = folder / ASKED
    noted = json.loads(note.read_text(encoding="utf-8")).get("members") if note.is_file() else None
    pool = open_pool(replace(config, check_members=config.check_members and not noted)).resolve()
    same = noted and set(noted) <= {entry.id for entry in pool}
    return pool.filter(lambda entry: entry.id in noted) if same else pool


def _alike(first: Any, second: Any) -> bool:
    """Whether two values are the same, or paths to one thing."""
    if first == second:
        return True
    both = isinstance(first, str) and isinstance(second, str)
    return both and Path(first).exists() and Path(second).exists() and Path(first).samefile(second)


def _said(name: str, value: Any) -> str:
    if name == "members":
        return f"{len(value or [])} members" + (f" ({value[0]}, ...)" if value else "")
    return f"{name} {value}"
