"""Damaged files and requests by the thousand: each is used, or refused with a sentence.

    python benchmarks/fuzz.py                                   # 10,000 in under 15 minutes on 2 quiet cores
    python benchmarks/fuzz.py --only parquet --inputs 500
    python benchmarks/fuzz.py --case 1234                       # one again, with its traceback

What goes wrong is a finding: an exception that the command line would show as a traceback, ten seconds without an end,
a file that is written (or a program started, or a connection to another machine made) outside of the case's own
folder, a process that dies, or a gigabyte more memory. Cases depend on --seed and their number alone. The last line is
one JSON object; `ratio` is the largest resident memory of a process over that before its first case, in megabytes.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from typing import Any

SECONDS = 10
"""Of computing that one case may take; twelve times as much by the clock, should it wait for something."""
MEGABYTES = 1000
"""That one process may take more than before its first case."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}
STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"}


class HangError(BaseException):
    """A case that does not end."""


class Watch:
    """Notes what a case does outside of its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.outside, self.on = str(folder.resolve()), [], False
        self.outside: list[str]
        sys.addaudithook(self)

    def __call__(self, event: str, values: tuple[Any, ...]) -> None:
        """Of `sys.addaudithook`: called for each file that is opened, and the like."""
        if not self.on:
            return
        if event == "open":
            name, mode, flags = values
            writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else flags & WRITES
            if writes and isinstance(name, str | bytes | os.PathLike):
                self._check(event, name)
        elif event in CHANGES and isinstance(values[0], str | bytes | os.PathLike):
            self._check(event, values[0])
        elif event in STARTS:
            self.outside.append(f"{event} {values[0]}")
        elif event == "socket.connect" and isinstance(values[1], tuple) and values[1][0] not in ("127.0.0.1", "::1"):
            self.outside.append(f"{event} {values[1]}")

    def _check(self, event: str, name: Any) -> None:
        path = os.path.realpath(os.fsdecode(name))
        if not path.startswith((self.folder, "/dev/null", "/proc/self")):
            self.outside.append(f"{event} {path}")


def run_case(number: int, seed: int, target: str, sound: Path, watch: Watch) -> str | None:
    """One case; what went wrong, on one line."""
    from fuzz_targets import TARGETS

    from hf_dfml.errors import explain

    case = Path(watch.folder) / "case"
    shutil.rmtree(case, ignore_errors=True)
    case.mkdir()
    watch.outside.clear()
    watch.on = True
    found = None
    # Seconds of this process, as others may be busy; again where a destructor has swallowed the first one.
    signal.setitimer(signal.ITIMER_PROF, SECONDS, 1)
    try:
        TARGETS[target](sound, case, Random(f"{seed} {number}"))
    except HangError:
        found = f"no end in {SECONDS} s: {_where(sys.exc_info()[2])}"
    except SystemExit as end:
        found = None if end.code == 2 else f"SystemExit {end.code}"
    except Exception as error:
        if explain(error) is None or "There is not enough memory" in str(explain(error)):
            found = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}: {_where(error.__traceback__)}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        watch.on = False
    return found or (f"outside of its folder: {watch.outside[0]}" if watch.outside else None)


def _where(trace: Any) -> str:
    """The last places in our package and in all."""
    frames = traceback.extract_tb(trace)
    ours = [frame for frame in frames if "hf_dfml" in frame.filename and "site-packages" not in frame.filename]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in [*frames[-1:], *ours[::-1][:4]])


def work(numbers: Sequence[int], options: argparse.Namespace, sound: Path, to: Connection) -> None:
    """The cases of one process: a message before and after each."""

    def hang(*_: Any) -> None:
        raise HangError

    signal.signal(signal.SIGPROF, hang)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ |= {"TMPDIR": folder, "HF_HOME": f"{folder}/hf"}
        tempfile.tempdir = folder
        watch = Watch(Path(folder))
        _quiet(folder)
        before = _megabytes()
        limit = (before + 3 * MEGABYTES) << 20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        for number in numbers:
            target = options.only or _target(number)
            to.send((number, target, None, 0))
            found = run_case(number, options.seed, target, sound, watch)
            more = _megabytes() - before
            to.send((number, target, found or "", more))
        to.send(None)


def _target(number: int) -> str:
    from fuzz_targets import ROUND

    return ROUND[number % len(ROUND)]


def _quiet(folder: str) -> None:
    import datasets

    datasets.config.HF_DATASETS_CACHE = Path(folder) / "datasets"
    datasets.disable_progress_bars()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


def _megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def fuzz(options: argparse.Namespace, sound: Path) -> tuple[Counter[str], list[dict[str, Any]], int]:
    """All cases, divided among processes; counts by target, findings, and megabytes that were taken at most."""
    context = multiprocessing.get_context("fork")
    counts: Counter[str] = Counter()
    findings: list[dict[str, Any]] = []
    most = 0
    queues = [list(range(first, options.inputs, options.processes)) for first in range(options.processes)]
    running: dict[Connection, tuple[Any, list[int], float, Any]] = {}

    def start(numbers: list[int]) -> None:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(numbers, options, sound, theirs), daemon=True)
        process.start()
        theirs.close()
        running[ours] = (process, numbers, time.monotonic(), None)

    def note(number: int, target: str, what: str) -> None:
        findings.append({"case": number, "target": target, "found": what})
        print(f"case {number} ({target}): {what}", flush=True)

    for numbers in queues:
        start(numbers)
    end = time.monotonic() + 60 * options.minutes
    while running and time.monotonic() < end:
        for connection in wait(list(running), timeout=1):
            assert isinstance(connection, Connection)
            process, numbers, _, at = running[connection]
            try:
                message = connection.recv()
            except EOFError:
                message = "died"
            if message == "died":
                process.join()
                note(*(at or (-1, "?")), f"the process died ({process.exitcode})")
                del running[connection]
                rest = numbers[numbers.index(at[0]) + 1 :] if at else []
                if rest:
                    start(rest)
            elif message is None:
                process.join()
                del running[connection]
            else:
                number, target, found, more = message
                running[connection] = (process, numbers, time.monotonic(), (number, target))
                if found is not None:
                    counts[target] += 1
                    if found:
                        note(number, target, found)
                    if more > MEGABYTES > most:
                        note(number, target, f"{more} MB more memory")
                    most = max(most, more)
        for process, _, last, _ in running.values():
            if time.monotonic() - last > 12 * SECONDS:  # In C code, which no signal interrupts, or waiting.
                process.kill()  # Its case is noted as one in which it died.
    for process, *_ in running.values():
        process.kill()
    return counts, findings, most


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, print, and give the object of the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="how many")
    parser.add_argument("--minutes", type=float, default=15, help="after which no more are tried")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--only", help="one target")
    parser.add_argument("--case", type=int, help="only this one, in this process")
    options = parser.parse_args(argv)
    # The targets see no other machine, and no token of the user's.
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_TOKEN": "", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error"}
    import torch
    from fuzz_targets import TARGETS, make_sound

    torch.set_num_threads(1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder) / "sound"
        sound.mkdir()
        make_sound(sound)
        if options.case is not None:
            case = Path(folder) / "case"
            case.mkdir()
            target = options.only or _target(options.case)
            TARGETS[target](sound, case, Random(f"{options.seed} {options.case}"))
            return {}
        before = _megabytes()
        counts, findings, most = fuzz(options, sound)
    found = {
        "benchmark": "fuzz",
        "ratio": round((before + most) / before, 2),
        "baseline": before,
        "ours": before + most,
        "unit": "MB of a process, before its first case and at most",
        "inputs": counts.total(),
        "targets": dict(sorted(counts.items())),
        "seed": options.seed,
        "findings": len(findings),
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(found))
    return found


if __name__ == "__main__":
    raise SystemExit(bool(main().get("findings")))
