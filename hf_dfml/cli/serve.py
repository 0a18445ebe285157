"""`hf-dfml serve`: a pool or a stored classifier behind HTTP."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from hf_dfml.utils.text import counted

if TYPE_CHECKING:
    from hf_dfml.pool.black_box.server import ModelServer


def serve(
    model: Annotated[
        str,
        typer.Argument(
            metavar="POOL|CLASSIFIER",
            help="A classifier that `hf-dfml adapt --save` wrote (folder or Hub id), or a pool: a folder, a "
            "pool.lock.json, a Hub user or organisation, a collection, or ids by comma.",
        ),
    ],
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine's.")] = "127.0.0.1",
    output: Annotated[
        str, typer.Option(help="What is returned for an image: logits, probs, topk or label; nothing else ever is.")
    ] = "probs",
    top_k: Annotated[
        int, typer.Option(min=1, help="Classes that `--output topk` returns; all, where there are fewer.")
    ] = 3,
    token: Annotated[
        str | None,
        typer.Option(help="Bearer token that clients must send.", envvar="HF_DFML_SERVE_TOKEN", show_envvar=True),
    ] = None,
    max_megabytes: Annotated[int, typer.Option(help="Size limit of one request.")] = 32,
    device: Annotated[str, typer.Option(help="Where the work is done, such as cuda.")] = "cpu",
) -> None:
    """Serve a classifier, or each member of a pool, as a prediction-only HTTP endpoint until Ctrl-C.

    POST an image file to /models/ID, get [{"label", "score"}]: the Hugging Face inference format. For example
    `curl --data-binary @photo.jpg http://127.0.0.1:8000/models/my-classifier`. Learn from a served pool elsewhere with
    `hf-dfml train bidf-mkd --pool http://HOST:PORT`. Images come as files, so with 8 bits a channel.
    """
    from hf_dfml.classifier.files import is_classifier

    limits: dict = {"top_k": top_k, "token": token, "max_bytes": max_megabytes << 20}
    options = {"host": host, "port": port, "output": output, **limits}
    server, what = (_of_classifier if is_classifier(model) else _of_pool)(model, device, options)
    with server:
        typer.echo(f"{what}, returning {output}. Ctrl-C stops.")
        until_interrupted(server.serve_forever)


def until_interrupted(wait: Callable[[], Any]) -> None:
    """Call what does not return, until Ctrl-C or a request to end."""
    # Set, not left to Python: a process in the background is started with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        wait()
    except KeyboardInterrupt:
        typer.echo("Stopped.")


def _of_pool(name: str, device: str, options: dict[str, Any]) -> tuple[ModelServer, str]:
    """A pool's server, and what it is of."""
    from hf_dfml.pool import ModelPool
    from hf_dfml.pool.black_box.server import PoolServer

    server = PoolServer(ModelPool.open(name).to(device), **options)
    return server, f"{counted(len(server.entries), 'member')} at {server.url}/models"


def _of_classifier(name: str, device: str, options: dict[str, Any]) -> tuple[ModelServer, str]:
    """Likewise of a stored classifier."""
    from hf_dfml.classifier import Classifier
    from hf_dfml.classifier.server import ClassifierServer

    folder = Path(name).expanduser()
    id = folder.resolve().name if folder.is_dir() else name
    server = ClassifierServer(Classifier.from_pretrained(name, device=device), id, **options)
    return server, f"A classifier of {len(server.entries[0].class_names)} classes at {server.url}/models/{quote(id)}"
