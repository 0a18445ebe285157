"""Rows of the papers' tables by the papers' schedules, the most valuable first, within some minutes.

    python benchmarks/paper_tables.py --budget_minutes 9 --pool pools/cifar-fs --data_dir data
    python benchmarks/paper_tables.py --size tiny --dataset glyphs      # to see that it runs: glyphs, minutes of a CPU

A row is the run of its method with the preset METHOD-SIZE in a folder of its own below --output_dir; `--rows` names
others, or another order. The baselines of the pool stand in the first row's run. When the budget is over the row that
is being run stops with a checkpoint, and the same command later goes on there, with a budget of its own.
All checkpoints are kept: 27 MB each of FREE's first ones, of which there are 50.

A row that is finished has two figures for each number of shots, both of fine-tuning with the papers' batch norm
(transductive, 10 steps of 0.01), on the test classes:

- *best on test*: the largest of all checkpoints' accuracies. So the papers choose, and it flatters;
- *chosen on validation*: the run's own: its checkpoint was chosen on the validation classes.

Written: paper_tables.json, and paper_tables.md, which is fit for docs/results. The last line is a JSON object; `ratio`
is the first finished row's accuracy, chosen on validation, over the paper's.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from kept import claim
from measuring import GLYPHS, ON, Device, device_of, open_pool, table

from hf_dfml.arguments import parse, parse_into, presets
from hf_dfml.data import load_dataset
from hf_dfml.errors import errors_in_a_sentence
from hf_dfml.evaluation import RESULTS_NAME, EvaluationProtocol, Result, evaluate, read_results
from hf_dfml.evaluation.published import published
from hf_dfml.meta_network import meta_network
from hf_dfml.methods.base import Context, Method
from hf_dfml.methods.catalogue import find_method
from hf_dfml.pool import ModelPool
from hf_dfml.resuming import step_of
from hf_dfml.run_config import RunConfig
from hf_dfml.settings import Settings, option
from hf_dfml.utils.checkpoint import atomic_write, load_tree
from hf_dfml.utils.provenance import describe_machine, scrub_command, this_command
from hf_dfml.utils.seeding import fork

SCORES = "best_on_test.json"
SIZES = (32, 84)
"""Pixels of the papers' images, one for each data set."""
STOPPING_SECONDS = 60.0
"""What a run is given to write its checkpoint, after the budget."""


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        method: its name on the command line.
        words: options in place of the preset's.
        published_as: the method in `hf_dfml.evaluation.published`.
        shots: of the columns; a replay has the shots of its column.
    """

    method: str
    words: str
    published_as: str
    shots: tuple[int, ...]


ROWS = {
    "DRO": Row("dro", "--arch auto --sigma 1", "dro", (1, 5)),
    "FREE_5, 1-shot": Row("free", "--replay_shots 1", "free", (1,)),
    "FREE_2, 1-shot": Row("free", "--replay_shots 1 --adaptation_steps 2", "free-2", (1,)),
    "FREE_5, 5-shot": Row("free", "--replay_shots 5", "free", (5,)),
    "+BELL, 1-shot": Row("free", "--replay_shots 1 --five false", "free with bell", (1,)),
    "+FIVE, 1-shot": Row("free", "--replay_shots 1 --bell erm", "free with five", (1,)),
    "baseline, 1-shot": Row("free", "--replay_shots 1 --five false --bell none", "free baseline", (1,)),
    "FREE_2, 5-shot": Row("free", "--replay_shots 5 --adaptation_steps 2", "free-2", (5,)),
    "PURER, 1-shot": Row("purer", "--replay_shots 1 --checkpoint_every 500", "purer", (1,)),
    "BiDf-MKD, 1-shot": Row("bidf-mkd", "--replay_shots 1 --checkpoint_every 500", "bidf-mkd", (1,)),
}
"""In the order of their value: what FREE is said to be first, then its ablation, then what takes days of a CPU."""


class Options(Settings):
    """How long, which rows, and of which members."""

    budget_minutes: float = option(9.0, "All of it ends within so many minutes.", above=0)
    rows: list[str] = option(list(ROWS), "Which, in this order.", choices=ROWS)
    size: str = option("cifar-fs-paper", "The preset of each method: cifar-fs-paper, cub-paper, ..., tiny.")
    dataset: str = option("cifar-fs", "Data set of the evaluation.")
    data_dir: str = option("", "Folder of local copies of the data sets.")
    pool: str = option("", f"The members; by default glyph members, built in {GLYPHS}.")
    episodes: int = option(600, "Of each evaluation.", least=2)
    options: list[str] | None = option(None, "Options of all rows' runs in place of the preset's, NAME=VALUE each.")
    device: Device = option("auto", ON)
    output_dir: str = option("runs/paper-tables", "Where the runs and both files go.")


def command_of(name: str, settings: Options) -> list[str]:
    """The words of a row's command line, from `train` on."""
    row = ROWS[name]
    words = ["train", row.method, "--preset", settings.size, "--pool", settings.pool, "--dataset", settings.dataset]
    words += ["--shots", *map(str, row.shots), "--episodes", str(settings.episodes), *row.words.split()]
    words += ["--baselines", str(name == settings.rows[0]).lower()]
    words += ["--keep_checkpoints", "1000", "--resume_from_checkpoint", "latest"]
    words += ["--output_dir", str(folder_of(name, settings))]
    if settings.data_dir:
        words += ["--data_dir", settings.data_dir]
    for text in settings.options or []:
        option_name, _, value = text.partition("=")
        words += [f"--{option_name}", *value.split()]
    return words


