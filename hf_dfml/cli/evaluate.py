"""`hf-dfml evaluate`: how well a meta-model or a pool learns new classes, or a classifier knows its own."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_dfml.cli.options import AsJson, DataDir, Flips, HeadName, InnerLoop, InnerLr, InnerSteps, Representation, Seed


def evaluate(
    model: Annotated[
        str,
        typer.Argument(help="A meta-model, a member, a whole pool, or a classifier: folder, Hub id, or zoo:cifar-fs."),
    ],
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
    inner_loop: InnerLoop = None,
    inner_steps: InnerSteps = None,
    inner_lr: InnerLr = None,
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
    as_json: AsJson = False,
) -> None:
    """Measure mean accuracy and 95 % interval over episodes: of a data set's classes, or of your own images.

    Of a pool: its members without any meta-learning, best member and all of them. A classifier in a folder (`hf-dfml
    adapt --save`) is given the images of `--data`, a folder of its own classes, as they are.
    """
    from hf_dfml.adapting import open_model
    from hf_dfml.classifier import Classifier
    from hf_dfml.classifier.files import is_classifier
    from hf_dfml.data import dataset_info, open_data
    from hf_dfml.data.folders import Needs
    from hf_dfml.evaluation import EvaluationProtocol
    from hf_dfml.evaluation.heads import find_head
    from hf_dfml.evaluation.heads.base import PAPERS_INNER_LOOP
    from hf_dfml.evaluation.reporting import evaluate_stored
    from hf_dfml.evaluation.results import RESULTS_NAME
    from hf_dfml.meta_model import MetaModel
    from hf_dfml.pool import ModelPool
    from hf_dfml.utils.provenance import called

    if (dataset is None) == (data is None):
        raise ValueError("Name the images: --dataset for a known set, or --data for a folder of yours (not both).")
    if dataset:
        dataset_info(dataset)  # Else the Hub would be asked for it, for half a minute where it is not reached.
    if data and is_classifier(model):
        accuracy = Classifier.from_pretrained(model).evaluate(data)
        counts = {"right": accuracy.correct, "images": accuracy.total}
        typer.echo(json.dumps(counts) if as_json else f"Of the images in {data}: {accuracy}.")
        return
    found = open_model(model)
    papers: tuple[int | None, float | None] = PAPERS_INNER_LOOP if inner_loop else (None, None)
    steps, lr = inner_steps if inner_steps is not None else papers[0], inner_lr if inner_lr is not None else papers[1]
    protocol = EvaluationProtocol(ways=ways, shots=shots, queries=queries, episodes=episodes, seed=seed, split=split)
    read: Any = partial(
        open_data,
        dataset or data or "",
        split,
        data_dir=data_dir,
        image_column=image_column,
        label_column=label_column,
        needs=Needs(ways, max(shots), queries),
    )
    if not isinstance(found, MetaModel):
        members = found.usable() if isinstance(found, ModelPool) else None
        if not members or pool or head or representation:
            raise ValueError(
                f"{model} is a pool: expected members whose weights can be loaded, each evaluated as it is (leave "
                "--pool, --head and --representation out)."
            )
        size = members.image_size
        protocol = protocol.under(protocol.adaptation.but(bn=bn, steps=steps, lr=lr))
        folder = output_dir or Path("evaluations")
        what: dict[str, Any] = {"pool": members, "flips": flips == "true", "model": called(model)}
        network = None
    else:
        how = found.config.adapt.but(
            find_head(head), flips=flips and flips == "true", representation=representation, bn=bn, steps=steps, lr=lr
        )
        network, protocol, size = found.network, protocol.under(how), found.config.input_size[-1]
        folder = output_dir or Path(model if Path(model).is_dir() else ".") / "evaluations"
        kind = next((row.pool for row in found.config.results if row.pool), None)
        beside = ModelPool.open(pool).usable() if pool else None
        size = max(size, beside.image_size) if beside else size  # Each sees the images in its own size.
        apart = None if Path(model).is_dir() and not output_dir else called(model)
        what = {"method": found.config.method, "pool": beside, "kind": kind, "model": apart}
    rows = evaluate_stored(network, read(image_size=size), protocol, folder, show=not as_json, **what)
    if as_json:
        typer.echo(json.dumps({"rows": [asdict(row) for row in rows], "file": str(folder / RESULTS_NAME)}))
