"""JSON of unknown origin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 16 << 20


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not JSON of sensible size and depth; one line that names the file.
    """
    try:
        if (size := path.stat().st_size) > MAX_JSON_BYTES:
            raise ValueError(f"{path.name} has {size} bytes, at most {MAX_JSON_BYTES} are read")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not readable as JSON ({error})") from error
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path.name} cannot be read ({error.strerror})") from error
    return from_text(text, path.name)


def from_text(text: str | bytes | bytearray, name: str) -> Any:
    """The same of a text, which is called `name`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: brackets nested thousands deep.
        raise ValueError(f"{name} is not readable as JSON ({' '.join(str(error).split())})") from error
