"""Budgets of disk and memory, and the limit of a file, for pools from the Hub."""

from __future__ import annotations

import gzip
import os
import threading
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from hf_dfml import ModelPool
from hf_dfml.pool import MemberError
from hf_dfml.pool.building.publishing import push_pool
from hf_dfml.pool.model_pool import GB
from hf_dfml.pool.sources.download import _promised_hash, download
from hf_dfml.pool.sources.local_cache import cached_file, discard
from hf_dfml.pool.sources.storage import Storage
from hf_dfml.utils.json_files import MAX_JSON_BYTES
from tests.hub_server import HubServer
from tests.pool.members import files_of

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def weights_in_cache() -> set[str]:
    """The members whose weights the local cache holds, and that it holds nothing that none of them needs."""
    cache = Path(constants.HF_HUB_CACHE)
    found = {path for path in cache.glob("models--org--*/snapshots/*/model.safetensors") if path.is_file()}
    blobs = {path for path in cache.glob("models--*/blobs/*") if path.stat().st_size > 4000}
    assert {path.resolve() for path in found} == blobs
    return {path.parts[-4].removeprefix("models--org--") for path in found}


def downloads(hub: HubServer) -> list[str]:
    """The members whose weights were sent since the last call."""
    seen = [
        request.path.split("/")[2]
        for request in hub.requests
        if request.method == "GET" and request.path.endswith("/model.safetensors")
    ]
    hub.requests.clear()
    return seen


@pytest.fixture
def size(members) -> int:
    return (members / "m-0" / "model.safetensors").stat().st_size


def test_the_weights_used_longest_ago_make_room(org, members, size):
    pool = ModelPool.from_hub("org").with_limits(memory_gb=0, disk_gb=3.5 * size / GB)
    local = ModelPool.from_dir(members)
    for index in (0, 1, 2, 0, 3):
        assert torch.equal(pool.load(index)(IMAGES), local.load(index)(IMAGES))
        assert pool.storage.bytes <= 3.5 * size
    assert weights_in_cache() == {"m-0", "m-2", "m-3"} and pool.storage.evicted == 1
    assert downloads(org) == ["m-0", "m-1", "m-2", "m-3"]
    pool[1:3].load(0)  # Pools made from it share its budget.
    assert downloads(org) == ["m-1"] and weights_in_cache() == {"m-0", "m-1", "m-3"}
    assert pool.storage.bytes == 3 * size


def test_every_member_is_fetched_once_by_a_stream_within_a_small_budget(org, members, size):
    pool = ModelPool.from_hub("org").with_limits(disk_gb=3 * size / GB)
    local = ModelPool.from_dir(members)
    for teacher, expected in zip(pool.stream(ahead=1), local.stream(), strict=True):
        assert torch.equal(teacher(IMAGES), expected(IMAGES))
    assert sorted(downloads(org)) == [f"m-{index}" for index in range(5)]
    assert len(weights_in_cache()) == 3


