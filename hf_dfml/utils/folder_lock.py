"""One run a folder: a file in it that names the process and the machine that use it."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LOCK_NAME = ".in_use.json"
BEAT = 30.0
"""Seconds between two signs of life."""
SILENCE = 600.0
"""Seconds without a sign of life after which a process of another machine is taken for gone."""


@contextmanager
def folder_in_use(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder until the end of the block; makes the folder where there is none.

    What a killed process has left is recognised: on this machine by its number and start, of another by its silence.

    Raises:
        FileExistsError: if another process uses the folder; names it.
        OSError: if nothing can be written there.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / LOCK_NAME
    try:
        own = _take(lock)
    except BaseException:
        _remove_if_empty(made)
        raise
    over = threading.Event()
    threading.Thread(target=_beat, args=(lock, over), daemon=True, name="hf_dfml-lock").start()
    try:
        yield
    finally:
        over.set()
        with suppress(OSError):
            if lock.read_text(encoding="utf-8") == own:  # Not another's, who took this process for gone.
                lock.unlink()
        _remove_if_empty(made)


def _take(lock: Path) -> str:
    """Make the file; what it holds."""
    own = json.dumps({"process": os.getpid(), "started": _start_of(os.getpid()), "machine": socket.gethostname()})
    for _ in range(100):
        try:
            # "x": of several processes one makes it, and the others see that there is one.
            with lock.open("x", encoding="utf-8") as file:
                file.write(own)
            return own
        except FileExistsError:
            with suppress(FileNotFoundError):  # It may be given back this moment.
                holder = _read(lock)
                if holder is None or _alive(holder, lock):
                    who = f"process {holder['process']} on {holder['machine']}" if holder else "another process"
                    raise FileExistsError(
                        f"{lock.parent} is in use by {who}: wait until that run is over, or give this one another "
                        f"--output_dir. (If there is no such process any more, delete {lock}.)"
                    ) from None
                _take_away(holder, lock)
    raise FileExistsError(f"{lock.parent} is in use by another process: give this run another --output_dir.")


def _take_away(stale: dict[str, Any], lock: Path) -> None:
    """Delete what a process has left that is gone, unless another has done so and put its own there.

    Of several processes that have seen it, one looks again and deletes it; the others wait for their turn.

    Raises:
        FileNotFoundError: if there is nothing any more.
    """
    turn = lock.with_name(f"{lock.name}.turn")
    with suppress(FileNotFoundError):
        if time.time() - turn.stat().st_mtime > 10:  # Its process was killed in its turn, which takes no time.
            turn.unlink()
    try:
        turn.touch(exist_ok=False)
    except FileExistsError:
        time.sleep(0.05)
        return
    try:
        if _read(lock) == stale and not _alive(stale, lock):
            lock.unlink()
    finally:
        turn.unlink(missing_ok=True)


def _read(lock: Path) -> dict[str, Any] | None:
    """Who holds it; None if that is being written this moment.

    Raises:
        FileNotFoundError: if nobody does.
    """
    try:
        holder = json.loads(lock.read_text(encoding="utf-8"))
        return {name: holder[name] for name in ("process", "started", "machine")}
    except (ValueError, TypeError, KeyError):
        fresh = time.time() - lock.stat().st_mtime < 10
        return None if fresh else {"process": -1, "started": None, "machine": socket.gethostname()}


def _alive(holder: dict[str, Any], lock: Path) -> bool:
    if holder["machine"] != socket.gethostname():
        return time.time() - lock.stat().st_mtime < SILENCE
    try:
        os.kill(holder["process"], 0)
    except (ProcessLookupError, OverflowError, TypeError):
        return False
    except PermissionError:
        pass
    # The number may be another process's by now.
    return holder["process"] > 0 and holder["started"] == _start_of(holder["process"])


def _start_of(process: int) -> str | None:
    """When a process started, in the kernel's ticks; None where the system does not say."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _beat(lock: Path, over: threading.Event) -> None:
    while not over.wait(BEAT):
        with suppress(OSError):
            os.utime(lock)


def _remove_if_empty(folders: list[Path]) -> None:
    """Folders that were made for a run which has written nothing, the innermost first."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
