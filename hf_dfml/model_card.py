"""What the Hub page of a meta-model says: metadata that the Hub understands and a text made from facts alone."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from hf_dfml.classifier.card import FOLDED
from hf_dfml.data.registry import DATASETS
from hf_dfml.evaluation.heads import HEADS
from hf_dfml.evaluation.results import Result, markdown_table
from hf_dfml.hub_results import default_rows, eval_result, own_results, write_eval_results
from hf_dfml.meta_config import MetaConfig, Source
from hf_dfml.networks.info import REPRESENTATION_IN_WORDS
from hf_dfml.pool.sources.client import endpoint
from hf_dfml.pool.sources.lock import LOCK_NAME
from hf_dfml.utils.checkpoint import atomic_write
from hf_dfml.utils.provenance import scrub_command, scrub_values
from hf_dfml.utils.text import counted, slug

CARD_NAME = "README.md"
LIBRARY_NAME = "hf-dfml"
TAGS = ("hf-dfml", "hf_dfml", "data-free-meta-learning", "few-shot", "image-classification")
"""Of every card; `hf_dfml` was the library's name on the Hub first, and is what older filters look for."""
RECOVERED = (
    "Images recovered from the members of the pool, class by class. A bar below an image, and the number beside a "
    "name, is the probability that members give to the class."
)
CAPTIONS = {
    "classes": RECOVERED,
    "dissimilarity": "How unlike each other the members of the pool are, ordered by the groups they were put into.",
    "recovered": RECOVERED,
    "results": "Accuracy with 95 % intervals; the colours are the numbers of support images a class.",
    "teachers": "The same recovered images as some members of the pool see them (t-SNE of their features).",
    "training": "Accuracy on the validation classes in the course of training. Level lines are what needs no "
    "meta-learning, on the same episodes.",
    "training_set": "Some of the recovered and mixed images that the network was trained on.",
}
"""What the pictures of a run show, by the name of their file before any dash."""
THIS_REPOSITORY = "this-repository"
"""Stands in the card for the repository's id until `push_to_hub` knows it."""


@dataclass(frozen=True)
class Training:
    """The run that made a meta-model, as far as its card describes it.

    Attributes:
        command: the command line; machine paths and tokens in it are removed.
        seed: the run's seed.
        seconds: wall time of its training, without the evaluation.
        machine: see `hf_dfml.utils.provenance.describe_machine`.
        chosen: which checkpoint the weights are of ("step 120 of 200, the best of 10 on the validation classes").
        data_free: whether no real image was used (references that see data say False).
        unlabelled: whether real images without labels were used.
        started_from: the pretrained network that the meta-model started from (`--student_from`).
        answers: of black boxes, the kind of answers (`probs`, ...).
        queries: of black boxes, how many images they were sent.
        reference: the citation of the method's paper, as plain text.
    """

    command: str | None = None
    seed: int | None = None
    seconds: float | None = None
    machine: str | None = None
    chosen: str | None = None
    data_free: bool = True
    unlabelled: bool = False
    started_from: str | None = None
    answers: str | None = None
    queries: int | None = None
    reference: str | None = None


def write_card(folder: Path | str, config: MetaConfig, **options: Any) -> Path:
    """Write `README.md` and, where the Hub's client knows the format, `.eval_results/*.yaml` into a model's folder.

    Args:
        folder: the model's.
        config: its config.
        **options: of `make_card`, beside the folder.

    Returns:
        The path of the card.
    """
    path = Path(folder) / CARD_NAME
    atomic_write(path, str(make_card(config, Path(folder), **options)))
    write_eval_results(Path(folder), config)
    return path


def make_card(
    config: MetaConfig,
    folder: Path = Path(),
    *,
    training: Training | None = None,
    pictures: Mapping[Path | str, str] | Sequence[Path | str] = (),
    charts: Mapping[Path | str, str] | Sequence[Path | str] = (),
    repo_id: str | None = None,
    license: str | None = None,
) -> ModelCard:
    """The card of a meta-model.

    Args:
        config: the model's; the rows of `config.results` make the table.
        folder: the model's.
        training: the run that made it.
        pictures: image files inside `folder` (what was recovered), with a caption each; `CAPTIONS` has those of a run.
        charts: likewise, shown below the table.
        repo_id: where the model will be published, if that is known.
        license: a licence identifier of the Hub.

    Raises:
        ValueError: if a picture lies outside `folder`.
    """
    training = training or Training()
    parts = (config.method or "meta-model", config.dataset, config.architecture)
    title = repo_id.split("/")[-1] if repo_id else "-".join(slug(part) for part in parts if part)
    origin = "from pretrained classifiers"
    if config.pool:
        where = " on the Hub" if any(source.revision for source in config.pool) else ""
        origin = f"from a pool of {counted(len(config.pool), 'pretrained classifier')}{where}"
    heads = sorted({row.head or "" for row in config.results} & HEADS.keys())
    card = ModelCard.from_template(
        _metadata(config, title, license),
        template_str=resources.files(__package__).joinpath("model_card_template.md").read_text(encoding="utf-8"),
        title=title,
        origin=origin,
        method=config.method or "hf_dfml",
        reference=f" ({training.reference})" if training.reference else "",
        data_free=_sources_of_knowledge(training),
        repository=repo_id or THIS_REPOSITORY,
        adapt=config.adapt,
        seen=REPRESENTATION_IN_WORDS[config.adapt.representation],
        table=markdown_table(config.results),
        heads=", ".join(f"`{name}` ({HEADS[name].help})" for name in heads),
        takes_steps=HEADS[config.adapt.head].takes_steps,
        charts=_pictures(charts, folder),
        limits=limits(config, training),
        pictures=_pictures(pictures, folder),
        facts=_facts(config, training),
        hyper_parameters={name: _option(name, value) for name, value in scrub_values(config.method_config).items()},
        pool=[_source(source) for source in config.pool],
        lock=LOCK_NAME if (folder / LOCK_NAME).is_file() else "",
        members=counted(len(config.pool), "member"),
        folded=len(config.pool) > FOLDED,
    )
    # The template leaves several blank lines where a section is empty.
    return ModelCard(re.sub(r"\n{3,}", "\n\n", str(card)))


