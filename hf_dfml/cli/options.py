"""What several commands are given, in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PoolName = Annotated[
    str,
    typer.Argument(help="A folder, a pool.lock.json, a Hub user or organisation, a collection, or ids by comma."),
]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder of local copies of the data sets (else HF_DFML_DATA, else the Hub).")
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
