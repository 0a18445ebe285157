"""The Hub's client as every part of the package uses it: options, our name, retries, errors in one line."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from huggingface_hub import HfApi, ModelInfo, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, httpx, validate_repo_id

from hf_dfml.pool.entry import MemberError
from hf_dfml.pool.sources.near import did_you_mean

if TYPE_CHECKING:
    from typing_extensions import TypedDict

    class HubArguments(TypedDict, total=False):
        """The fields of `HubOptions`, as keyword arguments."""

        token: str | bool | None
        revision: str | None
        cache_dir: str | Path | None
        local_files_only: bool


logger = logging.getLogger(__name__)

TRIES = 8
"""How often a call is made that the server answers with "not now", or a file is asked for that arrives damaged."""
LONGEST_WAIT = 300
"""Seconds that a server may make us wait before a call is repeated."""
_NOT_NOW = (408, 429, 500, 502, 503, 504)
_REFUSED = (403, 410, 451)
_WINDOW = re.compile(r";\s*t\s*=\s*(\d{1,6})\b")
"""Seconds after which requests are let through again, in a `RateLimit` header such as `"api";r=0;t=55`."""
_SHA = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"\w[\w.\-/]{0,254}")
Result = TypeVar("Result")


@dataclass(frozen=True)
class HubOptions:
    """How the Hub is asked, in the words of huggingface_hub.

    Attributes:
        token: of the user; None or True: the one that is stored or in `HF_TOKEN`; False: none is sent.
        revision: branch, tag or commit of repositories that are named without one; None: `main`.
        cache_dir: where files are kept; None: the usual folder (`HF_HUB_CACHE`).
        local_files_only: nothing is sent, and only what is in the cache is found, as under `HF_HUB_OFFLINE=1`.
    """

    token: str | bool | None = field(default=None, repr=False)
    revision: str | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False

    @property
    def cache(self) -> Path:
        """The folder of the local cache."""
        return Path(self.cache_dir or constants.HF_HUB_CACHE).expanduser()

    @property
    def offline(self) -> bool:
        """Whether nothing may be sent."""
        return self.local_files_only or bool(constants.HF_HUB_OFFLINE)

    def api(self) -> HfApi:
        """The client: sends our name and version, and obeys `HF_ENDPOINT` even if it was set after the import."""
        return HfApi(endpoint=endpoint(), token=self.token, library_name="hf_dfml", library_version=_version())

    def headers(self) -> dict[str, str]:
        """What the client sends with each call: our name and version, and the token."""
        return build_hf_headers(token=self.token, library_name="hf_dfml", library_version=_version())


USUAL = HubOptions()
"""The options where none are given."""


def user_agent() -> str:
    """Our name and version, as the Hub's client says them."""
    return HubOptions(token=False).headers()["user-agent"]


def _version() -> str:
    try:
        return version("hf_dfml")
    except PackageNotFoundError:  # A source tree that was never installed.
        return "0"


def endpoint() -> str:
    """The address of the Hub, or of the self-hosted one that `HF_ENDPOINT` names."""
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def is_sha(revision: str | None) -> bool:
    """Whether a revision is a full commit sha, whose files never change."""
    return revision is not None and _SHA.fullmatch(revision) is not None


def printable(id: str) -> str:
    """The id, with escapes for what cannot be printed: a line break at its end would pass the client's own check."""
    return id if id.isprintable() else id.encode("unicode_escape").decode()


def check_id(id: str, revision: str | None = None) -> None:
    """Refuse ids and revisions that are none, before they become a path in the cache or an address.

    Raises:
        MemberError: if `id` is not `name` or `org/name`, or `revision` is not a branch, tag or commit.
    """
    try:
        validate_repo_id(id)
    except HFValidationError as error:
        raise MemberError(id, "is not a repository id (expected org/name)") from error
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision):
        raise MemberError(id, f"revision '{revision}' is not a branch, tag or commit")


