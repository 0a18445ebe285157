"""Models as prediction-only HTTP endpoints, in the Hugging Face inference format.

| request | answer |
|---|---|
| `GET /health` | `{"status": "ok"}` |
| `GET /models` | `{"output", "models": [{"id", "labels", "input_size"}, ...]}` |
| `POST /models/ID`, body an image file | `[{"label", "score"}, ...]`, the largest score first |
| `POST /models/ID`, body `{"inputs": BASE64 image or a list of them}` | that, or a list of that |

`huggingface_hub.InferenceClient().image_classification(image, model="http://host:port/models/ID")` is a client;
`open_service` of `hf_dfml.pool.black_box.service` is another. The server chooses the kind of answer: see
`hf_dfml.pool.black_box.pool`.
"""

from __future__ import annotations

import base64
import hmac
import io
import json
import logging
import math
import re
import threading
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import torch
from torch import Tensor

from hf_dfml.errors import explain
from hf_dfml.pool.black_box.batching import Batcher
from hf_dfml.pool.black_box.limits import Budget, BusyError, DeadlineReader, linger, read_body
from hf_dfml.pool.black_box.pool import check_answers, to_answers
from hf_dfml.pool.entry import MemberError, PoolEntry
from hf_dfml.pool.model_pool import ModelPool
from hf_dfml.pool.queries import Output
from hf_dfml.utils.images import read_image, resize, to_unit

logger = logging.getLogger(__name__)

MAX_PIXELS = 4096 * 4096
"""Of one image; a small file can hold many more."""
BODY = "the body"
"""What errors call an image that was sent."""
CONNECTIONS = 256
"""Clients at a time; others are answered 503 at once."""
RESIZED_BYTES = 256 << 20
"""Of the images of all requests that wait for their answers, and of one request's."""
BODY_BYTES = 128 << 20
"""Of all bodies that are held, at least; room for four of the largest."""
AT_ONCE = 2
"""Images that are decoded at a time: one of `MAX_PIXELS` takes half a gigabyte while it is."""
PASS_PIXELS = 64 * 224 * 224
"""Height times width times images of one forward pass."""
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b'Content-Length: 60\r\n\r\n{"error": "too many clients: try again in a second or more"}'
)


