"""Inference Endpoints as black boxes: Hugging Face's, and whatever answers image files as they do.

A pool of them is several URLs separated by commas, or a YAML file:

    output: topk                  # what is told: probs, topk (also where all classes are), label or logits
    image_size: 32                # of the images that are sent; 224 where nothing is said
    endpoints:
      - https://abc.us-east-1.aws.endpoints.huggingface.cloud
      - url: https://def.us-east-1.aws.endpoints.huggingface.cloud
        id: pets                  # else the first word of the host, or the last of the path
        labels: [cat, dog, fox]   # else asked for, by one query
        image_size: 64
      - model: org/name           # Hugging Face's own inference of a model; labels and size from its config
      - http://127.0.0.1:8000     # all members of a pool that `hf-dfml serve` serves

The user's Hugging Face token goes to Hugging Face's own hosts alone; others get the token of `HF_DFML_SERVE_TOKEN`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
import time
import weakref
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import torch
from huggingface_hub import AsyncInferenceClient, InferenceTimeoutError, constants, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx
from torch import Tensor

from hf_dfml.pool.black_box.answers import AnswerCache
from hf_dfml.pool.black_box.pool import Ask, BlackBoxPool, Output, QueryCount, ServiceError
from hf_dfml.pool.black_box.service import (
    PASSING,
    PNG_STEP,
    TOKEN_VARIABLE,
    NoServedPoolError,
    RefusedError,
    Service,
    answers_of,
    as_png,
)
from hf_dfml.pool.entry import MemberError, PoolEntry
from hf_dfml.pool.formats.checks import check_input, check_labels
from hf_dfml.pool.sources.client import user_agent
from hf_dfml.pool.sources.fetching import resolve
from hf_dfml.pool.sources.ids import HubIds

logger = logging.getLogger(__name__)

IMAGE_SIZE = 224
USUAL_TOP_K = 5
"""Classes that an image-classification pipeline tells where it is not asked for more."""
ALL_CLASSES = 100_000
"""More than any classifier has: what is asked for to learn its labels."""
LONGEST_WAIT = 60.0
_HUGGING_FACE = ("huggingface.co", "huggingface.cloud", "hf.co", "hf.space")
_ROW = {"url", "model", "id", "labels", "image_size"}
_SUFFIXES = (".yaml", ".yml")
_NO_JSON = (400, 415, 422)
Result = TypeVar("Result")


def open_remote(name: str, *, max_queries: int | None = None, **options: Any) -> BlackBoxPool:
    """The black boxes that `--pool` names: served pools and Inference Endpoints.

    Args:
        name: URLs separated by commas, or a YAML file (see the module's docstring).
        max_queries: images that may be sent to all members together; None for no limit.
        **options: of `RemoteModel`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be understood, two members have one id, or they do not tell the same.
        ServiceError: if one of them does not answer.
        QueryBudgetError: if the budget does not suffice to ask for the labels.
    """
    plan = _read(Path(name)) if name.endswith(_SUFFIXES) else Plan(_rows(name.split(",")))
    queries, loop = QueryCount(max_queries), Loop()
    entries: list[PoolEntry] = []
    asks: dict[str, Ask] = {}
    to_answers: dict[Output, str] = {}
    for row in plan.rows:
        found, ask, output = _served(row) or _endpoint(row, plan, queries, loop, options)
        to_answers.setdefault(output, row.get("url") or row["model"])
        for entry in found:
            if entry.id in asks:
                raise ValueError(f"{name} has two members called '{entry.id}': give one another `id` in a file.")
            asks[entry.id] = ask
            entries.append(entry)
    if len(to_answers) > 1:
        (one, first), (other, second), *_ = to_answers.items()
        raise ValueError(
            f"{first} tells {one} and {second} tells {other}: say `output: {one}` in a file, or part them."
        )
    return BlackBoxPool(
        entries,
        lambda entry, images: asks[entry.id](entry, images),
        next(iter(to_answers)),
        queries,
        resolution=PNG_STEP,
        cache=AnswerCache(),
    )


class RemoteModel:
    """One image classifier behind a URL, asked through huggingface_hub's client, an image a request.

    An image counts once as a query, however often a broken connection makes it travel.

    Args:
        url: of an Inference Endpoint, or of one member of a served pool.
        labels: the names of its classes; empty: `discover` asks for them.
        token: bearer token; None: see the module's docstring.
        concurrency: requests at a time.
        retries: times that a request is sent again after no answer, 429 or a server's error; waits 0.5, 1, 2, ...
            (at most 8) seconds, or what the server asks for (at most 60).
        timeout: seconds to wait for an answer.
        loading: seconds that the model may take to load: so long 503 is asked again and is no retry.
        loop: where requests are made; one of its own by default.
    """

    def __init__(
        self,
        url: str,
        labels: Sequence[str] = (),
        *,
        token: str | None = None,
        concurrency: int = 8,
        retries: int = 5,
        timeout: float = 60.0,
        loading: float = 600.0,
        loop: Loop | None = None,
    ) -> None:
        if concurrency < 1 or retries < 0 or timeout <= 0 or loading < 0:
            found = f"concurrency={concurrency}, retries={retries}, timeout={timeout}, loading={loading}"
            raise ValueError(f"{found}: expected at least 1, 0, more than 0, and 0.")
        self.url, self.labels = url, tuple(labels)
        self.concurrency, self.retries, self.timeout, self.loading = concurrency, retries, timeout, loading
        self._loop = loop or Loop()
        token = _token_for(url) if token is None else token
        # An empty header rather than none: the client would fill in the user's Hugging Face token.
        headers = {"authorization": f"Bearer {token}" if token else "", "user-agent": user_agent()}
        self._plain = AsyncInferenceClient(timeout=timeout, headers={**headers, "content-type": "image/png"})
        self._asking = AsyncInferenceClient(timeout=timeout, headers=headers)
        self._top_k = len(self.labels) if len(self.labels) > USUAL_TOP_K else None

    def ask(self, entry: PoolEntry, images: Tensor) -> Tensor:
        """Answers `(B, C)` to images `(B, 3, h, w)`, which are rounded to 8 bits; zero for classes that are not told.

        Raises:
            ServiceError: if it cannot be reached, or its answers are not those of the member.
        """
        rows = self._loop.run(self._rows(as_png(images)))
        return answers_of(rows, len(images), entry.class_names, self.url).to(images.device)

    def discover(self, size: tuple[int, int]) -> tuple[str, ...]:
        """Ask for the names of its classes, with one grey image, in alphabetical order.

        An endpoint that does not heed `top_k` tells the most probable ones only.

        Raises:
            ServiceError: if it cannot be reached, or tells none.
        """
        self._top_k = ALL_CLASSES
        (row,) = self._loop.run(self._rows(as_png(torch.full((1, 3, *size), 0.5))))
        self.labels = tuple(sorted({label for label, _ in row}))
        if not self.labels:
            raise ServiceError(f"{self.url} tells no class of an image: its labels must be given in a file.")
        if self._top_k is not None:
            self._top_k = len(self.labels) if len(self.labels) > USUAL_TOP_K else None
        return self.labels

    async def _rows(self, files: Sequence[bytes]) -> list[list[tuple[str, float]]]:
        gate = asyncio.Semaphore(self.concurrency)

        async def one(file: bytes) -> list[tuple[str, float]]:
            async with gate:
                return await self._retry(file)

        tasks = [asyncio.ensure_future(one(file)) for file in files]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()  # Where one has failed, the others are not wanted either.

    async def _retry(self, file: bytes) -> list[tuple[str, float]]:
        retried, problem = 0, ""
        patience = time.monotonic() + self.loading
        while True:
            wait = min(8.0, 0.5 * 2**retried)
            top_k = self._top_k
            try:
                return await self._classify(file, top_k)
            except HfHubHTTPError as error:
                status = error.response.status_code
                problem = f"{status} {_reason(error)}"
                if top_k is not None and status in _NO_JSON:
                    # It knows the format of files alone. If that is not the reason either, it says so again.
                    self._top_k = None
                    continue
                if status not in PASSING:
                    hint = " (is it the right token?)" if status in (401, 403) else ""
                    raise RefusedError(f"{self.url} refuses: {problem}{hint}.", status) from None
                wait = _asked_for(error.response) or wait
                if status == 503 and time.monotonic() < patience:
                    retried -= 1  # It is loading.
            except (InferenceTimeoutError, httpx.TimeoutException):  # Not all clients turn one into the other.
                problem = f"nothing within {self.timeout:g} s"
            except RecursionError:  # What the client makes of NaN.
                raise ServiceError(
                    f"{self.url} gave an answer that is not understood: a score is no number."
                ) from None
            except (httpx.TransportError, ValueError, TypeError) as error:  # The last two: JSON that was cut off.
                problem = " ".join(str(error).split())[:200] or type(error).__name__
            retried += 1
            if retried > self.retries:
                raise ServiceError(f"{self.url} gives no answer after {self.retries} retries: {problem}.")
            logger.warning("%s: %s; asked again in %.1f s.", self.url, problem, wait)
            await asyncio.sleep(wait)

    async def _classify(self, file: bytes, top_k: int | None) -> list[tuple[str, float]]:
        if top_k is None:
            row = await self._plain.image_classification(file, model=self.url)
        else:
            row = await self._asking.image_classification(file, model=self.url, top_k=top_k)
        return [(item.label, item.score) for item in row]


class Loop:
    """An event loop in a thread of its own, so that coroutines can be waited for anywhere, also in a notebook."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="hf_dfml-endpoints", daemon=True).start()
        weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of a coroutine, or what it raises."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # A keyboard interrupt is one of the waiting thread alone.
            future.cancel()
            raise


@dataclass(frozen=True)
class Plan:
    """What a file of endpoints says.

    Attributes:
        rows: `url` or `model`, and optionally `id`, `labels` and `image_size`, of each.
        output: what they tell.
        image_size: pixels, where a row says nothing else.
    """

    rows: Sequence[Mapping[str, Any]]
    output: Output = "topk"
    image_size: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("No endpoint was named.")
        for row in self.rows:
            if not isinstance(row, Mapping) or set(row) - _ROW or ("url" in row) == ("model" in row):
                raise ValueError(f"{row} is no endpoint: expected a URL, or an object of {', '.join(sorted(_ROW))}.")
            if not isinstance(row.get("labels", []), list):
                raise ValueError(f"The labels of {row} are no list.")


def _read(path: Path) -> Plan:
    import yaml

    if not path.expanduser().is_file():
        raise FileNotFoundError(f"There is no file {path}: expected a list of endpoints.")
    try:
        content = yaml.safe_load(path.expanduser().read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())[:160]}.") from error
    known = {"endpoints", "output", "image_size"}
    if not isinstance(content, dict) or set(content) - known or not isinstance(content.get("endpoints"), list):
        raise ValueError(
            f"{path} lists no endpoints: expected {', '.join(sorted(known))}, of which the first is a list."
        )
    rest = {name: value for name, value in content.items() if name != "endpoints"}
    return Plan(_rows(content["endpoints"]), **rest)


