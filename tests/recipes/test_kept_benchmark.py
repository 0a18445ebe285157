"""benchmarks/kept.py: a folder is found again by the same settings alone."""

import json
import shutil
from dataclasses import replace

import pytest

from hf_dfml.run_config import RunConfig
from tests.pool.members import ids, write_pool


def test_a_folder_is_for_the_settings_that_it_was_measured_with(script, tmp_path):
    claim, config = script("kept").claim, RunConfig(pool="pools/x", num_members=3)
    claim(tmp_path / "a", config, members=["m-0", "m-1"])
    asked = json.loads((tmp_path / "a" / "asked.json").read_text())
    (tmp_path / "a" / "results.json").write_text("[]")
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


def test_a_command_that_failed_before_it_measured_anything_may_be_corrected(script, tmp_path):
    claim = script("kept").claim
    claim(tmp_path, RunConfig(pool="pools/typo"), of_a_run=True)
    claim(tmp_path, RunConfig(pool="pools/right"), of_a_run=True)
    assert json.loads((tmp_path / "asked.json").read_text())["pool"] == "pools/right"


def test_paths_to_one_folder_are_one_pool(script, tmp_path, monkeypatch):
    claim = script("kept").claim
    (tmp_path / "pool").mkdir()
    monkeypatch.chdir(tmp_path)
    claim(tmp_path / "out", RunConfig(pool="pool"))
    (tmp_path / "out" / "results.json").write_text("[]")
    claim(tmp_path / "out", RunConfig(pool=str(tmp_path / "pool")))
    with pytest.raises(SystemExit, match="not pool other"):
        claim(tmp_path / "out", RunConfig(pool="other"))


def test_the_members_of_an_interrupted_command_are_taken_again(script, tmp_path):
    """The check of members may judge otherwise when more weights are on the disk."""
    module = script("kept")
    write_pool(tmp_path / "pool", 3)
    shutil.copytree(tmp_path / "pool" / "m-0", tmp_path / "pool" / "m-3")
    config = RunConfig(pool=str(tmp_path / "pool"))
    assert ids(module.members_of(config, tmp_path / "out")) == ["m-0", "m-1", "m-2"], "one is a copy"
    module.claim(tmp_path / "out", config, members=["m-0", "m-1", "m-3"])
    assert ids(module.members_of(config, tmp_path / "out")) == ["m-0", "m-1", "m-3"]
