"""The whole way: a pool in, an evaluated and published-ready meta-model out. Recipes are calls of it."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from hf_dfml.estimate import Cost, check_memory, cost_of_distillation, cost_of_recovery
from hf_dfml.evaluation import Adaptation, Result, print_table, results_chart, write_results
from hf_dfml.evaluation.heads.base import PAPERS_INNER_LOOP
from hf_dfml.evaluation.of_run import RunEvaluation
from hf_dfml.evaluation.reporting import beside_one_member
from hf_dfml.hub_results import default_rows
from hf_dfml.meta_model import MetaModel
from hf_dfml.meta_network import choose_network, meta_network
from hf_dfml.methods.base import Method, refuse_black_boxes
from hf_dfml.methods.inversion import RecoveryMethod
from hf_dfml.methods.pool_distillation import PoolDistillation
from hf_dfml.model_card import Training, write_card
from hf_dfml.networks.info import network_info
from hf_dfml.pool import ModelPool, TeacherPool, opening
from hf_dfml.preflight import check_disk, check_folder, check_names, check_outputs, check_push, evaluation_data
from hf_dfml.recovery.soundness import unsound_members
from hf_dfml.resuming import check_options, members_of_run, refuse_other_run
from hf_dfml.run_config import RunConfig
from hf_dfml.settings import flat
from hf_dfml.trackers import TrackedAccelerator, hyper_parameters
from hf_dfml.trainer import Outcome, Trainer
from hf_dfml.utils.compiling import computes_in_bfloat16, settled_precision
from hf_dfml.utils.folder_lock import folder_in_use
from hf_dfml.utils.memory import available_memory
from hf_dfml.utils.pictures import learning_curves
from hf_dfml.utils.processes import Processes
from hf_dfml.utils.progress import whole_run
from hf_dfml.utils.provenance import called, describe_machine, scrub_command, this_command
from hf_dfml.utils.seeding import deterministic, fork

logger = logging.getLogger(__name__)


class RunResults(list[Result]):
    """The rows of a run's evaluation.

    Attributes:
        exit_code: 0 where the run came to its end; 3, or 130 after Ctrl-C, where it was stopped and can go on.
    """

    exit_code: int = 0


def run(
    method_class: type[Method],
    method_config: Any,
    config: RunConfig,
    argv: Sequence[str] | None = None,
    *,
    show: Callable[[list[Result]], Any] = print_table,
) -> RunResults:
    """Meta-learn from a pool with one method, evaluate, write results, model, pictures and card.

    What can be refused is refused before the first second of work; see `hf_dfml.preflight`. Rows of results are
    written as they are measured, so that a failure later loses none.

    Args:
        method_class: a class of `hf_dfml.methods` or of your own; see docs/extending.md.
        method_config: its hyper-parameters.
        config: the run.
        argv: the command line that card and `results.json` name; this process's by default.
        show: is given all rows at the end of the evaluation.

    Returns:
        The rows of the evaluation; none without a data set, or where the run was stopped before its end.

    Raises:
        FileExistsError: if another process is using the output folder, or it holds another run.
    """
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    deterministic(config.seed)
    accelerator = TrackedAccelerator(
        config.output_dir,
        config.log_with,
        mixed_precision=settled_precision(config.mixed_precision),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=config.patience_minutes))],
    )
    _check_launch(accelerator, config)
    check_names(config)
    method_class.check_names(method_config)
    processes = Processes(accelerator)
    with ExitStack() as until_the_end:
        folder = Path(config.output_dir)
        processes.once(lambda: _claim(folder, config, until_the_end))
        return _run(method_class, method_config, config, accelerator, shlex.join(argv) if argv else None, show)


def _claim(folder: Path, config: RunConfig, until_the_end: ExitStack) -> None:
    check_folder(folder)
    refuse_other_run(folder, config.resume_from_checkpoint)
    until_the_end.enter_context(folder_in_use(folder))
    if config.push_to_hub:
        check_push(config.push_to_hub, private=config.private)


def _run(
    method_class: type[Method],
    method_config: Any,
    config: RunConfig,
    accelerator: TrackedAccelerator,
    command: str | None,
    show: Callable[[list[Result]], Any],
) -> RunResults:
    command = command or this_command()
    processes, folder = Processes(accelerator), Path(config.output_dir)
    if config.black_box != "none" or opening.is_service(config.pool):
        refuse_black_boxes(method_class)

    def resumable(members: ModelPool) -> None:
        check_options(folder, config.resume_from_checkpoint, method_class.config_for(method_config, members))

    pool = open_teachers(config, processes.device, resumable)
    method_config = method_class.config_for(method_config, pool)
    choice = choose_network(pool, config)
    network = meta_network(pool, config, choice).to(processes.device)
    method = method_class(method_config, network)
    method.check_model()
    check_outputs(method, pool)
    shared = f", divided among {processes.count} processes" if processes.count > 1 else ""
    accelerator.print(f"{method.name}: {_teachers(pool)}, {method.num_steps} steps on {processes.device}{shared}.")
    if config.mixed_precision:
        accelerator.print(_precision(accelerator))
    evaluation = RunEvaluation(config, adaptation_of(method, config), processes)
    if choice.reason:
        accelerator.print(f"Student: {choice.arch} of {choice.image_size} pixels, {choice.reason}.")
    size, baselines = network_info(network).image_size, config.baselines and not pool.answers_only
    data = evaluation_data(config, evaluation.protocol, size, pool.image_size if baselines else 0)
    kept = method_class.kept_bytes(method_config, pool, size)
    processes.once(lambda: check_disk(folder, network, kept, config, method.num_steps))
    cost = None if (folder / "checkpoints").exists() else cost_of(method, pool, kept)
    if cost is not None:
        accelerator.print(f"Estimate: {cost}.")
        check_memory(cost, available_memory() if processes.device.type == "cpu" else None)
    accelerator.config = hyper_parameters(
        method=method.name, options=method_config, run=config, members=len(pool), pool=scrub_command(config.pool)
    )
    results = RunResults()

    def record(rows: list[Result]) -> None:
        results.extend(rows)
        whole.next_piece()
        if processes.is_main:
            write_results(folder, results)

    parts = ["setup", "steps", *["evaluation"] * bool(data.validation)]
    with whole_run(method.name, parts, enabled=processes.is_main) as whole:
        # With the first checkpoint, so that a run that is interrupted can go on with the same members.
        lock = partial(pool.lock, config.output_dir)
        validate = evaluation.validation(data.validation, partial(whole.expect, "evaluation"))
        outcome = Trainer(method, pool, config, accelerator, validate, lock, whole=whole).fit()
        results.exit_code = outcome.exit_code
        if outcome.finished and data.validation:
            whole.begin("evaluation", pieces=evaluation.pieces(len(data.validation)))
            try:
                evaluation.evaluate(
                    outcome.model,
                    data.validation,
                    data.level(),
                    data.test(),
                    pool,
                    method=method.name,
                    command=command,
                    record=record,
                )
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"stopped by Ctrl-C in the evaluation. The training is done and kept in {folder}: the same "
                    "command and --resume_from_checkpoint latest evaluate it again."
                ) from None
    if results and processes.is_main:
        show(results)
    accelerator.end_training()  # From here on each process is alone.
    if outcome.finished and processes.is_main:
        _publish(outcome, method, pool, config, data.dataset, results, evaluation, command, accelerator)
    return results


def cost_of(method: Method, pool: TeacherPool, kept: int) -> Cost | None:
    """What a run is expected to cost; None where that is not known, as of black boxes and of users' own methods.

    Args:
        method: with its options and its meta-model.
        pool: the teachers.
        kept: bytes of images that the method keeps, at most.
    """
    options = flat(method.config)
    if pool.answers_only:
        return None
    if isinstance(method, PoolDistillation):
        return cost_of_distillation(pool, method.model, options)
    if not isinstance(method, RecoveryMethod):
        return None
    return cost_of_recovery(pool, method.model, options, kept, most=None if method.whole_tasks else method.ways)


def _publish(
    outcome: Outcome,
    method: Method,
    pool: TeacherPool,
    config: RunConfig,
    dataset: str | None,
    results: list[Result],
    evaluation: RunEvaluation,
    command: str,
    accelerator: Accelerator,
) -> None:
    """Write lock file, results, model, pictures and card, and push them if that was asked for."""
    folder = Path(config.output_dir)
    pool.lock(folder)  # Again: it now has the hashes of what was fetched on the way.
    meta = MetaModel.of(
        outcome.model,
        method=method.name,
        method_config=flat(method.config),
        pool=pool,
        dataset=dataset,
        results=results,
        adapt=evaluation.adapt,
    )
    training = Training(
        command=command,
        seed=config.seed,
        seconds=outcome.progress.seconds,
        machine=describe_machine(accelerator.device),
        chosen=_chosen(outcome, method.num_steps, dataset),
        data_free=method.data_free,
        unlabelled=method.unlabelled,
        started_from=config.student_from and called(config.student_from),
        answers=pool.output,
        queries=pool.queries.total if pool.queries else None,
        reference=method.paper.citation if method.paper else None,
    )
    # What took longest first: a picture that cannot be drawn costs neither results nor weights.
    write_results(folder, results)
    meta.save_pretrained(folder)
    pictures = method.pictures(folder / "pictures")
    charts = _charts(outcome, results, evaluation.lines, folder)
    write_card(folder, meta.config, training=training, pictures=pictures, charts=charts)
    if pool.queries:
        accelerator.print(f"The black boxes were sent {pool.queries.total:,} images.")
    if gained := beside_one_member(default_rows(meta.config), results):
        accelerator.print(gained)
    accelerator.print(f"Wrote the meta-model, its card and its pictures to {folder}.")
    if config.push_to_hub:
        accelerator.print(f"Published: {meta.push_to_hub(config.push_to_hub, private=config.private, folder=folder)}")


def adaptation_of(method: Method, config: RunConfig) -> Adaptation:
    """How a run's meta-model is adapted in validations, in the first rows of the evaluation and by default."""
    how = method.adaptation
    if config.eval_inner_loop == "papers":
        how = how.but(steps=PAPERS_INNER_LOOP[0], lr=PAPERS_INNER_LOOP[1])
    return how.but(steps=config.eval_inner_steps, lr=config.eval_inner_lr)


