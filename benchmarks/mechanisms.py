"""Is each system's own mechanism alive? One measurement each, beside its definition.

    python benchmarks/mechanisms.py --pool pools/cifar-fs --dataset cifar-fs --data_dir DATA --probe BACKBONE
    python benchmarks/mechanisms.py --quick --only igr gamma

What distinguishes each system from plain inversion and MAML is measured by itself: BELL (FREE), gradient
regularisation and grouping (TGR), the price gamma of DRO's ball, PURER's curriculum and calibration. Accuracies are on
validation classes. The last line is a JSON object of all figures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from figures import Measured
from measuring import open_pool
from mechanism.bell import measure_bell
from mechanism.gamma import measure_gamma
from mechanism.grouping import measure_grouping
from mechanism.igr import measure_igr
from mechanism.options import Options
from mechanism.purer import measure_purer

from hf_dfml.arguments import parse_into
from hf_dfml.data import load_dataset
from hf_dfml.utils.provenance import describe_machine


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the last line's object."""
    (options,) = parse_into([Options], argv, __doc__)
    options = options.shortened
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    pool = open_pool(options.pool).resolve()[: options.members]
    print(f"{len(pool)} members; {describe_machine(pool.device)}.", flush=True)
    found, started = Measured(options), time.monotonic()
    size = pool[0].input_size[-1] if pool[0].input_size else 32
    classes = cache(partial(load_dataset, options.dataset, data_dir=options.data_dir, image_size=size))
    work: dict[str, Callable[[], None]] = {
        "bell": lambda: measure_bell(found, pool),
        "igr": lambda: measure_igr(found, pool),
        "gamma": lambda: measure_gamma(found, pool, classes("validation")),
        "grouping": lambda: measure_grouping(found, pool, lambda: classes("train")),
        "purer": lambda: measure_purer(found, pool, classes("validation")),
    }
    for name in options.only:
        began = time.monotonic()
        work[name]()
        print(f"{name}: {time.monotonic() - began:.0f} seconds.", flush=True)
        found.write("mechanisms", "The mechanisms of the five systems")
    ours, printed = (found.figures.get(name) for name in ("bell_share", "bell_share_printed"))
    summary = {
        "benchmark": "mechanisms",
        "unit": "share of an epoch's movement that is BELL's",
        "baseline": printed,
        "ours": ours,
        "ratio": ours / printed if ours and printed else None,
        **found.figures,
        "minutes": round((time.monotonic() - started) / 60, 1),
    }
    print(json.dumps(summary))
    return summary


if __name__ == "__main__":
    main()
