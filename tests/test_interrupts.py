"""Real Ctrl-C to real processes: a sentence, exit code 130, ten seconds at most, and nothing finished is lost."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from hf_dfml.cli import main
from tests.methods.tiny_tgr import TINY
from tests.pool.members import write_pool

ROOT = Path(__file__).parents[1]
CLI = [sys.executable, "-m", "hf_dfml.cli"]
SLOW = {**TINY, "recovery_steps": 100_000, "steps": 2}
PATIENCE_OF_TESTS = 60
"""Seconds that a crowded machine may take for the ten of the promise."""


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    return write_pool(tmp_path_factory.mktemp("interrupts") / "pool", 3)


def start(*words, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    return subprocess.Popen([*CLI, *map(str, words)], **options)


def training(members, folder, options, *more):
    """The words of a command line."""
    options = {"log_with": "none", "ways": 3, "arch": "conv4_16", "checkpoint_every": 1, **options}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["train", "tgr", "--pool", str(members), "--output_dir", str(folder), *words, *more]


def train(*of_training):
    return start(*training(*of_training))


def exit_code(words):
    """Of the command in this process, where no signal is sent."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    return stop.value.code


def wait_until(process, condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        if time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"Nothing came of it in {seconds} seconds: {process.communicate()[0]}")
        time.sleep(0.02)


def interrupt(process):
    """What the process has printed."""
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=PATIENCE_OF_TESTS)
    assert process.returncode == 130, printed
    assert "Traceback" not in printed
    return printed


def test_a_recovery_that_would_take_an_hour_is_broken_off(members, tmp_path):
    run = train(members, tmp_path / "run", SLOW)
    wait_until(run, (tmp_path / "run").is_dir)
    time.sleep(2)
    printed = interrupt(run)
    assert "Stopped during the setup: SIGINT was received" in printed or "stopped by Ctrl-C" in printed


def test_a_step_that_would_take_an_hour_is_broken_off_and_the_checkpoint_before_it_is_named(members, tmp_path):
    run = train(members, tmp_path / "run", {**SLOW, "grouping": "none"})
    wait_until(run, lambda: any((tmp_path / "run" / "checkpoints").glob("step-*")))
    time.sleep(1)
    printed = interrupt(run)
    assert "Stopped in step 1 of 2: SIGINT was received. The last checkpoint is " in printed
    assert "step-000000: go on with the same command and --resume_from_checkpoint latest." in printed


def test_an_evaluation_is_broken_off_and_the_training_is_kept(members, tmp_path):
    options = {**TINY, "steps": 1, "dataset": "glyphs", "episodes": 20_000, "validation_episodes": 2, "shots": 1}
    run = train(members, tmp_path / "run", {**options, "baselines": "false"})
    wait_until(run, lambda: any((tmp_path / "run" / "checkpoints").glob("step-000001")))
    time.sleep(2)
    printed = interrupt(run)
    assert "stopped by Ctrl-C in the evaluation. The training is done and kept in" in printed
    assert any((tmp_path / "run" / "checkpoints").glob("step-000001"))


def test_a_build_is_broken_off_and_goes_on(tmp_path):
    words = ["pool", "build", "--output", tmp_path / "pool", "--arch", "conv4_16", "--num-models", 200, "--epochs", 2]
    run = start(*words)
    wait_until(run, lambda: (tmp_path / "pool" / "glyphs-conv4_16-000").is_dir())
    printed = interrupt(run)
    done = len([each for each in (tmp_path / "pool").iterdir() if not each.name.startswith(".")])
    assert f"stopped by Ctrl-C after {done} of 200 members" in printed
    assert not list((tmp_path / "pool").glob(".*"))


@pytest.mark.parametrize("seconds", [0.15, 0.5])
def test_the_first_half_second(seconds, tmp_path):
    # Tests that a shell has put into the background are started with SIGINT ignored, and so is Python itself.
    run = start("train", "tgr", "--pool", tmp_path, preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL))
    time.sleep(seconds)
    run.send_signal(signal.SIGINT)
    printed, _ = run.communicate(timeout=PATIENCE_OF_TESTS)
    # Python itself, before it runs a line of ours, ends by the signal.
    assert run.returncode in (130, -signal.SIGINT), printed


def test_an_error_that_follows_a_swallowed_interrupt_is_the_interrupt():
    """As PyTorch does where its import of numpy is interrupted."""
    code = (
        "import os, signal, time\n"
        "from hf_dfml.errors import errors_in_a_sentence\n"
        "with errors_in_a_sentence('dfml'):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(1)\n"
        "    except KeyboardInterrupt:\n"
        "        pass\n"
        "    raise RecursionError\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 130 and done.stderr.strip().startswith("dfml: stopped by Ctrl-C")


def test_time_that_is_over_ends_with_three(members, tmp_path, capfd):
    assert exit_code(training(members, tmp_path / "run", {**SLOW, "recovery_steps": 50, "max_minutes": 0.0001})) == 3
    assert "are over. Go on with the same command" in "".join(capfd.readouterr())


def test_done_is_zero_and_wrong_usage_is_two(members, tmp_path):
    assert exit_code(training(members, tmp_path / "run", {**TINY, "steps": 1})) == 0
    assert exit_code(["train", "tgr", "--stepps", "3"]) == 2
