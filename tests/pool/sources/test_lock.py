"""A lock file gives the same pool again, byte for byte, or says which member is another."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from hf_dfml import ModelPool
from hf_dfml.pool import MemberError, check_pool
from hf_dfml.pool.sources.lock import published_lock
from tests.hub_server import Answer
from tests.pool.members import config_of, files_of, write_member, write_pool


def ids(pool: ModelPool) -> list[str]:
    return [entry.id for entry in pool]


def images() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def folder(members, tmp_path) -> Path:
    """A copy of the five good members, to be changed."""
    return shutil.copytree(members, tmp_path / "pools" / "good")


def flip_a_weight(path: Path) -> None:
    """Another weight in a file that stays perfectly readable."""
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(bytes(content))


def test_the_file_says_what_the_pool_was(folder, tmp_path):
    pool = ModelPool.from_dir(folder)
    lock = pool.lock(tmp_path / "runs" / "a")
    assert lock == tmp_path / "runs" / "a" / "pool.lock.json"
    content = json.loads(lock.read_text())
    assert content["hf_dfml_pool_lock"] == 1
    assert [row["id"] for row in content["members"]] == ids(pool)
    row = content["members"][2]
    assert row["folder"] == "../../pools/good/m-2"
    assert row["sha256"] == {
        name: sha256((folder / "m-2" / name).read_bytes()) for name in ("config.json", "model.safetensors")
    }
    assert str(tmp_path) not in lock.read_text()


def test_a_pool_of_folders_comes_back_in_its_order(folder, tmp_path):
    pool = ModelPool.from_dir(folder)
    drawn = pool.sample(3, torch.Generator().manual_seed(1))
    assert ids(drawn) != sorted(ids(drawn))
    back = ModelPool.open(drawn.lock(tmp_path / "run"))
    assert ids(back) == ids(drawn)
    assert all(torch.equal(back.load(index)(images()), drawn.load(index)(images())) for index in range(3))
    assert back[0].class_names == ("cat", "dog", "fox") and back[0].val_accuracy == 0.75


def test_a_pool_of_the_hub_comes_back_at_its_commits_without_asking(org, members, tmp_path, monkeypatch):
    pool = ModelPool.from_hub("org")
    expected = [pool.load(index)(images()) for index in range(4)]  # The last member is never opened.
    pool = pool.resolve()
    lock = pool.lock(tmp_path)
    rows = json.loads(lock.read_text())["members"]
    assert [row["revision"] for row in rows] == [entry.revision for entry in pool]
    assert rows[0]["sha256"]["model.safetensors"] == sha256((members / "m-0" / "model.safetensors").read_bytes())
    assert rows[4]["sha256"].keys() == {"config.json"}, "what was not fetched is pinned by its commit"
    for index in range(5):
        org.add_repo(f"org/m-{index}", files_of(write_member(tmp_path / f"new-{index}", seed=90 + index)))
    org.add_repo("org/m-9", files_of(members / "m-0"))
    org.requests.clear()
    back = ModelPool.open(lock)
    assert ids(back) == ids(pool)
    for index in range(4):
        assert torch.equal(back.load(index)(images()), expected[index])
    assert org.requests == []
    assert torch.equal(back.load(4)(images()), ModelPool.from_dir(members).load(4)(images()))
    # And into an empty cache, on another machine.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "other-cache"))
    again = ModelPool.from_lock(lock)
    assert torch.equal(again.load(1)(images()), expected[1])
    assert all("/resolve/" in request.path and rows[1]["revision"] in request.path for request in org.requests[4:])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_changed_file_is_refused_by_name_and_the_rest_goes_on(folder, tmp_path, name, caplog):
    lock = ModelPool.from_dir(folder).lock(tmp_path)
    path = folder / "m-1" / name
    before = sha256(path.read_bytes())
    if name == "config.json":
        path.write_text(json.dumps(config_of(label_names=["eel", "gnu", "yak"])))
    else:
        flip_a_weight(path)
    back = ModelPool.open(lock)
    with pytest.raises(MemberError) as caught:
        back.load("m-1")
    message = f"m-1: {name} is not the locked one: expected sha256 {before}, found {sha256(path.read_bytes())}"
    assert str(caught.value) == message
    assert [entry.id for entry, problem in check_pool(back) if problem] == ["m-1"]
    assert ids(back.usable()) == ["m-0", "m-2", "m-3", "m-4"]
    assert message in caplog.text
    # Without the lock it is a member like any other.
    assert ModelPool.from_dir(folder).load("m-1").num_classes == 3


def test_a_file_that_changes_while_a_run_goes_on_is_refused_too(folder, tmp_path):
    back = ModelPool.from_lock(ModelPool.from_dir(folder).lock(tmp_path), cache_bytes=0)
    back.load(0)
    flip_a_weight(folder / "m-0" / "model.safetensors")
    with pytest.raises(MemberError, match="m-0: model.safetensors is not the locked one"):
        back.load(0)


def test_a_server_that_sends_other_bytes_for_the_commit_is_refused(org, tmp_path, monkeypatch):
    pool = ModelPool.from_hub("org").fetch()
    lock = pool.lock(tmp_path)
    other = write_member(tmp_path / "other", seed=55)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "other-cache"))
    # Its own hashes are right: only the lock knows that it is not the same file.
    weights = (other / "model.safetensors").read_bytes()
    digest = f'"{sha256(weights)}"'

    def lie(request):
        if "/org/m-3/" not in request.path or not request.path.endswith("model.safetensors"):
            return None
        return Answer(200, weights, {"ETag": digest, "X-Linked-Etag": digest, "X-Repo-Commit": pool[3].revision})

    org.fault = lie
    back = ModelPool.open(lock)
    with pytest.raises(MemberError, match=rf"org/m-3: model.safetensors is not .* found {sha256(weights)}"):
        back.load(3)
    assert ids(back.usable(weights=True)) == ["org/m-0", "org/m-1", "org/m-2", "org/m-4"]


def test_the_published_file_names_no_folder_and_works_beside_the_pool(folder, tmp_path):
    pool = ModelPool.from_dir(folder)
    lock = pool.lock(tmp_path / "run")
    text = published_lock(lock)
    assert (
        "folder" not in text and "pools" not in text and sha256((folder / "m-0" / "config.json").read_bytes()) in text
    )
    (folder / "pool.lock.json").write_text(text)
    back = ModelPool.open(folder / "pool.lock.json")
    assert ids(back.usable()) == ids(pool)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "pool.lock.json").write_text(text)
    lost = ModelPool.open(tmp_path / "elsewhere" / "pool.lock.json")
    assert {entry.problem for entry in lost} == {"has no folder beside the lock file"}


def test_a_locked_pool_is_locked_again_with_the_same_file(folder, tmp_path):
    first = ModelPool.from_dir(folder).lock(tmp_path / "a")
    assert ModelPool.open(first).lock(tmp_path / "b").read_text() == first.read_text()


def test_a_member_that_is_gone_is_named(folder, tmp_path):
    lock = ModelPool.from_dir(folder).lock(tmp_path)
    shutil.rmtree(folder / "m-2")
    (folder / "m-3" / "model.safetensors").unlink()
    problems = {entry.id: entry.problem for entry in ModelPool.open(lock) if entry.problem}
    assert problems.keys() == {"m-2", "m-3"}
    assert problems["m-2"].startswith("has no folder") and problems["m-3"] == "has no model.safetensors"


SHA, HASH = "0" * 40, "0" * 64


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"id": "../x", "revision": SHA}, "is not a repository id"),
        ({"id": "org/x", "revision": "main"}, "is locked to revision 'main': expected a commit sha"),
        ({"id": "org/x", "revision": [1]}, "expected a commit sha"),
        ({"id": "org/x", "revision": SHA, "sha256": {"config.json": "abc"}}, "not 64 hexadecimal digits"),
        ({"id": "org/x", "revision": SHA, "sha256": {"../../x": HASH}}, "not 64 hexadecimal digits"),
        ({"id": "org/x", "revision": SHA, "sha256": [HASH]}, "not 64 hexadecimal digits"),
        ({"id": "../pools"}, "has no folder beside"),
        ({"id": "x", "folder": 7}, "has no folder"),
    ],
)
def test_a_hostile_row_is_a_problem_of_its_member(folder, tmp_path, row, expected):
    lock = ModelPool.from_dir(folder)[:1].lock(tmp_path / "run")
    content = json.loads(lock.read_text())
    content["members"].append(row)
    lock.write_text(json.dumps(content))
    pool = ModelPool.open(lock)
    assert expected in pool[1].problem
    with pytest.raises(MemberError, match="^" + row["id"].replace(".", r"\.")):
        pool.load(1)
    assert ids(pool.usable()) == ["m-0"]


def test_what_is_no_lock_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no lock file .*pool.lock.json"):
        ModelPool.open(tmp_path / "pool.lock.json")
    for text, expected in (
        ("{", "is no lock file"),
        ("{}", "expected 'hf_dfml_pool_lock': 1"),
        ('{"hf_dfml_pool_lock": 2, "members": []}', "of this version"),
        ('{"hf_dfml_pool_lock": 1, "members": [{"revision": "x"}]}', "a member without an id"),
        ('{"hf_dfml_pool_lock": 1, "members": []}', "locks no members"),
    ):
        (tmp_path / "pool.lock.json").write_text(text)
        with pytest.raises(ValueError, match=expected):
            ModelPool.open(tmp_path / "pool.lock.json")


def test_several_sources_may_be_named_with_a_lock_file_among_them(folder, tmp_path):
    write_pool(tmp_path / "more" / "p", 1)
    shutil.move(tmp_path / "more" / "p" / "m-0", tmp_path / "more" / "n-0")
    (tmp_path / "more" / "p").rmdir()
    lock = ModelPool.from_dir(folder)[3:].lock(tmp_path)
    assert ids(ModelPool.open(f"{tmp_path / 'more'},{lock}")) == ["n-0", "m-3", "m-4"]
