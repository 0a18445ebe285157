from __future__ import annotations

import json

import pytest
import torch
from huggingface_hub import constants

from hf_dfml.pool import MemberError, ModelPool
from tests.hub_server import Answer
from tests.pool.members import config_of, files_of, ids, images, requests_of, write_member


def test_an_organisation_is_listed_by_pages_and_by_nothing_else(hub):
    for index in range(25):
        hub.add_repo(f"org/m-{index:02d}", {"config.json": b"{}", "model.safetensors": b""})
    hub.add_repo("other/m", {"config.json": b"{}"})
    pool = ModelPool.from_hub("org")
    assert ids(pool) == [f"org/m-{index:02d}" for index in range(25)]
    assert requests_of(hub) == ["GET /api/models"] * 3
    assert not any(entry.resolved for entry in pool)
    assert all(entry.revision == hub.repos[entry.id].branches["main"] for entry in pool)


def test_a_member_is_fetched_when_it_is_used_and_once(org, members):
    pool = ModelPool.from_hub("org")
    requests_of(org)
    teacher = pool.load(3)
    seen = requests_of(org)
    assert len(seen) == 4 and all("/org/m-3/resolve/" in request for request in seen)
    expected = ModelPool.from_dir(members).load(3)
    assert torch.equal(teacher(images()), expected(images()))
    assert teacher.class_names == ("cat", "dog", "fox")
    # A second process finds everything in the cache, and asks for nothing where the revision is pinned.
    again = ModelPool.from_hub([f"org/m-3@{pool[3].revision}"])
    assert torch.equal(again.load(0)(images()), expected(images()))
    assert requests_of(org) == []


def test_config_and_weights_are_of_the_commit_that_was_listed(org, members, tmp_path):
    pool = ModelPool.from_hub("org")
    newer = write_member(tmp_path / "new", seed=77, label_names=["eel", "gnu", "yak"])
    org.add_repo("org/m-0", files_of(newer))
    teacher = pool.load("org/m-0")
    assert teacher.class_names == ("cat", "dog", "fox")
    assert torch.equal(teacher(images()), ModelPool.from_dir(members).load(0)(images()))
    teacher = ModelPool.from_hub("org").load("org/m-0")
    assert teacher.class_names == ("eel", "gnu", "yak")
    assert torch.equal(teacher(images()), ModelPool.from_dir(newer).load(0)(images()))


def test_a_member_is_the_same_before_and_after_its_config_was_read(org):
    pool = ModelPool.from_hub("org")
    teacher = pool.load(0)
    assert pool.resolve().load(0) is teacher and pool.cache.loads == 1
    assert len(pool + pool.resolve()) == 5


def test_filter_reads_configs_and_no_weights(org):
    pool = ModelPool.from_hub("org").filter(
        lambda entry: entry.val_accuracy > 0.5 and entry.architecture == "conv4_16"
    )
    assert len(pool) == 5 and all(entry.resolved for entry in pool)
    seen = requests_of(org)
    assert not any("model.safetensors" in request for request in seen)
    assert len(seen) == 1 + 2 * 5


def test_usable_reads_the_weights_that_are_there_and_fetches_the_others_when_asked(org, members):
    cut = files_of(members / "m-0")
    org.add_repo("org/x-cut", {**cut, "model.safetensors": cut["model.safetensors"][:-9]})
    pool = ModelPool.from_hub("org")
    pool.load("org/m-2")
    requests_of(org)
    assert len(pool.usable()) == 6 and pool.cache.loads == 1
    assert not any("model.safetensors" in request for request in requests_of(org))
    assert ids(pool.usable(weights=True)) == [f"org/m-{index}" for index in range(5)]
    assert len([request for request in requests_of(org) if "model.safetensors" in request]) == 2 * 5
    assert pool.usable(weights=True)[0].resolved and requests_of(org) == []


def test_offline_finds_what_was_used_and_says_what_was_not(org, monkeypatch):
    online = ModelPool.from_hub("org")
    expected = online.load("org/m-1")(images())
    online.load("org/m-4")
    requests_of(org)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    pool = ModelPool.from_hub("org")
    assert ids(pool) == ["org/m-1", "org/m-4"]
    assert pool[0].revision == online[1].revision
    assert torch.equal(pool.load(0)(images()), expected)
    assert ids(ModelPool.open("org")) == ["org/m-1", "org/m-4"]
    missing = ModelPool.from_hub(["org/m-2"])[0]
    assert "is not in the local cache" in missing.problem
    pinned = ModelPool.from_hub([f"org/m-2@{online[2].revision}"])
    with pytest.raises(MemberError, match=r"org/m-2: config.json is not in the local cache"):
        pinned.load(0)
    with pytest.raises(FileNotFoundError, match="has no models on the local cache"):
        ModelPool.from_hub("nobody")
    assert requests_of(org) == []


