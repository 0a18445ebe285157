"""Pool distillation with one thing changed at a time, judged on the validation classes.

    CONFIG=hf_dfml/presets/pool-distillation-cifar-fs-cpu.yaml
    python benchmarks/pool_ablation.py --config $CONFIG --pool pools/cifar-fs --variants mix_alpha=0 recoveries=1

The first student is that of the recipe as it is given, the others have the named options instead (several by comma).
Evaluation and members are the same for all, and so is what is not named; the last snapshot is judged, nothing is
chosen, and the test classes are not looked at. Options are those of recipes/pool_distillation.py. What one student has
recovered is not recovered again for another where the options of the recovery are the same; an interrupted run goes on
with the same command.

Written into --output_dir: `pool_ablation.json`. The last line is that object; `ratio` is the best variant's accuracy
at the largest number of shots over that of the recipe as it is given, nearest prototype of predicted answers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from students import classes_of, last_snapshot, prepared, trial

from hf_dfml.arguments import parse_into
from hf_dfml.methods.pool_distillation import PoolDistillationConfig
from hf_dfml.pipeline import RunConfig
from hf_dfml.settings import Settings, flat, option

AS_GIVEN = "as given"
OF_A_STUDENT = {"arch", "image_size", "mixed_precision", "seed", "student_from"}
"""Options of a run that may be changed too: the others say which members, and how students are judged."""


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
    variants = {name: parse_into(kinds, words + words_of(name), __doc__)[:2] for name in changes.variants}
    for name, (_, run) in variants.items():
        before, after = flat(config), flat(run)
        for other in before:
            if before[other] != after[other] and other not in OF_A_STUDENT:
                raise ValueError(f"--variants {name}: {other} is the same for all; expected an option of the student.")
    config, pool = prepared(given, config)
    runs = {AS_GIVEN: (given, config)} | {
        name: (method, replace(run, recovery_cache=config.recovery_cache)) for name, (method, run) in variants.items()
    }
    students = {name: partial(last_snapshot, pool, *both, name) for name, both in runs.items()}
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
