"""Pictures for people: grids of images, bars with their intervals, curves, maps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from hf_dfml.utils.images import to_uint8


def image_grid(
    images: Tensor, path: Path | str, columns: int, titles: Sequence[str] | None = None, zoom: int | None = None
) -> Path:
    """Write images side by side into one PNG.

    Args:
        images: `(B, 3, H, W)` in [0, 1].
        path: the file; its folder is made.
        columns: images a row.
        titles: a short text above each image; one that repeats along a row is written once, across all of them.
        zoom: pixels of the picture for a pixel of an image; by default so many that an image is at least 64 wide.

    Returns:
        The path written.

    Raises:
        ValueError: if there is no image, the shape is another, or the titles are too few or too many.
    """
    from PIL import Image, ImageDraw, ImageFont

    if images.dim() != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"A grid needs images (B, 3, H, W) with B of at least 1, found {tuple(images.shape)}.")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"A grid of {len(images)} images needs as many titles, found {len(titles)}.")
    count, _, height, width = images.shape
    columns = max(1, min(columns, count))
    zoom = zoom or max(1, math.ceil(64 / width))
    gap, caption = 2, 14 if titles else 0
    step_x, step_y = width * zoom + gap, height * zoom + gap + caption
    rows = math.ceil(count / columns)
    canvas = Image.new("RGB", (columns * step_x + gap, rows * step_y + gap), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=11)
    pixels = to_uint8(images.cpu().float()).permute(0, 2, 3, 1).numpy()
    for index, array in enumerate(pixels):
        left, top = gap + index % columns * step_x, gap + index // columns * step_y
        if titles and (repeats := _repeats(titles, index, columns)):
            draw.text((left, top), _fit(titles[index], draw, font, repeats * step_x - gap), fill="black", font=font)
        tile = Image.fromarray(array).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
        canvas.paste(tile, (left, top + caption))
    return _ready(path, canvas.save)


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
    return _ready(path, lambda file: figure.savefig(file, dpi=120))


def curves(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    path: Path | str,
    *,
    title: str = "",
    xlabel: str = "step",
    ylabel: str = "",
) -> Path:
    """Draw curves, for example of a training run.

    Args:
        lines: for each name its points (x, y).
        path: the PNG file.
        title: text above.
        xlabel: text at the horizontal axis.
        ylabel: text at the vertical axis.

    Returns:
        The path written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, points in lines.items():
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o" if len(points) < 30 else "", label=name)
    if all(float(x).is_integer() for points in lines.values() for x, _ in points):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # There is no half a step.
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _ready(path, lambda file: figure.savefig(file, dpi=120))


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
    return _ready(path, lambda file: figure.savefig(file, dpi=120))


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
        for label in dict.fromkeys(labels):
            chosen = [index for index, other in enumerate(labels) if other == label]
            panel.scatter(*points[chosen].T, s=8, label=label)
        panel.set_title(name, fontsize=8)
    for panel in panels:
        panel.set(xticks=[], yticks=[])
    for panel in panels[len(features) :]:
        panel.set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=7)
    return _ready(path, lambda file: figure.savefig(file, dpi=120))


def _repeats(titles: Sequence[str], index: int, columns: int) -> int:
    """How many images from `index` on to the end of its row have its title; 0 where the one before has it too."""
    start = index - index % columns
    if index > start and titles[index - 1] == titles[index]:
        return 0
    row = titles[index : start + columns]
    return next((count for count, title in enumerate(row) if title != row[0]), len(row))


def _fit(text: str, draw, font, width: int) -> str:  # noqa: ANN001
    end = ""
    while text and draw.textlength(text + end, font=font) > width:
        text, end = text[:-1], "…"
    return text + end


def _ready(path: Path | str, save) -> Path:  # noqa: ANN001
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path)
    return path
