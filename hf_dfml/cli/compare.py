"""`hf-dfml compare`: which is best on a user's own images."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from hf_dfml.cli.options import AsJson


def compare(
    support: Annotated[str, typer.Option(help="Folder with one folder of images for each class, or a Hub data set.")],
    pool: Annotated[
        str | None,
        typer.Option(
            help="A pool: its best member by stored accuracy (else its first) and all its members are compared."
        ),
    ] = None,
    models: Annotated[list[str] | None, typer.Option(help="Meta-models: --models a b.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="A public network, such as timm/resnet50.a1_in1k, or a folder of one.")
    ] = None,
    ways: Annotated[int, typer.Option(help="Classes of an episode.")] = 5,
    shots: Annotated[list[int] | None, typer.Option(help="Example images a class: --shots 1 5.")] = None,
    episodes: Annotated[int, typer.Option(help="Number of episodes.")] = 200,
    image_column: Annotated[str | None, typer.Option(help="Of a data set: its column of images.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Of a data set: its column of classes.")] = None,
    device: Annotated[str, typer.Option(help="Where the work is done, such as cuda.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Rank best member, all members, meta-models and a public backbone on your images.

    Each image is left out once and classified by the others; and episodes of a few images a class are drawn, the same
    ones for all. Says which to use, and whether the difference is more than chance. Nothing is trained.
    """
    from rich.console import Console
    from rich.table import Table

    from hf_dfml.comparing import compare as ranked
    from hf_dfml.comparing import verdict

    rows = ranked(
        support,
        pool=pool,
        models=models or (),
        backbone=backbone,
        ways=ways,
        shots=shots or (1, 5),
        episodes=episodes,
        device=device,
        image_column=image_column,
        label_column=label_column,
    )
    if as_json:
        typer.echo(json.dumps({"rows": [row.as_json() for row in rows], "verdict": verdict(rows)}))
        return
    table = Table(title=f"{rows[0].images} images of {support}, nearest class mean")
    table.add_column("contestant", overflow="fold")
    table.add_column("left out, right", justify="right")
    for number in rows[0].accuracy:
        table.add_column(f"{number}-shot (%)", justify="right")
    for row in rows:
        accuracies = (f"{mean:.1f} ± {row.ci95[number]:.1f}" for number, mean in row.accuracy.items())
        table.add_row(row.name, f"{row.right} of {row.images}", *accuracies)
    Console().print(table)
    typer.echo(verdict(rows))
