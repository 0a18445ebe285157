"""The recipes of the weight-space family run on tiny assets."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_dfml.arguments import parse
from hf_dfml.evaluation import read_results, write_results
from hf_dfml.networks import create_network
from hf_dfml.pipeline import run
from hf_dfml.run_config import RunConfig
from tests.pool.members import write_member, write_pool

RECIPES = Path(__file__).parents[2] / "recipes"


def recipe(name):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


def glyph_pool(folder, count=4):
    """Members of the glyphs' size with three classes."""
    from hf_dfml.data import dataset_info

    names = dataset_info("glyphs").classes["train"]
    for index in range(count):
        write_member(folder / f"m-{index}", seed=index, label_names=list(names[index : index + 3]))
    return folder


def test_sinusoid(tmp_path, capsys, monkeypatch):
    module = recipe("sinusoid")
    monkeypatch.setitem(module.METHODS, "MFGP", (module.MFGP, _short_mfgp()))
    options = "--seeds 2 --num_models 4 --steps 20 --maml_steps 3 --tasks 3 --queries 10 --shots 5 --tune_steps 2"
    rows = module.main([*options.split(), "--output_dir", str(tmp_path)])
    printed = " ".join(capsys.readouterr().out.split())
    assert "DRO < {Average, OTA, MFGP} < MAML < Finetuning" in printed
    assert "2.235 ± 0.05" in printed and "over 2 seeds" in printed
    assert [row.method for row in rows] == ["Finetuning", "Average", "OTA", "MFGP", "DRO", "MAML, sees data"]
    assert all(row.metric == "mse" and row.episodes == 6 for row in read_results(tmp_path))
    assert (tmp_path / "sinusoid.png").read_bytes().startswith(b"\x89PNG")


def test_the_order_is_judged_pair_by_pair():
    module = recipe("sinusoid")
    paper = {"DRO": 2.2, "Average": 2.3, "OTA": 2.27, "MFGP": 2.33, "MAML, sees data": 7.0, "Finetuning": 9.6}
    seeds = torch.tensor([-0.5, 0.5])
    paper = {name: value + seeds for name, value in paper.items()}
    assert module.order_notes(paper) == []
    # Seeds are paired: what they have in common is no spread of the difference.
    assert module.order_notes({**paper, "DRO": 2.28 + seeds}) == ["DRO is 0.01 ± 0.00 above OTA"]
    assert module.order_notes({**paper, "DRO": 2.28 - seeds}) == ["DRO is 0.01 ± 1.41 above OTA"]
    assert len(module.order_notes({**paper, "MAML, sees data": 1.0 + seeds})) == 4


def test_baselines(tmp_path, capsys, monkeypatch):
    module = recipe("baselines")
    monkeypatch.setattr(module, "DROConfig", lambda **options: _short_dro(**options))
    monkeypatch.setattr(module, "MFGPConfig", _short_mfgp)
    options = "--dataset glyphs --ways 3 --shots 1 --episodes 3 --references true --reference_steps 1"
    pool = glyph_pool(tmp_path / "pool")
    rows = module.main([*options.split(), "--pool", str(pool), "--output_dir", str(tmp_path / "run")])
    names = [row.method for row in rows]
    assert names[-6:] == ["OTA", "MFGP", "DRO", "DRO (online)", "MAML, sees data", "OML, sees data"]
    assert names[:3] == ["Random init", "Average", "Best member"] and "All 4 members + prototype" in names
    assert read_results(tmp_path / "run") == rows
    assert "MAML, sees data" in capsys.readouterr().out
    # Interrupted before its last contestants, the same command does not measure the first ones again.
    write_results(tmp_path / "run", rows[:-2])
    monkeypatch.setattr(module, "evaluate_baselines", None)
    assert (
        module.main([*options.split(), "--pool", str(pool), "--output_dir", str(tmp_path / "run")])[:-2] == rows[:-2]
    )
    assert "DRO (online):" not in capsys.readouterr().out
    assert [row.method for row in read_results(tmp_path / "run")] == names
    # Rows of another command in the same folder stay.
    monkeypatch.undo()
    monkeypatch.setattr(module, "contestants", lambda *_: [])
    monkeypatch.setattr(module, "this_command", lambda: "another command")
    module.main([*options.split(), "--bn", "transductive", "--pool", str(pool), "--output_dir", str(tmp_path / "run")])
    assert {(row.method, row.bn) for row in read_results(tmp_path / "run")} >= {
        ("DRO", "support"),
        ("OTA", "support"),
        ("Average", "support"),
        ("Average", "transductive"),
    }


