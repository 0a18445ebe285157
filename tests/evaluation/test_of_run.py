"""What a validation tells of the evaluation at the end of a run."""

import time

import pytest
from torch import nn

from hf_dfml.evaluation import Adaptation, of_run
from hf_dfml.evaluation.of_run import RunEvaluation
from hf_dfml.run_config import RunConfig
from hf_dfml.utils.processes import ALONE


@pytest.mark.parametrize(
    ("suits", "changes", "times"),
    [
        (Adaptation(), {}, 4),
        (Adaptation(), {"icfil_episodes": 2}, 0),
        (Adaptation(), {"finetuned_rows": False}, 0),
        (Adaptation(head="prototype", bn="running"), {}, 0),
    ],
    ids=["fine-tuned", "with ICFIL", "rows of prototypes", "prototypes"],
)
def test_the_evaluation_takes_as_long_as_so_many_validations(monkeypatch, suits, changes, times):
    now, told = [0.0], []

    def validation(*_):
        def score(network):
            now[0] += 5.0
            return {"1-shot": 20.0}

        return score

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(of_run, "validation", validation)
    evaluation = RunEvaluation(RunConfig(episodes=400, validation_episodes=100, **changes), suits, ALONE)
    assert evaluation.validation(["classes"], told.append)(nn.Identity()) == {"1-shot": 20.0}
    # Each of its pieces has four times the episodes.
    assert told == [5.0 * times * evaluation.pieces(1)] * bool(times)
    assert evaluation.validation([], told.append) is None
    evaluation.validation(["one", "two"], told.append)(nn.Identity())
    assert told[1:] == [5.0 / 2 * times * evaluation.pieces(2)] * bool(times), "a validation is of both data sets"
