"""`hf-dfml push`: a finished run, or a classifier, becomes a model repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def push(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, of a stored meta-model or of a classifier.")],
    repository: Annotated[str, typer.Argument(help="Hub repository: USER/NAME or ORGANISATION/NAME.")],
    private: Annotated[bool, typer.Option(help="Make a new repository private.")] = False,
) -> None:
    """Publish a run or a classifier on the Hub in one commit.

    Of a run: weights, config, card, pictures, results and lock file. Of a classifier (`hf-dfml adapt --save`): what
    `hf-dfml classify me/name` needs, and its card; support images stay here.
    """
    from hf_dfml.classifier import Classifier
    from hf_dfml.classifier.files import is_classifier
    from hf_dfml.meta_model import MetaModel
    from hf_dfml.preflight import check_push

    if not run.is_dir():
        raise FileNotFoundError(f"There is no folder {run}: expected that of a run or a classifier.")
    check_push(repository, private=private)
    if is_classifier(str(run)):
        address = Classifier.from_pretrained(run).push_to_hub(repository, private=private)
    else:
        address = MetaModel.from_pretrained(str(run)).push_to_hub(repository, private=private, folder=run)
    typer.echo(f"Published: {address}")
