"""What everything that learns from a pool knows of it, whether its members are seen whole or only answer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch

from hf_dfml.pool.entry import PoolEntry
from hf_dfml.utils.text import counted

if TYPE_CHECKING:
    from typing_extensions import Self

    from hf_dfml.pool.queries import Output, QueryCount


class TeacherPool(Sequence[PoolEntry]):
    """An immutable sequence of the entries of a pool; slices of it are pools of the same kind.

    The defaults are those of a pool whose members are seen whole and have nothing to be fetched.

    Attributes:
        device: where what the members give is put.
        output: what members that only answer put out of an image (`logits`, `probs`, `topk`, `label`); None where
            members are seen whole.
        queries: how many images such members were sent, and their budget; None where nothing is counted.
        resolution: root mean square change of a pixel, in [0, 1], below which answers hardly tell two images apart.

    Args:
        entries: the members.
        device: see above.
    """

    output: Output | None = None
    queries: QueryCount | None = None
    resolution: float = 0.0

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

    @property
    def answers_only(self) -> bool:
        """Whether nothing but the members' answers to images can be had: no weights, features or gradients."""
        return self.output is not None

    @property
    def image_size(self) -> int:
        """Width in pixels of the images of the members that want the largest; 0 where no member's is known."""
        return max((entry.input_size[-1] for entry in self if entry.input_size), default=0)

    @abstractmethod
    def load(self, member: int | str | PoolEntry) -> Any:
        """The teacher (`Teacher` or `BlackBox`) of a member, given by its index, id or entry.

        Raises:
            MemberError: if the member cannot be used; the message says why.
            KeyError: if the pool has no member of that id.
            IndexError: if it has none of that index.
        """

    def prefetch(self, indices: Iterable[int]) -> None:
        """Begin to fetch what `load` of these members will need, and return at once."""

    def stream(self, indices: Iterable[int] | None = None) -> Iterator[Any]:
        """The teachers one after another, each loaded when it is asked for; all members by default."""
        return map(self.load, range(len(self)) if indices is None else indices)

    def resolve(self) -> Self:
        """The same pool with all that can be known of every member."""
        return self

    def lock(self, path: Path | str) -> Path | None:
        """Write `pool.lock.json`, which pins every member to its files; None where there are no files to pin.

        Args:
            path: the file, or the folder that it goes into.
        """
        return None

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


class Member:
    """What a teacher and a black box have in common: the classes of their entry.

    Attributes:
        entry: its metadata.
        answers_only: whether nothing but its answers can be had; see `TeacherPool.answers_only`.
    """

    __slots__ = ()
    entry: PoolEntry
    answers_only: bool = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of the outputs; see `PoolEntry.class_names`."""
        return self.entry.class_names

    @property
    def num_classes(self) -> int:
        """The number of outputs."""
        assert self.entry.num_classes is not None
        return self.entry.num_classes
