"""A server under clients that do not behave: right codes, no thread is stuck, and those that behave are answered."""

import asyncio
import io
import json
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from hf_dfml.pool import ModelPool
from hf_dfml.pool.black_box import server as server_module
from hf_dfml.pool.black_box.limits import Budget, BusyError
from hf_dfml.pool.black_box.server import PoolServer
from tests.pool.members import write_pool


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    return write_pool(tmp_path_factory.mktemp("load") / "pool", 1)


@contextmanager
def served(members, **options):
    with PoolServer(ModelPool.from_dir(members), port=0, **options) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def threads_end(before: int) -> bool:
    end = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.05)
    return threading.active_count() <= before


def raw(server, request: bytes) -> bytes:
    """All that comes back."""
    with socket.create_connection(server.server_address[:2], timeout=20) as connection:
        connection.sendall(request)
        return connection.makefile("rb").read()


def test_twenty_clients_get_the_right_codes_and_leave_no_thread(members, script):
    load = script("load")
    with served(members, token=load.TOKEN, max_bytes=load.MAX_BYTES, seconds=2) as server:
        before = threading.active_count()
        codes = asyncio.run(load.attack(server.url, 20, 2, load.an_image()))
        assert set(codes) == set(load.EXPECTED) and load.wrong_codes(codes) == {}
        assert codes["good"] == {200: 20}
        assert threads_end(before)
        assert server.bodies._free == server.bodies.total and server.resized._free == server.resized.total


@pytest.mark.parametrize(
    ("size", "code"),
    [
        ("Content-Length: \xb2", 411),  # A digit to `str.isdigit`, and no number to `int`.
        ("Content-Length: -1", 411),
        ("Content-Length: 1e3", 411),
        (f"Content-Length: {'9' * 5000}", 411),
        (f"Content-Length: {'9' * 17}", 413),
        ("Content-Length: 1\r\nTransfer-Encoding: chunked", 411),
        ("Content-Length: 1", 400),
    ],
)
def test_lengths_that_are_none(members, size, code):
    with served(members) as server:
        answer = raw(server, f"POST /models/m-0 HTTP/1.1\r\nHost: x\r\n{size}\r\n\r\nx".encode("latin-1"))
        assert answer.split()[1] == str(code).encode()
        assert "error" in json.loads(answer.partition(b"\r\n\r\n")[2])


def test_json_that_is_nested_thousands_deep_is_refused(members):
    body = b'{"inputs": ' + b"[" * 50_000
    head = f"POST /models/m-0 HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with served(members) as server:
        assert raw(server, head.encode() + body).split()[1] == b"400"


def test_one_client_too_many_is_told_so_and_the_next_one_is_served(members, monkeypatch):
    monkeypatch.setattr(server_module, "CONNECTIONS", 1)
    with served(members) as server:
        before = threading.active_count()
        with socket.create_connection(server.server_address[:2]) as first:
            first.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            assert first.recv(1000).split()[1] == b"200"  # It stays connected.
            answer = raw(server, b"")
            assert answer.split()[1] == b"503" and "error" in json.loads(answer.partition(b"\r\n\r\n")[2])
        assert threads_end(before)
        assert raw(server, b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n").split()[1] == b"200"


def test_more_images_than_the_memory_is_for_are_refused(members, monkeypatch):
    monkeypatch.setattr(server_module, "RESIZED_BYTES", 4 * 3 * 16 * 16 * 2)
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "PNG")
    with served(members) as server:
        entry = server.pool[0]
        assert len(server.classify(entry, [file.getvalue()] * 2)) == 2
        with pytest.raises(ValueError, match="2 images are the limit of a request to this model, this one has 3"):
            server.classify(entry, [file.getvalue()] * 3)


def test_a_model_that_fails_is_a_sentence_and_no_lost_connection(members, monkeypatch):
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "PNG")
    head = f"POST /models/m-0 HTTP/1.1\r\nContent-Length: {len(file.getvalue())}\r\n\r\n".encode()
    with served(members) as server:
        server.batcher._forward = lambda *_: (_ for _ in ()).throw(RuntimeError("[..] can't allocate memory: 9 bytes"))
        answer = raw(server, head + file.getvalue())
    assert answer.split()[1] == b"500" and b"There is not enough memory" in answer


def test_a_budget_is_waited_for_and_given_back():
    budget = Budget(10, seconds=0.05)
    with budget.holding(8), pytest.raises(BusyError):
        budget.take(3)
    with budget.holding(1000):  # More than the whole: nobody else has anything.
        with pytest.raises(BusyError):
            budget.take(1)
    budget.take(10)
