"""The local Hub does for the unmodified clients what the real one does; the other tests build on that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

from tests.hub_server import Answer, HubServer


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(page_size=3) as server:
        yield server


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token)


def test_create_upload_and_read_back(hub, api, tmp_path):
    assert str(api.create_repo("me/a")) == f"{hub.url}/me/a"
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "note.txt").write_text("small")
    (tmp_path / "weights.safetensors").write_bytes(bytes(5000))
    commit = api.upload_folder(repo_id="me/a", folder_path=tmp_path)
    assert hub.count("PUT") == 1  # One large file; the small one is in the commit.
    assert api.model_info("me/a").sha == commit.oid
    assert sorted(api.list_repo_files("me/a")) == [".gitattributes", "sub/note.txt", "weights.safetensors"]
    path = api.hf_hub_download("me/a", "sub/note.txt", cache_dir=tmp_path / "cache")
    assert Path(path).read_text() == "small"
    assert Path(path).parents[1].name == commit.oid
    folder = api.snapshot_download("me/a", cache_dir=tmp_path / "cache")
    assert (Path(folder) / "weights.safetensors").read_bytes() == bytes(5000)


def test_unchanged_files_are_skipped_by_the_client(hub, api):
    api.create_repo("me/a")
    files = [CommitOperationAdd("a.txt", b"1"), CommitOperationAdd("w.safetensors", b"22")]
    first = api.create_commit("me/a", files, commit_message="one")
    again = [CommitOperationAdd("a.txt", b"1"), CommitOperationAdd("w.safetensors", b"22")]
    assert api.create_commit("me/a", again, commit_message="two").oid == first.oid
    assert hub.count("POST", ".*/commit/") == 1


def test_commits_replace_delete_and_refuse_stale_parents(hub, api):
    first = hub.add_repo("me/a", {"a.txt": b"1", "b.txt": b"2"})
    second = api.create_commit(
        "me/a", [CommitOperationDelete("a.txt"), CommitOperationAdd("b.txt", b"3")], commit_message="change"
    ).oid
    assert sorted(api.list_repo_files("me/a")) == [".gitattributes", "b.txt"]
    assert sorted(api.list_repo_files("me/a", revision=first)) == [".gitattributes", "a.txt", "b.txt"]
    assert [commit.commit_id for commit in api.list_repo_commits("me/a")][:2] == [second, first]
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_commit("me/a", [CommitOperationAdd("c", b"4")], commit_message="late", parent_commit=first)
    assert caught.value.response.status_code == 412


def test_lists_are_paged_and_filtered(hub, api):
    for index in range(7):
        card = f"---\nlibrary_name: timm\ntags:\n- {'even' if index % 2 == 0 else 'odd'}\n---\n"
        hub.add_repo(f"org/m-{index}", {"README.md": card.encode()})
    hub.add_repo("other/m-0", {})
    found = list(api.list_models(author="org", full=True))
    assert [info.id for info in found] == [f"org/m-{index}" for index in range(7)]
    assert hub.count("GET", "/api/models") == 3
    assert all(info.sha == hub.repos[info.id].branches["main"] and info.library_name == "timm" for info in found)
    assert [info.id for info in api.list_models(filter="odd")] == ["org/m-1", "org/m-3", "org/m-5"]
    assert [info.id for info in api.list_models(filter=["timm", "even"], search="m-4")] == ["org/m-4"]
    assert len(list(api.list_models(limit=5))) == 5


def test_info_tree_and_paths(hub, api):
    hub.add_repo("me/a", {"a.txt": b"hello", "sub/w.safetensors": b"12345678"})
    siblings = {sibling.rfilename: sibling for sibling in api.model_info("me/a", files_metadata=True).siblings}
    assert siblings["sub/w.safetensors"].lfs.size == 8 and siblings["a.txt"].size == 5
    assert {entry.path for entry in api.list_repo_tree("me/a")} == {".gitattributes", "a.txt", "sub"}
    assert {entry.path for entry in api.list_repo_tree("me/a", "sub")} == {"sub/w.safetensors"}
    paths = api.get_paths_info("me/a", ["a.txt", "none"])
    # `git hash-object` of "hello".
    assert [(entry.path, entry.blob_id) for entry in paths] == [("a.txt", "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0")]


def test_revisions_tags_and_what_is_not_there(hub, api):
    first = hub.add_repo("me/a", {"a.txt": b"1"})
    api.create_tag("me/a", tag="v1")
    hub.add_repo("me/a", {"a.txt": b"2"})
    refs = api.list_repo_refs("me/a")
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", first)]
    assert api.model_info("me/a", revision="v1").sha == first
    with pytest.raises(RevisionNotFoundError):
        api.model_info("me/a", revision="v2")
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download("me/a", "b.txt")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("me/none")


def test_ranges(hub, api):
    httpx = get_session()
    hub.add_repo("me/a", {"a.bin": bytes(range(100))})
    url = f"{hub.url}/me/a/resolve/main/a.bin"
    answer = httpx.get(url, headers={"Range": "bytes=90-"})
    assert (answer.status_code, answer.content) == (206, bytes(range(90, 100)))
    assert answer.headers["Content-Range"] == "bytes 90-99/100"
    assert httpx.get(url, headers={"Range": "bytes=5-7"}).content == bytes([5, 6, 7])
    assert httpx.get(url, headers={"Range": "bytes=100-"}).status_code == 416
    assert httpx.head(url).headers["Content-Length"] == "100"


def test_who_may_do_what(hub, api):
    assert api.whoami()["name"] == hub.user
    stranger = HfApi(endpoint=hub.url, token=False)
    hub.add_repo("me/secret", {"a.txt": b"1"}, private=True)
    hub.add_repo("me/open", {"a.txt": b"1"})
    assert [info.id for info in stranger.list_models(author="me")] == ["me/open"]
    assert len(list(api.list_models(author="me"))) == 2
    with pytest.raises(RepositoryNotFoundError):
        stranger.model_info("me/secret")
    with pytest.raises(HfHubHTTPError):
        stranger.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id="me/open")
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_repo("me/open")
    assert caught.value.response.status_code == 409
    api.create_repo("me/open", exist_ok=True)
    api.delete_repo("me/open")
    assert "me/open" not in hub.repos


def test_bad_metadata_is_refused_before_the_commit(hub, api):
    api.create_repo("me/a")
    with pytest.raises(ValueError, match="Invalid metadata in README.md"):
        api.upload_file(path_or_fileobj=b"---\ntags: 3\n---\n", path_in_repo="README.md", repo_id="me/a")


def test_collections(hub, api):
    hub.add_collection("me/c-1", [("model", "me/a"), ("dataset", "me/d")])
    assert [(item.item_type, item.item_id) for item in api.get_collection("me/c-1").items] == [
        ("model", "me/a"),
        ("dataset", "me/d"),
    ]


def test_a_fault_answers_in_the_servers_place(hub, api):
    hub.add_repo("me/a", {})
    hub.fault = lambda request: Answer.error(403, "", "closed") if "/api/models/" in request.path else None
    with pytest.raises(HfHubHTTPError, match="closed"):
        api.model_info("me/a")
    assert hub.requests[-1].status == 403
    hub.fault = None
    assert api.model_info("me/a").id == "me/a"


_TIMM = """
import timm, torch
from huggingface_hub import PyTorchModelHubMixin
from timm.models import push_to_hf_hub

network = timm.create_model("test_resnet", num_classes=3).eval()
push_to_hf_hub(network, "me/small", safe_serialization=True)
loaded = timm.create_model("hf-hub:me/small", pretrained=True).eval()
images = torch.rand(2, 3, 64, 64)
assert torch.equal(loaded(images), network(images))


class Line(torch.nn.Module, PyTorchModelHubMixin):
    def __init__(self, width: int = 2):
        super().__init__()
        self.layer = torch.nn.Linear(width, 1)


line = Line(width=5)
line.push_to_hub("me/line")
assert torch.equal(Line.from_pretrained("me/line").layer.weight, line.layer.weight)
"""


def test_timm_and_the_mixin_talk_to_it_through_hf_endpoint_alone(hub, tmp_path):
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path)}
    settings |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"}
    subprocess.run([sys.executable, "-c", _TIMM], env=os.environ | settings, check=True, timeout=120)
    assert json.loads(hub.repos["me/small"].at("main").files["config.json"].content)["architecture"] == "test_resnet"
    assert not any(path.endswith(".bin") for path in hub.repos["me/small"].at("main").files)
