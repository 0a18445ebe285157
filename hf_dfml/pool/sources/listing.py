"""Where members come from: folders, and users, collections and repositories of the Hub, each listed as entries.

A listing costs as few requests as the Hub allows: a user or organisation is listed page by page, and nothing is asked
of a single repository before its member is used. Config and weights of a member always come from one commit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from huggingface_hub import ModelInfo
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from hf_dfml.pool.entry import (
    CONFIG_NAME,
    IS_META_MODEL,
    PREPROCESSOR_NAME,
    WEIGHTS_NAME,
    MemberError,
    PoolEntry,
)
from hf_dfml.pool.formats.checks import MAX_JSON_BYTES
from hf_dfml.pool.formats.loading import PICKLE_SUFFIXES, missing_weights
from hf_dfml.pool.formats.reading import read_entry
from hf_dfml.pool.sources import hub
from hf_dfml.pool.sources.digests import check_pinned
from hf_dfml.pool.sources.lock import LOCK_NAME, read_lock

_COLLECTION = re.compile(r"[^/]+/.+-[0-9a-f]{24}")


def list_folder(folder: Path | str) -> list[PoolEntry]:
    """The members in the sub-folders of `folder`, sorted by name; or the one member that `folder` itself is.

    Raises:
        FileNotFoundError: if there is no such folder, or no member in it.
    """
    folder = Path(folder).expanduser().absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}: expected one with a sub-folder for each pool member.")
    if (folder / CONFIG_NAME).is_file():
        return [_read_local(folder)]
    # A hidden folder is one that a build has not finished.
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    entries = [_read_local(path) for path in folders if _looks_like_member(path)]
    if not entries:
        expected = f"expected sub-folders with {CONFIG_NAME} and {WEIGHTS_NAME}"
        raise FileNotFoundError(f"{folder} holds no pool member: {expected}.")
    return entries


def list_author(author: str) -> list[PoolEntry]:
    """The models of a user or organisation, by one paged list call, sorted by id.

    Under `HF_HUB_OFFLINE=1`: those of them that are in the local cache.

    Raises:
        FileNotFoundError: if there are none.
    """
    if hub.is_offline():
        entries = list_ids(hub.cached_ids(author))
    else:
        entries = [_listed(info) for info in hub.list_models(author)]
    if not entries:
        where = "the local cache (HF_HUB_OFFLINE is set)" if hub.is_offline() else hub.endpoint()
        raise FileNotFoundError(f"'{author}' has no models on {where}: expected the name of a user or organisation.")
    # A repository that changes while pages are read can be on two of them.
    return sorted({entry.id: entry for entry in reversed(entries)}.values(), key=lambda entry: entry.id)


def list_ids(ids: Sequence[str]) -> list[PoolEntry]:
    """Repositories of the Hub by id, `org/name` or `org/name@revision`, each pinned to a commit now.

    One request each, none for those that are pinned to a commit already. A repository that does not exist or cannot
    be read is an entry with a problem.
    """
    return hub.in_parallel(_pinned, dict.fromkeys(ids), description="Resolving revisions")


def list_collection(slug: str) -> list[PoolEntry]:
    """The models of a collection; its other items are passed over.

    Raises:
        FileNotFoundError: if there is no such collection, or no model in it.
    """
    try:
        collection = hub.retry(lambda: hub.hub_api().get_collection(slug))
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403, 404):
            raise
        raise FileNotFoundError(f"There is no collection '{slug}' on {hub.endpoint()} that may be read.") from error
    ids = [item.item_id for item in collection.items if item.item_type == "model"]
    if not ids:
        raise FileNotFoundError(f"The collection '{slug}' on {hub.endpoint()} has no models.")
    return list_ids(ids)


def list_lock(path: Path | str) -> list[PoolEntry]:
    """The members of a lock file, in its order; see `hf_dfml.pool.sources.lock`. Nothing is sent.

    A member whose files are not those that the lock file names is an entry with a problem, or is refused when its
    weights are used.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no lock file, or locks nothing.
    """
    entries = [_read_pinned(entry) for entry in read_lock(path)]
    if not entries:
        raise ValueError(f"{path} locks no members.")
    return entries


def list_any(names: Sequence[str]) -> list[PoolEntry]:
    """What a user typed: folders, lock files, users or organisations, collections and repository ids.

    Each is told apart by its look.

    Raises:
        FileNotFoundError: if a name is none of these.
    """
    entries: list[PoolEntry] = []
    # Several at a time; one alone could also be a collection.
    ids = [name for name in names if _is_id(name) and (len(names) > 1 or "@" in name)]
    with hub.looking_for(" or ".join(ids)):
        pinned = dict(zip(dict.fromkeys(ids), list_ids(ids), strict=True))
    for name in names:
        if Path(name).expanduser().is_dir():
            entries += list_folder(name)
        elif Path(name).expanduser().is_file() or Path(name).name == LOCK_NAME:
            entries += list_lock(name)
        elif name.startswith((".", "/", "~")):
            raise FileNotFoundError(f"There is no folder {name}.")
        elif name in pinned:
            entries.append(pinned[name])
        else:
            with hub.looking_for(name):
                entries += _list_on_hub(name)
    if not entries:
        raise FileNotFoundError("No pool was named: expected a folder, a user or organisation, a collection or ids.")
    return list({entry.identity: entry for entry in entries}.values())


def resolve(entry: PoolEntry) -> PoolEntry:
    """The entry with its config read, downloaded first if need be; never raises for a bad member."""
    if entry.resolved or entry.revision is None:
        return entry
    try:
        folder = hub.download(entry.id, CONFIG_NAME, entry.revision, limit=MAX_JSON_BYTES).parent
        read = _read(replace(entry, location=folder))
        # Only transformers members have a second file, which is asked for when nothing else is wrong with the first.
        if read.problem == f"has no {PREPROCESSOR_NAME}":
            hub.download(entry.id, PREPROCESSOR_NAME, entry.revision, limit=MAX_JSON_BYTES)
            read = _read(replace(entry, location=folder))
    except MemberError as error:
        return replace(entry, problem=error.reason)
    return read


def resolve_all(entries: Sequence[PoolEntry]) -> list[PoolEntry]:
    """`resolve` of every entry, several at a time."""
    return hub.in_parallel(resolve, entries, description="Reading configs")


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

    if all(entry.problem is not None or is_on_disk(entry) for entry in entries):
        return list(entries)
    return hub.in_parallel(fetched, entries, description="Fetching members")


def is_on_disk(entry: PoolEntry) -> bool:
    """Whether the member's config and weights need not be fetched."""
    return entry.location is not None and (entry.location / WEIGHTS_NAME).is_file()


