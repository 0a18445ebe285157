"""BiDf-MKD from a white box and from answers alone: accuracy against the queries that were spent.

    CONFIG=hf_dfml/presets/bidf-mkd-cifar-fs-black-box-cpu.yaml
    python benchmarks/black_box.py --config $CONFIG --pool pools/cifar-fs --output_dir runs/black-box --episodes 200

The same members, seed and schedule for every row; the gradient alone comes from elsewhere:

- `white`: back-propagation through the members, without batch-norm statistics, which answers do not show either;
- `logits`, `probs`, `topk`, `label`: estimated from what black boxes in this process tell;
- `http`: estimated from probabilities of the pool behind HTTP, in a process of its own, so from 8-bit PNG.

`--steps`, `--num_members`, `--max_queries` and `--episodes` size the whole; the other options of recipes/bidf_mkd.py
are options here too. All rows is evaluated, beside the network as it was before. A row that was interrupted goes on
from its last checkpoint with the same command, one that is finished is not repeated: delete its folder for that.

Written into --output_dir: `results.json`, `black_box.json` (queries and validation accuracies of each row) and
`black_box.png`. The last line is a JSON object; `ratio` compares what `probs` gains over the network as it was before
with what `white` gains, at the largest number of shots.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from kept import claim, members_of
from torch import nn

from hf_dfml.arguments import parse_into
from hf_dfml.data import load_dataset
from hf_dfml.evaluation import EvaluationProtocol, Result, evaluate, print_table, read_results, write_results
from hf_dfml.meta_network import meta_network
from hf_dfml.methods.bidf_mkd import BiDfMKD, BiDfMKDConfig
from hf_dfml.networks.info import network_info
from hf_dfml.pipeline import RunConfig
from hf_dfml.pool import BlackBoxPool, ModelPool
from hf_dfml.pool.black_box.service import open_service
from hf_dfml.recovery.gradient_source import ZeroOrderGradient
from hf_dfml.settings import Settings, option
from hf_dfml.trainer import Trainer
from hf_dfml.utils.checkpoint import atomic_write
from hf_dfml.utils.pictures import curves
from hf_dfml.utils.provenance import describe_machine, this_command
from hf_dfml.utils.seeding import deterministic

TITLES = {
    "white": "white box",
    "logits": "logits",
    "probs": "probabilities",
    "topk": "the largest probabilities",
    "label": "labels",
    "http": "probabilities, PNG over HTTP",
}
BEFORE = "before"
PROTOCOLS = (("support", "finetune"), ("support", "prototype"))
"""Batch norm and head of the evaluation's rows."""


class Rows(Settings):
    """Which rows are measured."""

    rows: list[str] = option(["white", "logits", "probs", "label", "http"], "Rows, in this order.", choices=TITLES)


class InterruptedRow(RuntimeError):
    """A row that was stopped before its end; its checkpoint is there."""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    method, config, chosen = parse_into((BiDfMKDConfig, RunConfig, Rows), argv, __doc__)
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    deterministic(config.seed)
    if not config.dataset:
        raise ValueError("No data set was named: an accuracy needs --dataset.")
    folder = Path(config.output_dir)
    pool = members_of(config, folder)
    claim(folder, method, config, members=[entry.id for entry in pool])
    print(f"{len(pool)} members, {method.steps} steps; {describe_machine(pool.device)}.", flush=True)
    for row in (BEFORE, *chosen.rows):
        if not (folder / row / "row.json").is_file():
            try:
                measure(row, pool, method, config, folder / row)
            except InterruptedRow as error:
                raise SystemExit(f"{error} The same command goes on from there.") from None
    return summary([BEFORE, *chosen.rows], folder)


def measure(row: str, pool: ModelPool, method: BiDfMKDConfig, config: RunConfig, folder: Path) -> None:
    """Train one row, evaluate it and write both into its folder."""
    started = time.monotonic()
    network = meta_network(pool, config)
    queries, points = 0, []
    if row == BEFORE:
        points = [{"queries": 0, **validation(config)(network)}]
    else:
        print(f"{TITLES[row]}:", flush=True)
        with opened(row, pool, config) as teachers:
            network, history, queries = train(network, teachers, method, config, folder)
        points = [points_of(line) for line in history if any(name.startswith("validation/") for name in line)]
    trained = time.monotonic() - started
    name = "Random init" if row == BEFORE else f"BiDf-MKD, {TITLES[row]}"
    results = protocol(network, config, f"{name} ({queries:,} queries)" if queries else name)
    write_results(folder, results)
    about = {"row": row, "queries": queries, "seconds": round(trained, 1), "points": points}
    atomic_write(folder / "row.json", json.dumps(about, indent=1) + "\n")  # Last: it says that the row is finished.


def train(
    network: nn.Module, teachers: ModelPool | BlackBoxPool, method: BiDfMKDConfig, config: RunConfig, folder: Path
) -> tuple[nn.Module, list[dict[str, float]], int]:
    """The chosen snapshot, the run's history, and the queries spent.

    Raises:
        InterruptedRow: if the run was stopped by something other than its last step or its budget.
    """
    black = isinstance(teachers, BlackBoxPool)
    learner = BiDfMKD(replace(method, gradient="zero_order" if black else "autograd"), network)
    settings = replace(config, output_dir=str(folder), resume_from_checkpoint="latest", log_with="none")
    outcome = Trainer(
        learner, teachers, settings, Accelerator(cpu=teachers.device.type == "cpu"), validation(config)
    ).fit()
    count = teachers.queries if isinstance(teachers, BlackBoxPool) else None
    spent = count is not None and count.allowed is not None and count.total + cost(learner, network) > count.allowed
    if not outcome.finished and not spent:
        raise InterruptedRow(f"Stopped in {folder}.")
    return outcome.model, outcome.progress.history, count.total if count else 0


