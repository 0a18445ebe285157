"""Rows, files and tables."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from hf_dfml.evaluation import (
    Result,
    markdown_table,
    mean_and_interval,
    merged,
    print_table,
    published,
    read_results,
    results,
    results_chart,
    write_results,
)
from hf_dfml.evaluation.published import _tables

TOTAL = 5013.591
"""Sum of all figures, as they were typed in from the papers."""

ROW = Result(
    "FREE",
    "cifar-fs",
    5,
    1,
    "transductive",
    "finetune",
    600,
    "accuracy",
    38.5,
    0.8,
    0,
    "test",
    12.5,
    "python x.py",
    image_size=32,
    pool="one architecture",
    architecture="conv4",
)


def test_interval_is_that_of_the_mean() -> None:
    mean, interval = mean_and_interval(torch.tensor([10.0, 20.0, 30.0, 40.0]))
    assert mean == 25.0
    assert interval == pytest.approx(1.96 * (500 / 3) ** 0.5 / 2)


def test_files_hold_the_agreed_keys_and_come_back(tmp_path: Path) -> None:
    rows = [ROW, replace(ROW, shots=5, bn=None)]
    path = write_results(tmp_path, rows)
    assert path == tmp_path / "results.json"
    keys = "method dataset ways shots bn head flips representation inner_steps inner_lr episodes metric mean ci95"
    keys += " seed split seconds command image_size pool model architecture"
    assert list(json.loads(path.read_text())[0]) == keys.split()
    assert read_results(tmp_path) == read_results(path) == rows


def test_files_hold_no_machine_paths(tmp_path: Path) -> None:
    path = write_results(tmp_path, [replace(ROW, command="python /home/ada/x.py --token=hf_abcdefghijkl")])
    assert read_results(path)[0].command == "python x.py --token=HIDDEN"


@pytest.mark.parametrize("content", ["{", '[{"method": "x"}]', "[1]"])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=r"results\.json"):
        read_results(tmp_path)
    with pytest.raises(FileNotFoundError, match="hf-dfml evaluate"):
        read_results(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (("FREE", "cifar-fs", 5, 5), (52.58, 0.77)),
        (("FREE with FIVE", "cifar-fs", 5, 1), (37.43, 0.77)),
        (("Random init", "cifar-fs", 5, 1), (28.59, 0.56)),
        (("Average, 60 of 100 members", "cifar-fs", 5, 1), (23.96, 0.53)),
        (("DRO", "cifar-fs", 5, 1), (30.43, 0.43)),
        (("DRO (online)", "cifar-fs", 5, 10, {"architecture": "conv4_16"}), (49.18, 1.2)),
        (("OML", "cifar-fs", 5, 20, {"architecture": "conv4_16"}), (49.87, None)),
        (("MAML", "sinusoid", None, 10), (1.303, 0.05)),
        (("TGR", "cifar-fs", 5, 1), None),
        (("FREE", "cifar-fs", 10, 1), None),
        (("FREE", "glyphs", 5, 1), None),
        (("Best member + prototype", "cifar-fs", 5, 1), None),
        # The paper's images are of 84 pixels.
        (("PURER", "mini-imagenet", 5, 1), None),
        (("PURER", "mini-imagenet", 5, 1, {"image_size": 84}), (31.14, 0.63)),
        (("BiDf-MKD", "cub", 5, 5, {"image_size": 84}), (44.32, 0.69)),
        (("DRO", "mini-imagenet", 10, 20, {"image_size": 84, "architecture": "conv4_16"}), (32.68, 1.7)),
        (("FREE", "cifar-fs", 5, 1, {"head": "prototype"}), None),
        (("FREE", "cifar-fs", 5, 1, {"head": "linear"}), None),
        (("FREE", "cifar-fs", 5, 1, {"bn": "support"}), None),
        (("FREE", "cifar-fs", 5, 1, {"architecture": "resnet12"}), None),
        (("DRO", "cifar-fs", 5, 10), None),
        (("FREE", "cifar-fs", 5, 1, {"pool": None}), None),
        (("FREE", "cifar-fs", 5, 1, {"pool": "three architectures"}), (39.63, 0.82)),
        (("FREE", "cifar-fs", 5, 1, {"pool": "several domains"}), None),
        (
            (
                "FREE",
                "cifar-fs, cub, mini-imagenet",
                5,
                5,
                {"pool": "several domains", "architecture": "conv4_global"},
            ),
            (44.04, 0.66),
        ),
    ],
)
def test_published_figures(question: tuple, answer: tuple | None) -> None:
    *names, changes = question if isinstance(question[-1], dict) else (*question, {})
    keys = {"head": "finetune", "bn": "transductive", "image_size": 32, "pool": "one architecture"}
    keys |= {"architecture": "conv4", **changes}
    found = published(*names, **keys)
    assert (found and found[:2]) == answer


def test_all_published_figures_are_kept() -> None:
    tables = _tables()
    assert sum(len(table["figures"]) for table in tables) == 76
    figures = [figure for table in tables for each in table["figures"].values() for figure in each]
    assert len(figures) == 152 and round(sum(mean for mean, _ in figures), 3) == TOTAL


def test_only_test_classes_are_compared_with_the_papers() -> None:
    assert ROW.paper is not None and ROW.paper[:2] == (39.13, 0.85)
    assert "transductive" in ROW.paper.source and "chosen on the test classes" in ROW.paper.source
    assert replace(ROW, split="validation").paper is None


def test_other_inner_steps_than_the_papers_are_not_compared_with_them() -> None:
    steps = {"inner_steps": 10, "inner_lr": 0.01}
    assert replace(ROW, **steps).paper == ROW.paper is not None
    assert replace(ROW, **{**steps, "inner_lr": 0.05}).paper is None
    assert replace(ROW, **{**steps, "inner_steps": 5}).paper is None


def test_tables_put_shots_side_by_side_and_the_papers_beside_ours() -> None:
    rows = [ROW, replace(ROW, shots=5, mean=50.25), replace(ROW, method="TGR", bn="running")]
    lines = markdown_table(rows).splitlines()
    assert lines[0] == "**cifar-fs, test classes, 5-way, 600 episodes, seed 0: accuracy in %**"
    assert lines[2] == "| method | head | bn | 1-shot | paper | 5-shot | paper |"
    assert lines[4] == "| FREE | finetune | transductive | 38.50 ± 0.80 | 39.13 ± 0.85 | 50.25 ± 0.80 | 52.58 ± 0.77 |"
    assert lines[5] == "| TGR | finetune | running | 38.50 ± 0.80 | - | - | - |"
    assert lines[7].startswith("paper: FREE (CVPR 2024), table 2: transductive batch norm, 10 SGD steps at 0.01")


def test_rows_that_differ_in_steps_or_flips_are_rows_of_their_own() -> None:
    changes = [{"inner_steps": 10, "inner_lr": 0.01}, {"inner_steps": 20, "inner_lr": 0.01}]
    changes += [{"head": "prototype"}, {"head": "prototype", "flips": True}]
    lines = markdown_table([replace(ROW, **each) for each in changes]).splitlines()[4:8]
    heads = ["finetune, 10 x 0.01 (papers)", "finetune, 20 x 0.01", "prototype", "prototype, flips"]
    assert [line.split(" | ")[1] for line in lines] == heads


def test_several_domains_have_their_mean_beside_the_papers() -> None:
    names = ("cub", "cifar-fs", "mini-imagenet")
    several = replace(ROW, pool="several domains", image_size=84, architecture="conv4_global")
    rows = [
        replace(several, dataset=name, mean=mean, ci95=0.6)
        for name, mean in zip(names, (30.0, 33.0, 36.0), strict=True)
    ]
    text = markdown_table(rows)
    assert "**cifar-fs, cub, mini-imagenet, test classes" in text
    assert f"| {33.0:.2f} ± {0.6 / 3**0.5:.2f} | 31.51 ± 0.63 |" in text and text.count("31.51") == 1
    assert "31.51" not in markdown_table([replace(row, pool="one architecture") for row in rows])


def test_rows_of_earlier_versions_are_read(tmp_path: Path) -> None:
    new = {"flips", "inner_steps", "inner_lr", "image_size", "pool", "architecture"}
    old = {name: value for name, value in asdict(ROW).items() if name not in new}
    (tmp_path / "results.json").write_text(json.dumps([{**old, "head": "mirrored"}, old]))
    mirrored, plain = read_results(tmp_path)
    assert (mirrored.head, mirrored.flips, mirrored.how) == ("prototype", True, "prototype, flips")
    assert plain == replace(ROW, image_size=None, pool=None, architecture=None) and plain.paper is None


def test_different_evaluations_are_different_tables() -> None:
    text = markdown_table([ROW, replace(ROW, episodes=100), replace(ROW, split="validation")])
    assert text.count("| FREE |") == 3
    assert text.count("**cifar-fs") == 3


def test_printed_table_has_every_number() -> None:
    from rich.console import Console

    stream = StringIO()
    print_table([ROW, replace(ROW, metric="mse", dataset="sinusoid", ways=None)], Console(file=stream, width=140))
    text = stream.getvalue()
    for piece in ("38.50 ± 0.80", "39.13 ± 0.85", "finetune", "transductive", "38.500 ± 0.800", "mean squared error"):
        assert piece in text


def test_titles_are_not_broken_where_they_are_written_to_a_file() -> None:
    from rich.console import Console

    stream = StringIO()
    print_table([ROW], Console(file=stream, width=40))
    title = "cifar-fs, test classes, 5-way, 600 episodes, seed 0: accuracy in %"
    assert stream.getvalue().splitlines()[0] == title


def test_rows_of_the_same_evaluation_are_replaced_and_others_stay() -> None:
    others = [replace(ROW, **change) for change in ({"shots": 5}, {"head": "prototype"}, {"episodes": 100})]
    again = replace(ROW, mean=40.0, ci95=0.7, seconds=1.0, command="another")
    assert merged([ROW, *others], [again]) == [*others, again]
    elsewhere = replace(ROW, model="zoo:cub")
    assert merged([ROW, elsewhere], [replace(again, model="zoo:cub")]) == [ROW, replace(again, model="zoo:cub")]


def test_labels_of_bars_name_a_head_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(results, "bar_chart", lambda bars, *args, **options: drawn.extend(bars))
    frozen = replace(ROW, method="Best member + prototype", head="prototype", bn="running")
    results_chart([frozen, replace(frozen, method="TGR"), replace(frozen, method="x", bn=None)], "x.png")
    assert drawn == ["Best member + prototype\nbn running", "TGR\nprototype, bn running", "x\nprototype"]


def test_chart_is_a_picture(tmp_path: Path) -> None:
    path = results_chart([ROW, replace(ROW, shots=5), replace(ROW, method="TGR")], tmp_path / "a" / "chart.png")
    assert min(Image.open(path).size) > 100


def test_a_chart_has_a_bar_for_each_row_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict = {}
    monkeypatch.setattr("hf_dfml.evaluation.results.bar_chart", lambda bars, path, **_: drawn.update(bars))
    members = replace(ROW, method="All 3 members + prototype", head="prototype", bn="running")
    rows = [members, *(replace(members, representation=kind) for kind in ("answers", "both"))]
    rows += [replace(members, flips=True), replace(ROW, head="finetune", inner_steps=5, inner_lr=0.05)]
    results_chart(rows, tmp_path / "chart.png")
    of_members = ["bn running", "answers, bn running", "features and answers, bn running", "flips, bn running"]
    wanted = [f"All 3 members + prototype\n{how}" for how in of_members]
    assert list(drawn) == [*wanted, f"{ROW.method}\nfinetune, 5 x 0.05, bn {ROW.bn}"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[" * 100_000, "results.json is not readable as JSON"),
        ("7", "expected a list of result rows, found a JSON int"),
        ("[7]", "expected result rows with the fields"),
    ],
)
def test_a_file_that_holds_no_rows_is_a_sentence(tmp_path, content, reason):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=reason):
        read_results(tmp_path)


def test_values_of_stored_rows_are_held_to_their_types(tmp_path):
    for name, value in (("mean", "high"), ("ways", 2.5), ("metric", "luck"), ("bn", ["support"])):
        (tmp_path / "results.json").write_text(json.dumps([asdict(ROW) | {name: value}]))
        with pytest.raises(ValueError, match=f"results.json: {name} "):
            read_results(tmp_path)
    lonely = replace(ROW, ci95=float("nan"))  # The interval of one episode.
    (tmp_path / "results.json").write_text(json.dumps([asdict(lonely)]))
    assert asdict(read_results(tmp_path)[0])["mean"] == ROW.mean
