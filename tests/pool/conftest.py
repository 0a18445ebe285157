"""The pool's tests share a folder of good members, and a Hub that has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub_server import HubServer
from tests.pool.members import files_of, write_pool


@pytest.fixture(scope="session")
def members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five good members; not to be changed."""
    return write_pool(tmp_path_factory.mktemp("pools") / "good", 5)


@pytest.fixture
def org(hub: HubServer, members: Path) -> HubServer:
    """That Hub with the five good members as `org/m-0` to `org/m-4`."""
    for folder in sorted(members.iterdir()):
        hub.add_repo(f"org/{folder.name}", files_of(folder))
    return hub