def test_a_budget_of_one_member_is_kept_by_many_threads(org, size, monkeypatch):
    pool = ModelPool.from_hub("org").with_limits(memory_gb=0, disk_gb=size / GB)
    most = []
    keep = Storage._keep
    monkeypatch.setattr(Storage, "_keep", lambda self, entry: (keep(self, entry), most.append(self.bytes)))
    pool.prefetch(range(5))
    threads = [threading.Thread(target=pool.load, args=(index,)) for index in (4, 0, 3, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads) and max(most) == size
    assert pool.usable(weights=True)[4].id == "org/m-4"
    assert len(weights_in_cache()) == 1


def test_weights_in_use_are_never_deleted(org, size):
    pool = ModelPool.from_hub("org").with_limits(memory_gb=0, disk_gb=2 * size / GB)
    with pool.on_disk(0) as entry:
        for index in (1, 2, 3):
            with pool.storage.using(pool[index], pool.storage.fetch):
                assert (entry.location / "model.safetensors").is_file()
    assert weights_in_cache() == {"m-0", "m-3"}


def test_what_was_in_the_cache_before_counts_and_other_commits_do_not(org, members, size):
    ModelPool.from_hub("org").usable(weights=True)
    before = ModelPool.from_hub("org")
    org.add_repo("org/m-4", files_of(members / "m-0"))
    downloads(org)
    os.utime(cached_file("org/m-2", "model.safetensors", before[2].revision), (1, 1))  # The oldest.
    pool = ModelPool.from_hub("org").with_limits(disk_gb=4 * size / GB)
    assert pool.storage.bytes == 4 * size, "m-4 is there at another commit"
    pool.load(4)
    assert downloads(org) == ["m-4"] and weights_in_cache() == {"m-0", "m-1", "m-3", "m-4"}
    assert torch.equal(before.load(4)(IMAGES), ModelPool.from_dir(members).load(4)(IMAGES)) and downloads(org) == []
    # A smaller budget is made true with the next member that is used, whether it must be fetched or not.
    smaller = before.with_limits(disk_gb=2 * size / GB)
    smaller.load(3)
    assert smaller.storage.bytes == 2 * size


def test_a_file_over_the_limit_is_refused_by_name_before_its_content_is_read(org, size):
    org.add_repo("org/m-2", {"model.safetensors": b"\0" * (2 * size)})
    pool = ModelPool.from_hub("org").with_limits(file_gb=1.5 * size / GB)
    words = f"org/m-2: model.safetensors has {2 * size:,} bytes or more; at most {round(1.5 * size):,} are downloaded"
    with pytest.raises(MemberError, match=words):
        pool.load(2)
    assert [entry.id for entry in pool.usable(weights=True)] == ["org/m-0", "org/m-1", "org/m-3", "org/m-4"]
    assert weights_in_cache() == {"m-0", "m-1", "m-3", "m-4"}
    tiny = ModelPool.from_hub("org").with_limits(disk_gb=0.5 * size / GB)
    with pytest.raises(MemberError, match=f"has {2 * size:,} bytes, and the disk budget of all members is"):
        tiny.load(2)


def test_a_file_that_grows_on_its_way_is_cut_off_at_the_limit(org, size):
    """HEAD tells the size of a small file, and the content is one that unpacks to a large one."""

    def bomb(request):
        answer = org.respond(request)
        if request.method == "GET" and request.path.endswith("/model.safetensors"):
            answer.body = gzip.compress(b"\0" * (100 << 20))
            answer.headers["Content-Encoding"] = "gzip"
        return answer

    org.fault = bomb
    pool = ModelPool.from_hub("org").with_limits(file_gb=2 * size / GB)
    with pytest.raises(MemberError, match="org/m-0: model.safetensors has .* bytes or more; at most"):
        pool.load(0)
    assert weights_in_cache() == set()


def test_a_giant_config_is_not_downloaded(org):
    org.add_repo("org/m-1", {"config.json": b" " * (MAX_JSON_BYTES + 1)})
    pool = ModelPool.from_hub("org").resolve()
    assert f"config.json has {MAX_JSON_BYTES + 1:,} bytes or more; at most" in pool[1].problem
    assert not any(path.stat().st_size > MAX_JSON_BYTES for path in Path(constants.HF_HUB_CACHE).rglob("*"))


def test_a_lock_file_names_the_bytes_of_weights_that_are_gone(org, tmp_path, size):
    whole = ModelPool.from_hub("org")
    whole.usable(weights=True)
    expected = whole.resolve().lock(tmp_path / "whole.json").read_text()
    pool = whole.resolve().with_limits(memory_gb=0, disk_gb=2 * size / GB)
    for _ in pool.stream():
        pass
    assert len(weights_in_cache()) == 2
    assert pool.lock(tmp_path / "small.json").read_text() == expected
    locked = ModelPool.from_lock(tmp_path / "small.json").with_limits(disk_gb=2 * size / GB)
    assert len(locked.usable(weights=True)) == 5 and len(weights_in_cache()) == 2


def test_a_push_within_a_budget_sends_all_weights(org, size):
    pool = ModelPool.from_hub("org").with_limits(disk_gb=size / GB)
    push_pool(pool, "me")
    pushed = {id: repo.at("main").files["model.safetensors"].sha256 for id, repo in org.repos.items()}
    assert all(pushed[f"me/m-{index}"] == pushed[f"org/m-{index}"] for index in range(5))


def test_one_copy_for_many_repositories_is_checked_by_its_hash_and_deleted_with_the_last(org, size):
    """The layout of newer clients for what they get through Xet: blobs are links into a store with other hashes."""
    pool = ModelPool.from_hub(["org/m-0", "org/m-1"])
    cache = Path(constants.HF_HUB_CACHE)
    path = download("org/m-0", "model.safetensors", pool[0].revision)
    blob = path.resolve()
    store = cache / "blobs" / "ab" / ("ab" + "0" * 62)
    store.parent.mkdir(parents=True)
    blob.rename(store)
    blob.symlink_to(store)
    assert _promised_hash(path)[0] == _promised_hash(path)[1] == blob.name
    other = cache / "models--org--m-1" / "blobs" / blob.name
    other.parent.mkdir(parents=True, exist_ok=True)
    other.symlink_to(store)
    discard(path)
    assert not path.is_symlink() and not blob.is_symlink() and store.is_file(), "the other repository has it still"
    discard(other)
    assert not store.exists()


def test_memory_is_a_budget_too(org):
    pool = ModelPool.from_hub("org")
    pool.load(0)
    one = pool.cache.bytes
    small = pool.with_limits(memory_gb=2.5 * one / GB)
    for _ in small.stream():
        assert small.cache.bytes <= 2.5 * one
    assert small.cache.bytes == 2 * one
    with pytest.raises(ValueError, match="no negative number"):
        pool.with_limits(disk_gb=-1)
