"""What long work says where there is no terminal."""

import sys
import time

import pytest

from hf_dfml.utils import progress as module


@pytest.fixture(autouse=True)
def in_a_log(monkeypatch):
    # The tests' own environment turns bars off, which huggingface_hub reads at import.
    monkeypatch.setattr(sys.modules["huggingface_hub.utils.tqdm"], "are_progress_bars_disabled", lambda _: False)
    monkeypatch.delenv("RANK", raising=False)


def long_work(count):
    bar = module.progress(range(count), description="Building pool", unit="member")
    for _ in bar:
        bar.set_postfix(accuracy="0.5")
        time.sleep(0.02)


def test_long_work_writes_lines_to_a_log(capsys, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.05)
    long_work(10)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) < 10, "now and then, not for every member"
    assert lines[-1].startswith("Building pool: 10 of 10 members, 00:00") and lines[-1].endswith("accuracy=0.5")
    counts = [int(line.split()[2]) for line in lines]
    assert counts == sorted(set(counts)), "no line twice"


def test_short_work_and_other_processes_write_nothing(capsys, monkeypatch):
    long_work(3)
    monkeypatch.setattr(module, "SECONDS", 0.01)
    monkeypatch.setenv("RANK", "1")
    long_work(3)
    assert capsys.readouterr().err == ""


def test_resumed_work_without_an_iterable_counts_from_where_it_was(capsys, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.01)
    with module.progress(description="Run", total=5, initial=3, unit="step") as bar:
        time.sleep(0.02)
        bar.update()
    assert capsys.readouterr().err.startswith("Run: 4 of 5 steps, 00:00")


def test_the_end_is_not_told_twice(capsys, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.001)
    long_work(3)
    assert [line.split()[2] for line in capsys.readouterr().err.splitlines()] == ["1", "2", "3"]


def test_one_line_for_the_whole_run_with_the_time_that_is_left(capsys, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.0)
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with module.whole_run("TGR") as whole:
        whole.begin("setup")
        for index in module.progress(range(10), description="Embedding", unit="member"):
            now[0] = 10.0 * (index + 1)
        whole.begin("steps", one_bar=True)
        with module.progress(description="TGR", total=4, unit="step") as bar:
            now[0] = 120.0
            bar.update(1)
            # 20 s of 4 steps' 80 are spent; the evaluation by its share of what setup and steps (180 s) have taken.
            left = 60 + 180 / (0.35 + 0.4) * 0.25
            assert whole.seconds_left() == pytest.approx(left)
            assert whole.text() == f"{100 * 120 / (120 + left):.0f} % of the run, TGR 1 of 4, about 2 min left"
            whole.expect("evaluation", 7.0)
            assert whole.seconds_left() == pytest.approx(60 + 7), "what was told goes before the share"
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("TGR: ") for line in lines), "no bar has lines of its own"


def test_a_run_that_goes_on_counts_its_own_speed_alone(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    whole = module.WholeRun("TGR", ["setup", "steps"])
    whole.begin("steps", pieces=10, done=0.8)
    for _ in range(9):
        whole.next_piece()
    now[0] = 7.0
    assert whole.seconds_left() == pytest.approx(7.0)
    whole.begin("evaluation", pieces=2)
    assert whole.seconds_left() is None, "nothing of it is done yet"
