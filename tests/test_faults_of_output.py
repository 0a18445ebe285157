"""Kills and full disks while something is written or published: what was there stays whole, the next try succeeds."""

from __future__ import annotations

import errno
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_dfml import MetaModel
from hf_dfml.networks import create_network
from hf_dfml.utils import checkpoint
from hf_dfml.utils.checkpoint import atomic_write
from tests.processes.launch import ROOT, start

CLI = ("-m", "hf_dfml.cli")
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


def on_a_full_disk(small: Path, *command: object) -> subprocess.CompletedProcess:
    """The command in a name space of its own, in which `small` is a full file system of 200 kB."""
    small.mkdir()
    mount = f"mount -t tmpfs -o size=200k tmpfs {small}"
    if not shutil.which("unshare") or subprocess.run([*NAME_SPACE, mount], capture_output=True).returncode:
        pytest.skip("this machine lets no user mount a file system of their own")
    fill = f"{mount} && mkdir {small}/out && (cat /dev/zero > {small}/filling 2>/dev/null; true)"
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
