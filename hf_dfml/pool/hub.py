"""The one place where the Hub's client is made, so that every call says who asks and goes to the right server."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)

from hf_dfml.pool.entry import CONFIG_NAME, MemberError
from hf_dfml.utils.progress import progress

WORKERS = 8
_CLIENT_BARS = "huggingface_hub"  # The group of all bars that the client draws by itself.
_SHA = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"\w[\w.\-/]{0,254}")
Item = TypeVar("Item")
Result = TypeVar("Result")


def hub_api() -> HfApi:
    """The Hub's client: sends our name and version, and obeys `HF_ENDPOINT` even if it was set after the import."""
    try:
        library_version = version("hf_dfml")
    except PackageNotFoundError:  # A source tree that was never installed.
        library_version = "0"
    return HfApi(endpoint=endpoint(), library_name="hf_dfml", library_version=library_version)


def endpoint() -> str:
    """The address of the Hub, or of the self-hosted one that `HF_ENDPOINT` names."""
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def is_sha(revision: str | None) -> bool:
    """Whether a revision is a full commit sha, whose files never change."""
    return revision is not None and _SHA.fullmatch(revision) is not None


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
        sha = hub_api().model_info(id, revision=revision).sha
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise MemberError(id, why_not_found(error)) from error
    if not is_sha(sha):
        raise MemberError(id, f"the Hub gives the revision '{sha}', expected a commit sha")
    assert sha is not None
    return sha


def download(id: str, name: str, revision: str) -> Path:
    """One file of a commit, from the local cache if it is there (then nothing is sent).

    Raises:
        MemberError: if the repository has no such file or may not be read.
    """
    check_id(id, revision)
    try:
        return Path(hub_api().hf_hub_download(id, name, revision=revision))
    except LocalEntryNotFoundError as error:
        if not is_offline():
            raise  # The connection failed: that is not the member's fault.
        raise MemberError(id, f"{name} is not in the local cache, and HF_HUB_OFFLINE is set") from error
    except EntryNotFoundError as error:
        raise MemberError(id, f"has no {name}") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise MemberError(id, why_not_found(error)) from error


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
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=id, repo_type="model")
    ref = folder / "refs" / (revision or "main")
    if ref.is_file():
        sha = ref.read_text().strip()
        return sha if is_sha(sha) else None
    if revision is not None:
        return None
    configs = [path for path in folder.glob(f"snapshots/*/{CONFIG_NAME}") if is_sha(path.parent.name)]
    newest = max(configs, key=lambda path: path.lstat().st_mtime, default=None)
    return newest.parent.name if newest else None


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
    # Where HF_HUB_DISABLE_PROGRESS_BARS is set, the user has decided already and the client refuses to be told.
    quiet = quiet and constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled(_CLIENT_BARS)
    if quiet:
        disable_progress_bars(_CLIENT_BARS)
    try:
        yield
    finally:
        if quiet:
            enable_progress_bars(_CLIENT_BARS)


def is_terminal() -> bool:
    """Whether somebody watches."""
    return sys.stderr.isatty()
