# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_dfml"]
#
# [tool.uv.sources]
# hf_dfml = { path = "..", editable = true }
# ///
"""DRO's sinusoid benchmark (UAI 2022, table 1): methods that fuse weights, beside MAML, which sees the data.

    python recipes/sinusoid.py
    python recipes/sinusoid.py --shared_init false --output_dir runs/sinusoid-independent
    python recipes/sinusoid.py --seeds 1 --num_models 20 --steps 300 --maml_steps 200      # a look, in a minute

A pool of 2 x 50 networks, each trained on a sinusoid of its own; each method makes one initialisation of it, which is
fine-tuned on 5 or 10 points of each of 100 new sinusoids. Rate and number of fine-tuning steps are chosen for each
method on validation tasks. Prints our table beside the paper's, says where the order is another, draws fitted curves.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_dfml.arguments import parse_into
from hf_dfml.errors import errors_in_a_sentence
from hf_dfml.evaluation import Result, mean_and_interval, published, write_results
from hf_dfml.methods.base import Context, NoOptions
from hf_dfml.methods.baselines import OTA, OTAConfig
from hf_dfml.methods.dro import DRO, DROConfig
from hf_dfml.methods.mfgp import MFGP, MFGPConfig
from hf_dfml.methods.weight_space import run_without_trainer
from hf_dfml.settings import Settings, option, part
from hf_dfml.sinusoids.baselines import PoolAverage, RandomInit, maml
from hf_dfml.sinusoids.evaluation import (
    RegressionProtocol,
    Tuned,
    fitted_curves,
    mean_and_spread,
    regression_errors,
    tune,
)
from hf_dfml.sinusoids.pool import SinusoidRecipe, StatePool, build_sinusoid_pool, new_mlp
from hf_dfml.sinusoids.tasks import INPUTS, SinusoidTasks
from hf_dfml.utils.provenance import this_command
from hf_dfml.utils.seeding import fork

METHODS: dict[str, tuple[Any, Any]] = {
    "Finetuning": (RandomInit, NoOptions()),
    "Average": (PoolAverage, NoOptions()),
    "OTA": (OTA, OTAConfig()),
    "MFGP": (MFGP, MFGPConfig(embedding_dim=100)),
    "DRO": (DRO, DROConfig(embedding_dim=100, epochs=3)),
}
REFERENCE = "MAML, sees data"
# Table 1 of the paper, from the least error to the largest; the three in the middle are within a spread of each other.
PAPER_ORDER = (("DRO",), ("Average", "OTA", "MFGP"), (REFERENCE,), ("Finetuning",))

Errors = dict[tuple[str, int], list[Tensor]]
"""For each method and number of shots the errors on each seed's test tasks."""


class BenchmarkConfig(Settings):
    """The pool, the evaluation and what is around them."""

    seeds: int = option(5, "Number of pools, each with runs and test tasks of its own.")
    output_dir: str = option("runs/sinusoid", "Folder of results.json and the picture.", common=True)
    maml_steps: int = option(2000, "Outer steps of MAML, the reference that sees data.")
    num_threads: int = option(0, "CPU threads; 0 leaves PyTorch's choice.", least=0)
    recipe: SinusoidRecipe = part(SinusoidRecipe)
    protocol: RegressionProtocol = part(RegressionProtocol)


def initialisations(pool: StatePool, tasks: SinusoidTasks, config: BenchmarkConfig, seed: int) -> dict[str, nn.Module]:
    """One network a method, all from the same fresh weights."""
    networks = {}
    for name, (method_class, method_config) in METHODS.items():
        method = method_class(method_config, new_mlp(fork(seed, "network")))
        networks[name] = run_without_trainer(method, pool, Context(generator=fork(seed, name), seed=seed))
    networks[REFERENCE] = maml(tasks, new_mlp(fork(seed, "network")), config.maml_steps, fork(seed, "maml"))
    return networks


def order_notes(means: Mapping[str, Tensor]) -> list[str]:
    """Where the order of the methods is not the paper's, in words.

    Args:
        means: for each method its mean error on each seed; seeds are paired, as all methods get the same tasks.
    """
    notes = []
    for place, better in enumerate(PAPER_ORDER):
        for worse in PAPER_ORDER[place + 1 :]:
            for low in better:
                for high in worse:
                    gap, spread = mean_and_spread(list(means[low] - means[high]))
                    if gap >= 0:
                        notes.append(f"{low} is {gap:.2f} ± {spread:.2f} above {high}")
    return notes