def _metadata(config: MetaConfig, title: str, license: str | None) -> ModelCardData:
    """The card's metadata, with a `model-index` of this model's own rows (not the baselines')."""
    hub_ids = [DATASETS[name].hub_id for name in (config.dataset or "").split(",") if name in DATASETS]
    results = [eval_result(row) for row in own_results(config)]
    members = [source.id for source in config.pool if source.revision and "/" in source.id]
    return ModelCardData(
        library_name=LIBRARY_NAME,
        pipeline_tag="image-classification",
        tags=[*TAGS, slug(config.method or "meta-model")],
        license=license,
        base_model=members or None,
        # Of the relations that the Hub knows, the one of a model that was made of several.
        base_model_relation="merge" if members else None,
        datasets=[hub_id for hub_id in hub_ids if hub_id] or None,
        metrics=["accuracy"] if results else None,
        model_name=title if results else None,
        eval_results=results or None,
    )


def _sources_of_knowledge(training: Training) -> str:
    if not training.data_free:
        return ". **This method sees real training images**: it is a reference, not a data-free result"
    sources = ["the weights of those classifiers"]
    if training.answers:
        sources = [f"answers of those classifiers ({training.answers})"]
    if training.unlabelled:
        sources.append("unlabelled images of whoever trained it")
    if training.started_from:
        sources.append(f"the network `{_cell(training.started_from)}`, from which it started")
    unused = "no labelled image" if training.unlabelled else "no training image"
    also = " and no weights were" if training.answers else " was"
    return f": {unused}{also} used, only {' and '.join(filter(None, [', '.join(sources[:-1]), sources[-1]]))}"


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
    for row in default_rows(config):
        rivals = sorted(
            (each for each in config.results if _is_prototype_baseline(row, each)), key=lambda each: each.mean
        )
        # Of each baseline what it reaches at best, however it was seen.
        found += [_comparison(row, other) for other in {each.method: each for each in rivals}.values()]
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


def _comparison(row: Result, other: Result) -> str:
    difference = row.mean - other.mean
    # Intervals that touch settle nothing: the difference is then named as open.
    if abs(difference) <= row.ci95 + other.ci95:
        verdict = "is not distinguishable from"
    else:
        verdict = f"is {abs(difference):.1f} points {'above' if difference > 0 else 'below'}"
    return (
        f"{row.ways}-way {row.shots}-shot, head={row.how}: its {row.mean:.1f} ± {row.ci95:.1f} {verdict} what the "
        f"pool gives without meta-learning, '{other.method}' ({other.mean:.1f} ± {other.ci95:.1f}, bn={other.bn}, "
        f"{other.how}), on the same episodes."
    )


def _is_prototype_baseline(row: Result, other: Result) -> bool:
    same = ("dataset", "split", "ways", "shots", "episodes", "seed")
    is_other = other.method.endswith("+ prototype") and other.method != row.method
    return is_other and all(getattr(row, name) == getattr(other, name) for name in same)


def _facts(config: MetaConfig, training: Training) -> dict[str, str]:
    seconds, queries = training.seconds, training.queries
    facts = {
        "architecture": f"`{config.architecture}`, {config.num_classes} outputs, {config.num_features} features",
        "input": "{}x{}x{} in [0, 1], normalised inside".format(*config.input_size),
        "library": f"{LIBRARY_NAME} {config.version}",
        "command": training.command and f"`{_cell(scrub_command(training.command))}`",
        "seed": None if training.seed is None else str(training.seed),
        "checkpoint": training.chosen,
        "time": None if seconds is None else f"{_duration(seconds)} of training; the evaluation is not in it",
        "queries": None
        if queries is None
        else f"{queries:,} images were sent to the classifiers, which returned {training.answers}",
        "machine": training.machine and _cell(training.machine),
        "carbon": seconds
        and training.machine
        and "not measured: the time, times the machine's power, times the carbon intensity of its grid",
    }
    return {name: value for name, value in facts.items() if value}


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


def _source(source: Source) -> str:
    if source.revision is None:
        return f"`{source.id}`"
    return f"[{source.id}]({endpoint()}/{source.id}/tree/{source.revision}) at `{source.revision[:12]}`"


def _cell(value: Any) -> str:
    """A value that neither ends a table's cell nor its code quotes."""
    return str(value).replace("|", "\\|").replace("`", "'").replace("\n", " ")


def _option(name: str, value: Any) -> str:
    """A hyper-parameter's cell: the value as the option takes it, and in words where that alone is a riddle."""
    words = f" ({REPRESENTATION_IN_WORDS['both']})" if (name, value) == ("representation", "both") else ""
    return f"`{_cell(value)}`{words}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
