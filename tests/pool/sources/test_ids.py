from __future__ import annotations

import json

import pytest
import torch
import transformers
from huggingface_hub import constants

from hf_dfml.pool import MemberError, ModelPool
from hf_dfml.pool.sources.ids import without_page
from tests.hub_server import Answer
from tests.pool.members import files_of, ids, images, requests_of, write_member


def test_revisions_are_branches_tags_or_commits(org, tmp_path):
    first = org.repos["org/m-0"].branches["main"]
    org.repos["org/m-0"].tags["v1"] = first
    org.add_repo("org/m-0", files_of(write_member(tmp_path / "new", seed=7)))
    newest = org.repos["org/m-0"].branches["main"]
    pool = ModelPool.from_hub(["org/m-0@v1", "org/m-1@main"])
    assert pool[0].revision == first and pool[1].revision == org.repos["org/m-1"].branches["main"]
    assert ModelPool.from_hub(["org/m-0"])[0].revision == newest
    assert "has no such revision" in ModelPool.from_hub(["org/m-0@v9"])[0].problem


@pytest.mark.parametrize(
    "id", ["../x", "/etc/x", "a/../../b", "org/..", "org/m-1@../../x", "org/m-1@/x", "a--b/c", "~/x"]
)
def test_an_id_that_would_leave_the_cache_is_refused_before_anything_is_sent(org, tmp_path, id):
    before = sorted(tmp_path.rglob("*"))
    pool = ModelPool.from_hub([id, "org/m-0"])
    assert pool[0].problem is not None and "is not a" in pool[0].problem
    with pytest.raises(MemberError) as caught:
        pool.load(0)
    assert str(caught.value).startswith(id.split("@")[0]) and "\n" not in str(caught.value)
    assert requests_of(org) == ["GET /api/models/org/m-0"]
    assert sorted(tmp_path.rglob("*")) == before
    assert ids(pool.usable(weights=True)) == ["org/m-0"]


def test_a_transformers_repository_is_a_member(org, tmp_path):
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    settings = {"size": 32, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "resnet" / "preprocessor_config.json").write_text(json.dumps(settings))
    org.add_repo("org/resnet", files_of(tmp_path / "resnet"))
    teacher = ModelPool.from_hub("org").load("org/resnet")
    assert len([request for request in requests_of(org) if "/org/resnet/" in request]) == 6  # HEAD and GET of 3 files.
    local = ModelPool.from_dir(tmp_path / "resnet").load(0)
    assert torch.equal(teacher(images()), local(images()))


def test_a_private_repository_needs_the_token_and_the_token_is_never_shown(org, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    org.repos["org/m-0"].private = True
    assert ModelPool.from_hub(["org/m-0"]).load(0).num_classes == 3
    monkeypatch.delenv("HF_TOKEN")
    entry = ModelPool.from_hub(["org/m-0"])[0]
    assert "or a private one that your token may not read" in entry.problem
    assert ids(ModelPool.from_hub("org")) == [f"org/m-{index}" for index in range(1, 5)]
    assert org.token not in caplog.text


def test_two_commits_of_a_repository_are_two_members_also_offline(org, members, tmp_path, monkeypatch):
    org.repos["org/m-0"].tags["v1"] = first = org.repos["org/m-0"].branches["main"]
    newer = write_member(tmp_path / "new", seed=7)
    org.add_repo("org/m-0", files_of(newer))
    names = ["org/m-0", "org/m-0@v1", f"org/m-0@{first}"]
    pool = ModelPool.from_hub(names)
    assert ids(pool) == ["org/m-0", "org/m-0@v1"], "the commit named twice is one member"
    expected = {
        "org/m-0": ModelPool.from_dir(newer).load(0)(images()),
        "org/m-0@v1": ModelPool.from_dir(members).load("m-0")(images()),
    }
    # The tag is fetched last: what was used last is not what the name without a tag stands for.
    for id, answers in expected.items():
        assert torch.equal(pool.load(id)(images()), answers)
    assert pool.cache.loads == 2
    locked = ModelPool.open(pool.lock(tmp_path))
    assert ids(locked) == ids(pool) and [entry.identity for entry in locked] == [entry.identity for entry in pool]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    requests_of(org)
    for again in (ModelPool.from_hub(names), ModelPool.open(",".join(names[:2])), locked):
        assert all(torch.equal(again.load(id)(images()), answers) for id, answers in expected.items())
    assert ids(ModelPool.from_hub(["org/m-0@v1"])) == ["org/m-0"], "alone it needs no tag"
    assert torch.equal(ModelPool.from_hub(["org/m-0@v1"]).load(0)(images()), expected["org/m-0@v1"])
    assert "not in the local cache" in ModelPool.from_hub(["org/m-0@v2"])[0].problem
    assert requests_of(org) == []


def test_an_old_and_a_new_name_of_a_repository_are_one_member(org):
    org.fault = lambda request: (
        Answer(307, b"", {"Location": "/api/models/org/m-0"}) if request.path == "/api/models/org/old" else None
    )
    assert ids(ModelPool.from_hub(["org/old", "org/m-0", "org/m-1"])) == ["org/m-0", "org/m-1"]


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("https://huggingface.co/org/m", "hf:org/m"),
        ("https://huggingface.co/org/m/", "hf:org/m"),
        ("https://hf.co/org/m/tree/main", "hf:org/m"),
        ("https://huggingface.co/org/m/blob/v1.0/config.json", "hf:org/m@v1.0"),
        ("https://huggingface.co/org", "hf:org"),
        ("https://huggingface.co/collections/org/x-123", "collection:org/x-123"),
        ("http://127.0.0.1:9/org/m?library=timm#usage", "hf:org/m"),
        ("hf-hub:org/m", "hf:org/m"),
        ("https://abc.us-east-1.aws.endpoints.huggingface.cloud", None),
        ("https://router.huggingface.co/hf-inference/models/org/m", None),
        ("http://127.0.0.1:8000", None),
        ("org/m@v1", None),
    ],
)
def test_the_address_of_a_page_is_the_name_of_what_it_shows(page, name):
    assert without_page(page) == (name or page)


@pytest.mark.parametrize("page", ["datasets/org/d", "spaces/org/s", "org/m/settings", "docs/timm", ""])
def test_the_address_of_another_page_is_refused(page):
    with pytest.raises(ValueError, match="is not the page of a model, a user or a collection"):
        without_page(f"https://huggingface.co/{page}")
