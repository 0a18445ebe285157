"""What a Hub does on a bad day, one fault at a time: asked again where that helps, refused by name where not."""

from __future__ import annotations

import hashlib
import time

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError

from hf_dfml import ModelPool
from hf_dfml.pool import MemberError
from hf_dfml.pool.building.publishing import push_pool
from hf_dfml.pool.sources import client
from tests.hub_faults import Faults
from tests.hub_server import Answer

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """Seconds that somebody wanted to wait; nobody does."""
    waits: list[float] = []
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: (waits.append(seconds), sleep(min(seconds, 0.001)))[1])
    return waits


def same_as_local(pool: ModelPool, members) -> bool:
    local = ModelPool.from_dir(members)
    return all(torch.equal(pool.load(index)(IMAGES), local.load(index)(IMAGES)) for index in range(len(local)))


@pytest.mark.parametrize("kind", ["429", "503", "cut", "slow", "corrupted", "stale-etag"])
def test_every_fault_is_survived_when_all_answers_have_it_twice(org, members, waits, kind):
    org.fault = faults = Faults(org, rate=1, kinds=[kind], retry_after=7)
    pool = ModelPool.from_hub("org")
    assert len(pool) == 5
    assert same_as_local(pool, members)
    # A file has a HEAD and a GET, each faulty twice.
    assert faults.done[kind] >= 2 * 5 * 2
    if kind == "429":
        assert min(waits) >= 7, "as long as the server asks"
    assert same_as_local(ModelPool.from_hub("org"), members)


@pytest.mark.parametrize("kind", ["429", "503", "cut", "slow"])
def test_a_push_survives_them_too_and_commits_once(hub, members, waits, kind):
    hub.fault = faults = Faults(hub, rate=1, kinds=[kind])
    shas = push_pool(ModelPool.from_dir(members), "me")
    assert faults.done[kind] > 5 * 4
    assert shas == [hub.repos[f"me/m-{index}"].branches["main"] for index in range(5)]
    # The empty commit of a new repository, and one with the files.
    assert all(len(repo.commits) == 2 for repo in hub.repos.values())
    assert len(hub.objects) == 5
    hub.fault = None
    assert same_as_local(ModelPool.from_hub("me"), members)


def test_a_server_that_stays_down_is_an_error_after_some_tries_and_not_the_members_fault(org, waits):
    pool = ModelPool.from_hub("org")
    org.requests.clear()
    org.fault = lambda request: Answer.error(503, "", "down") if request.method == "GET" else None
    with pytest.raises(HfHubHTTPError) as caught:
        pool.load(0)
    assert not isinstance(caught.value, MemberError)
    assert org.count("GET") == client.TRIES
    assert waits == [1, 2, 4, 8, 8, 8, 8], "longer each time"
    org.requests.clear()
    with pytest.raises(HfHubHTTPError):
        ModelPool.from_hub(["org/m-1"])
    assert org.count("GET") == client.TRIES


def test_what_asking_again_cannot_help_is_asked_once(org, waits):
    org.requests.clear()
    assert "is no repository" in ModelPool.from_hub(["org/none"])[0].problem
    org.fault = lambda request: Answer.error(403, "", "no")
    assert "answers 403 (no)" in ModelPool.from_hub(["org/m-1"])[0].problem
    assert len(org.requests) == 2 and waits == []
    with pytest.raises(HfHubHTTPError):
        ModelPool.from_hub("org")  # The list of a user's models is nobody's fault.
    assert len(org.requests) == 3 and waits == []


@pytest.mark.parametrize("status", [403, 410, 451])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_one_repository_that_the_hub_refuses_is_left_out_by_name(org, waits, method, status):
    """A disabled one is listed as any other."""

    def refuse(request):
        if "org/m-1" in request.path and request.method == method:
            return Answer.error(status, "", "Access to this resource is disabled.")
        return None

    org.fault = refuse
    problem = f"cannot be read: {org.url} answers {status} (Access to this resource is disabled)"
    for names in ("org", [f"org/m-{index}" for index in range(5)]):
        pool = ModelPool.from_hub(names)
        assert [entry.id for entry in pool.usable(weights=True)] == ["org/m-0", "org/m-2", "org/m-3", "org/m-4"]
        assert [entry.problem for entry in pool.resolve()] == [None, problem, None, None, None]
    assert waits == []


def test_a_wait_that_a_server_asks_for_is_bounded(org, waits):
    def later(request):
        return Answer(429, b"{}", {"Retry-After": "86400"}) if len(org.requests) < 1 else None

    org.fault = later
    ModelPool.from_hub(["org/m-1"])
    assert waits == [client.LONGEST_WAIT]


@pytest.mark.parametrize(("limit", "wait"), [('"api";r=0;t=250', 251), ('"api"; r=0; t=86400', client.LONGEST_WAIT)])
@pytest.mark.parametrize("names", ["org", ["org/m-1"]], ids=["list", "model"])
def test_a_rate_limit_is_waited_for_until_its_end(org, waits, names, limit, wait):
    """The Hub says with a 429 when its window of five minutes ends, and not in `Retry-After`."""

    def later(request):
        policy = '"fixed window";"api";q=500;w=300'
        return Answer(429, b"{}", {"RateLimit": limit, "RateLimit-Policy": policy}) if not org.requests else None

    org.fault = later
    assert ModelPool.from_hub(names)[0].problem is None
    assert waits == [wait]


def test_bytes_that_arrive_damaged_each_time_are_refused_by_name(org, waits):
    pool = ModelPool.from_hub("org")
    seen = []

    def damage(request):
        if request.method != "GET" or not request.path.endswith("/model.safetensors") or "/m-2/" not in request.path:
            return None
        answer = org.respond(request)
        body = bytearray(answer.body)
        body[len(seen) + 500] ^= 1  # Another one each time: a line that is noisy, not a file that is another.
        seen.append(bytes(body))
        answer.body = bytes(body)
        return answer

    org.fault = damage
    expected = hashlib.sha256(org.repos["org/m-2"].at("main").files["model.safetensors"].content).hexdigest()
    with pytest.raises(MemberError, match=f"org/m-2: model.safetensors arrives damaged: expected hash {expected}"):
        pool.load(2)
    assert len(seen) == client.TRIES
    assert [entry.id for entry in pool.usable(weights=True)] == ["org/m-0", "org/m-1", "org/m-3", "org/m-4"]
    org.fault = None
    assert pool.load(2).num_classes == 3, "nothing damaged was kept"


def test_a_mirror_whose_etags_are_no_hashes_can_be_used(org, members):
    def mirror(request):
        answer = org.respond(request)
        for name in ("ETag", "X-Linked-Etag"):
            if name in answer.headers:
                answer.headers[name] = f'"{hashlib.sha256(request.path.encode()).hexdigest()}"'
        return answer

    org.fault = mirror
    assert same_as_local(ModelPool.from_hub("org"), members)


def test_no_token_is_shown_whatever_goes_wrong(org, waits, caplog):
    caplog.set_level("DEBUG")
    pool = ModelPool.from_hub("org")
    org.fault = Faults(org, rate=1, kinds=["429", "503", "cut", "corrupted"])
    pool.load(0)
    org.fault = lambda request: Answer.error(503, "", "down")
    with pytest.raises(Exception) as caught:  # noqa: PT011 (whichever the client's version raises)
        pool.load(1)
    assert org.token not in caplog.text and org.token not in repr(caught.value)
    assert any(request.headers.get("authorization") == f"Bearer {org.token}" for request in org.requests)
