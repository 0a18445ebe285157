"""Whatever ends a run ends it with a clear message, and the run that goes on ends in the same weights."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file

from hf_dfml import trainer
from hf_dfml.methods import tgr
from hf_dfml.methods.pool_distillation import PoolDistillation, PoolDistillationConfig
from hf_dfml.methods.tgr import TGR, TGRConfig
from hf_dfml.pipeline import run
from hf_dfml.pool import ModelPool
from hf_dfml.run_config import RunConfig
from hf_dfml.utils import checkpoint
from hf_dfml.utils.checkpoint import load_tree
from tests.hub_server import Answer
from tests.methods.tiny_tgr import TINY, trainer_of
from tests.pool.members import files_of, write_pool
from tests.processes.launch import ROOT, process_of_rank, start

LONGER = {**TINY, "steps": 16, "recovery_steps": 5, "replay_batch": 4}


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """A folder of four members."""
    return write_pool(tmp_path_factory.mktemp("survival") / "pool", 4)


def same(one, other) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def undisturbed(members, tmp_path_factory):
    """The weights that every run of `TINY` is to end in."""
    return trainer_of(ModelPool.from_dir(members), tmp_path_factory.mktemp("run")).fit().model.state_dict()


def test_the_same_seed_gives_the_same_weights(members, tmp_path, undisturbed):
    again = trainer_of(ModelPool.from_dir(members), tmp_path).fit()
    assert again.finished and same(again.model.state_dict(), undisturbed)


@pytest.mark.parametrize(("keep", "kept"), [(1, [7]), (2, [6, 7]), (3, [4, 6, 7]), (10, [0, 2, 4, 6, 7])])
def test_of_the_checkpoints_between_those_that_are_due_only_the_newest_are_kept(
    members, tmp_path, monkeypatch, keep, kept
):
    """A slow run writes one after each step, and is left with one for each `checkpoint_every` steps."""
    monkeypatch.setattr(trainer, "SAVE_SECONDS", -1.0)
    run = trainer_of(ModelPool.from_dir(members), tmp_path, steps=7)
    run.config = replace(run.config, checkpoint_every=2, keep_checkpoints=keep)
    run.fit()
    assert sorted(path.name for path in tmp_path.glob("checkpoints/*")) == [f"step-{step:06d}" for step in kept]


def test_a_full_disk_is_told_and_costs_nothing_but_the_steps_since_the_last_checkpoint(
    members, tmp_path, undisturbed, monkeypatch, capsys
):
    pool, save = ModelPool.from_dir(members), checkpoint.save_file

    def save_until_full(tensors, path, **options):
        if "step-000003" in str(path):
            path.write_bytes(b"half of it")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save(tensors, path, **options)

    monkeypatch.setattr(checkpoint, "save_file", save_until_full)
    with pytest.raises(OSError, match="step-000003 could not be written, and nothing of it is left: .*No space left"):
        trainer_of(pool, tmp_path).fit()
    printed = capsys.readouterr().err
    assert re.search(
        r"broke off after step 3. The last checkpoint is .*step-000002: go on with the same command", printed
    )
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step-000001", "step-000002"}
    monkeypatch.setattr(checkpoint, "save_file", save)
    resumed = trainer_of(pool, tmp_path).fit()
    assert resumed.finished and same(resumed.model.state_dict(), undisturbed)


def test_a_loss_that_was_no_number_once_does_not_stay_in_the_run(members, tmp_path, undisturbed, monkeypatch, capsys):
    pool, apply_gradients = ModelPool.from_dir(members), tgr.apply_gradients
    calls = []

    def descend_into_nowhere(optimizer, model, gradients):
        calls.append(1)
        poisoned = {name: value * float("nan") for name, value in gradients.items()}
        apply_gradients(optimizer, model, poisoned if len(calls) == 4 else gradients)

    monkeypatch.setattr(tgr, "apply_gradients", descend_into_nowhere)
    with pytest.raises(FloatingPointError, match="Step 4: The meta-gradient is not finite"):
        trainer_of(pool, tmp_path).fit()
    assert re.search(r"broke off after step 3. The last checkpoint is .*step-000003", capsys.readouterr().err)
    resumed = trainer_of(pool, tmp_path).fit()
    assert same(resumed.model.state_dict(), undisturbed)


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(members, tmp_path, undisturbed, capsys, how):
    pool, checkpoints = ModelPool.from_dir(members), tmp_path / "checkpoints"
    trainer_of(pool, tmp_path, steps=3).fit()

    def spoil(name: str) -> None:
        weights = checkpoints / name / "tree.safetensors"
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content[: len(content) // 2 if how == "cut" else None])

    spoil("step-000003")
    resumed = trainer_of(pool, tmp_path).fit()
    printed = capsys.readouterr().out
    assert re.search(r"Warning: checkpoint step-000003 is damaged \(tree.safetensors .*\): kept as damaged", printed)
    assert "step-000002 at step 2." in printed and (checkpoints / "damaged-step-000003").is_dir()
    assert resumed.finished and same(resumed.model.state_dict(), undisturbed)
    for folder in checkpoints.glob("step-*"):
        spoil(folder.name)
    with pytest.raises(ValueError, match="All checkpoints in .* are damaged"):
        trainer_of(pool, tmp_path).fit()


def test_a_hub_that_is_lost_in_the_middle_is_found_again(hub, members, tmp_path, monkeypatch, capsys):
    for folder in sorted(members.iterdir()):
        hub.add_repo(f"org/{folder.name}", files_of(folder))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    changes = {"grouping": "none", "teachers_per_step": 1}
    expected = trainer_of(ModelPool.from_dir(members), tmp_path / "local", **changes).fit().model.state_dict()

    run = trainer_of(ModelPool.from_hub("org").resolve(), tmp_path / "run", **changes)

    def lost(request):
        return Answer.error(503, "", "down") if run.progress.step >= 1 else None

    hub.fault = lost
    with pytest.raises(LocalEntryNotFoundError, match="Please check your connection"):
        run.fit()
    assert re.search(r"broke off after step \d. The last checkpoint is", capsys.readouterr().err)
    hub.fault = None
    resumed = trainer_of(ModelPool.from_hub("org").resolve(), tmp_path / "run", **changes).fit()
    assert resumed.finished and same(resumed.model.state_dict(), expected)


@pytest.mark.parametrize("reason", ["signal", "time"])
def test_a_setup_stops_between_two_members_and_goes_on_with_the_next(
    members, tmp_path, undisturbed, monkeypatch, capsys, reason
):
    """The minutes of `--max_minutes` are those of the setup too."""
    pool, recover, recovered = ModelPool.from_dir(members), tgr.recover, []

    def disturbed(teacher, *arguments):
        recovered.append(teacher.entry.id)
        if len(recovered) == 2 and reason == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        if len(recovered) == 2 and reason == "time":
            time.sleep(0.7)
        return recover(teacher, *arguments)

    monkeypatch.setattr(tgr, "recover", disturbed)
    stopped = trainer_of(pool, tmp_path, max_minutes=0.01 if reason == "time" else 0.0).fit()
    assert not stopped.finished
    why = "SIGTERM was received" if reason == "signal" else "the 0.01 minutes of --max_minutes are over"
    assert f"Stopped during the setup: {why}." in capsys.readouterr().out
    assert len(recovered) in ((2,) if reason == "signal" else (1, 2))
    resumed = trainer_of(pool, tmp_path).fit()
    assert recovered[:4] == ["m-0", "m-1", "m-2", "m-3"], "none twice"
    assert same(resumed.model.state_dict(), undisturbed)


def test_parts_of_a_setup_are_of_no_use_to_other_options(members, tmp_path, monkeypatch):
    pool, recover, recovered = ModelPool.from_dir(members), tgr.recover, []

    def interrupted(teacher, *arguments):
        recovered.append(teacher.entry.id)
        if len(recovered) == 3:
            raise KeyboardInterrupt
        return recover(teacher, *arguments)

    monkeypatch.setattr(tgr, "recover", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer_of(pool, tmp_path).fit()
    trainer_of(pool, tmp_path, tv_weight=0.5, steps=0).fit()
    assert recovered == ["m-0", "m-1", "m-2", "m-0", "m-1", "m-2", "m-3"]
    assert not (tmp_path / "setup").exists()


def test_a_run_that_is_refused_leaves_its_folder_as_it_was(members, tmp_path, monkeypatch):
    """Another pool and other options for a folder that holds a run, or the beginning of one."""

    def of(folder, method, hyper, resume="latest", **more):
        words = {
            "pool": str(pool),
            "ways": 3,
            "arch": "conv4_16",
            "resume_from_checkpoint": resume,
            "log_with": "none",
        }
        return run(
            method, hyper, RunConfig(output_dir=str(folder), checkpoint_every=1, **words, **more), argv=["test"]
        )

    def files(folder):
        # Not the time of the folders themselves, in which each run leaves a lock and takes it away.
        return {
            path: (path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else "folder"
            for path in folder.rglob("*")
        }

    pool = members
    of(tmp_path / "run", TGR, TGRConfig(**TINY), resume=None)
    begun = tmp_path / "begun"
    ModelPool.from_dir(members).lock(begun)  # What is left of one that was killed in its setup.
    before = files(tmp_path)
    assert (tmp_path / "run" / "pool.lock.json").is_file()
    with pytest.raises(ValueError, match="written with other random numbers: a run goes on with its own"):
        of(tmp_path / "run", TGR, TGRConfig(**TINY), seed=7)
    with pytest.raises(ValueError, match="written with other members"):
        of(tmp_path / "run", TGR, TGRConfig(**TINY), num_members=2)
    pool = write_pool(tmp_path.with_name(f"{tmp_path.name}-other"), 3)
    with pytest.raises(FileExistsError, match="already holds a run"):
        of(tmp_path / "run", TGR, TGRConfig(**TINY), resume=None)
    with pytest.raises(ValueError, match="other values of shift"):
        of(tmp_path / "run", TGR, TGRConfig(**{**TINY, "shift": 1}))
    monkeypatch.setattr("hf_dfml.pipeline.sound", lambda *_: pytest.fail("members were asked before the refusal"))
    pool = members
    with pytest.raises(FileExistsError, match="already holds a run"):
        of(tmp_path / "run", TGR, TGRConfig(**TINY), resume=None)
    with pytest.raises(ValueError, match="other values of shift"):
        of(tmp_path / "run", TGR, TGRConfig(**{**TINY, "shift": 1}))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="make no batch"):
        of(begun, PoolDistillation, PoolDistillationConfig(num_images=4))
    assert files(tmp_path) == before


def words(members, folder, options, *more):
    """A recipe's command line."""
    named = {
        **options,
        "pool": members,
        "output_dir": folder,
        "checkpoint_every": 1,
        "ways": 3,
        "arch": "conv4_16",
    }
    named |= {"log_with": "none", "resume_from_checkpoint": "latest"}
    return [ROOT / "recipes" / "tgr.py", *(word for k, v in named.items() for word in (f"--{k}", str(v))), *more]


