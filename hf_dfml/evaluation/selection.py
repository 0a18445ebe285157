"""What is chosen on the validation classes: the snapshot of a run, and the head that its meta-model has by default."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from torch import nn

from hf_dfml.data.few_shot import FewShotDataset
from hf_dfml.evaluation.baselines import all_features, best_features, evaluate_baselines, random_init
from hf_dfml.evaluation.heads import HEADS, Adaptation
from hf_dfml.evaluation.heads.base import BATCH_NORMS, REPRESENTATIONS, BatchNorm
from hf_dfml.evaluation.meta_testing import evaluate, evaluate_each
from hf_dfml.evaluation.protocol import EvaluationProtocol
from hf_dfml.evaluation.results import Result
from hf_dfml.networks.info import network_info
from hf_dfml.pool.model_pool import ModelPool
from hf_dfml.utils.processes import ALONE, Processes


def validation(
    datasets: Sequence[FewShotDataset],
    protocol: EvaluationProtocol,
    how: Adaptation,
    processes: Processes = ALONE,
) -> Callable[[nn.Module], dict[str, float]]:
    """A function that scores a snapshot by adapting it, as `how` says, to episodes of the validation classes.

    Args:
        datasets: validation classes.
        protocol: episodes.
        how: of the adaptation.
        processes: among which each evaluation is divided.

    Returns:
        From a network to its accuracy, in percent, for each data set and number of shots.
    """
    protocol = protocol.under(how)

    def validate(model: nn.Module) -> dict[str, float]:
        rows = [
            row
            for dataset in datasets
            for row in evaluate(model, dataset, protocol, method="validation", progress=False, processes=processes)
        ]
        return _means(rows, datasets)

    return validate


def level_lines(
    pool: ModelPool, datasets: Sequence[FewShotDataset], protocol: EvaluationProtocol, processes: Processes = ALONE
) -> dict[str, dict[str, float]]:
    """What a run's validation curve must beat: baselines on the episodes of the validation.

    Args:
        pool: the teachers.
        datasets: validation classes.
        protocol: their episodes, and the adaptation of random weights.
        processes: among which each evaluation is divided.

    Returns:
        For `Random init`, the best member and all members the accuracy, in percent, under the names of `validation`.
    """
    lines: dict[str, dict[str, float]] = {}
    for dataset in datasets:
        rows = evaluate_baselines(
            pool,
            dataset,
            protocol,
            baselines=(random_init, best_features, all_features),
            device=pool.device,
            progress=False,
            processes=processes,
        )
        for row in rows:
            lines.setdefault(row.method, {})[_name(row, datasets)] = row.mean
    return lines


def _means(rows: Iterable[Result], datasets: Sequence[FewShotDataset]) -> dict[str, float]:
    return {_name(row, datasets): row.mean for row in rows}


def _name(row: Result, datasets: Sequence[FewShotDataset]) -> str:
    return f"{row.dataset} {row.shots}-shot" if len(datasets) > 1 else f"{row.shots}-shot"


def best_head(
    model: nn.Module,
    datasets: Sequence[FewShotDataset],
    protocol: EvaluationProtocol,
    processes: Processes = ALONE,
    *,
    heads: Collection[str] | None = None,
    norms: Sequence[BatchNorm] = BATCH_NORMS[:2],
) -> Adaptation:
    """The default of `MetaModel.adapt`: the inductive adaptation that is best on the validation classes.

    Those on features are made of the same passes of the images (`evaluate_each`).

    Args:
        model: the meta-model's network.
        datasets: validation classes.
        protocol: episodes; the steps of heads that adapt the network.
        processes: among which each evaluation is divided.
        heads: names of the heads to choose from; None: all that may be a default.
        norms: treatments of batch norm to choose from.
    """
    ours = protocol.adaptation
    representations = REPRESENTATIONS if network_info(model).answers else REPRESENTATIONS[:1]
    candidates = [
        replace(ours, head=name, bn=bn, flips=flips, representation=representation)
        for name, head in sorted(HEADS.items())
        if (name in heads if heads is not None else head.by_default)
        for representation in (representations if head.on_features else REPRESENTATIONS[:1])
        for flips in ((False, True) if head.on_features else (False,))
        for bn in norms
    ]
    protocols = [protocol.under(how) for how in candidates]
    found = [
        list(evaluate_each(model, dataset, protocols, method="validation", progress=False, processes=processes))
        for dataset in datasets
    ]
    scores = [
        sum(_means([row for rows in found for row in rows[place]], datasets).values())
        for place in range(len(candidates))
    ]
    return candidates[scores.index(max(scores))]
