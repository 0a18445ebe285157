"""The driver notices what it is there to notice; damaged inputs are in `tests/properties/test_no_traceback.py`."""

from random import Random

import pytest


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture
def fuzz(script, monkeypatch, tmp_path):
    """The script, working in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return script("fuzz")


@pytest.fixture
def targets(script, sound):
    module = script("fuzz_targets")
    if not any(sound.iterdir()):
        module.make_sound(sound)
    return module


def test_sound_inputs_are_used(targets, sound, tmp_path, monkeypatch):
    """Else every case would be refused for another reason than its damage."""
    monkeypatch.setattr(targets, "bad_bytes", lambda content, random: content)
    monkeypatch.setattr(targets, "bad_yaml", lambda text, random: b"seed: 3")
    monkeypatch.setattr(targets, "bad_json", lambda content, random: targets.json.dumps(content).encode())
    used = []
    monkeypatch.setattr(targets, "_use", lambda folder: used.append(targets.ModelPool.from_dir(folder).check(0)))

    class Sound(Random):
        def choice(self, values):
            return values[0]

        def randrange(self, *_):
            return 0

    for name, target in targets.TARGETS.items():
        (tmp_path / name).mkdir()
        target(sound, tmp_path / name, Sound(0))
    assert used == [None] * 3


def test_the_driver_reports_tracebacks_and_what_is_done_outside(fuzz, targets, sound, tmp_path, monkeypatch):
    monkeypatch.setitem(fuzz.sys.modules, "fuzz_targets", targets)
    folder = tmp_path / "own"
    folder.mkdir()
    watch = fuzz.Watch(folder)
    fuzz.signal.signal(fuzz.signal.SIGPROF, fuzz.signal.SIG_IGN)

    def found(target):
        monkeypatch.setitem(targets.TARGETS, "x", target)
        return fuzz.run_case(0, 0, "x", sound, watch)

    def fails(*_):
        raise KeyError("x")

    def refuses(*_):
        raise ValueError("x")

    assert found(lambda *_: None) is None and found(refuses) is None
    assert found(lambda _, case, __: (case / "inside").write_text("")) is None
    assert found(fails).startswith("KeyError: 'x'")
    assert found(lambda *_: (tmp_path / "outside").write_text("")).startswith("outside of its folder: open")
    assert found(lambda *_: (tmp_path / "other").mkdir()).startswith("outside of its folder: os.mkdir")
