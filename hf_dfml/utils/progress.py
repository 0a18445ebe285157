"""Progress bars that know when nobody is watching."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from huggingface_hub.utils import tqdm

SECONDS = 30.0
"""Between two lines where there is no terminal."""


class _Lines(tqdm):
    """A bar for logs: a line now and then, nothing for short work."""

    disable: bool

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write a line; nothing that moves a cursor."""
        meter = self.format_dict
        shown = {"n": meter["n"], "total": meter["total"], "elapsed": meter["elapsed"], "unit": f" {meter['unit']}s"}
        bar = "{desc}: {n_fmt} of {total_fmt}{unit}, {elapsed}{postfix}"
        print(
            self.format_meter(**shown, prefix=self.desc, postfix=self.postfix, bar_format=bar),
            file=self.fp,
            flush=True,
        )
        return True

    def set_postfix(self, *arguments: Any, refresh: bool = False, **numbers: Any) -> None:
        """What the next line shows at its end."""
        super().set_postfix(*arguments, refresh=False, **numbers)

    def close(self) -> None:
        """Say how it ended, if anything was said before."""
        if self.disable:
            return
        if self.last_print_t >= self.start_t + self.delay and self.n > self.last_print_n:
            self.display()
        self.disable = True
        self._decr_instances(self)


def progress(
    iterable: Iterable | None = None, *, description: str, total: int | None = None, unit: str = "it", initial: int = 0
) -> Any:
    """A tqdm bar over `iterable`, or a bar to be moved with `.update()` when there is none.

    Where stderr is no terminal a line is written every half minute. It is silent when
    `HF_HUB_DISABLE_PROGRESS_BARS=1`, and in all processes of a run but the main one.

    Args:
        iterable: what to walk over.
        description: what the user reads in front of the bar.
        total: number of items, where `iterable` has no length.
        unit: what one item is called.
        initial: how many items were done before this run (a resumed run starts there).
    """
    # huggingface_hub's tqdm reads HF_HUB_DISABLE_PROGRESS_BARS; disable=None would also do for a non-terminal,
    # but its subclass overrides it, so the terminal is asked here.
    watched = sys.stderr.isatty()
    return (tqdm if watched else _Lines)(
        iterable,
        desc=description,
        total=total,
        unit=unit,
        initial=initial,
        disable=os.environ.get("RANK", "0") != "0",
        dynamic_ncols=True,
        **({} if watched else {"delay": SECONDS, "mininterval": SECONDS, "miniters": 1}),
    )
