"""Loaded teachers, the least recently used ones dropped when their bytes exceed a budget."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from hf_dfml.pool.teacher import Teacher


class TeacherCache:
    """A least-recently-used cache of teachers with a budget in bytes.

    A teacher that the caller still holds stays alive after it was dropped here: the budget is for what is kept in
    case it is wanted again. A teacher larger than the whole budget is handed out and not kept.

    Args:
        max_bytes: the budget for parameters and buffers.

    Attributes:
        loads: how many teachers were loaded so far.
        hits: how many were found in the cache.
        bytes: what the cached teachers hold now.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"cache_bytes={max_bytes}: expected 0 (keep nothing) or more bytes.")
        self.max_bytes = max_bytes
        self.loads = self.hits = self.bytes = 0
        self._teachers: OrderedDict[Hashable, tuple[Teacher, int]] = OrderedDict()
        self._lock = threading.RLock()

    def __contains__(self, key: Hashable) -> bool:
        """Whether the teacher of that key is kept now."""
        return key in self._teachers

    def get(self, key: Hashable, load: Callable[[], Teacher]) -> Teacher:
        """The teacher of that key, from the cache or by calling `load`."""
        with self._lock:
            if key in self._teachers:
                self.hits += 1
                self._teachers.move_to_end(key)
                return self._teachers[key][0]
            teacher = load()
            self.loads += 1
            size = sum(tensor.nbytes for tensor in (*teacher.parameters(), *teacher.buffers()))
            self._teachers[key] = (teacher, size)
            self.bytes += size
            while self.bytes > self.max_bytes:
                _, (_, dropped) = self._teachers.popitem(last=False)
                self.bytes -= dropped
            return teacher
