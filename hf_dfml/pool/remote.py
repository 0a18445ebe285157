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

from hf_dfml.pool.black_box import BlackBoxPool, QueryCount, ServiceError
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.utils.images import to_uint8

logger = logging.getLogger(__name__)

PNG_STEP = 1 / 255
TOKEN_VARIABLE = "HF_DFML_SERVE_TOKEN"
_PASSING = (408, 425, 429, 500, 502, 503, 504)


def is_service(name: str) -> bool:
    """Whether the name of a pool is that of one behind HTTP."""
    return name.startswith(("http://", "https://"))


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
    description = service.request("/models")
    try:
        entries = [
            PoolEntry(
                id=model["id"],
                num_classes=len(model["labels"]),
                input_size=tuple(model["input_size"]),
                label_names=tuple(model["labels"]),
            )
            for model in description["models"]
        ]
        output = description["output"]
    except (KeyError, TypeError) as error:
        raise ServiceError(f"{url} does not answer as `hf-dfml serve` does: it lists no models.") from error
    return BlackBoxPool(entries, service.ask, output, QueryCount(max_queries), resolution=PNG_STEP)


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

    def ask(self, entry: PoolEntry, images: Tensor) -> Tensor:
        """Answers `(B, C)` to images `(B, 3, h, w)`, which are rounded to 8 bits; zero for classes that are not told.

        Raises:
            ServiceError: if the service cannot be reached, or names a class that the member does not have.
        """
        places = {name: index for index, name in enumerate(entry.class_names)}
        path = f"/models/{quote(entry.id)}"
        files = [base64.b64encode(file).decode() for file in as_png(images)]
        parts = [files[start : start + self.batch] for start in range(0, len(files), self.batch)]
        with ThreadPoolExecutor(self.workers) as pool:
            rows = [row for part in pool.map(lambda part: self.request(path, {"inputs": part}), parts) for row in part]
        answers = torch.zeros(len(images), len(places))
        try:
            for index, row in enumerate(rows):
                for item in row:
                    answers[index, places[item["label"]]] = item["score"]
        except (KeyError, TypeError, IndexError) as error:
            raise ServiceError(f"{self.url}{path} gave an answer that is not understood: {error!r}.") from error
        return answers.to(images.device)

    def request(self, path: str, content: Any = None) -> Any:
        """The JSON answer to a GET, or to a POST of JSON `content`.

        Raises:
            ServiceError: if there is none after all retries, or the server refuses.
        """
        problem, wait = "", 0.0
        for attempt in range(self.retries + 1):
            if attempt:
                logger.warning("%s: %s; asked again in %.1f s.", self.url, problem, wait)
                time.sleep(wait)
            wait = min(8.0, 0.5 * 2**attempt)
            try:
                with self._opener.open(self._request(path, content), timeout=self.timeout) as reply:
                    return json.load(reply)
            except HTTPError as error:
                problem = f"{error.code} {_message(error)}"
                if error.code not in _PASSING:
                    raise ServiceError(f"{self.url}{path} refuses: {problem}.") from None
                after = error.headers.get("Retry-After", "")
                wait = min(60.0, float(after)) if after.isdigit() else wait
            except (URLError, HTTPException, OSError, ValueError) as error:  # ValueError: JSON that was cut off.
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


def _message(error: HTTPError) -> str:
    try:
        return str(json.load(error)["error"])
    except (ValueError, KeyError, TypeError, OSError, HTTPException):
        return error.reason
