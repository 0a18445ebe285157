"""A pool of pretrained classifiers: metadata of all of them, weights of those in use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_dfml.pool.black_box.pool import BlackBoxPool, check_answers, to_answers
from hf_dfml.pool.cache import TeacherCache
from hf_dfml.pool.entry import MemberError, PoolEntry
from hf_dfml.pool.formats.loading import check_forward, load_teacher
from hf_dfml.pool.queries import Output, QueryCount
from hf_dfml.pool.sources.author import HubAuthor
from hf_dfml.pool.sources.client import HubOptions
from hf_dfml.pool.sources.collection import HubCollection
from hf_dfml.pool.sources.download import MAX_FILE_BYTES
from hf_dfml.pool.sources.fetching import fetch_all, resolve
from hf_dfml.pool.sources.folder import Folder
from hf_dfml.pool.sources.ids import list_ids
from hf_dfml.pool.sources.lock import LockFile, with_hashes, write_lock
from hf_dfml.pool.sources.parallel import in_parallel
from hf_dfml.pool.sources.prefetch import WORKERS, Prefetcher
from hf_dfml.pool.sources.registry import Spec, list_entries
from hf_dfml.pool.sources.storage import Storage
from hf_dfml.pool.teacher import Teacher
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.utils.progress import progress
from hf_dfml.utils.text import counted

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from hf_dfml.pool.sources.client import HubArguments

logger = logging.getLogger(__name__)

GB = 1 << 30
CACHE_BYTES = 2 * GB


class ModelPool(TeacherPool):
    """An immutable sequence of pool entries that loads a member's weights when asked to.

    Pools made from this one (`filter`, `sample`, `split`, slices) share its cache of loaded teachers, its disk budget
    and its threads.

    Args:
        entries: the members; ids must be distinct.
        cache_bytes: how many bytes of loaded teachers are kept at most.
        device: where teachers are put.

    Raises:
        ValueError: if two members have the same id.

    Examples:
        >>> pool = ModelPool.from_dir("pools/cifar-fs")  # doctest: +SKIP
        >>> teacher = pool.load(0)  # doctest: +SKIP
        >>> teacher(torch.rand(8, 3, 32, 32)).shape  # doctest: +SKIP
        torch.Size([8, 5])
    """

    def __init__(
        self,
        entries: Iterable[PoolEntry],
        *,
        cache_bytes: int = CACHE_BYTES,
        device: torch.device | str = "cpu",
        cache: TeacherCache | None = None,
        storage: Storage | None = None,
        prefetcher: Prefetcher | None = None,
    ) -> None:
        super().__init__(entries, device)
        if len(self._ids) < len(self._entries):
            ids = [entry.id for entry in self._entries]
            double = next(id for id in ids if ids.count(id) > 1)
            raise ValueError(f"The pool has two members called '{double}': ids must be distinct, rename one of them.")
        self.cache = cache or TeacherCache(cache_bytes)
        self.storage = storage or Storage()
        self.prefetcher = prefetcher or Prefetcher(self.storage.fetch)

    @classmethod
    def from_dir(cls, folder: Path | str, *, cache_bytes: int = CACHE_BYTES) -> ModelPool:
        """Every member below a folder, one sub-folder each, sorted by name; or the one member that the folder is.

        Raises:
            FileNotFoundError: if there is no such folder, or no member in it.
        """
        return cls(Folder().entries(str(folder)), cache_bytes=cache_bytes)

    @classmethod
    def from_hub(
        cls, members: str | Sequence[str], *, cache_bytes: int = CACHE_BYTES, **hub: Unpack[HubArguments]
    ) -> ModelPool:
        """Members on the Hub, or in the local cache of the Hub under `HF_HUB_OFFLINE=1`.

        Args:
            members: the name of a user or organisation (every model of theirs), or a list of repository ids, each
                optionally pinned as `org/name@revision`.
            cache_bytes: how many bytes of loaded teachers are kept at most.
            **hub: `token`, `revision` (of what is not pinned), `cache_dir`, `local_files_only`, as in huggingface_hub.

        Raises:
            FileNotFoundError: if there is no such organisation or repository.
        """
        options = HubOptions(**hub)
        entries = HubAuthor(options).entries(members) if isinstance(members, str) else list_ids(members, options)
        return cls(entries, cache_bytes=cache_bytes)

    @classmethod
    def from_collection(cls, slug: str, *, cache_bytes: int = CACHE_BYTES, **hub: Unpack[HubArguments]) -> ModelPool:
        """The models of a collection on the Hub, by its slug; takes what `from_hub` takes.

        Raises:
            FileNotFoundError: if there is no such collection.
        """
        return cls(HubCollection(HubOptions(**hub)).entries(slug), cache_bytes=cache_bytes)

    @classmethod
    def from_lock(cls, path: Path | str, *, cache_bytes: int = CACHE_BYTES, **hub: Unpack[HubArguments]) -> ModelPool:
        """The very pool that a run wrote into its `pool.lock.json`: same members, same order, same bytes.

        A member whose files are others has a problem, or is refused when it is loaded. Takes what `from_hub` takes.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no lock file.
        """
        return cls(LockFile(HubOptions(**hub)).entries(str(path)), cache_bytes=cache_bytes)

    @classmethod
    def open(cls, spec: Spec, *, cache_bytes: int = CACHE_BYTES, **hub: Unpack[HubArguments]) -> ModelPool:
        """The pool that a command line or a recipe names; `open_pool` opens services too.

        Args:
            spec: a folder, the `pool.lock.json` of an earlier run, a user or organisation, a collection, a repository
                id (`org/name` or `org/name@revision`), or several of these as a list or separated by commas. What
                exists on this disk goes before a Hub name; a prefix settles doubts: `hf:`, `dir:`, `lock:`,
                `collection:`; see `hf_dfml.pool.sources.registry`.
            cache_bytes: how many bytes of loaded teachers are kept at most.
            **hub: `token`, `revision`, `cache_dir`, `local_files_only`, as in huggingface_hub.

        Raises:
            FileNotFoundError: if a part is none of these.
            ValueError: if no pool is named.
        """
        return cls(list_entries(spec, HubOptions(**hub)), cache_bytes=cache_bytes)

    def __add__(self, other: ModelPool) -> ModelPool:
        """Both pools; a member that is in both is there once.

        Raises:
            ValueError: if different members have the same id.
        """
        mine = {entry.identity for entry in self}
        return self._like((*self, *(entry for entry in other if entry.identity not in mine)))

    def __repr__(self) -> str:
        return f"ModelPool({counted(len(self), 'member')})"

    def load(self, member: int | str | PoolEntry) -> Teacher:
        """The teacher of a member, given by its index, id or entry; fetched and read if it is not in the cache.

        Raises:
            MemberError: if the member cannot be used; the message says why.
            KeyError: if the pool has no member of that id.
            IndexError: if it has none of that index.
        """
        entry = self._find(member)
        return self.cache.get((entry.identity, self.device), lambda: self._read(entry))

    @contextmanager
    def on_disk(self, member: int | str | PoolEntry) -> Iterator[PoolEntry]:
        """A member's entry with all its files on this disk, where they stay until the end of the block.

        Raises:
            MemberError: if the member cannot be used; the message says why.
        """
        with self.storage.using(self._find(member), self.prefetcher.get) as entry:
            yield entry

    def prefetch(self, indices: Iterable[int]) -> None:
        """Fetch the files of members in the background and return at once; their `load` waits for what is missing.

        A few threads fetch them in this order. Only files are fetched, so that no teacher takes memory before it is
        loaded. Members that are loaded or lie in folders are passed over. What goes wrong is raised by `load`.

        Args:
            indices: positions in the pool.
        """
        entries = [self._entries[index] for index in indices]
        self.prefetcher.start(
            entry
            for entry in entries
            if entry.problem is None and not entry.on_disk and (entry.identity, self.device) not in self.cache
        )

    def walk(self, indices: Iterable[int] | None = None, *, ahead: int = WORKERS) -> Iterator[int]:
        """The indices one after another, while the files of the next members are fetched.

        For loops that need not load every member they come to; the others take `stream`.

        Args:
            indices: positions in the pool; all members by default.
            ahead: how many members are fetched before they are asked for, at most.
        """
        order = list(range(len(self)) if indices is None else indices)
        for position, index in enumerate(order):
            self.prefetch(order[position + 1 : position + 1 + ahead])
            yield index

    def stream(self, indices: Iterable[int] | None = None, *, ahead: int = WORKERS) -> Iterator[Teacher]:
        """The teachers one after another, each loaded when it is asked for, while the files of the next are fetched.

        In memory are what the caller holds and the cache, whatever the length of the pool.

        Args:
            indices: positions in the pool; all members by default.
            ahead: how many members are fetched before they are asked for, at most.

        Raises:
            MemberError: when the iteration comes to a member that cannot be used.
        """
        return map(self.load, self.walk(indices, ahead=ahead))

    def lock(self, path: Path | str) -> Path:
        """Write `pool.lock.json`, which pins every member to its files' bytes; see `hf_dfml.pool.sources.lock`.

        Nothing is fetched: of a member on the Hub whose weights are not on this disk, the commit is pinned.

        Args:
            path: the file, or the folder that it goes into.

        Returns:
            The file.
        """
        return write_lock(self.storage.described(self), path)

    def pinned(self) -> ModelPool:
        """The same members, those in folders held to the bytes that they have now: a change later is refused."""
        return self._like(with_hashes(entry) for entry in self)

    def filter(self, predicate: Callable[[PoolEntry], bool]) -> ModelPool:
        """The members for which `predicate(entry)` is true.

        Members with a problem are left out, as their entries hold nothing to test.
        """
        return self._like(entry for entry in self.resolve() if entry.problem is None and predicate(entry))

    def sample(self, n: int, generator: torch.Generator) -> ModelPool:
        """`n` different members at random, in random order.

        Raises:
            ValueError: if the pool has fewer.
        """
        if not 0 < n <= len(self):
            raise ValueError(f"Cannot sample {n} members from a pool of {len(self)}: ask for 1 to {len(self)}.")
        return self._pick(torch.randperm(len(self), generator=generator)[:n].tolist())

    def split(self, fraction: float, generator: torch.Generator) -> tuple[ModelPool, ModelPool]:
        """Two disjoint pools at random: the first with `fraction` of the members (rounded), the second with the rest.

        Raises:
            ValueError: if `fraction` is not between 0 and 1.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction={fraction}: expected a number from 0 to 1.")
        order = torch.randperm(len(self), generator=generator).tolist()
        first = round(fraction * len(self))
        return self._pick(sorted(order[:first])), self._pick(sorted(order[first:]))

    def with_limits(
        self,
        *,
        memory_gb: float = CACHE_BYTES / GB,
        disk_gb: float | None = None,
        file_gb: float = MAX_FILE_BYTES / GB,
    ) -> ModelPool:
        """The same pool within stated budgets (gigabytes of 2^30 bytes).

        Args:
            memory_gb: of loaded teachers that are kept in case they are wanted again. A teacher that the caller holds
                is beyond that.
            disk_gb: of the weights of the pool's Hub members in the local cache of the Hub: those used longest ago
                are deleted before others are downloaded, never any in use. None: no limit. See
                `hf_dfml.pool.sources.storage`.
            file_gb: of the weights of one member of the Hub; larger ones are refused, by name, before they are
                downloaded.

        Raises:
            ValueError: for a negative number.
        """
        disk = None if disk_gb is None else round(disk_gb * GB)
        storage = Storage(disk, max_file_bytes=round(file_gb * GB), entries=self)
        return ModelPool(self, cache_bytes=round(memory_gb * GB), device=self.device, storage=storage)

    def as_black_box(
        self, output: Output = "probs", *, max_queries: int | None = None, top_k: int = 3
    ) -> BlackBoxPool:
        """The same members as prediction-only services: nothing but answers can be had of them.

        Weights stay behind a function of images in this process, which is a promise and not a lock; for a real wall
        serve the pool in another process (`hf-dfml serve`).

        Args:
            output: what is returned: `logits`, `probs`, `topk` or `label`; see `hf_dfml.pool.black_box`.
            max_queries: images that may be sent to all members together; None for no limit.
            top_k: how many probabilities `topk` returns.

        Raises:
            ValueError: for another `output`, a `top_k` below 1 or a negative budget.
        """
        check_answers(output, top_k)
        if max_queries is not None and max_queries < 0:
            raise ValueError(f"max_queries={max_queries}: expected 0 or more, or None for no limit.")
        pool = self.resolve()

        @torch.no_grad()
        def ask(entry: PoolEntry, images: Tensor) -> Tensor:
            return to_answers(pool.load(entry.id)(images.to(pool.device)), output, top_k)

        def lock(entries: Sequence[PoolEntry], path: Path) -> Path:
            return pool._like(pool._entry(entry.id) for entry in entries).lock(path)

        return BlackBoxPool(pool, ask, output, QueryCount(max_queries), lock=lock, device=self.device)

    def resolve(self) -> ModelPool:
        """The same pool with every member's config read; fetches the small config files that are not on this disk."""
        if all(entry.resolved for entry in self):
            return self
        return self._like(in_parallel(resolve, self._entries, description="Reading configs"))

    def fetch(self) -> ModelPool:
        """The same pool with all files of its members on this disk, downloaded several at a time.

        Within a disk budget (`with_limits`) only configs, as weights could otherwise push out each other.
        """
        if self.storage.max_bytes is not None:
            return self.resolve()
        return self._like(fetch_all(self._entries, self.storage.fetch))

    def usable(self, *, weights: bool | None = None) -> ModelPool:
        """The members that can be used; a warning says of each other member why it cannot.

        Args:
            weights: whether every member's weights are read as well as its config. Default: of the members that are on
                this disk; True fetches all others too.

        Raises:
            ValueError: if no member can be used.
        """
        kept = []
        pool = self.fetch() if weights else self.resolve()
        order = pool.walk() if weights else range(len(pool))
        for index in progress(order, description="Checking the pool", total=len(pool), unit="member"):
            entry = pool[index]
            problem = self.check(entry, weights=entry.on_disk if weights is None else weights)
            if problem is None:
                kept.append(entry)
            else:
                logger.warning("Pool member left out: %s: %s", entry.id, problem)
        if not kept:
            raise ValueError(f"Of {counted(len(self), 'member')} none can be used; `hf-dfml pool check` says why.")
        return self._like(kept)

    def check(self, member: int | str | PoolEntry, *, weights: bool = True) -> str | None:
        """Why a member cannot be used, in one line, or None. With `weights`, by loading it and classifying images."""
        entry = self._find(member)
        if entry.problem is not None or not weights:
            return entry.problem
        try:
            check_forward(self.load(entry))
        except MemberError as error:
            return error.reason
        return None

    def same_architecture(self) -> bool:
        """Whether all members have networks of one shape, so that their weights can be averaged."""
        return len({_network_of(entry) for entry in self.resolve()}) == 1

    def _read(self, entry: PoolEntry) -> Teacher:
        with self.on_disk(entry) as fetched:
            return load_teacher(fetched).to(self.device)

    def _find(self, member: int | str | PoolEntry) -> PoolEntry:
        return member if isinstance(member, PoolEntry) else self._entry(member)

    def _pick(self, indices: Iterable[int]) -> ModelPool:
        return self._like(self._entries[index] for index in indices)

    def _like(self, entries: Iterable[PoolEntry]) -> ModelPool:
        shared: dict[str, Any] = {"cache": self.cache, "storage": self.storage, "prefetcher": self.prefetcher}
        return ModelPool(entries, device=self.device, **shared)


def _network_of(entry: PoolEntry) -> tuple:
    model_args = repr(sorted(entry.model_args.items()))
    return entry.library, entry.architecture, entry.num_classes, entry.input_size, model_args
