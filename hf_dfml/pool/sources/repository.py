"""A stored model by its name, and a repository for one."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, RepoUrl
from safetensors import SafetensorError

from hf_dfml import zoo
from hf_dfml.pool.entry import CONFIG_NAME, WEIGHTS_NAME, MemberError
from hf_dfml.pool.sources.client import HubOptions, check_id, looking_for, retry
from hf_dfml.pool.sources.download import download, resolve_revision
from hf_dfml.pool.sources.ids import without_page
from hf_dfml.pool.sources.local_cache import note_revision
from hf_dfml.pool.sources.lock import LOCK_NAME, files_beside
from hf_dfml.pool.sources.near import did_you_mean


def locate(name: str | Path, what: str, options: HubOptions, *, force: bool = False) -> tuple[Path, str, str | None]:
    """Folder on this disk, id and commit of a stored model; fetches its two files.

    Args:
        name: a folder, `org/name`, `org/name@revision`, either with `hf:` or `hf-hub:` before it, the address of its
            page on the Hub, or `zoo:NAME`.
        what: a word for it in errors, such as "meta-model".
        options: how the Hub is asked.
        force: whether files are downloaded although they are in the cache.

    Raises:
        FileNotFoundError: if there is no such folder, or no model in it.
        MemberError: if there is no such repository, or it lacks one of the files.
        ValueError: for a page of the Hub that is not a model's.
    """
    name = without_page(name) if isinstance(name, str) else name
    if str(name).startswith(zoo.PREFIX):
        return zoo.folder_of(str(name)), str(name), None
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / CONFIG_NAME).is_file():
            raise FileNotFoundError(f"{path} holds no {what}: expected {CONFIG_NAME} and {WEIGHTS_NAME} in it.")
        return path, path.resolve().name, None
    if isinstance(name, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        expected = f"expected a {what}'s folder or a Hub id (org/name)"
        raise FileNotFoundError(f"There is no folder {name}: {expected}.{did_you_mean(str(name))}")
    id, _, tag = name.removeprefix("hf:").partition("@")
    try:
        with looking_for(name):
            _, sha = resolve_revision(id, options.revision or tag or None, options)
    except MemberError as error:
        raise MemberError(id, f"{error.reason} (and there is no folder of that name here)") from error
    config = download(id, CONFIG_NAME, sha, options, force=force)
    download(id, WEIGHTS_NAME, sha, options, force=force)
    note_revision(id, options.revision or tag or None, sha, options)  # So that it is found offline.
    return config.parent, id, sha


def create_repository(api: HfApi, repo_id: str, private: bool | None) -> RepoUrl:
    """The address of a repository that is made if it does not exist.

    Args:
        api: the client.
        repo_id: `org/name`.
        private: whether a new one is private; None: the organisation's setting.

    Raises:
        ValueError: if `repo_id` is not valid, or the repository is public and a private one was asked for.
    """
    check_id(repo_id)
    address = retry(lambda: api.create_repo(repo_id, private=private or None, exist_ok=True))
    if private and not retry(lambda: api.model_info(address.repo_id)).private:
        raise ValueError(f"{address.repo_id} exists and is public: make it private there, or push elsewhere.")
    return address


def upload(repo_id: str, folder: Path, options: HubOptions, own: Sequence[str], **further: Any) -> None:
    """Upload a folder in place of what an earlier push has left on the branch, in one commit.

    Of our own files, and of the members that lie beside a lock file, those that the folder lacks are deleted. Files of
    any other name stay. The history of the repository keeps all of them.

    Args:
        repo_id: an existing repository.
        folder: its files.
        options: how the Hub is asked.
        own: names of our own files; none: nothing is deleted.
        **further: options of `HfApi.upload_folder`.
    """
    api = options.api()
    outdated = [*own, *_members_beside_lock(repo_id, further.get("revision"), options)] if own else None
    arguments = {"delete_patterns": outdated, **further}
    retry(lambda: api.upload_folder(repo_id=repo_id, folder_path=folder, **arguments))


def _members_beside_lock(repo_id: str, revision: str | None, options: HubOptions) -> list[str]:
    try:
        _, sha = resolve_revision(repo_id, revision, options)
        return files_beside(repo_id, download(repo_id, LOCK_NAME, sha, options))
    except MemberError:  # Nothing was pushed there yet, or no lock file.
        return []


@contextmanager
def put_together(repo_id: str) -> Iterator[Path]:
    """A folder for the files that are to be published, deleted at the end of the block.

    Raises:
        OSError: if there is no room for them; names the folder and what to do.
    """
    place = "the folder for temporary files"
    try:
        with tempfile.TemporaryDirectory() as folder:
            place = str(Path(folder).parent)
            yield Path(folder)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) != errno.ENOSPC and "No space left" not in str(error):
            raise
        raise OSError(
            f"{repo_id} was not published: {place}, where its files are put together, is full ({error}). Make room "
            "there, or set TMPDIR to a folder with more, and push again."
        ) from error
