"""What an error is about: the member or file from outside that was being used when a library raised it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def about(name: str) -> Iterator[None]:
    """Note on each exception that leaves the block which member or file it is about, unless that is known already.

    The exception stays what it is; `hf_dfml.errors.explain` puts the name before its message.

    Args:
        name: the member or file, as the user knows it.
    """
    try:
        yield
    except Exception as error:
        if subject(error) is None:
            error.about = name  # type: ignore[attr-defined]
        raise


def subject(error: BaseException) -> str | None:
    """The member or file that an exception is about, where `about` noted it."""
    return getattr(error, "about", None)
