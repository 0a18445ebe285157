"""Files of the next members, fetched by a few threads while the current ones are worked with."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from hf_dfml.pool.entry import PoolEntry

WORKERS = 4
"""Members that are fetched at a time; also how many `ModelPool.stream` looks ahead."""


class Prefetcher:
    """Fetches each member at most once at a time, whoever asks for it.

    Threads start with the first member in the queue and end with the last one; they are daemons, so that a process
    that is stopped does not wait for what nobody wants any more.

    Args:
        fetch: brings a member's files to this disk; see `Storage.fetch`.
        workers: members fetched at a time in the background.
    """

    def __init__(self, fetch: Callable[[PoolEntry], PoolEntry], workers: int = WORKERS) -> None:
        if workers < 1:
            raise ValueError(f"workers={workers}: expected 1 or more.")
        self._fetch = fetch
        self._max_workers = workers
        self._workers = 0
        self._queue: deque[tuple[PoolEntry, Future[PoolEntry]]] = deque()
        self._pending: dict[tuple[str, str], Future[PoolEntry]] = {}
        self._lock = threading.Lock()

    def start(self, entries: Iterable[PoolEntry]) -> None:
        """Begin to fetch these members in the background, in this order, and return at once.

        A member that is on its way is passed over. Errors are kept for `get`.
        """
        with self._lock:
            for entry in entries:
                if entry.identity not in self._pending:
                    future: Future[PoolEntry] = Future()
                    self._pending[entry.identity] = future
                    self._queue.append((entry, future))
            for _ in range(min(self._max_workers - self._workers, len(self._queue))):
                self._workers += 1
                threading.Thread(target=self._work, name="hf_dfml-prefetch", daemon=True).start()

    def get(self, entry: PoolEntry) -> PoolEntry:
        """The entry with its files on this disk: waits for the thread that fetches them, or fetches them here.

        Raises:
            Exception: what went wrong, here or in the background. It is raised once; the next call tries again.
        """
        with self._lock:
            future = self._pending.get(entry.identity)
            # Not begun: it need not wait for its turn.
            mine = future is None or future.cancel()
            if mine:
                future = Future()
                future.set_running_or_notify_cancel()  # From now on nobody else takes it over.
                self._pending[entry.identity] = future
        assert future is not None
        if mine:
            self._run(entry, future)
        try:
            return future.result()
        finally:
            with self._lock:
                if self._pending.get(entry.identity) is future:
                    del self._pending[entry.identity]

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._workers -= 1
                    return
                entry, future = self._queue.popleft()
                begins = future.set_running_or_notify_cancel()
            if begins:
                self._run(entry, future)

    def _run(self, entry: PoolEntry, future: Future[PoolEntry]) -> None:
        try:
            result = self._fetch(entry)
        except BaseException as error:  # Whoever asks for the member gets it, a keyboard interrupt included.
            future.set_exception(error)
        else:
            future.set_result(result)
