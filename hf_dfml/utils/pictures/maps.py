"""Many things as points of a plane: images as networks see them, and the members of a pool."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_dfml.utils.pictures.style import GREY, MARKERS, colour_of, marker_of, write_figure

NAMED = 20
"""Members of a map up to which their names are written beside them."""


def neighbour_maps(
    features: Mapping[str, Tensor], labels: Sequence[str], path: Path | str, *, title: str = ""
) -> Path:
    """Draw the same images as different networks see them: a t-SNE map of each network's features, side by side.

    Args:
        features: for each network `(n, D)`, of the same `n` images; `D` may differ.
        labels: the class name of each image, by which the points are coloured.
        path: the PNG file.
        title: text above.

    Returns:
        The path written.

    Raises:
        ValueError: if there are fewer than four images, or not one row and one label for each.
    """
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    count = len(labels)
    rows = {name: len(values) for name, values in features.items()}
    if count < 4 or not rows or set(rows.values()) != {count}:
        raise ValueError(f"A map needs the features of at least four images, found {count} labels and rows {rows}.")
    columns = min(4, len(features))
    lines = math.ceil(len(features) / columns)
    figure = Figure(figsize=(3.2 * columns, 3.2 * lines + 0.8), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for name, panel in zip(features, panels, strict=False):
        tsne = TSNE(perplexity=min(30.0, (count - 1) / 3), init="pca", random_state=0)
        points = tsne.fit_transform(features[name].cpu().float().numpy())
        for kind, label in enumerate(dict.fromkeys(labels)):
            chosen = [index for index, other in enumerate(labels) if other == label]
            panel.scatter(*points[chosen].T, s=10, color=colour_of(kind), marker=marker_of(kind), label=label)
        panel.set_title(name, fontsize=8)
    for panel in panels:
        panel.set(xticks=[], yticks=[])
    for panel in panels[len(features) :]:
        panel.set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=7)
    return write_figure(path, figure)


def feature_map(
    support: Tensor,
    labels: Sequence[str],
    queries: Tensor,
    path: Path | str,
    *,
    query_labels: Sequence[str] | None = None,
    title: str = "",
) -> Path:
    """Draw how a network sees a few-shot task: support images large, queries small, a colour and marker a class.

    Features are scaled to unit length, as nearest class means by cosine do, and shown along their two principal
    components: the share of their variance that these show stands at the axes.

    Args:
        support: `(N, D)` features of the support set.
        labels: `(N,)` their classes.
        queries: `(Q, D)` features of the queries; Q may be 0.
        path: the PNG file.
        query_labels: `(Q,)` their classes, true or predicted; None draws them grey.
        title: text above.

    Returns:
        The path written.

    Raises:
        ValueError: if there are fewer than three images, or the numbers of features and labels differ.
    """
    from matplotlib.figure import Figure

    found = (len(support), len(queries) if query_labels is not None else 0)
    wanted = (len(labels), len(query_labels or ()))
    if found != wanted or len(support) + len(queries) < 3:
        raise ValueError(f"A map needs three images or more and a label of each, found {found} and {wanted} labels.")
    points, shares = _plane(torch.cat([support.flatten(1), queries.flatten(1)]).cpu().float())
    shown, asked = points[: len(support)], points[len(support) :]
    classes = list(dict.fromkeys([*labels, *(query_labels or ())]))
    figure = Figure(figsize=(6.5, 5.2), layout="constrained")
    axes = figure.add_subplot()
    if query_labels is None and len(asked):
        axes.scatter(asked[:, 0], asked[:, 1], s=16, color=GREY, alpha=0.6, linewidths=0, label="not classified")
    for kind, name in enumerate(classes):
        colour, marker = colour_of(kind), marker_of(kind)
        small = [row for row, label in enumerate(query_labels or ()) if label == name]
        large = [row for row, label in enumerate(labels) if label == name]
        axes.scatter(
            asked[small][:, 0], asked[small][:, 1], s=20, color=colour, marker=marker, alpha=0.5, linewidths=0
        )
        axes.scatter(
            shown[large][:, 0],
            shown[large][:, 1],
            s=110,
            color=colour,
            marker=marker,
            edgecolors="black",
            zorder=3,
            label=name,
        )
    for number, (axis, share) in enumerate(zip((axes.xaxis, axes.yaxis), shares, strict=True), 1):
        axis.set_label_text(f"principal component {number} ({share:.0%} of the variance)", fontsize=8)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=10, loc="left")
    figure.legend(fontsize=8, loc="outside lower center", ncols=5, frameon=False)
    return write_figure(path, figure)


def _plane(features: Tensor) -> tuple[np.ndarray, list[float]]:
    """Rows of unit length along their two principal components `(n, 2)`, and the share of the variance of each."""
    unit = F.normalize(features, dim=-1)
    centred = unit - unit.mean(0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    points = F.pad(left * values, (0, 2))[:, :2]  # Features of one number have one component.
    total = float(values.square().sum()) or 1.0
    return points.numpy(), [float(value.square()) / total for value in F.pad(values, (0, 2))[:2]]


def member_map(
    classes: Sequence[Sequence[str]],
    groups: Sequence[str],
    path: Path | str,
    *,
    kinds: Sequence[str] = (),
    names: Sequence[str] = (),
    title: str = "",
) -> Path:
    """Draw the members of a pool as points that are near where they know the same classes.

    Two members are as far apart as their classes differ (Jaccard: one minus the shared share of all that either
    knows), embedded by t-SNE. Lines join each member with those that it shares most with.

    Args:
        classes: of each member the classes that it knows, under names by which they are one class.
        groups: of each member what it is coloured by, such as its data set.
        path: the PNG file.
        kinds: of each member what its marker says, such as its architecture; none where left out.
        names: of each member what is written beside it, where there are at most 20, without what all begin with.
        title: text above.

    Returns:
        The path written.

    Raises:
        ValueError: if there are fewer than two members, or not a group for each.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    count = len(classes)
    if count < 2 or len(groups) != count or len(kinds) not in (0, count) or len(names) not in (0, count):
        raise ValueError(f"A map needs two members or more and a group of each, found {count} and {len(groups)}.")
    overlap = class_overlap(classes)
    points = _spread(1 - overlap)
    figure = Figure(figsize=(6.5, 5.2), layout="constrained")
    axes = figure.add_subplot()
    pairs = _closest(overlap)
    axes.add_collection(
        LineCollection(
            [(points[a], points[b]) for a, b in pairs],
            linewidths=[0.4 + 2.5 * float(overlap[a, b]) for a, b in pairs],
            colors=GREY,
            alpha=0.35,
            zorder=1,
        )
    )
    colours, shapes = list(dict.fromkeys(groups)), list(dict.fromkeys(kinds))
    for row, (x, y) in enumerate(points):
        marker = marker_of(shapes.index(kinds[row])) if kinds else MARKERS[0]
        colour = colour_of(colours.index(groups[row]))
        axes.scatter(x, y, s=46, color=colour, marker=marker, edgecolors="white", linewidths=0.6, zorder=2)
    if names and count <= NAMED:
        for name, (x, y) in zip(_own_parts(names), points, strict=True):
            axes.annotate(name, (x, y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=7)
    axes.margins(0.12)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=10, loc="left")
    dot: dict[str, Any] = {"linestyle": "", "markersize": 7}
    handles = [Line2D([], [], color=colour_of(i), marker="o", label=name, **dot) for i, name in enumerate(colours)]
    if len(shapes) > 1:
        handles += [
            Line2D([], [], color=GREY, marker=marker_of(i), label=name, **dot) for i, name in enumerate(shapes)
        ]
    handles.append(Line2D([], [], color=GREY, alpha=0.6, label="classes shared"))
    figure.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=5, frameon=False)
    return write_figure(path, figure)