def test_a_server_that_lists_hostile_ids_and_revisions_is_not_believed(org, tmp_path):
    sha = "0" * 40
    rows = [{"id": id, "sha": sha} for id in ("../../evil", "org/../../evil", "/evil")]
    org.fault = lambda request: Answer.json(rows) if request.path == "/api/models" else None
    pool = ModelPool.from_hub("org")
    assert all("is not a repository id" in entry.problem for entry in pool)
    rows[:] = [{"id": "org/evil\n", "sha": sha}, {"id": "org/m-1", "sha": sha}, {"id": "org/m-1", "sha": sha}]
    pool = ModelPool.from_hub("org")
    assert ids(pool) == ["org/evil\\n", "org/m-1"] and "is not a repository id" in pool[0].problem
    rows[:] = [{"id": "org/m-0", "sha": "../../../evil"}]
    assert ModelPool.from_hub("org")[0].revision == org.repos["org/m-0"].branches["main"]
    assert not list(tmp_path.rglob("*evil*"))


def test_what_is_no_classifier_is_an_entry_with_a_reason_and_costs_no_request(org):
    card = "---\nlibrary_name: {}\npipeline_tag: {}\n---\n"
    both = {"config.json": b"{}", "model.safetensors": b""}
    org.add_repo("org/a-llm", {**both, "README.md": card.format("transformers", "text-generation").encode()})
    org.add_repo("org/a-meta", {**both, "README.md": card.format("hf_dfml", "image-classification").encode()})
    org.add_repo("org/a-other", {**both, "README.md": card.format("keras", "image-classification").encode()})
    org.add_repo("org/a-pickle", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    org.add_repo("org/a-sharded", {"config.json": b"{}", "model.safetensors.index.json": b"{}"})
    org.add_repo("org/a-empty", {})
    pool = ModelPool.from_hub("org")
    problems = {entry.id: entry.problem for entry in pool if entry.problem}
    assert problems == {
        "org/a-llm": "is a model for text-generation; expected image-classification",
        "org/a-meta": "is a meta-model of hf_dfml, not a pool member",
        "org/a-other": "is a model of keras; expected timm or transformers",
        "org/a-pickle": "its weights are a pickle (pytorch_model.bin), "
        "which is never opened; expected model.safetensors "
        "(timm.models.save_for_hf(..., safe_serialization=True), or `hf-dfml pool add`)",
        "org/a-sharded": "its weights are split over several files; expected one model.safetensors",
        "org/a-empty": "has no config.json",
    }
    assert ids(pool.usable()) == [f"org/m-{index}" for index in range(5)]
    assert not any("/org/a-" in request for request in requests_of(org))


def test_a_hostile_repository_is_named_and_the_others_are_used(org, members):
    files = files_of(members / "m-0")
    org.add_repo("org/x-cut", {**files, "model.safetensors": files["model.safetensors"][:-9]})
    org.add_repo("org/x-code", {**files, "config.json": b'{"architectures": ["E"], "auto_map": {"AutoModel": "e.E"}}'})
    org.add_repo("org/x-arch", {**files, "config.json": json.dumps(config_of(architecture="nope")).encode()})
    pool = ModelPool.from_hub("org")
    assert ids(pool.usable(weights=True)) == [f"org/m-{index}" for index in range(5)]
    assert "damaged" in pool.check("org/x-cut")
    assert "expected one ...ForImageClassification" in pool.check("org/x-code")
    assert "'nope' is not one" in pool.check("org/x-arch")


def test_every_request_says_who_asks(org):
    ModelPool.from_hub("org").load(0)
    assert all(request.headers["user-agent"].startswith("hf_dfml/") for request in org.requests)


def test_a_broken_connection_is_not_blamed_on_the_member(org):
    pool = ModelPool.from_hub("org")
    org.fault = lambda request: Answer.error(400, "", "not now")
    with pytest.raises(Exception) as caught:  # noqa: PT011 (whichever the client's version raises)
        pool.load(0)
    assert not isinstance(caught.value, MemberError)
