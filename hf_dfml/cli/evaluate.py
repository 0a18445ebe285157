"""`hf-dfml evaluate` and `hf-dfml adapt`: what is done with a finished meta-model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_dfml.cli.options import DataDir, Seed


def evaluate(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a meta-model.")],
    dataset: Annotated[str, typer.Option(help="Data set of the evaluation.")],
    pool: Annotated[str | None, typer.Option(help="Pool for the baselines printed beside the meta-model.")] = None,
    shots: Annotated[list[int], typer.Option(help="Support images a class: --shots 1 5.")] = [1, 5],  # noqa: B006
    ways: Annotated[int, typer.Option(help="Classes of an episode.")] = 5,
    episodes: Annotated[int, typer.Option(help="Number of episodes.")] = 600,
    bn: Annotated[
        str | None,
        typer.Option(help="Batch-norm statistics: support, running or transductive; the model's own by default."),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(help="Head: finetune, prototype, mirrored, linear or icfil (slow); the model's own by default."),
    ] = None,
    split: Annotated[str, typer.Option(help="Classes: validation while you develop, test once at the end.")] = "test",
    output_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where results.json goes, beside the rows of earlier evaluations; a local model's by default."
        ),
    ] = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
) -> None:
    """Measure mean accuracy and 95 % interval over episodes of classes that no member has seen."""
    from hf_dfml.evaluation import EvaluationProtocol
    from hf_dfml.evaluation.in_runs import evaluate_meta_model
    from hf_dfml.meta_model import MetaModel

    meta = MetaModel.from_pretrained(model)
    own = meta.config.adapt
    adaptation: dict = {"bn": bn or own.bn, "head": head or own.head, "inner_steps": own.steps, "inner_lr": own.lr}
    protocol = EvaluationProtocol(ways=ways, shots=shots, episodes=episodes, seed=seed, split=split, **adaptation)
    folder = output_dir or Path(model if Path(model).is_dir() else ".") / "evaluations"
    evaluate_meta_model(meta, dataset, protocol, folder, pool=pool, data_dir=data_dir)


def adapt(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a meta-model.")],
    support: Annotated[Path, typer.Option(help="Folder with one folder of example images for each class.")],
    query: Annotated[Path, typer.Option(help="An image, or a folder of images, to classify.")],
    head: Annotated[
        str | None,
        typer.Option(help="finetune, prototype, mirrored, linear or icfil; the model's own choice by default."),
    ] = None,
) -> None:
    """Learn new classes from a few pictures of each and classify others."""
    from hf_dfml.pipeline import adapt_to_folder

    for path, label, probability in adapt_to_folder(model, support, query, head=head):
        typer.echo(f"{path}\t{label}\t{probability:.3f}")
