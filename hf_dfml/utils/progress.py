"""Progress bars that know when nobody is watching."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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

    Within `whole_run` it is a part of that bar. Where stderr is no terminal a line is written every half minute. It is
    silent when `HF_HUB_DISABLE_PROGRESS_BARS=1`, and in all processes of a run but the main one.

    Args:
        iterable: what to walk over.
        description: what the user reads in front of the bar.
        total: number of items, where `iterable` has no length.
        unit: what one item is called.
        initial: how many items were done before this run (a resumed run starts there).
    """
    if _whole and _whole.enabled:
        return _Inner(iterable, desc=description, total=total, unit=unit, initial=initial, whole=_whole)
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


SHARES = {"setup": 0.35, "steps": 0.4, "evaluation": 0.25}
"""How a run's time is divided, as long as nothing is measured."""
FIRST_BAR = 0.8
"""What the first of a part's bars stands for, where it is not known how many follow."""


class WholeRun:
    """How far a run of several parts has come, and how long it will take by the speed that was measured so far.

    Args:
        name: what the user reads in front.
        parts: of `SHARES`, those that the run has.
        enabled: whether anything is shown.
    """

    def __init__(self, name: str, parts: Sequence[str], *, enabled: bool = True) -> None:
        self.name, self.enabled = name, enabled and os.environ.get("RANK", "0") == "0"
        self._later = list(parts)
        self._measured: dict[str, float] = {}
        self._expected: dict[str, float] = {}
        self._part, self._began, self._start = "", time.monotonic(), 0.0
        self._pieces, self._piece, self._inside, self._share = 1, 0, 0.0, FIRST_BAR
        self._bars: list[Any] = []
        self._said = time.monotonic()
        self._shown: Any = None

    def begin(self, part: str, *, pieces: int = 1, done: float = 0.0, one_bar: bool = False) -> None:
        """Another part begins, and the one before is over.

        Args:
            part: one of `SHARES`.
            pieces: into how many it is divided by `next_piece`.
            done: the share of it that an earlier process has done.
            one_bar: whether a piece has no more than one bar.
        """
        if self._part:
            self._measured[self._part] = time.monotonic() - self._began
        self._later = [each for each in self._later if list(SHARES).index(each) > list(SHARES).index(part)]
        self._part, self._began, self._start = part, time.monotonic(), done
        self._pieces, self._piece, self._inside = pieces, 0, 0.0
        self._share = 1.0 if one_bar else FIRST_BAR

    def expect(self, part: str, seconds: float) -> None:
        """A later part will take so long, by something like it that was measured."""
        self._expected[part] = seconds

    def next_piece(self) -> None:
        """A piece of the present part is done."""
        self._piece, self._inside = self._piece + 1, 0.0

    @property
    def done(self) -> float:
        """The share of the present part that is done, in [0, 1]."""
        inside = self._inside
        if self._bars and self._bars[0].total:
            bar = self._bars[0]
            inside += (1 - inside) * self._share * min(1.0, bar.n / bar.total)
        return min(1.0, (self._piece + inside) / self._pieces)

    def seconds_left(self) -> float | None:
        """By the speed so far; None as long as there is none."""
        spent, new = time.monotonic() - self._began, self.done - self._start
        if not self._part or new <= 0.01:
            return None
        measured = self._measured | {self._part: spent / new * (1 - self._start)}
        speed = sum(measured.values()) / sum(SHARES[each] for each in measured)
        later = sum(self._expected.get(each, speed * SHARES[each]) for each in self._later)
        return spent / new * (1 - self.done) + later

    def text(self) -> str:
        """One line: how much is done, what is being done, and how long is left."""
        left = self.seconds_left()
        share = ""
        if left is not None:
            spent = sum(self._measured.values()) + time.monotonic() - self._began
            share = f"{100 * spent / max(spent + left, 1e-9):.0f} % of the run, "
        bar = self._bars[0] if self._bars else None
        what = f"{bar.desc} {bar.n} of {bar.total}" if bar is not None and bar.total else self._part
        numbers = f" ({bar.postfix})" if bar is not None and bar.postfix else ""
        return f"{share}{what}{numbers}" + (f", about {duration(left)} left" if left is not None else "")

    def tick(self) -> None:
        """Show it, if it was not shown just now."""
        watched, now = sys.stderr.isatty(), time.monotonic()
        if not self.enabled or now - self._said < (0.2 if watched else SECONDS):
            return
        self._said = now
        if not watched:
            print(f"{self.name}: {self.text()}", file=sys.stderr, flush=True)
            return
        if self._shown is None:
            form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
            self._shown = tqdm(desc=self.name, total=100, bar_format=form, dynamic_ncols=True, leave=True)
        left, spent = self.seconds_left(), sum(self._measured.values()) + now - self._began
        if left is not None:
            self._shown.n = min(99, round(100 * spent / max(spent + left, 1e-9)))
        self._shown.set_postfix_str(self.text().partition("of the run, ")[2] or self.text())

    def opened(self, bar: Any) -> None:
        """A bar of the present piece has begun."""
        self._bars.append(bar)

    def closed(self, bar: Any) -> None:
        """A bar is over."""
        if self._bars[:1] == [bar]:
            self._inside += (1 - self._inside) * self._share
        self._bars = [each for each in self._bars if each is not bar]

    def close(self) -> None:
        """The run is over."""
        if self._shown is not None:
            self._shown.close()


class _Inner(tqdm):
    """A bar within a whole run: that one shows it."""

    disable: bool

    def __init__(self, *arguments: Any, whole: WholeRun, **options: Any) -> None:
        self.whole = whole
        super().__init__(*arguments, leave=False, mininterval=0.1, miniters=1, dynamic_ncols=True, **options)
        if not self.disable:
            whole.opened(self)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Nothing of its own."""
        self.whole.tick()
        return True

    def clear(self, nolock: bool = False) -> None:
        """There is nothing to clear."""

    def close(self) -> None:
        """As in the base class."""
        if not self.disable:
            self.whole.closed(self)
            self.disable = True
            self._decr_instances(self)


_whole: WholeRun | None = None


@contextmanager
def whole_run(name: str, parts: Sequence[str] = tuple(SHARES), *, enabled: bool = True) -> Iterator[WholeRun]:
    """One bar for all of a run's parts: every `progress` in the block shows in it, with the time that is left."""
    global _whole
    outer, _whole = _whole, WholeRun(name, parts, enabled=enabled)
    try:
        yield _whole
    finally:
        _whole.close()
        _whole = outer


def duration(seconds: float) -> str:
    """A length of time in words.

    Examples:
        >>> duration(40), duration(400), duration(8000)
        ('40 s', '7 min', '2.2 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
