"""Files of the next members come in the background: bounded, once each, errors where the member is asked for."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest
import torch

from hf_dfml import ModelPool
from hf_dfml.pool import MemberError, PoolEntry
from hf_dfml.pool.sources.prefetch import Prefetcher
from tests.hub_server import Answer, Request

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
PATIENCE = 20
"""Seconds after which a test gives up waiting for another thread."""


def entries(count: int) -> list[PoolEntry]:
    return [PoolEntry(id=f"org/m-{index}", revision="0" * 40) for index in range(count)]


class Source:
    """A slow source of members that counts."""

    def __init__(self, fail: str = "") -> None:
        self.calls: Counter[str] = Counter()
        self.order: list[str] = []
        self.fail = fail
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)
        self.now = self.most = 0
        self.lock = threading.Lock()

    def __call__(self, entry: PoolEntry) -> PoolEntry:
        with self.lock:
            self.calls[entry.id] += 1
            self.order.append(entry.id)
            self.now += 1
            self.most = max(self.most, self.now)
        self.begun.release()
        assert self.gate.wait(PATIENCE)
        with self.lock:
            self.now -= 1
        if entry.id == self.fail:
            raise MemberError(entry.id, "has no config.json")
        return entry


def eventually(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "another thread did not do its work"
        time.sleep(0.005)


def test_a_bounded_number_of_members_is_fetched_at_a_time_in_order():
    source = Source()
    prefetcher = Prefetcher(source, workers=3)
    prefetcher.start(entries(8))
    for _ in range(3):
        assert source.begun.acquire(timeout=PATIENCE)
    assert not source.begun.acquire(timeout=0.05)
    source.gate.set()
    for entry in entries(8):
        assert prefetcher.get(entry) == entry
    assert source.most == 3 and source.calls == {entry.id: 1 for entry in entries(8)}
    assert sorted(source.order[:3]) == ["org/m-0", "org/m-1", "org/m-2"]
    with pytest.raises(ValueError, match="workers=0"):
        Prefetcher(source, workers=0)


def test_a_member_that_waits_in_the_queue_is_fetched_by_who_needs_it_now():
    source = Source()
    prefetcher = Prefetcher(source, workers=1)
    prefetcher.start(entries(5))
    assert source.begun.acquire(timeout=PATIENCE)  # The worker is busy with the first one.
    asked = threading.Thread(target=prefetcher.get, args=(entries(5)[4],))
    asked.start()
    assert source.begun.acquire(timeout=PATIENCE)
    assert source.order == ["org/m-0", "org/m-4"]
    source.gate.set()
    asked.join(PATIENCE)
    eventually(lambda: source.calls.total() == 5)
    assert max(source.calls.values()) == 1


def test_many_threads_that_want_one_member_fetch_it_once():
    source = Source()
    prefetcher = Prefetcher(source, workers=2)
    found: list[PoolEntry] = []
    threads = [threading.Thread(target=lambda: found.append(prefetcher.get(entries(1)[0]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    prefetcher.start(entries(1))
    assert source.begun.acquire(timeout=PATIENCE)
    source.gate.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(found) == 8 and source.calls["org/m-0"] <= 2  # A thread that comes late finds nothing on its way.


def test_threads_end_with_the_queue():
    source = Source()
    source.gate.set()
    prefetcher = Prefetcher(source, workers=2)
    prefetcher.start(entries(4))

    def alive() -> int:
        return sum(thread.name == "hf_dfml-prefetch" and thread.is_alive() for thread in threading.enumerate())

    eventually(lambda: source.calls.total() == 4 and alive() == 0)
    prefetcher.start(entries(6)[4:])
    eventually(lambda: source.calls.total() == 6)


def test_an_error_is_raised_where_the_member_is_asked_for_and_then_tried_again():
    source = Source(fail="org/m-1")
    source.gate.set()
    prefetcher = Prefetcher(source)
    prefetcher.start(entries(3))
    assert prefetcher.get(entries(3)[0]).id == "org/m-0" and prefetcher.get(entries(3)[2]).id == "org/m-2"
    with pytest.raises(MemberError, match="org/m-1 has no config.json"):
        prefetcher.get(entries(3)[1])
    source.fail = ""
    assert prefetcher.get(entries(3)[1]).id == "org/m-1"


def test_prefetch_returns_at_once_and_load_sends_nothing_more(org, members):
    pool = ModelPool.from_hub("org")
    gate = threading.Event()

    def wait(request: Request) -> Answer | None:
        assert gate.wait(PATIENCE)
        return None

    org.fault = wait
    pool.prefetch([3, 1])  # Would not return if it waited for the server.
    gate.set()
    teacher = pool.load(3)
    pool.load(1)
    content = [request.path for request in org.requests if request.method == "GET" and "/resolve/" in request.path]
    assert len(content) == len(set(content)) == 4 and len(org.requests) == 1 + 8
    assert torch.equal(teacher(IMAGES), ModelPool.from_dir(members).load(3)(IMAGES))
    pool.prefetch([3, 1])
    pool.prefetch([3])
    assert len(org.requests) == 1 + 8
    assert pool.cache.loads == 2


def test_prefetch_takes_no_memory(org):
    pool = ModelPool.from_hub("org", cache_bytes=0)
    pool.prefetch(range(5))
    eventually(lambda: org.count("GET", ".*/resolve/.*/model.safetensors") == 5)
    assert pool.cache.bytes == 0 and pool.cache.loads == 0


def test_stream_gives_every_teacher_in_order_each_fetched_once(org, members):
    pool = ModelPool.from_hub("org", cache_bytes=0)
    local = ModelPool.from_dir(members)
    order = [2, 0, 4, 1, 3]
    for index, teacher in zip(order, pool.stream(order, ahead=2), strict=True):
        assert teacher.entry.id == f"org/m-{index}"
        assert torch.equal(teacher(IMAGES), local.load(index)(IMAGES))
    assert [teacher.entry.id for teacher in local.stream()] == [entry.id for entry in local]
    assert len(org.requests) == 1 + 5 * 4 and pool.cache.loads == 5


def test_the_next_members_are_on_their_way_while_the_current_one_is_used(org):
    pool = ModelPool.from_hub("org")
    walked = pool.walk(ahead=2)
    assert next(walked) == 0
    eventually(lambda: org.count("GET", ".*/resolve/.*/model.safetensors") == 2)
    assert org.count("GET", "/org/m-[12]/resolve/.*/model.safetensors") == 2, "not 0, which nobody has asked for"
    assert next(walked) == 1
    eventually(lambda: org.count("GET", "/org/m-3/resolve/.*/model.safetensors") == 1)
    assert org.count("GET", "/org/m-4/") == 0


def test_a_bad_member_stops_the_stream_at_its_place_only(org):
    org.add_repo("org/m-1", {"model.safetensors": b"cut"})
    pool = ModelPool.from_hub("org")
    stream = pool.stream()
    assert next(stream).entry.id == "org/m-0"
    with pytest.raises(MemberError, match="org/m-1: model.safetensors is damaged"):
        next(stream)
    assert next(iter(pool.stream([2]))).entry.id == "org/m-2"


def test_a_pool_of_folders_needs_no_threads(members):
    pool = ModelPool.from_dir(members)
    before = threading.active_count()
    pool.prefetch(range(5))
    assert threading.active_count() == before


def test_derived_pools_share_what_is_on_its_way(org):
    pool = ModelPool.from_hub("org")
    pool.prefetch([4])
    pool[3:].load(1)
    assert org.count("GET", "/org/m-4/resolve/") == 2