def open_pool(config: RunConfig, before_asking: Callable[[ModelPool], None] | None = None) -> ModelPool:
    """The usable members of `config.pool`; what cannot be used is named and left out.

    Args:
        config: the run.
        before_asking: is shown the members before they answer for the first time, which takes a while.

    Raises:
        ValueError: if no pool was named or none of its members can be used.
    """
    pool = ModelPool.open(config.pool)
    pool = pool.with_limits(memory_gb=config.pool_memory_gb, disk_gb=config.pool_disk_gb or None).resolve()
    usable = pool[: config.num_members or None].usable()
    if config.check_members and config.black_box == "none":
        if before_asking:
            before_asking(usable)
        usable = members_of_run(usable, config) or sound(usable, config.seed)
    return usable.pinned()


def sound(pool: ModelPool, seed: int) -> ModelPool:
    """The members worth learning from; a warning says of each other why not. Not asked: those not on this disk yet."""
    asked = pool.filter(lambda entry: entry.on_disk)
    if away := len(pool) - len(asked):
        logger.warning("Not checked, as their weights are not on this disk yet: %d of %d members.", away, len(pool))
    found = unsound_members(asked, fork(seed, "soundness")) if len(asked) > 1 else {}
    for id, reason in found.items():
        logger.warning("Pool member left out: %s: %s. --check_members false keeps it.", id, reason)
    return pool.filter(lambda entry: entry.id not in found) if found else pool


