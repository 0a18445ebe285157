"""Pictures hold the pixels they were given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from PIL import Image

from hf_dfml.utils.pictures import (
    Growth,
    bar_chart,
    class_rows,
    curves,
    feature_map,
    growth_curves,
    heat_map,
    image_grid,
    learning_curves,
    member_map,
    neighbour_maps,
    strip_chart,
)
from hf_dfml.utils.pictures.maps import class_overlap
from hf_dfml.utils.pictures.style import COLOURS, MARKERS, colour_of, marker_of


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


def test_a_strip_chart_has_each_value_and_the_mean_of_each_group(figure: list[Figure], tmp_path: Path) -> None:
    strip_chart({"0": [1.0, 3.0], "2": [-1.0]}, tmp_path / "x.png", xlabel="shared", ylabel="gain")
    (axes,) = figure[0].axes
    values = [each.get_offsets()[:, 1].tolist() for each in axes.collections if isinstance(each, PathCollection)]
    assert values == [[1.0, 3.0], [-1.0]]
    means = [bar.lines[0].get_ydata().tolist() for bar in axes.containers]
    assert means == [[2.0]], "one value alone has no interval"
    ends = [bar.lines[2][0].get_segments()[0][:, 1] for bar in axes.containers]
    np.testing.assert_allclose(ends, [[2 - 1.96, 2 + 1.96]])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "2"]
    for empty in ({}, {"0": []}):
        with pytest.raises(ValueError, match="one value or more in each group"):
            strip_chart(empty, tmp_path / "x.png")


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


BLUE = tuple(int(COLOURS[0][place : place + 2], 16) for place in (1, 3, 5))


def test_bars_below_images_are_as_long_as_the_confidence(tmp_path: Path) -> None:
    confidence = torch.tensor([[1.0, 0.25], [0.0, 0.5]])
    path = class_rows(torch.zeros(2, 2, 3, 64, 64), ["cat", "dog"], tmp_path / "rows.png", confidence=confidence)
    blue = (np.asarray(Image.open(path)) == BLUE).all(-1)
    lengths = [[int(blue[top, left : left + 64].sum()) for left in (2, 68)] for top in (83, 169)]
    assert lengths == [[64, 16], [0, 32]]


def test_a_class_that_nobody_could_be_asked_about_has_no_number(tmp_path: Path) -> None:
    def above(confidence: torch.Tensor | None) -> np.ndarray:
        path = class_rows(torch.zeros(1, 2, 3, 64, 64), ["cat"], tmp_path / "rows.png", confidence=confidence)
        return np.asarray(Image.open(path))[2:16]

    assert (above(None) == above(torch.full((1, 2), torch.nan))).all()
    assert (above(None) != above(torch.ones(1, 2))).any()


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(C, n, 3, H, W\) and C names"):
        class_rows(torch.zeros(2, 2, 3, 8, 8), ["cat"], tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"Confidence must be \(1, 2\), found \(2, 1\)"):
        class_rows(torch.zeros(1, 2, 3, 8, 8), ["cat"], tmp_path / "x.png", confidence=torch.ones(2, 1))


def test_baselines_are_level_lines_of_their_panel(figure: list[Figure], tmp_path: Path) -> None:
    lines = {"1-shot": [(1.0, 30.0), (2.0, 35.0)], "5-shot": [(1.0, 40.0), (2.0, 45.0)]}
    learning_curves(
        lines, tmp_path / "x.png", baselines={"random": {"1-shot": 25.0, "5-shot": 28.0}, "best": {"5-shot": 50.0}}
    )
    drawn = [{line.get_label(): set(line.get_ydata()) for line in panel.lines} for panel in figure[0].axes]
    assert drawn == [
        {"this run": {30.0, 35.0}, "random": {25.0}},
        {"this run": {40.0, 45.0}, "random": {28.0}, "best": {50.0}},
    ]
    (legend,) = figure[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["this run", "random", "best"]
    with pytest.raises(ValueError, match="no curve"):
        learning_curves({}, tmp_path / "x.png")


def test_kinds_differ_in_colour_or_marker() -> None:
    assert len({(colour_of(kind), marker_of(kind)) for kind in range(len(COLOURS) * len(MARKERS))}) == 56


def test_features_are_drawn_along_their_principal_components(figure: list[Figure], tmp_path: Path) -> None:
    """Unit features that differ in one direction lie on one line, however long they were."""
    support = torch.tensor([[1.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
    queries = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    feature_map(support, ["a", "b"], queries, tmp_path / "x.png", query_labels=["a", "b"])
    (axes,) = figure[0].axes
    # Of each class the small points, then the large ones.
    a_small, a_large, b_small, b_large = (np.asarray(each.get_offsets()) for each in axes.collections)
    np.testing.assert_allclose(a_small, a_large, atol=1e-6)
    np.testing.assert_allclose(b_small, b_large, atol=1e-6)
    np.testing.assert_allclose(np.abs(a_large - b_large), [[2**0.5, 0.0]], atol=1e-6)
    assert "100%" in axes.get_xlabel() and "(0%" in axes.get_ylabel()
    assert [text.get_text() for text in figure[0].legends[0].get_texts()] == ["a", "b"]


def test_queries_without_labels_are_drawn_in_grey(figure: list[Figure], tmp_path: Path) -> None:
    feature_map(torch.eye(3), list("abc"), torch.rand(4, 3), tmp_path / "x.png")
    feature_map(torch.eye(3), list("abc"), torch.empty(0, 3), tmp_path / "x.png")
    names = [[text.get_text() for text in each.legends[0].get_texts()] for each in figure]
    assert names == [["not classified", "a", "b", "c"], ["a", "b", "c"]]
    with pytest.raises(ValueError, match="three images or more"):
        feature_map(torch.eye(2), ["a", "b"], torch.empty(0, 2), tmp_path / "x.png")
    with pytest.raises(ValueError, match="a label of each"):
        feature_map(torch.eye(3), ["a", "b"], torch.empty(0, 3), tmp_path / "x.png")


def test_overlap_is_the_share_of_all_classes_that_either_knows() -> None:
    found = class_overlap([("a", "b"), ("b", "a"), ("b", "c", "d"), ("e",)])
    expected = [[1, 1, 0.25, 0], [1, 1, 0.25, 0], [0.25, 0.25, 1, 0], [0, 0, 0, 1]]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float))


def test_members_of_one_kind_of_classes_are_near_each_other(figure: list[Figure], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    sets = ["animals", "tools"]
    classes = [
        [f"{kind}-{number}" for number in torch.randperm(8, generator=generator)[:4].tolist()]
        for kind in sets
        for _ in range(8)
    ]
    groups = [kind for kind in sets for _ in range(8)]
    member_map(classes, groups, tmp_path / "x.png", names=[f"pool-{i}" for i in range(16)])
    (axes,) = figure[0].axes
    lines, *points = axes.collections
    places = np.array([each.get_offsets()[0] for each in points])
    distances = np.linalg.norm(places[:, None] - places, axis=-1)
    same = np.array(groups)[:, None] == np.array(groups)
    assert distances[same].mean() < 0.7 * distances[~same].mean()
    # No line joins members that share nothing.
    row_of = {tuple(place): row for row, place in enumerate(places.tolist())}
    pairs = [[row_of[tuple(end)] for end in segment.tolist()] for segment in lines.get_segments()]
    assert pairs and all(same[a, b] for a, b in pairs)
    assert sorted(text.get_text() for text in axes.texts) == sorted(map(str, range(16)))
    assert [text.get_text() for text in figure[0].legends[0].get_texts()] == [*sets, "classes shared"]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_few_members_have_a_map_too(tmp_path: Path, count: int) -> None:
    classes = [["a", "b"][: 1 + index % 2] for index in range(count)]
    assert member_map(classes, ["x"] * count, tmp_path / "x.png", kinds=["k"] * count).stat().st_size > 1000


def test_a_map_needs_two_members(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two members or more"):
        member_map([["a"]], ["x"], tmp_path / "x.png")


def test_models_of_a_growing_cost_are_dashed_and_measured_points_are_not_joined(
    figure: list[Figure], tmp_path: Path
) -> None:
    points = {"ask": [(10.0, 1.0), (100.0, 10.0)], "learn": [(10.0, 2.0)]}
    models = {"ask": [(10.0, 1.1), (1000.0, 99.0)]}
    panels = [Growth(name, "members", "seconds", points, models) for name in ("time", "memory")]
    growth_curves(panels, tmp_path / "x.png", columns=2)
    (drawn,) = figure
    assert [axes.get_title(loc="left") for axes in drawn.axes] == ["time", "memory"]
    axes = drawn.axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert {name: (line.get_linestyle(), line.get_marker()) for name, line in lines.items()} == {
        "ask": ("None", MARKERS[0]),
        "ask: model": ("--", ""),
        "learn": ("None", MARKERS[1]),
    }
    assert lines["ask"].get_color() == lines["ask: model"].get_color() == COLOURS[0]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["10", "100", "1,000"]
    with pytest.raises(ValueError, match="There is no panel to draw"):
        growth_curves([], tmp_path / "x.png")
