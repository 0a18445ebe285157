"""What the local Hub server holds: repositories with commits, in memory. See `hub_server.py`."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".png", ".jpg")
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---", re.DOTALL)
_START = datetime(2026, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Blob:
    """The content of one file."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_oid(self) -> str:
        """The id that git gives the file itself, or the pointer that stands for it."""
        content = self.content
        if self.lfs:
            content = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(content)}\n".encode()
            )
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        """What the Hub compares files by."""
        return self.sha256 if self.lfs else self.git_oid


def is_lfs(path: str, size: int) -> bool:
    """What the default `.gitattributes` and the Hub's size limit send to large file storage."""
    return path.endswith(LFS_SUFFIXES) or size > 10 << 20


@dataclass(frozen=True)
class Commit:
    """One state of a repository."""

    sha: str
    files: dict[str, Blob]
    title: str
    date: datetime


@dataclass
class Repo:
    """A model repository."""

    id: str
    private: bool = False
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit({".gitattributes": Blob(b"*.safetensors filter=lfs\n", lfs=False)}, title="initial commit")

    def commit(self, files: dict[str, Blob], title: str, branch: str = "main") -> Commit:
        """Make `files` the content of a branch."""
        parent = self.branches.get(branch, "")
        content = [str(len(self.commits)), self.id, parent, title]
        content += [f"{path} {blob.git_oid}" for path, blob in sorted(files.items())]
        sha = hashlib.sha1("\n".join(content).encode()).hexdigest()
        commit = Commit(sha, files, title, _START + timedelta(seconds=len(self.commits)))
        self.commits.append(commit)
        self.branches[branch] = sha
        return commit

    def at(self, revision: str | None) -> Commit | None:
        """The commit of a branch, tag or sha."""
        name = (revision or "main").removeprefix("refs/heads/").removeprefix("refs/tags/")
        sha = self.branches.get(name) or self.tags.get(name) or name
        return next((commit for commit in self.commits if commit.sha == sha), None)

    def info(self, commit: Commit, *, full: bool, blobs: bool = False) -> dict[str, Any]:
        """The answer of model_info, and of list_models for one repository."""
        card = self.card(commit)
        library, task = card.get("library_name"), card.get("pipeline_tag")
        tags = [tag for tag in (library, *card.get("tags", []), task) if tag]
        answer: dict[str, Any] = {
            "_id": hashlib.md5(self.id.encode()).hexdigest()[:24],
            "id": self.id,
            "modelId": self.id,
            "author": self.id.split("/")[0],
            "private": self.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": list(dict.fromkeys(tags)),
            "createdAt": stamp(self.commits[0].date),
        }
        answer |= {"library_name": library} if library else {}
        answer |= {"pipeline_tag": task} if task else {}
        if full:
            answer |= {"sha": commit.sha, "lastModified": stamp(commit.date)}
            answer["siblings"] = [_sibling(path, blob, blobs) for path, blob in sorted(commit.files.items())]
        return answer

    def card(self, commit: Commit) -> dict[str, Any]:
        """The metadata at the top of the README."""
        readme = commit.files.get("README.md")
        match = _FRONT_MATTER.match(readme.content.decode()) if readme else None
        return yaml.safe_load(match[1]) or {} if match else {}

    def tree(self, commit: Commit, under: str = "", *, recursive: bool = False) -> list[dict[str, Any]]:
        """Files, and without `recursive` folders, below a folder."""
        prefix = f"{under.rstrip('/')}/" if under else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, blob in sorted(commit.files.items()):
            if not path.startswith(prefix):
                continue
            name, slash, _ = path[len(prefix) :].partition("/")
            if slash and not recursive:
                folder = prefix + name
                oid = hashlib.sha1(folder.encode()).hexdigest()
                entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": oid}
            else:
                entries[path] = file_entry(path, blob)
        return list(entries.values())

    def apply(self, lines: list[dict[str, Any]], objects: dict[str, bytes], branch: str) -> Commit:
        """A commit from the lines of the commit call.

        Raises:
            KeyError: if a line names a large file that was never uploaded.
        """
        parent = self.at(branch)
        assert parent is not None
        files, title = dict(parent.files), "commit"
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
            elif line["key"] == "lfsFile":
                files[value["path"]] = Blob(objects[value["oid"]], lfs=True)
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
            elif line["key"] == "deletedFolder":
                folder = value["path"].rstrip("/") + "/"
                files = {path: blob for path, blob in files.items() if not path.startswith(folder)}
        return self.commit(files, title, branch)


def file_entry(path: str, blob: Blob) -> dict[str, Any]:
    """One file as the tree and paths-info calls describe it."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.git_oid}
    if blob.lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 134}
    return entry


def _sibling(path: str, blob: Blob, blobs: bool) -> dict[str, Any]:
    sibling: dict[str, Any] = {"rfilename": path}
    if blobs:
        sibling |= {"size": len(blob.content), "blobId": blob.git_oid}
        if blob.lfs:
            sibling["lfs"] = {"size": len(blob.content), "sha256": blob.sha256, "pointerSize": 134}
    return sibling


def stamp(date: datetime) -> str:
    """A date as the Hub writes it."""
    return date.strftime("%Y-%m-%dT%H:%M:%S.000Z")
