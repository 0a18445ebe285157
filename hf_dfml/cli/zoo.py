"""`hf-dfml zoo`: the meta-models that come with the library."""

from __future__ import annotations

import json

import typer

from hf_dfml.cli.options import AsJson


def zoo(as_json: AsJson = False) -> None:
    """List the meta-models that come with the library: `hf-dfml adapt zoo:NAME` needs no training and no network.

    The accuracies are those of 5 classes that no member of their pool has seen, from their cards.
    """
    from rich.console import Console
    from rich.table import Table

    from hf_dfml.zoo import PREFIX, manifest

    entries = manifest()
    if as_json:
        rows = ({"name": PREFIX + name, **entry} for name, entry in entries.items())
        typer.echo(json.dumps({"models": list(rows)}))
        return
    shots = sorted({shots for entry in entries.values() for shots in entry["accuracy"]}, key=int)
    table = Table()
    table.add_column("name", no_wrap=True)
    table.add_column("for")
    for count in shots:
        table.add_column(f"{count}-shot (%)", justify="right")
    for name, entry in entries.items():
        table.add_row(PREFIX + name, entry["summary"], *(f"{entry['accuracy'][each]:.1f}" for each in shots))
    Console().print(table)
    typer.echo("Learn your classes: hf-dfml adapt NAME --support PHOTOS (one folder of pictures for each class).")
