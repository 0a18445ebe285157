"""What several commands are given, in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

PoolName = Annotated[
    str,
    typer.Argument(help="A folder, a pool.lock.json, a Hub user or organisation, a collection, or ids by comma."),
]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder of local copies of the data sets (else HF_DFML_DATA, else the Hub).")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object in place of a table, for a tool that reads.")
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
HeadName = Annotated[
    str | None, typer.Option(help="Head: one of those below, or FILE.py:CLASS; the model's own by default.")
]
Flips = Annotated[
    Literal["true", "false"] | None,
    typer.Option(
        help="See each image together with its mirror image (heads on features); the model's own by default."
    ),
]
Representation = Annotated[
    Literal["features", "answers", "both"] | None,
    typer.Option(
        help="What heads on features work with: a network's features, the answers of a pool's members that it "
        "predicts, or both; the model's own by default."
    ),
]


InnerLoop = Annotated[
    Literal["papers"] | None,
    typer.Option(help="Fine-tune with the papers' 10 steps of 0.01; by default as the model was meta-trained."),
]
InnerSteps = Annotated[int | None, typer.Option(help="SGD steps of fine-tuning; the model's own by default.")]
InnerLr = Annotated[float | None, typer.Option(help="Learning rate of these steps; the model's own by default.")]


class WithHeads(typer.core.TyperCommand):
    """A command whose help lists the heads, which are imported for it alone, as that takes seconds."""

    def format_help(self, *args: Any) -> None:
        """As in the base class."""
        from hf_dfml.evaluation.heads import choices, heads_on_features

        for option in self.params:
            if option.name == "head":
                option.help = f"Head: {choices()}, or FILE.py:CLASS; the model's own by default."  # type: ignore[attr-defined]
            if option.name == "flips":
                option.help = (  # type: ignore[attr-defined]
                    f"See each image together with its mirror image ({', '.join(heads_on_features())}); the model's "
                    "own by default."
                )
        super().format_help(*args)
