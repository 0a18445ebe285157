from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import ClassVar
from zipfile import ZipFile

import pytest
import torch

from hf_dfml.pool import MemberError, ModelPool, PoolEntry, open_pool
from hf_dfml.pool.entry import PoolSource
from hf_dfml.pool.sources import registry
from tests.pool.members import files_of, ids, images, requests_of, write_member


def test_open_tells_apart_what_was_typed(org, members):
    assert len(ModelPool.open("org")) == 5
    assert ids(ModelPool.open("org/m-2")) == ["org/m-2"]
    assert ids(ModelPool.open("org/m-2@main,org/m-0")) == ["org/m-2", "org/m-0"]
    assert ids(ModelPool.open(["org/m-2", str(members / "m-1")])) == ["org/m-2", "m-1"]
    with pytest.raises(FileNotFoundError, match="'org/none' is neither a folder here nor a repository"):
        ModelPool.open("org/none")
    with pytest.raises(FileNotFoundError, match="'nobody' has no models on http://127.0.0.1"):
        ModelPool.open("nobody")
    with pytest.raises(ValueError, match="No pool was named"):
        ModelPool.open(" , ")


def test_a_prefix_settles_what_a_name_is(org, members, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_member(tmp_path / "org" / "m-0", seed=9)
    lock = ModelPool.from_dir(members)[3:].lock(tmp_path / "locked")
    lock.rename(tmp_path / "odd")
    assert ids(ModelPool.open("org")) == ["m-0"] and len(ModelPool.open("hf:org")) == 5
    assert ids(ModelPool.open("org/m-0,hf:org/m-0")) == ["m-0", "org/m-0"]
    assert ids(ModelPool.open("hf-hub:org/m-0")) == ["org/m-0"]
    assert ids(ModelPool.open("dir:org")) == ["m-0"] and ids(ModelPool.open("lock:odd")) == ["m-3", "m-4"]
    assert ids(ModelPool.open(f"{org.url}/org/m-1, {org.url}/org/m-2/tree/main")) == ["org/m-1", "org/m-2"]
    for missing in ("dir:nobody", "./org/m-1", "lock:none"):
        with pytest.raises(FileNotFoundError, match="There is no"):
            ModelPool.open(missing)
    assert not any("/nobody" in request for request in requests_of(org))


def test_options_of_the_hub_reach_listing_configs_weights_and_the_cache(org, members, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    org.repos["org/m-0"].private = True
    org.repos["org/m-0"].tags["v1"] = first = org.repos["org/m-0"].branches["main"]
    newer = write_member(tmp_path / "new", seed=7)
    org.add_repo("org/m-0", files_of(newer))
    options = {"token": org.token, "cache_dir": tmp_path / "mine"}
    assert "org/m-0" not in ids(ModelPool.from_hub("org"))
    pool = ModelPool.from_hub("org", **options)
    assert org.token not in repr(pool[0]) + repr(pool[0].source.options)
    assert torch.equal(pool.load("org/m-0")(images()), ModelPool.from_dir(newer).load(0)(images()))
    assert not list((tmp_path / "hub-cache").glob("*")) and list((tmp_path / "mine").glob("models--org--m-0"))
    old = ModelPool.open("org/m-0", revision="v1", **options)
    assert ids(old) == ["org/m-0"] and old[0].revision == first
    assert torch.equal(old.load(0)(images()), ModelPool.from_dir(members).load("m-0")(images()))
    requests_of(org)
    offline = {"cache_dir": tmp_path / "mine", "local_files_only": True}
    assert ids(ModelPool.from_hub("org", **offline)) == ["org/m-0"]
    assert torch.equal(ModelPool.open("org/m-0", **offline).load(0)(images()), pool.load("org/m-0")(images()))
    assert ModelPool.open("org/m-0", revision="v1", **offline)[0].revision == first
    lock = old.lock(tmp_path)
    assert ModelPool.from_lock(lock, **offline).load(0).num_classes == 3
    limited = ModelPool.open("org/m-0", **offline).with_limits(disk_gb=1)
    assert limited.storage.bytes == (newer / "model.safetensors").stat().st_size, "the budget looks into that cache"
    with pytest.raises(MemberError, match=r"org/m-0: config.json is not in the local cache"):
        ModelPool.from_lock(lock, local_files_only=True).load(0)
    assert requests_of(org) == []
    with pytest.raises(TypeError, match="tokens"):
        ModelPool.open("org", tokens="x")


class ZipFolder(PoolSource):
    """Members in a zip of folders: a storage that the package does not know."""

    fetched: ClassVar[list[tuple[str, str]]] = []

    @staticmethod
    def matches(name: str) -> bool:
        return name.endswith(".zip")

    def entries(self, name: str) -> list[PoolEntry]:
        self.path = Path(name)
        with ZipFile(name) as archive:
            folders = sorted({member.split("/")[0] for member in archive.namelist()})
        here = self.path.with_suffix("")
        return [PoolEntry(id=folder, location=here / folder, source=self) for folder in folders]

    def fetch(self, entry, name, *, limit, admit=None) -> PoolEntry:
        self.fetched.append((entry.id, name))
        try:
            with ZipFile(self.path) as archive:
                archive.extract(f"{entry.id}/{name}", self.path.with_suffix(""))
        except KeyError:
            raise MemberError(entry.id, f"has no {name} in {self.path.name}") from None
        return entry


def test_another_storage_is_one_class(members, tmp_path, monkeypatch):
    shutil.make_archive(str(tmp_path / "pool"), "zip", members)
    with ZipFile(tmp_path / "pool.zip", "a") as archive:
        archive.writestr("n-0/model.safetensors", b"")
    monkeypatch.setattr(registry, "SOURCES", [ZipFolder, *registry.SOURCES])
    own = write_member(tmp_path / "own")
    pool = open_pool(f"{tmp_path / 'pool.zip'},{own}")
    assert len(pool) == 7 and ZipFolder.fetched == []
    pool = pool[:6].usable()
    assert ids(pool) == [f"m-{index}" for index in range(5)], "one has no config"
    assert not any(name == "model.safetensors" for _, name in ZipFolder.fetched)
    expected = ModelPool.from_dir(members)
    assert all(torch.equal(t(images()), expected.load(i)(images())) for i, t in enumerate(pool.stream()))
    lock = json.loads(pool.lock(tmp_path).read_text())
    assert lock["members"][1]["sha256"] == json.loads(expected.lock(tmp_path).read_text())["members"][1]["sha256"]
