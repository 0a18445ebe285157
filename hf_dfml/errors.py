"""Errors that a user can mend are one sentence on every command line; the others are faults and keep their traceback.

With HF_DFML_TRACEBACK=1 in the environment these show their traceback as well.

Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 stopped before its end (time or query budget), with a
checkpoint; 130 Ctrl-C.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from hf_dfml.utils.interrupt import INTERRUPTED, SENTENCE, end_soon, keep_exit_code, obey_interrupts
from hf_dfml.utils.outside import subject

TRACEBACK_VARIABLE = "HF_DFML_TRACEBACK"

_LIBRARIES = set("PIL pyarrow datasets yaml safetensors huggingface_hub zlib struct binascii".split())
"""Those whose own kinds of exceptions speak of a file, and never of a fault here."""
_NO_MEMORY = re.compile("can't allocate memory|out of memory|not enough memory", re.IGNORECASE)
_LESS_MEMORY = "use smaller batches or images, fewer members, or lower --pool_memory_gb."
_MISFIT = re.compile(
    "size mismatch|size of tensor|shapes? .*(cannot|not|mismatch|invalid)|must match|to have .*channels|[Kk]ernel size"
)
"""PyTorch's words for tensors of other shapes than an operation takes."""
_LONGEST = 600


@contextmanager
def errors_in_a_sentence(program: str | None = None, *, own_process: bool = True) -> Iterator[None]:
    """End the process with a sentence and exit code 1 where `explain` has one; with 130 after Ctrl-C.

    Args:
        program: what the user has typed; the sentence begins with it. The script's name by default.
        own_process: whether the process is to end with it, whatever its threads are doing.
    """
    program = program or Path(sys.argv[0]).name
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A console that lacks a letter (of a class's or a file's name) shows its number.
            stream.reconfigure(errors="backslashreplace")
    try:
        with obey_interrupts(program):
            yield
    except KeyboardInterrupt as interrupt:
        if own_process:
            end_soon()
            keep_exit_code()
        interrupted(program, interrupt)
    except SystemExit as end:
        if own_process and end.code == INTERRUPTED:
            end_soon()
            keep_exit_code()
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
    """One line about an error that a user can mend; None for any other, which is a fault of the program.

    It holds no token, and names the member or file where `hf_dfml.utils.outside.about` noted one, or the error itself.
    """
    from hf_dfml.utils.provenance import hide_secrets

    sentence, name = _sentence(error), subject(error)
    if name is not None:
        sentence = sentence or f"{type(error).__name__}: {_one_line(error)}"
        sentence = sentence if name in sentence else f"{name}: {sentence}"
    return sentence and hide_secrets(sentence)


def _sentence(error: Exception) -> str | None:
    """The same without the name that `about` noted."""
    libraries = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    text = _one_line(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(text)):
        return f"There is not enough memory ({text}): {_LESS_MEMORY}"
    if libraries & {"httpx", "httpx2"} and "huggingface_hub" not in libraries:
        from huggingface_hub import constants

        hub = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
        return f"The Hub ({hub}) could not be reached: {text}."
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}."
    if isinstance(error, RuntimeError) and _MISFIT.search(text):
        return f"Tensors do not fit together ({text}). With {TRACEBACK_VARIABLE}=1 the error shows where."
    known = (ValueError, OSError, FloatingPointError, ModuleNotFoundError)
    return text if isinstance(error, known) or libraries & _LIBRARIES else None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
