"""benchmarks/scale.py: points in processes of their own, models of what does not fit, and what is drawn of both."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from hf_dfml.recovery.joint import joint_classes
from tests.recipes.conftest import BENCHMARKS


def test_the_model_of_a_line_is_that_line(script):
    module = script("scale")
    found = module.fit([(10, 0.5 + 0.03 * 10), (100, 0.5 + 0.03 * 100), (1000, 0.5 + 0.03 * 1000)])
    assert (found.fixed, found.each) == (pytest.approx(0.5), pytest.approx(0.03)) and found.deviation < 1e-9
    assert found.at(5000) == pytest.approx(150.5)
    assert module.fit([(10, 2.0)]) == module.Model(0.0, 0.2, None), "of one point: in proportion"
    level = module.fit([(10, 3.0), (100, 2.9), (1000, 3.1)])
    assert level.fixed == pytest.approx(3, abs=0.1) and 0 <= level.each < 1e-3
    steep = module.fit([(10, 1.0), (100, 20.0), (1000, 300.0)])
    assert steep.fixed == 0 and steep.deviation > 0.3, "a negative fixed cost is none"


def test_points_beyond_the_limits_are_left_to_the_model(script, tmp_path, monkeypatch, capsys):
    """A second and 10 MB a member, and nothing for anything else: 100 members take too long, 500 pixels too much."""
    module, measured = script("scale"), []

    def apart(settings, part, members, classes, size):
        measured.append((part, members, classes, size))
        return module.Point(1.0 * members + 0.1, 10.0 * members + 5e-3 * size**2)

    monkeypatch.setattr(module, "measure_apart", apart)
    words = ["--members", "1", "10", "100", "--classes", "2", "80", "--image_sizes", "16", "32", "500"]
    words += ["--seconds_a_point", "50", "--memory_gb", "1", "--parts", "asking", "joint"]
    words += ["--output_dir", str(tmp_path), "--picture", str(tmp_path / "scale.png")]
    result = module.main(words)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    # The point that all three share is measured once.
    expected = [(1, 2, 16), (10, 2, 16), (1, 80, 16), (1, 2, 32)]
    assert measured == [(part, *at) for part in ("asking", "joint") for at in expected]
    line = result["models"]["members"]["asking"]["seconds"]
    assert line["each"] == pytest.approx(1) and line["fixed"] == pytest.approx(0.1)
    assert result["ratio"] == pytest.approx(10.1 / 1.1, abs=0.01)
    section = (tmp_path / "scale.md").read_text(encoding="utf-8")
    assert "| members | 100 | (100) | (1,001) | (100) | (1,001) |" in section
    assert "| members | 10 | 10.1 | 101 | 10.1 | 101 |" in section and "pictures/scale.png" in section
    assert (tmp_path / "scale.png").stat().st_size > 10_000


def test_joint_recovery_is_modelled_by_the_classes_that_it_shows(script):
    module = script("scale")
    assert [module.amount("classes", "joint", value) for value in (5, 50, 500)] == [5, 50, 50]
    assert [module.amount("classes", "asking", value) for value in (5, 50, 500)] == [5, 50, 500]
    assert module.amount("image_size", "joint", 64) == 64**2


@pytest.mark.parametrize("part", ["asking", "joint", "student"])
def test_a_part_is_that_of_the_method(script, part):
    module, sent = script("scale"), []
    settings = module.Options(network="conv4_16", images=4)
    module.measure_here(SimpleNamespace(send=sent.append), settings, part, 2, 3, 16)
    ((seconds, megabytes),) = sent
    assert seconds > 0 and megabytes >= 0.1


def test_a_point_has_a_process_of_its_own(tmp_path):
    words = ["--network", "conv4_16", "--images", "4", "--members", "1", "--classes", "2", "--image_sizes", "16"]
    command = [sys.executable, BENCHMARKS / "scale.py", *words, "--parts", "asking"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["measured"]["members"]["asking"]["1"]["seconds"] > 0 and result["ratio"] == 1


def test_no_two_members_know_the_same_class(script, tmp_path):
    module = script("scale")
    pool = module.write_pool(tmp_path, 10, module.Options(network="conv4_16"), 3, 16)
    known = joint_classes(pool)
    assert len(pool) == 10 and len(known) == 30 and {len(members) for members in known.values()} == {1}
    assert pool.load(9).num_classes == 3
