"""The command line: help that teaches, both spellings of options, errors in one sentence."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import hf_dfml
from hf_dfml.cli import main
from hf_dfml.cli.commands import _spread
from hf_dfml.evaluation import Adaptation, read_results
from hf_dfml.meta_model import MetaModel
from hf_dfml.methods.catalogue import METHODS
from hf_dfml.networks import create_network
from hf_dfml.pool import ModelPool
from tests.pool.members import write_pool

pytestmark = pytest.mark.usefixtures("few_glyphs")


def run(capsys, *arguments):
    """Exit code and what was printed."""
    code, out, _ = run_with_errors(capsys, *arguments)
    return code, out


def run_with_errors(capsys, *arguments):
    """Likewise, and what was printed on standard error."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code, *capsys.readouterr()


@pytest.fixture
def meta_folder(tmp_path):
    network = create_network("conv4", num_classes=5, image_size=32)
    MetaModel.of(network, method="TGR").save_pretrained(tmp_path / "meta")
    return tmp_path / "meta"


@pytest.mark.parametrize(
    "words", [[], ["pool"], ["quickstart"], ["evaluate"], ["adapt"], ["serve"], ["demo"], ["pool", "build"]]
)
def test_every_command_explains_itself(capsys, words):
    _, out = run(capsys, *words, "--help")
    assert "Usage" in out and "Options" in out


def test_the_version(capsys):
    code, out = run(capsys, "--version")
    assert code == 0 and out == f"hf_dfml {hf_dfml.__version__}\n"


def test_help_loads_nothing_that_takes_long():
    """Of the command and of `train`, whose help knows every method."""
    program = "import sys; from hf_dfml.cli import main\ntry: main({})\nexcept SystemExit: pass\nprint(*sys.modules)"
    for words in (["--help"], ["train", "--help"], ["--version"]):
        modules = subprocess.run(
            [sys.executable, "-c", program.format(words)], capture_output=True, text=True, check=True
        ).stdout.split()
        assert "hf_dfml.cli.commands" in modules
        assert not {"torch", "transformers", "huggingface_hub", "timm", "numpy"} & set(modules)


def test_train_shows_the_methods(capsys):
    code, out = run(capsys, "train", "--help")
    assert code == 0 and "hf-dfml train tgr --help" in " ".join(out.split())
    for method in METHODS:
        assert f" {method.replace('_', '-')} " in out
    assert "Task Groupings Regularization: Data-Free Meta-Learning" in out


@pytest.mark.parametrize("name", ["bidf-mkd", "bidf_mkd"])
def test_train_shows_the_options_of_the_recipe(capsys, name):
    code, out = run(capsys, "train", name, "--help-advanced")
    assert code == 0 and "--gradient" in out and "--pool" in out
    assert out.startswith("usage: hf-dfml train bidf-mkd [") and "Learning to Learn from APIs" in out


