"""Before, not after: what is wrong with a run is said before a member is opened and before a file is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_dfml.cli import main
from hf_dfml.errors import explain
from hf_dfml.methods.catalogue import METHODS, find_method
from hf_dfml.pipeline import run
from hf_dfml.pool import model_pool
from hf_dfml.run_config import RunConfig
from hf_dfml.settings import options_of
from hf_dfml.trainer import Trainer
from tests.classifier.conftest import make_meta
from tests.pool.members import write_pool

WRONG: dict[str, list[dict[str, Any]]] = {
    # Each option that names something, and the ways in which it may be wrong alone. Paths are below the test's folder.
    "pool": [{"pool": "./typo"}, {"pool": ""}, {"pool": "nobody/x"}, {"pool": "a.txt"}, {"pool": "empty"}],
    "dataset": [{"dataset": "glyps"}, {"dataset": "glyphs,glyps"}, {"dataset": "glyphs", "data": "photos"}],
    "data": [{"data": "./typo"}, {"data": "dir:typo"}],
    "data_dir": [{"dataset": "cifar-fs", "data_dir": "./typo"}, {"dataset": "cifar-fs", "data_dir": "empty"}],
    "arch": [{"arch": "conv5"}, {"arch": "resnet188"}, {"arch": "resnet18.typo"}, {"arch": ""}],
    "student_from": [
        {"student_from": "./typo"},
        {"student_from": "resnet18.typo"},
        {"student_from": "pool"},
        {"student_from": "empty"},
    ],
    "push_to_hub": [{"push_to_hub": "a/b/c"}, {"push_to_hub": "somebody/x"}],
    "resume_from_checkpoint": [{"resume_from_checkpoint": "lastest"}, {"resume_from_checkpoint": "empty"}],
    "recovery_cache": [{"recovery_cache": "a.txt"}, {"recovery_cache": "a.txt/below"}],
    "output_dir": [{"output_dir": "a.txt"}, {"output_dir": "a.txt/below"}],
    "log_with": [{"log_with": "tensorbord"}, {"log_with": "tensorboard,typo"}],
}
OF_THE_DATA = [
    # What only the data say: refused before the first file, but the members' configs were read.
    {"dataset": "glyphs", "ways": 17},
    {"dataset": "glyphs", "shots": [1, 86]},
    {"dataset": "glyphs", "queries": 1000},
    {"data": "photos", "ways": 3},
    {"image_size": 3},
]
FREE = {"image_column": "of a data set whose columns are asked when it is read", "label_column": "likewise"}
"""Options that name something and are not in `WRONG`, and why."""
OF_METHODS = {
    ("tgr", "probe"): ["resnet34.typo", "./typo"],
    ("pool_distillation", "images"): ["./typo", "empty"],
    ("pool_distillation", "prior"): ["./typo", "empty"],
}


class BegunError(Exception):
    """Work has begun."""


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The members whose weights were read. A run that would begin its work fails with `BegunError`."""
    opened: list[str] = []
    load = model_pool.load_teacher

    def noted(entry):
        opened.append(entry.id)
        return load(entry)

    def begun(self):
        raise BegunError

    monkeypatch.setattr(model_pool, "load_teacher", noted)
    monkeypatch.setattr(Trainer, "fit", begun)
    return opened


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a pool, two photos, a text, and a folder that is empty; the working directory."""
    monkeypatch.chdir(tmp_path)
    write_pool(tmp_path / "pool", 2)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name / "1.png")
    (tmp_path / "a.txt").write_text("plain words")
    (tmp_path / "empty").mkdir()
    return tmp_path


def tried(method: str, options: dict[str, Any], **hyper: Any) -> Exception:
    """What a run with these options ends with."""
    method_class = find_method(method)
    usual = {"pool": "pool", "arch": "conv4_16", "ways": 3, "output_dir": "out", "log_with": "none"}
    with pytest.raises(Exception) as caught:  # noqa: PT011 (of several kinds; each must have a sentence)
        run(method_class, method_class.Config(**hyper), RunConfig(**usual | options), argv=["test"])
    return caught.value


def refused_by_a_sentence(error: Exception, place: Path, before: list[Path]) -> None:
    sentence = explain(error)
    assert sentence and not isinstance(error, BegunError), repr(error)
    assert sorted(place.rglob("*")) == before, "no file was written"


@pytest.mark.parametrize("options", [each for wrong in WRONG.values() for each in wrong], ids=str)
def test_a_wrong_name_is_refused_before_a_member_is_opened(hub, place, opened, options):
    before = sorted(place.rglob("*"))
    refused_by_a_sentence(tried("tgr", options, probe="average"), place, before)
    assert opened == []


@pytest.mark.parametrize("options", OF_THE_DATA, ids=str)
def test_what_the_data_cannot_give_is_refused_before_the_first_file(place, opened, options):
    before = sorted(place.rglob("*"))
    refused_by_a_sentence(tried("tgr", options, probe="average"), place, before)


@pytest.mark.parametrize(("method", "option"), OF_METHODS)
def test_a_wrong_name_of_a_method_is_refused_before_the_first_file(place, opened, method, option):
    before = sorted(place.rglob("*"))
    for value in OF_METHODS[method, option]:
        refused_by_a_sentence(tried(method, {}, **{option: value}), place, before)


@pytest.mark.parametrize("method", METHODS)
def test_right_names_begin_the_work(place, opened, method):
    """Else every option above would be refused for another reason than its own."""
    hyper = {"probe": "average"} if method == "tgr" else {}
    assert isinstance(tried(method, {}, **hyper), BegunError) and opened


def test_every_option_that_names_something_is_tried():
    def names(config: Any) -> set[str]:
        return {name for name, each in options_of(config).items() if each.kind is str and not each.choices}

    assert names(RunConfig) == WRONG.keys() | FREE.keys()
    for method in METHODS:
        of_method = names(find_method(method).Config)
        assert of_method == {option for name, option in OF_METHODS if name == method}, method


@pytest.mark.parametrize(
    "words",
    [
        ["--pool", "./typo"],
        ["--pool", "empty"],
        ["--head", "protoype"],
        ["--bn", "runing"],
        ["--split", "tset"],
        ["--dataset", "glyps"],
        ["--ways", "1"],
        ["--shots", "0"],
        ["--shots", "86"],
        ["--episodes", "1"],
        ["--output-dir", "a.txt"],
    ],
    ids=" ".join,
)
def test_an_evaluation_is_not_lost_to_a_typo(hub, place, monkeypatch, capsys, words):
    """No episode is evaluated before everything that is named beside it was found."""
    evaluated: list[int] = []
    monkeypatch.setattr("hf_dfml.evaluation.reporting.evaluate_each", lambda *_, **__: evaluated.append(1) or [])
    make_meta().save_pretrained(place / "meta")
    given = ["evaluate", "meta", "--episodes", "4", "--shots", "1"]
    given += [] if "--dataset" in words else ["--dataset", "glyphs"]
    with pytest.raises(SystemExit) as stop:
        main([*given, *words])
    said = str(stop.value.code) + capsys.readouterr().err
    assert stop.value.code not in (0, None) and len(said.split()) > 3
    assert not evaluated and not list(place.rglob("results.json"))


def test_a_data_set_that_is_not_known_is_not_looked_for_on_the_hub(place, monkeypatch):
    """Where the Hub is not reached, asking it takes half a minute."""
    monkeypatch.setattr("hf_dfml.data.folders.load_table", lambda *_: pytest.fail("the Hub is asked"))
    make_meta().save_pretrained(place / "meta")
    with pytest.raises(SystemExit, match="Data set 'glyps' is unknown: expected one of cifar-fs"):
        main(["evaluate", "meta", "--dataset", "glyps"])


def test_results_that_cannot_be_read_are_refused_before_the_evaluation(place, monkeypatch):
    evaluated: list[int] = []
    monkeypatch.setattr("hf_dfml.evaluation.reporting.evaluate_each", lambda *_, **__: evaluated.append(1) or [])
    make_meta().save_pretrained(place / "meta")
    (place / "out").mkdir()
    (place / "out" / "results.json").write_text(json.dumps({"not": "rows"}))
    with pytest.raises(SystemExit, match=r"results\.json"):
        main(["evaluate", "meta", "--dataset", "glyphs", "--episodes", "4", "--shots", "1", "--output-dir", "out"])
    assert not evaluated
