"""benchmarks/kept.py: a folder is found again by the same settings alone."""

import json
from dataclasses import replace

import pytest

from hf_dfml.run_config import RunConfig


def test_a_folder_is_for_the_settings_that_it_was_measured_with(script, tmp_path):
    claim, config = script("kept").claim, RunConfig(pool="pools/x", num_members=3)
    claim(tmp_path / "a", config, members=["m-0", "m-1"])
    asked = json.loads((tmp_path / "a" / "asked.json").read_text())
    assert asked["num_members"] == 3 and asked["members"] == ["m-0", "m-1"] and "output_dir" not in asked
    claim(tmp_path / "a", replace(config, num_threads=2, output_dir="elsewhere"), members=["m-0", "m-1"])
    with pytest.raises(SystemExit, match="a holds what was measured with num_members 3, not num_members 4: name anot"):
        claim(tmp_path / "a", replace(config, num_members=4), members=["m-0", "m-1"])
    with pytest.raises(SystemExit, match=r"with 2 members \(m-0, ...\), not 1 members \(m-0, ...\)"):
        claim(tmp_path / "a", config, members=["m-0"])
    claim(tmp_path / "b", config, but=("num_members",))
    claim(tmp_path / "b", replace(config, num_members=4), but=("num_members",))


def test_a_folder_of_a_run_is_not_taken(script, tmp_path):
    claim = script("kept").claim
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(SystemExit, match="holds a run, whose results would be replaced: name another --output_dir"):
        claim(tmp_path, RunConfig())
    assert not (tmp_path / "asked.json").exists()
    claim(tmp_path, RunConfig(), of_a_run=True)
