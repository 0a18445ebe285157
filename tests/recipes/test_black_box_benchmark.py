"""benchmarks/black_box.py on tiny members: all rows, one evaluation, queries as foreseen, interruptions."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_dfml.arguments import parse
from hf_dfml.evaluation import read_results
from hf_dfml.methods.bidf_mkd import BiDfMKD, BiDfMKDConfig
from hf_dfml.recovery.gradient_source import ESTIMATORS
from hf_dfml.run_config import RunConfig
from hf_dfml.settings import flat
from tests.recipes.test_inversion_recipes import glyph_pool

ROOT = Path(__file__).parents[2]
TINY = """--dataset glyphs --ways 3 --shots 1 2 --episodes 4 --validation_episodes 2 --validate_every 2 --steps 4
--arch conv4_16 --num_members 2 --recovery pixels --recovery_steps 2 --images_per_class 3 --distillation_steps 2
--replay_queries 2 --replay_batch 2 --replay_max_batches 2 --replay_patience 2 --boundary_start 2 --bn support
--second_order false --zero_order_directions 3 --zero_order_estimator low_frequency --checkpoint_every 1"""
EPISODE = 2 * 9 * (2 * (3 + 1) + 1)


@pytest.fixture
def benchmark(script):
    return script("black_box")


@pytest.fixture
def words(tmp_path):
    return [*TINY.split(), "--pool", str(glyph_pool(tmp_path / "pool", 3)), "--output_dir", str(tmp_path / "run")]


def test_every_row_sits_one_evaluation_and_says_what_it_was_asked(benchmark, words, tmp_path, capsys, monkeypatch):
    verdict = benchmark.main([*words, "--rows", "white", "label", "http"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == verdict
    spent = {row: found["queries"] for row, found in verdict["rows"].items()}
    assert spent == {"before": 0, "white": 0, "label": 2 * EPISODE, "http": 2 * EPISODE}
    results = read_results(tmp_path / "run")
    assert len(results) == 4 * 2 * 2 and {(row.episodes, row.seed, row.split) for row in results} == {(4, 0, "test")}
    assert f"BiDf-MKD, labels ({2 * EPISODE:,} queries)" in {row.method for row in results}
    about = json.loads((tmp_path / "run" / "black_box.json").read_text())
    assert [point["queries"] for point in about["http"]["points"]] == [EPISODE, 2 * EPISODE]
    assert {"1-shot", "2-shot"} < about["white"]["points"][0].keys()
    assert (tmp_path / "run" / "black_box.png").read_bytes().startswith(b"\x89PNG")
    # What is there is not measured again; another row is added.
    monkeypatch.setattr(benchmark, "opened", lambda row, *rest: pytest.fail(f"{row} was measured again"))
    assert benchmark.main([*words, "--rows", "white", "label"])["baseline"] == verdict["baseline"]
    with pytest.raises(SystemExit):
        benchmark.main([*words, "--rows", "black"])


def test_a_row_that_was_interrupted_goes_on_and_ends_in_the_same(benchmark, words, tmp_path, monkeypatch):
    whole = benchmark.main([*words, "--rows", "probs"])
    elsewhere = [*words, "--output_dir", str(tmp_path / "again"), "--rows", "probs"]
    with monkeypatch.context() as patch:
        patch.setattr(BiDfMKD, "step", interrupted_at(3, BiDfMKD.step))
        with pytest.raises(SystemExit, match="Stopped in .*probs. The same command goes on from there"):
            benchmark.main(elsewhere)
    assert not (tmp_path / "again" / "probs" / "row.json").exists()
    assert benchmark.main(elsewhere)["rows"] == whole["rows"]


def interrupted_at(last, step):
    """A step that is followed by Ctrl-C."""
    import signal

    def taken(method, context):
        if context.step == last - 1:
            signal.raise_signal(signal.SIGINT)
        return step(method, context)

    return taken


def test_the_end_of_the_budget_is_the_end_of_a_row(benchmark, words):
    verdict = benchmark.main([*words, "--rows", "probs", "--max_queries", str(EPISODE + 5)])
    assert verdict["rows"]["probs"]["queries"] == EPISODE


def test_the_configurations_arithmetic():
    path = ROOT / "hf_dfml" / "presets" / "bidf-mkd-cifar-fs-black-box-cpu.yaml"
    method, config = parse(BiDfMKD, RunConfig, ["--config", str(path), "--pool", "x"])
    assert (
        isinstance(method, BiDfMKDConfig)
        and config.black_box == "probs"
        and "central" not in ESTIMATORS["low_frequency"]
    )
    method = SimpleNamespace(**flat(method))
    episode = 2 * 5 * method.images_per_class * (method.recovery_steps * (method.zero_order_directions + 1) + 1)
    assert episode == 26_480 and config.max_queries == episode * method.steps // method.replay_max_batches