def open_teachers(
    config: RunConfig, device: torch.device | str = "cpu", before_asking: Callable[[ModelPool], None] | None = None
) -> TeacherPool:
    """The members of `config.pool`, as black boxes if they are to be taken for such, or the service there.

    Args:
        config: the run.
        device: where the members are to be.
        before_asking: see `open_pool`.

    Raises:
        ValueError: as `open_pool`, or if a service has another output than was asked for.
    """
    budget = config.max_queries or None
    if opening.is_service(config.pool):
        service = opening.open_pool(config.pool, max_queries=budget)
        if config.black_box not in ("none", service.output):
            raise ValueError(
                f"The output of {config.pool} is {service.output}, not {config.black_box}: leave --black_box out."
            )
        return service[: config.num_members or None].to(device)
    members = open_pool(config, before_asking).to(device)
    if config.black_box == "none":
        return members
    return members.as_black_box(config.black_box, max_queries=budget, top_k=config.top_k)


def _teachers(pool: TeacherPool) -> str:
    return f"{len(pool)} black boxes ({pool.output})" if pool.answers_only else f"{len(pool)} teachers"


def _precision(accelerator: Accelerator) -> str:
    """What is computed in, and whether the device has instructions for it."""
    fast = computes_in_bfloat16(accelerator.device)
    if accelerator.mixed_precision == "no":
        return "Precision: float32" + ("." if fast else ": this device has no instructions for bfloat16.")
    return "Precision: bfloat16" + (
        "." if fast else ", for which this device has no instructions: --mixed_precision no is several times faster."
    )


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


def _chosen(outcome: Outcome, total: int, dataset: str | None) -> str:
    if outcome.progress.best_step < 0:
        return f"the last of {total} steps; nothing was validated, as no data set was given"
    return f"step {outcome.progress.best_step} of {total}, the best on the validation classes of {dataset}"


def _charts(
    outcome: Outcome, results: list[Result], baselines: Mapping[str, Mapping[str, float]], folder: Path
) -> list[Path]:
    """The rows of the evaluation as bars, and the course of the validation beside the baselines, in `folder`."""
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
        for name in sorted({key for row in outcome.progress.history for key in row if key.startswith("validation/")})
    }
    if lines:
        title = "Accuracy on the validation classes (%)"
        training = folder / "pictures" / "training.png"
        charts.append(learning_curves(lines, training, baselines=baselines, title=title))
    return charts
