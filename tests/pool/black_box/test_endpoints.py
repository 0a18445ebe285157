"""Inference Endpoints: an independent fake one, members of a served pool, files of endpoints, tokens, a whole run."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from hf_dfml import MetaModel, ModelPool
from hf_dfml.arguments import parse
from hf_dfml.methods.bidf_mkd import BiDfMKD
from hf_dfml.pipeline import run
from hf_dfml.pool import QueryBudgetError, ServiceError
from hf_dfml.pool.black_box import sending
from hf_dfml.pool.black_box.endpoints import open_remote
from hf_dfml.pool.black_box.remote_model import RemoteModel, token_for
from hf_dfml.pool.black_box.wire import PNG_STEP
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.run_config import RunConfig
from hf_dfml.utils.images import to_uint8, to_unit
from tests.pool.black_box.test_service import pictures, running, served
from tests.pool.members import files_of, write_member

LABELS = ("red", "green", "blue")
SIX = (*LABELS, "cyan", "lime", "pink")


class Endpoint(ThreadingHTTPServer):
    """POST the bytes of an image file, get [{"label", "score"}]: the mean of each channel, as the real ones say it.

    `script` is what the first requests get instead: a status, (status, headers, content), `cut`, a delay in seconds,
    or a list of rows.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script=(), labels=LABELS, json_too=True, tell=5):
        self.script, self.labels, self.json_too, self.tell = list(script), labels, json_too, tell
        self.seen: list[dict] = []
        self.images: Counter[str] = Counter()
        self.now = self.most = 0
        self.lock = threading.Lock()
        self.pause = 0.0
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/classify"

    def rows(self, file: bytes, top_k: int | None) -> list[dict]:
        pixels = np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).reshape(-1, 3).mean(0) + 1
        with self.lock:
            self.images[hashlib.sha256(file).hexdigest()] += 1
        scores = np.zeros(len(self.labels))
        scores[:3] = pixels / pixels.sum()
        order = np.argsort(-scores, kind="stable")[: top_k or self.tell]
        return [{"label": self.labels[index], "score": float(scores[index])} for index in order]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        self._say(404, {}, {"error": "not here"})

    def do_POST(self):
        server = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with server.lock:
            server.seen.append(
                {"type": self.headers["Content-Type"], "token": self.headers.get("Authorization"), "n": len(body)}
            )
            step = server.script.pop(0) if server.script else None
            server.now += 1
            server.most = max(server.most, server.now)
        time.sleep(step if isinstance(step, float) else server.pause)
        with server.lock:
            server.now -= 1
        if isinstance(step, int):
            return self._say(step, {}, {"error": "busy"})
        if isinstance(step, tuple):
            return self._say(*step)
        if isinstance(step, list):
            return self._say(200, {}, step)
        top_k = None
        if self.headers["Content-Type"] == "application/json":
            if not server.json_too:
                return self._say(415, {}, {"error": "image files only"})
            content = json.loads(body)
            body, top_k = base64.b64decode(content["inputs"]), content["parameters"]["top_k"]
        self._say(200, {}, server.rows(body, top_k), cut=step == "cut")

    def _say(self, status, headers, content, cut=False):
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = cut
        try:
            self.wfile.write(body[:5] if cut else body)
        except OSError:
            pass  # The client has gone, which is what a time-out is.

    def log_message(self, *args):
        pass


@contextmanager
def endpoint(*script, **options):
    with running(Endpoint(script, **options)) as server:
        yield server


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def waits(monkeypatch):
    """Seconds that somebody wanted to wait; nobody does."""
    waits: list[float] = []
    monkeypatch.setattr(sending, "time", SimpleNamespace(sleep=waits.append, monotonic=time.monotonic))
    return waits


def entry(labels=LABELS):
    return PoolEntry(id="e", num_classes=len(labels), input_size=(3, 16, 16), label_names=labels)


def expected(images):
    """What the fake endpoint thinks of images."""
    means = to_uint8(images).float().mean((2, 3)) + 1
    return means / means.sum(1, keepdim=True)


