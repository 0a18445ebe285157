"""Identity: what has changed is noticed, what differs is told apart, and a folder belongs to one run."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import constants
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_dfml.pool import MemberError, ModelPool
from hf_dfml.pool.building.publishing import push_pool
from hf_dfml.utils import folder_lock
from hf_dfml.utils.folder_lock import LOCK_NAME, folder_in_use
from tests.hub_server import Answer
from tests.pool.members import files_of, images, write_member, write_pool
from tests.utils.test_folder_lock import holder


@pytest.fixture(scope="module")
def pools(tmp_path_factory) -> dict[str, Path]:
    """A pool of one member in each layout."""
    root = tmp_path_factory.mktemp("identity")
    write_member(root / "timm" / "m")
    folder = root / "transformers" / "m"
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    transformers.ResNetForImageClassification(config).save_pretrained(folder)
    processor = {"size": 16, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return {name: root / name for name in ("timm", "transformers")}


@settings(max_examples=60, deadline=None)
@given(
    layout=st.sampled_from(["timm", "transformers"]),
    name=st.sampled_from(["config.json", "preprocessor_config.json", "model.safetensors"]),
    share=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
    in_place=st.booleans(),
    keeps_time=st.booleans(),
    seen=st.booleans(),
)
def test_a_member_of_which_one_bit_changes_is_refused(pools, layout, name, share, bit, in_place, keeps_time, seen):
    """Written in place or replaced, with its time of change set back or not, by a pool that has read it or not."""
    file = pools[layout] / "m" / name
    assume(file.exists())
    sound, state = file.read_bytes(), file.stat()
    pool = ModelPool.from_dir(pools[layout]).pinned()
    lock = pool.lock(pools[layout].parent / f"{layout}.json")
    if seen:
        pool.load(0)
    damaged = bytearray(sound)
    damaged[int(share * len(sound))] ^= 1 << bit
    try:
        if not in_place:
            file.unlink()
        file.write_bytes(damaged)
        if keeps_time:
            os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
        problem = ModelPool.open(str(lock)).check(0)
        assert problem is not None and f"{name} is not the locked one" in problem
        with pytest.raises(MemberError, match=f"{name} is not the locked one"):
            ModelPool(pool).load(0)  # As in a run that has read the config and not loaded the member yet.
    finally:
        file.write_bytes(sound)
    assert ModelPool.open(str(lock)).check(0) is None


@pytest.mark.parametrize("seed", range(6))
def test_commits_tags_and_old_names_of_repositories_are_told_apart_also_offline(hub, tmp_path, monkeypatch, seed):
    """Some repositories with some commits, named in any order and in every way that there is."""
    draw = random.Random(seed)
    expected: dict[str, tuple[str, str]] = {}  # The repository and the commit of each name.
    answers: dict[tuple[str, str], torch.Tensor] = {}
    for number in range(2):
        id = f"org/m-{number}"
        for version in range(draw.randint(1, 3)):
            folder = write_member(tmp_path / f"{number}-{version}", seed=10 * number + version)
            sha = hub.add_repo(id, files_of(folder))
            answers[id, sha] = ModelPool.from_dir(folder).load(0)(images())
            hub.repos[id].tags[f"v{version}"] = sha
            expected |= {f"{id}@v{version}": (id, sha), f"{id}@{sha}": (id, sha)}
        expected |= {id: (id, sha), f"{id}@main": (id, sha)}
    hub.fault = lambda request: (
        Answer(307, b"", {"Location": "/api/models/org/m-0"}) if request.path == "/api/models/org/old" else None
    )
    expected["org/old"] = expected["org/m-0"]
    names = draw.sample(sorted(expected), draw.randint(2, len(expected)))
    wanted = {expected[name] for name in names}

    def found(pool: ModelPool) -> dict[tuple[str, str], torch.Tensor]:
        order = list(range(len(pool)))
        draw.shuffle(order)  # What was used last must not be what another name stands for.
        return {(pool[index].repository, pool[index].revision or ""): pool.load(index)(images()) for index in order}

    online = ModelPool.from_hub(names)
    first = found(online)
    assert first.keys() == wanted and len(online) == len(wanted)
    assert all(torch.equal(first[key], answers[key]) for key in wanted)
    lock = online.lock(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for again in (ModelPool.from_hub([name for name in names if name != "org/old"]), ModelPool.open(lock)):
        kept = found(again)
        assert kept.keys() <= wanted and all(torch.equal(kept[key], answers[key]) for key in kept)
    assert kept.keys() == wanted


def test_a_push_replaces_no_other_member_unless_it_is_asked_to(hub, tmp_path, caplog):
    push_pool(ModelPool.from_dir(write_pool(tmp_path / "one", 2)), "me")
    before = {id: repo.branches["main"] for id, repo in hub.repos.items()}
    other = tmp_path / "other"
    for index in range(2):
        write_member(other / f"m-{index}", seed=50 + index)
    with pytest.raises(FileExistsError, match="me/m-0 .and 1 more. holds another member's weights"):
        push_pool(ModelPool.from_dir(other), "me")
    assert {id: repo.branches["main"] for id, repo in hub.repos.items()} == before
    push_pool(ModelPool.from_dir(other), "me", overwrite=True)
    assert all(f"{id}@{sha}" in caplog.text for id, sha in before.items()), "the commits that still have them"


def race(folder: Path, runners: int, rounds: int) -> tuple[list[int], int]:
    """How many were in the folder whenever one was, and how often one was."""
    inside, counts, lock = [0], [], threading.Lock()

    def runner() -> None:
        for _ in range(rounds):
            try:
                with folder_in_use(folder):
                    with lock:
                        inside[0] += 1
                        counts.append(inside[0])
                    time.sleep(0.001)
                    with lock:
                        inside[0] -= 1
            except FileExistsError:
                time.sleep(0.001)

    threads = [threading.Thread(target=runner) for _ in range(runners)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts, len(counts)


@pytest.mark.parametrize("left", ["nothing", "a dead process", "half a file"])
def test_a_folder_belongs_to_one_run_however_many_want_it(tmp_path, left):
    if left == "a dead process":
        holder(tmp_path, process=2**22 + 1)
    elif left == "half a file":
        (tmp_path / LOCK_NAME).write_text("half")
        os.utime(tmp_path / LOCK_NAME, (0, 0))
    counts, entered = race(tmp_path, runners=6, rounds=4)
    assert entered >= 1 and set(counts) == {1}
    assert not list(tmp_path.glob(f"{LOCK_NAME}*"))


def test_of_two_that_see_what_a_dead_process_left_one_takes_the_folder(tmp_path, monkeypatch):
    """The slower one looks again before it deletes anything: what is there by then is the other one's."""
    holder(tmp_path, process=2**22 + 1)
    alive, met = folder_lock._alive, threading.Barrier(2, timeout=20)
    waited = threading.local()

    def both_have_looked(found, lock):
        verdict = alive(found, lock)
        if not verdict and not getattr(waited, "once", False):
            waited.once = True
            met.wait()
        return verdict

    monkeypatch.setattr(folder_lock, "_alive", both_have_looked)
    outcomes: list[str] = []
    leave = threading.Event()

    def runner() -> None:
        try:
            with folder_in_use(tmp_path):
                outcomes.append("in")
                leave.wait(20)
        except FileExistsError:
            outcomes.append("refused")
            leave.set()

    threads = [threading.Thread(target=runner) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["in", "refused"]


def test_a_run_that_was_taken_for_gone_does_not_end_another_ones_hold(tmp_path):
    with folder_in_use(tmp_path):
        other = json.dumps({"process": 1, "started": None, "machine": "elsewhere"})
        (tmp_path / LOCK_NAME).write_text(other)
    assert (tmp_path / LOCK_NAME).read_text() == other
