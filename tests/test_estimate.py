"""Pool distillation made to measure."""

import re

import pytest

from hf_dfml.estimate import check_memory, cost_of_distillation, fitted_to_pool, without_batch_terms
from hf_dfml.methods.pool_distillation import PoolDistillationConfig
from hf_dfml.pool import ModelPool
from hf_dfml.settings import flat, options_of
from tests.methods.pools import make_mixed_pool, make_model, make_pool


def test_a_pool_settles_images_and_passes(tmp_path, capsys):
    make_pool(tmp_path, 2)
    found = fitted_to_pool(PoolDistillationConfig, {"pool": str(tmp_path / "pool"), "steps": 3})
    each = options_of(PoolDistillationConfig)["images_per_class"].default
    assert found["images_per_class"] == each
    assert found["num_images"] == max(1000, 10 * 2 * 3 * each), "of few recovered images few mixtures are made"
    said = capsys.readouterr().out
    assert "2 members of up to 3 classes at 16 pixels" in said
    assert said.rstrip().endswith("--steps 3"), "what was typed wins"


def test_black_boxes_show_nothing_to_measure(tmp_path):
    assert fitted_to_pool(PoolDistillationConfig, {"pool": "http://127.0.0.1:8000"}) == {}
    assert without_batch_terms({"pool": "x", "black_box": "probs"})["bn_weight"] == 0.0
    assert without_batch_terms({"pool": "x"}) == {}


def test_the_cost_grows_with_the_work_and_changes_nothing(tmp_path):
    make_mixed_pool(tmp_path)
    pool, student = ModelPool.from_dir(tmp_path / "mixed"), make_model()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    training = student.training

    def cost(**changes):
        return cost_of_distillation(pool, student, flat(PoolDistillationConfig(**changes)))

    small, large = cost(num_images=1000, steps=1), cost(num_images=100_000, steps=100)
    assert 0 < small.seconds < large.seconds and small.memory < large.memory
    assert "without the evaluation" in str(small) and "GB of memory" in str(small)
    assert student.training is training
    assert all(value.equal(before[name]) for name, value in student.state_dict().items())


def test_a_run_that_does_not_fit_is_refused_with_the_setting_that_would(tmp_path):
    make_mixed_pool(tmp_path)
    pool = ModelPool.from_dir(tmp_path / "mixed")

    def cost(**changes):
        return cost_of_distillation(pool, make_model(), flat(PoolDistillationConfig(**changes)))

    wanted = cost(num_images=100_000)
    check_memory(wanted, wanted.memory)
    check_memory(wanted, None)
    with pytest.raises(
        ValueError, match=r"needs about .* GB of memory .* are available: set --num_images (\d+)\."
    ) as no:
        check_memory(wanted, wanted.memory // 2)
    fitting = int(re.search(r"--num_images (\d+)", str(no.value))[1])
    assert cost(num_images=fitting).memory <= wanted.memory // 2, "what the sentence says is right"
    with pytest.raises(ValueError, match="use a machine with more"):
        check_memory(wanted, 0)


def test_members_of_large_images_are_asked_about_procedural_ones_unless_recovery_is_asked_for(tmp_path, capsys):
    make_pool(tmp_path, 1)
    config = tmp_path / "pool" / next(path.name for path in (tmp_path / "pool").iterdir()) / "config.json"
    config.write_text(config.read_text().replace("[3, 16, 16]", "[3, 160, 160]"))
    typed = {"pool": str(tmp_path / "pool")}
    found = fitted_to_pool(PoolDistillationConfig, typed)
    assert found["training_images"] == "procedural" and found["joint_rounds"] == 0 and found["batch_size"] == 32
    assert "training_images" not in fitted_to_pool(PoolDistillationConfig, typed | {"recovery_steps": 5})
