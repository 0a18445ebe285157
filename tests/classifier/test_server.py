"""A stored classifier behind HTTP on this machine: the answers that `predict_proba` gives, with its class names."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pytest
from PIL import Image

from hf_dfml import Classifier, MetaModel
from hf_dfml.classifier.files import is_classifier
from hf_dfml.classifier.server import ClassifierServer
from hf_dfml.pool.black_box.service import open_service
from tests.classifier.conftest import CLASSES, labels, pictures

OPENER = build_opener(ProxyHandler({}))


@contextmanager
def served(classifier: Classifier, **options: Any) -> Iterator[str]:
    server = ClassifierServer(classifier, "mine", port=0, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def call(url: str, data: bytes | None = None) -> tuple[int, Any]:
    """Status and JSON of one request."""
    try:
        with OPENER.open(Request(url, data), timeout=20) as reply:
            return reply.status, json.load(reply)
    except HTTPError as error:
        return error.code, json.load(error)


def as_file(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(meta: MetaModel, tmp_path: Path) -> Path:
    return meta.adapt(pictures(0, 3), labels(3), head="prototype").save_pretrained(tmp_path / "my-classifier")


def test_the_answers_are_those_of_the_classifier_with_its_class_names(folder: Path) -> None:
    """To files of another size than the classifier's, which it resizes itself."""
    classifier = Classifier.from_pretrained(folder)
    files = [as_file(picture) for picture in pictures(1)]
    expected = classifier.top_k(files, 3)
    body = json.dumps({"inputs": [base64.b64encode(file).decode() for file in files]}).encode()
    with served(classifier) as url:
        status, listed = call(f"{url}/models")
        alone, one = call(f"{url}/models/mine", files[0])
        request = Request(f"{url}/models/mine", body, {"Content-Type": "application/json"})
        with OPENER.open(request, timeout=20) as reply:
            many = json.load(reply)
        as_pool = open_service(url)
    assert listed == {"output": "probs", "models": [{"id": "mine", "labels": CLASSES, "input_size": [3, 16, 16]}]}
    assert status == alone == 200
    for row, top in zip([one, *many], [expected[0], *expected], strict=True):
        assert [item["label"] for item in row] == [label for label, _ in top]
        assert [item["score"] for item in row] == pytest.approx([score for _, score in top], rel=1e-5)
    assert as_pool[0].class_names == tuple(CLASSES)


def test_logits_are_served_too_and_what_is_no_image_is_refused(folder: Path) -> None:
    classifier = Classifier.from_pretrained(folder)
    file = as_file(pictures(1)[1])
    with served(classifier, output="logits") as url:
        _, row = call(f"{url}/models/mine", file)
        refused = call(f"{url}/models/mine", b"nothing")
        elsewhere = call(f"{url}/models/other", file)
    logits = classifier.logits(file)[0]
    assert {item["label"]: item["score"] for item in row} == pytest.approx(
        dict(zip(CLASSES, logits.tolist(), strict=True))
    )
    assert refused[0] == 400 and "not readable as an image" in refused[1]["error"]
    assert elsewhere[0] == 404 and "no model 'other'" in elsewhere[1]["error"]


def test_answers_that_depend_on_other_requests_are_not_served(meta: MetaModel) -> None:
    classifier = meta.adapt(pictures(0, 3), labels(3), bn="transductive")
    with pytest.raises(ValueError, match="^bn='transductive' makes an answer depend on the other images"):
        ClassifierServer(classifier, "mine", port=0)


def test_what_a_classifier_is(folder: Path, meta: MetaModel, tmp_path: Path, hub: Any) -> None:
    meta.save_pretrained(tmp_path / "meta")
    Classifier.from_pretrained(folder).push_to_hub("me/mine")
    assert is_classifier(str(folder)) and is_classifier("me/mine") and is_classifier("me/mine@main")
    assert not any(map(is_classifier, (str(tmp_path / "meta"), str(tmp_path), "me/other", "me", "http://127.0.0.1:9")))


def test_the_command_serves_a_stored_classifier_until_it_is_interrupted(folder: Path) -> None:
    words = [sys.executable, "-c", "from hf_dfml.cli import main; main()", "serve", str(folder), "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("A classifier of 3 classes at http://127.0.0.1:")
        assert line.endswith("/models/my-classifier, returning probs. Ctrl-C stops.\n")
        status, row = call(line.split(" at ")[1].split(",")[0], as_file(pictures(1)[2]))
        assert status == 200 and row[0]["label"] == "cow" and {item["label"] for item in row} == set(CLASSES)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0 and process.stdout.read() == "Stopped.\n"
    finally:
        process.kill()
        process.wait()
