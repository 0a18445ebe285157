"""Requests to a black box behind HTTP: several at a time, each sent again where that may help."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError
from huggingface_hub.utils import httpx

from hf_dfml.pool.queries import RefusedError, ServiceError
from hf_dfml.utils.provenance import hide_secrets

logger = logging.getLogger(__name__)

LONGEST_WAIT = 60.0
"""Seconds that a server may make us wait before a request is repeated."""
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
"""Status codes after which the same request may succeed a little later."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Sender:
    """How requests are sent to one service.

    Attributes:
        url: of the service, for messages; without passwords.
        workers: requests at a time.
        retries: times that a request is sent again after no answer, 429 or a server's error; waits 0.5, 1, 2, ...
            (at most 8) seconds, or what the server asks for (at most `LONGEST_WAIT`).
        timeout: seconds to wait for an answer, for messages.
        loading: seconds that a model may take to load: so long 503 is asked again without counting as a retry.
    """

    url: str
    workers: int
    retries: int
    timeout: float
    loading: float = 0.0

    def __post_init__(self) -> None:
        if self.workers < 1 or self.retries < 0 or self.timeout <= 0 or self.loading < 0:
            raise ValueError(
                f"{self.workers} requests at a time, retries={self.retries}, timeout={self.timeout}, "
                f"loading={self.loading}: expected at least 1, at least 0, more than 0, and at least 0."
            )
        object.__setattr__(self, "url", hide_secrets(self.url))

    def map(self, call: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """`call(item)` of each item, in order, by `workers` threads; after an error nothing more is sent.

        Raises:
            ServiceError: see `retry`.
        """
        todo = iter(list(enumerate(items)))
        done: SimpleQueue[tuple[int, Result | BaseException]] = SimpleQueue()
        stop = threading.Event()

        def work() -> None:
            for index, item in todo:
                try:
                    done.put((index, self.retry(lambda item=item: call(item), stop)))  # type: ignore[misc]
                except BaseException as error:
                    done.put((index, error))
                    return

        # Daemons: neither an interrupt nor the end of the process waits for a server that is silent.
        for _ in range(min(self.workers, len(items))):
            threading.Thread(target=work, name="hf_dfml-requests", daemon=True).start()
        results: dict[int, Result] = {}
        try:
            for _ in items:
                index, result = done.get()
                if isinstance(result, BaseException):
                    raise result
                results[index] = result
        finally:
            stop.set()
        return [results[index] for index in range(len(items))]

    def retry(self, call: Callable[[], Result], stop: threading.Event | None = None) -> Result:
        """`call()`, made again after errors that may pass, unless `stop` is set.

        Raises:
            RefusedError: if the service refuses.
            ServiceError: if there is no answer after all retries.
        """
        retried, problem = 0, "stopped"
        loaded = time.monotonic() + self.loading
        while retried <= self.retries and not (stop and stop.is_set()):
            wait = min(8.0, 0.5 * 2**retried)
            try:
                return call()
            except (HfHubHTTPError, httpx.HTTPStatusError) as error:
                status = error.response.status_code
                problem = f"{status} {_reason(error.response)}"
                if status not in _TRANSIENT:
                    hint = " (is it the right token?)" if status in (401, 403) else ""
                    raise RefusedError(f"{self.url} refuses: {problem}{hint}.", status) from None
                wait = _requested_wait(error.response, wait)
                retried -= status == 503 and time.monotonic() < loaded
            except (InferenceTimeoutError, httpx.TimeoutException):  # Not all clients turn one into the other.
                problem = f"nothing within {self.timeout:g} s"
            # The last three: JSON that was cut off, or with brackets nested thousands deep.
            except (httpx.TransportError, ValueError, TypeError, RecursionError) as error:
                problem = " ".join(str(error).split())[:200] or type(error).__name__
            retried += 1
            if retried <= self.retries:
                logger.warning("%s: %s; asked again in %.1f s.", self.url, problem, wait)
                time.sleep(wait)
        raise ServiceError(f"{self.url} gives no answer after {self.retries} retries: {problem}.")


def _requested_wait(response: httpx.Response, usual: float) -> float:
    """Seconds that a server asks to wait: `Retry-After`, or the time that it expects a model to take to load."""
    after = response.headers.get("Retry-After", "")
    try:
        wish = float(after) if after.isdecimal() else float(response.json()["estimated_time"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return usual
    return min(LONGEST_WAIT, max(0.0, wish))


def _reason(response: httpx.Response) -> str:
    """The server's own message, on one line; never an address or a header."""
    try:
        text = str(response.json()["error"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        text = response.reason_phrase
    return " ".join(text.split())[:200]
