"""Requests, counted: a large organisation costs its pages, a member its files, what is cached nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from hf_dfml import ModelPool
from tests.hub_server import HubServer
from tests.pool.members import files_of

MANY = 1000
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def seen_by(hub: HubServer) -> Counter[str]:
    """The requests since the last call."""
    seen = Counter(f"{request.method} {request.path}" for request in hub.requests)
    hub.requests.clear()
    return seen


@pytest.fixture
def large(hub, members) -> HubServer:
    """An organisation of a thousand repositories, in pages of a hundred."""
    hub.page_size = 100
    files = files_of(members / "m-0")
    for index in range(MANY):
        hub.add_repo(f"org/m-{index:04d}", files)
    return hub


def test_a_thousand_repositories_cost_ten_requests_and_a_member_its_own(large):
    pool = ModelPool.from_hub("org")
    assert len(pool) == MANY and seen_by(large) == {"GET /api/models": 10}
    assert [entry.revision for entry in pool] == [large.repos[entry.id].branches["main"] for entry in pool]
    pool.load(17)
    pool.load("org/m-0999")
    revisions = {index: pool[index].revision for index in (17, 999)}
    assert seen_by(large) == {
        f"{method} /org/m-{index:04d}/resolve/{revision}/{name}": 1
        for method in ("HEAD", "GET")
        for index, revision in revisions.items()
        for name in ("config.json", "model.safetensors")
    }
    # Sampling, slicing, splitting and naming ask nothing.
    first, second = pool.split(0.5, torch.Generator().manual_seed(0))
    assert len(first[:10] + second.sample(3, torch.Generator().manual_seed(0))) == 13
    assert seen_by(large) == {}
    again = ModelPool.from_hub("org")
    again.load(17)
    again.load(999)
    assert seen_by(large) == {"GET /api/models": 10}


def test_a_locked_pool_of_a_thousand_is_opened_without_a_request(large, tmp_path):
    lock = ModelPool.from_hub("org").lock(tmp_path)
    seen_by(large)
    pool = ModelPool.open(lock)
    assert len(pool) == MANY and seen_by(large) == {}
    pool.load(500)
    assert seen_by(large).total() == 4


def test_every_revision_is_resolved_once(org):
    names = ["org/m-1", "org/m-2@main", "org/m-1", f"org/m-3@{org.repos['org/m-3'].branches['main']}"]
    pool = ModelPool.open(",".join(names))
    assert [entry.id for entry in pool] == ["org/m-1", "org/m-2", "org/m-3"]
    assert seen_by(org) == {"GET /api/models/org/m-1": 1, "GET /api/models/org/m-2/revision/main": 1}
    for _ in range(2):
        pool.resolve().usable(weights=True)
    seen = seen_by(org)
    assert max(seen.values()) == 1 and not any("/api/" in request for request in seen)
    assert seen.total() == 3 * 4


_OFFLINE = """
import json, sys
import torch
from hf_dfml import ModelPool

images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
for name in sys.argv[1:]:
    pool = ModelPool.open(name)
    print(json.dumps({entry.id: pool.load(entry)(images).tolist() for entry in pool}))
"""


def test_another_process_offline_finds_what_was_used(org, tmp_path):
    pool = ModelPool.from_hub("org")[1:3]
    expected = {entry.id: pool.load(entry)(IMAGES).tolist() for entry in pool}
    names = ["org", "org/m-1,org/m-2", str(pool.lock(tmp_path))]
    seen_by(org)
    settings = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": org.url, "HF_HUB_CACHE": constants.HF_HUB_CACHE}
    done = subprocess.run(
        [sys.executable, "-c", _OFFLINE, *names],
        env=os.environ | settings,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines()[-3:]:
        found = json.loads(line)
        assert found.keys() == expected.keys()
        assert all(torch.equal(torch.tensor(found[id]), torch.tensor(expected[id])) for id in expected)
    assert seen_by(org) == {}
