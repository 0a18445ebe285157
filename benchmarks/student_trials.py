"""What else could make a pool's student better? One idea at a time, several seeds, judged on the validation classes.

    CONFIG=hf_dfml/presets/pool-distillation-small.yaml
    python benchmarks/student_trials.py --config $CONFIG --pool pools/cifar-fs --output_dir runs/trials

Recovered images are those of --seed for all; mixtures, heads and order are drawn anew with each of --seeds. Every
student sees as many images as often as that of the recipe, from the same start, but for what its class in `trials.py`
says. Options are those of recipes/pool_distillation.py. The test classes are not looked at. A trial that was judged is
not repeated: the same command goes on.

Written into --output_dir: `student_trials.json` and `student_trials.md`. The last line is that object; `ratio` is the
best trial's accuracy at the largest number of shots over that of the recipe as it is given, by features and predicted
answers side by side and with flips (without after `--flip false`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from measuring import table, write_section
from students import classes_of, prepared, prototypes
from torch import nn
from trial_images import Bench, recover_all
from trials import AS_GIVEN, TRIALS

from hf_dfml.arguments import parse_into
from hf_dfml.data import FewShotDataset
from hf_dfml.evaluation.meta_testing import evaluate_each
from hf_dfml.methods.pool_distillation import PoolDistillationConfig
from hf_dfml.networks.info import Representation
from hf_dfml.pipeline import RunConfig
from hf_dfml.pool.asking import Asking
from hf_dfml.settings import Settings, option
from hf_dfml.utils.checkpoint import atomic_write
from hf_dfml.utils.provenance import describe_machine

ALL = "all"
REPRESENTATIONS: tuple[Representation, ...] = ("features", "answers", "both")


class Trials(Settings):
    """What is tried."""

    trials: list[str] = option([ALL], "Which of the trials, by name, in quotes; or all.")
    seeds: list[int] = option([1, 2, 3], "Seeds of mixtures, heads and order.")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the object of the last line."""
    method, config, options = parse_into((PoolDistillationConfig, RunConfig, Trials), argv, __doc__)
    config, pool = prepared(method, config)
    names = list(dict.fromkeys([AS_GIVEN, *(TRIALS if ALL in options.trials else options.trials)]))
    unknown = [name for name in names if name not in TRIALS]
    if unknown:
        raise ValueError(f"--trials {', '.join(unknown)}: expected some of {', '.join(TRIALS)}.")
    dataset = classes_of("validation", pool, config)
    recovered = recover_all(pool, method, config)
    asking = Asking(pool.load(0), len(pool), method.training_set.mixing.num_images, "never")
    folder = Path(config.output_dir)
    for seed in options.seeds:
        bench = Bench(pool, method, config, recovered, seed, asking)
        for name in names:
            file = folder / f"seed-{seed}" / f"{name}.json"
            if file.is_file():
                continue
            began = time.process_time()
            trial = TRIALS[name](bench)
            rows = judged(trial.train(), dataset, config, bench.flip)
            minutes = (time.process_time() - began) / 60
            print(f"seed {seed}, {name}: {rows}, {minutes:.1f} core-minutes.", flush=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(file, json.dumps({"accuracy": rows, "minutes": round(minutes, 1)}) + "\n")
    return summary(folder, names, options.seeds, config, method.training_set.inversion.flip)


def judged(model: nn.Module, dataset: FewShotDataset, config: RunConfig, flips: bool) -> dict[str, float]:
    """Accuracies (%) on the validation classes, by how the student is seen; with flips where mirroring is allowed."""
    protocol = replace(prototypes(config, config.episodes), flips=flips)
    each = [replace(protocol, representation=how) for how in REPRESENTATIONS]
    rows = evaluate_each(model, dataset, each, method="student", progress=False)
    return {
        f"{protocol.representation}, {row.shots}-shot": round(row.mean, 2)
        for protocol, found in zip(each, rows, strict=True)
        for row in found
    }


def summary(
    folder: Path, names: Sequence[str], seeds: Sequence[int], config: RunConfig, flips: bool
) -> dict[str, Any]:
    """Table and files; prints the last line."""
    found = {
        name: [json.loads((folder / f"seed-{seed}" / f"{name}.json").read_text()) for seed in seeds] for name in names
    }
    keys = [f"both, {shots}-shot" for shots in config.shots]
    lines, verdicts = [], {}
    for name, each in found.items():
        cells = []
        for kind in REPRESENTATIONS:
            means = [mean(one["accuracy"][f"{kind}, {shots}-shot"] for one in each) for shots in config.shots]
            cells.append(" / ".join(f"{value:.1f}" for value in means))
        gains = [
            [one["accuracy"][key] - base["accuracy"][key] for one, base in zip(each, found[AS_GIVEN], strict=True)]
            for key in keys
        ]
        spread = (f"{mean(gain):+.1f} ± {stdev(gain) if len(gain) > 1 else 0:.1f}" for gain in gains)
        cells.append("" if name == AS_GIVEN else " / ".join(spread))
        lines.append((f"{name}: {TRIALS[name].__doc__}", *cells, f"{mean(one['minutes'] for one in each):.1f}"))
        verdicts[name] = {key: round(mean(one["accuracy"][key] for one in each), 2) for key in keys}
    best = max(names, key=lambda name: verdicts[name][keys[-1]])
    shots = " / ".join(str(each) for each in config.shots)
    head = f"what | features | answers | both | both, less as given ({len(seeds)} seeds) | core-minutes"
    write_section(
        str(folder),
        "student_trials",
        "One thing changed at a time",
        f"Accuracy (%) with {shots} shots on the validation classes, {config.episodes} episodes, nearest class mean, "
        f"{'flips' if flips else 'no flips'}; mean of {len(seeds)} seeds. {describe_machine('cpu')}.",
        table(head, lines),
    )
    verdict = {
        "benchmark": "student_trials",
        "ratio": round(verdicts[best][keys[-1]] / verdicts[AS_GIVEN][keys[-1]], 3),
        "baseline": verdicts[AS_GIVEN][keys[-1]],
        "ours": verdicts[best][keys[-1]],
        "unit": f"% of {max(config.shots)}-shot accuracy on the validation classes",
        "best": best,
        "trials": verdicts,
    }
    atomic_write(folder / "student_trials.json", json.dumps(verdict, indent=1) + "\n")
    print(json.dumps(verdict))
    return verdict


if __name__ == "__main__":
    main()
