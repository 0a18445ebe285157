"""`hf-dfml evaluate`: how well a finished meta-model learns new classes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_dfml.cli.options import DataDir, Flips, HeadName, Representation, Seed


def evaluate(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a meta-model.")],
    dataset: Annotated[str | None, typer.Option(help="Data set of the evaluation: cifar-fs, glyphs, ...")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Or your own images: a folder of class folders (or of train/validation/test), a Hub data set."
        ),
    ] = None,
    pool: Annotated[str | None, typer.Option(help="Pool for the baselines printed beside the meta-model.")] = None,
    shots: Annotated[list[int], typer.Option(help="Support images a class: --shots 1 5.")] = [1, 5],  # noqa: B006
    ways: Annotated[int, typer.Option(help="Classes of an episode.")] = 5,
    queries: Annotated[int, typer.Option(help="Query images a class.")] = 15,
    episodes: Annotated[int, typer.Option(help="Number of episodes.")] = 600,
    bn: Annotated[
        str | None,
        typer.Option(help="Batch-norm statistics: support, running or transductive; the model's own by default."),
    ] = None,
    head: HeadName = None,
    flips: Flips = None,
    representation: Representation = None,
    split: Annotated[str, typer.Option(help="Classes: validation while you develop, test once at the end.")] = "test",
    output_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where results.json goes, beside the rows of earlier evaluations; a local model's by default."
        ),
    ] = None,
    data_dir: DataDir = None,
    image_column: Annotated[str | None, typer.Option(help="Of a data set: its column of images.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Of a data set: its column of classes.")] = None,
    seed: Seed = 0,
) -> None:
    """Measure mean accuracy and 95 % interval over episodes: of a data set's classes, or of your own images."""
    from hf_dfml.data import open_data
    from hf_dfml.data.folders import Needs
    from hf_dfml.evaluation import EvaluationProtocol
    from hf_dfml.evaluation.heads import find_head
    from hf_dfml.evaluation.reporting import evaluate_stored
    from hf_dfml.meta_model import MetaModel
    from hf_dfml.pool import ModelPool

    if (dataset is None) == (data is None):
        raise ValueError("Name the images: --dataset for a known set, or --data for a folder of yours (not both).")
    meta = MetaModel.from_pretrained(model)
    flipped = flips and flips == "true"
    how = meta.config.adapt.but(find_head(head), flips=flipped, representation=representation, bn=bn)
    protocol = EvaluationProtocol(
        ways=ways, shots=shots, queries=queries, episodes=episodes, seed=seed, split=split
    ).under(how)
    folder = output_dir or Path(model if Path(model).is_dir() else ".") / "evaluations"
    evaluate_stored(
        meta.network,
        open_data(
            dataset or data or "",
            split,
            data_dir=data_dir,
            image_size=meta.config.input_size[-1],
            image_column=image_column,
            label_column=label_column,
            needs=Needs(ways, max(shots), queries),
        ),
        protocol,
        folder,
        method=meta.config.method,
        pool=ModelPool.open(pool) if pool else None,
        kind=next((row.pool for row in meta.config.results if row.pool), None),
    )