class ModelServer(ThreadingHTTPServer):
    """Serves models until `shutdown()`; `serve_forever()` blocks. A subclass says how they read and answer images.

    Args:
        entries: the models; their ids are part of the addresses.
        host: address to listen on.
        port: 0 for any free one; see `url`.
        output: the kind of answers: `logits`, `probs`, `topk` or `label`.
        top_k: classes that `topk` returns.
        token: what clients must send as `Authorization: Bearer TOKEN`; None: nothing.
        max_bytes: of one request.
        seconds: that a request may take to arrive, and an answer to be taken.

    Raises:
        ValueError: for another `output`, or a `top_k` below 1.
        ConnectionError: if the port is taken or impossible, or the host is not this machine's.
    """

    daemon_threads = True
    request_queue_size = 512

    def __init__(
        self,
        entries: Sequence[PoolEntry],
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        output: Output = "probs",
        top_k: int = 3,
        token: str | None = None,
        max_bytes: int = 32 << 20,
        seconds: float = 60.0,
    ) -> None:
        check_answers(output, top_k)
        self.entries = tuple(entries)
        self.output, self.top_k, self.token, self.max_bytes = output, top_k, token, max_bytes
        self.seconds = seconds
        self.bodies, self.resized = (Budget(size, seconds) for size in (max(BODY_BYTES, 4 * max_bytes), RESIZED_BYTES))
        self._decoding, self._slots = threading.Semaphore(AT_ONCE), threading.Semaphore(CONNECTIONS)
        self.batcher = Batcher(self._in_parts)
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            self.batcher.close()
            reason = error.strerror if isinstance(error, OSError) else "a port is a number from 0 to 65535"
            raise ConnectionError(
                f"Cannot listen on port {port} of {host}: {reason}. Choose another --port (0: any free one) or --host."
            ) from error

    @abstractmethod
    def read(self, entry: PoolEntry, file: bytes) -> Tensor:
        """An image file as `(3, h, w)` in [0, 1] of the model's size.

        Raises:
            ValueError: if it is not a readable image.
        """

    @abstractmethod
    def forward(self, id: Hashable, images: Tensor) -> Tensor:
        """A model's logits `(B, C)`, on the CPU, of what `read` gave; called in one thread."""

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def models(self) -> dict[str, Any]:
        """What `GET /models` says."""
        return {
            "output": self.output,
            "models": [
                {"id": entry.id, "labels": list(entry.class_names), "input_size": list(entry.input_size or ())}
                for entry in self.entries
            ],
        }

    def classify(self, entry: PoolEntry, files: Sequence[bytes], top_k: int | None = None) -> list[list[dict]]:
        """The answers to image files, in one batch with those of other requests that wait.

        Args:
            entry: the member.
            files: bytes of an image file each.
            top_k: return no more classes than that.

        Raises:
            ValueError: if one is not a readable image.
        """
        assert entry.input_size is not None
        most = max(1, RESIZED_BYTES // (4 * math.prod(entry.input_size)))
        if len(files) > most:
            raise ValueError(f"{most} images are the limit of a request to this model, this one has {len(files)}")
        with self.resized.holding(4 * len(files) * math.prod(entry.input_size)):
            images = torch.stack([self._read(entry, file) for file in files])
            answers = to_answers(self.batcher(entry.id, images), self.output, self.top_k)
        return [self._rows(entry, answer)[:top_k] for answer in answers]

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for each connection, as in the base class; those that are too many get 503."""
        if self._slots.acquire(blocking=False):
            try:
                return super().process_request(request, client_address)
            except BaseException:
                self._slots.release()
                raise
        try:
            request.setblocking(False)
            request.send(_BUSY)
        except OSError:
            pass
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """As in the base class; then another client may come."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may leave when they like: no traceback, as the base class prints."""
        logger.debug("The connection of %s ended.", client_address, exc_info=True)

    def server_close(self) -> None:
        """Stop listening, and end the thread of the forward passes."""
        super().server_close()
        self.batcher.close()

    def _read(self, entry: PoolEntry, file: bytes) -> Tensor:
        with self._decoding:
            return self.read(entry, file)

    def _in_parts(self, id: Hashable, images: Tensor) -> Tensor:
        parts = images.split(max(1, PASS_PIXELS // math.prod(images.shape[-2:])))
        return torch.cat([self.forward(id, part) for part in parts])

    def _rows(self, entry: PoolEntry, answer: Tensor) -> list[dict]:
        order = answer.argsort(descending=True).tolist()
        shown = {"topk": self.top_k, "label": 1}.get(self.output)
        scores = answer.tolist()
        return [{"label": entry.class_names[index], "score": scores[index]} for index in order[:shown]]


class PoolServer(ModelServer):
    """Serves the members of a pool, which are loaded when they are asked.

    Args:
        pool: the members.
        **options: of `ModelServer`.
    """

    def __init__(self, pool: ModelPool, **options: Any) -> None:
        self.pool = pool.usable()
        super().__init__(self.pool, **options)

    def read(self, entry: PoolEntry, file: bytes) -> Tensor:
        """Resized as a member resizes images, so that it answers as it does in a process of its own."""
        assert entry.input_size is not None
        image = to_unit(read_image(file, name=BODY, max_pixels=MAX_PIXELS))
        return resize(image[None], entry.input_size[1:])[0]

    @torch.no_grad()
    def forward(self, id: Hashable, images: Tensor) -> Tensor:
        """As in the base class."""
        return self.pool.load(str(id))(images.to(self.pool.device)).cpu()


class _Handler(BaseHTTPRequestHandler):
    server: ModelServer
    protocol_version = "HTTP/1.1"
    # Else the body waits until the client has acknowledged the headers: 40 ms for each answer on a kept connection.
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._reader = DeadlineReader(self.connection, self.server.seconds)
        self.rfile = io.BufferedReader(self._reader)

    def handle_one_request(self) -> None:
        self._reader.next_request()
        super().handle_one_request()

    def do_GET(self) -> None:  # noqa: N802  (the standard library's name)
        path = urlsplit(self.path).path
        if path == "/health":
            self._reply(HTTPStatus.OK, {"status": "ok"})
        elif self._is_unauthorised():
            return
        elif path in ("/", "/models"):
            self._reply(HTTPStatus.OK, self.server.models())
        else:
            self._fail(HTTPStatus.NOT_FOUND, f"there is nothing at {path}: expected /health or /models")

    def do_POST(self) -> None:  # noqa: N802
        if self._is_unauthorised():
            return
        id = unquote(urlsplit(self.path).path).removeprefix("/models/")
        entry = next((entry for entry in self.server.entries if entry.id == id), None)
        if entry is None:
            return self._fail(HTTPStatus.NOT_FOUND, f"there is no model '{id}': GET /models lists them")
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not re.fullmatch("[0-9]{1,18}", length):
            return self._fail(HTTPStatus.LENGTH_REQUIRED, "the request says no Content-Length")
        if int(length) > self.server.max_bytes:
            limit = f"{self.server.max_bytes} bytes is the limit of a request"
            return self._fail(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{limit}, this one has {length}")
        try:
            answers = self._answers(entry, int(length))
        except MemberError as error:
            return self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, f"the model cannot be used: {error.reason}")
        except (ValueError, EOFError) as error:
            return self._fail(HTTPStatus.BAD_REQUEST, str(error))
        except TimeoutError as error:
            return self._fail(HTTPStatus.REQUEST_TIMEOUT, str(error))
        except BusyError as error:
            return self._fail(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except ConnectionError:
            self.close_connection = True
            return None
        except Exception as error:  # One request must not end the connection without an answer.
            logger.debug("A request to %s failed.", id, exc_info=True)
            reason = explain(error) or type(error).__name__
            return self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, f"the model cannot be used: {reason}")
        self._reply(HTTPStatus.OK, answers)

    def _answers(self, entry: PoolEntry, length: int) -> Any:
        body = read_body(self.rfile, length, self.server.bodies)
        try:
            files, many, top_k = _files(body, self.headers.get("Content-Type", ""))
            answers = self.server.classify(entry, files, top_k)
        finally:
            self.server.bodies.give(length)
        return answers if many else answers[0]

    def _is_unauthorised(self) -> bool:
        expected, given = self.server.token, self.headers.get("Authorization", "")
        if expected is None or hmac.compare_digest(given.encode(), f"Bearer {expected}".encode()):
            return False
        self._fail(HTTPStatus.UNAUTHORIZED, "a bearer token is needed, and this is not the one")
        return True

    def _fail(self, status: HTTPStatus, message: str) -> None:
        self.close_connection = True  # What is left of the body is not read.
        self._reply(status, {"error": message})
        linger(self.connection)

    def _reply(self, status: HTTPStatus, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        logger.debug(format, *args)


def _files(body: bytes, content_type: str) -> tuple[list[bytes], bool, int | None]:
    """The image files of a request, whether they came as a list, and the `top_k` that it asks for.

    Raises:
        ValueError: if there are none.
    """
    if content_type.split(";")[0].strip() != "application/json":
        return [body], False, None
    try:
        content = json.loads(body)
        inputs = content["inputs"]
        top_k = (content.get("parameters") or {}).get("top_k")
        many = isinstance(inputs, list)
        files = [base64.b64decode(item, validate=True) for item in (inputs if many else [inputs])]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError('expected {"inputs": an image file in base64, or a list of them}') from error
    if not files:
        raise ValueError("the list of inputs is empty")
    if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
        raise ValueError(f"top_k={top_k!r}: expected a positive number")
    return files, many, top_k
