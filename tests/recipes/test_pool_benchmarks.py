"""The benchmarks of pool distillation on tiny members: every student once, one evaluation, interruptions."""

import json
from pathlib import Path

import pytest

from hf_dfml.evaluation import read_results
from hf_dfml.methods import pool_images
from tests.recipes.test_inversion_recipes import glyph_pool

ROOT = Path(__file__).parents[2]
TINY = """--dataset glyphs --ways 3 --shots 1 2 --episodes 4 --arch conv4_16 --steps 2 --recovery_steps 2
--images_per_class 3 --recoveries 1 --num_images 32 --joint_rounds 0 --batch_size 16 --checkpoint_every 1
--members 1 0 --budgets 1"""


@pytest.fixture
def benchmark(script):
    return script("pool_curves")


def test_every_point_is_recovered_and_measured_once(benchmark, tmp_path, monkeypatch):
    recovered = []
    plain_recover = pool_images.recover

    def counted_recover(teacher, config, *arguments, **options):
        recovered.append((teacher.entry.id, config.recovery_steps))
        return plain_recover(teacher, config, *arguments, **options)

    monkeypatch.setattr(pool_images, "recover", counted_recover)
    folder = tmp_path / "run"
    words = [*TINY.split(), "--pool", str(glyph_pool(tmp_path / "pool", 3)), "--output_dir", str(folder)]
    verdict = benchmark.main(words)
    assert len(recovered) == len(set(recovered)) == 3 + 3  # The student of one member takes what that of all has.
    assert set(verdict["members"]) == set(verdict["of_members"]) == {1, 3} and set(verdict["budgets"]) == {1, 2}
    assert verdict["members"][3] == verdict["budgets"][2] == verdict["ours"]
    assert verdict["of_members"][3] == verdict["baseline"]
    rows = read_results(folder)
    assert {(row.split, row.bn, row.episodes, row.seed) for row in rows} == {("validation", "running", 4, 1)}
    assert {row.method for row in rows} == {
        "All 1 members + prototype",
        "All 3 members + prototype",
        "Pool distillation, 1 members, 2 steps",
        "Pool distillation, 3 members, 2 steps",
        "Pool distillation, 3 members, 1 steps",
    }
    assert json.loads((folder / "pool_curves.json").read_text())["ratio"] == verdict["ratio"]
    assert (folder / "pool_curves.png").is_file() and (folder / "pool_budgets.png").is_file()
    before = len(recovered)
    assert benchmark.main(words) == verdict and len(recovered) == before


def test_one_thing_is_changed_at_a_time_and_judged_on_validation_classes(script, tmp_path, monkeypatch):
    benchmark, recovered = script("pool_ablation"), []
    plain_recover = pool_images.recover

    def counted_recover(teacher, config, *arguments, **options):
        recovered.append((teacher.entry.id, config.objective.tv_weight))
        return plain_recover(teacher, config, *arguments, **options)

    monkeypatch.setattr(pool_images, "recover", counted_recover)
    words = TINY.partition("--members")[0].split() + ["--validation_episodes", "4"]
    words += ["--pool", str(glyph_pool(tmp_path / "pool", 2)), "--output_dir", str(tmp_path / "run")]
    words += ["--variants", "mix_alpha=0", "tv_weight=0,crop_padding=1"]
    verdict = benchmark.main(words)
    assert list(verdict["variants"]) == ["as given", "mix_alpha=0", "tv_weight=0,crop_padding=1"]
    assert sorted(weight for _, weight in recovered) == [0, 0, 0.1, 0.1], "one recovery for both kinds of mixtures"
    rows = {name: read_results(tmp_path / "run" / name) for name in verdict["variants"]}
    assert {(row.split, row.episodes, row.seed) for part in rows.values() for row in part} == {("validation", 4, 1)}
    assert [row.mean for row in rows["as given"]] != [row.mean for row in rows["tv_weight=0,crop_padding=1"]]
    before = len(recovered)
    assert benchmark.main(words) == verdict and len(recovered) == before
    with pytest.raises(ValueError, match="--variants mix_alpha: expected OPTION=VALUE"):
        benchmark.main([*words, "--variants", "mix_alpha"])
