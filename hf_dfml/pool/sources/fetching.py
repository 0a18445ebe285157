"""The files of members, whichever source brings them: first the configs, which are small, then the weights.

Config and weights of a member always come from one commit, and are those that a lock file names, if one does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hf_dfml.pool.entry import CONFIG_NAME, PREPROCESSOR_NAME, WEIGHTS_NAME, MemberError, PoolEntry
from hf_dfml.pool.formats.reading import read_entry
from hf_dfml.pool.sources.digests import check_pinned
from hf_dfml.pool.sources.download import MAX_FILE_BYTES, Admit
from hf_dfml.pool.sources.parallel import in_parallel
from hf_dfml.utils.json_files import MAX_JSON_BYTES


def resolve(entry: PoolEntry) -> PoolEntry:
    """The entry with its config read, fetched first if need be; never raises for a bad member."""
    if entry.resolved:
        return entry
    try:
        read = read_pinned(_fetch(entry, CONFIG_NAME, MAX_JSON_BYTES))
        # Only transformers members have a second file, which is asked for when nothing else is wrong with the first.
        if read.problem == f"has no {PREPROCESSOR_NAME}" and entry.source is not None:
            read = read_pinned(_fetch(entry, PREPROCESSOR_NAME, MAX_JSON_BYTES))
    except MemberError as error:
        return replace(entry, problem=error.reason)
    return read


def fetch(entry: PoolEntry, *, limit: int = MAX_FILE_BYTES, admit: Admit | None = None) -> PoolEntry:
    """The entry with all its files on this disk.

    Args:
        entry: the member.
        limit: bytes that its weights may have at most where they must be fetched.
        admit: called with their bytes before they are.

    Raises:
        MemberError: if the member cannot be used.
    """
    entry = resolve(entry)
    if entry.problem is not None:
        raise MemberError(entry.id, entry.problem)
    entry = _fetch(entry, WEIGHTS_NAME, limit, admit)
    for name in (CONFIG_NAME, PREPROCESSOR_NAME, WEIGHTS_NAME):  # The first two are perhaps read again.
        check_pinned(entry, name)
    return entry


def fetch_all(entries: Sequence[PoolEntry], fetch_one: Callable[[PoolEntry], PoolEntry]) -> list[PoolEntry]:
    """The entries with all their files on this disk, several downloads at a time; never raises for a bad member.

    Args:
        entries: the members.
        fetch_one: `fetch`, with the limits that are to be kept.
    """

    def fetched(entry: PoolEntry) -> PoolEntry:
        try:
            return fetch_one(entry)
        except MemberError as error:
            return replace(entry, problem=error.reason)

    if all(entry.problem is not None or entry.on_disk for entry in entries):
        return list(entries)
    return in_parallel(fetched, entries, description="Fetching members")


def _fetch(entry: PoolEntry, name: str, limit: int, admit: Admit | None = None) -> PoolEntry:
    return entry if entry.source is None else entry.source.fetch(entry, name, limit=limit, admit=admit)


def read_pinned(entry: PoolEntry) -> PoolEntry:
    """The entry with what its config says, once that is known to be the config that was pinned, if one was."""
    assert entry.location is not None
    for name in (CONFIG_NAME, PREPROCESSOR_NAME):
        check_pinned(entry, name)
    read = read_entry(entry.id, entry.location, entry.revision)
    return replace(read, sha256=entry.sha256, source=entry.source)
