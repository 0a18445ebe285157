"""From a folder's `config.json` to an entry, whichever of the two layouts it has.

Nothing here trusts the member. A config that cannot be used leaves an entry whose `problem` says why in one line, so
that one bad member never stops the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_dfml.pool.entry import CONFIG_NAME, IS_META_MODEL, META_BLOCK, MemberError, PoolEntry
from hf_dfml.pool.formats import timm_layout as timm_members
from hf_dfml.pool.formats import transformers_layout as transformers_members
from hf_dfml.pool.formats.checks import read_json


def read_entry(id: str, folder: Path, revision: str | None = None, *, meta_model: bool = False) -> PoolEntry:
    """Read the metadata of the member in `folder`; never raises for a bad member, see `PoolEntry.problem`.

    Args:
        id: what the member is called.
        folder: holds `config.json` and, for a transformers member, `preprocessor_config.json`.
        revision: the commit sha that the files are of, for a member of the Hub.
        meta_model: whether a meta-model will do, which is none of a pool's members.
    """
    try:
        config = read_json(id, folder / CONFIG_NAME)
        if META_BLOCK in config and not meta_model:
            raise MemberError(id, IS_META_MODEL)
        reader = transformers_members if is_transformers(config) else timm_members
        return reader.read(id, folder, revision, config)
    except MemberError as error:
        return PoolEntry(id=id, location=folder, revision=revision, problem=error.reason)


def is_transformers(config: dict[str, Any]) -> bool:
    """Whether a `config.json` is of a transformers model (timm's own has `architecture`)."""
    return "architecture" not in config and ("architectures" in config or "model_type" in config)
