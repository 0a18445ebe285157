# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_dfml"]
#
# [tool.uv.sources]
# hf_dfml = { path = "..", editable = true }
# ///
"""What a pool's weights give without meta-learning, and what its data would: one table, one evaluation.

    python recipes/baselines.py --pool pools/cifar-fs --dataset cifar-fs
    python recipes/baselines.py --pool pools/cifar-fs --dataset cifar-fs --references true --reference_steps 300
    python recipes/baselines.py --pool pools/cifar-fs --dataset cifar-fs --bn transductive     # as the papers evaluate
    python recipes/baselines.py --pool pools/cifar-fs --dataset cifar-fs --split validation --eval_inner_lr 0.1

Random initialisation, average, best member, prototypes on members' features; optimal-transport fusion (OTA), Gaussian
processes (MFGP, needs the extra `gp`), DRO offline and online; with --references also MAML and online MAML on the real
training images, marked in the table: they are allowed to see what data-free methods are not.

Rows are written as they come, those of the pool itself together. The same command in the same folder goes on after the
last contestant that was finished; rows of other commands stay beside. Several processes share the episodes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from hf_dfml.arguments import parse_into
from hf_dfml.data import open_data
from hf_dfml.data.folders import Needs
from hf_dfml.errors import errors_in_a_sentence
from hf_dfml.evaluation import (
    RESULTS_NAME,
    EvaluationProtocol,
    Result,
    evaluate,
    evaluate_baselines,
    merged,
    print_table,
    read_results,
    write_results,
)
from hf_dfml.evaluation.baselines import pool_kind
from hf_dfml.evaluation.results import ignore
from hf_dfml.methods.base import Context
from hf_dfml.methods.baselines import OTA, OTAConfig
from hf_dfml.methods.dro import DRO, DROConfig
from hf_dfml.methods.maml_reference import MAML, OML, MAMLConfig
from hf_dfml.methods.mfgp import MFGP, MFGPConfig
from hf_dfml.methods.weight_space import require_same_network, run_without_trainer
from hf_dfml.networks.functional import BatchNorm
from hf_dfml.pipeline import meta_network, open_pool
from hf_dfml.preflight import names_of_datasets
from hf_dfml.run_config import RunConfig
from hf_dfml.settings import Settings, option, part
from hf_dfml.utils.processes import Processes
from hf_dfml.utils.provenance import scrub_command, this_command
from hf_dfml.utils.seeding import fork


class BaselinesConfig(Settings):
    """Which classes and batch norm, and whether the references run."""

    run: RunConfig = part(RunConfig, output_dir="runs/baselines", shots=[1, 5, 10, 20])
    split: Literal["test", "validation"] = option("test", "Classes of the evaluation: validation while you choose.")
    bn: BatchNorm = option("support", "Whose statistics normalise the queries in the evaluation.")
    references: bool = option(False, "Run MAML and OML on the real training images as well.")
    reference_steps: int = option(2000, "Outer steps of each of these two.")
    dro_sigma: float = option(
        1.0, "DRO's --sigma: 1.414 where its loss is not finite, as with conv4 of 16 channels.", above=0
    )


def contestants(config: BaselinesConfig, members: int) -> list[tuple[Any, Any]]:
    """Method classes and their settings, in the order of the table."""
    chosen: list[tuple[Any, Any]] = [
        (OTA, OTAConfig()),
        (MFGP, MFGPConfig()),
        (DRO, DROConfig(sigma=config.dro_sigma)),
        (DRO, DROConfig(online=True, sigma=config.dro_sigma)),
    ]
    if config.references:
        data: dict[str, Any] = {"train_dataset": config.run.dataset, "train_data_dir": config.run.data_dir}
        each = max(1, config.reference_steps // members)
        chosen += [(MAML, MAMLConfig(steps=config.reference_steps, **data)), (OML, MAMLConfig(steps=each, **data))]
    return chosen


def measured_before(config: BaselinesConfig) -> tuple[list[Result], list[Result]]:
    """Rows in the output folder: of the same command, which was interrupted, and of others."""
    if not (Path(config.run.output_dir) / RESULTS_NAME).is_file():
        return [], []
    command = scrub_command(this_command())
    found = read_results(config.run.output_dir)
    return [row for row in found if row.command == command], [row for row in found if row.command != command]


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Run everything; the rows of `results.json`."""
    (options,) = parse_into([BaselinesConfig], argv, __doc__)
    config = options.run
    names = names_of_datasets(config)
    if len(names) != 1:
        raise SystemExit("Baselines are there to be compared: give --dataset or --data, the images of the evaluation.")
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    processes = Processes(Accelerator(cpu=not torch.cuda.is_available()))
    device = processes.device
    pool = open_pool(config).to(device)
    require_same_network(pool)
    config = replace(config, arch=pool[0].architecture)
    protocol = EvaluationProtocol(
        config.ways, config.shots, config.queries, config.episodes, options.bn, split=options.split
    )
    protocol = protocol.under(protocol.adaptation.but(steps=config.eval_inner_steps, lr=config.eval_inner_lr))
    dataset = open_data(
        names[0],
        options.split,
        data_dir=config.data_dir,
        image_size=pool[0].input_size[-1],
        image_column=config.image_column,
        label_column=config.label_column,
        needs=Needs(config.ways, max(config.shots), config.queries),
    )
    rows, others = measured_before(options)
    show = print if processes.is_main else ignore

    def write(measured: list[Result]) -> list[Result]:
        if processes.is_main:
            write_results(config.output_dir, merged(others, measured))
        return measured

    if rows:
        show(f"Kept what {config.output_dir} has: {', '.join(dict.fromkeys(row.method for row in rows))}.")
    else:
        rows = write(
            evaluate_baselines(pool, dataset, protocol, device=device, processes=processes, progress=processes.is_main)
        )
    for method_class, method_config in contestants(options, len(pool)):
        started = time.monotonic()
        method = method_class(method_config, meta_network(pool, config).to(device))
        if method.name in {row.method for row in rows}:
            continue
        context = Context(generator=fork(config.seed, method.name), device=device, seed=config.seed)
        network = run_without_trainer(method, pool, context)
        show(f"{method.name}: {time.monotonic() - started:.0f} seconds of training.")
        ours = evaluate(
            network, dataset, protocol, method=method.name, processes=processes, progress=processes.is_main
        )
        rows = write(rows + [replace(row, pool=pool_kind(pool)) for row in ours])
    if processes.is_main:
        print_table(rows)
    show(f"Wrote {Path(config.output_dir) / RESULTS_NAME}.")
    return rows


if __name__ == "__main__":
    with errors_in_a_sentence():
        main()
