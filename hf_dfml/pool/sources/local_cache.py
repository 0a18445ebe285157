"""The Hub's cache on this disk, in huggingface_hub's own layout: what is in it, and how a file leaves it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from huggingface_hub.file_download import repo_folder_name

from hf_dfml.pool.entry import CONFIG_NAME
from hf_dfml.pool.sources.client import USUAL, HubOptions, is_sha


def cached_file(id: str, name: str, revision: str, options: HubOptions = USUAL) -> Path:
    """Where a file of a commit lies in the local cache, once it was downloaded."""
    return _folder_of(id, options) / "snapshots" / revision / name


def cached_ids(author: str, options: HubOptions = USUAL) -> list[str]:
    """The repositories of a user or organisation in the local cache."""
    prefix = f"models--{author}--"
    folders = (folder for folder in options.cache.glob(f"{prefix}*") if folder.is_dir())
    return sorted(f"{author}/{folder.name.removeprefix(prefix)}" for folder in folders)


def cached_revision(id: str, revision: str | None = None, options: HubOptions = USUAL) -> str | None:
    """The commit that a branch or tag (None: `main`) stood for when the Hub was last asked.

    Where nobody has noted any, and none is named: the newest commit here that has a config.
    """
    folder = _folder_of(id, options)
    ref = folder / "refs" / (revision or "main")
    if ref.is_file():
        sha = ref.read_text().strip()
        return sha if is_sha(sha) else None
    if revision is not None or any(path.is_file() for path in folder.glob("refs/**/*")):
        return None
    configs = [path for path in folder.glob(f"snapshots/*/{CONFIG_NAME}") if is_sha(path.parent.name)]
    newest = max(configs, key=lambda path: path.lstat().st_mtime, default=None)
    return newest.parent.name if newest else None


def note_revision(id: str, revision: str | None, sha: str, options: HubOptions = USUAL) -> None:
    """Note which commit a branch or tag (None: `main`) stands for, as the client does where it resolves one itself."""
    ref = _folder_of(id, options) / "refs" / (revision or "main")
    if not is_sha(revision) and not options.offline and not (ref.is_file() and ref.read_text() == sha):
        with suppress(OSError):  # A cache that others filled may be read-only.
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(sha)


def discard(path: Path) -> None:
    """Delete a file of the local cache: its content, and its name in every commit of its repository that has it."""
    blob = blob_of(path)
    content = blob.resolve()
    for link in {path, *path.parent.parent.glob(f"*/{path.name}")}:
        if blob_of(link) == blob:
            link.unlink(missing_ok=True)
    shared = blob.is_symlink()
    blob.unlink(missing_ok=True)
    if shared:
        # Newer clients keep one copy for all repositories that have it, to which their blobs are links.
        cache = path.parents[3]  # <cache>/<repository>/snapshots/<commit>/<file>
        if not any(link.resolve() == content for link in cache.glob("*--*/blobs/*") if link.is_symlink()):
            content.unlink(missing_ok=True)


def blob_of(path: Path) -> Path:
    """The file after whose content the cache names it: one step, since it can be a link itself."""
    return Path(os.path.normpath(path.parent / path.readlink())) if path.is_symlink() else path


def _folder_of(id: str, options: HubOptions) -> Path:
    return options.cache / repo_folder_name(repo_id=id, repo_type="model")
