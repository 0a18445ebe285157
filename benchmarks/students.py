"""What the benchmarks of pool distillation share: their options, students, and a trial on the validation classes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from kept import claim, members_of
from torch import nn

from hf_dfml.data import FewShotDataset, load_dataset
from hf_dfml.evaluation import EvaluationProtocol, evaluate, print_table, read_results, write_results
from hf_dfml.meta_network import meta_network
from hf_dfml.methods.base import Context
from hf_dfml.methods.pool_distillation import PoolDistillation, PoolDistillationConfig
from hf_dfml.methods.pool_images import PoolImages
from hf_dfml.pipeline import RunConfig
from hf_dfml.pool import ModelPool, TeacherPool
from hf_dfml.settings import Settings
from hf_dfml.trainer import Trainer
from hf_dfml.utils.checkpoint import atomic_write
from hf_dfml.utils.provenance import describe_machine
from hf_dfml.utils.seeding import deterministic

WAYS_TO_SEE: tuple[dict[str, Any], ...] = tuple(
    {"representation": representation, "flips": flips}
    for representation in ("features", "answers")
    for flips in (False, True)
)
"""What is evaluated of a student: features and predicted answers, each with and without flips."""
EPISODES_SEED = 1
"""Of the episodes of a trial; those of the recipe's own validation are of seed 0."""


class GivenImages(PoolDistillation):
    """A student of images that were made elsewhere, with the members' answers.

    Args:
        config: hyper-parameters.
        model: the student.
        shown: images and answers.
    """

    def __init__(self, config: PoolDistillationConfig, model: nn.Module, shown: PoolImages) -> None:
        super().__init__(config, model)
        self.shown = shown

    def make_images(self, pool: TeacherPool, context: Context) -> PoolImages:
        """See the method."""
        return self.shown


def prepared(
    method: PoolDistillationConfig, config: RunConfig, *own: Settings, but: Collection[str] = ()
) -> tuple[RunConfig, ModelPool]:
    """The options with a cache of recovered images, and the pool that they name; the output folder is for these alone.

    Args:
        method: of the students.
        config: of their runs.
        own: the benchmark's options.
        but: options whose values have folders of their own.

    Raises:
        ValueError: if no data set is named, or the members are to be black boxes.
    """
    if config.black_box != "none":
        raise ValueError(f"--black_box {config.black_box}: this benchmark looks into its members; leave it out.")
    if not config.dataset:
        raise ValueError("No data set was named: an accuracy needs --dataset.")
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    config = replace(config, recovery_cache=config.recovery_cache or str(Path(config.output_dir) / "recovered"))
    pool = members_of(config, Path(config.output_dir))
    claim(Path(config.output_dir), method, config, *own, members=[entry.id for entry in pool], but=but)
    print(f"{len(pool)} members, {method.steps} passes; {describe_machine(pool.device)}.", flush=True)
    return config, pool


def classes_of(split: str, pool: ModelPool, config: RunConfig) -> FewShotDataset:
    """A split of the data set, in the largest size that a member sees."""
    size = max(entry.input_size[-1] for entry in pool if entry.input_size)
    return load_dataset(str(config.dataset), split, data_dir=config.data_dir, image_size=size)


def prototypes(config: RunConfig, episodes: int, split: str = "validation") -> EvaluationProtocol:
    """The evaluation of a trial: nearest class means under stored statistics, on episodes of a seed of their own."""
    return EvaluationProtocol(
        ways=config.ways,
        shots=config.shots,
        episodes=episodes,
        bn="running",
        head="prototype",
        seed=EPISODES_SEED,
        split=split,
    )


def last_snapshot(
    pool: ModelPool,
    method: PoolDistillationConfig,
    config: RunConfig,
    name: str,
) -> nn.Module:
    """The student after the last pass, trained in the folder `name` of the output; an interrupted one goes on."""
    deterministic(config.seed)
    learner = PoolDistillation(method, meta_network(pool, config))
    folder = Path(config.output_dir) / name
    settings = replace(config, output_dir=str(folder), resume_from_checkpoint="latest", log_with="none")
    began = time.monotonic()
    outcome = Trainer(learner, pool, settings, Accelerator(cpu=pool.device.type == "cpu")).fit()
    if not outcome.finished:
        raise SystemExit(f"Stopped in {folder}. The same command goes on from there.")
    print(f"{name}: {(time.monotonic() - began) / 60:.1f} minutes.", flush=True)
    return outcome.model


def means_of(
    students: Mapping[str, Callable[[], nn.Module]], dataset: FewShotDataset, config: RunConfig
) -> dict[str, dict[str, float]]:
    """Judge students on the validation classes and print them; accuracies by student, and by how it was seen.

    Args:
        students: by their names and folders; one that was evaluated is not made again.
        dataset: the validation classes.
        config: of the evaluation.
    """
    folder = Path(config.output_dir)
    protocol = prototypes(config, config.validation_episodes)
    for name, student in students.items():
        if not (folder / name / "results.json").is_file():
            model = student()
            rows = [
                row for how in WAYS_TO_SEE for row in evaluate(model, dataset, replace(protocol, **how), method=name)
            ]
            write_results(folder / name, rows)
    results = {name: read_results(folder / name) for name in students}
    print_table([row for rows in results.values() for row in rows])
    return {
        name: {f"{row.how}, {row.shots}-shot": round(row.mean, 2) for row in rows} for name, rows in results.items()
    }


def trial(
    benchmark: str,
    kind: str,
    students: Mapping[str, Callable[[], nn.Module]],
    given: str,
    dataset: FewShotDataset,
    config: RunConfig,
) -> dict[str, Any]:
    """Judge students on the validation classes, print them, and write and give the object of the last line.

    Args:
        benchmark: its name, and that of its file.
        kind: what the students differ in, in the plural.
        students: by their names and folders; one that was evaluated is not made again.
        given: the one that the others are compared with.
        dataset: the validation classes.
        config: of the evaluation.
    """
    means = means_of(students, dataset, config)
    key = f"prototype, answers, {max(config.shots)}-shot"
    others = (name for name in means if name != given)
    best = max(others, key=lambda name: means[name][key], default=given)
    verdict = {
        "benchmark": benchmark,
        "ratio": round(means[best][key] / means[given][key], 3),
        "baseline": means[given][key],
        "ours": means[best][key],
        "unit": f"% of {max(config.shots)}-shot accuracy on the validation classes",
        "best": best,
        kind: means,
    }
    atomic_write(Path(config.output_dir) / f"{benchmark}.json", json.dumps(verdict, indent=1) + "\n")
    print(json.dumps(verdict))
    return verdict
