"""Kills and full disks while something is written or published: what was there stays whole, the next try succeeds."""

from __future__ import annotations

import errno
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_dfml import MetaModel
from hf_dfml.evaluation import read_results
from hf_dfml.networks import create_network
from hf_dfml.utils import checkpoint
from hf_dfml.utils.checkpoint import atomic_write
from tests.methods.tiny_tgr import TINY
from tests.pool.members import write_pool
from tests.processes.launch import ROOT, start
from tests.test_survival import words

CLI = ("-m", "hf_dfml.cli")
EVALUATED = {**TINY, "steps": 1, "dataset": "glyphs", "episodes": 8, "validation_episodes": 4, "shots": 1}
NAME_SPACE = ["unshare", "--map-root-user", "--mount", "sh", "-c"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """A stored meta-model."""
    folder = tmp_path_factory.mktemp("stored") / "run"
    network = create_network("conv4", num_classes=5, image_size=32, generator=torch.Generator().manual_seed(0))
    MetaModel.of(network, method="test").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("moment", ["write", "flush", "rename"])
def test_a_full_disk_leaves_the_earlier_file_and_nothing_else(tmp_path, monkeypatch, moment):
    atomic_write(tmp_path / "results.json", "[1]")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    where = {"write": (Path, "write_bytes"), "flush": (checkpoint, "_flush"), "rename": (Path, "replace")}
    monkeypatch.setattr(*where[moment], full)
    with pytest.raises(OSError, match=r"results\.json could not be written, .*No space left on device"):
        atomic_write(tmp_path / "results.json", "[1, 2]")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_text() == "[1]"


@pytest.mark.faults
@pytest.mark.parametrize("moment", ["/lfs/objects/batch", "/lfs/[0-9a-f]{64}", "/commit/"])
def test_kills_during_a_push_leave_all_or_nothing_and_the_next_push_succeeds(hub, stored, monkeypatch, moment):
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "0")
    runs: list[subprocess.Popen] = []

    def killed(request):
        if re.search(moment, request.path) and runs[0].poll() is None:
            runs[0].kill()
            runs[0].wait()

    hub.fault = killed
    runs.append(start(1, *CLI, "push", stored, "tester/run"))
    assert runs[0].wait(timeout=200) == -signal.SIGKILL
    found = hub.repos["tester/run"].at("main").files
    assert "model.safetensors" not in found or {"config.json", "README.md"} <= found.keys()
    hub.fault = None
    assert start(1, *CLI, "push", stored, "tester/run").wait(timeout=200) == 0
    published = hub.repos["tester/run"].at("main").files["model.safetensors"].content
    assert published == (stored / "model.safetensors").read_bytes()


@pytest.mark.faults
def test_kills_while_results_and_model_are_written(tmp_path):
    """Whenever it comes, `results.json` and the weights are whole or not there, and the same command ends the run."""
    members = write_pool(tmp_path / "pool", 4)
    assert start(1, *words(members, tmp_path / "whole", EVALUATED)).wait(timeout=300) == 0
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    rows = {(row.method, row.head, row.bn): row.mean for row in read_results(tmp_path / "whole")}
    moments = random.Random(0)
    for kill in range(3):
        folder = tmp_path / f"killed-{kill}"
        run = start(1, *words(members, folder, EVALUATED))
        results = folder / "results.json"
        while run.poll() is None and not results.exists():
            time.sleep(0.001)
        if kill:  # The first one in the very moment, the others while further rows and the model are written.
            time.sleep(moments.uniform(0, 1.5))
        run.kill()
        run.wait()
        assert all(row in rows for row in ((row.method, row.head, row.bn) for row in read_results(results)))
        if (folder / "model.safetensors").exists():
            assert load_file(folder / "model.safetensors").keys() == expected.keys()
        assert start(1, *words(members, folder, EVALUATED)).wait(timeout=300) == 0
        again = load_file(folder / "model.safetensors")
        assert all(torch.equal(again[name], value) for name, value in expected.items())
        assert {(row.method, row.head, row.bn): row.mean for row in read_results(folder)} == rows


def on_a_full_disk(small: Path, *command: object, room: int = 0) -> subprocess.CompletedProcess:
    """The command in a name space of its own, in which `small` is a file system of 200 kB with `room` bytes left."""
    small.mkdir()
    mount = f"mount -t tmpfs -o size=200k tmpfs {small}"
    if not shutil.which("unshare") or subprocess.run([*NAME_SPACE, mount], capture_output=True).returncode:
        pytest.skip("this machine lets no user mount a file system of their own")
    fill = f"{mount} && mkdir {small}/out && (cat /dev/zero > {small}/filling 2>/dev/null; "
    fill += f"truncate -s -{room} {small}/filling)"
    line = f"{fill}; {' '.join(map(str, command))}; code=$?; ls -A {small}/out; exit $code"
    return subprocess.run([*NAME_SPACE, line], capture_output=True, text=True, cwd=ROOT, timeout=200)


@pytest.mark.faults
def test_results_of_an_evaluation_on_a_full_disk(stored, tmp_path):
    small = tmp_path / "small"
    command = [sys.executable, *CLI, "evaluate", stored, "--dataset", "glyphs", "--episodes", 4, "--shots", 1]
    run = on_a_full_disk(small, *command, "--output-dir", small / "out")
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "results.json could not be written" in run.stderr and "No space left on device" in run.stderr
    assert ".partial" not in run.stdout


@pytest.mark.faults
def test_a_push_with_a_full_folder_for_temporary_files(hub, stored, tmp_path, monkeypatch):
    """What is published is put together in such a folder: another one is taken, and all of it is published."""
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "0")
    small = tmp_path / "small"
    run = on_a_full_disk(small, f"env TMPDIR={small}/out", sys.executable, *CLI, "push", stored, "tester/full")
    assert run.returncode == 0, run.stderr
    files = hub.repos["tester/full"].at("main").files
    assert json.loads(files["config.json"].content)["hf_dfml"]["method"] == "test"
    assert files["model.safetensors"].content == (stored / "model.safetensors").read_bytes()


@pytest.mark.faults
def test_a_push_that_a_full_disk_ends_publishes_nothing_and_the_next_one_all(hub, stored, tmp_path, monkeypatch):
    """There is room for a small file, by which such a folder is tried, and none for the weights."""
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "0")
    small, before = tmp_path / "small", {path.name: path.read_bytes() for path in stored.iterdir() if path.is_file()}
    command = [f"env TMPDIR={small}/out", sys.executable, *CLI, "push", stored, "tester/half"]
    run = on_a_full_disk(small, *command, room=16384)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert re.search(r"tester/half was not published: .*small/out, .* is full \(.*No space left on device", run.stderr)
    assert run.stdout.strip() == "", "nothing is left of what was put together"
    assert hub.repos == {} and hub.objects == {}
    assert {path.name: path.read_bytes() for path in stored.iterdir() if path.is_file()} == before
    assert start(1, *CLI, "push", stored, "tester/half").wait(timeout=200) == 0
    published = hub.repos["tester/half"].at("main").files["model.safetensors"].content
    assert published == before["model.safetensors"]
