"""The one place where the Hub's client is made, so that every call says who asks and goes to the right server."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, ModelInfo, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    build_hf_headers,
    disable_progress_bars,
    enable_progress_bars,
    httpx,
    tqdm,
    validate_repo_id,
)

from hf_dfml.pool.entry import CONFIG_NAME, MemberError
from hf_dfml.pool.sources.digests import git_sha1_of, sha256_of_new
from hf_dfml.utils.progress import progress

logger = logging.getLogger(__name__)

WORKERS = 8
TRIES = 8
"""How often a call is made that the server answers with "not now", or a file is asked for that arrives damaged."""
LONGEST_WAIT = 300
"""Seconds that a server may make us wait before a call is repeated."""
MAX_FILE_BYTES = 8 << 30
"""Of a file that is downloaded, where nothing else is said (`ModelPool.with_limits`)."""
_NOT_NOW = (408, 429, 500, 502, 503, 504)
_CLIENT_BARS = "huggingface_hub"  # The group of all bars that the client draws by itself.
_SHA = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"\w[\w.\-/]{0,254}")
_quiet = 0
_quiet_lock = threading.Lock()
"""How many threads want no bars now."""
Item = TypeVar("Item")
Result = TypeVar("Result")


def hub_api() -> HfApi:
    """The Hub's client: sends our name and version, and obeys `HF_ENDPOINT` even if it was set after the import."""
    return HfApi(endpoint=endpoint(), library_name="hf_dfml", library_version=_version())


def user_agent() -> str:
    """Our name and version, as the Hub's client says them."""
    return build_hf_headers(token=False, library_name="hf_dfml", library_version=_version())["user-agent"]


def _version() -> str:
    try:
        return version("hf_dfml")
    except PackageNotFoundError:  # A source tree that was never installed.
        return "0"


def endpoint() -> str:
    """The address of the Hub, or of the self-hosted one that `HF_ENDPOINT` names."""
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def is_sha(revision: str | None) -> bool:
    """Whether a revision is a full commit sha, whose files never change."""
    return revision is not None and _SHA.fullmatch(revision) is not None


def printable(id: str) -> str:
    """The id, with escapes for what cannot be printed: a line break at its end would pass the client's own check."""
    return id if id.isprintable() else id.encode("unicode_escape").decode()


def check_id(id: str, revision: str | None = None) -> None:
    """Refuse ids and revisions that are none, before they become a path in the cache or an address.

    Raises:
        MemberError: if `id` is not `name` or `org/name`, or `revision` is not a branch, tag or commit.
    """
    try:
        validate_repo_id(id)
    except HFValidationError as error:
        raise MemberError(id, "is not a repository id (expected org/name)") from error
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision):
        raise MemberError(id, f"revision '{revision}' is not a branch, tag or commit")


@contextmanager
def looking_for(name: str) -> Iterator[None]:
    """Says of a name that is no folder here, and so was looked for on the Hub, what is wrong if that is out of reach.

    Raises:
        ConnectionError: in place of the client's error.
    """
    try:
        yield
    except httpx.TransportError as error:
        raise ConnectionError(
            f"There is no folder {name}, and the Hub ({endpoint()}) could not be reached to look for a repository of "
            f"that name: {error or type(error).__name__}."
        ) from error


def list_models(author: str) -> list[ModelInfo]:
    """The models of a user or organisation with commit, files and tags of each: one request a page."""
    # The client asks again for a page by itself; what is left are pages that broke in a way it does not know.
    return retry(lambda: list(hub_api().list_models(author=author, full=True)), tries=3)


def resolve_revision(id: str, revision: str | None) -> str:
    """The commit sha that a branch or tag stands for: one request, none for a sha or under `HF_HUB_OFFLINE=1`.

    Raises:
        MemberError: if there is no such repository or revision, or it may not be read.
    """
    check_id(id, revision)
    if revision is not None and is_sha(revision):
        return revision
    if is_offline():
        sha = cached_revision(id, revision)
        if sha is None:
            raise MemberError(id, f"is not in the local cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE is set")
        return sha
    try:
        sha = retry(lambda: hub_api().model_info(id, revision=revision)).sha
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise MemberError(id, why_not_found(error)) from error
    if not is_sha(sha):
        raise MemberError(id, f"the Hub gives the revision '{sha}', expected a commit sha")
    assert sha is not None
    return sha


