"""A pool behind HTTP on this machine: the answers that it gives here, refusals, retries, counting, a whole run."""

import base64
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import numpy as np
import pytest
import torch
from PIL import Image

from hf_dfml import MetaModel
from hf_dfml.arguments import parse
from hf_dfml.cli import main
from hf_dfml.methods.bidf_mkd import BiDfMKD
from hf_dfml.methods.tgr import TGR
from hf_dfml.pipeline import run
from hf_dfml.pool import ModelPool, QueryBudgetError, ServiceError
from hf_dfml.pool.black_box import answers, sending, service
from hf_dfml.pool.black_box.answers import AnswerCache
from hf_dfml.pool.black_box.server import PoolServer
from hf_dfml.pool.black_box.service import Service, open_service
from hf_dfml.pool.black_box.wire import PNG_STEP, as_png
from hf_dfml.run_config import RunConfig
from hf_dfml.utils.images import to_uint8, to_unit

OUTPUTS = ("logits", "probs", "topk", "label")
OPENER = build_opener(ProxyHandler({}))


@contextmanager
def running(server):
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def served(members, **options):
    with running(PoolServer(ModelPool.from_dir(members), port=0, **options)) as server:
        yield server.url


def call(url, data=None, **headers):
    """Status and JSON of one request."""
    try:
        with OPENER.open(Request(url, data, headers), timeout=20) as reply:
            return reply.status, json.load(reply)
    except HTTPError as error:
        return error.code, json.load(error)


def pictures(count=5, size=16):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    waits = []
    monkeypatch.setattr(sending, "time", SimpleNamespace(sleep=waits.append, monotonic=time.monotonic))
    return waits


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_served_member_answers_as_the_same_black_box_here(members, output):
    """To images of 8 bits, as those that were sent; in several requests, in their order."""
    images = to_unit(to_uint8(pictures(7, size=20)))
    here = ModelPool.from_dir(members).as_black_box(output, top_k=2)
    with served(members, output=output, top_k=2) as url:
        there = open_service(url, batch=2)
        assert [entry.id for entry in there] == [entry.id for entry in here] and there.output == output
        for name in ("m-0", "m-4"):
            box = there.load(name)
            assert box.class_names == ("cat", "dog", "fox") and box.entry.input_size == (3, 16, 16)
            torch.testing.assert_close(box(images), here.load(name)(images), rtol=1e-4, atol=1e-5)
    assert there.queries.members == {"m-0": 7, "m-4": 7}


def test_a_service_without_members_is_refused(members):
    with served(members) as url:
        server = Service(url)
        server.request = lambda path: {"output": "probs", "models": []}
        with pytest.raises(ServiceError, match="serves a pool without members"):
            server.members()


def test_images_are_rounded_to_eight_bits_and_the_pool_says_so(members):
    images = pictures() + 0.3 * PNG_STEP
    images[0, :, 0] = 1.2  # What is outside arrives as the nearest pixel.
    decoded = [torch.from_numpy(np.array(Image.open(io.BytesIO(file)))) for file in as_png(images)]
    torch.testing.assert_close(torch.stack(decoded).permute(0, 3, 1, 2), to_uint8(images))
    with served(members) as url:
        assert open_service(url).resolution == pytest.approx(1 / 255)


def test_hugging_faces_client_is_a_client(members, monkeypatch):
    from huggingface_hub import InferenceClient

    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    (file,) = as_png(pictures(1))
    with torch.no_grad():
        expected = ModelPool.from_dir(members).load("m-1")(to_unit(to_uint8(pictures(1)))).softmax(1)[0]
    with served(members) as url:
        rows = InferenceClient().image_classification(file, model=f"{url}/models/m-1")
        two = InferenceClient().image_classification(file, model=f"{url}/models/m-1", top_k=2)
    assert [row.score for row in rows] == pytest.approx(sorted(expected.tolist(), reverse=True), rel=1e-4)
    assert rows[0].label == ("cat", "dog", "fox")[int(expected.argmax())] and len(two) == 2


def test_pictures_of_any_size_and_mode_are_classified(members):
    buffer = io.BytesIO()
    Image.new("L", (50, 30), 100).save(buffer, "JPEG")
    with served(members) as url:
        status, rows = call(f"{url}/models/m-0", buffer.getvalue(), **{"Content-Type": "image/jpeg"})
    assert status == 200 and sum(row["score"] for row in rows) == pytest.approx(1, rel=1e-5)


