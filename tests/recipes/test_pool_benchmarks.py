"""The benchmarks of pool distillation on tiny members: every student once, one evaluation, interruptions."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch

from hf_dfml.evaluation import read_results
from hf_dfml.methods import pool_images
from hf_dfml.pool import ModelPool
from hf_dfml.pool.teacher import Teacher
from tests.recipes.test_inversion_recipes import glyph_pool

ROOT = Path(__file__).parents[2]
TINY = """--dataset glyphs --ways 3 --shots 1 2 --episodes 4 --arch conv4_16 --steps 2 --recovery_steps 2
--images_per_class 3 --recoveries 1 --num_images 32 --joint_rounds 0 --batch_size 16 --checkpoint_every 1
--members 1 0 --budgets 0.5"""


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
    assert set(verdict["members"]) == set(verdict["of_members"]) == {1, 3} and set(verdict["budgets"]) == {0.5, 1}
    assert verdict["members"][3] == verdict["budgets"][1] == verdict["ours"]
    assert set(verdict["minutes"]) == {0.5, 1} and min(verdict["minutes"].values()) > 0
    assert verdict["of_members"][3] == verdict["baseline"]
    rows = read_results(folder)
    assert {(row.split, row.bn, row.episodes, row.seed) for row in rows} == {("validation", "running", 4, 1)}
    assert {row.method for row in rows} == {
        "All 1 members + prototype",
        "All 3 members + prototype",
        "Pool distillation, 1 members, 1 of the schedule",
        "Pool distillation, 3 members, 1 of the schedule",
        "Pool distillation, 3 members, 0.5 of the schedule",
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


def test_each_trial_changes_its_student_and_is_judged_once(script, tmp_path, monkeypatch):
    benchmark = script("student_trials")
    import trial_images
    import trials

    monkeypatch.setattr(trials, "EPISODES", 1)
    monkeypatch.setattr(trial_images, "SECOND_STEPS", 1)
    monkeypatch.setattr(trial_images, "SECOND_IMAGES", 1)
    tried = ["average of weights", "learnt scale", "CutMix", "weighted by statistics", "disagreement", "second round"]
    words = TINY.partition("--members")[0].split()
    words += ["--images_per_class", "6", "--joint_rounds", "1", "--joint_updates", "1", "--flip", "false"]
    words += ["--pool", str(glyph_pool(tmp_path / "pool", 2)), "--output_dir", str(tmp_path / "run"), "--seeds", "1"]
    words += ["--trials", *tried, "episodic finish"]
    verdict = benchmark.main(words)
    assert list(verdict["trials"]) == ["as given", *tried, "episodic finish"]
    own = [json.loads((tmp_path / "run" / "seed-1" / f"{name}.json").read_text()) for name in verdict["trials"]]
    accuracies = [tuple(each["accuracy"].values()) for each in own]
    assert len(set(accuracies)) > len(accuracies) // 2, "most trials change something, even here"
    assert "one thing" in (tmp_path / "run" / "student_trials.md").read_text().lower()

    def not_again(*_):
        raise AssertionError("a judged trial was trained again")

    monkeypatch.setattr(trials.Trial, "setup", not_again)
    assert benchmark.main(words) == verdict
    with pytest.raises(ValueError, match="--trials nothing: expected some of as given, "):
        benchmark.main([*words, "--trials", "nothing"])


@pytest.mark.parametrize("flip", [True, False])
def test_trials_mirror_images_only_where_that_is_allowed(script, monkeypatch, flip):
    script("student_trials")
    import trial_images

    seen = []

    def mixed(*_, flip=True):
        seen.append(flip)
        return torch.zeros(4, 3, 8, 8, dtype=torch.uint8)

    monkeypatch.setattr(trial_images, "mix_recovered", mixed)
    method = trial_images.PoolDistillationConfig(flip=flip)
    found = trial_images.Recovered(*torch.zeros(3, 2, dtype=torch.uint8))
    bench = trial_images.Bench(None, method, None, found, 0, None)
    bench.mixtures()
    trial_images.cut_half(bench)
    assert seen == [flip] * 3


def test_a_real_pool_is_judged_on_validation_and_meets_the_test_classes_once(script, tmp_path, monkeypatch):
    benchmark = script("real_pool")
    words = TINY.partition("--members")[0].split() + ["--kinds", "recovered", "procedural", "--photos_per_class", "20"]
    words += ["--pool", str(glyph_pool(tmp_path / "pool", 2)), "--output_dir", str(tmp_path / "run")]
    seen = []
    plain_network = benchmark.Exam.network

    def watched(exam, network, ways=("features",)):
        seen.append((exam.data.split, tuple(ways)))
        return plain_network(exam, network, ways)

    monkeypatch.setattr(benchmark.Exam, "network", watched)
    verdict = benchmark.main(words)
    # Two students and random weights; on the test classes the better student and random weights.
    assert [split for split, _ in seen] == 3 * ["validation"] + 2 * ["test"] and len(seen[3][1]) == 1
    assert [name.partition(":")[0] for name in verdict["test"]] == [
        "student",
        "best member",
        "all members' features",
        "all members' answers",
        benchmark.UNTRAINED,
    ]
    page = (tmp_path / "run" / "real_pool.md").read_text()
    assert page.count("±") == 2 * len(verdict["validation"]) + 2 * 4
    assert verdict.pop("peak_mb") > 100 and "MB at most" in page
    of_students = [name for name in verdict["validation"] if name.startswith("student")]
    assert list(verdict["core_minutes"]) == of_students
    assert all(len(parts) == 3 for parts in verdict["core_minutes"].values())
    monkeypatch.setattr(benchmark.GivenImages, "setup", None)
    monkeypatch.setattr(benchmark.PoolDistillation, "make_images", None)
    again = benchmark.main(words)
    del again["peak_mb"]
    assert again == verdict, "students and images are kept"
    with pytest.raises(ValueError, match="--kinds photos: name a folder"):
        benchmark.main([*words, "--kinds", "photos"])
    with pytest.raises(ValueError, match="--kinds 'recovered with patches': expected a --patch_weight above 0"):
        benchmark.main([*words, "--kinds", "recovered with patches"])
    with pytest.raises(ValueError, match="--architectures resnet10: no member is of it; expected some of conv4"):
        benchmark.main([*words, "--architectures", "resnet10", "--output_dir", str(tmp_path / "other")])
    with pytest.raises(SystemExit, match="what was measured with seed 42, not seed 1: name another --output_dir"):
        benchmark.main([*words, "--seed", "1"])
    shutil.rmtree(tmp_path / "pool" / "m-1")
    with pytest.raises(SystemExit, match=r"with 2 members \(m-0, ...\), not 1 members \(m-0, ...\): name another"):
        benchmark.main(words)


def test_a_real_pool_may_be_of_some_architectures(script, tmp_path):
    benchmark = script("real_pool")
    pool = ModelPool.from_dir(glyph_pool(tmp_path, 2)).resolve()
    (name,) = {entry.architecture for entry in pool}
    assert benchmark.of_architectures(pool, ["all"]) is pool
    assert [entry.id for entry in benchmark.of_architectures(pool, [name])] == [entry.id for entry in pool]


def test_each_kind_of_image_has_the_terms_of_its_name(script):
    benchmark = script("real_pool")
    method = benchmark.PoolDistillationConfig(prior="network", patch_weight=0.5)
    for kind, changes in benchmark.KINDS.items():
        of = benchmark.replace(method, **changes).training_set
        assert (of.prior is not None) == ("prior" in kind)
        if kind.startswith("recovered"):
            assert of.inversion.objective.patch_weight == (0.5 if "patches" in kind else 0.0)


def test_bad_members_replace_good_ones_and_the_check_leaves_the_rest(script, tmp_path, monkeypatch):
    benchmark, recovered = script("bad_members"), []
    plain_recover = pool_images.recover

    def counted_recover(teacher, *arguments, **options):
        recovered.append(teacher.entry.id)
        return plain_recover(teacher, *arguments, **options)

    monkeypatch.setattr(pool_images, "recover", counted_recover)
    folder = tmp_path / "run"
    words = TINY.partition("--members")[0].split() + ["--validation_episodes", "4", "--kinds", "constant", "copy"]
    words += ["--shares", "20", "--pool", str(glyph_pool(tmp_path / "pool", 6)), "--output_dir", str(folder)]
    verdict = benchmark.main(words)
    rows = verdict["rows"]
    assert [(row["kind"], row["bad"], row["bad_left_out"], row["good_left_out"]) for row in rows] == [
        ("constant", 1, 1, 0),
        ("copy", 1, 1, 0),
    ]
    # With the check both students are of the five good members that are left: it is one.
    assert [row["students"] for row in rows] == [
        ["constant-20", "constant-20-checked"],
        ["copy-20", "constant-20-checked"],
    ]
    assert {path.name.partition("-")[0] for path in (folder / "bad").iterdir()} == {"constant", "copy"}
    assert len(recovered) == 6 + 2, "each good member and each bad one, once"
    lowest = min(row["without_check"]["prototype, answers, 2-shot"] for row in rows)
    assert verdict["baseline"] == lowest
    assert json.loads((folder / "bad_members.json").read_text()) == verdict
    assert "| constant, 1 of 6 |" in (folder / "bad_members.md").read_text()
    assert benchmark.main(words) == verdict and len(recovered) == 8


def test_bad_members_are_as_bad_as_they_are_said_to_be(script, tmp_path):
    benchmark = script("bad_members")
    (member,) = ModelPool.from_dir(glyph_pool(tmp_path, 1)).stream()
    start, images = member.network.state_dict(), torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def spoilt(kind):
        network = benchmark.SPOIL[kind](member, torch.Generator().manual_seed(0))
        return Teacher(member.entry, network)(images)

    before = member(images)
    assert spoilt("copy").equal(before)
    assert spoilt("constant").equal(start["fc.bias"].expand(8, 3))
    torch.testing.assert_close(spoilt("scaled"), 1e6 * before, rtol=1e-4, atol=1)
    orders = [list(order) for order in itertools.permutations(range(3)) if spoilt("shuffled").equal(before[:, order])]
    assert len(orders) == 1 and orders != [[0, 1, 2]]
    assert not spoilt("untrained").allclose(before, atol=0.1)
    network = benchmark.SPOIL["backdoor"](member, torch.Generator().manual_seed(0))
    door = Teacher(member.entry, network)
    assert (door(benchmark.with_trigger(images)).argmax(-1) == 0).all()
    assert member.network.state_dict()["fc.weight"].equal(start["fc.weight"])
