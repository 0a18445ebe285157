"""What a run says of itself at its end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hf_dfml.evaluation import Result
from hf_dfml.evaluation.reporting import beside_one_member

OURS = Result("FREE", "cub", 5, 5, "running", "prototype", 100, "accuracy", 60.0, 1.0, 0, "test", 1.0, "x")
MEMBER = replace(OURS, method="Best member + prototype")
ALL = replace(OURS, method="All 9 members + prototype", mean=99.0)


@pytest.mark.parametrize(
    ("accuracy", "said"),
    [
        (50.0, "10.0 points above the best member alone (60.0 and 50.0 % with 5 images a class)."),
        (61.5, "Not distinguishable from the best member alone (60.0 and 61.5 % with 5 images a class)."),
        (62.5, "Warning: 2.5 points below the best member alone (60.0 and 62.5 % with 5 images a class). Nothing was"),
    ],
)
def test_a_run_is_compared_with_its_best_member(accuracy, said):
    fewer = replace(OURS, shots=1, mean=0.0)
    sentence = beside_one_member([fewer, OURS], [ALL, replace(MEMBER, mean=accuracy), replace(MEMBER, shots=1)])
    assert sentence is not None and sentence.startswith(said)


def test_without_the_member_nothing_is_said():
    assert beside_one_member([OURS], [ALL, replace(MEMBER, dataset="cifar-fs")]) is None
    assert beside_one_member([], [MEMBER]) is None
