"""One preset with several values of an option: a table and a figure.

    python benchmarks/sweep.py tgr-cifar-fs-cpu --vary igr_strength=0,0.001,0.01 --pool pools/cifar-fs --data_dir DATA
    python benchmarks/sweep.py tgr-cifar-fs-cpu --vary num_groups=1,3,5,10 --pool pools/cifar-fs
    python benchmarks/sweep.py tgr-cifar-fs-cpu --vary replay_patience=4,16,64 --pool pools/cifar-fs
    python benchmarks/sweep.py dro-cifar-fs-cpu --vary gamma=0.5,2,10 --vary seed=0,1,2 --pool pools/cifar-fs
    python benchmarks/sweep.py free-cifar-fs-cpu --vary num_members=10,99 --vary bell=erm,paper --pool pools/x

Further options are those of the method and of the run, as in its recipe. Several `--vary` are all combined; values of
`seed` are averaged in the figure, with 95 % intervals by Student's t. Each run has a folder of its own below
`--output_dir` (runs/sweep-PRESET); the same command goes on where it was stopped, and with other options a run needs
another folder. Written there: sweep.csv, a line for each row of each evaluation, and sweep.png, the accuracy of the
method's own adaptation against the first option varied. The last line is a JSON object.

    python benchmarks/sweep.py free-cifar-fs-cpu --vary bell=erm,released --curve gradient_inner_product --pool pools/x

draws, in NAME.png, what the runs' TensorBoard logs have of a metric against the update, a line for each combination
(FREE's Figure 5).
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from io import StringIO
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from kept import claim
from scipy.stats import t as students_t

from hf_dfml.arguments import parse, presets
from hf_dfml.errors import errors_in_a_sentence
from hf_dfml.evaluation import RESULTS_NAME, Result, read_results
from hf_dfml.evaluation.results import ignore
from hf_dfml.methods.catalogue import METHODS, find_method
from hf_dfml.pipeline import run
from hf_dfml.run_config import RunConfig
from hf_dfml.utils.checkpoint import atomic_write

COLUMNS = ("dataset", "split", "shots", "head", "bn", "inner_steps", "inner_lr", "mean", "ci95", "episodes", "seconds")


def method_of(preset: str) -> str:
    """The method whose preset it is: the longest name of one that it begins with.

    Raises:
        ValueError: if there is no such preset.
    """
    if preset not in presets():
        raise ValueError(f"There is no preset {preset}: expected one of {', '.join(presets())}.")
    return max((name for name in METHODS if preset.startswith(name.replace("_", "-"))), key=len)


def combinations(varied: Sequence[str]) -> Iterator[dict[str, str]]:
    """Each combination of the values: `["a=1,2", "b=x"]` -> {a: 1, b: x}, {a: 2, b: x}.

    Raises:
        ValueError: if one is not `name=value,value`.
    """
    names, values = [], []
    for text in varied:
        name, equals, listed = text.partition("=")
        if not equals or not all(listed.split(",")):
            raise ValueError(f"--vary {text}: expected name=value,value,...")
        names.append(name.replace("-", "_"))
        values.append(listed.split(","))
    for chosen in product(*values):
        yield dict(zip(names, chosen, strict=True))


def folder_of(folder: Path, values: Mapping[str, str]) -> Path:
    """The folder of one combination's run."""
    return folder / "-".join(f"{name}={value}" for name, value in values.items())


def sweep(
    preset: str, varied: Sequence[str], rest: Sequence[str], folder: Path
) -> list[tuple[dict[str, str], Result]]:
    """Run each combination that has not been run; all rows of results with the values that they are for."""
    method, found = find_method(method_of(preset)), []
    # All are read first: a value that an option cannot have is refused before the first run.
    runs = []
    for values in combinations(varied):
        words = ["--preset", preset, *rest, *(word for name, value in values.items() for word in (f"--{name}", value))]
        runs.append((values, *parse(method, RunConfig, words, program="sweep.py")))
    for values, method_config, run_config in runs:
        own = folder_of(folder, values)
        claim(own, method_config, run_config, of_a_run=True)
        if not (own / RESULTS_NAME).is_file() or not (own / "config.json").is_file():
            config = replace(run_config, output_dir=str(own), resume_from_checkpoint="latest")
            rows = run(method, method_config, config, show=ignore)
            if rows.exit_code:
                raise SystemExit(rows.exit_code)
        rows = read_results(own)
        name = rows[0].method
        found += [(values, row) for row in rows if row.method == name]
    return found


