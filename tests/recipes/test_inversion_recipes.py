"""PURER and BiDf-MKD from the command line: configurations, small runs, pools of mixed members, several data sets."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hf_dfml import MetaModel, preflight
from hf_dfml.arguments import parse
from hf_dfml.cli import main
from hf_dfml.data import dataset_info, load_dataset
from hf_dfml.evaluation import EvaluationProtocol, read_results
from hf_dfml.evaluation.heads.icfil import ICFIL, ICFILConfig
from hf_dfml.evaluation.reporting import evaluate_stored
from hf_dfml.methods.bidf_mkd import BiDfMKD
from hf_dfml.methods.free import FREE
from hf_dfml.methods.purer import PURER
from hf_dfml.networks import create_network
from hf_dfml.pipeline import run
from hf_dfml.pool import ModelPool
from hf_dfml.run_config import RunConfig
from hf_dfml.settings import flat
from tests.methods.pools import make_mixed_pool
from tests.pool.members import write_member

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results.md"
METHODS = {"purer": PURER, "bidf-mkd": BiDfMKD}
ALL = METHODS | {"free": FREE}
SIZES = {"tiny", "small", "cpu", "gpu", "paper"}
WARMUP = {"free": ("--warmup", "2")}
CONFIGS = sorted(
    path for path in (ROOT / "hf_dfml" / "presets").glob("*.yaml") if path.name.startswith(tuple(METHODS))
)
COMMON = "--ways 3 --shots 1 --episodes 3 --validation_episodes 2 --validate_every 2 --checkpoint_every 2 --steps 3"
COMMON += " --replay_queries 2 --replay_batch 2 --bn support --log_with none"
TINY = {
    "purer": f"{COMMON} --images_per_class 3 --warmup 1 --icfil_episodes 2",
    "bidf-mkd": f"{COMMON} --recovery pixels --recovery_steps 2 --images_per_class 3 --distillation_steps 2 "
    "--boundary_start 0 --replay_max_batches 1",
}


def options(name, *more):
    return [*TINY[name].split(), *map(str, more)]


@pytest.fixture(autouse=True)
def short_icfil(monkeypatch):
    """Three steps of inversion for each support set in place of 200."""
    monkeypatch.setattr(ICFIL, "Options", staticmethod(lambda: ICFILConfig(recovery_steps=3)))


def glyph_pool(folder, count=2, first=0):
    """Members of three glyphs each, whose names overlap, in no order."""
    names = dataset_info("glyphs").classes["train"]
    for index in range(first, first + count):
        write_member(folder / f"m-{index}", seed=index, label_names=list(names[index : index + 3][::-1]))
    return folder


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_are_read_and_say_what_was_not_measured(path):
    name = next(name for name in METHODS if path.name.startswith(name))
    method, config = parse(METHODS[name], RunConfig, ["--config", str(path), "--pool", "x"])
    METHODS[name](method, create_network(config.arch.replace("auto", "conv4"), num_classes=config.ways, image_size=32))
    assert config.output_dir == f"runs/{path.stem}"
    if path.stem.removeprefix(f"{name}-") in SIZES:
        assert config.dataset is None and "# Time: " in path.read_text()
        return
    assert config.dataset
    assert "not measured" in path.read_text().lower() or path.name in RESULTS.read_text()


def test_there_is_a_configuration_for_each_setting():
    settings = ("cifar-fs", "mini-imagenet", "cub", "multi-architecture", "multi-domain")
    expected = {f"{name}-{setting}-{kind}" for name in ALL for setting in settings for kind in ("paper", "cpu")}
    found = {path.stem for path in (ROOT / "hf_dfml" / "presets").glob("*.yaml") if path.name.startswith(tuple(ALL))}
    sizes = {f"{name}-{size}" for name in ALL for size in SIZES}
    assert found == expected | sizes | {"bidf-mkd-cifar-fs-black-box-cpu"}


@pytest.mark.parametrize("name", METHODS)
def test_the_papers_schedules_are_the_defaults(name):
    path = ROOT / "hf_dfml" / "presets" / f"{name}-cifar-fs-paper.yaml"
    paper, _ = parse(METHODS[name], RunConfig, ["--config", str(path)])
    default, _ = parse(METHODS[name], RunConfig, [])
    shared = {"steps", "inner_steps", "inner_lr", "outer_lr", "replay_batch", "second_order", "bn", "recovery_lr"}
    assert all(flat(paper)[name] == flat(default)[name] for name in shared)


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_leaves_a_model_a_card_and_results(name, tmp_path, monkeypatch):
    words = options(name, "--pool", glyph_pool(tmp_path / "pool"), "--dataset", "glyphs", "--arch", "conv4_16")
    words += ["--output_dir", str(tmp_path / "run")]
    recipe = str(ROOT / "recipes" / f"{name.replace('-', '_')}.py")
    monkeypatch.setattr(sys, "argv", [recipe, *words])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(recipe, run_name="__main__")
    assert stop.value.code == 0
    rows = read_results(tmp_path / "run")
    assert rows[0].method == METHODS[name](*made(name)).name and {row.dataset for row in rows} == {"glyphs"}
    card = (tmp_path / "run" / "README.md").read_text()
    assert "arXiv" in card and (tmp_path / "run" / "pictures" / "recovered.png").is_file()
    assert MetaModel.from_pretrained(tmp_path / "run").network.num_classes == 3


def made(name):
    """Arguments of a method."""
    config, run_config = parse(METHODS[name], RunConfig, options(name))
    return config, create_network("conv4_16", num_classes=run_config.ways)


def test_the_evaluation_is_reported_with_and_without_icfil(tmp_path):
    words = options("purer", "--pool", glyph_pool(tmp_path / "pool"), "--dataset", "glyphs", "--arch", "conv4_16")
    words += ["--output_dir", str(tmp_path / "run")]
    rows = run(PURER, *parse(PURER, RunConfig, words), argv=["test"])
    pair = [row for row in rows if row.episodes == 2]
    assert [(row.method, row.head, row.bn) for row in pair] == [
        ("PURER", "finetune", "support"),
        ("PURER", "icfil", "support"),
    ]
    assert all(row.episodes == 3 for row in rows if row not in pair)
    assert (tmp_path / "run" / "pictures" / "results.png").is_file()
    # Once more from the stored model: one command gives both rows.
    own = {"inner_steps": pair[0].inner_steps, "inner_lr": pair[0].inner_lr}
    protocol = EvaluationProtocol(ways=3, shots=[1], episodes=2, head="icfil", **own)
    meta = MetaModel.from_pretrained(tmp_path / "run")
    folder = tmp_path / "run" / "evaluations"
    again = evaluate_stored(
        meta.network, load_dataset("glyphs", "test", image_size=16), protocol, folder, method="PURER"
    )
    assert [(row.head, row.mean) for row in again] == [(row.head, row.mean) for row in pair]


@pytest.mark.parametrize("name", METHODS)
def test_several_folders_and_several_data_sets(name, tmp_path, monkeypatch):
    """Members of two sizes and architectures from two folders; an evaluation on each of two data sets."""
    glyph_pool(tmp_path / "small", 1)
    make_mixed_pool(tmp_path, residual="test_resnet")  # Small: all members pass all images.
    read = preflight.open_data

    def five_classes(name, split, **options):
        """Of glyphs, under another name: each member of the pool passes all images."""
        data = read("glyphs", split, **options)
        kept = data.labels < 5
        few = {"images": data.images[kept], "labels": data.labels[kept], "class_names": data.class_names[:5]}
        return replace(data, name=name, **few)

    monkeypatch.setattr(preflight, "own_splits", lambda name: ("validation", "test"))
    monkeypatch.setattr(preflight, "dataset_info", lambda name: dataset_info("glyphs"))
    monkeypatch.setattr(preflight, "open_data", five_classes)
    pools = f"{tmp_path / 'small'},{tmp_path / 'mixed'}"
    pool = ModelPool.open(pools)
    assert [(entry.architecture, entry.input_size[-1], entry.num_classes) for entry in pool] == [
        ("conv4_16", 16, 3),
        ("conv4_16", 16, 3),
        ("test_resnet", 20, 5),
    ]
    words = options(name, "--pool", pools, "--dataset", "glyphs,runes", "--arch", "conv4_global")
    words += ["--icfil_episodes", "0"]
    method, config = parse(METHODS[name], RunConfig, [*words, "--output_dir", str(tmp_path / "run")])
    rows = run(METHODS[name], method, config, argv=["test"])
    assert {row.dataset for row in rows} == {"glyphs", "runes"}
    ours = {dataset: [row.mean for row in rows if row.dataset == dataset] for dataset in ("glyphs", "runes")}
    assert ours["glyphs"] == ours["runes"], "the same images under two names"
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["architecture"] == "conv4_global" and stored["pretrained_cfg"]["input_size"] == [3, 20, 20]
    shown = {path.name for path in (tmp_path / "run" / "pictures").iterdir()}
    assert {"results-glyphs.png", "results-runes.png", "training.png", "recovered.png"} <= shown


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_the_multi_architecture_run_finishes_on_a_pool_that_it_builds(name, tmp_path, capsys):
    """The two commands that the configuration's head names, with fewer members and steps."""
    words = ["--dataset", "glyphs", "--arch", "conv4,resnet10t", "--num-models", "2", "--fast", "--epochs", "2"]
    with pytest.raises(SystemExit) as stop:
        main(["pool", "build", *words, "--output", str(tmp_path / "pool")])
    assert stop.value.code == 0 and "4 members" in capsys.readouterr().out
    pool = ModelPool.from_dir(tmp_path / "pool")
    assert {entry.architecture for entry in pool} == {"conv4", "resnet10t"}
    assert len({entry.class_names for entry in pool}) == 4, "each draws classes of its own"
    path = ROOT / "hf_dfml" / "presets" / f"{name}-multi-architecture-cpu.yaml"
    words = ["--config", path, "--pool", tmp_path / "pool", "--output_dir", tmp_path / "run"]
    words += ["--steps", "12", "--validate_every", "6", "--episodes", "20", "--validation_episodes", "10"]
    words += WARMUP.get(name, ())
    rows = run(ALL[name], *parse(ALL[name], RunConfig, list(map(str, words))), argv=["test"])
    assert {row.shots for row in rows} == {1, 5} and (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_the_multi_domain_run_finishes_on_a_pool_that_it_builds(name, tmp_path, shared_dir, monkeypatch):
    monkeypatch.setenv("HF_DFML_DATA", str(shared_dir / "data"))
    words = ["--dataset", "cifar-fs,cub", "--num-models", "1", "--epochs", "1", "--output", str(tmp_path / "pool")]
    with pytest.raises(SystemExit) as stop:
        main(["pool", "build", *words])
    assert stop.value.code == 0
    path = ROOT / "hf_dfml" / "presets" / f"{name}-multi-domain-cpu.yaml"
    words = ["--config", path, "--pool", tmp_path / "pool", "--output_dir", tmp_path / "run", "--steps", "4"]
    words += ["--validate_every", "4", "--episodes", "10", "--validation_episodes", "5", "--shots", "1"]
    words += WARMUP.get(name, ())
    rows = run(ALL[name], *parse(ALL[name], RunConfig, list(map(str, words))), argv=["test"])
    assert {row.dataset for row in rows} == {"cifar-fs", "cub"}
    assert MetaModel.from_pretrained(tmp_path / "run").config.input_size == (3, 84, 84)
