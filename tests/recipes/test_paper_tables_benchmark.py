"""benchmarks/paper_tables.py: rows are run in their order, go on where they were stopped, and have both figures."""

import json

import pytest

from hf_dfml.cli import main as hf_dfml
from tests.recipes.test_free_recipe import glyph_pool

SMALL = "ways=3 validation_episodes=2 log_with=none arch=conv4_16".split()


@pytest.fixture
def words(tmp_path):
    pool = glyph_pool(tmp_path / "pool")
    words = ["--size", "tiny", "--dataset", "glyphs", "--episodes", "2", "--pool", str(pool), "--device", "cpu"]
    return [*words, "--output_dir", str(tmp_path / "out"), "--rows", "DRO", "--options", *SMALL]


def test_a_row_has_both_figures_and_is_not_run_again(script, words, tmp_path, capsys, monkeypatch):
    module = script("paper_tables")
    result = module.main(words)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == json.loads(json.dumps(result))
    row = result["rows"]["DRO"]
    assert set(row["chosen_on_validation"]) == set(row["best_on_test"]) == {1, 5}
    scores = json.loads((tmp_path / "out" / "dro" / module.SCORES).read_text())
    assert list(scores) == ["step-000001", "step-000002"], "the step before the first one is no checkpoint to choose"
    for place, shots in enumerate((1, 5)):
        assert row["best_on_test"][shots] == tuple(max(score[place] for score in scores.values()))
    page = (tmp_path / "out" / "paper_tables.md").read_text()
    assert f"| DRO, 5-shot | - | {row['best_on_test'][5][0]:.1f} |" in page and "Random init" in page
    monkeypatch.setattr(module, "go_on", lambda *_: pytest.fail("what has its results is run again"))
    monkeypatch.setattr(module, "evaluate", lambda *_, **__: pytest.fail("a checkpoint is evaluated again"))
    assert module.main(words)["rows"] == result["rows"]
    with pytest.raises(SystemExit, match="dro holds what was measured with episodes 2, not episodes 3: name another"):
        module.main([*words, "--episodes", "3"])


def test_a_run_shorter_than_its_checkpoints_says_so(script, words, monkeypatch):
    def in_this_process(words, *_):
        with pytest.raises(SystemExit) as end:
            hf_dfml(words)
        return "" if end.value.code in (0, None) else f"ended with code {end.value.code}"

    module = script("paper_tables")
    monkeypatch.setattr(module, "go_on", in_this_process)  # Another process would take seconds to start.
    row = module.main([*words, "checkpoint_every=50"])["rows"]["DRO"]
    assert set(row["chosen_on_validation"]) == {1, 5} and row["best_on_test"] == {}
    assert row["left"] == "there is no checkpoint to choose on test: the run has fewer steps than --checkpoint_every"


def test_a_row_that_the_budget_does_not_hold_stops_with_a_checkpoint(script, tmp_path, monkeypatch):
    module, folder, program = script("paper_tables"), tmp_path / "dro", tmp_path / "endless"
    program.write_text(
        f"#!/bin/sh\ntrap 'mkdir -p {folder}/checkpoints/step-000007; exit' TERM\nwhile :; do sleep 0.1; done\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(program))
    assert module.go_on([], folder, module.device_of("cpu"), 2) == "stopped at the end of the budget"
    assert module.steps_of(folder) == 7


def test_without_time_nothing_is_begun(script, words, capsys, monkeypatch):
    module = script("paper_tables")
    monkeypatch.setattr(module, "go_on", lambda *_: pytest.fail("a run has begun"))
    result = module.main([*words, "--budget_minutes", "0.1"])
    assert result["rows"]["DRO"]["left"] == "0 steps done; no time was left" and result["ours"] is None


def test_a_run_that_fails_says_why(script, words, tmp_path):
    module = script("paper_tables")
    settings = module.parse_into([module.Options], words)[0]
    row = [*module.command_of("DRO", settings), "--lr", "-1"]
    why = module.go_on(row, module.folder_of("DRO", settings), module.device_of("cpu"), 60)
    assert why.startswith("ended with code 2") and "lr" in why


def test_a_preset_that_there_is_not_is_refused_before_any_run(script, words, monkeypatch):
    module = script("paper_tables")
    monkeypatch.setattr(module, "go_on", lambda *_: pytest.fail("a run has begun"))
    with pytest.raises(SystemExit, match="there is no preset dro-huge"):
        module.main([*words, "--size", "huge"])


def test_members_of_glyphs_are_not_put_beside_the_papers_figures(script, monkeypatch):
    module = script("paper_tables")
    monkeypatch.setattr(module, "measure", lambda *_, **__: pytest.fail("a run has begun"))
    with pytest.raises(SystemExit, match="--pool: the default members know glyphs, and the evaluation is on cifar-fs"):
        module.main([])


def test_published_figures_stand_beside_ours(script):
    module = script("paper_tables")
    settings = module.parse_into([module.Options], [])[0]
    assert [module.theirs(name, settings, row.shots[0]) for name, row in module.ROWS.items()] == [
        30.43, 39.13, 36.56, 52.58, 38.56, 37.43, 36.33, 47.31, 38.66, 37.66,
    ]  # fmt: skip
