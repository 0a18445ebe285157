"""Pictures hold the pixels they were given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from hf_dfml.utils.pictures import bar_chart, curves, heat_map, image_grid, neighbour_maps


def test_grid_shows_every_image_at_its_place(tmp_path: Path) -> None:
    colours = torch.rand(5, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    path = image_grid(colours.expand(5, 3, 8, 8), tmp_path / "new" / "grid.png", columns=3, zoom=2)
    pixels = np.asarray(Image.open(path))
    assert pixels.shape == (2 * 18 + 2, 3 * 18 + 2, 3)
    for index, colour in enumerate((colours * 255).round().flatten(1).int().tolist()):
        top, left = 2 + index // 3 * 18, 2 + index % 3 * 18
        tile = pixels[top : top + 16, left : left + 16]
        assert (tile == colour).all()
    assert (pixels[20:36, 38:54] == 255).all()  # The sixth place is empty.


def test_titles_stand_above(tmp_path: Path) -> None:
    images = torch.zeros(2, 3, 32, 32)
    plain, titled = (
        Image.open(image_grid(images, tmp_path / f"{name}.png", 2, titles)).size
        for name, titles in (("plain", None), ("titled", ["dinosaur", "a class name far too long for its picture"]))
    )
    assert plain[0] == titled[0] and plain[1] < titled[1]
    assert plain[0] >= 2 * 64  # Small images are magnified.


def test_a_title_that_repeats_along_a_row_is_written_once_across_it(tmp_path: Path) -> None:
    def captions(titles: list[str]) -> np.ndarray:
        path = image_grid(torch.zeros(4, 3, 64, 64), tmp_path / "grid.png", 2, titles)
        return np.asarray(Image.open(path))[2:16]  # Above the first row.

    blank = (captions(["cat", "cat", "dog", "fox"])[:, 68:] == 255).all()
    assert blank and (captions(["cat", "dog", "dog", "fox"])[:, 68:] != 255).any()
    long = "aquarium fish of the sea"
    assert (captions([long, long, "dog", "fox"])[:, 68:] != 255).any(), "there is room up to the row's end"


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, for a look at what is on them."""
    saved: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: saved.append(self))
    return saved


def test_steps_have_whole_ticks(figure: list[Figure], tmp_path: Path) -> None:
    curves({"accuracy": [(2, 30.0), (4, 40.0)]}, tmp_path / "x.png")
    curves({"accuracy": [(0.5, 30.0), (1.0, 40.0)]}, tmp_path / "x.png")
    whole, parts = (all(tick.is_integer() for tick in each.axes[0].get_xticks()) for each in figure)
    assert whole and not parts


def test_groups_of_a_map_are_parted(figure: list[Figure], tmp_path: Path) -> None:
    heat_map(torch.rand(6, 6), tmp_path / "x.png", groups=[1, 3, 2])
    heat_map(torch.rand(6, 6), tmp_path / "x.png")
    positions = [sorted(set(line.get_xdata()) - {0, 1}) for line in figure[0].axes[0].lines[1::2]]
    assert positions == [[0.5], [3.5]] and not figure[1].axes[0].lines


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (3, 8, 8), (2, 1, 8, 8)])
def test_what_is_no_batch_of_images_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        image_grid(torch.zeros(shape), tmp_path / "x.png", 2)


def test_titles_must_be_as_many(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="as many titles"):
        image_grid(torch.zeros(2, 3, 8, 8), tmp_path / "x.png", 2, ["one"])


def test_charts_and_curves_are_pictures(tmp_path: Path) -> None:
    bars = {"ours": {"1-shot": (40.0, 1.0), "5-shot": (50.0, 1.0)}, "theirs": {"5-shot": (30.0, 2.0)}}
    lines = {"loss": [(0.0, 2.0), (1.0, 1.0)], "accuracy": [(0.0, 0.2)]}
    for path in (bar_chart(bars, tmp_path / "b.png", title="t", label="%"), curves(lines, tmp_path / "c" / "c.png")):
        assert min(Image.open(path).size) > 100


def test_neighbour_maps_draw_a_panel_for_each_network(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = [name for name in "abc" for _ in range(6)]
    features = {name: torch.randn(18, width, generator=generator) for name, width in (("m", 4), ("n", 9), ("o", 3))}
    one = Image.open(neighbour_maps({"m": features["m"]}, labels, tmp_path / "one.png", title="t"))
    three = Image.open(neighbour_maps(features, labels, tmp_path / "three.png", title="t"))
    assert three.width == 3 * one.width and three.height == one.height


def test_neighbour_maps_are_of_the_same_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least four images, found 5 labels and rows {'m': 5, 'n': 6}"):
        neighbour_maps({"m": torch.rand(5, 2), "n": torch.rand(6, 2)}, list("aabbc"), tmp_path / "x.png")
    with pytest.raises(ValueError, match="at least four images, found 3"):
        neighbour_maps({"m": torch.rand(3, 2)}, list("abc"), tmp_path / "x.png")