def _rows(names: Sequence[Any]) -> list[Any]:
    return [{"url": name.strip()} if isinstance(name, str) else name for name in names if name != ""]


def _served(row: Mapping[str, Any]) -> tuple[list[PoolEntry], Ask, Output] | None:
    """All members of a served pool, if that is what a row names."""
    url = row.get("url", "")
    if set(row) != {"url"} or urlsplit(url).path.strip("/") or _is_hugging_face(url):
        return None
    service = Service(url)
    try:
        entries, output = service.members()
    except NoServedPoolError:
        return None
    return entries, service.ask, output


def _endpoint(
    row: Mapping[str, Any], plan: Plan, queries: QueryCount, loop: Loop, options: Mapping[str, Any]
) -> tuple[list[PoolEntry], Ask, Output]:
    """The one member that a row names."""
    url, id = row.get("url", ""), row.get("id")
    labels: Sequence[str] = row.get("labels", ())
    size = row.get("image_size", plan.image_size)
    if "model" in row:
        known = _on_the_hub(row["model"])
        url = f"{constants.INFERENCE_PROXY_TEMPLATE.format(provider='hf-inference')}/models/{known.id}"
        id, labels = id or known.id, labels or known.label_names
        size = size or known.input_size[1:] if known.input_size else size
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"'{url}' is no URL of an endpoint: expected http://... or https://...")
    id = str(id or parts.path.strip("/").split("/")[-1] or parts.hostname.split(".")[0])
    size = IMAGE_SIZE if size is None else size
    sides = size if isinstance(size, list | tuple) else [size] * 2
    try:
        shape = check_input(id, [3, *sides], [0.5] * 3, [0.25] * 3)["input_size"]
        model = RemoteModel(url, tuple(labels), loop=loop, **options)
        if not labels:
            queries.spend(id, 1)
            labels = model.discover(shape[1:])
        names = check_labels(id, list(labels), len(labels))
    except MemberError as error:
        raise ValueError(f"The endpoint {error}.") from error
    entry = PoolEntry(id=id, num_classes=len(names), input_size=shape, label_names=names)
    return [entry], model.ask, plan.output