def test_health_and_mistakes(members):
    (file,) = as_png(pictures(1))
    with served(members, max_bytes=4000) as url:
        assert call(f"{url}/health") == (200, {"status": "ok"})
        for path, data, status, words in (
            ("/nothing", None, 404, "nothing at /nothing"),
            ("/models/x", file, 404, "no model 'x'"),
            ("/models/m-0/../m-1", file, 404, "no model"),
            ("/models/m-0", b"not an image", 400, "is not readable as an image: expected one of the formats"),
            ("/models/m-0", b"x" * 4001, 413, "4000 bytes is the limit"),
        ):
            found, content = call(url + path, data, **{"Content-Type": "image/png"})
            assert found == status and words in content["error"]
        for content in ({}, {"inputs": []}, {"inputs": ["*"]}, {"inputs": 3}, [], {"inputs": "aGk=", "parameters": 1}):
            data = json.dumps(content).encode()
            assert call(f"{url}/models/m-0", data, **{"Content-Type": "application/json"})[0] == 400
        content = {"inputs": base64.b64encode(file).decode(), "parameters": {"top_k": 0}}
        assert (
            call(f"{url}/models/m-0", json.dumps(content).encode(), **{"Content-Type": "application/json"})[0] == 400
        )
        assert call(f"{url}/models/m-0", file, **{"Content-Type": "image/png"})[0] == 200, "it still serves"


def test_a_small_file_of_a_huge_image_is_refused(members, monkeypatch):
    monkeypatch.setattr("hf_dfml.pool.black_box.server.MAX_PIXELS", 100)
    with served(members) as url:
        status, content = call(f"{url}/models/m-0", as_png(pictures(1))[0], **{"Content-Type": "image/png"})
    assert status == 400 and "16 x 16 pixels is too large" in content["error"]


def test_strangers_are_refused_and_the_token_is_in_no_message(members, monkeypatch, caplog):
    with served(members, token="s3cret") as url:
        assert call(f"{url}/health")[0] == 200
        for headers in ({}, {"Authorization": "Bearer other"}):
            assert call(f"{url}/models", **headers)[0] == 401
            assert call(f"{url}/models/m-0", as_png(pictures(1))[0], **headers)[0] == 401
        with pytest.raises(ServiceError, match="refuses: 401 a bearer token is needed") as error:
            open_service(url, token="wr0ng")
        assert "wr0ng" not in str(error.value)
        monkeypatch.setenv("HF_DFML_SERVE_TOKEN", "s3cret")
        assert open_service(url).load(0)(pictures()).shape == (5, 3)
    assert "s3cret" not in caplog.text


def test_the_budget_ends_before_anything_is_sent(members):
    with served(members) as url:
        pool = open_service(url, max_queries=6)
        pool.load(0)(pictures(4))
    # The server is gone: a request would be another error.
    with pytest.raises(QueryBudgetError, match="4 images were sent and 3 more"):
        pool.load(0)(1 - pictures(3))


def test_answers_that_were_given_cost_nothing_a_second_time(members):
    images = to_unit(to_uint8(pictures(6)))
    with served(members) as url:
        pool = open_service(url, max_queries=10)
        first = pool.load(0)(images)
        assert pool.load(0)(images.flip(0)).equal(first.flip(0)) and pool[:1].load(0)(images[:2]).equal(first[:2])
        pool.load(1)(images[:4])  # Another member is another question.
    assert pool.load(0)(images[2:3]).equal(first[2:3]), "the server is gone"
    assert pool.queries.members == {"m-0": 6, "m-1": 4} and pool.queries.total == 10
    assert pool.queries.cached == {"m-0": 6 + 2 + 1, "m-1": 0}
    assert pool.queries.state_dict() == {"m-0": 6, "m-1": 4}, "the cache is no part of a run"


def test_the_cache_of_answers_has_a_bound():
    cache, sent = AnswerCache(3 * (12 + answers._OVERHEAD)), []

    def send(images):
        sent.append(len(images))
        return images[:, :, 0, 0]

    images = to_unit(torch.arange(4 * 3 * 4 * 4).reshape(4, 3, 4, 4).to(torch.uint8))
    for chosen, expected, known in (
        ([0, 1, 1, 2], 3, 1),
        ([0], None, 1),
        ([3], 1, 0),
        ([0, 2, 3], None, 3),
        ([1], 1, 0),
    ):
        found, cached = cache.ask("m", images[chosen], send)
        assert found.equal(images[chosen][:, :, 0, 0]) and cached == known
        assert sent == ([] if expected is None else [expected])
        assert cache.bytes <= cache.max_bytes
        sent.clear()
    assert cache.ask("other", images[:1], send)[1] == 0 and cache.ask("m", images[:0], send)[0].shape == (0, 3)
    with pytest.raises(ValueError, match="-1 bytes of answers"):
        AnswerCache(-1)


