"""Repositories of the Hub by id: `org/name`, `org/name@revision`, or the address of the repository's page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from urllib.parse import unquote, urlsplit

from hf_dfml.pool.entry import CONFIG_NAME, MemberError, PoolEntry, PoolSource
from hf_dfml.pool.sources.client import USUAL, HubOptions, endpoint, printable
from hf_dfml.pool.sources.download import Admit, download, resolve_revision
from hf_dfml.pool.sources.local_cache import note_revision
from hf_dfml.pool.sources.parallel import in_parallel

PREFIX = "hf:"
NO_REPOSITORY = "is no repository"
_PAGE = re.compile(r"/([^/]+/[^/]+)(?:/(?:tree|blob|resolve|commit)/([^/]+).*)?/?")


class HubIds(PoolSource):
    """One repository, pinned to a commit now: one request, none where a commit is named.

    A repository that does not exist or cannot be read is an entry with a problem.

    Args:
        options: how the Hub is asked.
        others: further branches and tags (None: `main`) that stand for the same commit.
    """

    options: HubOptions

    def __init__(self, options: HubOptions = USUAL, others: frozenset[str | None] = frozenset()) -> None:
        super().__init__(options)
        self.others = others

    @staticmethod
    def matches(name: str) -> bool:
        """Whatever has a slash, once the other sources have passed it over."""
        return "/" in name

    def entries(self, name: str) -> list[PoolEntry]:
        """The one member, called `org/name@revision` if that is how it was named."""
        id, _, revision = name.removeprefix(PREFIX).partition("@")
        id, tag = printable(id), f"@{revision}" if revision else ""
        try:
            id, sha = resolve_revision(id, revision or None, self.options)
        except MemberError as error:
            return [PoolEntry(id=id + tag, problem=error.reason)]
        # Which commit a name stands for is noted when its files arrive.
        source = HubIds(replace(self.options, revision=revision or self.options.revision))
        return [PoolEntry(id=id + tag, revision=sha, source=source)]

    def fetch(self, entry: PoolEntry, name: str, *, limit: int, admit: Admit | None = None) -> PoolEntry:
        """From the local cache, or downloaded into it."""
        assert entry.revision is not None
        path = download(entry.repository, name, entry.revision, self.options, limit=limit, admit=admit)
        if name == CONFIG_NAME:
            for revision in {self.options.revision, *self.others}:
                note_revision(entry.repository, revision, entry.revision, self.options)
        return replace(entry, location=path.parent)

    def and_those_of(self, other: HubIds) -> HubIds:
        """The same, which also notes what another name of the commit stands for."""
        return HubIds(self.options, self.others | other.others | {other.options.revision})


def list_ids(names: Iterable[str], options: HubOptions) -> list[PoolEntry]:
    """The members of these ids, several at a time; see `distinct`."""
    found = in_parallel(HubIds(options).entries, dict.fromkeys(names), description="Resolving revisions")
    return distinct(entry for entries in found for entry in entries)


def distinct(entries: Iterable[PoolEntry]) -> list[PoolEntry]:
    """Each member once, called by its repository alone where the pool has one commit of that repository only."""
    once: dict[tuple[str, str], PoolEntry] = {}
    for entry in entries:
        first = once.setdefault(entry.identity, entry)
        if first is not entry and isinstance(first.source, HubIds) and isinstance(entry.source, HubIds):
            # Offline each of its names is to be known.
            once[entry.identity] = replace(first, source=first.source.and_those_of(entry.source))
    commits = Counter(entry.repository for entry in once.values())
    return [
        replace(entry, id=entry.repository) if entry.revision and commits[entry.repository] == 1 else entry
        for entry in once.values()
    ]


def without_page(name: str) -> str:
    """A name in which the address of a page of the Hub, or timm's `hf-hub:`, is replaced by our own words.

    Raises:
        ValueError: for a page of the Hub that is none of a model, user or collection.
    """
    if name.startswith(("hf-hub:", "hf_hub:")):
        return PREFIX + name[7:]
    parts = urlsplit(name)
    hosts = ("huggingface.co", "www.huggingface.co", "hf.co", urlsplit(endpoint()).netloc)
    if parts.scheme not in ("http", "https") or parts.netloc not in hosts:
        return name
    path = unquote(parts.path).rstrip("/")
    if path.startswith("/collections/"):
        return "collection:" + path.removeprefix("/collections/")
    if re.fullmatch(r"/[^/]+", path):
        return PREFIX + path[1:]
    page = _PAGE.fullmatch(path)
    if page is None or path.startswith(("/datasets/", "/spaces/", "/papers/", "/docs/")):
        raise ValueError(
            f"{name} is not the page of a model, a user or a collection: expected a name such as org/name."
        )
    return PREFIX + page[1] + (f"@{page[2]}" if page[2] and page[2] != "main" else "")
