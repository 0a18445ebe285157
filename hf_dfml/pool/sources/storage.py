"""What members of the Hub may take of this disk: a budget for the weights of a pool, and a limit for one file."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hf_dfml.pool.entry import WEIGHTS_NAME, MemberError, PoolEntry
from hf_dfml.pool.sources.digests import sha256_of
from hf_dfml.pool.sources.download import MAX_FILE_BYTES
from hf_dfml.pool.sources.fetching import fetch
from hf_dfml.pool.sources.ids import HubIds
from hf_dfml.pool.sources.local_cache import cached_file, discard

Key = tuple[str, str]
"""Id and commit of a member."""


class Storage:
    """Fetches members and keeps the weights of those of the Hub within a budget of bytes on this disk.

    Before weights are downloaded, those that were used longest ago are deleted from the local cache until there is
    room, never any that are being read or downloaded. What is counted, and deleted, are the weights of the pool's own
    members at its own commits, also those that were there before; configs (some kilobytes each) stay.

    Args:
        max_bytes: the budget; None: no limit, and nothing is ever deleted.
        max_file_bytes: of the weights of one member; larger ones are refused before they are downloaded.
        entries: members whose weights may be on this disk already.

    Attributes:
        evicted: how many times weights were deleted so far.
    """

    def __init__(
        self,
        max_bytes: int | None = None,
        *,
        max_file_bytes: int = MAX_FILE_BYTES,
        entries: Iterable[PoolEntry] = (),
    ) -> None:
        if (max_bytes is not None and max_bytes < 0) or max_file_bytes < 0:
            raise ValueError(f"{max_bytes} bytes of disk and {max_file_bytes} of a file: expected no negative number.")
        self.max_bytes, self.max_file_bytes = max_bytes, max_file_bytes
        self.evicted = 0
        self._changed = threading.Condition()
        self._held: OrderedDict[Key, tuple[Path, int]] = OrderedDict()  # The least recently used ones first.
        self._arriving: dict[Key, int] = {}
        self._pinned: Counter[Key] = Counter()
        self._digests: dict[Key, str] = {}
        if max_bytes is not None:
            self._find(entries)

    @property
    def bytes(self) -> int:
        """What the weights take on this disk now, those on their way included; 0 where there is no budget."""
        return sum(size for _, size in self._held.values()) + sum(self._arriving.values())

    def fetch(self, entry: PoolEntry) -> PoolEntry:
        """The entry with all its files on this disk.

        Raises:
            MemberError: if the member cannot be used, its weights being larger than is allowed included.
        """
        if self.max_bytes is None or entry.revision is None:
            return fetch(entry, limit=self.max_file_bytes)
        key = entry.identity
        try:
            fetched = fetch(entry, limit=self.max_file_bytes, admit=self._admission(key))
            self._keep(fetched)
        finally:
            with self._changed:
                self._arriving.pop(key, None)
                self._changed.notify_all()
        return fetched

    @contextmanager
    def using(self, entry: PoolEntry, fetch: Callable[[PoolEntry], PoolEntry]) -> Iterator[PoolEntry]:
        """The entry with all its files on this disk, where they stay until the end of the block.

        Within the block no other member is to be used: there may be no room for both.

        Args:
            entry: the member.
            fetch: brings its files here, or waits for whoever does so already.
        """
        key = entry.identity
        with self._changed:
            self._pinned[key] += 1
        try:
            fetched = fetch(entry)
            if not fetched.on_disk:
                fetched = self.fetch(fetched)  # It was here before, and gone before it was pinned.
            with self._changed:
                if key in self._held:
                    self._held.move_to_end(key)
            yield fetched
        finally:
            with self._changed:
                self._pinned -= Counter({key: 1})
                self._changed.notify_all()

    def described(self, entries: Iterable[PoolEntry]) -> list[PoolEntry]:
        """The entries, with the hash of weights that were here and are not any more: a lock file wants them."""
        return [
            replace(entry, sha256={WEIGHTS_NAME: self._digests[entry.identity], **entry.sha256})
            if entry.identity in self._digests
            else entry
            for entry in entries
        ]

    def _find(self, entries: Iterable[PoolEntry]) -> None:
        found = []
        for entry in entries:
            if isinstance(entry.source, HubIds) and entry.revision is not None and entry.problem is None:
                path = cached_file(entry.repository, WEIGHTS_NAME, entry.revision, entry.source.options)
                if path.is_file():
                    found.append((path.stat().st_mtime, entry.identity, path, path.stat().st_size))
        for _, key, path, size in sorted(found):
            self._held[key] = (path, size)

    def _admission(self, key: Key) -> Callable[[int], None]:
        def admit(size: int) -> None:
            assert self.max_bytes is not None
            if size > self.max_bytes:
                budget = f"the disk budget of all members is {self.max_bytes:,}"
                raise MemberError(key[0], f"{WEIGHTS_NAME} has {size:,} bytes, and {budget}")
            with self._changed:
                self._arriving.pop(key, None)  # It may be a second try.
                while self.bytes + size > self.max_bytes:
                    # Where all are being read or downloaded, one of them ends some time.
                    if not self._evict():
                        self._changed.wait()
                self._arriving[key] = size

        return admit

    def _keep(self, entry: PoolEntry) -> None:
        """Count weights that are on this disk, and make up for those that were there without having been counted."""
        assert entry.location is not None and self.max_bytes is not None
        path = entry.location / WEIGHTS_NAME
        key = entry.identity
        with self._changed:
            self._arriving.pop(key, None)
            self._held[key] = (path, path.stat().st_size)
            self._held.move_to_end(key)
            while self.bytes > self.max_bytes and self._evict(but=key):
                pass
            self._changed.notify_all()

    def _evict(self, but: Key | None = None) -> bool:
        """Delete the weights that were used longest ago; False if all are in use."""
        free = (key for key in self._held if key != but and not self._pinned[key])
        key = next(free, None)
        if key is None:
            return False
        path, _ = self._held.pop(key)
        if path.is_file():
            self._digests[key] = sha256_of(path)
            discard(path)
        self.evicted += 1
        return True
