"""Replay: when it ends, and what a step of it changes."""

from types import SimpleNamespace

import pytest
import torch

from hf_dfml.data.episodes import Episodes
from hf_dfml.learning import replay
from hf_dfml.learning.inner_loop import InnerLoop
from hf_dfml.learning.replay import ReplayConfig, divided_meta_gradient, replay_until_plateau
from hf_dfml.networks import create_network
from hf_dfml.utils.processes import Processes


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


@pytest.mark.parametrize(("count", "parts"), [(10, [5, 5]), (16, [8, 8]), (3, [3]), (20, [7, 7, 6])])
def test_the_episodes_of_a_batch_are_divided_into_parts_of_one_length(count, parts):
    lengths = []

    class Recording(Processes):
        def sum(self, function, items, like):
            lengths.extend(map(len, items))
            return super().sum(lambda item: list(like), items, like)

    labels = torch.arange(5).expand(count, 5)
    episodes = Episodes(torch.zeros(count, 5, 3, 32, 32), labels, torch.zeros(count, 5, 3, 32, 32), labels)
    divided_meta_gradient(create_network("conv4"), episodes, InnerLoop(1, 0.01), Recording())
    assert lengths == parts
