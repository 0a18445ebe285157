"""The exams of a run: looks at the validation classes, the choice of a head, the one look at the test classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from hf_dfml.data import FewShotDataset, load_dataset
from hf_dfml.evaluation import (
    RESULTS_NAME,
    Adaptation,
    Exam,
    Result,
    evaluate,
    merged,
    print_table,
    read_results,
    write_results,
    yardsticks,
)
from hf_dfml.evaluation.heads import Head
from hf_dfml.meta_model import MetaModel
from hf_dfml.pool import BlackBoxPool, ModelPool
from hf_dfml.run_config import RunConfig
from hf_dfml.trainer import Validation
from hf_dfml.utils.processes import ALONE, Processes
from hf_dfml.utils.text import counted

WITH_AND_WITHOUT_ICFIL: tuple[Head, ...] = ("finetune", "icfil")
"""Heads that differ in PURER's calibration alone."""


def suited(method: Any) -> Adaptation:
    """How a method wants its meta-model to be adapted; see `Method`."""
    default = Adaptation()
    return Adaptation(
        bn=getattr(method, "exam_bn", default.bn),
        head=getattr(method, "exam_head", default.head),
    )


def validation(config: RunConfig, adapt: Adaptation, processes: Processes) -> Validation:
    """Scores a snapshot by adapting it, as `adapt` says, to episodes of the validation classes."""
    datasets = _validation_sets(config)
    exam = replace(_validation_exam(config), bn=adapt.bn, head=adapt.head)

    def validate(model: nn.Module) -> dict[str, float]:
        rows = [
            row
            for dataset in datasets
            for row in evaluate(model, dataset, exam, method="validation", progress=False, processes=processes)
        ]
        return {
            f"{row.dataset} {row.shots}-shot" if len(datasets) > 1 else f"{row.shots}-shot": row.mean for row in rows
        }

    return validate


def best_head(model: nn.Module, config: RunConfig, processes: Processes) -> Adaptation:
    """The default of `MetaModel.adapt`: the inductive head that is best on the validation classes."""
    datasets = _validation_sets(config)
    exam = _validation_exam(config)
    scores: dict[Adaptation, float] = {}
    for head in ("finetune", "prototype", "mirrored"):
        for bn in ("support", "running"):
            protocol = replace(exam, head=head, bn=bn)
            scores[Adaptation(bn=bn, head=head)] = sum(
                row.mean
                for dataset in datasets
                for row in evaluate(
                    model, dataset, protocol, method=f"{head}, {bn}", progress=False, processes=processes
                )
            )
    return max(scores, key=lambda adaptation: scores[adaptation])


def final_exam(
    name: str,
    model: nn.Module,
    pool: ModelPool | BlackBoxPool,
    config: RunConfig,
    chosen: Sequence[Adaptation],
    command: str,
    processes: Processes = ALONE,
) -> list[Result]:
    """The one look at the test classes: the meta-model under each protocol, and the yardsticks; printed as a table.

    The protocols are the method's own (`chosen[0]`, whose rows come first), the common ones, and the rest of `chosen`.
    """
    exam = Exam(ways=config.ways, shots=config.shots, episodes=config.episodes)
    first, *others = [(adapt.bn, adapt.head) for adapt in chosen]
    common = [(exam.bn, exam.head), ("transductive", "finetune"), ("support", "prototype")]
    protocols = [first, *common, *others]
    exams = [replace(exam, bn=bn, head=head) for bn, head in dict.fromkeys(protocols)]
    if config.icfil_episodes:
        # On the same episodes with and without: the only difference is the calibration.
        pair = [replace(exam, episodes=config.icfil_episodes, head=head) for head in WITH_AND_WITHOUT_ICFIL]
        exams += [one for one in pair if one not in exams]
    device = next(model.parameters()).device
    results: list[Result] = []
    for dataset_name in dataset_names(config):
        dataset = load_dataset(dataset_name, "test", data_dir=config.data_dir, image_size=_size(model))
        for protocol in exams:
            results += evaluate(model, dataset, protocol, method=name, command=command, processes=processes)
        # Yardsticks are made of members' weights and features.
        if config.yardsticks and isinstance(pool, ModelPool):
            mirrored = any(adapt.head == "mirrored" for adapt in chosen)
            heads: list[Head] = ["prototype", "mirrored"] if mirrored else ["prototype"]
            results += yardsticks(
                pool, dataset, exam, heads=heads, device=device, command=command, processes=processes
            )
    if processes.is_main:
        print_table(results)
    return results


def dataset_names(config: RunConfig) -> list[str]:
    """The data sets of the exam; none where `config.dataset` is None."""
    return [name.strip() for name in (config.dataset or "").split(",") if name.strip()]


def evaluate_meta_model(
    meta: MetaModel,
    dataset_name: str,
    exam: Exam,
    folder: Path | str,
    *,
    pool: str | None = None,
    data_dir: Path | str | None = None,
) -> list[Result]:
    """Let a stored meta-model sit an exam; prints the table and adds its rows to `results.json`.

    Rows of other exams and contestants that stand there already are kept, the same ones are replaced.

    Args:
        meta: the meta-model.
        dataset_name: the data set.
        exam: the protocol. With the head `icfil` the table has the rows without the calibration as well.
        folder: where `results.json` is.
        pool: a pool for the yardsticks.
        data_dir: see `hf_dfml.data.load_dataset`.
    """
    # First, as a file that cannot be read must not cost an exam.
    earlier = read_results(folder) if (Path(folder) / RESULTS_NAME).is_file() else []
    dataset = load_dataset(dataset_name, exam.split, data_dir=data_dir, image_size=meta.config.input_size[-1])
    heads: tuple[Head, ...] = WITH_AND_WITHOUT_ICFIL if exam.head == "icfil" else (exam.head,)
    results: list[Result] = []
    for head in heads:
        results += evaluate(meta.network, dataset, replace(exam, head=head), method=meta.config.method)
    if pool:
        results += yardsticks(ModelPool.open(pool).usable(), dataset, replace(exam, head=heads[0]))
    print_table(results)
    rows = merged(earlier, results)
    kept = f", beside {counted(len(rows) - len(results), 'earlier row')}" if len(rows) > len(results) else ""
    print(f"Wrote {write_results(folder, rows)}{kept}.")
    return results


def _validation_sets(config: RunConfig) -> list[FewShotDataset]:
    return [load_dataset(name, "validation", data_dir=config.data_dir) for name in dataset_names(config)]


def _validation_exam(config: RunConfig) -> Exam:
    return Exam(ways=config.ways, shots=config.shots, episodes=config.validation_episodes, split="validation")


def _size(model: nn.Module) -> int:
    return int(model.pretrained_cfg["input_size"][-1])  # type: ignore[index,union-attr]