def download(
    id: str, name: str, revision: str, *, limit: int = MAX_FILE_BYTES, admit: Callable[[int], None] | None = None
) -> Path:
    """One file of a commit, from the local cache if it is there (then nothing is sent).

    What arrives is compared with the hash that the server promised, and asked for again if it is not that: the client
    itself looks at the size alone.

    Args:
        id: the repository.
        name: the file.
        revision: the commit.
        limit: bytes that the file may have at most; a larger one is refused before its content is read.
        admit: called with the file's bytes before its content is read, again where it is read again.

    Raises:
        MemberError: if the repository has no such file, it may not be read, is too large, or arrives damaged each
            time.
    """
    check_id(id, revision)
    path = cached_file(id, name, revision)
    if is_sha(revision) and path.is_file():
        return path
    meter = _meter(id, name, limit, admit)
    seen: set[str] = set()
    for _ in range(TRIES):
        path = _download(id, name, revision, meter)
        promised, found = _promised_hash(path)
        if promised == found:
            return path
        if found in seen:
            # The same bytes twice were not damaged on their way: that server's ETag is no hash, or a stale one.
            logger.warning("%s: %s is not what the server's ETag says; a lock file would tell.", id, name)
            return path
        logger.warning("%s: %s arrived damaged and is fetched again.", id, name)
        seen.add(found)
        discard(path)
    raise MemberError(id, f"{name} arrives damaged: expected hash {promised}, found {found}")


def cached_file(id: str, name: str, revision: str) -> Path:
    """Where a file of a commit lies in the local cache, once it was downloaded."""
    return _cache_folder(id) / "snapshots" / revision / name


def discard(path: Path) -> None:
    """Delete a file of the local cache: its content, and its name in every commit of its repository that has it."""
    blob = _blob_of(path)
    content = blob.resolve()
    for link in {path, *path.parent.parent.glob(f"*/{path.name}")}:
        if _blob_of(link) == blob:
            link.unlink(missing_ok=True)
    shared = blob.is_symlink()
    blob.unlink(missing_ok=True)
    if shared:
        # Newer clients keep one copy for all repositories that have it, to which their blobs are links.
        links = (link for link in Path(constants.HF_HUB_CACHE).glob("*--*/blobs/*") if link.is_symlink())
        if not any(link.resolve() == content for link in links):
            content.unlink(missing_ok=True)


def _download(id: str, name: str, revision: str, meter: type[tqdm]) -> Path:
    try:
        return Path(retry(lambda: hub_api().hf_hub_download(id, name, revision=revision, tqdm_class=meter)))
    except LocalEntryNotFoundError as error:
        if not is_offline():
            raise  # The connection failed: that is not the member's fault.
        raise MemberError(id, f"{name} is not in the local cache, and HF_HUB_OFFLINE is set") from error
    except EntryNotFoundError as error:
        raise MemberError(id, f"has no {name}") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise MemberError(id, why_not_found(error)) from error


def _meter(id: str, name: str, limit: int, admit: Callable[[int], None] | None) -> type[tqdm]:
    """The client's progress bar, which learns a file's size before its content is read, as the guard of that size.

    To ask the server for sizes beforehand would be one more request for each file.
    """

    def check(size: int) -> None:
        if size > limit:
            raise MemberError(id, f"{name} has {size:,} bytes or more; at most {limit:,} are downloaded")

    class Meter(tqdm):
        def __init__(self, *args: Any, total: float | None = None, **options: Any) -> None:
            self.received = 0
            if total is not None:
                check(int(total))
                if admit is not None:
                    admit(int(total))
            super().__init__(*args, total=total, **options)

        def update(self, n: float | None = 1) -> bool | None:
            self.received += int(n or 0)
            check(self.received)  # Of a server that told another size, or none.
            return super().update(n)

    return Meter


def _blob_of(path: Path) -> Path:
    """The file after whose content the cache names it: one step, since it can be a link itself."""
    if not path.is_symlink():
        return path
    return Path(os.path.normpath(path.parent / path.readlink()))


def _promised_hash(path: Path) -> tuple[str, str]:
    """The hash after which the cache names a file, and that of its content; equal where the name is no hash."""
    blob = _blob_of(path)
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return blob.name, sha256_of_new(blob)
    if _SHA.fullmatch(blob.name):  # What is not in large file storage has git's hash.
        return blob.name, git_sha1_of(blob)
    return blob.name, blob.name


