"""The recipes of the weight-space family run on tiny assets."""

import importlib.util
import json
from pathlib import Path

import pytest

from hf_dfml.arguments import parse
from hf_dfml.evaluation import read_results
from tests.pool.members import write_member, write_pool

RECIPES = Path(__file__).parents[2] / "recipes"


def recipe(name):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def glyph_pool(folder, count=4):
    """Members of the glyphs' size with three classes."""
    from hf_dfml.data import dataset_info

    names = dataset_info("glyphs").classes["train"]
    for index in range(count):
        write_member(folder / f"m-{index}", seed=index, label_names=list(names[index : index + 3]))
    return folder


def test_sinusoid(tmp_path, capsys):
    options = "--seeds 2 --num_models 4 --steps 20 --maml_steps 3 --tasks 3 --queries 10 --shots 5 --tune_steps 2"
    rows = recipe("sinusoid").main([*options.split(), "--output_dir", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "DRO < {Average, OTA, MFGP} < MAML < Finetuning" in " ".join(printed.split())
    assert "2.235 ± 0.05" in printed and "over 2 seeds" in printed
    assert [row.method for row in rows] == ["Finetuning", "Average", "OTA", "MFGP", "DRO", "MAML, sees data"]
    assert all(row.metric == "mse" and row.episodes == 6 for row in read_results(tmp_path))
    assert (tmp_path / "sinusoid.png").read_bytes().startswith(b"\x89PNG")


def test_the_order_is_judged_pair_by_pair():
    module = recipe("sinusoid")
    paper = {"DRO": 2.2, "Average": 2.3, "OTA": 2.27, "MFGP": 2.33, "MAML, sees data": 7.0, "Finetuning": 9.6}
    assert module.order_notes({name: (value, 0.05) for name, value in paper.items()}) == []
    close = {name: (value, 0.05) for name, value in {**paper, "DRO": 2.28}.items()}
    assert module.order_notes(close) == ["DRO 2.280 is not below OTA 2.270, within the seeds' spread"]
    good_maml = {name: (value, 0.05) for name, value in {**paper, "MAML, sees data": 1.0}.items()}
    assert len(module.order_notes(good_maml)) == 4 and "spread" not in "".join(module.order_notes(good_maml))


def test_baselines(tmp_path, capsys, monkeypatch):
    module = recipe("baselines")
    monkeypatch.setattr(module, "DROConfig", lambda **options: _short_dro(**options))
    monkeypatch.setattr(module, "MFGPConfig", _short_mfgp)
    options = "--dataset glyphs --ways 3 --shots 1 --episodes 3 --references true --reference_steps 4"
    pool = glyph_pool(tmp_path / "pool")
    rows = module.main([*options.split(), "--pool", str(pool), "--output_dir", str(tmp_path / "run")])
    names = [row.method for row in rows]
    assert names[-6:] == ["OTA", "MFGP", "DRO", "DRO (online)", "MAML, sees data", "OML, sees data"]
    assert {"Random init", "Average", "Best member", "Best member + prototype", "All members + prototype"} <= set(
        names
    )
    assert read_results(tmp_path / "run") == rows
    assert "MAML, sees data" in capsys.readouterr().out


def _short_dro(**options):
    from hf_dfml.methods.dro import DROConfig

    return DROConfig(epochs=1, **options)


def _short_mfgp():
    from hf_dfml.methods.mfgp import MFGPConfig

    return MFGPConfig(steps=2)


def test_baselines_refuse_a_mixed_pool_before_the_exam(tmp_path):
    write_pool(tmp_path, 2)
    write_member(tmp_path / "wide", architecture="conv4", dfml={})
    options = ["--dataset", "glyphs", "--ways", "3", "--pool", str(tmp_path), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(ValueError, match="members of one architecture and head size"):
        recipe("baselines").main(options)


@pytest.mark.parametrize("online", [False, True])
def test_dro(tmp_path, online):
    module = recipe("dro")
    options = "--dataset glyphs --arch conv4_16 --ways 3 --shots 1 --episodes 3 --validation_episodes 2 --epochs 2"
    pool = ["--pool", str(glyph_pool(tmp_path / "pool")), "--output_dir", str(tmp_path / "run"), "--log_with", "none"]
    method_config, run_config = parse(module.DRO, module.RunConfig, [*options.split(), *pool, "--online", str(online)])
    rows = module.run(module.DRO, method_config, run_config, argv=["python", "recipes/dro.py"])
    assert rows[0].method == ("DRO (online)" if online else "DRO")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["hf_dfml"]["method_config"]["online"] is online
    assert config["architecture"] == "conv4_16" and (tmp_path / "run" / "model.safetensors").is_file()