def wait_for(run, folder, pattern, seconds=600):
    """Until there is such a checkpoint."""
    deadline = time.monotonic() + seconds
    while not list((folder / "checkpoints").glob(pattern)):
        assert run.poll() is None, "the run was over before it was disturbed"
        if time.monotonic() > deadline:
            run.terminate()  # A launcher ends its processes.
            pytest.fail(f"There is no checkpoint {pattern} after {seconds} seconds.")
        time.sleep(0.005)


def newest_step(folder) -> int:
    """Of the checkpoints in `folder`; -1 where there is none."""
    return max((int(path.name.removeprefix("step-")) for path in folder.glob("checkpoints/step-*")), default=-1)


@pytest.mark.faults
def test_ten_kills_at_random_moments(members, tmp_path):
    """The setup, checkpoints being written, steps: whatever a kill hits."""
    assert start(1, *words(members, tmp_path / "whole", LONGER)).wait() == 0
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    last = tmp_path / "whole" / "checkpoints" / f"step-{LONGER['steps']:06d}"
    seconds_a_step = load_tree(last)["progress"]["seconds"] / LONGER["steps"]
    moments = random.Random(0)
    for kill in range(1, 11):
        # The first one in the setup.
        folder, after = tmp_path / f"killed-{kill}", moments.randrange(LONGER["steps"] - 1) if kill > 1 else -1
        run = start(1, *words(members, folder, LONGER))
        while not folder.exists() or newest_step(folder) < after:
            assert run.poll() is None
            time.sleep(0.001)
        time.sleep(moments.uniform(0, seconds_a_step))
        assert run.poll() is None, "the run was over before it was killed"
        run.kill()
        run.wait()
        print(f"Kill {kill} left {[path.name for path in sorted(folder.glob('*/*')) if path.is_dir()]}.")
        assert start(1, *words(members, folder, LONGER)).wait() == 0
        assert same(load_file(folder / "model.safetensors"), expected), f"kill {kill}"
        assert not list(folder.glob("checkpoints/.*")) and not (folder / "setup").exists()


