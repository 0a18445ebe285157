"""A misspelt folder is answered with the right one; the Hub is asked once, about names that may be its own."""

from __future__ import annotations

import time

import pytest

from hf_dfml import Classifier, MetaModel, ModelPool
from hf_dfml.classifier.files import is_classifier
from hf_dfml.pool.sources.near import did_you_mean
from tests.pool.members import write_pool


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with `pools/mine` of two members, a pool by itself, and a folder that holds no models."""
    write_pool(tmp_path / "pools" / "mine", 2)
    write_pool(tmp_path / "my-pool", 1)
    (tmp_path / "photos" / "train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("pools/mnie", "pools/mine"),
        ("pool/mine", "pools/mine"),
        ("./pools/mien", "pools/mine"),
        ("dir:pools/mien", "pools/mine"),
        ("my-pol", "my-pool"),
        ("my-pools@v1", "my-pool"),
        ("pools/mine/m-O", None),
        ("pools/mine/m-7", None),  # Another number is another member.
        ("pools/mine", None),
        ("pools/birds", None),
        ("phots", None),  # Holds no models.
        ("hf:pools/mnie", None),
        ("http://pools/mnie", None),
    ],
)
def test_the_nearest_folder_of_models_is_named(here, name, meant):
    assert did_you_mean(name) == (f" Did you mean {meant}?" if meant else "")


def test_an_absolute_path_is_answered_too(here):
    assert did_you_mean(str(here / "pools" / "mnie")) == f" Did you mean {here / 'pools' / 'mine'}?"


def test_nobody_is_asked_about_a_name_that_is_nearly_a_folders(here, hub):
    for ask in (ModelPool.open, MetaModel.from_pretrained, Classifier.from_pretrained, is_classifier):
        with pytest.raises(FileNotFoundError, match="There is no folder pools/mnie. Did you mean pools/mine?"):
            ask("pools/mnie")
    with pytest.raises(FileNotFoundError, match=r"Did you mean pools/mine\?$"):
        ModelPool.open("./pools/mnie")
    assert hub.requests == []
    with pytest.raises(FileNotFoundError, match="'hf:pools/mnie' is neither a folder here nor a repository"):
        ModelPool.open("hf:pools/mnie")
    with pytest.raises(ValueError, match="pools/mnie is no repository"):
        MetaModel.from_pretrained("hf:pools/mnie")
    assert [request.path for request in hub.requests] == ["/api/models/pools/mnie"] * 2


def test_a_hub_that_cannot_be_reached_is_asked_once(here, monkeypatch):
    """Nobody listens at the address that tests have for it."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    for name in ("someone", "someone/model", "hf:someone"):
        with pytest.raises(
            ConnectionError, match=rf"There is no folder {name}, and the Hub \(.*\) could not be reached"
        ):
            ModelPool.open(name)
    assert waits == []
