"""What the Hub page of a meta-model says: metadata that the Hub understands and a text made from facts alone."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_dfml.data.registry import DATASETS
from hf_dfml.evaluation.heads import HEADS
from hf_dfml.evaluation.results import Result, markdown_table
from hf_dfml.meta_config import MetaConfig, Source
from hf_dfml.pool.sources.client import endpoint
from hf_dfml.utils.checkpoint import atomic_write
from hf_dfml.utils.provenance import scrub_command
from hf_dfml.utils.text import counted

CARD_NAME = "README.md"
EVAL_RESULTS_FOLDER = ".eval_results"
TEMPLATE = "model_card_template.md"
CAPTIONS = {
    "dissimilarity": "How unlike each other the members of the pool are, ordered by the groups they were put into.",
    "recovered": "Images recovered from the members of the pool, one row for each class shown.",
    "results": "Accuracy with 95 % intervals; the colours are the numbers of support images a class.",
    "teachers": "The same recovered images as some members of the pool see them (t-SNE of their features).",
    "training": "Accuracy on the validation classes in the course of training.",
    "training_set": "Some of the recovered and mixed images that the network was trained on.",
}
"""What the pictures of a run show, by the name of their file before any dash."""
THIS_REPOSITORY = "this-repository"
"""Stands in the card for the repository's id until `push_to_hub` knows it."""


@dataclass(frozen=True)
class Training:
    """The run that made a meta-model, as far as its card tells it.

    Attributes:
        command: the command line; machine paths and tokens in it are removed.
        seed: the run's seed.
        seconds: wall time of its training, without the evaluation.
        machine: see `hf_dfml.utils.provenance.describe_machine`.
        chosen: which checkpoint the weights are of ("step 120 of 200, the best of 10 on the validation classes").
        data_free: whether no real image was used (references that see data say False).
        answers: of black boxes, what they told (`probs`, ...).
        queries: of black boxes, how many images they were sent.
        reference: the paper of the method.
    """

    command: str | None = None
    seed: int | None = None
    seconds: float | None = None
    machine: str | None = None
    chosen: str | None = None
    data_free: bool = True
    answers: str | None = None
    queries: int | None = None
    reference: str | None = None


def write_card(
    folder: Path | str,
    config: MetaConfig,
    *,
    training: Training | None = None,
    pictures: Mapping[Path | str, str] | Sequence[Path | str] = (),
    charts: Mapping[Path | str, str] | Sequence[Path | str] = (),
    repo_id: str | None = None,
    license: str | None = None,
) -> Path:
    """Write `README.md` and, where the Hub's client knows the format, `.eval_results/*.yaml` into `folder`.

    Args:
        folder: the model's.
        config: its config; the rows of `config.results` make the table.
        training: the run that made it.
        pictures: image files inside `folder` (what was recovered), with a caption each; `CAPTIONS` has those of a run.
        charts: likewise, shown below the table.
        repo_id: where the model will be published, if that is known.
        license: a licence identifier of the Hub.

    Returns:
        The path of the card.

    Raises:
        ValueError: if a picture lies outside `folder`.
    """
    folder = Path(folder)
    training = training or Training()
    text = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    where = " on the Hub" if any(source.revision for source in config.pool) else ""
    card = ModelCard.from_template(
        card_data(config, repo_id=repo_id, license=license),
        template_str=text,
        title=_title(config, repo_id),
        origin=f"from a pool of {counted(len(config.pool), 'pretrained classifier')}{where}"
        if config.pool
        else "from pretrained classifiers",
        method=config.method or "hf_dfml",
        reference=f" ({training.reference})" if training.reference else "",
        data_free=_sources_of_knowledge(training),
        repository=repo_id or THIS_REPOSITORY,
        adapt=config.adapt,
        table=markdown_table(config.results),
        heads=", ".join(
            f"`{name}` ({HEADS[name].help})"
            for name in sorted({row.head or "" for row in config.results} & HEADS.keys())
        ),
        takes_steps=HEADS[config.adapt.head].takes_steps,
        charts=_pictures(charts, folder),
        limits=limits(config, training),
        pictures=_pictures(pictures, folder),
        facts=_facts(config, training),
        hyper_parameters={name: _cell(value) for name, value in config.method_config.items()},
        pool=[_source(source) for source in config.pool],
        members=counted(len(config.pool), "member"),
    )
    # The template leaves several blank lines where a section is empty.
    atomic_write(folder / CARD_NAME, re.sub(r"\n{3,}", "\n\n", str(card)))
    write_eval_results(folder, config)
    return folder / CARD_NAME


