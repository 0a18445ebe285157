"""Start processes that make one run, and find one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]


def start(count: int, *words: str | Path, **options: Any) -> subprocess.Popen:
    """`count` processes on CPUs, with one thread each, that run `python *words`."""
    together = ["-m", "torch.distributed.run", "--nproc_per_node", str(count), "--rdzv-backend", "c10d"]
    together += ["--rdzv-endpoint", "localhost:0"]  # Any free port, for tests that run at the same time.
    command = [sys.executable, *(together if count > 1 else []), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **options)


def process_of_rank(run: subprocess.Popen, rank: int) -> psutil.Process:
    """The process of that rank of a run of several."""
    for process in psutil.Process(run.pid).children():
        if process.environ().get("RANK") == str(rank):
            return process
    raise LookupError(f"The run has no process of rank {rank} (any more).")
