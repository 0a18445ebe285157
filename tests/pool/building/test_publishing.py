from __future__ import annotations

import json
import shutil

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from hf_dfml.pool import ModelPool
from hf_dfml.pool.building.publishing import push_pool
from tests.hub_server import Answer
from tests.pool.members import write_member


def test_a_pushed_pool_comes_back_the_same(hub, members):
    pool = ModelPool.from_dir(members)
    shas = push_pool(pool, "me")
    assert shas == [hub.repos[f"me/m-{index}"].branches["main"] for index in range(5)]
    back = ModelPool.from_hub("me")
    assert [entry.revision for entry in back] == shas
    images = torch.rand(2, 3, 16, 16)
    for index in range(5):
        assert torch.equal(back.load(index)(images), pool.load(index)(images))


def test_a_member_without_a_card_gets_one_with_metadata(hub, members):
    push_pool(ModelPool.from_dir(members)[:1], "me")
    info = HfApi(endpoint=hub.url).model_info("me/m-0")
    assert info.library_name == "timm" and info.pipeline_tag == "image-classification" and "hf_dfml" in info.tags
    assert [found.id for found in HfApi(endpoint=hub.url).list_models(filter="hf_dfml")] == ["me/m-0"]


def test_nothing_unchanged_is_sent_again(hub, tmp_path):
    for index in range(3):
        write_member(tmp_path / f"m-{index}", seed=index)
    first = push_pool(ModelPool.from_dir(tmp_path), "me")
    hub.requests.clear()
    assert push_pool(ModelPool.from_dir(tmp_path), "me") == first
    assert hub.count("GET", "/api/models") == 1 and hub.count("POST", "/api/models/.*/paths-info/") == 3
    assert len(hub.requests) == 4
    hub.requests.clear()
    config = tmp_path / "m-1" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"label_names": ["x", "y", "z"]}))
    second = push_pool(ModelPool.from_dir(tmp_path), "me")
    assert [old == new for old, new in zip(first, second, strict=True)] == [True, False, True]
    assert hub.count("PUT") == 0  # The weights are there.
    assert hub.count("POST", ".*/commit/") == 1


def test_other_members_of_the_same_names_are_replaced_only_where_that_is_asked_for(hub, tmp_path, caplog):
    """Pools that were built apart have members of the same default names."""
    for name, seeds in (("one", (0, 1)), ("two", (0, 7))):
        for index, seed in enumerate(seeds):
            write_member(tmp_path / name / f"m-{index}", seed=seed)
    first = push_pool(ModelPool.from_dir(tmp_path / "one"), "me")
    with pytest.raises(
        FileExistsError, match="me/m-1 holds another member's weights or another model already: .*--over"
    ):
        push_pool(ModelPool.from_dir(tmp_path / "two"), "me")
    assert [hub.repos[f"me/m-{index}"].branches["main"] for index in (0, 1)] == first
    second = push_pool(ModelPool.from_dir(tmp_path / "two"), "me", overwrite=True)
    assert second[0] == first[0] and second[1] != first[1]
    assert caplog.messages == [f"Replaced: what me/m-1 held is still there as me/m-1@{first[1]}."]
    again = ModelPool.from_hub([f"me/m-1@{first[1]}"]).load(0)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(again(images), ModelPool.from_dir(tmp_path / "one").load(1)(images))


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": b'{"model_type": "bert"}', "README.md": b"my BERT", "pytorch_model.bin": b"x"},
        {"config.json": b'{"model_type": "bert"}'},
        {"weights/tf_model.h5": b"x", "README.md": b"my BERT"},
    ],
    ids=sorted,
)
def test_a_repository_of_something_else_is_left_alone(hub, members, files):
    sha = hub.add_repo("me/m-0", files)
    with pytest.raises(
        FileExistsError, match="me/m-0 holds another member's weights or another model already: .*--over"
    ):
        push_pool(ModelPool.from_dir(members)[:2], "me")
    assert hub.repos.keys() == {"me/m-0"} and hub.repos["me/m-0"].branches["main"] == sha
    push_pool(ModelPool.from_dir(members)[:2], "me", overwrite=True)
    assert hub.repos["me/m-0"].at("main").files["README.md"].content.startswith(b"---\n")


def test_a_readme_that_is_there_is_replaced_only_where_that_is_asked_for(hub, members):
    hub.add_repo("me/m-0", {"README.md": b"mine"})
    pool = ModelPool.from_dir(members)[:1]
    push_pool(pool, "me")
    assert hub.repos["me/m-0"].at("main").files["README.md"].content == b"mine"
    assert "model.safetensors" in hub.repos["me/m-0"].at("main").files
    sent = len(hub.repos["me/m-0"].commits)
    push_pool(pool, "me")
    assert len(hub.repos["me/m-0"].commits) == sent, "the README is no reason for a commit"
    push_pool(pool, "me", overwrite=True)
    assert hub.repos["me/m-0"].at("main").files["README.md"].content != b"mine"


def test_who_may_read_new_repositories_is_the_organisations_choice(hub, members):
    push_pool(ModelPool.from_dir(members)[:1], "me")
    (created,) = [request.json() for request in hub.requests if request.path == "/api/repos/create"]
    assert not created.keys() & {"private", "visibility"}


def test_an_interrupted_push_is_repeated(hub, members):
    pool = ModelPool.from_dir(members)
    hub.fault = lambda request: Answer.error(403, "", "no") if "m-2/commit" in request.path else None
    with pytest.raises(HfHubHTTPError):
        push_pool(pool, "me")
    hub.fault = None
    shas = push_pool(pool, "me")
    assert len(shas) == 5 and hub.count("PUT") == 5
    assert all(len(hub.repos[f"me/m-{index}"].commits) == 2 for index in range(5))


def test_a_private_pool_stays_private(hub, members):
    pool = ModelPool.from_dir(members)
    push_pool(pool[:2], "me", private=True)
    assert hub.repos["me/m-0"].private and hub.repos["me/m-1"].private
    push_pool(pool[:2], "me", private=True)
    hub.add_repo("me/m-2", {"README.md": b"mine"})
    with pytest.raises(ValueError, match="me/m-2 exists and is public"):
        push_pool(pool, "me", private=True)
    assert hub.repos["me/m-2"].at("main").files.keys() == {".gitattributes", "README.md"}


def test_only_the_files_of_a_member_are_published_and_no_token_is_logged(hub, members, tmp_path, caplog):
    caplog.set_level("DEBUG")
    folder = tmp_path / "pool" / "m"
    shutil.copytree(members / "m-0", folder)
    (folder / ".env").write_text("HF_TOKEN=secret")
    (folder / "notes.txt").write_text("mine")
    push_pool(ModelPool.from_dir(tmp_path / "pool"), "me")
    files = hub.repos["me/m"].at("main").files
    assert files.keys() == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert hub.token not in caplog.text
    assert not any(hub.token.encode() in blob.content for blob in files.values())


def test_unusable_members_are_left_out(hub, members, tmp_path):
    write_member(tmp_path / "x-bad", label_names=["a", "", "b"])
    push_pool(ModelPool.from_dir(members)[:1] + ModelPool.from_dir(tmp_path), "me")
    assert hub.repos.keys() == {"me/m-0"}
