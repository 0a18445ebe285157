"""`pool.lock.json`: the members of a pool, in order, each pinned to the bytes of its files.

{"hf_dfml_pool_lock": 1, "members": [
  {"id": "org/name", "revision": "<commit sha>", "sha256": {"config.json": "<hex>", "model.safetensors": "<hex>"}},
  {"id": "conv4-001", "folder": "../../pools/cifar-fs/conv4-001", "sha256": {...}}]}

Wherever a pool is named, such a file can be named instead, and the pool is that of the run that wrote it. A member
whose bytes are others is refused by name.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_dfml.pool.entry import CONFIG_NAME, PREPROCESSOR_NAME, WEIGHTS_NAME, MemberError, PoolEntry
from hf_dfml.pool.formats.checks import read_json
from hf_dfml.pool.sources.client import check_id, is_sha, printable
from hf_dfml.pool.sources.digests import sha256_of
from hf_dfml.pool.sources.fetching import read_pinned
from hf_dfml.pool.sources.folder import with_weights
from hf_dfml.pool.sources.ids import HubIds
from hf_dfml.utils.checkpoint import atomic_write

PREFIX = "lock:"
LOCK_NAME = "pool.lock.json"
FORMAT = 1
_KEY = "hf_dfml_pool_lock"
_FILES = (CONFIG_NAME, PREPROCESSOR_NAME, WEIGHTS_NAME)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def write_lock(pool: Iterable[PoolEntry], path: Path | str) -> Path:
    """Write the lock file of a pool; nothing is fetched for it.

    Of a member on the Hub whose weights were never fetched, the commit alone is known and pinned.

    Args:
        pool: the members.
        path: the file, or the folder that it goes into as `pool.lock.json`.

    Returns:
        The file.
    """
    path = Path(path)
    path = path / LOCK_NAME if path.suffix != ".json" else path
    path.parent.mkdir(parents=True, exist_ok=True)
    members = [_row(entry, path.parent.resolve()) for entry in pool]
    atomic_write(path, json.dumps({_KEY: FORMAT, "members": members}, indent=1) + "\n")
    return path


def published_lock(path: Path) -> str:
    """A lock file's content without the folders of this machine, which are nobody else's business.

    A member in a folder is still pinned by its hashes, and is looked for beside the lock file.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    for row in content["members"]:
        row.pop("folder", None)
    return json.dumps(content, indent=1) + "\n"


def files_beside(id: str, path: Path) -> list[str]:
    """The files of members that lie beside a published lock file, such as `m-0/model.safetensors`.

    Args:
        id: the repository, for errors.
        path: the lock file.

    Raises:
        MemberError: if it is not JSON.
    """
    rows = read_json(id, path).get("members")
    return [
        f"{row['id']}/{name}"
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict) and "revision" not in row and is_folder_name(row.get("id"))
        for name in _FILES
        if isinstance(row.get("sha256"), dict) and name in row["sha256"]
    ]


def is_folder_name(id: Any) -> bool:
    """Whether a member's folder may have its id as name: an id such as '../x' would lead out of the lock's folder."""
    return isinstance(id, str) and re.fullmatch(r"\w[\w.\- ]*", id) is not None


class LockFile(HubIds):
    """The members of a lock file, in its order: the very pool of the run that wrote it. Nothing is asked of the Hub.

    A member that the file does not describe properly, or whose folder is not there or has other files, is an entry
    with a problem, or is refused when its weights are used. Folders are looked for where the file says, relative to
    itself, or else by the member's name beside it.

    Args:
        options: how the Hub is asked for the files of its members.
    """

    @staticmethod
    def matches(name: str) -> bool:
        """A file that exists, or one of the usual name."""
        path = Path(name).expanduser()
        return name.startswith(PREFIX) or path.name == LOCK_NAME or path.is_file()

    def entries(self, name: str) -> list[PoolEntry]:
        """The members, those in folders with their configs read.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no lock file that this version reads, or locks nothing.
        """
        path = Path(name.removeprefix(PREFIX)).expanduser()
        return [self._entry(row, path.parent) for row in _rows(path)]

    def _entry(self, row: dict[str, Any], base: Path) -> PoolEntry:
        revision, hashes = row.get("revision"), row.get("sha256", {})
        entry = PoolEntry(id=printable(row["id"]))
        try:
            if not isinstance(hashes, dict) or not all(
                name in _FILES and isinstance(value, str) and _SHA256.fullmatch(value)
                for name, value in hashes.items()
            ):
                reason = f"has sha256 of {_FILES} in the lock file that are not 64 hexadecimal digits"
                raise MemberError(entry.id, reason)
            entry = replace(entry, sha256=hashes)
            if revision is None:
                location = _find_folder(entry.id, row.get("folder"), base)
                return with_weights(read_pinned(replace(entry, location=location)))
            check_id(entry.repository)
            if not isinstance(revision, str) or not is_sha(revision):
                raise MemberError(entry.id, f"is locked to revision {str(revision)[:80]!r}: expected a commit sha")
        except MemberError as error:
            return replace(entry, problem=error.reason)
        # The commit is named, and so none is noted as the present one.
        return replace(entry, revision=revision, source=HubIds(replace(self.options, revision=revision)))


def locked_members(path: Path) -> set[tuple[str, str | None]]:
    """Ids and commits (None: of a folder) of the members of a lock file; none of them is looked at.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no lock file that this version reads, or locks nothing.
    """
    return {(printable(row["id"]), row.get("revision")) for row in _rows(path)}


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no lock file {path}.")
    try:
        content = read_json(path.name, path)
    except MemberError as error:
        raise ValueError(f"{path} is no lock file: {error.reason}.") from error
    rows = content.get("members")
    if content.get(_KEY) != FORMAT or not isinstance(rows, list):
        expected = f"expected '{_KEY}': {FORMAT} and a list 'members'"
        raise ValueError(f"{path} is no lock file of this version: {expected}.")
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            found = f"expected objects with 'id', found {str(row)[:80]}"
            raise ValueError(f"{path} has a member without an id: {found}.")
    if not rows:
        raise ValueError(f"{path} locks no members.")
    return rows


def _row(entry: PoolEntry, base: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"id": entry.id}
    if entry.revision is not None:
        row["revision"] = entry.revision
    elif entry.location is not None:
        row["folder"] = Path(os.path.relpath(entry.location.resolve(), base)).as_posix()
    return row | {"sha256": dict(sorted((_hashes(entry) | entry.sha256).items()))}


def with_hashes(entry: PoolEntry) -> PoolEntry:
    """A member in a folder with the hashes of its files, as a lock file has them; one of the Hub as it is."""
    return entry if entry.revision or entry.problem else replace(entry, sha256=_hashes(entry) | entry.sha256)


def _hashes(entry: PoolEntry) -> dict[str, str]:
    if entry.location is None:
        return {}
    names = _FILES if entry.library == "transformers" else (CONFIG_NAME, WEIGHTS_NAME)
    found = {name: entry.location / name for name in names}
    return {name: sha256_of(file) for name, file in found.items() if file.is_file()}


def _find_folder(id: str, folder: Any, base: Path) -> Path:
    candidates = [base / folder] if isinstance(folder, str) else []
    if is_folder_name(id):
        candidates.append(base / id)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate.absolute()
    raise MemberError(
        id, f"has no folder {folder} or beside the lock file" if folder else "has no folder beside the lock file"
    )