def test_an_option_that_there_is_not_is_named_with_the_one_that_was_meant(capsys):
    for words, message in (
        (["train", "tgr", "--stepz", "3"], "there is no option --stepz: did you mean --steps?"),
        (["train", "tgr", "--poool=x"], "there is no option --poool: did you mean --pool?"),
        (["train", "tgr", "--zzz"], "there is no option --zzz; --help_advanced lists them"),
        (["train", "tgr", "--steps", "-3"], "--steps -3: expected at least 0"),
        (["train", "free", "--images_per_class", "0"], "--images_per_class 0: expected at least 1"),
        (["train", "tgr", "--recovery_lr", "-1"], "--recovery_lr -1: expected a number above 0"),
        (["train", "tgr", "--shots", "1", "0"], "--shots 0: expected at least 1"),
        (["train", "tgr", "pools/x"], "'pools/x' is not understood where it stands"),
        (["evaluate", "x", "--datset", "glyphs"], "No such option: --datset (Possible options: --data, --dataset)"),
        (["train", "maml9"], "No such command 'maml9'"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(words)
        printed = capsys.readouterr().err
        assert stop.value.code == 2 and message in printed and len(printed.splitlines()) < 7


def test_dashes_and_underscores_are_the_same(capsys, tmp_path):
    pool = tmp_path / "pool"
    words = ["--num_models", "1", "--ways", "2", "--epochs", "1", "--output", str(pool)]
    code, out = run(capsys, "pool", "build", *words)
    assert code == 0 and "1 member in" in out
    again = [word.replace("_", "-") if word.startswith("--") else word for word in words]
    assert run(capsys, "pool", "build", *again)[0] == 0
    code, out = run(capsys, "pool", "ls", str(pool))
    assert code == 0 and "conv4" in out and "Weights were not opened" in out


def test_help_and_errors_spell_options_one_way(capsys):
    """That of the recipes and the files of options: with underscores."""
    for words in (["pool", "build"], ["evaluate"], ["classify"], ["pool", "check"], ["train", "tgr"]):
        _, out = run(capsys, *words, "--help")
        assert {each for each in re.findall(r"--\w[\w-]*", out) if "-" in each[2:]} == set(), words
        assert re.search(r"--\w+_\w+", out), words
    for spelling in ("--top-k", "--top_k"):
        code, _, errors = run_with_errors(capsys, "classify", "mine", "photos", spelling, "0")
        assert code == 2 and "'--top_k'" in errors and "1" in errors
    code, _, errors = run_with_errors(capsys, "classify", "mine", "photos", "--treshold", "0.5")
    assert code == 2 and "--threshold" in errors


def test_a_mixed_pool_is_one_command(capsys, tmp_path):
    words = ["--num_models", "1", "--ways", "2", "--epochs", "1", "--arch", "conv4_16,conv4_64"]
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


def test_evaluate_adapts_as_the_model_itself_does_and_keeps_other_evaluations(capsys, tmp_path):
    network = create_network("conv4", num_classes=5, image_size=32)
    adapt = Adaptation(bn="running", head="prototype")
    MetaModel.of(network, method="TGR", adapt=adapt).save_pretrained(tmp_path)

    def protocol(*words: str) -> tuple[str, list[tuple]]:
        usual = ["--dataset", "glyphs", "--shots", "1", "--episodes", "2", "--split", "validation"]
        code, out = run(capsys, "evaluate", str(tmp_path), *usual, *words)
        assert code == 0
        rows = json.loads((tmp_path / "evaluations" / "results.json").read_text())
        return out, [(row["head"], row["bn"], row["seed"]) for row in rows]

    own, other, third = ("prototype", "running", 0), ("finetune", "support", 0), ("prototype", "running", 1)
    assert protocol()[1] == [own]
    out, rows = protocol("--head", "finetune", "--bn", "support")
    assert rows == [own, other] and "beside 1 earlier row" in out
    assert protocol("--seed", "1")[1] == [own, other, third]
    assert protocol()[1] == [other, third, own], "the same evaluation again takes the place of its rows"
    (tmp_path / "evaluations" / "results.json").write_text("no list")
    code, out = run(capsys, "evaluate", str(tmp_path), "--dataset", "glyphs")
    assert "results.json is not readable" in str(code), "said before the evaluation, not after it"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["adapt", "meta", "--support", "photos", "--output", "a.csv"], "--output, --top_k and --threshold are about"),
        (["adapt", "meta", "--support", "photos", "--top_k", "2"], "--output, --top_k and --threshold are about"),
        (["pool", "build", "--output", "p", "--from", "resnet18", "--fast"], "leave one of them out"),
        (["pool", "build", "--output", "p", "--train", "head"], "--train head is about the network of --from"),
    ],
)
def test_options_that_would_be_ignored_are_refused(capsys, words, message):
    code, _ = run(capsys, *words)
    assert message in str(code)


def test_rows_of_another_pool_are_kept(capsys, tmp_path, monkeypatch):
    """Both are written into the folder that the command is typed in."""
    monkeypatch.chdir(tmp_path)
    words = ["--dataset", "glyphs", "--ways", "3", "--shots", "1", "--episodes", "2"]
    for name in ("first", "second"):
        write_pool(tmp_path / name, 1)
        assert run(capsys, "evaluate", name, *words)[0] == 0
    models = [row.model for row in read_results(tmp_path / "evaluations")]
    assert set(models) == {"first", "second"} and models.count("first") == models.count("second")


