"""Errors that a user can mend are one sentence on every command line; the others are faults and keep their traceback.

With HF_DFML_TRACEBACK=1 in the environment these show their traceback as well.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TRACEBACK_VARIABLE = "HF_DFML_TRACEBACK"


@contextmanager
def errors_in_a_sentence(program: str | None = None) -> Iterator[None]:
    """End the process with a sentence and exit code 1 where `explain` has one.

    Args:
        program: what the user has typed; the sentence begins with it. The script's name by default.
    """
    try:
        yield
    except Exception as error:
        sentence = explain(error)
        if sentence is None or os.environ.get(TRACEBACK_VARIABLE):
            raise
        raise SystemExit(f"{program or Path(sys.argv[0]).name}: {sentence}") from error


def explain(error: Exception) -> str | None:
    """One line about an error that a user can mend; None for any other."""
    from huggingface_hub import constants
    from huggingface_hub.utils import httpx

    if isinstance(error, httpx.TransportError):
        hub = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
        return f"The Hub ({hub}) could not be reached: {error or type(error).__name__}."
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}."
    if isinstance(error, ValueError | OSError | FloatingPointError | ModuleNotFoundError):
        return " ".join(str(error).split()) or type(error).__name__
    return None
