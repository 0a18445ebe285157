"""`hf-dfml push` as it is typed: a run and a classifier become repositories that can be used by their names."""

from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from hf_dfml import Classifier, MetaModel
from hf_dfml.cli import main
from tests.classifier.conftest import labels, make_meta, pictures
from tests.hub_server import HubServer


def push(*words: object) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["push", *map(str, words)])
    assert stop.value.code in (0, None), stop.value.code


def test_a_run_is_published_under_the_name_that_was_typed(tmp_path: Path, hub: HubServer, capsys) -> None:
    meta = make_meta()
    meta.save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "results.json").write_text("[]")
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "tree.json").write_text("{}")
    push(tmp_path / "run", "tester/tgr")
    assert capsys.readouterr().out == f"Published: {hub.url}/tester/tgr\n"
    files = hub.repos["tester/tgr"].at("main").files
    assert {"config.json", "model.safetensors", "README.md", "results.json"} == set(files) - {".gitattributes"}
    again = MetaModel.from_pretrained("tester/tgr").network.state_dict()
    assert all(torch.equal(again[name], value) for name, value in meta.network.state_dict().items())


def test_a_classifier_is_published_in_the_same_words_without_its_images(
    tmp_path: Path, hub: HubServer, capsys
) -> None:
    classifier = make_meta().adapt(pictures(0, 2), labels(2))
    classifier.leave_one_out()
    classifier.save_pretrained(tmp_path / "mine", store_support=True)
    push(tmp_path / "mine", "tester/insects", "--private")
    assert f"Published: {hub.url}/tester/insects" in capsys.readouterr().out
    files = hub.repos["tester/insects"].at("main").files
    assert {"config.json", "model.safetensors", "README.md"} == set(files) - {".gitattributes"}
    assert 'from_pretrained("tester/insects")' in ModelCard(files["README.md"].content.decode()).text
    again, queries = Classifier.from_pretrained("tester/insects"), pictures(5)
    assert torch.equal(again.predict_proba(queries), classifier.predict_proba(queries))
    assert again.left_out == classifier.left_out and hub.repos["tester/insects"].private


def test_what_cannot_be_published_is_refused_before_anything_is_made(tmp_path: Path, hub: HubServer) -> None:
    make_meta().save_pretrained(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    for words, reason in (
        ((tmp_path / "nowhere", "tester/x"), "There is no folder .*nowhere"),
        ((tmp_path / "empty", "tester/x"), "empty holds no meta-model"),
        ((tmp_path / "run", "somebody/x"), "somebody/x: your token is that of tester"),
        ((tmp_path / "run", "tester/x y"), "x y"),
    ):
        with pytest.raises(SystemExit, match=reason):
            main(["push", *map(str, words)])
    assert hub.repos == {}