def _sources_of_knowledge(training: Training) -> str:
    if not training.data_free:
        return ". **This method sees real training images**: it is a reference, not a data-free result"
    if training.answers:
        return f": no training image and no weights were used, only answers of those classifiers ({training.answers})"
    return ": no training image was used, only the weights of those classifiers"


def card_data(config: MetaConfig, *, repo_id: str | None = None, license: str | None = None) -> ModelCardData:
    """The card's metadata, with a `model-index` of this model's own rows (not the baselines')."""
    hub_ids = [DATASETS[name].hub_id for name in (config.dataset or "").split(",") if name in DATASETS]
    own = own_results(config)
    members = [source.id for source in config.pool if source.revision and "/" in source.id]
    return ModelCardData(
        library_name="hf_dfml",
        pipeline_tag="image-classification",
        tags=["hf_dfml", "data-free-meta-learning", "few-shot", "image-classification", _slug(config.method)],
        license=license,
        base_model=members or None,
        datasets=[hub_id for hub_id in hub_ids if hub_id] or None,
        metrics=["accuracy"] if own else None,
        model_name=_title(config, repo_id) if own else None,
        eval_results=[_eval_result(row) for row in own] or None,
    )


def own_results(config: MetaConfig) -> list[Result]:
    """The rows of the model itself; of a baseline that is among the baselines too, each row once."""
    rows: dict[tuple, Result] = {}
    for row in config.results:
        if row.method == config.method and row.metric == "accuracy":
            rows.setdefault((row.dataset, row.split, row.ways, row.shots, row.bn, row.how), row)
    return list(rows.values())


def write_eval_results(folder: Path, config: MetaConfig) -> Path | None:
    """Write the Hub's `.eval_results/<data set>.yaml`; the path, or None where there is nothing to write.

    Only data sets on the Hub can be named there, and only newer clients (huggingface_hub 2) know the format.
    """
    try:
        from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    except ImportError:
        return None
    entries = [
        EvalResultEntry(
            dataset_id=DATASETS[row.dataset].hub_id or "",
            task_id=f"{row.ways}_way_{row.shots}_shot",
            value=round(row.mean, 2),
            notes=f"{conditions(row)}, 95% CI ±{row.ci95:.2f}, seed {row.seed}",
        )
        for row in own_results(config)
        if row.dataset in DATASETS and DATASETS[row.dataset].hub_id
    ]
    if not entries:
        return None
    path = folder / EVAL_RESULTS_FOLDER / f"{_slug(config.dataset or 'results')}.yaml"
    atomic_write(path, yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True))
    return path


def limits(config: MetaConfig, training: Training) -> list[str]:
    """What a reader must know before using the model, each sentence from a fact of the config."""
    _, height, width = config.input_size
    found = []
    own = own_results(config)
    if not own:
        found.append(
            "How well it works is not known: it was made without labelled images, so that the last checkpoint was "
            "taken and no evaluation was made."
        )
    how = config.adapt
    by_default = [row for row in own if (row.bn, row.head, row.flips) == (how.bn, how.head, how.flips)]
    for row in by_default or own:
        found += [_comparison(row, other) for other in config.results if _is_prototype_baseline(row, other)]
    for split in sorted({row.split for row in own} - {"test"}):
        found.append(
            f"The evaluation was made on {split} classes, which choices were made on too: expect less on new classes."
        )
    if own:
        modes = sorted({f"bn={row.bn}, head={row.how}" for row in own})
        found.append(f"Measured with {' and '.join(modes)} only; other modes of `adapt` can do better or worse.")
        sets = ", ".join(sorted({row.dataset for row in own}))
        found.append(f"Measured on {sets} only. Other kinds of images were not tried.")
        seed = f" (seed {training.seed})" if training.seed is not None else ""
        found.append(f"One training run{seed}: the intervals are over episodes, not over runs.")
    found.append(f"Images of any size are resized to {height}x{width} pixels, without keeping their aspect.")
    return found


def conditions(row: Result) -> str:
    """How a row was obtained, in one line."""
    return f"{row.ways}-way {row.shots}-shot, {row.episodes} episodes, bn={row.bn}, head={row.how}"


