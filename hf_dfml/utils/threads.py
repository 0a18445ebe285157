"""The CPU's threads, each with a whole piece of work instead of a share of every kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def thread_map(make: Callable[[], Callable[[Item], Result]], items: Sequence[Item]) -> list[Result]:
    """`function(item)` of each item, in the order of the items, in as many threads as PyTorch has.

    PyTorch's kernels leave Python to the other threads, and small ones do not scale. The gradient and autocast modes
    of the caller hold in all threads.

    Args:
        make: makes the function, once for each thread: it may change what it owns, such as a module.
        items: of the work.
    """
    threads = torch.get_num_threads()
    count = min(threads, len(items))
    if count < 2:
        return list(map(make(), items))
    idle: SimpleQueue[Callable[[Item], Result]] = SimpleQueue()
    for _ in range(count):
        idle.put(make())
    gradients, autocast = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
    precision, cached = torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled()

    def work(item: Item) -> Result:
        torch.set_num_threads(1)  # Of this thread.
        function = idle.get()
        try:
            with torch.set_grad_enabled(gradients), torch.autocast("cpu", precision, autocast, cached):
                return function(item)
        finally:
            idle.put(function)

    try:
        with ThreadPoolExecutor(count, thread_name_prefix="hf_dfml") as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)  # MKL has one number for all.