def fetch(
    entry: PoolEntry, *, limit: int = hub.MAX_FILE_BYTES, admit: Callable[[int], None] | None = None
) -> PoolEntry:
    """The entry with all its files on this disk.

    Args:
        entry: the member.
        limit: bytes that its weights may have at most where they must be downloaded.
        admit: called with their bytes before they are.

    Raises:
        MemberError: if the member cannot be used.
    """
    entry = resolve(entry)
    if entry.problem is not None:
        raise MemberError(entry.id, entry.problem)
    if entry.revision is not None:
        with hub.quiet_client(not hub.is_terminal()):
            hub.download(entry.id, WEIGHTS_NAME, entry.revision, limit=limit, admit=admit)
    check_pinned(entry, WEIGHTS_NAME)
    return entry


def _read(entry: PoolEntry) -> PoolEntry:
    """The entry with what its config says, once that is known to be the config that was pinned, if one was."""
    assert entry.location is not None
    for name in (CONFIG_NAME, PREPROCESSOR_NAME):
        check_pinned(entry, name)
    return replace(read_entry(entry.id, entry.location, entry.revision), sha256=entry.sha256)


def _read_pinned(entry: PoolEntry) -> PoolEntry:
    """An entry of a lock file; that of a folder with its config read."""
    if entry.location is None or entry.problem is not None:
        return entry
    try:
        return _with_weights(_read(entry))
    except MemberError as error:
        return replace(entry, problem=error.reason)


def _read_local(folder: Path) -> PoolEntry:
    return _with_weights(read_entry(folder.name, folder))


def _with_weights(entry: PoolEntry) -> PoolEntry:
    """The entry of a folder, with a problem if there are no weights in it."""
    if entry.problem is None and entry.location is not None and not is_on_disk(entry):
        return replace(entry, problem=missing_weights(path.name for path in entry.location.iterdir()))
    return entry


def _looks_like_member(folder: Path) -> bool:
    names = [path.name for path in folder.iterdir()]
    return any(name == CONFIG_NAME or name.endswith((".safetensors", *PICKLE_SUFFIXES)) for name in names)


def _pinned(name: str) -> PoolEntry:
    id, _, revision = name.partition("@")
    id = hub.printable(id)
    try:
        return PoolEntry(id=id, revision=hub.resolve_revision(id, revision or None))
    except MemberError as error:
        return PoolEntry(id=id, revision=revision or None, problem=error.reason)


def _listed(info: ModelInfo) -> PoolEntry:
    """An entry from one row of a listing; what the row already speaks against is not asked for again."""
    entry = PoolEntry(id=hub.printable(info.id), revision=info.sha)
    try:
        hub.check_id(entry.id)
    except MemberError as error:
        return replace(entry, problem=error.reason)
    files = [sibling.rfilename for sibling in info.siblings or []]
    if not hub.is_sha(info.sha):
        return _pinned(info.id)
    if info.library_name == "hf_dfml":
        problem = IS_META_MODEL
    elif info.library_name not in (None, "timm", "transformers"):
        problem = f"is a model of {info.library_name}; expected timm or transformers"
    elif info.pipeline_tag not in (None, "image-classification"):
        problem = f"is a model for {info.pipeline_tag}; expected image-classification"
    elif files and CONFIG_NAME not in files:
        problem = f"has no {CONFIG_NAME}"
    elif files and WEIGHTS_NAME not in files:
        problem = missing_weights(files)
    else:
        return entry
    return replace(entry, problem=problem)


def _is_id(name: str) -> bool:
    """Whether a name can only be that of a repository, or of a short collection."""
    if "/" not in name or name.startswith((".", "/", "~")) or _COLLECTION.fullmatch(name):
        return False
    return Path(name).name != LOCK_NAME and not Path(name).exists()


def _list_on_hub(name: str) -> list[PoolEntry]:
    """The models of a user or organisation or a collection, or the one that a repository is."""
    if "/" not in name:
        return list_author(name)
    return list_collection(name) if _COLLECTION.fullmatch(name) else _repository_or_collection(name)


def _repository_or_collection(name: str) -> list[PoolEntry]:
    entry = _pinned(name)
    if not (entry.problem or "").startswith("is no repository"):
        return [entry]
    try:
        return list_collection(name)
    except (FileNotFoundError, RepositoryNotFoundError) as error:
        raise FileNotFoundError(
            f"'{name}' is neither a folder here nor a repository or collection on {hub.endpoint()}."
        ) from error
