"""Pool distillation made to measure."""

import pytest

from hf_dfml import estimate
from hf_dfml.estimate import cost_of_distillation, fitted_to_pool, without_batch_terms
from hf_dfml.methods.pool_distillation import PoolDistillationConfig
from hf_dfml.recovery.information import questions
from hf_dfml.settings import flat, options_of
from tests.methods.pools import make_model, make_pool


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


def test_members_of_large_images_are_asked_about_drawn_ones_unless_recovery_is_asked_for(tmp_path, capsys):
    make_pool(tmp_path, 1)
    config = tmp_path / "pool" / next(path.name for path in (tmp_path / "pool").iterdir()) / "config.json"
    config.write_text(config.read_text().replace("[3, 16, 16]", "[3, 160, 160]"))
    typed = {"pool": str(tmp_path / "pool")}
    found = fitted_to_pool(PoolDistillationConfig, typed)
    assert found["training_images"] == "drawn" and found["joint_rounds"] == 0 and found["batch_size"] == 32
    assert "training_images" not in fitted_to_pool(PoolDistillationConfig, typed | {"recovery_steps": 5})


def test_what_is_asked_to_choose_drawn_images_is_part_of_the_estimate(tmp_path, monkeypatch):
    pool = make_pool(tmp_path, 3)
    monkeypatch.setattr(estimate, "_speed", lambda *_: (1.0, 0.0, 1))

    def seconds(**options):
        config = PoolDistillationConfig(num_images=100, **options)
        return cost_of_distillation(pool, make_model(), flat(config)).seconds

    named = seconds(training_images="strokes")
    assert seconds(training_images="drawn") == pytest.approx(named + questions(3))
    assert seconds(images="photos") == seconds(training_images="drawn", images="photos") == named, "images are there"