class Flaky(ThreadingHTTPServer):
    """Gives the answers of a script, in order: a status, `cut`, or a row."""

    daemon_threads = True

    def __init__(self, script, headers=None, pause=0.0):
        self.script, self.headers, self.asked = list(script), headers or {}, 0
        self.pause, self.now, self.most, self.lock = pause, 0, 0, threading.Lock()
        super().__init__(("127.0.0.1", 0), _Scripted)
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Scripted(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.asked += 1
            step = self.server.script.pop(0)
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        threading.Event().wait(9.0 if step == "slow" else self.server.pause)
        with self.server.lock:
            self.server.now -= 1
        whole = step["whole"] if isinstance(step, dict) else [step]
        body = json.dumps({"error": "busy"} if isinstance(step, int) else whole).encode()
        self.send_response(step if isinstance(step, int) else 200)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # The client has gone, which is what a time-out is.
            self.wfile.write(body[:3] if step == "cut" else body)

    def log_message(self, *args):
        pass


ROW = [{"label": "dog", "score": 0.75}, {"label": "cat", "score": 0.25}]


def test_a_bad_minute_is_waited_out_and_an_image_counts_once(members, no_waiting):
    entry = ModelPool.from_dir(members)[0]
    with running(Flaky([503, "cut", 500, ROW])) as server:
        answers = Service(server.url).ask(entry, pictures(1))
    assert answers.tolist() == [[0.25, 0.75, 0.0]] and server.asked == 4
    assert no_waiting == [0.5, 1.0, 2.0]


def test_the_servers_wish_to_wait_is_granted(members, no_waiting):
    with running(Flaky([429, ROW], {"Retry-After": "7"})) as server:
        Service(server.url).ask(ModelPool.from_dir(members)[0], pictures(1))
    assert no_waiting == [7.0]


def test_what_will_not_get_better_is_said_at_once(members, no_waiting):
    entry = ModelPool.from_dir(members)[0]
    with running(Flaky([503] * 3)) as server, pytest.raises(ServiceError, match="no answer after 2 retries: 503 busy"):
        Service(server.url, retries=2).ask(entry, pictures(1))
    assert server.asked == 3
    no_waiting.clear()
    with running(Flaky([404])) as server, pytest.raises(ServiceError, match="refuses: 404 busy"):
        Service(server.url).ask(entry, pictures(1))
    with running(Flaky([[{"label": "wolf", "score": 1.0}]])) as server:
        with pytest.raises(ServiceError, match="not understood: it names a class 'wolf', which is none"):
            Service(server.url).ask(entry, pictures(1))
    with pytest.raises(ServiceError, match="no answer after 1 retries"):
        open_service(server.url, retries=1)
    assert len(no_waiting) == 1


def test_a_silent_server_is_asked_again_after_the_time_out(members, no_waiting):
    entry = ModelPool.from_dir(members)[0]
    with running(Flaky(["slow", ROW])) as server:
        start = time.monotonic()
        assert Service(server.url, timeout=0.5).ask(entry, pictures(1)).tolist() == [[0.25, 0.75, 0.0]]
        assert time.monotonic() - start < 8
    assert no_waiting == [0.5]


def test_no_more_requests_at_a_time_than_allowed(members):
    entry = ModelPool.from_dir(members)[0]
    with running(Flaky([ROW] * 12, pause=0.05)) as server:
        Service(server.url, batch=1, workers=3).ask(entry, pictures(12))
    assert server.most == 3


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([ROW, ROW], "2 answers to 1 images"),
        ([], "0 answers to 1 images"),
        ([[{"label": "dog", "score": float("nan")}]], "the score of 'dog' is nan"),
        ([[{"label": "dog", "score": "1"}]], "the score of 'dog' is '1'"),
        ([[{"label": "dog", "score": 1}, {"label": "dog", "score": 0}]], "a label stands twice"),
        ([[{"name": "dog"}]], "KeyError"),
        ({"answer": 1}, "not understood"),
        ("x" * 5000, "answers with more than 4,000 bytes"),
    ],
)
def test_answers_that_are_none_are_named(members, no_waiting, monkeypatch, answer, words):
    monkeypatch.setattr(service, "MAX_ANSWER_BYTES", 4000)
    with running(Flaky([{"whole": answer}])) as server, pytest.raises(ServiceError, match=words):
        Service(server.url, retries=0).ask(ModelPool.from_dir(members)[0], pictures(1))


@pytest.mark.parametrize(
    "model",
    [
        {"id": "m", "labels": ["a", "a"], "input_size": [3, 8, 8]},
        {"id": "m", "labels": "ab", "input_size": [3, 8, 8]},
        {"id": "m", "labels": [], "input_size": [3, 8, 8]},
        {"id": 7, "labels": ["a"], "input_size": [3, 8, 8]},
        {"id": "m", "labels": ["a"], "input_size": [3, 10**9, 8]},
        {"labels": ["a"], "input_size": [3, 8, 8]},
        "m",
    ],
)
def test_a_list_of_members_that_is_none_is_refused(monkeypatch, model):
    monkeypatch.setattr(Service, "request", lambda self, path: {"output": "probs", "models": [model]})
    with pytest.raises(ServiceError, match="does not answer as `hf-dfml serve` does"):
        open_service("http://127.0.0.1:9")