def retry(call: Callable[[], Result], tries: int = TRIES) -> Result:
    """`call()`, made again where the server says "not now" (429, 503, ...) or the connection breaks.

    Waits as long as the server asks (`Retry-After`), else 1, 2, 4, 8, 8, ... seconds. The client insists by itself on
    some calls and not on others, and which ones changes with its version.

    Raises:
        Exception: what `call` raised last, after so many `tries`, or at once if asking again cannot help.
    """
    for attempt in range(tries):
        try:
            return call()
        except (HfHubHTTPError, httpx.TransportError, OSError) as error:
            wait = _seconds_to_wait(error, attempt)
            if wait is None or attempt == tries - 1:
                raise
            # Neither address nor headers: they could hold what is private.
            logger.info("The Hub could not answer (%s): asking again in %g s.", type(error).__name__, wait)
        time.sleep(wait)
    raise AssertionError("unreachable")


def _seconds_to_wait(error: Exception, attempt: int) -> float | None:
    """How long to wait before the next try; None where the error is final."""
    usual = float(min(2**attempt, 8))
    if isinstance(error, HfHubHTTPError):
        if error.response.status_code not in _NOT_NOW:
            return None
        asked = error.response.headers.get("Retry-After", "")
        return min(float(asked), LONGEST_WAIT) if asked.isdecimal() else usual
    if isinstance(error, httpx.TransportError):
        # Where nobody listens, nobody will listen in a few seconds.
        return None if isinstance(error, httpx.ConnectError) else usual
    # A file shorter than promised is an OSError that no operating system has raised.
    return usual if type(error) is OSError and error.errno is None else None


def why_not_found(error: Exception) -> str:
    """One line for the Hub's three ways to say no."""
    if isinstance(error, GatedRepoError):
        return f"is gated: ask for access on {endpoint()} and log in (`hf auth login`)"
    if isinstance(error, RevisionNotFoundError):
        return "has no such revision"
    return f"is no repository on {endpoint()}, or a private one that your token may not read"


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` is set."""
    return bool(constants.HF_HUB_OFFLINE)


def cached_revision(id: str, revision: str | None = None) -> str | None:
    """The newest commit of a repository in the local cache that has a config, or that of a branch or tag."""
    folder = _cache_folder(id)
    ref = folder / "refs" / (revision or "main")
    if ref.is_file():
        sha = ref.read_text().strip()
        return sha if is_sha(sha) else None
    if revision is not None:
        return None
    configs = [path for path in folder.glob(f"snapshots/*/{CONFIG_NAME}") if is_sha(path.parent.name)]
    newest = max(configs, key=lambda path: path.lstat().st_mtime, default=None)
    return newest.parent.name if newest else None


def _cache_folder(id: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=id, repo_type="model")


def cached_ids(author: str) -> list[str]:
    """The repositories of a user or organisation in the local cache."""
    prefix = f"models--{author}--"
    return sorted(
        f"{author}/{folder.name.removeprefix(prefix)}"
        for folder in Path(constants.HF_HUB_CACHE).glob(f"{prefix}*")
        if folder.is_dir()
    )


def in_parallel(
    function: Callable[[Item], Result], items: Iterable[Item], *, description: str, workers: int = WORKERS
) -> list[Result]:
    """`function` of every item, in order, with a bounded number of threads and a progress bar."""
    items = list(items)
    with quiet_client(), ThreadPoolExecutor(min(workers, len(items) or 1)) as executor:
        return list(progress(executor.map(function, items), description=description, total=len(items), unit="member"))


@contextmanager
def quiet_client(quiet: bool = True) -> Iterator[None]:
    """Without the client's own progress bars, one for each small file, below ours."""
    global _quiet
    # Where HF_HUB_DISABLE_PROGRESS_BARS is set, the user has decided already and the client refuses to be told.
    if not quiet or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        yield
        return
    with _quiet_lock:
        if _quiet or not are_progress_bars_disabled(_CLIENT_BARS):
            _quiet += 1
            counted = True
            disable_progress_bars(_CLIENT_BARS)
        else:
            counted = False  # Somebody else's wish, which is not ours to end.
    try:
        yield
    finally:
        if counted:
            with _quiet_lock:
                _quiet -= 1
                if not _quiet:
                    enable_progress_bars(_CLIENT_BARS)


def is_terminal() -> bool:
    """Whether somebody watches."""
    return sys.stderr.isatty()