def as_csv(rows: Sequence[tuple[Mapping[str, str], Result]]) -> str:
    """A line for each row, the varied options first."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*rows[0][0], "method", *COLUMNS])
    for values, row in rows:
        writer.writerow([*values.values(), row.method, *(getattr(row, name) for name in COLUMNS)])
    return text.getvalue()


def lines_of(rows: Sequence[tuple[Mapping[str, str], Result]]) -> dict[str, list[tuple[str, float, float]]]:
    """What is drawn: for each data set, number of shots and value of the other options, value, mean and 95 % interval.

    Of each run the first row of each data set and number of shots, which is the method's own adaptation. Over several
    seeds the mean, and the interval of Student's t. Where seeds alone vary, they are one point.
    """
    first, grouped = drawn_against(rows[0][0]), {}
    several = len({row.dataset for _, row in rows}) > 1
    seen: set[tuple] = set()
    for values, row in rows:
        key = (*values.items(), row.dataset, row.shots)
        if key in seen:
            continue
        seen.add(key)
        others = [f"{name} {value}" for name, value in values.items() if name not in (first, "seed")]
        line = ", ".join([f"{row.dataset}, {row.shots}-shot" if several else f"{row.shots}-shot", *others])
        value = values[first] if first != "seed" else "mean over seeds"
        grouped.setdefault(line, {}).setdefault(value, []).append(row)
    return {
        line: [(value, mean(row.mean for row in found), _interval(found)) for value, found in points.items()]
        for line, points in grouped.items()
    }


def drawn_against(values: Mapping[str, str]) -> str:
    """The option on the figure's axis: the first that is not the seed, where another one varies."""
    return next((name for name in values if name != "seed"), "seed")


def _interval(rows: Sequence[Result]) -> float:
    if len(rows) == 1:
        return rows[0].ci95
    spread = stdev(row.mean for row in rows) / len(rows) ** 0.5
    return float(students_t.ppf(0.975, len(rows) - 1)) * spread


def logged(folder: Path, metric: str) -> dict[int, float]:
    """What a run's TensorBoard logs have of a metric, by update; a run that was resumed has several logs.

    Raises:
        ValueError: if they have nothing of it.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, dict[int, float]] = {}
    for path in sorted((folder / "logs").rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        events.Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, {}).update({event.step: event.value for event in events.Scalars(name)})
    if metric not in found:
        known = ", ".join(sorted(found)) or "nothing, as in a run with --log_with none"
        raise ValueError(f"--curve {metric}: the log in {folder / 'logs'} has {known}. Name a metric that it has.")
    return dict(sorted(found[metric].items()))


def curves_of(varied: Sequence[str], folder: Path, metric: str) -> dict[str, dict[int, float]]:
    """For each combination of the values the metric by update, the mean over seeds."""
    found: dict[str, list[dict[int, float]]] = {}
    for values in combinations(varied):
        line = ", ".join(f"{name} {value}" for name, value in values.items() if name != "seed") or metric
        found.setdefault(line, []).append(logged(folder_of(folder, values), metric))
    return {
        line: {step: mean(run[step] for run in runs) for step in runs[0] if all(step in run for run in runs)}
        for line, runs in found.items()
    }


def draw_curves(curves: Mapping[str, Mapping[int, float]], path: Path, metric: str, title: str) -> None:
    """The metric against the update: each value faint, and its mean over the last tenth of the updates."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        steps, values = list(points), list(points.values())
        width = max(1, len(values) // 10)
        smooth = [mean(values[max(0, at + 1 - width) : at + 1]) for at in range(len(values))]
        (line,) = axes.plot(steps, smooth, label=name)
        axes.plot(steps, values, color=line.get_color(), alpha=0.25)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="update", ylabel=metric.replace("_", " "), title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def draw(rows: Sequence[tuple[Mapping[str, str], Result]], path: Path, title: str) -> None:
    """Accuracy against the first option, with intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, points in lines_of(rows).items():
        labels, means, intervals = zip(*points, strict=True)
        axes.errorbar(labels, means, intervals, marker="o", capsize=3, label=name)
    axes.set(xlabel=drawn_against(rows[0][0]), ylabel="accuracy (%)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the sweep; the object of the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", help="a file of hf_dfml/presets, without .yaml")
    parser.add_argument(
        "--vary", action="append", required=True, metavar="NAME=A,B,C", help="an option and its values"
    )
    parser.add_argument("--output_dir", "--output-dir", default="", help="folder of the runs")
    parser.add_argument("--curve", default="", metavar="METRIC", help="also draw this metric of the runs' logs")
    options, rest = parser.parse_known_args(argv)
    folder = Path(options.output_dir or f"runs/sweep-{options.preset}")
    try:
        rows = sweep(options.preset, options.vary, rest, folder)
        curves = curves_of(options.vary, folder, options.curve) if options.curve else {}
    except ValueError as error:
        parser.error(str(error))
    atomic_write(folder / "sweep.csv", as_csv(rows))
    draw(rows, folder / "sweep.png", f"{options.preset}, {rows[0][1].split} classes of {rows[0][1].dataset}")
    if curves:
        name = options.curve.replace("/", "_")
        draw_curves(curves, folder / f"{name}.png", options.curve, options.preset)
        print(f"Wrote {folder / f'{name}.png'}.")
    lines = {
        name: [[value, round(centre, 2), round(half, 2)] for value, centre, half in points]
        for name, points in lines_of(rows).items()
    }
    print(f"Wrote {folder / 'sweep.csv'} and {folder / 'sweep.png'}.")
    summary = {
        "benchmark": "sweep",
        "preset": options.preset,
        "vary": options.vary,
        "unit": "accuracy (%)",
        "lines": lines,
        "options": shlex.join(rest),
    }
    print(json.dumps(summary))
    return summary


if __name__ == "__main__":
    with errors_in_a_sentence():
        main()
