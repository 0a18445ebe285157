"""Which source a pool's name belongs to: the first of one list that matches it.

| name | source |
|---|---|
| `http://...`, `https://...`, `x.yaml` | a service; the address of a page of the Hub is what the page is of |
| `lock:x.json`, or a file that exists | a lock file |
| `dir:x`, `./x`, `/x`, `~/x`, or a folder that exists; `zoo:x` | a folder |
| `collection:org/slug`, or a slug that ends with 24 hexadecimal digits | a collection of the Hub |
| `hf:org/name`, `org/name`, either with `@revision` | a repository of the Hub |
| `hf:org`, `org` | a user or organisation of the Hub |

Another kind of storage is a subclass of `PoolSource`, in a file of your own, at the head of the list:

    from hf_dfml.pool.sources.registry import SOURCES
    SOURCES.insert(0, ZipSource)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hf_dfml.pool.entry import PoolEntry, PoolSource
from hf_dfml.pool.sources.author import HubAuthor
from hf_dfml.pool.sources.client import USUAL, HubOptions, endpoint, looking_for
from hf_dfml.pool.sources.collection import HubCollection
from hf_dfml.pool.sources.folder import Folder
from hf_dfml.pool.sources.ids import NO_REPOSITORY, HubIds, distinct, without_page
from hf_dfml.pool.sources.lock import LockFile
from hf_dfml.pool.sources.parallel import in_parallel
from hf_dfml.pool.sources.service import Service

SOURCES: list[type[PoolSource]] = [Service, LockFile, Folder, HubCollection, HubIds, HubAuthor]
Spec = str | Path | Sequence[str]


def names_of(spec: Spec) -> list[str]:
    """The names in what a user typed: a list of them, or one string with commas.

    Raises:
        ValueError: if there is none, or for the address of a page of the Hub that shows no model, user or collection.
    """
    if isinstance(spec, Path):
        return [str(spec)]
    parts = [spec] if isinstance(spec, str) else spec
    names = [name.strip() for part in parts for name in str(part).split(",") if name.strip()]
    if not names:
        raise ValueError("No pool was named: give --pool a folder, a Hub user or organisation, a collection, or ids.")
    return list(dict.fromkeys(map(without_page, names)))


def source_of(name: str) -> type[PoolSource]:
    """The source of a pool's name."""
    return next(source for source in SOURCES if source.matches(name))


def list_entries(spec: Spec, options: HubOptions = USUAL) -> list[PoolEntry]:
    """The members of all pools that a user named, several names at a time, each member once.

    Raises:
        FileNotFoundError: if a name is none of a pool; of a single repository, also if it does not exist.
        ValueError: if no pool is named.
        ConnectionError: if the Hub cannot be reached to look for one.
    """

    def listed(name: str) -> list[PoolEntry]:
        with looking_for(name):
            return source_of(name)(options).entries(name)

    names = names_of(spec)
    found = [listed(names[0])] if len(names) == 1 else in_parallel(listed, names, description="Listing members")
    entries = distinct(entry for entries in found for entry in entries)
    if len(names) == 1 and source_of(names[0]) is HubIds and (entries[0].problem or "").startswith(NO_REPOSITORY):
        raise FileNotFoundError(
            f"'{names[0]}' is neither a folder here nor a repository on {endpoint()} that your token may read "
            f"(if it is a collection, write collection:{names[0]})."
        )
    return entries
