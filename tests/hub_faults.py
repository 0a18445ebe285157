"""A Hub on a bad day: a share of the answers is faulty, each in a way that real ones are.

    hub.fault = Faults(hub, rate=0.2)

The share is drawn from a seed. No call (method and path) is answered wrongly more than `per_call` times, so that a
client that asks again often enough gets everything, and one that does not fails.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections import Counter
from collections.abc import Sequence

from tests.hub_server import Answer, HubServer, Request

KINDS = ("429", "503", "cut", "slow", "stale-etag", "corrupted")
"""Too many requests (with Retry-After); unavailable; a connection that breaks in the middle of the answer, after the
request was carried out; an answer that takes its time; a HEAD with the hash of another version; one bit changed."""


class Faults:
    """To be put into `HubServer.fault`.

    Attributes:
        done: how many answers were faulty, by kind.
        answers: how many there were, faulty and sound.
        retry_after: the seconds that a 429 asks for.
    """

    def __init__(
        self,
        hub: HubServer,
        rate: float = 0.2,
        *,
        kinds: Sequence[str] = KINDS,
        seed: int = 0,
        per_call: int = 2,
        retry_after: int = 1,
        delay: float = 0.05,
    ) -> None:
        self.done: Counter[str] = Counter()
        self.answers = 0
        self.retry_after = retry_after
        self._hub, self._rate, self._kinds, self._per_call, self._delay = hub, rate, kinds, per_call, delay
        self._random = random.Random(seed)
        self._of_call: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Answer | None:
        kind = self._draw(request)
        if kind is None:
            return None
        request.fault = kind
        if kind == "429":
            answer = Answer.error(429, "", "Too many requests")
            answer.headers["Retry-After"] = str(self.retry_after)
            return answer
        if kind == "503":
            return Answer.error(503, "", "Service unavailable")
        answer = self._hub.respond(request)
        if kind == "slow":
            answer.delay = self._delay
        elif kind == "cut":
            answer.cut = len(answer.body) // 2 if len(answer.body) > 1 and request.method == "GET" else -1
        elif kind == "stale-etag":
            etag = f'"{hashlib.sha256(b"an older version").hexdigest()}"'
            answer.headers |= {name: etag for name in ("ETag", "X-Linked-Etag") if name in answer.headers}
        elif kind == "corrupted":
            body = bytearray(answer.body)
            with self._lock:
                body[self._random.randrange(len(body))] ^= 1
            answer.body = bytes(body)
        return answer

    def _draw(self, request: Request) -> str | None:
        file = "/resolve/" in request.path
        possible = [
            kind
            for kind in self._kinds
            if not (kind == "stale-etag" and not (file and request.method == "HEAD"))
            and not (kind == "corrupted" and not (file and request.method == "GET"))
        ]
        with self._lock:
            self.answers += 1
            call = (request.method, request.path)
            if not possible or self._of_call[call] >= self._per_call or self._random.random() >= self._rate:
                return None
            self._of_call[call] += 1
            kind = self._random.choice(possible)
            self.done[kind] += 1
            return kind
