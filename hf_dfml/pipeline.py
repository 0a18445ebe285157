"""The whole way: a pool in, an evaluated and published-ready meta-model out. Recipes are calls of it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
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
    results_chart,
    write_results,
    yardsticks,
)
from hf_dfml.evaluation.heads import Head
from hf_dfml.meta_model import MetaModel
from hf_dfml.methods.base import refuse_black_boxes
from hf_dfml.model_card import Training, write_card
from hf_dfml.networks import create_network
from hf_dfml.pool import BlackBoxPool, ModelPool
from hf_dfml.pool.endpoints import is_remote, open_remote
from hf_dfml.trainer import Outcome, Trainer, TrainerConfig, Validation, deterministic
from hf_dfml.utils.pictures import curves
from hf_dfml.utils.processes import ALONE, Processes
from hf_dfml.utils.provenance import describe_machine
from hf_dfml.utils.seeding import fork
from hf_dfml.utils.text import counted

WITH_AND_WITHOUT_ICFIL: tuple[Head, ...] = ("finetune", "icfil")
"""Heads that differ in PURER's calibration alone."""


@dataclass(frozen=True)
class RunConfig(TrainerConfig):
    """What every recipe is told: the pool, the exam, and where the product goes."""

    pool: str = field(
        default="",
        metadata={
            "help": "The teachers: a folder, a pool.lock.json, a Hub user or organisation, a collection, ids by "
            "comma, the URL of a served pool, or Inference Endpoints: URLs by comma or a YAML file."
        },
    )
    pool_memory_gb: float = field(
        default=2.0, metadata={"help": "Memory for loaded teachers that are kept in case they are wanted again."}
    )
    pool_disk_gb: float = field(
        default=0.0,
        metadata={
            "help": "Disk for the weights of a Hub pool in the local cache: those used longest ago make room; 0: no "
            "limit."
        },
    )
    num_members: int = field(default=0, metadata={"help": "Use the first so many members only; 0 for all."})
    black_box: Literal["none", "logits", "probs", "topk", "label"] = field(
        default="none",
        metadata={"help": "Take the members for prediction-only services that tell this much, and nothing else."},
    )
    top_k: int = field(default=3, metadata={"help": "Classes whose probabilities `--black_box topk` tells."})
    max_queries: int = field(
        default=0,
        metadata={
            "help": "Images that black boxes may be sent, all together; 0: no limit. At the end of the budget the run "
            "stops with a checkpoint; a resumed run may have a larger one."
        },
    )
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Data set of the exam (cifar-fs, ...), or several by comma. Without one: no validation, no exam."
        },
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder of local copies of the data sets; else HF_DFML_DATA, else the Hub."}
    )
    arch: str = field(default="conv4", metadata={"help": "Network of the meta-model: conv4, conv4_64, resnet12, ..."})
    ways: int = field(default=5, metadata={"help": "Classes of an episode."})
    shots: list[int] = field(default_factory=lambda: [1, 5], metadata={"help": "Support images a class in the exam."})
    episodes: int = field(
        default=600, metadata={"help": "Episodes of the exam on the test classes, sat once at the end."}
    )
    icfil_episodes: int = field(
        default=0,
        metadata={"help": "Episodes of another exam, with and without PURER's calibration (slow); 0: not sat."},
    )
    yardsticks: bool = field(
        default=True,
        metadata={"help": "Let random initialisation, average and members sit the exam too; `false` where they have."},
    )
    validation_episodes: int = field(
        default=100, metadata={"help": "Episodes of each look at the validation classes."}
    )
    num_threads: int = field(default=0, metadata={"help": "CPU threads of a process; 0 leaves PyTorch's choice."})
    mixed_precision: str | None = field(
        default=None,
        metadata={"help": "`bf16`: recover and replay in bfloat16; `no`; by default what `accelerate launch` says."},
    )
    patience_minutes: float = field(
        default=30.0,
        metadata={"help": "Of several processes: how long one waits for the others before it gives them up for dead."},
    )
    push_to_hub: str | None = field(default=None, metadata={"help": "Publish the meta-model as this Hub repository."})
    private: bool = field(default=False, metadata={"help": "Publish it as a private repository."})


