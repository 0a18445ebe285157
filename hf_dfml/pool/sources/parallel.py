"""Many members at a time: a bounded number of threads under one progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from hf_dfml.utils.progress import progress

WORKERS = 8
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    function: Callable[[Item], Result], items: Iterable[Item], *, description: str, workers: int = WORKERS
) -> list[Result]:
    """`function` of every item, in order, with a bounded number of threads and a progress bar."""
    items = list(items)
    with ThreadPoolExecutor(min(workers, len(items) or 1)) as executor:
        return list(progress(executor.map(function, items), description=description, total=len(items), unit="member"))


@contextmanager
def quiet_uploads() -> Iterator[None]:
    """Without the client's own progress bars, one for each file that is sent, below ours; not for several threads."""
    bars = "huggingface_hub"
    # Where HF_HUB_DISABLE_PROGRESS_BARS is set, the user has decided already and the client keeps to that.
    shown = constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled(bars)
    if shown:
        disable_progress_bars(bars)
    try:
        yield
    finally:
        if shown:
            enable_progress_bars(bars)
