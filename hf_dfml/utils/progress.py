"""Progress bars that know when nobody is watching."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from huggingface_hub.utils import tqdm


def progress(
    iterable: Iterable | None = None, *, description: str, total: int | None = None, unit: str = "it", initial: int = 0
) -> Any:
    """A tqdm bar over `iterable`, or a bar to be moved with `.update()` when there is none.

    It is silent when stderr is not a terminal, when `HF_HUB_DISABLE_PROGRESS_BARS=1`, and in all processes of a run
    but the main one.

    Args:
        iterable: what to walk over.
        description: what the user reads in front of the bar.
        total: number of items, where `iterable` has no length.
        unit: what one item is called.
        initial: how many items were done before this run (a resumed run starts there).
    """
    # huggingface_hub's tqdm reads HF_HUB_DISABLE_PROGRESS_BARS; disable=None would also do for a non-terminal,
    # but its subclass overrides it, so the terminal is asked here.
    return tqdm(
        iterable,
        desc=description,
        total=total,
        unit=unit,
        initial=initial,
        disable=not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0",
        dynamic_ncols=True,
    )
