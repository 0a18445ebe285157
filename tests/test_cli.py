"""The command line: help that teaches, both spellings of options, errors in one sentence."""

import json

import pytest
from PIL import Image

from hf_dfml.cli import _spread, main
from hf_dfml.meta_model import MetaModel
from hf_dfml.networks import create_network
from hf_dfml.pool import ModelPool


def run(capsys, *arguments):
    """Exit code and what was printed."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code, capsys.readouterr().out


@pytest.fixture
def meta_folder(tmp_path):
    network = create_network("conv4", num_classes=5, image_size=32)
    return MetaModel.of(network, method="TGR").save_pretrained(tmp_path / "meta")


@pytest.mark.parametrize("words", [[], ["pool"], ["quickstart"], ["evaluate"], ["adapt"], ["pool", "build"]])
def test_every_command_explains_itself(capsys, words):
    _, out = run(capsys, *words, "--help")
    assert "Usage" in out and "Options" in out


def test_train_shows_the_options_of_the_recipe(capsys):
    code, out = run(capsys, "train", "tgr", "--help")
    assert code == 0 and "--igr_strength" in out and "--pool" in out


def test_dashes_and_underscores_are_the_same(capsys, tmp_path):
    pool = tmp_path / "pool"
    words = ["--num_models", "1", "--ways", "2", "--epochs", "1", "--output", str(pool)]
    code, out = run(capsys, "pool", "build", *words)
    assert code == 0 and "1 members" in out
    again = [word.replace("_", "-") if word.startswith("--") else word for word in words]
    assert run(capsys, "pool", "build", *again)[0] == 0
    code, out = run(capsys, "pool", "ls", str(pool))
    assert code == 0 and "conv4" in out


def test_a_mixed_pool_is_one_command(capsys, tmp_path):
    words = ["--num-models", "1", "--ways", "2", "--epochs", "1", "--arch", "conv4_16,conv4_64"]
    code, out = run(capsys, "pool", "build", *words, "--output", str(tmp_path))
    assert code == 0 and "2 members" in out
    pool = ModelPool.from_dir(tmp_path)
    assert [entry.architecture for entry in pool] == ["conv4_16", "conv4_64"]
    assert pool[0].class_names != pool[1].class_names, "each kind draws classes of its own"


def test_check_names_a_bad_member_and_fails(capsys, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text(json.dumps({"architecture": "conv4", "num_classes": 2}))
    code, out = run(capsys, "pool", "check", str(tmp_path))
    assert code == 1 and "refused  bad:" in out and "0 of 1" in out


def test_shots_take_several_values():
    assert _spread(["evaluate", "m", "--shots", "1", "5", "--ways", "5"]) == (
        ["evaluate", "m", "--shots", "1", "--shots", "5", "--ways", "5"]
    )
    assert _spread(["evaluate", "m", "--shots", "1"]) == ["evaluate", "m", "--shots", "1"]
    assert _spread(["train", "tgr", "--shots", "1", "5"]) == ["train", "tgr", "--shots", "1", "5"]


def test_evaluate_prints_a_table_and_writes_results(capsys, meta_folder):
    words = ["--dataset", "glyphs", "--shots", "1", "2", "--episodes", "2", "--split", "validation"]
    code, out = run(capsys, "evaluate", str(meta_folder), *words)
    assert code == 0 and "1-shot" in out and "2-shot" in out
    rows = json.loads((meta_folder / "evaluations" / "results.json").read_text())
    assert [row["shots"] for row in rows] == [1, 2] and rows[0]["split"] == "validation"


def test_adapt_labels_each_picture(capsys, meta_folder, tmp_path):
    for name, colour in (("red", (200, 20, 20)), ("blue", (20, 20, 200))):
        (tmp_path / "support" / name).mkdir(parents=True)
        Image.new("RGB", (40, 30), colour).save(tmp_path / "support" / name / "1.png")
        (tmp_path / "query").mkdir(exist_ok=True)
        Image.new("RGB", (25, 35), colour).save(tmp_path / "query" / f"{name}.png")
    code, out = run(
        capsys, "adapt", str(meta_folder), "--support", str(tmp_path / "support"), "--query", str(tmp_path / "query")
    )
    assert code == 0 and len(out.splitlines()) == 2 and "blue.png" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "nowhere/at/all", "--dataset", "glyphs"], "There is no folder nowhere/at/all"),
        (["train", "maml9"], "There is no method 'maml9': expected one of bidf_mkd, dro, free"),
        (["train", "tgr"], "No pool was named"),
        (["train", "tgr", "--config", "none.yaml"], "There is no configuration file none.yaml"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(capsys, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _ = run(capsys, *words)
    assert str(code).startswith("hf-dfml: ") and message in str(code)


def test_a_configuration_with_an_unknown_key_is_refused(tmp_path):
    (tmp_path / "c.yaml").write_text("stepz: 3\n")
    with pytest.raises(SystemExit, match="sets stepz, which this recipe does not have"):
        main(["train", "tgr", "--config", str(tmp_path / "c.yaml")])
