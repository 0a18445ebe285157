"""What pools and members of every kind have in common: entries in order, found by position or id."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, overload

import torch

from hf_dfml.pool.entry import PoolEntry
from hf_dfml.utils.text import counted

if TYPE_CHECKING:
    from typing_extensions import Self


class Members(Sequence[PoolEntry]):
    """An immutable sequence of the entries of a pool; slices of it are pools of the same kind.

    Args:
        entries: the members.
        device: where what they give is put.
    """

    def __init__(self, entries: Iterable[PoolEntry], device: torch.device | str) -> None:
        self._entries = tuple(entries)
        self._ids: dict[str, PoolEntry] = {}
        for entry in self._entries:
            self._ids.setdefault(entry.id, entry)
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> PoolEntry: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> PoolEntry | Self:
        return self._like(self._entries[index]) if isinstance(index, slice) else self._entries[index]

    def __iter__(self) -> Iterator[PoolEntry]:
        return iter(self._entries)

    def to(self, device: torch.device | str) -> Self:
        """The same pool with what its members give on `device`."""
        pool = self._like(self._entries)
        pool.device = torch.device(device)
        return pool

    def _entry(self, member: int | str) -> PoolEntry:
        """The entry at a position, or of an id.

        Raises:
            KeyError: if the pool has no member of that id.
            IndexError: if it has none at that position.
        """
        if isinstance(member, str):
            if member not in self._ids:
                raise KeyError(f"The pool has no member '{member}' among its {len(self)}.")
            return self._ids[member]
        if not -len(self) <= member < len(self):
            count = counted(len(self), "member")
            raise IndexError(f"The pool has no member {member}: it has {count}, counted from 0.")
        return self._entries[member]

    @abstractmethod
    def _like(self, entries: Iterable[PoolEntry]) -> Self:
        """A pool of these entries that shares all else with this one."""


class Classes:
    """What a teacher and a black box both tell of their classes, from their entry."""

    __slots__ = ()
    entry: PoolEntry

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of the outputs; see `PoolEntry.class_names`."""
        return self.entry.class_names

    @property
    def num_classes(self) -> int:
        """The number of outputs."""
        assert self.entry.num_classes is not None
        return self.entry.num_classes
