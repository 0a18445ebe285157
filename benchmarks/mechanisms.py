"""Is each system's own mechanism alive? One measurement each, beside its definition.

    python benchmarks/mechanisms.py --pool pools/cifar-fs --dataset cifar-fs --data_dir DATA --processes 2
    python benchmarks/mechanisms.py --quick --only igr gamma

What distinguishes each system from plain inversion and MAML is measured by itself: BELL (FREE), gradient
regularisation and grouping (TGR), the price gamma of DRO's ball, PURER's curriculum and calibration. Accuracies are on
validation classes. The last line is a JSON object of all figures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from figures import Measured
from mechanism.options import Options
from mechanism.parts import measured_parts, members_of

from hf_dfml.arguments import parse_into
from hf_dfml.utils.provenance import describe_machine


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the last line's object."""
    (options,) = parse_into([Options], argv, __doc__)
    options = options.shortened
    started, pool = time.monotonic(), members_of(options)  # Built here where it is missing, before any part needs it.
    print(f"{len(pool)} members; {describe_machine(pool.device)}.", flush=True)
    found = Measured(options)
    for part in measured_parts(options):
        found.take(part)
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
