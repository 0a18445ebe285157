"""The benchmarks of pool distillation on tiny members: every student once, one evaluation, interruptions."""

import json
from pathlib import Path

import pytest
import torch

from hf_dfml.evaluation import read_results
from hf_dfml.methods import ensemble_view as pool_view
from hf_dfml.methods.pool_distillation import PoolDistillationConfig, features_of
from hf_dfml.utils.checkpoint import load_tree
from tests.methods.pools import make_context, make_model, make_pool
from tests.recipes.test_inversion_recipes import glyph_pool

ROOT = Path(__file__).parents[2]
TINY = """--dataset glyphs --ways 3 --shots 1 2 --episodes 4 --arch conv4_16 --steps 2 --recovery_steps 2
--images_per_class 3 --recoveries 1 --num_images 32 --landmarks 16 --target_dim 8 --batch_size 16 --checkpoint_every 1
--members 1 0 --budgets 1"""


@pytest.fixture
def benchmark(script):
    return script("pool_curves")


def test_every_point_is_recovered_and_measured_once(benchmark, tmp_path, monkeypatch):
    recovered = []
    plain_recover = pool_view.recover

    def counted_recover(teacher, config, *arguments, **options):
        recovered.append((teacher.entry.id, config.recovery_steps))
        return plain_recover(teacher, config, *arguments, **options)

    monkeypatch.setattr(pool_view, "recover", counted_recover)
    folder = tmp_path / "run"
    words = [*TINY.split(), "--pool", str(glyph_pool(tmp_path / "pool", 3)), "--output_dir", str(folder)]
    verdict = benchmark.main(words)
    assert len(recovered) == len(set(recovered)) == 3 + 3  # The student of one member takes what that of all has.
    assert set(verdict["members"]) == set(verdict["ceiling"]) == {1, 3} and set(verdict["budgets"]) == {1, 2}
    assert verdict["members"][3] == verdict["budgets"][2] == verdict["ours"]
    assert verdict["ceiling"][3] == verdict["baseline"]
    rows = read_results(folder)
    assert {(row.split, row.bn, row.episodes, row.seed) for row in rows} == {("test", "running", 4, 0)}
    assert {row.method for row in rows} == {
        "1 members + prototype",
        "3 members + prototype",
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
    plain_recover = pool_view.recover

    def counted_recover(teacher, config, *arguments, **options):
        recovered.append((teacher.entry.id, config.tv_weight))
        return plain_recover(teacher, config, *arguments, **options)

    monkeypatch.setattr(pool_view, "recover", counted_recover)
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


def test_training_sets_differ_in_what_takes_the_place_of_the_second_recovery(script, tmp_path):
    benchmark = script("training_sets")
    words = TINY.partition("--members")[0].split() + ["--validation_episodes", "4", "--recoveries", "2"]
    words += ["--pool", str(glyph_pool(tmp_path / "pool", 2)), "--output_dir", str(tmp_path / "run")]
    verdict = benchmark.main([*words, "--sets", *benchmark.SETS])
    assert list(verdict["sets"]) == list(benchmark.SETS) and verdict["best"] not in ("second", "real")
    checkpoints = {name: tmp_path / "run" / name / "checkpoints" for name in benchmark.SETS}
    states = {name: load_tree(max(folder.iterdir()))["method"] for name, folder in checkpoints.items()}
    images = {name: state["images"] for name, state in states.items()}
    maps = {name: state["objective"]["map.weight"] for name, state in states.items()}
    recovered = {name for name in images if name not in benchmark.ORDERED}
    for name in recovered - {"second"}:
        assert not images[name].equal(images["second"]), name
    for name in benchmark.ORDERED:
        assert images[name].equal(images["second"]) and not maps[name].equal(maps["second"]), name
    with pytest.raises(SystemExit):
        benchmark.main([*words, "--sets", "best"])
    with pytest.raises(ValueError, match="--recoveries 1: expected 2"):
        benchmark.main([*words, "--recoveries", "1"])
    with pytest.raises(ValueError, match="--black_box probs: this benchmark looks into its members"):
        benchmark.main([*words, "--black_box", "probs"])


@pytest.fixture
def trial(script):
    """A trial of a kind, and what the benchmark is made of."""
    benchmark = script("training_sets")

    def make(kind, **changes):
        options = {"recovery_steps": 120, "images_per_class": 6, "recoveries": 2, "num_images": 32, "batch_size": 16}
        config = PoolDistillationConfig(**{**options, "landmarks": 16, "target_dim": 8, **changes})
        return benchmark.Trial(config, make_model(), kind, make_model(9).eval())

    return benchmark, make


def test_the_terms_of_second_recoveries_push_the_way_they_say(trial, tmp_path, monkeypatch):
    (benchmark, make), pool, context = trial, make_pool(tmp_path, 3), make_context()
    sets = [(torch.randint(0, 256, (18, 3, 16, 16), dtype=torch.uint8), index) for index in range(3)]
    same = torch.block_diag(*[torch.ones(6, 6)] * 3).bool().fill_diagonal_(False)

    def recovered(kind, constant, weight):
        monkeypatch.setattr(benchmark, constant, weight)
        return make(kind)._again(pool, context, sets, 0)["images"].float() / 255

    pushed = [recovered("repelled", "REPULSION", weight) for weight in (0.0, benchmark.REPULSION)]
    monkeypatch.setattr(benchmark, "COMMITTEE", 1)
    disputed = [recovered("disagreement", "DISAGREEMENT", weight) for weight in (0.0, benchmark.DISAGREEMENT)]
    with torch.no_grad():
        alike = [benchmark._cosines(pool.load(0).features(images))[same].mean() for images in pushed]
        ours = [benchmark._cosines(features_of(make("half").weak, images)) for images in disputed]
        theirs = [benchmark._cosines(pool.load(0).features(images)) for images in disputed]
        wrong = [(one - other).square().mean() for one, other in zip(ours, theirs, strict=True)]
    assert alike[1] < alike[0] and wrong[1] > 1.5 * wrong[0]


def test_the_members_that_the_student_gets_most_wrong_are_recovered_again(trial, tmp_path, monkeypatch):
    (benchmark, make), pool = trial, make_pool(tmp_path, 4)
    monkeypatch.setattr(benchmark.Trial, "_errors", lambda *_: torch.tensor([0.1, 0.4, 0.2, 0.3]))
    images, members = make("worst", recovery_steps=1).recovered_set(pool, make_context())
    assert len(images) == len(members) == 4 * 18 + 2 * 36
    assert members.bincount().tolist() == [18, 18 + 36, 18, 18 + 36]


def test_passes_by_loss(trial, tmp_path):
    (_, make), pool = trial, make_pool(tmp_path, 1)
    for kind in ("often", "curriculum"):
        method, context = make(kind, recovery_steps=1, steps=6), make_context()
        method.setup(pool, context)
        with torch.no_grad():
            seen = method.objective["map"](features_of(method.model.eval(), method.images.float() / 255))
        # The student is right about ten images.
        method.targets[:10], method.targets[10:] = seen[:10].half(), -seen[10:].half()
        assert (method.order(context) < 10).float().mean() == (0.0 if kind == "often" else 1.0)
    context.step = 3
    assert method.order(context).unique().tolist() == list(range(32))