def run(method_class: Any, method_config: Any, config: RunConfig, argv: Sequence[str] | None = None) -> list[Result]:
    """Meta-learn from a pool with one method, sit the exam, write model, card, pictures and results.

    Args:
        method_class: a class of `hf_dfml.methods`, built from its config and the meta-model's network.
        method_config: its hyper-parameters.
        config: the run.
        argv: the command line that card and `results.json` name; this process's by default.

    Returns:
        The rows of the exam; none without a data set, or where the run was stopped before its end.
    """
    command = shlex.join(argv or ["python", *sys.argv])
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    deterministic(config.seed)
    accelerator = _LateTrackers(
        log_with=None if config.log_with == "none" else config.log_with,
        project_dir=config.output_dir,
        mixed_precision=config.mixed_precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=config.patience_minutes))],
    )
    _check_launch(accelerator, config)
    processes = Processes(accelerator)
    if config.black_box != "none" or is_remote(config.pool):
        refuse_black_boxes(method_class)
    members = None if is_remote(config.pool) else open_pool(config).to(processes.device)
    pool = _as_told(members, config).to(processes.device)
    if isinstance(pool, BlackBoxPool):
        method_config = method_config.for_black_boxes()
    network = meta_network(pool, config).to(processes.device)
    method = method_class(method_config, network)
    shared = f", divided among {processes.count} processes" if processes.count > 1 else ""
    accelerator.print(f"{method.name}: {_teachers(pool)}, {method.num_steps} steps on {processes.device}{shared}.")
    suited = _suited(method)
    validate = _validation(config, suited, processes) if config.dataset else None
    if members and accelerator.is_main_process:
        # Now, so that a run that is interrupted can go on with the same members.
        members.lock(config.output_dir)
    outcome = Trainer(method, pool, config, accelerator, validate).fit()
    adapt, results = Adaptation(), []
    if outcome.finished and config.dataset:
        adapt = _best_head(outcome.model, config, processes)
        results = final_exam(method.name, outcome.model, pool, config, (suited, adapt), command, processes)
    accelerator.end_training()  # From here on each process is alone.
    if not outcome.finished or not processes.is_main:
        return results

    folder = Path(config.output_dir)
    if members:
        members.lock(folder)  # Again: it now has the hashes of what was fetched on the way.
    meta = MetaModel.of(
        outcome.model,
        method=method.name,
        method_config=asdict(method_config),
        pool=pool,
        dataset=config.dataset,
        results=results,
        adapt=adapt,
    )
    training = Training(
        command=command,
        seed=config.seed,
        seconds=outcome.progress.seconds,
        machine=describe_machine(processes.device),
        chosen=_chosen(outcome, method.num_steps, config),
        data_free=method.data_free,
        reference=(sys.modules[method_class.__module__].__doc__ or "").strip().split("\n\n")[1].replace("\n", " "),
    )
    _write(meta, training, method.pictures(folder / "pictures"), outcome, results, folder)
    accelerator.print(f"Wrote the meta-model, its card and its pictures to {folder}.")
    if config.push_to_hub:
        accelerator.print(f"Published: {meta.push_to_hub(config.push_to_hub, private=config.private, folder=folder)}")
    return results


def open_pool(config: RunConfig) -> ModelPool:
    """The usable members of `config.pool`; what cannot be used is named and left out.

    Raises:
        ValueError: if no pool was named or none of its members can be used.
    """
    if not config.pool:
        raise ValueError("No pool was named: give --pool a folder, a Hub user or organisation, a collection, or ids.")
    pool = ModelPool.open(config.pool)
    pool = pool.with_limits(memory_gb=config.pool_memory_gb, disk_gb=config.pool_disk_gb or None).resolve()
    if config.num_members:
        pool = pool[: config.num_members]
    usable = pool.usable()
    if not len(usable):
        raise ValueError(f"None of the {len(pool)} members of {config.pool} can be used: see `hf-dfml pool check`.")
    return usable


def meta_network(pool: ModelPool | BlackBoxPool, config: RunConfig) -> nn.Module:
    """A fresh network for the meta-model: the pool's largest image size, the mean of its normalisations."""
    count = len(pool)
    mean, std = (
        tuple(sum(getattr(entry, name)[channel] for entry in pool) / count for channel in range(3))
        for name in ("mean", "std")
    )
    size = max(entry.input_size[-1] for entry in pool if entry.input_size)
    return create_network(
        config.arch,
        num_classes=config.ways,
        image_size=size,
        mean=mean,
        std=std,
        generator=fork(config.seed, "network"),
    )


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


def adapt_to_folder(
    name: str, support: Path, query: Path, *, head: str | None = None
) -> Iterator[tuple[Path, str, float]]:
    """Adapt a stored meta-model to a folder of class folders and classify pictures: (file, label, probability).

    Files that cannot be read as images are left out with a warning.
    """
    from hf_dfml.utils.inputs import list_images, read_files

    meta = MetaModel.from_pretrained(name)
    classifier = meta.adapt(support, head=head)  # type: ignore[arg-type]
    images, files = read_files([query] if query.is_file() else list_images(query), meta.config.input_size[1:])
    for file, probabilities in zip(files, classifier.predict_proba(images), strict=True):
        best = int(probabilities.argmax())
        yield file, classifier.classes[best], float(probabilities[best])


