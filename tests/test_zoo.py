"""The zoo: each entry is small, has its card, loads without a network, and learns new classes far above chance."""

from __future__ import annotations

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from safetensors.torch import load_file

from hf_dfml import Classifier, MetaModel, adapt, zoo
from hf_dfml.cli import main
from hf_dfml.data import load_dataset
from hf_dfml.evaluation import EvaluationProtocol, evaluate
from hf_dfml.evaluation.results import RESULTS_NAME, write_results
from tests.hub_server import HubServer

MAKE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "zoo" / "make.py")))
NAMES = sorted(zoo.manifest())


def accuracy(name: str, dataset: str, split: str, **where) -> float:
    """5-shot accuracy in percent, 5-way, as the model is adapted by default."""
    meta = MetaModel.from_pretrained(name)
    data = load_dataset(dataset, split, image_size=meta.config.input_size[-1], **where)
    protocol = EvaluationProtocol(shots=[5], episodes=20, split=split).under(meta.config.adapt)
    return evaluate(meta.network, data, protocol, method="zoo")[0].mean


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_is_small_and_whole(name):
    folder, line = zoo.folder_of(f"zoo:{name}"), zoo.manifest()[name]
    weights = folder / "model.safetensors"
    assert weights.stat().st_size == line["bytes"] < 500_000
    assert {tensor.dtype for tensor in load_file(weights).values() if tensor.is_floating_point()} == {torch.float16}
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    meta = MetaModel.from_pretrained(f"zoo:{name}")
    assert MAKE.described(meta, line["summary"], line["bytes"]) == line and line["accuracy"]
    assert meta.name == f"zoo:{name}" and next(meta.network.parameters()).dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_has_its_card_and_no_path_of_a_machine(name):
    folder = zoo.folder_of(name)
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "hf-dfml" and card.data.eval_results
    assert "## How to use it" in card.text and "## Limits" in card.text and "![" not in card.text
    for path in (folder / "README.md", folder / "config.json"):
        assert not re.search(r"/(work|home|root|tmp|mnt)/", path.read_text())


def test_glyphs_are_told_apart():
    assert accuracy("zoo:glyphs", "glyphs", "test") > 70  # Chance is 20; its own card says 81 with 5 images a class.


def test_photographs_are_told_apart(shared_dir):
    assert accuracy("zoo:cifar-fs", "cifar-fs", "validation", data_dir=shared_dir / "data") > 50


def test_the_list_names_every_entry_with_its_accuracies(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["zoo"])
    shown = capsys.readouterr().out
    assert not stop.value.code and "hf-dfml adapt" in shown
    for name, entry in zoo.manifest().items():
        (line,) = (line for line in shown.splitlines() if f"zoo:{name} " in line)
        assert all(f"{accuracy:.1f}" in line for accuracy in entry["accuracy"].values())


def test_adapt_evaluate_and_classify_take_the_name(tmp_path, capsys):
    data = load_dataset("glyphs", "test")
    for label in (0, 1):
        (tmp_path / "photos" / f"class{label}").mkdir(parents=True)
        for index, image in enumerate(data.images[data.labels == label][:6]):
            path = tmp_path / ("photos" if index < 4 else ".") / f"class{label}" / f"{index}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    words = ["--support", str(tmp_path / "photos"), "--save", str(tmp_path / "mine")]
    with pytest.raises(SystemExit) as stop:
        main(["adapt", "zoo:glyphs", *words])
    assert not stop.value.code
    classifier = Classifier.from_pretrained(tmp_path / "mine")
    assert classifier.classes == ("class0", "class1") and classifier.origin.name == "zoo:glyphs"
    assert adapt("zoo:glyphs", tmp_path / "photos").predict(data.images[:1]) == classifier.predict(data.images[:1])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["classify", str(tmp_path / "mine"), str(tmp_path / "class0"), str(tmp_path / "class1")])
    answers = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert len(answers) == 4
    with pytest.raises(SystemExit) as stop:
        words = ["--dataset", "glyphs", "--episodes", "2", "--shots", "1", "--output_dir", str(tmp_path / "rows")]
        main(["evaluate", "zoo:glyphs", *words])
    assert not stop.value.code and len(json.loads((tmp_path / "rows" / RESULTS_NAME).read_text())) == 1


def test_an_unknown_name_is_answered_with_the_names():
    for load in (MetaModel.from_pretrained, Classifier.from_pretrained, lambda name: adapt(name, "photos")):
        with pytest.raises(
            FileNotFoundError, match=r"The zoo has no 'glyph': .*zoo:glyphs.*Did you mean zoo:glyphs\?"
        ):
            load("zoo:glyph")


def test_an_entry_is_made_of_a_run_and_refused_where_it_is_too_large(tmp_path, monkeypatch):
    run = zoo.folder_of("glyphs")
    line = MAKE.add(run, "copy", "Again.", tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text()) == {"copy": line}
    assert (tmp_path / "copy" / "model.safetensors").stat().st_size == line["bytes"]
    assert line == {**zoo.manifest()["glyphs"], "summary": "Again."}
    with pytest.raises(ValueError, match="not a valid name"):
        MAKE.add(run, "../x", "", tmp_path)
    monkeypatch.setitem(MAKE.add.__globals__, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="at most 1000"):
        MAKE.add(run, "large", "", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "manifest.json"]


def test_baselines_that_were_measured_by_themselves_are_added(tmp_path):
    run = zoo.folder_of("glyphs")
    rows = [row for row in MetaModel.from_pretrained(run).config.results if row.method == "Random init"]
    theirs = [replace(row, method="Another", mean=12.34) for row in rows]
    write_results(tmp_path / "rows", [*theirs, replace(rows[0], method="Other episodes", seed=5)])
    MAKE.add(run, "copy", "Again.", tmp_path, baselines=tmp_path / "rows")
    config, card = MetaModel.from_pretrained(tmp_path / "copy").config, (tmp_path / "copy" / "README.md").read_text()
    assert [row.mean for row in config.results if row.method == "Another"] == [12.34, 12.34]
    assert "| Another | finetune, 10 x 0.01 (papers) | support | 12.34" in card and "Other episodes" not in card
    with pytest.raises(ValueError, match="No baseline is of the same episodes"):
        MAKE.with_baselines(config, [replace(rows[0], seed=5)])


def test_pictures_leave_the_card_with_their_captions():
    card = "Table.\n\n![Accuracy.](pictures/r.png)\n\nAccuracy.\n\n## Limits\n\n- One.\n"
    assert MAKE.without_pictures(card) == "Table.\n\n## Limits\n\n- One.\n"


def test_the_zoo_is_published_with_a_collection_and_again_without_a_second_one(hub: HubServer):
    slug = MAKE.push("me")
    assert MAKE.push("me") == slug
    api = HfApi(endpoint=hub.url, token=hub.token)
    collection = api.get_collection(slug)
    assert [item.item_id for item in collection.items] == [f"me/hf-dfml-{name}" for name in NAMES]
    meta = MetaModel.from_pretrained("me/hf-dfml-glyphs")
    assert meta.config.method == "Pool distillation"
    card = Path(api.hf_hub_download("me/hf-dfml-glyphs", "README.md")).read_text()
    assert 'from_pretrained("me/hf-dfml-glyphs")' in card