def print_report(errors: Errors, tuned: Mapping[tuple[str, int], Tuned], config: BenchmarkConfig) -> None:
    """The table, ours beside the paper's, and what became of the paper's order."""
    from rich.console import Console
    from rich.table import Table

    seeds = len(next(iter(errors.values())))
    table = Table(title=f"Sinusoids, mean squared error: mean ± standard deviation over {seeds} seeds")
    table.add_column("method", no_wrap=True)
    for shots in config.protocol.shots:
        for header in (f"{shots}-shot", "paper", "rate, steps"):
            table.add_column(header, justify="right", no_wrap=True)
    for name in (*METHODS, REFERENCE):
        row = [name]
        for shots in config.protocol.shots:
            mean, spread = mean_and_spread(errors[name, shots])
            paper = published(name, "sinusoid", None, shots)
            how = tuned[name, shots]
            row += [f"{mean:.3f} ± {spread:.3f}", f"{paper.mean:.3f} ± {paper.spread:.2f}" if paper else "-"]
            row.append(f"{how.lr:g}, {how.steps}")
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console.width = 120  # a file or a pipe does not cut columns off
    console.print(table)
    for shots in config.protocol.shots:
        notes = order_notes(
            {name: torch.stack([error.mean() for error in errors[name, shots]]) for name in (*METHODS, REFERENCE)}
        )
        verdict = "is reproduced." if not notes else f"is NOT reproduced: {'; '.join(notes)}."
        console.print(f"{shots}-shot: the paper's order DRO < {{Average, OTA, MFGP}} < MAML < Finetuning {verdict}")


def result_rows(errors: Errors, seconds: float) -> list[Result]:
    """Rows of results.json: mean and interval over the test tasks of all seeds together."""
    rows = []
    for (name, shots), parts in errors.items():
        together = torch.cat(parts)
        mean, interval = mean_and_interval(together)
        rows.append(
            Result(
                method=name,
                dataset="sinusoid",
                ways=None,
                shots=shots,
                bn=None,
                head="finetune",
                episodes=len(together),
                metric="mse",
                mean=mean,
                ci95=interval,
                seed=0,
                split="test",
                seconds=seconds / len(errors),
                command=this_command(),
            )
        )
    return rows


def draw_curves(
    networks: Mapping[str, nn.Module], tuned: Mapping[tuple[str, int], Tuned], config: BenchmarkConfig, path: Path
) -> Path:
    """What each initialisation makes of the points of three test tasks."""
    from matplotlib.figure import Figure

    x = torch.linspace(*INPUTS, 200)[:, None]
    figure = Figure(figsize=(12, 3.2 * len(config.protocol.shots)), layout="constrained")
    grid = figure.subplots(len(config.protocol.shots), 3, squeeze=False)
    for row, shots in zip(grid, config.protocol.shots, strict=True):
        for name, network in networks.items():
            predicted, truth, (points, values) = fitted_curves(
                network, config.protocol, shots, 0, tuned[name, shots], x
            )
            for task, axes in enumerate(row):
                axes.plot(x, predicted[task], linewidth=1.2, label=name)
        for task, axes in enumerate(row):
            axes.plot(x, truth[task], color="black", linestyle="--", linewidth=1, label="true function")
            axes.scatter(points[task], values[task], color="black", s=18, zorder=3, label="support points")
            axes.set_title(f"{shots}-shot, test task {task + 1}", fontsize=9, loc="left")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """The whole benchmark; the rows of `results.json`."""
    (config,) = parse_into([BenchmarkConfig], argv, __doc__)
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    started = time.monotonic()
    errors: Errors = {}
    tuned: dict[tuple[str, int], Tuned] = {}
    for seed in range(config.seeds):
        pool, tasks, error = build_sinusoid_pool(config.recipe, fork(seed, "sinusoid pool"))
        print(f"Seed {seed}: {len(pool)} members, mean squared error {error:.3f} on their own tasks.", flush=True)
        networks = initialisations(pool, tasks, config, seed)
        for name, network in networks.items():
            for shots in config.protocol.shots:
                if not seed:
                    tuned[name, shots] = tune(network, config.protocol, shots, seed)
                errors.setdefault((name, shots), []).append(
                    regression_errors(network, config.protocol, shots, seed, tuned[name, shots])
                )
        if not seed:
            picture = draw_curves(networks, tuned, config, Path(config.output_dir) / "sinusoid.png")
    seconds = time.monotonic() - started
    print_report(errors, tuned, config)
    rows = result_rows(errors, seconds)
    print(f"{seconds:.0f} seconds. Wrote {write_results(config.output_dir, rows)} and {picture}.")
    return rows


if __name__ == "__main__":
    with errors_in_a_sentence():
        main()
