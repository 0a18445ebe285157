"""The parts of mechanisms.py: one after another, or side by side in processes of their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache, partial
from itertools import repeat
from multiprocessing import get_context

import torch
from figures import Measured
from measuring import open_pool

from hf_dfml.data import load_dataset
from hf_dfml.pool import ModelPool
from mechanism.bell import measure_bell
from mechanism.gamma import measure_gamma
from mechanism.grouping import measure_grouping
from mechanism.igr import measure_igr
from mechanism.options import Options
from mechanism.purer import measure_purer


def measured_parts(options: Options) -> Iterator[Measured[Options]]:
    """Of each mechanism that was asked for, as soon as it is measured; what one raises, when the others are there."""
    if options.processes == 1:
        yield from map(measure_part, options.only, repeat(options))
    else:
        # Started afresh: a forked process may hang in PyTorch's threads.
        with ProcessPoolExecutor(options.processes, get_context("spawn")) as processes:
            parts = [processes.submit(measure_part, name, options) for name in options.only]
            failed: list[BaseException] = []
            for part in as_completed(parts):
                error = part.exception()
                if error is None:
                    yield part.result()
                else:
                    failed.append(error)
            if failed:
                raise failed[0]


def measure_part(name: str, options: Options) -> Measured[Options]:
    """The figures of one mechanism."""
    began = time.monotonic()
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    found, pool = Measured(options), members_of(options)
    size = pool[0].input_size[-1] if pool[0].input_size else 32
    classes = cache(partial(load_dataset, options.dataset, data_dir=options.data_dir, image_size=size))
    work: dict[str, Callable[[], None]] = {
        "bell": lambda: measure_bell(found, pool),
        "igr": lambda: measure_igr(found, pool),
        "gamma": lambda: measure_gamma(found, pool, classes("validation")),
        "grouping": lambda: measure_grouping(found, pool, lambda: classes("train")),
        "purer": lambda: measure_purer(found, pool, classes("validation")),
    }
    work[name]()
    print(f"{name}: {time.monotonic() - began:.0f} seconds.", flush=True)
    return found


def members_of(options: Options) -> ModelPool:
    """The members that are used."""
    return open_pool(options.pool).resolve()[: options.members]