def cost(learner: BiDfMKD, network: nn.Module) -> int:
    """Queries of one API episode to a member of as many classes as the meta-model has outputs."""
    config, source = learner.config, learner.source
    assert isinstance(source, ZeroOrderGradient)
    images = network_info(network).num_classes * config.inversion.images_per_class
    return 2 * images * (config.inversion.recovery_steps * source.queries_per_image + 1)


@contextmanager
def opened(row: str, pool: ModelPool, config: RunConfig) -> Iterator[ModelPool | BlackBoxPool]:
    """The members as the row sees them."""
    budget = config.max_queries or None
    if row == "white":
        yield pool
    elif row != "http":
        yield pool.as_black_box(row, max_queries=budget, top_k=config.top_k)  # type: ignore[arg-type]
    else:
        with served(config) as url:
            service = open_service(url, max_queries=budget)[: len(pool)]
            if [entry.id for entry in service] != [entry.id for entry in pool]:
                raise ValueError(
                    f"{url} serves other members first than {config.pool} has: leave the unusable ones out."
                )
            yield service


@contextmanager
def served(config: RunConfig) -> Iterator[str]:
    """The pool behind HTTP, by `hf-dfml serve` in another process; its address."""
    words = [sys.executable, "-c", "from hf_dfml.cli import main; main()", "serve", config.pool, "--port", "0"]
    threads = {"OMP_NUM_THREADS": str(config.num_threads)} if config.num_threads else {}
    environment = os.environ | threads | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen([*words, "--output", "probs"], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "http://" not in line:
            raise ConnectionError(f"The pool could not be served: {line or 'see above'}")
        yield line[line.index("http://") :].split("/models")[0]
    finally:
        process.terminate()
        process.wait()


def validation(config: RunConfig) -> Any:
    """Scores a snapshot on the validation classes, in percent by shots."""
    assert config.dataset
    dataset = load_dataset(config.dataset, "validation", data_dir=config.data_dir)
    protocol = EvaluationProtocol(
        ways=config.ways, shots=config.shots, episodes=config.validation_episodes, split="validation"
    )

    def validate(model: nn.Module) -> dict[str, float]:
        rows = evaluate(model, dataset, protocol, method="validation", progress=False)
        return {f"{row.shots}-shot": row.mean for row in rows}

    return validate


def protocol(network: nn.Module, config: RunConfig, name: str) -> list[Result]:
    """The one look at the test classes."""
    assert config.dataset
    size = network_info(network).image_size
    dataset = load_dataset(config.dataset, "test", data_dir=config.data_dir, image_size=size)
    protocol = EvaluationProtocol(ways=config.ways, shots=config.shots, episodes=config.episodes)
    command = this_command()
    return [
        row
        for bn, head in PROTOCOLS
        for row in evaluate(network, dataset, replace(protocol, bn=bn, head=head), method=name, command=command)  # type: ignore[arg-type]
    ]


def points_of(line: dict[str, float]) -> dict[str, float]:
    """Queries spent and accuracies at one look at the validation classes."""
    scores = {
        name.removeprefix("validation/"): value for name, value in line.items() if name.startswith("validation/")
    }
    return {"step": line["step"], "queries": line.get("queries", 0.0), **scores}


def summary(rows: Sequence[str], folder: Path) -> dict[str, Any]:
    """Table, figure and files of the rows that are finished; prints the last line."""
    about = {row: json.loads((folder / row / "row.json").read_text()) for row in rows}
    results = {row: read_results(folder / row) for row in rows}
    everything = [result for row in rows for result in results[row]]
    print_table(everything)
    write_results(folder, everything)
    atomic_write(folder / "black_box.json", json.dumps(about, indent=1) + "\n")
    shots = max(result.shots for result in everything)
    # A white box is asked nothing: its points stand where the black boxes' are at the same steps.
    at_step = {
        point["step"]: point["queries"] for row in about.values() for point in row["points"] if point.get("queries")
    }
    lines = {}
    for row in rows[1:]:
        points = [*about[BEFORE]["points"], *about[row]["points"]]
        lines[TITLES[row]] = [
            (point["queries"] or at_step.get(point.get("step"), 0), point[f"{shots}-shot"]) for point in points
        ]
    figure = curves(
        lines,
        folder / "black_box.png",
        title=f"BiDf-MKD, {shots}-shot accuracy on the validation classes (%)",
        xlabel="queries (white box: at the same steps)",
        ylabel="accuracy (%)",
    )
    print(f"Wrote {folder / 'results.json'}, {folder / 'black_box.json'} and {figure}.")
    means = {row: [one.mean for one in results[row] if one.shots == shots][0] for row in rows}
    head = PROTOCOLS[0][1]
    gains = {row: means[row] - means[BEFORE] for row in rows[1:]}
    ratio = gains["probs"] / gains["white"] if gains.get("white") and "probs" in gains else None
    verdict = {
        "benchmark": "black_box",
        "ratio": None if ratio is None else round(ratio, 2),
        "baseline": round(means["white"], 2) if "white" in means else None,
        "ours": round(means["probs"], 2) if "probs" in means else None,
        "unit": f"% of {shots}-shot test accuracy ({head}); the ratio is of the gains over {means[BEFORE]:.2f}",
        "rows": {row: {"accuracy": round(means[row], 2), "queries": about[row]["queries"]} for row in rows},
    }
    print(json.dumps(verdict))
    return verdict


if __name__ == "__main__":
    main()
