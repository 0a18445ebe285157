"""No traceback for what came from outside: damaged files and requests are used, or refused with a sentence.

Some inputs of each kind; `make fuzz` has thousands. Each is watched: no traceback, an end within ten seconds of
computing, nothing written and nobody asked outside of its folder.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.recipes.conftest import script  # noqa: F401  (a fixture)

KINDS = (
    *("member_config_json", "processor_json", "safetensors", "stored_config", "yaml_preset", "parquet", "image"),
    *("answer_of_a_service", "request_to_serve"),
)
CASES = 10


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The folder that nothing may leave."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def watches() -> dict:
    return {}


@pytest.fixture
def tried(script, sound, place, watches, monkeypatch):  # noqa: F811
    """What is wrong with a case of a kind, by its number; None if it was used or refused."""
    fuzz, targets = script("fuzz"), script("fuzz_targets")
    if not any(sound.iterdir()):
        targets.make_sound(sound)
    monkeypatch.chdir(place)
    monkeypatch.setattr("tempfile.tempdir", str(place))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", place / "datasets")
    monkeypatch.setitem(sys.modules, "fuzz_targets", targets)
    # Audit hooks stay for the life of the process: one is enough.
    watch = watches.setdefault("only", None) or watches.update(only=fuzz.Watch(place)) or watches["only"]

    def hang(*_):
        raise fuzz.HangError

    before = signal.signal(signal.SIGPROF, hang)
    yield lambda kind, number: fuzz.run_case(number, "property", kind, sound, watch)
    signal.signal(signal.SIGPROF, before)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_inputs_are_used_or_refused_with_a_sentence(tried, kind):
    found = {number: what for number in range(CASES) if (what := tried(kind, number))}
    assert found == {}


def test_every_kind_of_input_is_tried(script):  # noqa: F811
    targets = script("fuzz_targets")
    assert set(KINDS) == targets.TARGETS.keys() == set(targets.ROUND)
