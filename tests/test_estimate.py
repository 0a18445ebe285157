"""Pool distillation made to measure."""

from hf_dfml.estimate import cost_of_distillation, fitted_to_pool, without_batch_terms
from hf_dfml.methods.pool_distillation import PoolDistillationConfig
from hf_dfml.pool import ModelPool
from hf_dfml.settings import flat, options_of
from tests.methods.pools import make_mixed_pool, make_model, make_pool


def test_a_pool_settles_architecture_images_and_passes(tmp_path, capsys):
    make_pool(tmp_path, 2)
    found = fitted_to_pool(PoolDistillationConfig, {"pool": str(tmp_path / "pool"), "steps": 3})
    each = options_of(PoolDistillationConfig)["images_per_class"].default
    assert found["arch"] == "conv4_16" and found["images_per_class"] == each
    assert found["num_images"] == max(1000, 10 * 2 * 3 * each), "of few recovered images few mixtures are made"
    said = capsys.readouterr().out
    assert "2 members of up to 3 classes at 16 pixels" in said and "--arch conv4_16" in said
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
