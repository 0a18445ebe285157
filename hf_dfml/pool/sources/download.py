"""One file of one commit of the Hub, within limits, and the one that was promised."""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import tqdm

from hf_dfml.pool.entry import MemberError
from hf_dfml.pool.sources.client import (
    TRIES,
    USUAL,
    HubOptions,
    check_id,
    is_sha,
    retry,
    why_not_found,
    why_refused,
)
from hf_dfml.pool.sources.digests import git_sha1_of
from hf_dfml.pool.sources.local_cache import blob_of, cached_file, cached_revision, discard
from hf_dfml.utils.checkpoint import sha256_of_new

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 8 << 30
"""Of a file that is downloaded, where nothing else is said (`ModelPool.with_limits`)."""
_OFFLINE = "HF_HUB_OFFLINE or local_files_only is set"
Admit = Callable[[int], None]
"""Called with a file's bytes before its content is read, again where it is read again; refuses by raising."""


def resolve_revision(id: str, revision: str | None = None, options: HubOptions = USUAL) -> tuple[str, str]:
    """The repository's present name, and the commit sha that a branch or tag (None: `options.revision`) stands for.

    One request; none for a sha, or offline, where it is looked up in the local cache.

    Raises:
        MemberError: if there is no such repository or revision, or it may not be read.
    """
    revision = revision or options.revision
    check_id(id, revision)
    if revision is not None and is_sha(revision):
        return id, revision
    if options.offline:
        sha = cached_revision(id, revision, options)
        if sha is None:
            raise MemberError(id, f"is not in the local cache ({options.cache}), and {_OFFLINE}")
        return id, sha
    try:
        info = retry(lambda: options.api().model_info(id, revision=revision))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise MemberError(id, why_not_found(error)) from error
    except HfHubHTTPError as error:
        if reason := why_refused(error):
            raise MemberError(id, reason) from error
        raise
    if info.sha is None or not is_sha(info.sha):
        raise MemberError(id, f"the Hub gives the revision '{info.sha}', expected a commit sha")
    if info.id != id:
        logger.warning("%s is called %s now.", id, info.id)
        check_id(info.id)
    return info.id, info.sha


def download(
    id: str,
    name: str,
    revision: str,
    options: HubOptions = USUAL,
    *,
    limit: int = MAX_FILE_BYTES,
    admit: Admit | None = None,
    force: bool = False,
) -> Path:
    """One file of a commit, from the local cache if it is there (then nothing is sent).

    What arrives is compared with the hash that the server promised, and asked for again if it is not that: the client
    itself looks at the size alone.

    Args:
        id: the repository.
        name: the file.
        revision: the commit.
        options: token, cache folder, and whether anything may be sent.
        limit: bytes that the file may have at most; a larger one is refused before its content is read.
        admit: is given the file's size beforehand.
        force: download it although it is in the cache.

    Raises:
        MemberError: if the repository has no such file, it may not be read, is too large, or arrives damaged each
            time.
    """
    check_id(id, revision)
    path = cached_file(id, name, revision, options)
    if is_sha(revision) and path.is_file() and not force:
        return path
    meter = _meter(id, name, limit, admit)
    seen: set[str] = set()
    for _ in range(TRIES):
        path = _download(id, name, revision, options, meter, force)
        promised, found = _promised_hash(path)
        if promised == found:
            return path
        if found in seen:
            # The same bytes twice were not damaged on their way: that server's ETag is no hash, or a stale one.
            logger.warning("%s: %s is not what the server's ETag says; a lock file would show it.", id, name)
            return path
        logger.warning("%s: %s arrived damaged and is fetched again.", id, name)
        seen.add(found)
        discard(path)
    raise MemberError(id, f"{name} arrives damaged: expected hash {promised}, found {found}")


def _download(id: str, name: str, revision: str, options: HubOptions, meter: type[tqdm], force: bool) -> Path:
    where: dict[str, Any] = {
        "cache_dir": options.cache,
        "local_files_only": options.offline,
        "force_download": force,
    }
    try:
        return Path(
            retry(lambda: options.api().hf_hub_download(id, name, revision=revision, tqdm_class=meter, **where))
        )
    except LocalEntryNotFoundError as error:
        if reason := why_refused(error):
            raise MemberError(id, reason) from error
        if not options.offline:
            raise  # The connection failed: that is not the member's fault.
        raise MemberError(id, f"{name} is not in the local cache, and {_OFFLINE}") from error
    except EntryNotFoundError as error:
        raise MemberError(id, f"has no {name}") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise MemberError(id, why_not_found(error)) from error
    except HfHubHTTPError as error:
        if reason := why_refused(error):
            raise MemberError(id, reason) from error
        raise


def _meter(id: str, name: str, limit: int, admit: Admit | None) -> type[tqdm]:
    """The client's progress bar, which learns a file's size before its content is read, as the guard of that size.

    To ask the server for sizes beforehand would be one more request for each file. The bar itself is drawn where
    somebody watches one download, not for each of several at a time.
    """
    alone = sys.stderr.isatty() and threading.current_thread() is threading.main_thread()

    def check(size: int) -> None:
        if size > limit:
            raise MemberError(id, f"{name} has {size:,} bytes or more; at most {limit:,} are downloaded")

    class Meter(tqdm):
        monitor_interval = 0  # No thread of tqdm's for each file.

        def __init__(
            self, *args: Any, total: float | None = None, disable: bool | None = None, **options: Any
        ) -> None:
            self.received = 0
            if total is not None:
                check(int(total))
                if admit is not None:
                    admit(int(total))
            super().__init__(*args, total=total, disable=disable if alone else True, **options)

        def update(self, n: float | None = 1) -> bool | None:
            self.received += int(n or 0)
            check(self.received)  # Of a server that stated another size, or none.
            return super().update(n)

    return Meter


def _promised_hash(path: Path) -> tuple[str, str]:
    """The hash after which the cache names a file, and that of its content; equal where the name is no hash."""
    blob = blob_of(path)
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return blob.name, sha256_of_new(blob)
    if is_sha(blob.name):  # What is not in large file storage has git's hash.
        return blob.name, git_sha1_of(blob)
    return blob.name, blob.name