def test_bytes_go_there_and_labels_come_back(tmp_path):
    images = pictures(5)
    with endpoint() as server:
        answers = RemoteModel(server.url, LABELS).ask(entry(), images)
        torch.testing.assert_close(answers, expected(images))
        assert len(server.seen) == 5 and {seen["type"] for seen in server.seen} == {"image/png"}
        pool = open_remote(server.url)
        assert [found.id for found in pool] == ["classify"] and pool[0].input_size == (3, 224, 224)
        # Its labels were asked for, which is a query, and are in alphabetical order.
        assert pool.load(0).class_names == ("blue", "green", "red") and pool.queries.members == {"classify": 1}
        assert pool.output == "topk" and pool.resolution == PNG_STEP
        torch.testing.assert_close(pool.load(0)(images).exp()[:, [2, 1, 0]], expected(images))
    assert pool.queries.total == 6


def test_more_classes_than_a_pipeline_tells_are_asked_for():
    images = pictures(2)
    with endpoint(labels=SIX) as server:
        answers = RemoteModel(server.url, SIX).ask(entry(SIX), images)
        assert {seen["type"] for seen in server.seen} == {"application/json"}
        torch.testing.assert_close(answers[:, :3], expected(images))
        assert open_remote(server.url).load(0).num_classes == 6


def test_an_endpoint_that_takes_files_alone_is_given_files():
    with endpoint(labels=SIX, json_too=False) as server:
        pool = open_remote(server.url)
        assert pool.load(0).num_classes == 5, "as many as it tells"
        pool.load(0)(pictures(3))
        assert [seen["type"] for seen in server.seen] == ["application/json"] + ["image/png"] * 4
        # With the labels given, what it does not tell is shared by the classes that it does not name.
        answers = RemoteModel(server.url, SIX).ask(entry(SIX), pictures(1))
        assert answers.shape == (1, 6) and (answers > 0).sum() == 3


def test_a_model_that_loads_is_waited_for_and_an_image_counts_once(waits):
    loading = (503, {}, {"error": "Model is currently loading", "estimated_time": 20.0})
    with endpoint(*[loading] * 9) as server:
        pool = open_remote(server.url, retries=1)
        pool.load(0)(pictures(1))
    assert waits == [20.0] * 9 and len(server.seen) == 11, "no retries were spent on it"
    assert pool.queries.total == 2


def test_patience_with_a_model_that_loads_ends(waits):
    with endpoint(*[503] * 9) as server, pytest.raises(ServiceError, match="no answer after 2 retries: 503 busy"):
        RemoteModel(server.url, LABELS, retries=2, loading=0).ask(entry(), pictures(1))
    assert waits == [0.5, 1.0]


def test_the_servers_wish_to_wait_is_granted_within_bounds(waits):
    def busy(seconds):
        return 429, {"Retry-After": seconds}, {"error": "rate limit"}

    with endpoint(busy("7"), busy("86400"), "cut", 500) as server:
        answers = RemoteModel(server.url, LABELS).ask(entry(), pictures(1))
    torch.testing.assert_close(answers, expected(pictures(1)))
    assert waits == [7.0, sending.LONGEST_WAIT, 2.0, 4.0]


def test_what_takes_too_long_is_asked_again_and_then_given_up(waits):
    with endpoint(9.0, 0.0) as server:
        start = time.monotonic()
        answers = RemoteModel(server.url, LABELS, timeout=0.5).ask(entry(), pictures(1))
        assert time.monotonic() - start < 8 and waits == [0.5]
        torch.testing.assert_close(answers, expected(pictures(1)))
    with (
        endpoint(*[1.0] * 2) as server,
        pytest.raises(ServiceError, match="no answer after 1 retries: nothing within"),
    ):
        RemoteModel(server.url, LABELS, timeout=0.1, retries=1).ask(entry(), pictures(1))


def test_no_more_requests_at_a_time_than_allowed():
    with endpoint() as server:
        server.pause = 0.05
        answers = RemoteModel(server.url, LABELS, concurrency=4).ask(entry(), pictures(12))
    torch.testing.assert_close(answers, expected(pictures(12)), msg="each image has its own answer")
    assert server.most == 4


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "refuses: 401 busy .is it the right token"), (404, "refuses: 404"), (400, "refuses: 400 busy")],
)
def test_what_will_not_get_better_is_said_at_once(waits, status, words):
    with endpoint(*[status] * 3) as server, pytest.raises(ServiceError, match=words):
        RemoteModel(server.url, LABELS).ask(entry(), pictures(1))
    assert len(server.seen) == 1 and waits == []


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([{"label": "wolf", "score": 1.0}], "names a class 'wolf'"),
        ([{"label": "red", "score": float("nan")}], "a score is not a number"),
        ([{"label": "red", "score": "much"}], "the score of 'red' is 'much'"),
        ([{"label": "red", "score": 0.5}, {"label": "red", "score": 0.5}], "a label stands twice"),
    ],
)
def test_answers_that_are_none_are_named(waits, answer, words):
    with endpoint(answer) as server, pytest.raises(ServiceError, match=words):
        RemoteModel(server.url, LABELS).ask(entry(), pictures(1))


