"""Hashes of files: the one that a lock file keeps (sha256), and those that a Hub keeps (sha256, or git's sha1)."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from hf_dfml.pool.entry import WEIGHTS_NAME, MemberError, PoolEntry
from hf_dfml.utils.checkpoint import sha256_of_new


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content in hex; read once as long as the file is the same one and was not written to.

    The time of its last change of any kind counts too: that of its content can be set back, as copies often do. Of a
    file just written take `sha256_of_new`: these times are too coarse to distinguish it from another.
    """
    path = path.resolve()
    state = path.stat()
    return _remembered(path, (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns))


def weights_digest(entry: PoolEntry) -> str:
    """What identifies a member's weights: the sha256 of their file, or its id and commit."""
    file = entry.location / WEIGHTS_NAME if entry.location else None
    return sha256_of(file) if file and file.is_file() else f"{entry.id}@{entry.revision}"


def git_sha1_of(path: Path) -> str:
    """The id that git gives a file's content, in hex."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def check_pinned(entry: PoolEntry, name: str) -> None:
    """Refuse a file of a member that is not the one that a lock file names (see `PoolEntry.sha256`).

    Raises:
        MemberError: if the file is another; the message has both hashes.
    """
    expected = entry.sha256.get(name)
    assert entry.location is not None
    if expected is None or not (entry.location / name).is_file():
        return
    found = sha256_of(entry.location / name)
    if found != expected:
        raise MemberError(entry.id, f"{name} is not the locked one: expected sha256 {expected}, found {found}")


@lru_cache(maxsize=65_536)
def _remembered(path: Path, state: tuple[int, ...]) -> str:
    return sha256_of_new(path)
