"""Pool distillation against the number of members and the time it is given, beside the members themselves.

    CONFIG=hf_dfml/presets/pool-distillation-cifar-fs-cpu.yaml
    python benchmarks/pool_curves.py --config $CONFIG --pool pools/cifar-fs --output_dir runs/curves

One student for each of `--members` (the first so many; 0: all) and, with all members, for each of `--budgets`: shares
of the schedule's steps of recovery, joint updates and images, so that the time grows in proportion; passes over the
images, rates, seed and evaluation are the same for all. The last snapshot is judged by the validation classes, nothing
is chosen. The `members` rows are the features, or the answers, of the same members side by side. The other options of
recipes/pool_distillation.py are options here too. What one student has recovered is not recovered again for another,
and a student that was interrupted goes on with the same command; delete its folder to repeat it. Other options than
`--members` and `--budgets` need another --output_dir.

Written into --output_dir: `results.json`, `pool_curves.json`, `pool_curves.png` and, with several budgets,
`pool_budgets.png`, whose axis is the CPU minutes of recovery, asking and learning. The last line is a JSON object;
`ratio` is the student's accuracy with all members over that of their answers, at the largest number of shots.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from students import WAYS_TO_SEE, classes_of, last_snapshot, prepared, prototypes

from hf_dfml.arguments import parse_into
from hf_dfml.data import FewShotDataset
from hf_dfml.evaluation import (
    EvaluationProtocol,
    Result,
    evaluate,
    print_table,
    read_results,
    write_results,
)
from hf_dfml.evaluation.baselines import all_answers, all_features, evaluate_baselines
from hf_dfml.methods.pool_distillation import PoolDistillationConfig
from hf_dfml.pipeline import RunConfig
from hf_dfml.pool import ModelPool
from hf_dfml.settings import Settings, option
from hf_dfml.utils.checkpoint import atomic_write
from hf_dfml.utils.pictures import curves

MINUTES = "minutes.json"
KINDS = {"features": "prototype", "answers": "prototype, answers"}
"""What the lines of the figures are, and how their rows were seen."""


class Points(Settings):
    """Where the curves are measured."""

    members: list[int] = option([5, 10, 20, 40, 0], "Numbers of members; 0: all.")
    budgets: list[float] = option([1.0], "Shares of the schedule, with all members.", above=0)


@dataclass(frozen=True)
class Point:
    """One student: of how many members, by which share of the schedule."""

    members: int
    budget: float

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"student-of-{self.members}-by-{self.budget:g}"

    def scheduled(self, method: PoolDistillationConfig) -> PoolDistillationConfig:
        """The options with this share of the recovery and of the images."""

        def share(whole: int) -> int:
            return max(1, round(whole * self.budget))

        images = method.training_set
        return replace(
            method,
            recovery_steps=share(images.inversion.recovery_steps),
            joint_updates=share(images.joint_updates),
            num_images=share(images.mixing.num_images),
        )


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    method, config, points = parse_into((PoolDistillationConfig, RunConfig, Points), argv, __doc__)
    config, pool = prepared(method, config)
    folder = Path(config.output_dir)
    counts = sorted({min(count or len(pool), len(pool)) for count in points.members})
    protocol = prototypes(config, config.episodes)
    dataset = classes_of("validation", pool, config)
    for count in counts:
        if not (folder / f"{count}-members" / "results.json").is_file():
            write_results(folder / f"{count}-members", members_of(pool[:count], dataset, protocol))
    budgets = sorted({budget for budget in points.budgets if budget != 1})
    wanted = [*(Point(count, 1) for count in counts), *(Point(len(pool), budget) for budget in budgets)]
    wanted.sort(key=lambda point: point.budget * point.members)
    for point in wanted:
        if not (folder / point.name / "results.json").is_file():
            print(f"{point.name}:", flush=True)
            write_results(folder / point.name, student(point, pool, method, config, dataset, protocol))
    return summary(folder, wanted)


def members_of(pool: ModelPool, dataset: FewShotDataset, protocol: EvaluationProtocol) -> list[Result]:
    """The features, and the answers, of all members side by side."""
    return evaluate_baselines(pool, dataset, protocol, baselines=(all_features, all_answers))


def student(
    point: Point,
    pool: ModelPool,
    method: PoolDistillationConfig,
    config: RunConfig,
    dataset: FewShotDataset,
    protocol: EvaluationProtocol,
) -> list[Result]:
    """Train one student and evaluate its last snapshot; the CPU minutes of all tries are kept in its folder."""
    folder = Path(config.output_dir) / point.name
    before, began = minutes_of(folder), time.process_time()
    try:
        model = last_snapshot(pool[: point.members], point.scheduled(method), config, point.name)
    finally:
        folder.mkdir(parents=True, exist_ok=True)
        spent = round(before + (time.process_time() - began) / 60, 4)
        atomic_write(folder / MINUTES, json.dumps({"cpu_minutes": spent}) + "\n")
    name = f"Pool distillation, {point.members} members, {point.budget:g} of the schedule"
    return [row for how in WAYS_TO_SEE for row in evaluate(model, dataset, replace(protocol, **how), method=name)]


def minutes_of(folder: Path) -> float:
    """CPU minutes that a student has taken so far."""
    file = folder / MINUTES
    return float(json.loads(file.read_text())["cpu_minutes"]) if file.is_file() else 0.0


def summary(folder: Path, points: Sequence[Point]) -> dict[str, Any]:
    """Table, figure and files; prints the last line."""
    most_members = max(point.members for point in points)
    rows_of = {point: read_results(folder / point.name) for point in points}
    ours = {point.members: rows for point, rows in rows_of.items() if point.budget == 1}
    theirs = {count: read_results(folder / f"{count}-members") for count in ours}
    by_share = sorted((point for point in points if point.members == most_members), key=lambda point: point.budget)
    minutes = [minutes_of(folder / point.name) for point in by_share]
    everything = list(dict.fromkeys(row for part in (theirs, rows_of) for rows in part.values() for row in rows))
    print_table(everything)
    write_results(folder, everything)
    most = max(row.shots for row in everything)
    lines: dict[str, list[tuple[float, float]]] = {}
    by_budget: dict[str, list[tuple[float, float]]] = {}
    for kind, how in KINDS.items():
        for name, part in ((f"members' {kind}", theirs), (f"student's {kind}", ours)):
            lines[name] = [(count, _mean(rows, most, how)) for count, rows in part.items()]
        reached = [_mean(rows_of[point], most, how) for point in by_share]
        by_budget[f"student's {kind}"] = list(zip(minutes, reached, strict=True))
        by_budget[f"members' {kind}"] = [(spent, _mean(theirs[most_members], most, how)) for spent in minutes]
    title = f"Accuracy on the validation classes (%), {most}-shot, nearest prototype"
    drawn = folder / "pool_curves.png"
    figures = [curves(lines, drawn, title=title, xlabel="members of the pool", ylabel="accuracy (%)")]
    if len(by_share) > 1:
        title, drawn = f"{title}, {most_members} members", folder / "pool_budgets.png"
        figures.append(
            curves(
                by_budget, drawn, title=title, xlabel="CPU minutes (logarithmic)", ylabel="accuracy (%)", log_x=True
            )
        )
    student_mean, members_mean = (_mean(part[max(part)], most) for part in (ours, theirs))
    verdict = {
        "benchmark": "pool_curves",
        "ratio": round(student_mean / members_mean, 3),
        "baseline": round(members_mean, 2),
        "ours": round(student_mean, 2),
        "unit": f"% of {most}-shot accuracy on the validation classes",
        "members": {count: round(_mean(rows, most), 2) for count, rows in ours.items()},
        "of_members": {count: round(_mean(rows, most), 2) for count, rows in theirs.items()},
        "budgets": {point.budget: round(_mean(rows_of[point], most), 2) for point in by_share},
        "minutes": dict(zip((point.budget for point in by_share), minutes, strict=True)),
    }
    atomic_write(folder / "pool_curves.json", json.dumps(verdict, indent=1) + "\n")
    print(f"Wrote {folder / 'results.json'}, {folder / 'pool_curves.json'}, {' and '.join(map(str, figures))}.")
    print(json.dumps(verdict))
    return verdict


def _mean(rows: Sequence[Result], shots: int, how: str = KINDS["answers"]) -> float:
    return next(row.mean for row in rows if row.shots == shots and row.how == how)


if __name__ == "__main__":
    main()
