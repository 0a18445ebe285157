"""Errors that a user can mend are one sentence on every command line; the others are faults and keep their traceback.

With HF_DFML_TRACEBACK=1 in the environment these show their traceback as well.

Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 stopped before its end (time or query budget), with a
checkpoint; 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from hf_dfml.utils.interrupt import INTERRUPTED, SENTENCE, end_soon, obey_interrupts

TRACEBACK_VARIABLE = "HF_DFML_TRACEBACK"


@contextmanager
def errors_in_a_sentence(program: str | None = None, *, own_process: bool = True) -> Iterator[None]:
    """End the process with a sentence and exit code 1 where `explain` has one; with 130 after Ctrl-C.

    Args:
        program: what the user has typed; the sentence begins with it. The script's name by default.
        own_process: whether the process is to end with it, whatever its threads are doing.
    """
    program = program or Path(sys.argv[0]).name
    try:
        with obey_interrupts(program):
            yield
    except KeyboardInterrupt as interrupt:
        if own_process:
            end_soon()
        interrupted(program, interrupt)
    except SystemExit as end:
        if own_process and end.code == INTERRUPTED:
            end_soon()
        raise
    except Exception as error:
        sentence = explain(error)
        if sentence is None or os.environ.get(TRACEBACK_VARIABLE):
            raise
        raise SystemExit(f"{program}: {sentence}") from error


def interrupted(program: str, interrupt: KeyboardInterrupt) -> NoReturn:
    """End the process after Ctrl-C, with the sentence of the part that it has hit where it has one."""
    print(f"\n{program}: {str(interrupt) or SENTENCE}", file=sys.stderr)
    raise SystemExit(INTERRUPTED) from interrupt


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