@pytest.fixture(scope="module")
def of_one_process(members, tmp_path_factory):
    """The weights that one process comes to with `LONGER`."""
    folder = tmp_path_factory.mktemp("one")
    assert start(1, *words(members, folder, LONGER)).wait() == 0
    return load_file(folder / "model.safetensors")


@pytest.mark.faults
@pytest.mark.parametrize(("rank", "number"), [(0, "KILL"), (1, "KILL"), (1, "STOP")])
def test_a_process_that_dies_or_hangs_ends_the_run_and_the_next_one_goes_on(
    members, tmp_path, of_one_process, rank, number
):
    patience = ["--patience_minutes", "0.1"] if number == "STOP" else []
    run = start(2, *words(members, tmp_path, LONGER, *patience), stderr=subprocess.PIPE, text=True)
    wait_for(run, tmp_path, "step-00000[3-9]")
    victim = process_of_rank(run, rank)
    victim.send_signal(getattr(signal, f"SIG{number}"))
    # The launcher gives a process that hangs half a minute to end by itself.
    _, printed = run.communicate(timeout=400)
    assert run.returncode != 0 and not (tmp_path / "model.safetensors").exists()
    assert re.search(r"The last checkpoint is .*step-\d+: go on with the same command", printed)
    assert f"process {1 - rank} of 2 has lost another one" in printed
    assert start(2, *words(members, tmp_path, LONGER)).wait() == 0
    assert same(load_file(tmp_path / "model.safetensors"), of_one_process)


