"""What all pictures share: colours, markers, and how a file is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#333333")
"""Told apart with every kind of colour blindness (Okabe and Ito, 2008); their yellow is too pale on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
"""One more of them than colours, so that 56 kinds differ in colour or marker."""
GREY = "#777777"


def colour_of(kind: int) -> str:
    """The colour of the kind of that number, from 0."""
    return COLOURS[kind % len(COLOURS)]


def marker_of(kind: int) -> str:
    """The marker of the kind of that number, from 0."""
    return MARKERS[kind % len(MARKERS)]


def write(path: Path | str, save: Callable[[Path], Any]) -> Path:
    """Make the folder of a file and write it; its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path)
    return path


def write_figure(path: Path | str, figure: Any) -> Path:
    """Write a figure of matplotlib's; the path."""
    return write(path, lambda file: figure.savefig(file, dpi=120))
