"""Pools behind HTTP, which only answer: addresses (`http:`, `https:`), or a YAML file of them."""

from __future__ import annotations

from dataclasses import replace

from hf_dfml.pool.black_box.endpoints import open_remote
from hf_dfml.pool.entry import MemberError, PoolEntry, PoolSource
from hf_dfml.pool.sources.download import Admit

_NO_FILES = "is behind a service, which has no files to fetch: open it with open_pool"


class Service(PoolSource):
    """A pool that `hf-dfml serve` serves, or Inference Endpoints; `open_pool` opens it as a `BlackBoxPool`."""

    @staticmethod
    def matches(name: str) -> bool:
        """By its look alone."""
        return name.startswith(("http://", "https://")) or name.endswith((".yaml", ".yml"))

    def entries(self, name: str) -> list[PoolEntry]:
        """What is publicly known of the members, none of which can be loaded."""
        return [replace(entry, problem=_NO_FILES, source=self) for entry in open_remote(name)]

    def fetch(self, entry: PoolEntry, name: str, *, limit: int, admit: Admit | None = None) -> PoolEntry:
        """Refused."""
        raise MemberError(entry.id, _NO_FILES)
