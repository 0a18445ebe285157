"""Requests that arrive together share a forward pass; errors reach whom they concern; a server under many clients."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hf_dfml.pool import ModelPool
from hf_dfml.pool.black_box.batching import Batcher
from hf_dfml.pool.black_box.remote_model import RemoteModel
from hf_dfml.pool.black_box.server import PoolServer
from tests.pool.black_box.test_service import pictures, running

PATIENCE = 20


class Gate:
    """A forward pass that begins when it is let, and doubles its images."""

    def __init__(self):
        self.sizes = []
        self.begun = threading.Semaphore(0)
        self.let = threading.Semaphore(0)

    def __call__(self, member, images):
        self.sizes.append((member, len(images)))
        self.begun.release()
        assert self.let.acquire(timeout=PATIENCE)
        if (images < 0).any():
            raise ValueError("negative")
        return 2 * images


def eventually(condition):
    for _ in range(int(PATIENCE / 0.01)):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("another thread did not do its work")


def test_what_arrives_during_a_pass_goes_into_the_next_together():
    forward = Gate()
    batcher = Batcher(forward, most=5)
    images = torch.arange(10.0).reshape(10, 1)
    with ThreadPoolExecutor(10) as clients:
        first = clients.submit(batcher, "a", images[:1])
        assert forward.begun.acquire(timeout=PATIENCE)
        later = []
        for member, part in (
            ("a", images[1:3]),
            ("b", images[3:4]),
            ("a", images[4:6]),
            ("a", images[6:8]),
            ("b", images[8:]),
        ):
            later.append(clients.submit(batcher, member, part))
            eventually(lambda: len(batcher._waiting) == len(later))
        for _ in range(4):
            forward.let.release()
        assert first.result(PATIENCE).equal(2 * images[:1])
        found = [future.result(PATIENCE) for future in later]
    assert torch.cat(found).equal(2 * images[1:]), "each has its own answers"
    # Of `a` two and two go together, as six would be more than five; `b` has its turn in between.
    assert forward.sizes == [("a", 1), ("a", 4), ("b", 3), ("a", 2)] and batcher.passes == 4
    batcher.close()


def test_a_large_request_has_a_pass_of_its_own_and_an_error_reaches_those_in_its_pass():
    forward = Gate()
    batcher = Batcher(forward, most=2)
    for _ in range(3):
        forward.let.release()
    assert batcher("a", torch.ones(7, 1)).shape == (7, 1)
    with pytest.raises(ValueError, match="negative"):
        batcher("a", -torch.ones(1, 1))
    assert batcher("a", torch.ones(1, 1)).item() == 2, "it goes on"
    batcher.close()
    with pytest.raises(RuntimeError, match="being shut down"):
        batcher("a", torch.ones(1, 1))


def test_a_server_asked_by_many_makes_fewer_passes_than_requests(members, monkeypatch):
    images = pictures(40)
    with running(PoolServer(ModelPool.from_dir(members), port=0)) as server:
        gate, forward = threading.Event(), server.batcher._forward

        sizes = []

        def held(member, batch):
            sizes.append(len(batch))
            assert gate.wait(PATIENCE)
            return forward(member, batch)

        monkeypatch.setattr(server.batcher, "_forward", held)
        model = RemoteModel(f"{server.url}/models/m-0", ("cat", "dog", "fox"), concurrency=40)
        with ThreadPoolExecutor(1) as client:
            asked = client.submit(model.ask, server.pool[0], images)
            eventually(lambda: sizes and len(server.batcher._waiting) == 40 - sizes[0])
            gate.set()
            answers = asked.result(PATIENCE)
        assert len(sizes) == server.batcher.passes == 2 and sum(sizes) == 40
    with torch.no_grad():
        expected = ModelPool.from_dir(members).load(0)((images * 255).round() / 255).softmax(1)
    torch.testing.assert_close(answers, expected, rtol=1e-4, atol=1e-5)


def test_closing_waits_for_the_pass_that_runs():
    entered, finish, done = threading.Event(), threading.Event(), []

    def forward(_, images):
        entered.set()
        finish.wait(30)
        done.append(len(images))
        return images.flatten(1)

    batcher = Batcher(forward)
    asking = threading.Thread(target=lambda: batcher("a", torch.zeros(2, 3, 1, 1)))
    asking.start()
    assert entered.wait(30)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive() and not done
    finish.set()
    closing.join(30)
    asking.join(30)
    assert not closing.is_alive() and done == [2]
