"""The score interval: textbook figures, and that it holds where all or none are right."""

from __future__ import annotations

import pytest

from hf_dfml.classifier import Accuracy


def test_the_interval_is_wilsons() -> None:
    low, high = Accuracy(8, 10).interval
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))


def test_all_right_is_not_certainty() -> None:
    low, high = Accuracy(10, 10).interval
    assert high == 1.0 and low == pytest.approx(0.7225, abs=1e-4)
    assert Accuracy(0, 10).interval == (pytest.approx(1 - high), pytest.approx(1 - low))
    assert str(Accuracy(8, 10)).startswith("8 of 10 (80.0 %")
