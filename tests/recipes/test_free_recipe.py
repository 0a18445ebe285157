"""FREE from the command line: its configurations, a small run of the recipe, the ablation's options, the benchmark."""

import json
from pathlib import Path

import pytest

from hf_dfml.arguments import parse
from hf_dfml.data import dataset_info
from hf_dfml.evaluation import read_results
from hf_dfml.methods.catalogue import METHODS
from hf_dfml.methods.free import FREE
from hf_dfml.networks import create_network
from hf_dfml.pipeline import run
from hf_dfml.run_config import RunConfig
from tests.pool.members import write_member

ROOT = Path(__file__).parents[2]
SIZES = {"tiny", "small", "cpu", "gpu", "paper"}
RESULTS = ROOT / "docs" / "results.md"
CONFIGS = sorted((ROOT / "hf_dfml" / "presets").glob("free-*.yaml"))
TINY = """--ways 3 --shots 1 --episodes 3 --validation_episodes 2 --validate_every 2 --checkpoint_every 2
--arch conv4_16 --steps 3 --warmup 1 --teachers_per_step 2 --images_per_class 4 --latent_dim 8 --generator_width 4
--adaptation_steps 2 --replay_queries 2 --replay_batch 2 --replay_max_batches 1
--inner_steps 1 --log_with none"""


def glyph_pool(folder, count=3):
    names = dataset_info("glyphs").classes["train"]
    for index in range(count):
        write_member(folder / f"m-{index}", seed=index, label_names=list(names[index : index + 3][::-1]))
    return folder


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_are_read_and_say_what_was_not_measured(path):
    method, config = parse(FREE, RunConfig, ["--config", str(path), "--pool", "x"])
    FREE(method, create_network(config.arch.replace("auto", "conv4"), num_classes=config.ways, image_size=32))
    assert config.output_dir == f"runs/{path.stem}"
    if path.stem.removeprefix("free-") in SIZES:
        assert config.dataset is None and "# Time: " in path.read_text()
        return
    assert config.dataset
    assert "not measured" in path.read_text().lower() or path.name in RESULTS.read_text()


def test_the_papers_configuration_is_the_default():
    paper, _ = parse(FREE, RunConfig, ["--config", str(ROOT / "hf_dfml" / "presets" / "free-cifar-fs-paper.yaml")])
    assert paper == FREE.Config()


def test_the_learning_of_the_cpu_configuration_is_that_of_tgr():
    """Side by side with the same learning hyper-parameters."""
    import yaml

    free, tgr = (
        yaml.safe_load((ROOT / "hf_dfml" / "presets" / f"{name}-cifar-fs-cpu.yaml").read_text())
        for name in ("free", "tgr")
    )
    names = ("second_order", "bn", "inner_lr", "outer_lr", "replay_batch")
    assert {name: free.get(name) for name in names} == {name: tgr.get(name) for name in names}


@pytest.mark.parametrize("ablation", ["", "--five false --bell none"], ids=["both", "baseline"])
def test_a_run_leaves_a_model_a_card_and_results(tmp_path, ablation):
    words = [*TINY.split(), "--dataset", "glyphs", "--pool", str(glyph_pool(tmp_path / "pool")), *ablation.split()]
    rows = run(FREE, *parse(FREE, RunConfig, [*words, "--output_dir", str(tmp_path / "run")]), argv=["test"])
    assert read_results(tmp_path / "run") == rows
    assert rows[0].method == ("FREE baseline (k=2)" if ablation else "FREE (k=2)")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["hf_dfml"]["method_config"]["adaptation_steps"] == 2
    assert "CVPR 2024, arXiv 2405.00984" in (tmp_path / "run" / "README.md").read_text()
    assert {"recovered.png", "teachers.png"} <= {path.name for path in (tmp_path / "run" / "pictures").iterdir()}


def test_the_recipe_and_the_command_line_know_the_method():
    assert METHODS["free"] == "FREE"
    assert "main(FREE)" in (ROOT / "recipes" / "free.py").read_text()


RECOVERIES = ["generator-8", "generator-4@0.005", "pixels@0.1x2n3", "free-2"]


def test_the_benchmark_ends_with_one_line_of_json(script, tmp_path, capsys):
    module = script("recovery")
    pool = glyph_pool(tmp_path / "pool")
    words = f"--pool {pool} --members 3 --teachers_per_step 2 --warmup 1 --recovery_steps 3 --images_per_class 2"
    words += " --latent_dim 8 --generator_width 4 --student_steps 2 --recoveries"
    words += f" {' '.join(RECOVERIES)} --output_dir {tmp_path}"
    for more, names in (
        ([], []),
        (["--dataset", "glyphs"], RECOVERIES),
    ):
        module.main([*words.split(), *more])
        printed = capsys.readouterr().out.strip().splitlines()
        result = json.loads(printed[-1])
        assert result["benchmark"] == "recovery" and result["unit"] == "seconds a task"
        assert result["ratio"] == pytest.approx(result["baseline"] / result["ours"], rel=0.02)
        assert list(result["ratios"]) == RECOVERIES and set(result["passes"]) == {"teacher", *RECOVERIES} - {
            "pixels@0.1x2n3"
        }
        assert result["ratio"] == result["ratios"]["generator-4@0.005"]
        assert list(result["student_accuracy"]) == names and (result["teacher_accuracy"] is None) is not bool(names)
        assert result["folding"] > 0
        section = " ".join((tmp_path / "recovery.md").read_text().split())
        assert all(f"| {name} |" in section for name in RECOVERIES)
        assert ("what the images are good for was not measured" in section) is not bool(names)


def test_a_recovery_from_scratch_has_options_that_free_has_not(capsys):
    """It says so: runs and files of earlier versions name them, when they had no effect."""
    method, _ = parse(FREE, RunConfig, ["--recovery", "pixels", "--recovery_steps", "100", "--adaptation_steps", "2"])
    assert method.meta_generator.adaptation_steps == 2
    said = capsys.readouterr().err
    for name in ("recovery", "recovery_steps"):
        assert f"--{name} is ignored: FREE recovers a task in --adaptation_steps steps from a meta-generator" in said
    with pytest.raises(ValueError, match="there is no option recovery_steps"):
        FREE.Config(recovery_steps=100)
