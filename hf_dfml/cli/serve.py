"""`hf-dfml serve`: a pool behind HTTP."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from hf_dfml.cli.options import PoolName
from hf_dfml.utils.text import counted


def serve(
    pool: PoolName,
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine's.")] = "127.0.0.1",
    output: Annotated[
        str, typer.Option(help="What is returned for an image: logits, probs, topk or label; nothing else ever is.")
    ] = "probs",
    top_k: Annotated[int, typer.Option(help="Classes that `--output topk` returns.")] = 3,
    token: Annotated[
        str | None,
        typer.Option(help="Bearer token that clients must send.", envvar="HF_DFML_SERVE_TOKEN", show_envvar=True),
    ] = None,
    max_megabytes: Annotated[int, typer.Option(help="Size limit of one request.")] = 32,
) -> None:
    """Serve a pool as prediction-only HTTP endpoints, one a member, until Ctrl-C.

    POST an image file to /models/ID, get [{"label", "score"}]: the Hugging Face inference format. Learn from it
    elsewhere with `hf-dfml train bidf-mkd --pool http://HOST:PORT`. Images come as files, so with 8 bits a channel.
    """
    from hf_dfml.pool import ModelPool
    from hf_dfml.pool.black_box.server import PoolServer

    limits: dict = {"top_k": top_k, "token": token, "max_bytes": max_megabytes << 20}
    with PoolServer(ModelPool.open(pool), host=host, port=port, output=output, **limits) as server:  # type: ignore[arg-type]
        # Set, not left to Python: a process in the background is started with SIGINT ignored.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        members = counted(len(server.pool), "member")
        typer.echo(f"{members} at {server.url}/models, returning {output}. Ctrl-C stops.")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("Stopped.")