def class_overlap(classes: Sequence[Sequence[str]]) -> Tensor:
    """The Jaccard index of the classes of each two members, `(M, M)`: 1 where they know the same, 0 where nothing.

    Examples:
        >>> class_overlap([("cat", "dog"), ("dog", "fox")])
        tensor([[1.0000, 0.3333],
                [0.3333, 1.0000]])
    """
    known = {name: column for column, name in enumerate(sorted({name for own in classes for name in own}))}
    knows = torch.zeros(len(classes), len(known))
    for row, own in enumerate(classes):
        knows[row, [known[name] for name in own]] = 1
    shared = knows @ knows.T
    either = knows.sum(1)[:, None] + knows.sum(1) - shared
    return shared / either.clamp_min(1)


def _own_parts(names: Sequence[str]) -> list[str]:
    """Names without the words that all of them begin with: `cifar-fs-conv4-000` -> `000`."""
    shared = re.sub(r"[^\W_]*$", "", os.path.commonprefix(list(names)))
    return [name.removeprefix(shared) or name for name in names]


def _spread(distances: Tensor) -> np.ndarray:
    """Points `(M, 2)` of a plane for distances `(M, M)`, the same each time."""
    from sklearn.manifold import TSNE

    count = len(distances)
    if count < 4:  # Too few for neighbourhoods: on a circle.
        angles = torch.arange(count) * 2 * math.pi / count
        return torch.stack([angles.cos(), angles.sin()], 1).numpy()
    tsne = TSNE(perplexity=min(15.0, (count - 1) / 3), metric="precomputed", init="random", random_state=0)
    return tsne.fit_transform(distances.numpy())


def _closest(overlap: Tensor, most: int = 3) -> list[tuple[int, int]]:
    """Pairs of members that share classes, each with those that it shares most with."""
    others = overlap.clone().fill_diagonal_(0)
    values, columns = others.topk(min(most, len(others) - 1), dim=1)
    rows = torch.arange(len(others))[:, None].expand_as(columns)
    pairs = torch.stack([rows, columns], -1)[values > 0].sort(-1).values
    return [tuple(pair) for pair in pairs.unique(dim=0).tolist()]  # type: ignore[misc]