@pytest.mark.faults
def test_a_signal_to_one_process_stops_all_after_the_same_step(members, tmp_path, of_one_process):
    run = start(2, *words(members, tmp_path, LONGER), stdout=subprocess.PIPE, text=True)
    wait_for(run, tmp_path, "step-00000[3-9]")
    process_of_rank(run, 1).send_signal(signal.SIGTERM)
    printed, _ = run.communicate(timeout=400)
    step = int(re.search(r"Stopped after step (\d+) of 16: SIGTERM was received", printed)[1])
    # The processes end with 3 (stopped before the end), which the launcher makes 1, as of any that is not 0.
    assert run.returncode == 1 and (tmp_path / "checkpoints" / f"step-{step:06d}").is_dir()
    # What two processes have begun one can end.
    assert start(1, *words(members, tmp_path, LONGER)).wait() == 0
    assert same(load_file(tmp_path / "model.safetensors"), of_one_process)


@pytest.mark.faults
def test_a_disk_that_is_really_full(members, tmp_path, of_one_process):
    """A file system in a name space of the run's own, which has room when the run begins and is full after a step."""
    small = tmp_path / "small"
    small.mkdir()
    in_name_space = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=100m tmpfs {small}"
    if not shutil.which("unshare") or subprocess.run([*in_name_space, mount], capture_output=True).returncode:
        pytest.skip("this machine lets no user mount a file system of their own")
    begun = f"{small}/run/checkpoints/step-000002"
    fill = f"(while [ ! -d {begun} ]; do sleep 0.01; done; cat /dev/zero > {small}/filling 2>/dev/null) &"
    command = " ".join(map(str, [sys.executable, *words(members, small / "run", LONGER)]))
    keep = f"{mount} && {{ {fill} }} && {command}; code=$?; cp -r {small}/run {tmp_path}/kept; exit $code"
    run = subprocess.run([*in_name_space, keep], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert run.returncode == 1 and "No space left on device" in run.stderr and "The last checkpoint is" in run.stderr
    kept = Path(tmp_path / "kept")
    assert start(1, *words(members, kept, LONGER)).wait() == 0
    assert same(load_file(kept / "model.safetensors"), of_one_process)
