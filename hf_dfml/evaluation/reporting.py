"""The one look at the test classes: rows of a meta-model under several protocols, beside those of the baselines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from hf_dfml.data.few_shot import FewShotDataset
from hf_dfml.evaluation.baselines import evaluate_baselines, pool_kind
from hf_dfml.evaluation.heads import HEADS, Adaptation
from hf_dfml.evaluation.meta_testing import evaluate_each
from hf_dfml.evaluation.protocol import EvaluationProtocol, check_episodes
from hf_dfml.evaluation.results import (
    RESULTS_NAME,
    Record,
    Result,
    ignore,
    merged,
    print_table,
    read_results,
    write_results,
)
from hf_dfml.pool.model_pool import ModelPool
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.utils.processes import ALONE, Processes
from hf_dfml.utils.text import counted


def with_comparison(protocol: EvaluationProtocol) -> list[EvaluationProtocol]:
    """The protocol, and before it that of the head that its own is compared with, on the same episodes."""
    other = HEADS[protocol.head].compared_with
    return [replace(protocol, head=other, options=None), protocol] if other else [protocol]


def protocols_of_run(
    protocol: EvaluationProtocol, chosen: Sequence[Adaptation], icfil_episodes: int = 0
) -> list[EvaluationProtocol]:
    """Under what a run's meta-model is evaluated.

    Args:
        protocol: episodes, and the papers' adaptation.
        chosen: the method's own adaptation, whose rows come first, and others, whose rows come last.
        icfil_episodes: of another evaluation, with and without PURER's calibration, with the steps of the method's own
            adaptation; 0: none.
    """
    usual = protocol.adaptation
    common = [usual, replace(usual, bn="transductive"), replace(usual, head="prototype")]
    protocols = [protocol.under(how) for how in (chosen[0], *common, *chosen[1:])]
    if icfil_episodes:
        own = replace(protocol, inner_steps=chosen[0].steps, inner_lr=chosen[0].lr)
        protocols += with_comparison(replace(own, episodes=icfil_episodes, head="icfil"))
    return [each for index, each in enumerate(protocols) if each not in protocols[:index]]


def beside_one_member(own: Sequence[Result], rows: Sequence[Result]) -> str | None:
    """What a run has gained over its best member alone, in a sentence; None where that was not measured beside it.

    Args:
        own: rows of the meta-model as it is used by default.
        rows: all rows of the run.
    """
    for row in sorted(own, key=lambda each: -(each.shots or 0)):
        same = [each for each in rows if (each.dataset, each.shots) == (row.dataset, row.shots)]
        alone = next((each for each in same if each.method.endswith("member + prototype")), None)
        if alone is None:
            continue
        gain, images = row.mean - alone.mean, counted(row.shots or 0, "image")
        shown = f"the best member alone ({row.mean:.1f} and {alone.mean:.1f} % with {images} a class)"
        if abs(gain) <= row.ci95 + alone.ci95:
            return f"Not distinguishable from {shown}."
        if gain > 0:
            return f"{gain:.1f} points above {shown}."
        return (
            f"Warning: {-gain:.1f} points below {shown}. Nothing was gained: adapt the members as they are "
            "(hf-dfml adapt POOL --support PHOTOS), or see docs/better_accuracy.md."
        )
    return None


def meta_test(
    model: nn.Module,
    datasets: Iterable[FewShotDataset],
    protocols: Sequence[EvaluationProtocol],
    pool: TeacherPool,
    *,
    method: str,
    baselines: EvaluationProtocol | None = None,
    command: str | None = None,
    processes: Processes = ALONE,
    record: Record = ignore,
) -> list[Result]:
    """Evaluate a run's meta-model and the baselines on test classes; protocols share passes (`evaluate_each`).

    Args:
        model: the meta-model's network.
        datasets: test classes.
        protocols: see `protocols_of_run`.
        pool: its teachers. Without their weights and features there are no baselines.
        method: how the table calls the model.
        baselines: their protocol; None for no baselines.
        command: what a user types to get the rows again.
        processes: among which each evaluation is divided.
        record: is given each list of new rows as it is measured.
    """
    device, kind = next(model.parameters()).device, pool_kind(pool)
    results: list[Result] = []

    def add(rows: list[Result]) -> None:
        results.extend(rows)
        record(rows)

    for dataset in datasets:
        each = evaluate_each(model, dataset, protocols, method=method, command=command, processes=processes)
        for rows in each:
            add([replace(row, pool=kind) for row in rows])
        if baselines and not pool.answers_only:
            evaluate_baselines(
                pool,  # type: ignore[arg-type]  # Members that are seen whole are those of a `ModelPool`.
                dataset,
                baselines,
                flips=any(each.flips for each in protocols),
                device=device,
                command=command,
                processes=processes,
                record=add,
            )
    return results


def evaluate_stored(
    network: nn.Module | None,
    dataset: FewShotDataset,
    protocol: EvaluationProtocol,
    folder: Path | str,
    *,
    method: str = "",
    pool: ModelPool | None = None,
    kind: str | None = None,
    flips: bool = False,
    model: str | None = None,
    show: bool = True,
) -> list[Result]:
    """Evaluate a stored meta-model, a pool, or both; prints the table and adds its rows to `results.json`.

    Rows of other evaluations and contestants that stand there already are kept, the same ones are replaced.

    Args:
        network: the meta-model's; None for the pool alone.
        dataset: classes of the evaluation.
        protocol: the protocol. The table has also the rows of the head that the protocol's is compared with.
        folder: where `results.json` is.
        method: the method that made it.
        pool: usable members for the baselines.
        kind: what kind of pool the meta-model was learnt from (`pool_kind`), where that is known.
        flips: whether the pool's rows on features are made with flips too.
        model: what was evaluated, where the folder is not its own: rows of another one are kept.
        show: whether the table is printed.
    """
    # First, as what cannot be read, written or drawn must not cost an evaluation.
    check_episodes(dataset, protocol)
    Path(folder).mkdir(parents=True, exist_ok=True)
    earlier = read_results(folder) if (Path(folder) / RESULTS_NAME).is_file() else []
    results: list[Result] = []

    def record(rows: list[Result]) -> None:
        results.extend(replace(row, model=model) for row in rows)
        write_results(folder, merged(earlier, results))

    protocols = with_comparison(protocol)
    if network is not None:
        for rows in evaluate_each(network, dataset, protocols, method=method):
            record([replace(row, pool=kind) for row in rows])
    if pool is not None:
        evaluate_baselines(pool, dataset, protocols[0], flips=flips, record=record)
    if show:
        print_table(results)
        kept = len(merged(earlier, results)) - len(results)
        beside = f", beside {counted(kept, 'earlier row')}" if kept else ""
        print(f"Wrote {Path(folder) / RESULTS_NAME}{beside}.")
    return results
