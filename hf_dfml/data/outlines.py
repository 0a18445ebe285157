"""A character's outline in matplotlib's fonts, filled on a grid with integer arithmetic."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

_CURVE_STEPS = 8
_UNIT = 2 * _CURVE_STEPS**2
"""Curve points are multiples of 1/128 of a font unit: 1/64 from the curve's formula, 1/2 from implied points."""
_FINE = 4
"""An outline is filled on 4 x 4 points a mask cell."""
_MARGIN = 4


def fill_character(face: str, character: str, size: int) -> np.ndarray | None:
    """The filled character, its longer side stretched to `size - 8` cells and centred.

    A grid point is inside where the outline winds around it (the non-zero rule). Exact, hence the same on every
    machine: no font renderer takes part.

    Args:
        face: name of a TrueType file among matplotlib's fonts, without its ending.
        character: one character.
        size: height and width of the mask in cells.

    Returns:
        `(size, size)` uint8 coverage, 255 where a cell is all ink, or `None` if the face lacks the character.
    """
    contours = _contours(face, character)
    if contours is None:
        return None
    winding = _winding(contours, size * _FINE, (size - 2 * _MARGIN) * _FINE)
    inside = (winding != 0).reshape(size, _FINE, size, _FINE).sum((1, 3))
    return (inside * 255 // _FINE**2).astype(np.uint8)


def _winding(contours: list[np.ndarray], grid: int, extent: int) -> np.ndarray:
    """How often the contours wind around each point of a `grid` x `grid` raster whose middle `extent` they span."""
    points = np.concatenate(contours)
    low, high = points.min(0), points.max(0)
    span, centre = int((high - low).max()), low + high
    # Twice the extent is one length unit of the raster, so that its points, half a cell off centre, are integers.
    level = np.arange(grid - 1, -grid, -2) * span + extent * centre[1]
    start = np.concatenate(contours)
    end = np.concatenate([np.roll(contour, -1, axis=0) for contour in contours])
    down = end[:, 1] <= start[:, 1]
    (x0, y0), (x1, y1) = (2 * extent * np.where(down[:, None], *pair).T for pair in ((end, start), (start, end)))
    # An edge crosses the rows between its ends; all edges with all their rows, side by side.
    edges, rows = np.nonzero((level >= y0[:, None]) & (level < y1[:, None]))
    # First column at or right of the edge: the smallest c with (2c + 1 - grid) * span + extent * centre >= x.
    rise = (y1 - y0)[edges]
    x = x0[edges] * rise + (level[rows] - y0[edges]) * (x1 - x0)[edges]
    left = (extent * centre[0] + (1 - grid) * span) * rise
    columns = np.clip(-((left - x) // (2 * span * rise)), 0, grid)
    crossings = np.zeros((grid, grid + 1), dtype=np.int64)
    np.add.at(crossings, (rows, columns), np.where(down, -1, 1)[edges])
    return crossings.cumsum(1)[:, :grid]


def _contours(face: str, character: str) -> list[np.ndarray] | None:
    """The outline as closed polygons, `(points, 2)` int64 each, or `None` if the face lacks the character."""
    from fontTools.pens.basePen import BasePen

    class Polygons(BasePen):
        """Collects contours and turns each quadratic curve into 8 chords."""

        def __init__(self, glyph_set: Any) -> None:
            super().__init__(glyph_set)
            self.contours: list[list[tuple[float, float]]] = []

        def _moveTo(self, pt: tuple[float, float]) -> None:
            self.contours.append([pt])

        def _lineTo(self, pt: tuple[float, float]) -> None:
            self.contours[-1].append(pt)

        def _qCurveToOne(self, pt1: tuple[float, float], pt2: tuple[float, float]) -> None:
            pt0 = self.contours[-1][-1]
            for after in range(1, _CURVE_STEPS + 1):
                before = _CURVE_STEPS - after
                x, y = (
                    (before**2 * p0 + 2 * before * after * p1 + after**2 * p2) / _CURVE_STEPS**2
                    for p0, p1, p2 in zip(pt0, pt1, pt2, strict=True)
                )
                self.contours[-1].append((x, y))

    character_map, glyph_set = _font(face)
    if ord(character) not in character_map:
        return None
    pen = Polygons(glyph_set)
    glyph_set[character_map[ord(character)]].draw(pen)
    # Font units are integers, so these products are whole numbers already; only scaled components are rounded.
    return [(np.array(contour) * _UNIT).round().astype(np.int64) for contour in pen.contours]


@cache
def _font(face: str) -> tuple[dict[int, str], Any]:
    import matplotlib
    from fontTools.ttLib import TTFont

    font = TTFont(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf", lazy=True)
    return font.getBestCmap(), font.getGlyphSet()
