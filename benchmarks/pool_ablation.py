"""Pool distillation with one thing changed at a time, judged on the validation classes.

    CONFIG=recipes/configs/pool-distillation-cifar-fs-cpu.yaml
    python benchmarks/pool_ablation.py --config $CONFIG --pool pools/cifar-fs --variants mix_alpha=0 recoveries=1

The first student is that of the recipe as it is given, the others have the named options instead (several by comma).
Seed, schedule and exam are the same for all; the last snapshot is judged, nothing is chosen, and the test classes are
not looked at. Options are those of recipes/pool_distillation.py. What one student has recovered is not recovered again
for another where the options of the recovery are the same; an interrupted run goes on with the same command.

Written into --output_dir: `pool_ablation.json`. The last line is that object; `ratio` is the best variant's accuracy
at the largest number of shots over that of the recipe as it is given, nearest prototype.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pool_curves import HEADS, last_snapshot

from hf_dfml.arguments import parse_into
from hf_dfml.data import load_dataset
from hf_dfml.evaluation import Exam, evaluate, print_table, read_results, write_results
from hf_dfml.methods.pool_distillation import PoolDistillationConfig
from hf_dfml.pipeline import RunConfig, open_pool
from hf_dfml.utils.checkpoint import atomic_write
from hf_dfml.utils.provenance import describe_machine

AS_GIVEN = "as given"
EPISODES_SEED = 1
"""Of the episodes; those of the recipe's own validation are of seed 0."""


@dataclass(frozen=True)
class Variants:
    """What is changed."""

    variants: list[str] = field(
        default_factory=lambda: ["mix_alpha=0", "crop_padding=0", "recoveries=1"],
        metadata={"help": "OPTION=VALUE, or several by comma, of each variant."},
    )


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the object of the last line."""
    words = list(sys.argv[1:] if argv is None else argv)
    kinds = (PoolDistillationConfig, RunConfig, Variants)
    given, config, changes = parse_into(kinds, words, __doc__)
    if not config.dataset:
        raise ValueError("No data set was named: an accuracy needs --dataset.")
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    methods = {AS_GIVEN: given} | {
        name: parse_into(kinds, words + words_of(name), __doc__)[0] for name in changes.variants
    }
    folder = Path(config.output_dir)
    config = replace(config, recovery_cache=config.recovery_cache or str(folder / "recovered"))
    pool = open_pool(config)
    print(f"{len(pool)} members, {given.steps} passes; {describe_machine(pool.device)}.", flush=True)
    size = max(entry.input_size[-1] for entry in pool if entry.input_size)
    dataset = load_dataset(config.dataset, "validation", data_dir=config.data_dir, image_size=size)
    exam = Exam(
        ways=config.ways,
        shots=config.shots,
        episodes=config.validation_episodes,
        bn="running",
        seed=EPISODES_SEED,
        split="validation",
    )
    for name, method in methods.items():
        if not (folder / name / "results.json").is_file():
            model = last_snapshot(pool, method, config, name)
            rows = [row for head in HEADS for row in evaluate(model, dataset, replace(exam, head=head), method=name)]
            write_results(folder / name, rows)
    results = {name: read_results(folder / name) for name in methods}
    print_table([row for rows in results.values() for row in rows])
    means = {
        name: {f"{row.head}, {row.shots}-shot": round(row.mean, 2) for row in rows} for name, rows in results.items()
    }
    key = f"prototype, {max(config.shots)}-shot"
    best = max((name for name in means if name != AS_GIVEN), key=lambda name: means[name][key])
    verdict = {
        "benchmark": "pool_ablation",
        "ratio": round(means[best][key] / means[AS_GIVEN][key], 3),
        "baseline": means[AS_GIVEN][key],
        "ours": means[best][key],
        "unit": f"% of {max(config.shots)}-shot accuracy on the validation classes",
        "best": best,
        "variants": means,
    }
    atomic_write(folder / "pool_ablation.json", json.dumps(verdict, indent=1) + "\n")
    print(json.dumps(verdict))
    return verdict


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
