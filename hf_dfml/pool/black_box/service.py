"""A pool behind HTTP (`hf-dfml serve`) as a pool of black boxes.

Images travel as PNG, that is in steps of 1 / 255 and never outside of [0, 1]. The pool says so (`resolution`), and
zero-order gradients take their differences over at least one such step a pixel (root mean square): a length of 0.22 at
32 x 32 pixels, where the paper's 0.00125 would drown in the rounding. Where a pixel is 0 or 1, the half of a
difference that points outwards is lost.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import ProxyHandler, Request, build_opener

import torch
from torch import Tensor

from hf_dfml.pool.black_box.answers import AnswerCache
from hf_dfml.pool.black_box.pool import BlackBoxPool, Output, QueryCount, ServiceError
from hf_dfml.pool.entry import MemberError, PoolEntry
from hf_dfml.pool.formats.checks import check_input, check_labels
from hf_dfml.utils.images import to_uint8

logger = logging.getLogger(__name__)

PNG_STEP = 1 / 255
TOKEN_VARIABLE = "HF_DFML_SERVE_TOKEN"
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Status codes after which the same request may succeed a little later."""
MAX_ANSWER_BYTES = 64 << 20


class RefusedError(ServiceError):
    """A service that answers, and will not answer this.

    Attributes:
        status: the HTTP status code.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class NoServedPoolError(ServiceError):
    """Something answers at a URL, and it is no served pool."""


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
    """Sends images to a served pool, several requests at a time, again where that may help.

    An image counts once as a query, however often a broken connection makes it travel.

    Args:
        url: of the server.
        token: its bearer token; by default what the environment variable `HF_DFML_SERVE_TOKEN` says, if anything.
        batch: images of one request.
        workers: requests at a time.
        retries: times that a request is sent again after no answer, 429 or a server's error; waits 0.5, 1, 2, ...
            (at most 8) seconds, or what the server asks for.
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
        self.url = url.rstrip("/")
        self._token = token or os.environ.get(TOKEN_VARIABLE)
        self.batch, self.workers, self.retries, self.timeout = batch, workers, retries, timeout
        here = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
        self._opener = build_opener(*([ProxyHandler({})] if here else []))

    def members(self) -> tuple[list[PoolEntry], Output]:
        """The members that are served, and what is told of an image.

        Raises:
            NoServedPoolError: if what answers is no served pool.
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
        return models, output

    def ask(self, entry: PoolEntry, images: Tensor) -> Tensor:
        """Answers `(B, C)` to images `(B, 3, h, w)`, which are rounded to 8 bits; zero for classes that are not told.

        Raises:
            ServiceError: if the service cannot be reached, or its answers are not those of the member.
        """
        path = f"/models/{quote(entry.id)}"
        files = [base64.b64encode(file).decode() for file in as_png(images)]
        parts = [files[start : start + self.batch] for start in range(0, len(files), self.batch)]
        with ThreadPoolExecutor(self.workers) as pool:
            rows = [row for part in pool.map(lambda part: self.request(path, {"inputs": part}), parts) for row in part]
        try:
            to_answers = [[(item["label"], item["score"]) for item in row] for row in rows]
        except (KeyError, TypeError) as error:
            raise ServiceError(f"{self.url}{path} gave an answer that is not understood: {error!r}.") from error
        return answers_of(to_answers, len(images), entry.class_names, self.url + path).to(images.device)

    def request(self, path: str, content: Any = None) -> Any:
        """The JSON answer to a GET, or to a POST of JSON `content`.

        Raises:
            RefusedError: if the server refuses.
            ServiceError: if there is none after all retries.
        """
        problem, wait = "", 0.0
        for attempt in range(self.retries + 1):
            if attempt:
                logger.warning("%s: %s; asked again in %.1f s.", self.url, problem, wait)
                time.sleep(wait)
            wait = min(8.0, 0.5 * 2**attempt)
            try:
                with self._opener.open(self._request(path, content), timeout=self.timeout) as reply:
                    body = reply.read(MAX_ANSWER_BYTES + 1)
                    if len(body) > MAX_ANSWER_BYTES:
                        raise ServiceError(f"{self.url}{path} answers with more than {MAX_ANSWER_BYTES:,} bytes.")
                    return json.loads(body)
            except HTTPError as error:
                problem = f"{error.code} {_message(error)}"
                if error.code not in PASSING:
                    raise RefusedError(f"{self.url}{path} refuses: {problem}.", error.code) from None
                after = error.headers.get("Retry-After", "")
                wait = min(60.0, float(after)) if after.isdigit() else wait
            except ServiceError:
                raise  # It is an OSError too.
            # ValueError: JSON that was cut off; RecursionError: brackets nested thousands deep.
            except (URLError, HTTPException, OSError, ValueError, RecursionError) as error:
                problem = str(getattr(error, "reason", error)) or type(error).__name__
        raise ServiceError(f"{self.url}{path} gives no answer after {self.retries} retries: {problem}.")

    def _request(self, path: str, content: Any) -> Request:
        data = None if content is None else json.dumps(content).encode()
        headers = {"Content-Type": "application/json"} if data else {}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        return Request(self.url + path, data, headers)


def as_png(images: Tensor) -> Sequence[bytes]:
    """PNG files of images `(B, 3, h, w)` in [0, 1], rounded to the nearest of 256 levels."""
    from PIL import Image

    files = []
    for array in to_uint8(images.cpu().float()).permute(0, 2, 3, 1).numpy():
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG", compress_level=1)
        files.append(buffer.getvalue())
    return files


def answers_of(rows: Sequence[Sequence[tuple[str, float]]], count: int, classes: Sequence[str], source: str) -> Tensor:
    """Answers `(B, C)` from the labels and scores that were told of each image; zero for classes that were not.

    Args:
        rows: for each image the labels that were told, with their scores.
        count: the images that were sent.
        classes: names of the classes in the order of the columns.
        source: who told so, for messages.

    Raises:
        ServiceError: if there are more or fewer rows than images, a label is none of the classes or stands twice in a
            row, or a score is no finite number.
    """

    def wrong(what: str) -> ServiceError:
        return ServiceError(f"{source} gave an answer that is not understood: {what}.")

    places = {name: index for index, name in enumerate(classes)}
    if len(rows) != count:
        raise wrong(f"{len(rows)} answers to {count} images")
    answers = [[0.0] * len(places) for _ in rows]
    for answer, row in zip(answers, rows, strict=True):
        if len({label for label, _ in row}) < len(row):
            raise wrong("a label stands twice in it")
        for label, score in row:
            if label not in places:
                known = ", ".join(repr(name) for name in list(places)[:5])
                raise wrong(f"it names a class {label!r}, which is none of the member's {len(places)} ({known}, ...)")
            if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
                raise wrong(f"the score of {label!r} is {score!r}")
            answer[places[label]] = score
    return torch.tensor(answers).reshape(len(rows), len(places))


def _entry_of(model: Any) -> PoolEntry:
    """A member as a served pool describes it, which nobody vouches for."""
    id, labels = model["id"], model["labels"]
    if not isinstance(id, str) or not isinstance(labels, list) or not labels:
        raise TypeError(f"expected an id and a list of labels, found {str(model)[:80]}")
    names = check_labels(id, labels, len(labels))
    size = check_input(id, model["input_size"], [0.5] * 3, [0.25] * 3)["input_size"]
    return PoolEntry(id=id, num_classes=len(names), input_size=size, label_names=names)


def _message(error: HTTPError) -> str:
    try:
        return str(json.load(error)["error"])
    except (ValueError, KeyError, TypeError, OSError, HTTPException):
        return error.reason
