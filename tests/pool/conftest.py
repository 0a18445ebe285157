"""The pool's tests share a folder of good members and a Hub on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.hub_server import HubServer
from tests.pool.members import files_of, write_pool


@pytest.fixture(scope="session")
def members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five good members; not to be changed."""
    return write_pool(tmp_path_factory.mktemp("pools") / "good", 5)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An empty Hub with pages of ten models, an empty cache, and its user logged in."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    with HubServer(page_size=10) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server


@pytest.fixture
def org(hub: HubServer, members: Path) -> HubServer:
    """That Hub with the five good members as `org/m-0` to `org/m-4`."""
    for folder in sorted(members.iterdir()):
        hub.add_repo(f"org/{folder.name}", files_of(folder))
    return hub
