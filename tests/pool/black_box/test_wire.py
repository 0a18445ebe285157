"""Answers from elsewhere are those of the member, or are refused."""

import pytest

from hf_dfml.pool.black_box.wire import answers_of
from hf_dfml.pool.queries import ServiceError

NAN = float("nan")
CLASSES = ("cat", "dog")


def test_scores_stand_at_the_places_of_their_classes():
    assert answers_of([[("dog", 0.25)], [("cat", 1)]], 2, CLASSES, "x").tolist() == [[0, 0.25], [1, 0]]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([(["cat"], 0.5)], "a label in it is not a text"),
        ([({}, 0.5)], "a label in it is not a text"),
        ([("cat", 0.5), ("cat", 0.5)], "a label stands twice"),
        ([("wolf", 0.5)], "names a class 'wolf'"),
        *(([("cat", score)], "the score of 'cat' is") for score in (NAN, float("inf"), 10**400, True, "1", None)),
    ],
)
def test_other_answers_are_refused(row, reason):
    with pytest.raises(ServiceError, match=f"x gave an answer that is not understood: .*{reason}"):
        answers_of([row], 1, CLASSES, "x")