def _as_told(members: ModelPool | None, config: RunConfig) -> ModelPool | BlackBoxPool:
    """The members as they are, as black boxes if they are to be taken for such, or the service at `config.pool`."""
    budget = config.max_queries or None
    if members is None:
        service = open_remote(config.pool, max_queries=budget)
        if config.black_box not in ("none", service.output):
            raise ValueError(f"{config.pool} tells {service.output}, not {config.black_box}: leave --black_box out.")
        return service[: config.num_members] if config.num_members else service
    if config.black_box == "none":
        return members
    return members.as_black_box(config.black_box, max_queries=budget, top_k=config.top_k)


def _teachers(pool: ModelPool | BlackBoxPool) -> str:
    return f"{len(pool)} black boxes ({pool.output})" if isinstance(pool, BlackBoxPool) else f"{len(pool)} teachers"


def _check_launch(accelerator: Accelerator, config: RunConfig) -> None:
    """Make sure that processes which were started together know, and do not hinder, each other.

    Raises:
        ValueError: if each takes itself for the only one, or may delete what others read; or for half precision of a
            kind that is not supported.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise ValueError(
            f"{started} processes were started and each believes to be alone: for processes on CPUs set "
            "ACCELERATE_USE_CPU=true, and see docs/processes.md for commands that work."
        )
    if started > 1 and config.pool_disk_gb:
        raise ValueError(
            f"--pool_disk_gb {config.pool_disk_gb:g} is kept by each process for itself, and one would delete weights "
            "that another is about to read: leave it out, or run one process."
        )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ValueError(
            f"mixed_precision='{accelerator.mixed_precision}': expected bf16 or no (losses are not scaled, as fp16 "
            "would need)."
        )


class _LateTrackers(Accelerator):
    """Starts its trackers with the first line for them, so that a run that fails before its first step leaves none."""

    def log(self, values: dict, step: int | None = None, log_kwargs: dict | None = None) -> None:
        """As in the base class."""
        if self.log_with and not self.trackers:
            self.init_trackers("logs")
        super().log(values, step, log_kwargs or {})


def _suited(method: Any) -> Adaptation:
    """How a method wants its meta-model to be adapted; see `Method`."""
    default = Adaptation()
    return Adaptation(
        bn=getattr(method, "exam_bn", default.bn),
        head=getattr(method, "exam_head", default.head),
    )


def _validation(config: RunConfig, adapt: Adaptation, processes: Processes) -> Validation:
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


def _best_head(model: nn.Module, config: RunConfig, processes: Processes) -> Adaptation:
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


def _validation_sets(config: RunConfig) -> list[FewShotDataset]:
    return [load_dataset(name, "validation", data_dir=config.data_dir) for name in dataset_names(config)]


def _validation_exam(config: RunConfig) -> Exam:
    return Exam(ways=config.ways, shots=config.shots, episodes=config.validation_episodes, split="validation")


def _size(model: nn.Module) -> int:
    return int(model.pretrained_cfg["input_size"][-1])  # type: ignore[index,union-attr]


def _chosen(outcome: Outcome, total: int, config: RunConfig) -> str:
    if outcome.progress.best_step < 0:
        return f"the last of {total} steps; nothing was validated, as no data set was given"
    return f"step {outcome.progress.best_step} of {total}, the best on the validation classes of {config.dataset}"


def _write(
    meta: MetaModel,
    training: Training,
    pictures: Sequence[Path],
    outcome: Outcome,
    results: list[Result],
    folder: Path,
) -> None:
    """Model, results, charts and the card that shows them."""
    write_results(folder, results)
    datasets = list(dict.fromkeys(row.dataset for row in results))
    episodes = max((row.episodes for row in results), default=0)
    charts = [
        results_chart(
            [row for row in results if row.dataset == dataset and row.episodes == episodes],
            folder / "pictures" / (f"results-{dataset}.png" if len(datasets) > 1 else "results.png"),
        )
        for dataset in datasets
    ]
    lines = {
        name.removeprefix("validation/"): [(row["step"], row[name]) for row in outcome.progress.history if name in row]
        for name in {key for row in outcome.progress.history for key in row if key.startswith("validation/")}
    }
    if lines:
        title = "Accuracy on the validation classes (%)"
        charts.append(curves(dict(sorted(lines.items())), folder / "pictures" / "training.png", title=title))
    # First the card: saving writes a bare one where there is none.
    write_card(folder, meta.config, training=training, pictures=pictures, charts=charts)
    meta.save_pretrained(folder)