def test_the_same_image_is_sent_once_and_counted_apart():
    images = to_unit(to_uint8(pictures(4)))
    with endpoint() as server:
        box = open_remote(server.url, max_queries=5).load(0)
        first = box(torch.cat([images, images[:2], images[:1] + PNG_STEP / 4]))
        assert box(images[[3, 0]]).equal(first[[3, 0]]) and first[4:].equal(first[[0, 1, 0]])
        assert max(server.images.values()) == 1 and len(server.images) == 1 + 4
        assert box._count.members == {"classify": 5} and box._count.cached == {"classify": 3 + 2}
        with pytest.raises(QueryBudgetError, match="5 images were sent and 1 more"):
            box(torch.cat([images, 1 - images[:1]]))
        assert sum(server.images.values()) == 5


def test_tokens_go_where_they_belong(members, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_the_user")
    with endpoint(401) as server:
        with pytest.raises(ServiceError, match="is it the right token") as error:
            RemoteModel(server.url, LABELS, token="s3cret").ask(entry(), pictures(1))
        assert "s3cret" not in str(error.value)
    with endpoint() as server:
        RemoteModel(server.url, LABELS).ask(entry(), pictures(1))
        monkeypatch.setenv("HF_DFML_SERVE_TOKEN", "t0ken")
        RemoteModel(server.url, LABELS).ask(entry(), pictures(1))
        assert [seen["token"] for seen in server.seen] == ["", "Bearer t0ken"], "not the one of Hugging Face"
    assert token_for("https://x.us-east-1.aws.endpoints.huggingface.cloud/y") == "hf_secret_of_the_user"
    for url in ("http://x.huggingface.cloud", "https://huggingface.cloud.evil.example", "https://evilhf.co"):
        assert token_for(url) == "t0ken"
    assert token_for("https://somebody-classifier.hf.space/predict") == "t0ken", "a Space is code of whoever made it"
    assert "secret" not in caplog.text and "t0ken" not in caplog.text


def test_a_member_of_a_served_pool_is_an_endpoint(members):
    images = to_unit(to_uint8(pictures(9)))
    local = ModelPool.from_dir(members).as_black_box("probs")
    with served(members) as url:
        pool = open_remote(f"{url}/models/m-1,{url}/models/m-3")
        assert [found.id for found in pool] == ["m-1", "m-3"]
        for name in ("m-1", "m-3"):
            torch.testing.assert_close(pool.load(name)(images), local.load(name)(images), rtol=1e-4, atol=1e-5)


def test_a_file_lists_endpoints_and_served_pools(members, tmp_path):
    with served(members, output="topk", top_k=2) as url, endpoint() as server:
        rows = [{"url": server.url, "id": "colours", "labels": list(LABELS), "image_size": [8, 12]}, url]
        path = tmp_path / "endpoints.yaml"
        path.write_text(json.dumps({"image_size": 20, "endpoints": rows}))  # JSON is YAML.
        pool = open_remote(str(path))
        assert [found.id for found in pool] == ["colours"] + [f"m-{index}" for index in range(5)]
        assert pool[0].input_size == (3, 8, 12) and pool[1].input_size == (3, 16, 16)
        assert pool.queries.total == 0, "nothing needed to be asked"
        assert pool.load(0).class_names == LABELS and pool.load(3)(pictures(2)).shape == (2, 3)
        path.write_text(json.dumps({"output": "probs", "endpoints": rows}))
        with pytest.raises(ValueError, match="returns probs and .* returns topk"):
            open_remote(str(path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("endpoints: []", "No endpoint was named"),
        ("endpoints: [3]", "3 is not a valid endpoint"),
        ("endpoints: [{url: 'http://x', model: a/b}]", "is not a valid endpoint"),
        ("endpoints: [{url: 'http://x', token: abc}]", "is not a valid endpoint"),
        ("endpoints: [{url: 'ftp://x', id: a}]", "is not a valid URL"),
        ("endpoints: [{url: 'http://x/y', labels: cat}]", "are not a list"),
        ("endpoints: [{url: 'http://x/y', labels: [a, a]}]", "stands for two classes"),
        ("endpoints: [{url: 'http://x/y', labels: [a], image_size: 0}]", "input_size is"),
        ("endpoints: [{url: 'http://x/y', labels: [a]}, {url: 'http://z/y', labels: [a]}]", "two members called 'y'"),
        ("endpoints: [{url: 'http://x/y', labels: [a]}]\noutput: features", "expected one of logits, probs"),
        ("names: []", "lists no endpoints"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_mistakes_in_a_file_are_named_before_anything_is_sent(tmp_path, content, words):
    path = tmp_path / "endpoints.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=words):
        open_remote(str(path))
    with pytest.raises(FileNotFoundError, match="There is no file"):
        open_remote(str(tmp_path / "other.yaml"))


def test_placeholders_of_strangers_are_not_one_class(tmp_path):
    labels = ("LABEL_0", "LABEL_1", "LABEL_2")
    images = pictures(4)
    with endpoint(labels=labels) as one, endpoint(labels=labels) as other:
        rows = [{"url": one.url, "id": "cats", "labels": list(labels)}, {"url": other.url, "id": "cars"}]
        (tmp_path / "endpoints.yaml").write_text(json.dumps({"output": "probs", "endpoints": rows}))
        pool = open_remote(str(tmp_path / "endpoints.yaml"))
        assert [pool[0].class_names, pool[1].class_names] == [
            tuple(f"{id}#LABEL_{index}" for index in range(3)) for id in ("cats", "cars")
        ]
        assert not set(pool[0].class_keys) & set(pool[1].class_keys)
        for index in range(2):
            torch.testing.assert_close(pool.load(index)(images).exp(), expected(images))


def test_the_budget_covers_the_question_for_labels():
    with endpoint() as server, pytest.raises(QueryBudgetError):
        open_remote(server.url, max_queries=0)
    assert server.seen == []


def test_a_model_of_the_hub_is_asked_through_hugging_faces_own_inference(org, tmp_path, monkeypatch):
    """Labels and size from its config; no weights are fetched."""
    rows = [{"label": "fox", "score": 0.75}, {"label": "cat", "score": 0.25}]
    with endpoint(rows) as server:
        proxy = server.url.removesuffix("/classify") + "/{provider}"
        monkeypatch.setattr(constants, "INFERENCE_PROXY_TEMPLATE", proxy)
        path = tmp_path / "endpoints.yml"
        path.write_text("endpoints: [{model: org/m-2}]")
        pool = open_remote(str(path))
        assert pool[0].id == "org/m-2" and pool[0].input_size == (3, 16, 16) and pool.queries.total == 0
        answers = pool.load(0)(pictures(1)).exp()
        torch.testing.assert_close(answers, torch.tensor([[0.25, 1e-12, 0.75]]))
    assert not any("safetensors" in request.path for request in org.requests)
    path.write_text("endpoints: [{model: org/none}]")
    with pytest.raises(ValueError, match="The model org/none of an endpoint cannot be used: is no repository"):
        open_remote(str(path))


def test_a_model_of_the_hub_whose_classes_its_answers_do_not_tell_apart_is_refused_at_once(hub, tmp_path):
    hub.add_repo("org/cranes", files_of(write_member(tmp_path / "m", label_names=["crane", "fox", "crane"])))
    (tmp_path / "endpoints.yml").write_text("endpoints: [{model: org/cranes}]")
    with pytest.raises(ValueError, match="The model org/cranes of an endpoint calls several classes by one name"):
        open_remote(str(tmp_path / "endpoints.yml"))


def test_bidf_mkd_learns_from_endpoints(members, tmp_path, capsys):
    with served(members) as url:
        rows = [{"url": f"{url}/models/m-{index}", "labels": ["cat", "dog", "fox"]} for index in range(2)]
        path = tmp_path / "endpoints.yaml"
        path.write_text(json.dumps({"image_size": 16, "output": "probs", "endpoints": rows}))
        words = f"--pool {path} --ways 3 --arch conv4_16 --log_with none --output_dir {tmp_path / 'run'} --steps 2 "
        words += "--recovery pixels --recovery_steps 2 --images_per_class 2 --distillation_steps 2 --replay_queries 2 "
        words += "--replay_batch 2 --replay_max_batches 1 --zero_order_directions 2"
        run(BiDfMKD, *parse(BiDfMKD, RunConfig, words.split()), argv=["test"])
    assert "2 black boxes (probs)" in capsys.readouterr().out
    assert {source.id for source in MetaModel.from_pretrained(tmp_path / "run").config.pool} == {"m-0", "m-1"}
