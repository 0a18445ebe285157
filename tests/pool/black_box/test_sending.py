"""Several requests at a time: their order, what an error ends, what is asked again."""

import threading

import pytest
from huggingface_hub.utils import httpx

from hf_dfml.pool.black_box import sending
from hf_dfml.pool.black_box.sending import Sender
from hf_dfml.pool.queries import ServiceError


def sender(workers=1, **options):
    return Sender("http://x", workers, **{"retries": 0, "timeout": 1.0, **options})


def test_results_are_in_the_order_of_the_items_whoever_is_first():
    second = threading.Event()

    def call(item):
        assert item or second.wait(30)  # The first item waits for the last.
        if item == 2:
            second.set()
        return 10 * item

    assert sender(3).map(call, [0, 1, 2]) == [0, 10, 20] and sender(3).map(call, []) == []


def test_nothing_more_is_sent_after_an_error():
    sent = []

    def call(item):
        sent.append(item)
        if item == 1:
            raise ServiceError("it went away.")

    with pytest.raises(ServiceError, match="it went away"):
        sender().map(call, range(5))
    assert sent == [0, 1]


def test_an_error_does_not_wait_for_requests_that_are_under_way_and_ends_their_retries(monkeypatch):
    monkeypatch.setattr("hf_dfml.pool.black_box.sending.time.sleep", lambda seconds: None)
    failed, tried = threading.Event(), []

    def call(item):
        if item:
            raise ServiceError("it went away.")
        tried.append(item)
        failed.wait(30)
        raise ValueError("cut off")

    with pytest.raises(ServiceError, match="it went away"):
        sender(2, retries=9).map(call, [0, 1])
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "hf_dfml-requests"]
    assert thread.daemon, "the end of the process does not wait for it either"
    failed.set()
    thread.join(30)
    assert tried == [0]


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"retries": -1}, {"timeout": 0}, {"loading": -1}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="expected at least 1, at least 0, more than 0, and at least 0"):
        sender(**wrong)


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"estimated_time": 1' + b"0" * 400 + b"}", b'{"error": {}}', b"\xff"]
)
def test_a_refusal_whose_reason_cannot_be_read_is_a_refusal_all_the_same(monkeypatch, body):
    monkeypatch.setattr(sending.time, "sleep", lambda seconds: None)

    def call(_):
        response = httpx.Response(503, content=body, request=httpx.Request("POST", "http://x"))
        raise httpx.HTTPStatusError("503", request=response.request, response=response)

    with pytest.raises(ServiceError, match="gives no answer after 1 retries: 503"):
        sender(retries=1).map(call, [0])
