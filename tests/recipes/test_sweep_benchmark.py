"""benchmarks/sweep.py: each combination is run once, and written as a table, a figure and a line."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from hf_dfml.evaluation import write_results
from tests.evaluation.test_results import ROW
from tests.recipes.test_free_recipe import glyph_pool


def test_values_are_combined(script):
    module = script("sweep")
    assert list(module.combinations(["gamma=1,2", "inner-steps=3"])) == [
        {"gamma": "1", "inner_steps": "3"},
        {"gamma": "2", "inner_steps": "3"},
    ]
    for wrong in ("gamma", "gamma=", "gamma=1,,2"):
        with pytest.raises(ValueError, match="expected name=value,value"):
            list(module.combinations([wrong]))


def test_a_preset_names_its_method(script):
    module = script("sweep")
    assert module.method_of("pool-distillation-cpu") == "pool_distillation" and module.method_of("dro-tiny") == "dro"
    with pytest.raises(ValueError, match="There is no preset dro-tinyy: expected one of bidf-mkd"):
        module.method_of("dro-tinyy")


def test_the_figure_has_the_own_adaptation_and_the_mean_over_seeds(script):
    rows = [
        ({"gamma": gamma, "seed": seed}, replace(ROW, mean=mean, head=head))
        for gamma, seed, mean in (("1", "0", 40.0), ("1", "1", 44.0), ("2", "0", 50.0))
        for head in ("finetune", "prototype")
    ]
    assert script("sweep").drawn_against({"seed": "0", "gamma": "1"}) == "gamma"
    assert script("sweep").lines_of(rows) == {
        "1-shot": [("1", 42.0, pytest.approx(2 * 12.706, abs=1e-3)), ("2", 50.0, 0.8)]
    }


def test_two_runs_become_a_table_and_are_not_run_again(script, tmp_path, capsys, monkeypatch):
    module, pool = script("sweep"), glyph_pool(tmp_path / "pool")
    words = ["dro-tiny", "--vary", "gamma=0.5,10", "--output_dir", str(tmp_path / "out"), "--pool", str(pool)]
    words += "--dataset glyphs --ways 3 --shots 1 --episodes 2 --validation_episodes 2 --arch conv4_16".split()
    words += "--epochs 1 --baselines false --log_with none".split()
    result = module.main(words)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    with (tmp_path / "out" / "sweep.csv").open() as file:
        table = list(csv.DictReader(file))
    assert {row["gamma"] for row in table} == {"0.5", "10"} and {row["method"] for row in table} == {"DRO"}
    first = {row["gamma"]: float(row["mean"]) for row in reversed(table)}
    assert [point[:2] for point in result["lines"]["1-shot"]] == [[g, round(first[g], 2)] for g in ("0.5", "10")]
    assert (tmp_path / "out" / "sweep.png").stat().st_size > 1000
    monkeypatch.setattr(module, "run", lambda *_, **__: pytest.fail("what has its results is run again"))
    assert module.main(words) == result


def test_a_value_that_an_option_cannot_have_is_refused_before_any_run(script, tmp_path, monkeypatch, capsys):
    module = script("sweep")
    monkeypatch.setattr(module, "run", lambda *_, **__: pytest.fail("a run has begun"))
    with pytest.raises(SystemExit):
        module.main(["dro-tiny", "--vary", "ball_steps=3,-1", "--output_dir", str(tmp_path)])
    assert "ball_steps -1: expected at least 0" in capsys.readouterr().err


def log_of(folder, values):
    """A TensorBoard log of one metric, as a run leaves it."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder / "logs" / "hf_dfml"))
    for step, value in values.items():
        writer.add_event(Event(step=step, summary=Summary(value=[Summary.Value(tag="loss", simple_value=value)])))
    writer.close()


def test_a_curve_is_the_mean_over_seeds_of_what_runs_have_logged(script, tmp_path):
    module, varied = script("sweep"), ["bell=erm,none", "seed=0,1"]
    log_of(tmp_path / "bell=erm-seed=0", {2: 3.0, 1: 1.0})
    log_of(tmp_path / "bell=erm-seed=1", {1: 3.0, 2: 4.0})
    log_of(tmp_path / "bell=none-seed=0", {1: 7.0, 2: 8.0})
    log_of(tmp_path / "bell=none-seed=1", {1: 8.0})
    curves = module.curves_of(varied, tmp_path, "loss")
    assert curves == {"bell erm": {1: 2.0, 2: 3.5}, "bell none": {1: 7.5}}
    module.draw_curves(curves, tmp_path / "loss.png", "loss", "title")
    assert (tmp_path / "loss.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="--curve accuracy: the log in .* has loss. Name a metric that it has."):
        module.curves_of(varied, tmp_path, "accuracy")
    with pytest.raises(ValueError, match="has nothing, as in a run with --log_with none"):
        module.curves_of(["bell=paper"], tmp_path, "loss")


def test_a_resumed_run_has_its_later_logs_values(script, tmp_path):
    (tmp_path / "a").mkdir()
    log_of(tmp_path / "a", {1: 1.0, 2: 2.0})
    for path in (tmp_path / "a" / "logs" / "hf_dfml").iterdir():
        path.rename(path.with_name("events.out.tfevents.1.first"))
    log_of(tmp_path / "a", {2: 5.0, 3: 6.0})
    assert script("sweep").logged(tmp_path / "a", "loss") == {1: 1.0, 2: 5.0, 3: 6.0}


def test_seeds_alone_are_one_point_with_the_interval_of_students_t(script):
    rows = [({"seed": seed}, replace(ROW, mean=mean)) for seed, mean in (("0", 40.0), ("1", 44.0), ("2", 45.0))]
    # Standard deviation 2.6458 over the root of 3, times 4.3027.
    assert script("sweep").lines_of(rows) == {"1-shot": [("mean over seeds", 43.0, pytest.approx(6.572, abs=1e-3))]}


def test_data_sets_of_one_run_are_lines_of_their_own(script):
    means = {"cub": 40.0, "glyphs": 60.0}
    rows = [({"gamma": "1"}, replace(ROW, dataset=name, mean=mean)) for name, mean in means.items()]
    lines = script("sweep").lines_of(rows)
    assert {name.partition(",")[0]: points[0][1] for name, points in lines.items()} == means


def test_other_options_do_not_find_the_runs_of_these(script, tmp_path, monkeypatch):
    module = script("sweep")

    def ended(method, config, run_config, show):
        module.atomic_write(tmp_path / "out" / "gamma=1" / "config.json", "{}")
        write_results(tmp_path / "out" / "gamma=1", [ROW])
        return SimpleNamespace(exit_code=0)

    monkeypatch.setattr(module, "run", ended)
    words = ["dro-tiny", "--vary", "gamma=1", "--output_dir", str(tmp_path / "out"), "--num_threads", "1"]
    module.main(words)
    monkeypatch.setattr(module, "run", lambda *_, **__: pytest.fail("what has its results is run again"))
    module.main([*words, "--num_threads", "2"])
    with pytest.raises(SystemExit, match="holds what was measured with online False, not online True: name another"):
        module.main([*words, "--online", "true"])
