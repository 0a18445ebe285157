"""A pool behind HTTP (`hf-dfml serve`) as a pool of black boxes."""

from __future__ import annotations

import base64
import json
import os
from typing import Any
from urllib.parse import quote, urlsplit

from huggingface_hub.utils import httpx
from torch import Tensor

from hf_dfml.pool.black_box.answers import AnswerCache
from hf_dfml.pool.black_box.pool import BlackBoxPool
from hf_dfml.pool.black_box.sending import Sender
from hf_dfml.pool.black_box.wire import PNG_STEP, answers_of, as_png
from hf_dfml.pool.entry import MemberError, PoolEntry
from hf_dfml.pool.formats.checks import check_input, check_labels
from hf_dfml.pool.queries import Output, QueryCount, RefusedError, ServiceError

TOKEN_VARIABLE = "HF_DFML_SERVE_TOKEN"
MAX_ANSWER_BYTES = 64 << 20


class NoServedPoolError(ServiceError):
    """Something answers at a URL, but not as `hf-dfml serve` does."""


def open_service(url: str, *, max_queries: int | None = None, **options: Any) -> BlackBoxPool:
    """The black boxes at a URL such as `http://127.0.0.1:8000`.

    Args:
        url: of a running `hf-dfml serve`.
        max_queries: images that may be sent to all members together; None for no limit.
        **options: of `Service`.

    Raises:
        ServiceError: if nothing answers there, or something else.
    """
    service = Service(url, **options)
    entries, output = service.members()
    return BlackBoxPool(
        entries, service.ask, output, QueryCount(max_queries), resolution=PNG_STEP, cache=AnswerCache()
    )


class Service:
    """Sends images to a served pool, several requests at a time, again where that may help (see `Sender`).

    An image counts once as a query, however often a broken connection makes it travel.

    Args:
        url: of the server.
        token: its bearer token; by default the one in the environment variable `HF_DFML_SERVE_TOKEN`, if any.
        batch: images of one request.
        workers: requests at a time.
        retries: times that a request is sent again after no answer, 429 or a server's error.
        timeout: seconds to wait for an answer.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        batch: int = 64,
        workers: int = 4,
        retries: int = 5,
        timeout: float = 60.0,
    ) -> None:
        self.url, self.batch = url.rstrip("/"), batch
        self._sender = Sender(self.url, workers, retries, timeout)
        token = token or os.environ.get(TOKEN_VARIABLE)
        # A proxy of the environment cannot reach a server on this machine.
        elsewhere = urlsplit(url).hostname not in ("localhost", "127.0.0.1", "::1")
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=timeout,
            trust_env=elsewhere,
            follow_redirects=True,
        )

    def members(self) -> tuple[list[PoolEntry], Output]:
        """The members that are served, and the kind of their answers.

        Raises:
            NoServedPoolError: if what answers is not a served pool.
            ServiceError: if nothing answers, or asks for another token.
        """
        try:
            description = self.request("/models")
            models = [_entry_of(model) for model in description["models"]]
            output = description["output"]
        except RefusedError as error:
            if error.status in (401, 403):
                raise
            raise NoServedPoolError(f"{self.url} does not answer as `hf-dfml serve` does ({error}).") from error
        except (KeyError, TypeError, MemberError) as error:
            raise NoServedPoolError(
                f"{self.url} does not answer as `hf-dfml serve` does: it lists no models that can be used ({error!r})."
            ) from error
        if not models:
            raise NoServedPoolError(f"{self.url} serves a pool without members.")
        return models, output

    def ask(self, entry: PoolEntry, images: Tensor) -> Tensor:
        """Answers `(B, C)` to images `(B, 3, h, w)`, which are rounded to 8 bits; zero for classes not returned.

        Raises:
            ServiceError: if the service cannot be reached, or its answers are not those of the member.
        """
        path = f"/models/{quote(entry.id)}"
        files = [base64.b64encode(file).decode() for file in as_png(images)]
        parts = [files[start : start + self.batch] for start in range(0, len(files), self.batch)]
        answered = self._sender.map(lambda part: self._send(path, {"inputs": part}), parts)
        try:
            rows = [[(item["label"], item["score"]) for item in row] for part in answered for row in part]
        except (KeyError, TypeError) as error:
            raise ServiceError(f"{self.url}{path} gave an answer that is not understood: {error!r}.") from error
        return answers_of(rows, len(images), entry.class_names, self.url + path).to(images.device)

    def request(self, path: str) -> Any:
        """The JSON answer to a GET.

        Raises:
            RefusedError: if the server refuses.
            ServiceError: if there is none after all retries.
        """
        return self._sender.retry(lambda: self._send(path))

    def _send(self, path: str, content: Any = None) -> Any:
        """The JSON answer to one GET, or one POST of JSON `content`."""
        method = "GET" if content is None else "POST"
        with self._client.stream(method, self.url + path, json=content) as reply:
            if not reply.is_success:
                reply.read()  # The reason is in it.
                reply.raise_for_status()
            body = bytearray()
            for chunk in reply.iter_bytes():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise ServiceError(f"{self.url}{path} answers with more than {MAX_ANSWER_BYTES:,} bytes.")
        return json.loads(body)


def _entry_of(model: Any) -> PoolEntry:
    """A member as an untrusted server describes it."""
    id, labels = model["id"], model["labels"]
    if not isinstance(id, str) or not isinstance(labels, list) or not labels:
        raise TypeError(f"expected an id and a list of labels, found {str(model)[:80]}")
    names = check_labels(id, labels, len(labels))
    size = check_input(id, model["input_size"], [0.5] * 3, [0.25] * 3)["input_size"]
    return PoolEntry(id=id, num_classes=len(names), input_size=size, label_names=names)
