"""Every configuration in hf_dfml/presets is read by its recipe; the command line wins over it."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_dfml.arguments import SIZES, Default, parse
from hf_dfml.methods.catalogue import METHODS, find_method
from hf_dfml.methods.tgr import TGR
from hf_dfml.run_config import RunConfig
from hf_dfml.settings import flat

CONFIGS = Path(__file__).parents[1] / "hf_dfml" / "presets"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_is_read_by_its_method(path):
    name = next(each for each in METHODS if path.stem.startswith(f"{each.replace('_', '-')}-"))
    words = ["--config", str(path), "--pool", "x", "--seed", "7"]
    method, run = parse(find_method(name), RunConfig, words)
    assert run.pool == "x" and run.seed == 7 and isinstance(method, find_method(name).Config)
    assert path.stem.endswith(SIZES) and run.output_dir.startswith(f"runs/{name.replace('_', '-')}")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", METHODS)
def test_each_method_has_each_size_of_no_data_set_and_says_how_long_it_takes(name, size, capsys):
    _, run = parse(find_method(name), RunConfig, ["--preset", size], default=Default())
    assert run.dataset is None and run.pool == ""
    said = capsys.readouterr().out
    assert said.startswith(f"--preset {size}: ") and "hour" in said or "minute" in said or "second" in said
    if size == "paper":
        assert re.search(r"\d core-hour", said)


@pytest.mark.parametrize("name", ["tgr", "free", "purer", "bidf-mkd", "dro"])
def test_each_method_has_the_papers_data_sets_at_both_sizes_with_the_time_they_take(name):
    """DRO needs members of one network; the paper's tables have 10 ways as well."""
    settings = ["cifar-fs", "mini-imagenet", "cub"]
    settings += [] if name == "dro" else ["multi-architecture", "multi-domain"]
    wanted = {f"{name}-{setting}-{size}" for setting in settings for size in ("paper", "cpu")}
    if name == "dro":
        wanted |= {"dro-cifar-fs-10-way-paper", "dro-mini-imagenet-10-way-paper"}
    assert wanted <= {path.stem for path in CONFIGS.glob("*.yaml")}
    texts = {each: (CONFIGS / f"{each}.yaml").read_text().lower() for each in wanted}
    assert not [each for each, text in texts.items() if not re.search(r"not measured|# time: ", text)]
    assert not [each for each, text in texts.items() if each.endswith("-paper") and "core-hour" not in text]


@pytest.mark.parametrize("name", ["tgr", "free", "purer", "bidf-mkd"])
@pytest.mark.parametrize("size", ["paper", "cpu"])
def test_pools_of_several_architectures_do_not_decide_the_meta_model(name, size):
    """Which architecture is the most common one depends on which members can be used."""
    words = ["--config", str(CONFIGS / f"{name}-multi-architecture-{size}.yaml"), "--pool", "x"]
    assert parse(find_method(name.replace("-", "_")), RunConfig, words)[1].arch == "conv4"


def test_without_a_preset_cpu_is_taken_and_named_and_options_win(capsys):
    method, run = parse(TGR, RunConfig, ["--shift", "1"], default=Default())
    assert (method.steps, method.inversion.shift, run.num_threads) == (16, 1, 1)
    assert capsys.readouterr().out.startswith("--preset cpu (no --preset was given; there are tiny, small, cpu, ")
    method, _ = parse(TGR, RunConfig, ["--config", str(CONFIGS / "tgr-tiny.yaml")], default=Default())
    assert method.steps == 2 and capsys.readouterr().out == "", "a file stands for itself"


def test_the_defaults_are_the_papers():
    config, run = parse(TGR, RunConfig, [])
    method = SimpleNamespace(**flat(config))
    assert (method.steps, method.recovery, method.recovery_steps, method.images_per_class) == (
        1200,
        "generator",
        200,
        30,
    )
    assert (method.num_groups, method.teachers_per_step, method.igr_strength) == (5, 4, 1e-3)
    assert (method.inner_steps, method.inner_lr, method.outer_lr, method.second_order) == (5, 0.01, 1e-3, True)
    assert (run.ways, run.shots, run.episodes, run.seed) == (5, [1, 5], 600, 42)
