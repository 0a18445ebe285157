"""A meta-model's results as the Hub reads them: the card's `model-index`, and `.eval_results/<data set>.yaml`."""

from __future__ import annotations

from pathlib import Path

import yaml
from huggingface_hub import EvalResult

from hf_dfml.data.registry import DATASETS
from hf_dfml.evaluation.results import Result
from hf_dfml.meta_config import MetaConfig
from hf_dfml.utils.checkpoint import atomic_write
from hf_dfml.utils.text import slug

EVAL_RESULTS_FOLDER = ".eval_results"


def own_results(config: MetaConfig) -> list[Result]:
    """The rows of the model itself; of a baseline that is among the baselines too, each row once."""
    rows: dict[tuple, Result] = {}
    for row in config.results:
        if row.method == config.method and row.metric == "accuracy":
            rows.setdefault((row.dataset, row.split, row.ways, row.shots, row.bn, row.how), row)
    return list(rows.values())


def default_rows(config: MetaConfig) -> list[Result]:
    """Those of its rows that say how well it works as it is used by default; all of them where none does."""
    how, own = config.adapt, own_results(config)
    default = (how.bn, how.head, how.flips, how.representation)
    return [row for row in own if (row.bn, row.head, row.flips, row.representation) == default] or own


def write_eval_results(folder: Path, config: MetaConfig) -> Path | None:
    """Write the Hub's `.eval_results/<data set>.yaml`; the path, or None where there is nothing to write.

    The Hub has one number for each task there, so it is that of the default adaptation; the card has all. Only data
    sets on the Hub can be named, and only newer clients (huggingface_hub 2) know the format.
    """
    try:
        from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    except ImportError:
        return None
    entries = [
        EvalResultEntry(
            dataset_id=hub_id,
            task_id=f"{row.ways}_way_{row.shots}_shot",
            value=round(row.mean, 2),
            notes=f"{_conditions(row)}, 95% CI ±{row.ci95:.2f}, seed {row.seed}",
        )
        for row in default_rows(config)
        if row.dataset in DATASETS and (hub_id := DATASETS[row.dataset].hub_id)
    ]
    if not entries:
        return None
    path = folder / EVAL_RESULTS_FOLDER / f"{slug(config.dataset or 'results')}.yaml"
    atomic_write(path, yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True))
    return path


def _conditions(row: Result) -> str:
    """How a row was obtained, in one line."""
    return f"{row.ways}-way {row.shots}-shot, {row.episodes} episodes, bn={row.bn}, head={row.how}"


def eval_result(row: Result) -> EvalResult:
    """A row as an entry of a card's `model-index`."""
    info = DATASETS.get(row.dataset)
    named = ("ways", "shots", "episodes", "bn", "head", "flips", "representation", "inner_steps", "inner_lr", "seed")
    return EvalResult(
        task_type="image-classification",
        task_name="Few-shot image classification",
        dataset_type=(info.hub_id if info else None) or row.dataset,
        dataset_name=row.dataset,
        # The Hub distinguishes results by task and data set; shots are therefore part of the configuration.
        dataset_config=f"{row.ways}-way {row.shots}-shot",
        dataset_split=row.split,
        metric_type="accuracy",
        metric_value=round(row.mean, 2),
        metric_name=f"Accuracy (%), {_conditions(row)}",
        metric_args={**{name: getattr(row, name) for name in named}, "ci95": round(row.ci95, 2)},
    )