def _comparison(row: Result, other: Result) -> str:
    difference = row.mean - other.mean
    # Intervals that touch settle nothing: the difference is then named as open.
    if abs(difference) <= row.ci95 + other.ci95:
        verdict = "is not distinguishable from"
    else:
        verdict = f"is {abs(difference):.1f} points {'above' if difference > 0 else 'below'}"
    return (
        f"{row.ways}-way {row.shots}-shot, head={row.how}: its {row.mean:.1f} ± {row.ci95:.1f} {verdict} what the "
        f"pool gives without meta-learning, '{other.method}' ({other.mean:.1f} ± {other.ci95:.1f}, bn={other.bn}), on "
        "the same episodes."
    )


def _is_prototype_baseline(row: Result, other: Result) -> bool:
    same_evaluation = (row.dataset, row.split, row.ways, row.shots, row.episodes, row.seed) == (
        other.dataset,
        other.split,
        other.ways,
        other.shots,
        other.episodes,
        other.seed,
    )
    return same_evaluation and other.method.endswith("+ prototype") and other.method != row.method


def _eval_result(row: Result) -> EvalResult:
    info = DATASETS.get(row.dataset)
    return EvalResult(
        task_type="image-classification",
        task_name="Few-shot image classification",
        dataset_type=(info.hub_id if info else None) or row.dataset,
        dataset_name=row.dataset,
        # The Hub tells results apart by task and data set; shots and modes are therefore part of the configuration.
        dataset_config=f"{row.ways}-way {row.shots}-shot",
        dataset_split=row.split,
        metric_type="accuracy",
        metric_value=round(row.mean, 2),
        metric_name=f"Accuracy (%), {conditions(row)}",
        metric_args={
            "ways": row.ways,
            "shots": row.shots,
            "episodes": row.episodes,
            "bn": row.bn,
            "head": row.head,
            "flips": row.flips,
            "inner_steps": row.inner_steps,
            "inner_lr": row.inner_lr,
            "ci95": round(row.ci95, 2),
            "seed": row.seed,
        },
    )


def _facts(config: MetaConfig, training: Training) -> dict[str, str]:
    facts = {
        "architecture": f"`{config.architecture}`, {config.num_classes} outputs, {config.num_features} features",
        "input": "{}x{}x{} in [0, 1], normalised inside".format(*config.input_size),
        "library": f"hf_dfml {config.version}",
    }
    if training.command:
        facts["command"] = f"`{_cell(scrub_command(training.command))}`"
    if training.seed is not None:
        facts["seed"] = str(training.seed)
    if training.chosen:
        facts["checkpoint"] = training.chosen
    if training.seconds is not None:
        facts["time"] = f"{_duration(training.seconds)} of training; the evaluation is not in it"
    if training.queries is not None:
        facts["queries"] = f"{training.queries:,} images were sent to the classifiers, which told {training.answers}"
    if training.machine:
        facts["machine"] = _cell(training.machine)
    return facts


def _pictures(given: Mapping[Path | str, str] | Sequence[Path | str], folder: Path) -> list[dict[str, str]]:
    captions = given if isinstance(given, Mapping) else {path: _caption(Path(path).stem) for path in given}
    shown = []
    for path, caption in captions.items():
        relative = os.path.relpath(path, folder)
        if relative.startswith(".."):
            raise ValueError(
                f"Picture {path} is outside the model's folder {folder}: a card shows files beside it only."
            )
        shown.append({"path": Path(relative).as_posix().replace(" ", "%20"), "caption": caption})
    return shown


def _caption(name: str) -> str:
    kind, _, of = name.partition("-")
    text = CAPTIONS.get(kind, f"{kind.replace('_', ' ').capitalize()}.")
    return f"{of}: {text}" if of else text


def _title(config: MetaConfig, repo_id: str | None) -> str:
    parts = [config.method or "meta-model", config.dataset, config.architecture]
    return repo_id.split("/")[-1] if repo_id else "-".join(_slug(part) for part in parts if part)


def _source(source: Source) -> str:
    if source.revision is None:
        return f"`{source.id}`"
    return f"[{source.id}]({endpoint()}/{source.id}/tree/{source.revision}) at `{source.revision[:12]}`"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-") or "meta-model"


def _cell(value: Any) -> str:
    """A value that neither ends a table's cell nor its code quotes."""
    return str(value).replace("|", "\\|").replace("`", "'").replace("\n", " ")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