def options(url, folder, *more):
    words = f"--pool {url} --ways 3 --arch conv4_16 --log_with none --output_dir {folder} --recovery pixels "
    words += "--recovery_steps 2 --images_per_class 3 --distillation_steps 2 --replay_queries 3 --replay_batch 2 "
    words += "--replay_max_batches 2 --zero_order_directions 3 --num_members 2"
    return [*words.split(), *more]


def test_bidf_mkd_learns_from_a_served_pool(members, tmp_path, capsys):
    with served(members, output="topk", top_k=2) as url:
        words = options(url, tmp_path / "run", "--steps", "3")
        run(BiDfMKD, *parse(BiDfMKD, RunConfig, words), argv=["test"])
        printed = capsys.readouterr().out
        card = (tmp_path / "run" / "README.md").read_text()
        assert "no training image and no weights were used, only answers of those classifiers (topk)" in card
        queries = re.search(r"([\d,]+) images were sent to the classifiers, which returned topk", card)[1]
        assert f"The black boxes were sent {queries} images." in printed and queries != "0"
        assert "2 black boxes (topk)" in printed
        with pytest.raises(SystemExit, match="0"):
            main(["pool", "ls", url])
        listed = capsys.readouterr().out
        assert "m-0" in listed and "m-1" in listed and "Black boxes: their answers are topk" in listed
        with pytest.raises(ValueError, match="is topk, not label: leave --black_box out"):
            words = options(url, tmp_path / "label", "--black_box", "label")
            run(BiDfMKD, *parse(BiDfMKD, RunConfig, words), argv=["test"])
    assert {source.id for source in MetaModel.from_pretrained(tmp_path / "run").config.pool} == {"m-0", "m-1"}
    with pytest.raises(ValueError, match="needs the weights"):
        run(TGR, *parse(TGR, RunConfig, ["--pool", url, "--output_dir", str(tmp_path / "other")]), argv=["test"])


def test_a_service_that_goes_away_ends_the_run_with_a_checkpoint(members, tmp_path, capsys, monkeypatch):
    with served(members) as url:
        ask = Service.ask
        asked = []

        def ends(self, entry, images):
            asked.append(len(images))
            if len(asked) > 25:
                raise ServiceError("it went away.")
            return ask(self, entry, images)

        monkeypatch.setattr(Service, "ask", ends)
        words = options(url, tmp_path / "run", "--steps", "20")
        assert run(BiDfMKD, *parse(BiDfMKD, RunConfig, words), argv=["test"]) == []
        assert (
            "it went away. Go on with the same command and --resume_from_checkpoint latest" in capsys.readouterr().out
        )
        monkeypatch.setattr(Service, "ask", ask)
        words = options(url, tmp_path / "run", "--steps", "8", "--resume_from_checkpoint", "latest")
        run(BiDfMKD, *parse(BiDfMKD, RunConfig, words), argv=["test"])
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_interrupted(members, number):
    words = [sys.executable, "-c", "from hf_dfml.cli import main; main()", "serve", str(members), "--port", "0"]
    words += ["--output", "label"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        line = process.stdout.readline()
        assert line.startswith("5 members at http://127.0.0.1:") and "returning label" in line
        url = line.split(" at ")[1].split("/models")[0]
        assert open_service(url).load(0)(pictures(2)).shape == (2, 3)
        process.send_signal(number)
        assert process.wait(timeout=60) == 0 and process.stdout.read() == "Stopped.\n"
    finally:
        process.kill()
        process.wait()


def test_what_cannot_be_told_is_not_served(members):
    with pytest.raises(ValueError, match="one of logits, probs, topk, label"):
        PoolServer(ModelPool.from_dir(members), port=0, output="features")
    with pytest.raises(ValueError, match="^top_k=0: expected at least 1 class.$"):
        PoolServer(ModelPool.from_dir(members), port=0, output="topk", top_k=0)


def test_a_port_that_cannot_be_had_is_named(members):
    pool = ModelPool.from_dir(members)
    with PoolServer(pool, port=0) as server:
        port = server.server_address[1]
        with pytest.raises(ConnectionError, match=f"port {port} of 127.0.0.1: Address already in use. Choose another"):
            PoolServer(pool, port=port)
    with pytest.raises(ConnectionError, match="port 99999 of 127.0.0.1: a port is a number from 0 to 65535"):
        PoolServer(pool, port=99999)
