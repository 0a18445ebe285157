"""What the mechanisms' measurements share: epochs of a run, directions of weights, a figure of lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_dfml.learning.inner_loop import Parameters
from hf_dfml.methods.base import Context


def run_epochs(method: Any, context: Context, first: int, last: int) -> list[dict[str, float]]:
    """Steps `first` to `last` of a method; their metrics."""
    rows = []
    for context.step in range(first, last):
        rows.append(method.step(context))
    return rows


def flat(params: Parameters) -> Tensor:
    """All in one vector."""
    return torch.cat([value.flatten() for value in params.values()])


def norm(params: Parameters) -> float:
    """Its length."""
    return flat(params).norm().item()


def cosine(first: Parameters, second: Parameters) -> Tensor:
    """Of the angle between two movements."""
    return F.cosine_similarity(flat(first), flat(second), dim=0)


def moved(params: Parameters, way: Parameters, length: float) -> Parameters:
    """So far in that direction."""
    scale = length / norm(way)
    return {name: value + scale * way[name] for name, value in params.items()}


def plot(
    lines: dict[str, list[tuple[float, float]]],
    path: Path,
    x_label: str,
    y_label: str,
    *,
    log: bool = False,
    least_span: float = 0.0,
) -> None:
    """Lines with a point for each measurement, on a vertical axis of at least that length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel=x_label, ylabel=y_label, xscale="log" if log else "linear")
    low, high = axes.get_ylim()
    wider = max(0.0, least_span - (high - low)) / 2
    axes.set_ylim(low - wider, high + wider)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
