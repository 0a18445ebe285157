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
