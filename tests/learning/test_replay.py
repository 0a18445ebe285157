"""Replay: when it ends, and what a step of it changes."""

from types import SimpleNamespace

import pytest
import torch

from hf_dfml.learning import replay
from hf_dfml.learning.replay import ReplayConfig, replay_until_plateau


@pytest.fixture
def bank():
    """A bank that is always ready; the steps themselves are scripted."""
    return SimpleNamespace(ready=lambda count: list(range(5)))


def run(monkeypatch, bank, accuracies, **settings):
    script = iter(accuracies)
    monkeypatch.setattr(replay, "replay_step", lambda *_, **__: (1.0, next(script)))
    return replay_until_plateau(None, None, bank, ReplayConfig(**settings), torch.Generator(), ways=5)


@pytest.mark.parametrize("patience", [1, 2, 4])
def test_it_ends_after_exactly_so_many_steps_without_a_better_accuracy(monkeypatch, bank, patience):
    metrics = run(monkeypatch, bank, [0.2, 0.5, *[0.5] * 20], replay_patience=patience)
    assert metrics["replay_batches"] == 2 + patience
    assert metrics["replay_accuracy"] == pytest.approx((0.2 + 0.5 * (1 + patience)) / (2 + patience))


def test_an_improvement_starts_the_count_again(monkeypatch, bank):
    assert run(monkeypatch, bank, [0.2, 0.1, 0.3, 0.3, 0.1, 0.9], replay_patience=2)["replay_batches"] == 5


def test_the_most_steps_end_it_too(monkeypatch, bank):
    rising = [step / 100 for step in range(50)]
    assert run(monkeypatch, bank, rising, replay_patience=4, replay_max_batches=7)["replay_batches"] == 7


def test_too_few_classes_in_the_bank_are_not_replayed(monkeypatch):
    few = SimpleNamespace(ready=lambda count: [0, 1])
    assert run(monkeypatch, few, []) == {"replay_batches": 0.0}
