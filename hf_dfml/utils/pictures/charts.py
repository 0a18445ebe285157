"""Bars, curves, and matrices as colours."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from torch import Tensor

from hf_dfml.utils.pictures.style import GREY, colour_of, marker_of, write_figure

LEVELS: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
"""Line styles of baselines; the first is that of the run itself."""


def bar_chart(
    bars: Mapping[str, Mapping[str, tuple[float, float]]], path: Path | str, *, title: str = "", label: str = ""
) -> Path:
    """Draw horizontal bars with error bars, a group of them for each name.

    Args:
        bars: for each name (top to bottom) and series the value and half the width of its interval.
        path: the PNG file.
        title: text above.
        label: text at the axis of values.

    Returns:
        The path written.
    """
    from matplotlib.figure import Figure

    series = list(dict.fromkeys(name for group in bars.values() for name in group))
    figure = Figure(figsize=(8, 1.2 + 0.35 * len(bars) * max(1, len(series))), layout="constrained")
    axes = figure.add_subplot()
    thickness = 0.8 / max(1, len(series))
    for index, name in enumerate(series):
        rows = [(row, group[name]) for row, group in enumerate(bars.values()) if name in group]
        drawn = axes.barh(
            [row + (index - (len(series) - 1) / 2) * thickness for row, _ in rows],
            [value for _, (value, _) in rows],
            height=thickness,
            xerr=[interval for _, (_, interval) in rows],
            capsize=2,
            color=colour_of(index),
            ecolor=GREY,
            label=name,
        )
        axes.bar_label(drawn, labels=[f"{value:.1f}" for _, (value, _) in rows], padding=4, fontsize=8)
    axes.set_yticks(range(len(bars)), list(bars), fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(label)
    axes.set_title(title, fontsize=9, loc="left", wrap=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)
    return write_figure(path, figure)


def curves(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    path: Path | str,
    *,
    title: str = "",
    xlabel: str = "step",
    ylabel: str = "",
    log_x: bool = False,
) -> Path:
    """Draw curves, for example accuracy against the size of a pool.

    Args:
        lines: for each name its points (x, y).
        path: the PNG file.
        title: text above.
        xlabel: text at the horizontal axis.
        ylabel: text at the vertical axis.
        log_x: whether the horizontal axis is logarithmic.

    Returns:
        The path written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.add_subplot()
    for kind, (name, points) in enumerate(lines.items()):
        _line(axes, kind, name, points)
    axes.set_xlabel(xlabel)
    if log_x:
        axes.set_xscale("log")
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10, loc="left")
    # Beside the curves, as inside it would hide some.
    figure.legend(fontsize=8, loc="outside right center", frameon=False)
    return write_figure(path, figure)


def learning_curves(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    path: Path | str,
    *,
    baselines: Mapping[str, Mapping[str, float]] | None = None,
    title: str = "",
    xlabel: str = "step",
    ylabel: str = "",
) -> Path:
    """Draw the course of a run, with what it must beat as level lines; a panel for each curve.

    Args:
        lines: for each panel (`1-shot`, `5-shot`, ...) the points (step, value) of the run.
        path: the PNG file.
        baselines: for each baseline its value in each panel; it may lack some.
        title: text above.
        xlabel: text at the horizontal axes.
        ylabel: text at the vertical axes of the first column.

    Returns:
        The path written.

    Raises:
        ValueError: if there is no curve.
    """
    from matplotlib.figure import Figure

    if not lines:
        raise ValueError("There is no curve to draw: give one or more.")
    baselines = baselines or {}
    columns = min(3, len(lines))
    rows = -(-len(lines) // columns)
    figure = Figure(figsize=(max(6.0, 3.8 * columns), 3.0 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (name, points) in zip(panels, lines.items(), strict=False):
        _line(panel, 0, "this run", points)
        for kind, (baseline, values) in enumerate(baselines.items(), 1):
            if name in values:
                style = LEVELS[kind % len(LEVELS)]
                panel.axhline(values[name], color=colour_of(kind), linestyle=style, linewidth=1.6, label=baseline)
        panel.set_title(name, fontsize=9, loc="left")
        panel.set_xlabel(xlabel, fontsize=9)
    for first in panels[::columns]:
        first.set_ylabel(ylabel)
    for panel in panels[len(lines) :]:
        panel.set_visible(False)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    handles = {str(artist.get_label()): artist for panel in panels for artist in panel.get_legend_handles_labels()[0]}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return write_figure(path, figure)


def _line(axes: Any, kind: int, name: str, points: Sequence[tuple[float, float]]) -> None:
    """One curve, its points marked where they are few."""
    from matplotlib.ticker import MaxNLocator

    marker = marker_of(kind) if len(points) < 30 else ""
    axes.plot([x for x, _ in points], [y for _, y in points], color=colour_of(kind), marker=marker, label=name)
    whole = [float(x).is_integer() for line in axes.lines for x in line.get_xdata()]
    axes.xaxis.set_major_locator(MaxNLocator(integer=all(whole)))  # There is no half a step.
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def strip_chart(
    groups: Mapping[str, Sequence[float]], path: Path | str, *, title: str = "", xlabel: str = "", ylabel: str = ""
) -> Path:
    """Draw every value of each group as a point, beside it the group's mean and its 95 % interval; a line at 0.

    Args:
        groups: for each name (left to right) its values.
        path: the PNG file.
        title: text above.
        xlabel: text at the axis of groups.
        ylabel: text at the axis of values.

    Returns:
        The path written.

    Raises:
        ValueError: if there is no group, or one without a value.
    """
    from matplotlib.figure import Figure

    if not groups or not all(groups.values()):
        raise ValueError(f"A strip chart needs one value or more in each group, found {dict(groups)}.")
    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color=GREY, linewidth=1)
    for place, values in enumerate(groups.values()):
        points = axes.scatter([place - 0.1] * len(values), values, s=22, color=colour_of(0), alpha=0.7, linewidths=0)
        if len(values) > 1:  # One alone has no interval.
            half = 1.96 * stdev(values) / len(values) ** 0.5
            axes.errorbar(place + 0.1, fmean(values), half, fmt=marker_of(1), color=colour_of(1), capsize=4)
    points.set_label("single values")
    for mean in axes.containers[:1]:
        mean.set_label("mean and its 95 % interval")
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.3, axis="y")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2, frameon=False)
    return write_figure(path, figure)


