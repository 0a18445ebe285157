"""`hf-dfml demo`: a page in the browser."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

import typer

from hf_dfml.cli.serve import until_interrupted


def demo(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN|CLASSIFIER",
            help="A meta-model (the folder of a run), a pool, or a classifier that `hf-dfml adapt --save` wrote: "
            "folder, Hub id, or zoo:cifar-fs.",
        ),
    ],
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any free one.")] = 7860,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine's.")] = "127.0.0.1",
    device: Annotated[str, typer.Option(help="Where the work is done, such as cuda.")] = "cpu",
    space: Annotated[
        Path | None,
        typer.Option(
            help="Write the folder of a Hugging Face Space with this page, and end; it must be empty or new."
        ),
    ] = None,
) -> None:
    """Try a model in the browser: teach classes with a few pictures of each, classify others, download the classifier.

    A stored classifier has its classes already. Needs Gradio: `pip install 'hf_dfml[demo]'`. The page stays on this
    machine and sends nothing elsewhere, unless `--host` or `--space` is given.
    """
    if space:
        from hf_dfml.demo.space import write_space

        write_space(model, space, device)
        typer.echo(
            f"Wrote a Space to {space}. Publish it: hf repos create ME/NAME --type space --space-sdk gradio, then "
            f"hf upload ME/NAME {space} . --type space"
        )
        return
    from hf_dfml.demo.page import launch

    page = launch(model, host=host, port=port, device=device, block=False)
    typer.echo(f"The page of {model} is at {page.local_url} (Ctrl-C stops it).")
    until_interrupted(threading.Event().wait)