def _on_the_hub(model: Any) -> PoolEntry:
    """What the Hub says of a model: id, labels and image size; no weights are fetched."""
    entry = resolve(HubIds().entries(str(model))[0])
    if entry.problem is not None:
        raise ValueError(f"The model {model} of an endpoint cannot be used: {entry.problem}.")
    return entry


def _is_hugging_face(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return any(host == name or host.endswith(f".{name}") for name in _HUGGING_FACE)


def _token_for(url: str) -> str | None:
    """The token that may be sent there; never one of Hugging Face in clear or to anybody else."""
    if _is_hugging_face(url) and url.startswith("https://"):
        return get_token()
    return os.environ.get(TOKEN_VARIABLE)


def _asked_for(response: httpx.Response) -> float | None:
    """Seconds that a server asks to wait: `Retry-After`, or what it expects the model to take to load."""
    after = response.headers.get("Retry-After", "")
    if re.fullmatch(r"\d+", after):
        return min(LONGEST_WAIT, float(after))
    try:
        return min(LONGEST_WAIT, max(0.0, float(response.json()["estimated_time"])))
    except (ValueError, KeyError, TypeError):
        return None


def _reason(error: HfHubHTTPError) -> str:
    """What the server says, on one line; never an address or a header."""
    try:
        text = str(error.response.json()["error"])
    except (ValueError, KeyError, TypeError):
        text = error.server_message or error.response.reason_phrase
    return " ".join(text.split())[:200]