def test_baselines_are_evaluated_on_the_classes_and_by_the_steps_that_are_asked_for(tmp_path, monkeypatch):
    module = recipe("baselines")
    monkeypatch.setattr(module, "contestants", lambda *_: [(module.OTA, module.OTAConfig())])
    options = "--dataset glyphs --ways 3 --shots 1 --episodes 2 --split validation --eval_inner_steps 2"
    pool = glyph_pool(tmp_path / "pool")
    words = [*options.split(), "--eval_inner_lr", "0.1", "--pool", str(pool), "--output_dir", str(tmp_path / "run")]
    rows = module.main(words)
    tuned = {row.method: (row.inner_steps, row.inner_lr) for row in rows if row.head == "finetune"}
    assert tuned == dict.fromkeys(["Random init", "Average", "Best member", "OTA"], (2, 0.1))
    assert {row.split for row in rows} == {"validation"}


def test_baselines_hand_sigma_to_both_kinds_of_dro():
    module = recipe("baselines")
    (config,) = module.parse_into([module.BaselinesConfig], ["--dro_sigma", "1.5"])
    both = [settings for method, settings in module.contestants(config, members=4) if method is module.DRO]
    assert [(settings.sigma, settings.online) for settings in both] == [(1.5, False), (1.5, True)]


def _short_dro(**options):
    from hf_dfml.methods.dro import DROConfig

    return DROConfig(epochs=1, **options)


def _short_mfgp():
    from hf_dfml.methods.mfgp import MFGPConfig

    return MFGPConfig(steps=2)


def test_baselines_refuse_a_mixed_pool_before_the_evaluation(tmp_path):
    write_pool(tmp_path / "pool", 2)
    network = create_network("conv4", num_classes=3, image_size=16)
    wide = write_member(tmp_path / "pool" / "wide", architecture="conv4")
    save_file(network.state_dict(), wide / "model.safetensors")
    options = ["--dataset", "glyphs", "--ways", "3", "--pool", str(tmp_path / "pool")]
    with pytest.raises(ValueError, match=r"one architecture and head size, found 2: .*conv4 with 3 outputs.*: wide"):
        recipe("baselines").main(options)


def test_the_configuration_of_dro_is_read_and_its_defaults_are_the_papers():
    module = recipe("dro")
    method, config = parse(
        module.DRO,
        RunConfig,
        ["--config", str(RECIPES.parent / "hf_dfml" / "presets" / "dro-cifar-fs-cpu.yaml")],
    )
    assert method.epochs == 20 and config.shots == [1, 5, 10, 20]
    method, _ = parse(module.DRO, RunConfig, [])
    assert (method.embedding_dim, method.lr, method.inner_steps, method.ball.gamma) == (50, 0.03, 1, 2.0)
    assert (method.validation_fraction, method.online) == (0.2, False)


@pytest.mark.parametrize("online", [False, True])
def test_dro(tmp_path, online):
    module = recipe("dro")
    options = "--dataset glyphs --arch conv4_16 --ways 3 --shots 1 --episodes 3 --validation_episodes 2 --epochs 2"
    pool = ["--pool", str(glyph_pool(tmp_path / "pool")), "--output_dir", str(tmp_path / "run"), "--log_with", "none"]
    method_config, run_config = parse(module.DRO, RunConfig, [*options.split(), *pool, "--online", str(online)])
    rows = run(module.DRO, method_config, run_config, argv=["python", "recipes/dro.py"])
    assert rows[0].method == ("DRO (online)" if online else "DRO")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["hf_dfml"]["method_config"]["online"] is online
    assert config["architecture"] == "conv4_16" and (tmp_path / "run" / "model.safetensors").is_file()
