"""Meta-models that come with the library: `MetaModel.from_pretrained("zoo:glyphs")`, without a network.

Each is a folder beside this file, as `MetaModel.save_pretrained` writes it, with weights in half precision;
`manifest.json` lists them. `zoo/make.py` of the repository makes an entry from the folder of a run.
"""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

PREFIX = "zoo:"
FOLDER = Path(__file__).parent
MANIFEST = "manifest.json"


def manifest() -> dict[str, dict[str, Any]]:
    """What is there: by name the summary, data set, architecture, image size, accuracy in percent by shots, bytes."""
    return json.loads((FOLDER / MANIFEST).read_text(encoding="utf-8"))


def folder_of(name: str) -> Path:
    """The folder of `zoo:NAME`.

    Raises:
        FileNotFoundError: if there is no such entry; the message has the names.
    """
    entries = manifest()
    wanted = name.removeprefix(PREFIX)
    if wanted not in entries:
        near = get_close_matches(wanted, entries, 1)
        meant = f" Did you mean {PREFIX}{near[0]}?" if near else ""
        known = ", ".join(PREFIX + each for each in entries)
        raise FileNotFoundError(f"The zoo has no '{wanted}': expected one of {known}.{meant}")
    return FOLDER / wanted
