"""Pools from a Hub that nobody here wrote: `olah`, a mirror of the Hugging Face Hub (`pip install olah`).

Once it serves git repositories by itself, without any other server; once it stands between the client and the tests'
own Hub, as a mirror in an office does.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from hf_dfml import ModelPool
from tests.pool.members import files_of

OLAH = shutil.which("olah-cli", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
pytestmark = [
    pytest.mark.skipif(OLAH is None, reason="olah is not installed (pip install olah)"),
    pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed"),
]
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
PATIENCE = 60


@contextmanager
def olah(folder: Path, settings: dict[str, str], *, offline: bool) -> Iterator[str]:
    """The address of an olah with these settings, a cache of its own and no way to the internet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"host": '"127.0.0.1"', "port": str(port), "repos-path": f'"{folder / "olah-cache"}"', **settings}
    lines = ["[basic]", *(f"{name} = {value}" for name, value in settings.items())]
    (folder / "olah.toml").write_text("\n".join([*lines, "[accessibility]", f"offline = {str(offline).lower()}", ""]))
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with (folder / "olah.log").open("w") as log:
        process = subprocess.Popen(
            [OLAH, "-c", str(folder / "olah.toml"), "--log-path", str(folder / "olah-logs")],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, process, folder / "olah.log")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            opener.open(url, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return  # It answers, whatever it thinks of the page.
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.05)


def git(folder: Path, *words: str) -> str:
    author = {f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    settings = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", **author}
    done = subprocess.run(
        ["git", *words], cwd=folder, env=os.environ | settings, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def commit(folder: Path, files: dict[str, bytes]) -> str:
    """A commit of these files, the weights in large file storage as on the Hub; returns its sha."""
    if not folder.exists():
        folder.mkdir(parents=True)
        git(folder, "init", "--quiet", "--initial-branch", "main")
    for name, content in files.items():
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(content).hexdigest()
            stored = folder / ".git" / "lfs" / "objects" / digest[:2] / digest[2:4] / digest
            stored.parent.mkdir(parents=True, exist_ok=True)
            stored.write_bytes(content)
            content = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()
            )
        (folder / name).write_bytes(content)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "files")
    return git(folder, "rev-parse", "HEAD")


def same(pool: ModelPool, local: ModelPool) -> bool:
    return all(torch.equal(pool.load(index)(IMAGES), local.load(index)(IMAGES)) for index in range(len(pool)))


def test_git_repositories_behind_olah_are_a_pool(members, tmp_path, monkeypatch):
    folders = {name: tmp_path / "mirrors" / "models" / "org" / name for name in ("m-0", "m-1", "m-2")}
    first = {name: commit(folder, files_of(members / name)) for name, folder in folders.items()}
    git(folders["m-0"], "tag", "v1")
    newest = commit(folders["m-0"], files_of(members / "m-4"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    with olah(tmp_path, {"mirrors-path": f'["{tmp_path / "mirrors"}"]'}, offline=True) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        # With revisions: without one, olah asks the internet for the newest commit, also of what it has itself.
        pool = ModelPool.from_hub(["org/m-0@v1", "org/m-1@main", f"org/m-2@{first['m-2']}", "org/none"])
        assert [entry.revision for entry in pool[:3]] == list(first.values())
        assert "is no repository" in pool[3].problem
        assert [entry.id for entry in pool.usable(weights=True)] == ["org/m-0", "org/m-1", "org/m-2"]
        assert same(pool[:3], ModelPool.from_dir(members))
        assert ModelPool.from_hub(["org/m-0@main"])[0].revision == newest
        lock = pool[:3].lock(tmp_path)
    # The server is gone; what was fetched is in the cache, and is what the lock file names.
    assert same(ModelPool.open(lock), ModelPool.from_dir(members))


def test_olah_between_the_client_and_a_hub(org, members, tmp_path, monkeypatch):
    netloc = org.url.removeprefix("http://")
    settings = {"hf-scheme": '"http"', "hf-netloc": f'"{netloc}"', "hf-lfs-netloc": f'"{netloc}"'}
    with olah(tmp_path, settings, offline=False) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        pool = ModelPool.from_hub([f"org/m-{index}" for index in range(2)])
        assert [entry.revision for entry in pool] == [org.repos[entry.id].branches["main"] for entry in pool]
        assert same(pool, ModelPool.from_dir(members))
        contents = org.count("GET", "/org/.*/resolve/.*/model.safetensors")
        assert contents >= 2, "it came from the Hub behind it"
        # Another client's empty cache: olah has the weights by now.
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another-cache"))
        assert same(ModelPool.from_hub([entry.id for entry in pool]), ModelPool.from_dir(members))
        assert org.count("GET", "/org/.*/resolve/.*/model.safetensors") == contents