def options_of(name: str, settings: Options) -> tuple[Any, RunConfig]:
    """Hyper-parameters and settings of a row's run.

    Raises:
        SystemExit: for a value that an option cannot have.
    """
    return parse(class_of(name), RunConfig, command_of(name, settings)[2:], program="paper_tables.py")


def method_of(name: str, pool: ModelPool, settings: Options, device: torch.device) -> tuple[Method, RunConfig]:
    """A row's method with a meta-model that has learned nothing, and the settings of its run."""
    method_config, config = options_of(name, settings)
    kind = class_of(name)
    return kind(kind.config_for(method_config, pool), meta_network(pool, config).to(device)), config


def class_of(name: str) -> type[Method]:
    """A row's method."""
    return find_method(ROWS[name].method.replace("-", "_"))


def folder_of(name: str, settings: Options) -> Path:
    """Of a row's run."""
    return Path(settings.output_dir) / name.replace("+", "with-").replace(", ", "-").lower()


def go_on(words: list[str], folder: Path, device: torch.device, seconds: float) -> str:
    """Run `hf-dfml` until it ends or the time is over; a sentence if it did not finish, else nothing."""
    command = [sys.executable, "-m", "hf_dfml.cli", *words]
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if device.type == "cpu" else {})
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            code = process.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # It ends with a checkpoint.
            try:
                process.wait(STOPPING_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            return "stopped at the end of the budget"
    if code or not (folder / RESULTS_NAME).is_file():
        last = (Path(log.name).read_text(encoding="utf-8").strip() or "nothing was printed").splitlines()[-1]
        return f"ended with code {code}: {scrub_command(last)}"
    return ""


def steps_of(folder: Path) -> int:
    """How far a run has come."""
    return max(map(step_of, folder.glob("checkpoints/step-*")), default=0)


def best_on_test(
    name: str, settings: Options, pool: ModelPool, device: torch.device, end: float
) -> dict[int, tuple[float, float]] | None:
    """By shots the accuracy and interval of the checkpoint that is best on the test classes; None: out of time.

    Empty if the run has none of the checkpoints of every `--checkpoint_every` steps. What was measured is
    kept beside the run, so that the same command goes on with the other checkpoints.
    """
    row, folder = ROWS[name], folder_of(name, settings)
    method, config = method_of(name, pool, settings, device)
    size = max(entry.input_size[-1] for entry in pool if entry.input_size)
    dataset = load_dataset(settings.dataset, "test", data_dir=settings.data_dir or None, image_size=size)
    protocol = EvaluationProtocol(
        ways=config.ways, shots=list(row.shots), episodes=settings.episodes, bn="transductive"
    )
    path = folder / SCORES
    scores: dict[str, list[list[float]]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for checkpoint in sorted(folder.glob("checkpoints/step-*")):
        due = step_of(checkpoint) and step_of(checkpoint) % config.checkpoint_every == 0
        if checkpoint.name in scores or not due:
            continue
        if time.monotonic() > end:
            return None
        context = Context(fork(config.seed, "training"), device, config.seed, step_of(checkpoint))
        method.load_state_dict(load_tree(checkpoint)["method"], pool, context)
        found = evaluate(method.model, dataset, replace(protocol, bn="transductive"), method=name, progress=False)
        scores[checkpoint.name] = [[result.mean, result.ci95] for result in found]
        atomic_write(path, json.dumps(scores) + "\n")
    if not scores:
        return {}
    columns = zip(*scores.values(), strict=True)
    return {shots: tuple(max(column)) for shots, column in zip(row.shots, columns, strict=True)}  # type: ignore[misc]


def measure(settings: Options, show: Callable[[str], Any] = print) -> dict[str, Any]:
    """Every row that the budget holds; the object of the last line."""
    began = time.monotonic()
    end = began + 60 * settings.budget_minutes
    device = device_of(settings.device)
    pool = open_pool(settings.pool).resolve()
    settings = replace(settings, pool=settings.pool or str(GLYPHS))
    rows: dict[str, Any] = {}
    for name in settings.rows:
        rest, folder = end - time.monotonic(), folder_of(name, settings)
        words = command_of(name, settings)
        claim(folder, *options_of(name, settings), of_a_run=True)
        found: dict[str, Any] = {"command": scrub_command(shlex.join(["hf-dfml", *words]))}
        rows[name] = found
        if not finished(folder):
            if rest < STOPPING_SECONDS:
                found["left"] = f"{steps_of(folder)} steps done; no time was left"
                continue
            show(f"{name}: {found['command']}")
            why = go_on(words, folder, device, rest - STOPPING_SECONDS)
            if why:
                found["left"] = f"{steps_of(folder)} steps done; {why}"
                show(f"{name}: {found['left']}.")
                continue
        measured = read_results(folder)
        own = [row for row in measured if row.method == measured[0].method and is_the_papers(row)]
        found["chosen_on_validation"] = {row.shots: (row.mean, row.ci95) for row in own}
        found["baselines"] = {
            f"{row.method} ({row.how}, {row.bn}), {row.shots}-shot": row.mean
            for row in measured
            if row.method != measured[0].method
        }
        best = best_on_test(name, settings, pool, device, end)
        found["best_on_test"] = best or {}
        if best is None:
            found["left"] = "not all checkpoints were evaluated; no time was left"
        elif not best:
            found["left"] = "there is no checkpoint to choose on test: the run has fewer steps than --checkpoint_every"
        show(f"{name}: {found['chosen_on_validation']}, best on test {best}.")
        write(settings, rows, device)
    write(settings, rows, device)
    return as_result(settings, rows, device)


def finished(folder: Path) -> bool:
    """Whether a row's run has ended, its evaluation included."""
    return (folder / RESULTS_NAME).is_file() and (folder / "config.json").is_file()


def is_the_papers(row: Result) -> bool:
    """Whether a row of a run was evaluated as the papers evaluate."""
    return (row.head, row.bn, row.inner_steps, row.inner_lr) == ("finetune", "transductive", 10, 0.01)


def theirs(name: str, settings: Options, shots: int) -> float | None:
    """What the paper has."""
    keys: dict[str, Any] = {
        "head": "finetune",
        "bn": "transductive",
        "pool": "one architecture",
        "architecture": "conv4",
    }
    of_sizes = (
        published(ROWS[name].published_as, settings.dataset, 5, shots, image_size=size, **keys) for size in SIZES
    )
    return next((found.mean for found in of_sizes if found), None)


def as_result(settings: Options, rows: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The object of the last line."""
    first = next((name for name, row in rows.items() if "chosen_on_validation" in row), None)
    shots = ROWS[first].shots[0] if first else 0
    ours = rows[first]["chosen_on_validation"][shots][0] if first else None
    paper = theirs(first, settings, shots) if first else None
    return {
        "benchmark": "paper_tables",
        "ratio": round(ours / paper, 3) if ours and paper else None,
        "baseline": paper,
        "ours": ours,
        "unit": f"% of {first}" if first else "%",
        "device": describe_machine(device),
        "rows": rows,
    }


def write(settings: Options, rows: dict[str, Any], device: torch.device) -> None:
    """Both files."""
    folder = Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "paper_tables.json", json.dumps(as_result(settings, rows, device), indent=1) + "\n")
    atomic_write(folder / "paper_tables.md", page(settings, rows, device))


def page(settings: Options, rows: dict[str, Any], device: torch.device) -> str:
    """The table for a reader, what is not finished, and the commands."""
    lines, left = [], []
    for name, row in rows.items():
        for shots, (ours, interval) in row.get("chosen_on_validation", {}).items():
            paper, best = theirs(name, settings, shots), row.get("best_on_test", {}).get(shots)
            said = [f"{paper}" if paper else "-", f"{best[0]:.1f}" if best else "-", f"{ours:.1f} ± {interval:.1f}"]
            lines.append([f"{name}, {shots}-shot" if f"{shots}-shot" not in name else name, *said])
        lines += [[what, "-", "-", f"{mean:.1f}"] for what, mean in row.get("baselines", {}).items()]
        if "left" in row:
            left.append(f"- {name}: {row['left']}.")
    text = [
        "## The papers' tables, by the papers' schedules",
        f"{settings.dataset}, {describe_machine(device)}, PyTorch {torch.__version__}; fine-tuning, transductive "
        f"batch norm, {settings.episodes} episodes of the test classes.",
        table("row | published | best checkpoint on test, % | chosen on validation, %", lines),
        *(["Not finished:\n\n" + "\n".join(left)] if left else []),
        f"```bash\n{this_command()}\n```",
    ]
    return "\n\n".join(text) + "\n"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the object of the last line."""
    (settings,) = parse_into([Options], argv, __doc__)
    if not settings.pool and settings.dataset != "glyphs":
        raise SystemExit(
            f"--pool: the default members know glyphs, and the evaluation is on {settings.dataset}: "
            "name a pool of its classes, or give --dataset glyphs --size tiny to see that it runs."
        )
    for name in settings.rows:
        preset = f"{ROWS[name].method}-{settings.size}"
        if preset not in presets():
            raise SystemExit(
                f"--size {settings.size}: there is no preset {preset}; expected one of {', '.join(presets())}."
            )
        options_of(name, settings)  # A value that an option cannot have is refused before the first run.
    result = measure(settings, show=lambda text: print(text, flush=True))
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    with errors_in_a_sentence():
        main()
