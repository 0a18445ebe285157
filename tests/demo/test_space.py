"""The folder of a Space: what the Hub reads of it, and that its app runs."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import RepoCard

from hf_dfml import Classifier, MetaModel, __version__
from hf_dfml.cli import main
from hf_dfml.demo import page
from tests.pool.members import write_pool

gradio = pytest.importorskip("gradio", reason="the extra `demo` is not installed")


def app_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the Space's app opens when it runs in its folder."""
    names: list[str] = []
    monkeypatch.setattr(page, "launch", names.append)
    runpy.run_path(str(folder / "app.py"))
    return names[0]


def test_the_folder_of_a_classifier(
    classifier_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = tmp_path / "space"
    main_done(["demo", str(classifier_folder), "--space", str(folder)])
    assert f"hf upload ME/NAME {folder} . --type space" in capsys.readouterr().out
    card = RepoCard.load(folder / "README.md")
    settings = card.data.to_dict()
    assert settings["sdk"] == "gradio" and settings["sdk_version"] == gradio.__version__
    assert settings["app_file"] == "app.py" and "hf-dfml" in settings["tags"] and settings["title"] == "my-classifier"
    assert "ant, bee, cow" in card.text and "models" not in settings
    assert (folder / "requirements.txt").read_text() == f"hf_dfml=={__version__}\n"
    name = app_of(folder, monkeypatch)
    monkeypatch.chdir(folder)
    assert Classifier.from_pretrained(name).classes == ("ant", "bee", "cow")


def test_the_folder_of_a_meta_model(meta_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main_done(["demo", str(meta_folder), "--space", str(tmp_path / "space")])
    name = app_of(tmp_path / "space", monkeypatch)
    monkeypatch.chdir(tmp_path / "space")
    assert MetaModel.from_pretrained(name).config == MetaModel.from_pretrained(meta_folder).config


def test_of_a_model_on_the_hub_the_id_is_enough(
    classifier_folder: Path, tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Classifier.from_pretrained(classifier_folder).push_to_hub("me/mine")
    folder = tmp_path / "space"
    main_done(["demo", "me/mine", "--space", str(folder)])
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "app.py", "requirements.txt"]
    assert RepoCard.load(folder / "README.md").data.to_dict()["models"] == ["me/mine"]
    assert app_of(folder, monkeypatch) == "me/mine"


def test_what_is_refused_leaves_nothing(classifier_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="^hf-dfml: .*used is not an empty folder: choose another one"):
        main(["demo", str(classifier_folder), "--space", str(tmp_path / "used")])
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["mine.txt"]
    write_pool(tmp_path / "pool", 2)
    with pytest.raises(SystemExit, match="pool is a pool in a folder, which a Space cannot read: push it"):
        main(["demo", str(tmp_path / "pool"), "--space", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


def main_done(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0
