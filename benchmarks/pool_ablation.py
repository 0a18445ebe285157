"""Pool distillation with one thing changed at a time, judged on the validation classes.

    CONFIG=hf_dfml/presets/pool-distillation-cifar-fs-cpu.yaml
    python benchmarks/pool_ablation.py --config $CONFIG --pool pools/cifar-fs --variants mix_alpha=0 recoveries=1

The first student is that of the recipe as it is given, the others have the named options instead (several by comma).
Seed, schedule and evaluation are the same for all; the last snapshot is judged, nothing is chosen, and the test
classes are not looked at. Options are those of recipes/pool_distillation.py. What one student has recovered is not
recovered again for another where the options of the recovery are the same; an interrupted run goes on with the same
command.

Written into --output_dir: `pool_ablation.json`. The last line is that object; `ratio` is the best variant's accuracy
at the largest number of shots over that of the recipe as it is given, nearest prototype of predicted answers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from students import classes_of, last_snapshot, prepared, trial

from hf_dfml.arguments import parse_into
from hf_dfml.methods.pool_distillation import PoolDistillationConfig
from hf_dfml.pipeline import RunConfig
from hf_dfml.settings import Settings, option

AS_GIVEN = "as given"


class Variants(Settings):
    """What is changed."""

    variants: list[str] = option(
        ["mix_alpha=0", "crop_padding=0", "recoveries=1"], "OPTION=VALUE, or several by comma, of each variant."
    )


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the object of the last line."""
    words = list(sys.argv[1:] if argv is None else argv)
    kinds = (PoolDistillationConfig, RunConfig, Variants)
    given, config, changes = parse_into(kinds, words, __doc__)
    methods = {AS_GIVEN: given} | {
        name: parse_into(kinds, words + words_of(name), __doc__)[0] for name in changes.variants
    }
    config, pool = prepared(given, config)
    students = {name: partial(last_snapshot, pool, method, config, name) for name, method in methods.items()}
    return trial("pool_ablation", "variants", students, AS_GIVEN, classes_of("validation", pool, config), config)


def words_of(variant: str) -> list[str]:
    """`a=1,b=2` as words of a command line.

    Raises:
        ValueError: if it is something else.
    """
    pairs = [part.partition("=") for part in variant.split(",")]
    if not all(name and equals and value for name, equals, value in pairs):
        raise ValueError(f"--variants {variant}: expected OPTION=VALUE, or several by comma.")
    return [word for name, _, value in pairs for word in (f"--{name}", value)]


if __name__ == "__main__":
    main()