def heat_map(
    matrix: Tensor, path: Path | str, *, title: str = "", label: str = "", groups: Sequence[int] = ()
) -> Path:
    """Draw a matrix as colours.

    Args:
        matrix: `(M, M)` or any other two axes.
        path: the PNG file.
        title: text above.
        label: text at both axes.
        groups: sizes of groups of neighbouring rows (and columns), between which lines are drawn.

    Returns:
        The path written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    figure.colorbar(axes.imshow(matrix.cpu().numpy(), cmap="viridis", interpolation="nearest"), ax=axes)
    for border in list(itertools.accumulate(groups))[:-1]:
        axes.axhline(border - 0.5, color="white", linewidth=1.2)
        axes.axvline(border - 0.5, color="white", linewidth=1.2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=label, ylabel=label)
    axes.set_title(title, fontsize=10, loc="left")
    return write_figure(path, figure)


class Growth(NamedTuple):
    """A quantity that grows: a panel of `growth_curves`.

    Attributes:
        title: text above.
        xlabel: text at the horizontal axis.
        ylabel: text at the vertical axis.
        measured: for each name the points (x, y) that were measured.
        model: for each name the points of what was fitted to them; it may lack some.
    """

    title: str
    xlabel: str
    ylabel: str
    measured: Mapping[str, Sequence[tuple[float, float]]]
    model: Mapping[str, Sequence[tuple[float, float]]]


def growth_curves(panels: Sequence[Growth], path: Path | str, *, columns: int = 3, title: str = "") -> Path:
    """Draw how costs grow, on logarithmic axes: points that were measured, and models of them as dashed lines.

    Args:
        panels: row by row.
        path: the PNG file.
        columns: panels a row.
        title: text above all.

    Returns:
        The path written.

    Raises:
        ValueError: if there is no panel.
    """
    from matplotlib.figure import Figure

    if not panels:
        raise ValueError("There is no panel to draw: give one or more.")
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(6.0, 3.6 * columns), 3.0 * rows + 0.8), layout="constrained")
    kinds = list(dict.fromkeys(name for panel in panels for name in panel.measured))
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        for kind, name in enumerate(kinds):
            for points, marker, style, label in (
                (panel.measured.get(name, ()), marker_of(kind), "", name),
                (panel.model.get(name, ()), "", "--", f"{name}: model"),
            ):
                if points:
                    look: dict[str, Any] = {"marker": marker, "linestyle": style, "linewidth": 1.6, "label": label}
                    axes.plot([x for x, _ in points], [y for _, y in points], color=colour_of(kind), **look)
        axes.set(xscale="log", yscale="log", xlabel=panel.xlabel, ylabel=panel.ylabel)
        ticks = sorted({x for lines in (panel.measured, panel.model) for points in lines.values() for x, _ in points})
        axes.set_xticks(ticks, [f"{x:,.0f}" for x in ticks], fontsize=8)
        axes.minorticks_off()
        axes.set_title(panel.title, fontsize=9, loc="left")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    handles = {str(artist.get_label()): artist for axes in figure.axes for artist in axes.get_lines()}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(kinds), fontsize=8, frameon=False)
    return write_figure(path, figure)