@contextmanager
def looking_for(name: str) -> Iterator[None]:
    """Says of a name that is no folder here, and so is looked for on the Hub, what is wrong if that is out of reach.

    Raises:
        FileNotFoundError: before the Hub is asked, if a folder here has nearly that name.
        ConnectionError: in place of the client's error.
    """
    can_be_both = not name.startswith((".", "/", "~", "dir:"))
    if can_be_both and (meant := did_you_mean(name)):
        raise FileNotFoundError(
            f"There is no folder {name}.{meant} (A repository of the Hub of that name is written hf:{name}.)"
        )
    try:
        yield
    except httpx.TransportError as error:
        raise ConnectionError(
            f"There is no folder {name}, and the Hub ({endpoint()}) could not be reached to look for a repository of "
            f"that name: {error or type(error).__name__}."
        ) from error


def retry(call: Callable[[], Result], tries: int = TRIES) -> Result:
    """`call()`, made again where the server says "not now" (429, 503, ...) or the connection breaks.

    Waits as long as the server asks (`Retry-After`, or of 429 the end of its `RateLimit` window), else 1, 2, 4, 8, 8,
    ... seconds. The client repeats some calls by itself and others not, and which ones changes with its version.

    Raises:
        Exception: what `call` raised last, after so many `tries`, or at once if asking again cannot help.
    """
    for attempt in range(tries):
        try:
            return call()
        except (HfHubHTTPError, httpx.TransportError, OSError) as error:
            wait = _seconds_to_wait(error, attempt)
            if wait is None or attempt == tries - 1:
                raise
            # Neither address nor headers: they could hold what is private.
            logger.info("The Hub could not answer (%s): asking again in %g s.", type(error).__name__, wait)
        time.sleep(wait)
    raise AssertionError("unreachable")


def _seconds_to_wait(error: Exception, attempt: int) -> float | None:
    """How long to wait before the next try; None where the error is final."""
    usual = float(min(2**attempt, 8))
    if isinstance(error, HfHubHTTPError):
        if error.response.status_code not in _NOT_NOW:
            return None
        asked = error.response.headers.get("Retry-After", "")
        if asked.isdecimal():
            return min(float(asked), LONGEST_WAIT)
        window = _WINDOW.search(error.response.headers.get("RateLimit", ""))
        if window and error.response.status_code == 429:
            return min(float(window[1]) + 1, LONGEST_WAIT)
        return usual
    if isinstance(error, httpx.TransportError):
        # Where nobody listens, nobody will listen in a few seconds.
        return None if isinstance(error, httpx.ConnectError) else usual
    # A file shorter than promised is an OSError that no operating system has raised.
    return usual if type(error) is OSError and error.errno is None else None


def models_of(author: str, options: HubOptions = USUAL) -> list[ModelInfo]:
    """The models of a user or organisation with the names of their files, one request a page.

    The client's own `list_models` asks for 23 seconds where nobody listens; here a page is asked for as `retry` says.

    Raises:
        HfHubHTTPError: if the Hub refuses.
        httpx.TransportError: if it cannot be reached.
    """

    def ask(address: str, query: dict[str, str] | None = None) -> httpx.Response:
        answer = get_session().get(address, params=query, headers=options.headers())
        hf_raise_for_status(answer)
        return answer

    page = retry(lambda: ask(f"{endpoint()}/api/models", {"author": author, "full": "True"}))
    rows = list(page.json())
    while following := page.links.get("next", {}).get("url"):
        page = retry(partial(ask, following))
        rows += page.json()
    return [ModelInfo(**{"siblings": None, **row}) for row in rows]


def why_refused(error: BaseException | None) -> str | None:
    """One line where the Hub refuses one repository (403, 410, 451), as a disabled one; None for any other error.

    Of a file's first request the client says "check your connection" instead, with the answer as the cause.
    """
    if isinstance(error, LocalEntryNotFoundError):
        error = error.__cause__
    if not isinstance(error, HfHubHTTPError) or error.response.status_code not in _REFUSED:
        return None
    status = HTTPStatus(error.response.status_code)
    said = error.response.headers.get("X-Error-Message", status.phrase).rstrip(".")[:160]
    return f"cannot be read: {endpoint()} answers {status.value} ({said})"


def why_not_found(error: Exception) -> str:
    """One line for the Hub's three ways to say no."""
    if isinstance(error, GatedRepoError):
        return f"is gated: ask for access on {endpoint()} and log in (`hf auth login`)"
    if isinstance(error, RevisionNotFoundError):
        return "has no such revision"
    return f"is no repository on {endpoint()}, or a private one that your token may not read"
