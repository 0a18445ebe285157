"""Evaluation in a run: validation of snapshots, the choice of a head, one look at the test classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from hf_dfml.data import FewShotDataset, load_dataset
from hf_dfml.evaluation import (
    RESULTS_NAME,
    Adaptation,
    EvaluationProtocol,
    Result,
    evaluate,
    evaluate_baselines,
    merged,
    print_table,
    read_results,
    write_results,
)
from hf_dfml.evaluation.heads import Head
from hf_dfml.evaluation.results import Record, ignore
from hf_dfml.meta_model import MetaModel
from hf_dfml.networks.info import network_info
from hf_dfml.pool import ModelPool, TeacherPool
from hf_dfml.run_config import RunConfig
from hf_dfml.trainer import Validation
from hf_dfml.utils.processes import ALONE, Processes
from hf_dfml.utils.text import counted

WITH_AND_WITHOUT_ICFIL: tuple[Head, ...] = ("finetune", "icfil")
"""Heads that differ in PURER's calibration alone."""


def suited(method: Any) -> Adaptation:
    """How a method wants its meta-model to be adapted; see `Method`."""
    return Adaptation(bn=method.eval_bn, head=method.eval_head)


def validation(config: RunConfig, adapt: Adaptation, processes: Processes) -> Validation:
    """Scores a snapshot by adapting it, as `adapt` says, to episodes of the validation classes."""
    datasets = _validation_sets(config)
    protocol = replace(_validation_protocol(config), bn=adapt.bn, head=adapt.head)

    def validate(model: nn.Module) -> dict[str, float]:
        rows = [
            row
            for dataset in datasets
            for row in evaluate(model, dataset, protocol, method="validation", progress=False, processes=processes)
        ]
        return {
            f"{row.dataset} {row.shots}-shot" if len(datasets) > 1 else f"{row.shots}-shot": row.mean for row in rows
        }

    return validate


def best_head(model: nn.Module, config: RunConfig, processes: Processes) -> Adaptation:
    """The default of `MetaModel.adapt`: the inductive head that is best on the validation classes."""
    datasets = _validation_sets(config)
    protocol = _validation_protocol(config)
    scores: dict[Adaptation, float] = {}
    for head in ("finetune", "prototype", "mirrored"):
        for bn in ("support", "running"):
            protocol = replace(protocol, head=head, bn=bn)
            scores[Adaptation(bn=bn, head=head)] = sum(
                row.mean
                for dataset in datasets
                for row in evaluate(
                    model, dataset, protocol, method=f"{head}, {bn}", progress=False, processes=processes
                )
            )
    return max(scores, key=lambda adaptation: scores[adaptation])


def meta_test(
    name: str,
    model: nn.Module,
    pool: TeacherPool,
    config: RunConfig,
    chosen: Sequence[Adaptation],
    command: str,
    processes: Processes = ALONE,
    record: Record = ignore,
) -> list[Result]:
    """The one look at the test classes: the meta-model under each protocol, and the baselines; printed as a table.

    The protocols are the method's own (`chosen[0]`, whose rows come first), the common ones, and the rest of `chosen`.

    Args:
        name: of the method.
        model: its meta-model.
        pool: its teachers, for the baselines.
        config: the run.
        chosen: see above.
        command: what a user types to get the rows again.
        processes: among which each evaluation is divided.
        record: is given all rows so far, whenever there are new ones.
    """
    protocol = EvaluationProtocol(ways=config.ways, shots=config.shots, episodes=config.episodes)
    first, *others = [(adapt.bn, adapt.head) for adapt in chosen]
    common = [(protocol.bn, protocol.head), ("transductive", "finetune"), ("support", "prototype")]
    modes = dict.fromkeys([first, *common, *others])
    protocols = [replace(protocol, bn=bn, head=head) for bn, head in modes]
    if config.icfil_episodes:
        # On the same episodes with and without: the only difference is the calibration.
        pair = [replace(protocol, episodes=config.icfil_episodes, head=head) for head in WITH_AND_WITHOUT_ICFIL]
        protocols += [one for one in pair if one not in protocols]
    device = next(model.parameters()).device
    results: list[Result] = []
    for dataset_name in dataset_names(config):
        size = network_info(model).image_size
        dataset = load_dataset(dataset_name, "test", data_dir=config.data_dir, image_size=size)
        for each in protocols:
            results += evaluate(model, dataset, each, method=name, command=command, processes=processes)
            record(results)
        # Baselines are made of members' weights and features.
        if config.baselines and not pool.answers_only:
            mirrored = any(adapt.head == "mirrored" for adapt in chosen)
            heads: list[Head] = ["prototype", "mirrored"] if mirrored else ["prototype"]
            results += evaluate_baselines(
                pool,  # type: ignore[arg-type]  # Members that are seen whole are those of a `ModelPool`.
                dataset,
                protocol,
                heads=heads,
                device=device,
                command=command,
                processes=processes,
                record=partial(_also, results, record),
            )
    if processes.is_main:
        print_table(results)
    return results


def _also(before: list[Result], record: Record, rows: list[Result]) -> None:
    record([*before, *rows])


def dataset_names(config: RunConfig) -> list[str]:
    """The data sets of the evaluation; none where `config.dataset` is None."""
    return [name.strip() for name in (config.dataset or "").split(",") if name.strip()]


def evaluate_meta_model(
    meta: MetaModel,
    dataset_name: str,
    protocol: EvaluationProtocol,
    folder: Path | str,
    *,
    pool: str | None = None,
    data_dir: Path | str | None = None,
) -> list[Result]:
    """Evaluate a stored meta-model; prints the table and adds its rows to `results.json`.

    Rows of other evaluations and contestants that stand there already are kept, the same ones are replaced.

    Args:
        meta: the meta-model.
        dataset_name: the data set.
        protocol: the protocol. With the head `icfil` the table has the rows without the calibration as well.
        folder: where `results.json` is.
        pool: a pool for the baselines.
        data_dir: see `hf_dfml.data.load_dataset`.
    """
    # First, as a file that cannot be read must not cost an evaluation.
    earlier = read_results(folder) if (Path(folder) / RESULTS_NAME).is_file() else []
    dataset = load_dataset(dataset_name, protocol.split, data_dir=data_dir, image_size=meta.config.input_size[-1])
    heads: tuple[Head, ...] = WITH_AND_WITHOUT_ICFIL if protocol.head == "icfil" else (protocol.head,)
    results: list[Result] = []
    for head in heads:
        results += evaluate(meta.network, dataset, replace(protocol, head=head), method=meta.config.method)
    if pool:
        results += evaluate_baselines(ModelPool.open(pool).usable(), dataset, replace(protocol, head=heads[0]))
    print_table(results)
    rows = merged(earlier, results)
    kept = f", beside {counted(len(rows) - len(results), 'earlier row')}" if len(rows) > len(results) else ""
    print(f"Wrote {write_results(folder, rows)}{kept}.")
    return results


def _validation_sets(config: RunConfig) -> list[FewShotDataset]:
    return [load_dataset(name, "validation", data_dir=config.data_dir) for name in dataset_names(config)]


def _validation_protocol(config: RunConfig) -> EvaluationProtocol:
    return EvaluationProtocol(
        ways=config.ways, shots=config.shots, episodes=config.validation_episodes, split="validation"
    )
