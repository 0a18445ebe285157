"""One image classifier behind a URL that answers as Hugging Face's Inference Endpoints do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from urllib.parse import urlsplit

import torch
from huggingface_hub import get_token
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor

from hf_dfml.pool.black_box.sending import Sender
from hf_dfml.pool.black_box.service import TOKEN_VARIABLE
from hf_dfml.pool.black_box.wire import answers_of, as_png
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.queries import ServiceError
from hf_dfml.pool.sources.client import user_agent

USUAL_TOP_K = 5
"""Classes that an image-classification pipeline returns where it is not asked for more."""
ALL_CLASSES = 100_000
"""More than any classifier has: what is asked for to learn its labels."""
_HUGGING_FACE = ("huggingface.co", "huggingface.cloud", "hf.co")
"""Not `hf.space`: code of whoever made the Space would read the token."""
_NO_JSON = (400, 415, 422)


class RemoteModel:
    """One image classifier behind a URL, asked through huggingface_hub's `InferenceClient`, an image a request.

    An image counts once as a query, however often a broken connection makes it travel.

    Args:
        url: of an Inference Endpoint, or of one member of a served pool.
        labels: the names of its classes in its answers; empty: `discover` asks for them.
        token: bearer token; None: the user's Hugging Face token for Hugging Face's own hosts, that of
            `HF_DFML_SERVE_TOKEN` for others.
        concurrency: requests at a time.
        retries: times that a request is sent again after no answer, 429 or a server's error; see `Sender`.
        timeout: seconds to wait for an answer.
        loading: seconds that the model may take to load: so long 503 is asked again, not counted as a retry.
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
    ) -> None:
        self.url, self.labels = url, tuple(labels)
        self._sender = Sender(url, concurrency, retries, timeout, loading)
        token = token_for(url) if token is None else token
        # An empty header rather than none: the client would fill in the user's Hugging Face token.
        headers = {"authorization": f"Bearer {token}" if token else "", "user-agent": user_agent()}
        from huggingface_hub import InferenceClient  # Its types take a quarter of a second to import.

        self._of_files = InferenceClient(timeout=timeout, headers={**headers, "content-type": "image/png"})
        self._of_json = InferenceClient(timeout=timeout, headers=headers)
        self._files_only = False

    def ask(self, entry: PoolEntry, images: Tensor) -> Tensor:
        """Answers `(B, C)` to images `(B, 3, h, w)`, which are rounded to 8 bits; zero for classes not returned.

        Columns are in the order of `labels`, which the entry may give other names.

        Raises:
            ServiceError: if it cannot be reached, or its answers are not those of the member.
        """
        rows = self._sender.map(lambda file: self._classify(file, len(self.labels)), as_png(images))
        return answers_of(rows, len(images), self.labels, self.url).to(images.device)

    def discover(self, size: tuple[int, int]) -> tuple[str, ...]:
        """Ask for the names of its classes, with one grey image, in alphabetical order.

        An endpoint that ignores `top_k` returns the most probable ones only.

        Raises:
            ServiceError: if it cannot be reached, or returns none.
        """
        (file,) = as_png(torch.full((1, 3, *size), 0.5))
        row = self._sender.retry(lambda: self._classify(file, ALL_CLASSES))
        self.labels = tuple(sorted({label for label, _ in row}))
        if not self.labels:
            raise ServiceError(f"{self.url} returns no class of an image: give its labels in a file.")
        return self.labels

    def _classify(self, file: bytes, top_k: int) -> list[tuple[str, float]]:
        files_only = self._files_only or top_k <= USUAL_TOP_K
        try:
            if files_only:
                row = self._of_files.image_classification(file, model=self.url)
            else:
                row = self._of_json.image_classification(file, model=self.url, top_k=top_k)
        except HfHubHTTPError as error:
            if files_only or error.response.status_code not in _NO_JSON:
                raise
            # It knows the format of files alone. If that is not the reason either, it says so again.
            self._files_only = True
            return self._classify(file, top_k)
        except RecursionError:  # What the client makes of NaN.
            raise ServiceError(f"{self.url} gave an answer that is not understood: a score is not a number.") from None
        return [(item.label, item.score) for item in row]


def is_hugging_face(url: str) -> bool:
    """Whether a URL is of one of Hugging Face's own hosts."""
    host = urlsplit(url).hostname or ""
    return any(host == name or host.endswith(f".{name}") for name in _HUGGING_FACE)


def token_for(url: str) -> str | None:
    """The token that may be sent there; never one of Hugging Face unencrypted or to anybody else."""
    if is_hugging_face(url) and url.startswith("https://"):
        return get_token()
    return os.environ.get(TOKEN_VARIABLE)