def test_a_pool_is_evaluated_with_the_statistics_that_are_asked_for(capsys, tmp_path):
    write_pool(tmp_path / "pool", 2)
    words = ["--dataset", "glyphs", "--ways", "3", "--shots", "1", "--episodes", "2", "--output_dir", str(tmp_path)]
    for statistics in ("support", "transductive"):
        code, _ = run(capsys, "evaluate", str(tmp_path / "pool"), *words, "--bn", statistics)
        assert code == 0
        assert statistics in {row.bn for row in read_results(tmp_path) if row.head == "finetune"}


def test_members_beside_a_smaller_meta_model_see_the_images_in_their_own_size(capsys, tmp_path):
    write_pool(tmp_path / "pool", 2)  # Of 16 pixels.
    network = create_network("test_resnet", num_classes=3, image_size=12)
    MetaModel.of(network, method="TGR").save_pretrained(tmp_path / "meta")
    words = ["--dataset", "glyphs", "--ways", "3", "--shots", "1", "--episodes", "2", "--output_dir", str(tmp_path)]
    code, _ = run(capsys, "evaluate", str(tmp_path / "meta"), "--pool", str(tmp_path / "pool"), *words)
    sizes = {row.method: row.image_size for row in read_results(tmp_path)}
    assert code == 0 and sizes["TGR"] == 12 and sizes["All 2 members + prototype"] == 16


def test_evaluate_fine_tunes_as_the_model_was_trained_unless_it_is_asked_otherwise(capsys, tmp_path):
    network = create_network("conv4", num_classes=3, image_size=16)
    MetaModel.of(network, method="TGR", adapt=Adaptation(steps=2, lr=0.05)).save_pretrained(tmp_path)
    usual = ["--dataset", "glyphs", "--ways", "3", "--shots", "1", "--queries", "2", "--episodes", "2", "--json"]
    found = []
    for words in (
        [],
        ["--inner-loop", "papers"],
        ["--inner-steps", "1"],
        ["--inner-loop", "papers", "--inner-lr", "0.1"],
    ):
        code, out = run(capsys, "evaluate", str(tmp_path), *usual, "--split", "validation", *words)
        assert code == 0
        (row,) = json.loads(out.splitlines()[-1])["rows"]
        found.append((row["inner_steps"], row["inner_lr"]))
    assert found == [(2, 0.05), (10, 0.01), (1, 0.05), (10, 0.1)]


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


def test_a_picture_that_cannot_be_read_does_not_stop_the_others(capsys, caplog, meta_folder, tmp_path):
    for file, colour in (("a/1.png", "red"), ("b/1.png", "blue"), ("query/1.png", "blue")):
        (tmp_path / "support" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), colour).save(tmp_path / "support" / file)
    query = (tmp_path / "support" / "query").rename(tmp_path / "query")
    for folder in (tmp_path / "support" / "a", query):
        (folder / "broken.jpg").write_bytes(b"no picture")
    words = ["adapt", str(meta_folder), "--support", str(tmp_path / "support"), "--query", str(query)]
    code, out, errors = run_with_errors(capsys, *words)
    assert code == 0 and len(out.splitlines()) == 1 and "1.png" in out
    assert caplog.text.count("broken.jpg is not readable") == 1, "of the support set"
    assert "Left out 1 file:" in errors and "broken.jpg is not readable" in errors.splitlines()[-1]
    for name in ("june", "july"):
        (query / name).mkdir()
    code, out, errors = run_with_errors(capsys, *words)
    assert code == 0 and len(out.splitlines()) == 1
    assert errors.splitlines()[-1] == (
        f"Not searched: 2 sub-folders ({query}/july, {query}/june). To classify their images, name them too."
    )
    code, out, errors = run_with_errors(capsys, *words, str(query / "broken.jpg"))
    assert not out and "broken.jpg is not readable" in str(code) and "It was named itself" in str(code)


