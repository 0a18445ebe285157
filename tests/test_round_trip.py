"""The whole way over HTTP, to a Hub on a bad day: build, push, list, learn, publish, load elsewhere, same accuracy."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from hf_dfml import MetaModel, ModelPool
from hf_dfml.data import load_dataset
from hf_dfml.evaluation import EvaluationProtocol, evaluate
from hf_dfml.methods.tgr import TGR, TGRConfig
from hf_dfml.pipeline import run
from hf_dfml.pool import model_pool
from hf_dfml.pool.building.build import build_pool
from hf_dfml.pool.building.publishing import push_pool
from hf_dfml.pool.building.training import PoolRecipe
from hf_dfml.run_config import RunConfig
from tests.hub_faults import Faults
from tests.hub_server import HubServer

SHORT = TGRConfig(
    steps=2,
    recovery="pixels",
    recovery_steps=2,
    recovery_lr=0.1,
    images_per_class=2,
    probe="average",
    embedding_batches=1,
    num_groups=2,
    teachers_per_step=2,
    replay_queries=1,
    replay_batch=2,
    replay_patience=1,
    inner_steps=1,
)
PROTOCOL = EvaluationProtocol(ways=5, shots=[1, 5], episodes=5)


@pytest.fixture
def loads(monkeypatch) -> Counter[str]:
    """How often the weights of each member were read."""
    counts: Counter[str] = Counter()
    load = model_pool.load_teacher

    def counted(entry):
        counts[entry.id] += 1
        return load(entry)

    monkeypatch.setattr(model_pool, "load_teacher", counted)
    return counts


def accuracy(meta: MetaModel) -> list[float]:
    dataset = load_dataset("glyphs", "validation", image_size=meta.config.input_size[-1])
    return [row.mean for row in evaluate(meta.network, dataset, PROTOCOL, method="TGR", progress=False)]


def sent_well(hub: HubServer) -> Counter[str]:
    """How often each file's content was sent as it is, whole or the rest of it."""
    return Counter(
        request.path
        for request in hub.requests
        if request.method == "GET"
        and "/resolve/" in request.path
        and request.status in (200, 206)
        and request.fault in ("", "slow")
    )


def excused(hub: HubServer) -> Counter[str]:
    """Files that had to be sent again, because the server itself gave the hash of another version."""
    return Counter(request.path for request in hub.requests if request.fault == "stale-etag")


_ELSEWHERE = """
import json
from hf_dfml import MetaModel
from tests.test_round_trip import accuracy

meta = MetaModel.from_pretrained("me/tgr")
print(json.dumps({"accuracy": accuracy(meta), "pool": [source.id for source in meta.config.pool]}))
"""


def round_trip(hub: HubServer, folder: Path, count: int, monkeypatch, loads: Counter[str]) -> None:
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.002)))
    recipe = replace(PoolRecipe.fast(flip=False), epochs=1)
    data = load_dataset("glyphs", "train")
    few = replace(data, images=data.images[::5], labels=data.labels[::5])
    built = build_pool(few, output=folder / "pool", num_models=count, arch="conv4_16", recipe=recipe)
    hub.fault = faults = Faults(hub, rate=0.2, delay=0.01)

    push_pool(built, "me")
    assert len(hub.repos) == count
    assert all(len(repo.commits) == 2 for repo in hub.repos.values()), "every member is there, in one commit"
    pool = ModelPool.from_hub("me")
    assert [entry.id for entry in pool] == [f"me/{entry.id}" for entry in built]

    hub.requests.clear()
    config = RunConfig(
        pool="me",
        arch="conv4_16",
        output_dir=str(folder / "run"),
        push_to_hub="me/tgr",
        log_with="none",
        checkpoint_every=10,
    )
    loads.clear()
    run(TGR, SHORT, config, argv=["test"])
    assert loads == {entry.id: 1 for entry in pool}, "every member is used, and none is loaded twice"
    sent = sent_well(hub)
    assert {path.split("/resolve/")[0] for path in sent} == {f"/{entry.id}" for entry in pool}
    again = sent - Counter(dict.fromkeys(sent, 1))
    assert again <= excused(hub), "no file is sent a second time without need"
    assert hub.count("GET", "/api/models/me/glyphs-") == 0, "the listing has resolved every revision"

    # The lock file in the repository names every file of the pool by its hash.
    published = hub.repos["me/tgr"].at("main").files
    rows = json.loads(published["pool.lock.json"].content)["members"]
    assert [row["id"] for row in rows] == [entry.id for entry in pool]
    for row, entry in zip(rows, built, strict=True):
        for name in ("config.json", "model.safetensors"):
            assert row["sha256"][name] == hashlib.sha256((entry.location / name).read_bytes()).hexdigest()
    hub.requests.clear()
    locked = ModelPool.open(folder / "run" / "pool.lock.json")
    assert [(entry.id, entry.revision) for entry in locked] == [(entry.id, entry.revision) for entry in pool]
    assert len(locked.usable(weights=True)) == count and hub.requests == []
    assert len(ModelPool.from_hub("me").usable()) == count, "the meta-model is no member"

    expected = accuracy(MetaModel.from_pretrained(folder / "run"))
    hub.requests.clear()
    cache = {"HF_HOME": str(folder / "elsewhere"), "HF_HUB_CACHE": str(folder / "elsewhere" / "hub")}
    access = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"}
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE],
        env=os.environ | cache | access | {"HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout.splitlines()[-1])
    assert there == {"accuracy": expected, "pool": [entry.id for entry in pool]}
    assert {path.rsplit("/", 1)[1] for path in sent_well(hub)} == {"config.json", "model.safetensors"}
    assert hub.token not in done.stderr
    assert faults.done.keys() >= {"429", "503", "cut"} and faults.done.total() > 0.1 * faults.answers


def test_a_pool_of_twelve_makes_the_round_trip(hub, tmp_path, monkeypatch, loads):
    round_trip(hub, tmp_path, 12, monkeypatch, loads)


@pytest.mark.slow
def test_a_pool_of_fifty_makes_the_round_trip(hub, tmp_path, monkeypatch, loads):
    round_trip(hub, tmp_path, 50, monkeypatch, loads)
