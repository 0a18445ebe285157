from __future__ import annotations

import pytest
from huggingface_hub import constants

from hf_dfml.pool import ModelPool
from tests.pool.members import ids, requests_of


def test_a_collection_gives_its_models(org):
    slug = "org/teachers-64f9a55bb3115b4f513ec026"
    org.add_collection(slug, [("model", "org/m-3"), ("dataset", "org/d"), ("model", "org/m-1")])
    org.add_collection("org/short-123", [("model", "org/m-0")])
    assert ids(ModelPool.from_collection(slug)) == ["org/m-3", "org/m-1"]
    assert ids(ModelPool.open(slug)) == ["org/m-3", "org/m-1"]
    assert ids(ModelPool.open("collection:org/short-123")) == ["org/m-0"]
    with pytest.raises(FileNotFoundError, match="no collection 'org/none'"):
        ModelPool.from_collection("org/none")


@pytest.mark.parametrize("by_option", [True, False])
def test_nothing_is_asked_of_the_hub_offline(org, monkeypatch, by_option):
    slug = "org/teachers-64f9a55bb3115b4f513ec026"
    org.add_collection(slug, [("model", "org/m-1")])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not by_option)
    with pytest.raises(FileNotFoundError, match=f"The collection '{slug}' cannot be listed, since HF_HUB_OFFLINE"):
        ModelPool.from_collection(slug, local_files_only=by_option)
    assert requests_of(org) == []


def test_a_hostile_collection_names_its_members_and_leads_nowhere(org, tmp_path):
    slug = "org/teachers-64f9a55bb3115b4f513ec026"
    hostile = ["../../evil", "org/../evil", "/evil", "org/evil\n", "org/m-2@../evil"]
    org.add_collection(slug, [("model", id) for id in (*hostile, "org/m-1")])
    pool = ModelPool.from_collection(slug)
    assert all("is not a" in entry.problem for entry in pool[:5]) and pool[5].problem is None
    assert requests_of(org) == ["GET /api/collections/" + slug, "GET /api/models/org/m-1"]
    assert ids(pool.usable(weights=True)) == ["org/m-1"] and not list(tmp_path.rglob("*evil*"))