def test_a_classifier_is_kept_and_asked_again(capsys, meta_folder, tmp_path):
    for name, colour in (("red", (200, 20, 20)), ("blue", (20, 20, 200))):
        for index in range(2):
            (tmp_path / "support" / name).mkdir(parents=True, exist_ok=True)
            picture = Image.new("RGB", (40, 30), tuple(value + 9 * index for value in colour))
            picture.save(tmp_path / "support" / name / f"{index}.png")
    words = ["adapt", str(meta_folder), "--support", str(tmp_path / "support"), "--head", "prototype"]
    code, out, errors = run_with_errors(capsys, *words, "--save", str(tmp_path / "mine"))
    assert code == 0 and not out
    assert "On your own 4 images, each left out in turn (head=prototype, bn=support): 4 of 4" in errors
    folders = [str(tmp_path / "support" / name) for name in ("red", "blue")]
    code, out = run(capsys, "classify", str(tmp_path / "mine"), *folders, "--top_k", "2")
    assert code == 0 and [line.split("\t")[1] for line in out.splitlines()] == ["red", "red", "blue", "blue"]
    asked_at_once = run(capsys, *words, "--query", *folders, "--top-k", "2")
    assert asked_at_once == (0, out)
    output = tmp_path / "answers.csv"
    code, out = run(capsys, "classify", str(tmp_path / "mine"), *folders, "--output", str(output), "--threshold", "1")
    assert code == 0 and not out and output.read_text().count("none of these") == 4
    code, _ = run(capsys, "classify", str(tmp_path / "mine"), *folders, "--output", "answers.xlsx")
    assert "expected .csv or .json" in str(code)
    code, _ = run(capsys, *words, "--save", str(tmp_path / "support"))
    assert "support holds something else than a classifier" in str(code)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "nowhere/at/all", "--dataset", "glyphs"], "There is no folder nowhere/at/all"),
        (
            ["evaluate", "runs/qickstart", "--dataset", "glyphs"],
            "no folder runs/qickstart, and the Hub (http",
        ),
        (
            ["adapt", "runs/qickstart", "--support", "a", "--query", "b"],
            "could not be reached to look for",
        ),
        (["pool", "ls", "pools/cifar"], "There is no folder pools/cifar, and the Hub (http"),
        (["pool", "ls", "pools/cifar,pools/cub"], "There is no folder pools/cifar, and the Hub (http"),
        (["pool", "build", "--num-models", "0", "--output", "x"], "num_models=0: a pool has at least one member"),
        (["pool", "build", "--ways", "2-x", "--output", "x"], "--ways 2-x: expected a number of classes, or a range"),
        (["train", "tgr"], "No pool was named"),
        (["train", "tgr", "--config", "none.yaml"], "There is no configuration file none.yaml"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(capsys, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _ = run(capsys, *words)
    assert str(code).startswith("hf-dfml: ") and message in str(code)


def test_the_traceback_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("HF_DFML_TRACEBACK", "1")
    with pytest.raises(ValueError, match="No pool was named"):
        main(["train", "tgr"])


def test_faults_of_the_program_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("hf_dfml.pool.ModelPool.open", lambda *args, **options: {}["fault"])
    with pytest.raises(KeyError):
        main(["pool", "ls", "x"])


RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("name", METHODS)
def test_recipes_answer_as_the_command_does(name, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for words, code in (
        ([], f"{name}.py: No pool was named: give --pool a folder, a Hub user or organisation, a collection, or ids."),
        (["--seeed", "3"], 2),
    ):
        monkeypatch.setattr(sys, "argv", [str(RECIPES / f"{name}.py"), *words])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(sys.argv[0], run_name="__main__")
        assert stop.value.code == code
    assert "there is no option --seeed: did you mean --seed?" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_run_that_fails_before_its_first_step_leaves_no_logs(capsys, tmp_path):
    words = ["--num-models", "2", "--ways", "5", "--epochs", "1", "--arch", "conv4_16"]
    run(capsys, "pool", "build", *words, "--output", str(tmp_path / "pool"))
    words = ["train", "dro", "--pool", str(tmp_path / "pool"), "--epochs", "1", "--output_dir", str(tmp_path / "run")]
    code, _ = run(capsys, *words, "--arch", "conv4")
    assert "cannot be fused" in str(code) and not (tmp_path / "run" / "logs").exists()
    with pytest.raises(SystemExit):
        main([*words, "--arch", "conv4_16"])
    assert any((tmp_path / "run" / "logs").iterdir())


def test_a_configuration_with_an_unknown_key_is_refused(tmp_path):
    (tmp_path / "c.yaml").write_text("stepz: 3\n")
    with pytest.raises(SystemExit, match="line 1: there is no option stepz: did you mean steps?"):
        main(["train", "tgr", "--config", str(tmp_path / "c.yaml")])
