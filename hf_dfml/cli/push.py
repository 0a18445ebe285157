"""`hf-dfml push`: a finished run becomes a model repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def push(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or of a stored meta-model.")],
    repository: Annotated[str, typer.Argument(help="Hub repository: USER/NAME or ORGANISATION/NAME.")],
    private: Annotated[bool, typer.Option(help="Make a new repository private.")] = False,
) -> None:
    """Publish a run on the Hub: weights, config, card, pictures, results and lock file, in one commit."""
    from hf_dfml.meta_model import MetaModel
    from hf_dfml.preflight import check_push

    if not run.is_dir():
        raise FileNotFoundError(f"There is no folder {run}: expected the --output_dir of a finished run.")
    check_push(repository, private=private)
    meta = MetaModel.from_pretrained(str(run))
    typer.echo(f"Published: {meta.push_to_hub(repository, private=private, folder=run)}")
