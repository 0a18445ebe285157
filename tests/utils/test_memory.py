"""What the C library does with freed memory, and how much of it there is in a container."""

import os
import platform
import subprocess
import sys

import pytest

from hf_dfml.utils import memory

PAGE_FAULTS = """
import resource, sys, torch
from hf_dfml.utils.memory import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    keep_freed_memory()
def work():
    tensors = [torch.ones(1 << 20) for _ in range(5)]
    while tensors:
        tensors.pop()
for _ in range(3):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_that_was_freed_is_not_asked_for_again():
    # Without these glibc may have learnt by chance to keep it.
    gives_back = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    faults = {}
    for way in ("keep", "leave"):
        command = [sys.executable, "-c", PAGE_FAULTS, way]
        run = subprocess.run(command, capture_output=True, text=True, check=True, env=gives_back)
        faults[way] = int(run.stdout)
    # The heap may grow once more (a tensor here is 1,024 pages, 2 where pages are huge).
    assert faults["leave"] > 500
    assert faults["leave"] > 5 * faults["keep"]


def test_files_that_were_read_are_no_memory_in_use(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 100000\nfile 800000\ninactive_file 700000\n")
    assert memory.available_memory() == 800_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_memory() is None or memory.available_memory() > 800_000
