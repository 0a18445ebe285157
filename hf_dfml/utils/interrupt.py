"""Ctrl-C: obeyed within ten seconds, whatever the process is doing, and the exit codes of all commands."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STOPPED = 3
"""Exit code of a run that was stopped before its end (time, query budget, SIGTERM) and can go on."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""
PATIENCE = 5.0
"""Seconds that a step, or a part of a setup, has to end by itself after Ctrl-C, before it is broken off."""
DEADLINE = 9.0
"""Seconds after Ctrl-C in which a process ends, even from inside a call that Python cannot break off."""
SENTENCE = "stopped by Ctrl-C; what was finished until then is kept."


def leave_at_once(program: str) -> None:
    """Let Ctrl-C end the process at once, with a sentence: for its first seconds, in which it only imports."""

    def leave(number: int, frame: Any) -> None:
        _leave(program)

    signal.signal(signal.SIGINT, leave)


@contextmanager
def obey_interrupts(program: str) -> Iterator[None]:
    """Raise KeyboardInterrupt in the main thread at Ctrl-C, and end the process `DEADLINE` seconds later at latest.

    An error that follows Ctrl-C is KeyboardInterrupt too: a library whose import is broken off in the middle (numpy's
    by PyTorch, for one) may pass over the interrupt itself and fail later.

    Python handles a signal between two of its instructions, so that a call of seconds into PyTorch or the network
    library would delay it; a thread of its own sees to the deadline. In other threads than the main one, and in one of
    several processes of a run (whose launcher ends them), there is no deadline.

    Args:
        program: begins the sentence that is printed at the deadline.
    """
    if threading.current_thread() is not threading.main_thread() or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        yield
        return
    global _watch
    outer, watch = _watch, _Watch(program)
    _watch = watch
    # Set, not left to Python: a process in the background is started with SIGINT ignored.
    previous = signal.signal(signal.SIGINT, watch.interrupt)
    former = signal.set_wakeup_fd(watch.to, warn_on_full_buffer=False)
    try:
        yield
    except Exception as error:
        if watch.interrupting:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.set_wakeup_fd(former, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, previous)
        _watch.close()
        _watch = outer


class StopSignal:
    """Lets the first Ctrl-C (or SIGTERM) end work at the next good place, and break off what does not come to one.

    Args:
        work: what is ended, for the sentence that says so.
        breaks_off: whether KeyboardInterrupt is raised after `PATIENCE` seconds; at a second signal it always is.

    Attributes:
        name: of the signal that was received (`SIGINT`); None as long as there was none.
    """

    def __init__(self, work: Callable[[], str], *, breaks_off: bool = True) -> None:
        self.work, self.breaks_off = work, breaks_off
        self.name: str | None = None
        self._patience: threading.Timer | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Until the end of the block; in other threads than the main one nothing is caught."""
        try:
            previous = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:
            previous = {}
        try:
            yield
        finally:
            self._end_patience()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def obeyed(self) -> None:
        """Work has ended: take the time that its checkpoint needs."""
        self._end_patience()
        if _watch:
            _watch.called_off.set()

    def _receive(self, number: int, frame: Any) -> None:
        if self.name:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        print(
            f"{self.name} was received: stopping after this {self.work()}; once more stops at once.", file=sys.stderr
        )
        if self.breaks_off:
            main = threading.main_thread().ident
            self._patience = threading.Timer(PATIENCE, signal.pthread_kill, [main, number])
            self._patience.daemon = True
            self._patience.start()

    def _end_patience(self) -> None:
        if self._patience:
            self._patience.cancel()


class _Watch(threading.Thread):
    """Reads the numbers of signals, which Python writes to a pipe at once."""

    def __init__(self, program: str) -> None:
        super().__init__(daemon=True, name="hf_dfml-interrupt")
        self.program = program
        self.called_off = threading.Event()
        self.source, self.to = os.pipe()
        os.set_blocking(self.to, False)
        self.interrupting = False
        self.start()

    def interrupt(self, number: int, frame: Any) -> None:
        """Break off what the main thread does."""
        self.interrupting = True
        raise KeyboardInterrupt

    def run(self) -> None:
        """Wait for Ctrl-C, and then for the process to end."""
        while (number := os.read(self.source, 1)) and number[0] != signal.SIGINT:
            pass
        if number and not self.called_off.wait(DEADLINE):
            _leave(self.program)
        os.close(self.source)

    def close(self) -> None:
        self.called_off.set()
        os.close(self.to)


_watch: _Watch | None = None


def end_soon(seconds: float = 2.0) -> None:
    """End the process soon, even if threads that it has started go on."""
    timer = threading.Timer(seconds, os._exit, [INTERRUPTED])
    timer.daemon = True
    timer.start()


def keep_exit_code() -> None:
    """Let Python end with the exit code that it is asked for.

    Where Ctrl-C has hit the execution of a string (as that of a dataclass's methods, in many an import), Python notes
    an unhandled interrupt, and `python -m` ends by SIGINT even if the interrupt was caught later. Executing a string
    clears that.
    """
    exec("")


def _leave(program: str) -> None:
    # Written past Python's buffers, which the main thread may be using.
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{program}: {SENTENCE}\n".encode())
    os._exit(INTERRUPTED)
