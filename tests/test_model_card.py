"""The card: metadata that the Hub reads, sentences that follow from the facts."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_dfml.evaluation import Adaptation, Result
from hf_dfml.meta_config import MetaConfig, Source
from hf_dfml.model_card import Training, limits, make_card, write_card

SHA = "0123456789" * 4
OURS = Result(
    "TGR", "cifar-fs", 5, 1, "support", "finetune", 600, "accuracy", 38.5, 0.8, 0, "test", 9.0, "python x.py"
)
ONE = replace(OURS, method="Best member + prototype", head="prototype", bn="running", mean=36.0)
ALL = replace(ONE, method="All 2 members + prototype", mean=39.0)
CONFIG = MetaConfig(
    architecture="conv4",
    num_classes=5,
    num_features=128,
    input_size=(3, 32, 32),
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    method="TGR",
    method_config={"lr": 1e-3, "choice": "a|b"},
    pool=(Source("local"), Source("org/a", SHA)),
    dataset="cifar-fs",
    results=(OURS, replace(OURS, shots=5, mean=52.0), replace(OURS, method="Random init", mean=28.0), ONE, ALL),
)


def test_metadata_is_what_the_hub_reads(tmp_path: Path) -> None:
    data = ModelCard.load(write_card(tmp_path, CONFIG, license="apache-2.0", repo_id="me/tgr")).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("hf-dfml", "image-classification", "apache-2.0")
    assert {"hf-dfml", "hf_dfml", "data-free-meta-learning", "few-shot", "image-classification", "tgr"} <= set(
        data.tags
    )
    assert data.datasets == ["uoft-cs/cifar100"]
    assert data.base_model == ["org/a"]  # A folder's name is no repository.
    assert data["base_model_relation"] == "merge"
    local = make_card(replace(CONFIG, pool=(Source("local"),))).data.to_dict()
    assert not {"base_model", "base_model_relation"} & set(local)
    assert data.model_name == "tgr"
    assert [(row.dataset_config, row.metric_value) for row in data.eval_results] == [
        ("5-way 1-shot", 38.5),
        ("5-way 5-shot", 52.0),
    ]
    first = data.eval_results[0]
    assert (first.dataset_type, first.dataset_split, first.metric_type) == ("uoft-cs/cifar100", "test", "accuracy")
    assert first.metric_args == {
        "ways": 5,
        "shots": 1,
        "episodes": 600,
        "bn": "support",
        "head": "finetune",
        "flips": False,
        "representation": "features",
        "ci95": 0.8,
        "seed": 0,
    }


def test_evaluation_results_file(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", minversion="2.0")
    write_card(tmp_path, CONFIG)
    rows = yaml.safe_load((tmp_path / ".eval_results" / "cifar-fs.yaml").read_text())
    assert [(row["dataset"]["id"], row["dataset"]["task_id"], row["value"]) for row in rows] == [
        ("uoft-cs/cifar100", "5_way_1_shot", 38.5),
        ("uoft-cs/cifar100", "5_way_5_shot", 52.0),
    ]
    assert rows[0]["notes"] == "5-way 1-shot, 600 episodes, bn=support, head=finetune, 95% CI ±0.80, seed 0"


def test_evaluation_results_have_one_number_for_each_task(tmp_path: Path) -> None:
    """That of the default adaptation, as the Hub's own reader takes it."""
    hub = pytest.importorskip("huggingface_hub", minversion="2.0")
    usual = replace(OURS, head="prototype", bn="running", mean=41.0)
    how = replace(CONFIG.adapt, head="prototype", bn="running")
    write_card(tmp_path, replace(CONFIG, results=(OURS, usual, replace(usual, shots=5, mean=54.0)), adapt=how))
    (file,) = (tmp_path / ".eval_results").iterdir()
    entries = hub.parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert [(each.dataset_id, each.task_id, each.value) for each in entries] == [
        ("uoft-cs/cifar100", "5_way_1_shot", 41.0),
        ("uoft-cs/cifar100", "5_way_5_shot", 54.0),
    ]
    assert len(ModelCard.load(tmp_path / "README.md").data.eval_results) == 3


def test_the_lock_file_is_named_where_there_is_one(tmp_path: Path) -> None:
    assert "pool.lock.json" not in write_card(tmp_path, CONFIG).read_text()
    (tmp_path / "pool.lock.json").write_text("{}")
    assert "`--pool pool.lock.json` learns from the very same pool again." in write_card(tmp_path, CONFIG).read_text()


def test_body_has_table_usage_pool_and_facts(tmp_path: Path) -> None:
    training = Training(
        command="accelerate launch /home/ada/recipes/tgr.py --pool /home/ada/pools/x --hub_token=hf_abcdefghijkl",
        seed=42,
        seconds=3000,
        machine="a machine",
        chosen="step 20 of 40",
        reference="Wei et al., ICML 2024",
    )
    text = write_card(tmp_path, CONFIG, training=training).read_text()
    for piece in (
        "| TGR | finetune | support | 38.50 ± 0.80 |",
        "| Random init | finetune | support | 28.00 ± 0.80 |",
        'MetaModel.from_pretrained("this-repository")',
        "| `lr` | `0.001` |",
        "| `choice` | `a\\|b` |",
        "| seed | 42 |",
        "| time | 50 min of training; the evaluation is not in it |",
        "| machine | a machine |",
        "| checkpoint | step 20 of 40 |",
        "`accelerate launch recipes/tgr.py --pool x --hub_token=HIDDEN`",
        "- `local`",
        f"/org/a/tree/{SHA}",
        "Wei et al., ICML 2024",
        "no training image was used",
        "`finetune` (SGD on all parameters), `prototype` (nearest class mean by cosine);",
    ):
        assert piece in text, piece
    assert "/home" not in text and "hf_abc" not in text


def test_pictures_are_shown_if_they_lie_in_the_folder(tmp_path: Path) -> None:
    inside = tmp_path / "model" / "pictures" / "recovered images.png"
    text = write_card(tmp_path / "model", CONFIG, pictures={inside: "What was recovered"}, charts=["model/x.png"][:0])
    assert "![What was recovered](pictures/recovered%20images.png)" in text.read_text()
    with pytest.raises(ValueError, match="outside the model's folder"):
        write_card(tmp_path / "model", CONFIG, pictures=[tmp_path / "elsewhere.png"])


def test_captions_are_sentences(tmp_path: Path) -> None:
    names = ("recovered", "dissimilarity", "training_set", "teachers", "own_idea")
    pictures = [tmp_path / "pictures" / f"{name}.png" for name in names]
    charts = [tmp_path / "pictures" / "results-cifar-fs.png"]
    text = write_card(tmp_path, CONFIG, pictures=pictures, charts=charts).read_text()
    captions = re.findall(r"!\[(.*)\]\(pictures", text)
    assert len(captions) == 6 and all(caption.endswith(".") for caption in captions)
    assert all(f"\n{caption}\n" in text for caption in captions)
    assert captions[0].startswith("cifar-fs: Accuracy") and captions[-1] == "Own idea."


def test_a_long_pool_is_folded_and_a_short_one_shown(tmp_path: Path) -> None:
    for count in (10, 11):
        text = write_card(tmp_path, replace(CONFIG, pool=tuple(Source(f"m-{i}") for i in range(count)))).read_text()
        assert text.count("\n- `m-") == count and f"The pool ({count} members)" in text
        assert text.count("<details>") == text.count("</details>") == (count > 10)


def test_what_heads_work_with_is_said_in_words(tmp_path: Path) -> None:
    words = "features and answers of the pool's members, side by side"
    how = Adaptation(head="prototype", bn="running", flips=True, representation="both")
    text = write_card(tmp_path, replace(CONFIG, adapt=how, method_config={"representation": "both"})).read_text()
    assert f'`head="prototype"` with `representation="both"` ({words}) and `flips=True` and `bn="running"`' in text
    assert f"| `representation` | `both` ({words}) |" in text
    plain = write_card(tmp_path, replace(CONFIG, adapt=replace(how, representation="features"))).read_text()
    assert '`head="prototype"` with `flips=True` and `bn="running"`' in plain


def test_a_pool_of_one_is_one(tmp_path: Path) -> None:
    text = write_card(tmp_path, replace(CONFIG, pool=(Source("local"),))).read_text()
    assert "from a pool of 1 pretrained classifier with" in text and "The pool (1 member)" in text


def test_limits_say_how_it_compares_with_the_pool_alone() -> None:
    found = limits(CONFIG, Training(seed=7))
    assert any("is 2.5 points above" in limit and "Best member + prototype" in limit for limit in found)
    assert any("not distinguishable" in limit and "All 2 members + prototype" in limit for limit in found)
    assert not any("5-shot: its" in limit for limit in found)  # Nothing to compare with at five shots.
    assert any("seed 7" in limit and "not over runs" in limit for limit in found)
    worse = replace(CONFIG, results=(OURS, replace(ALL, mean=45.0)))
    assert any("is 6.5 points below" in limit for limit in limits(worse, Training()))
    chosen = replace(CONFIG, results=(replace(OURS, split="validation"),))
    assert any("made on validation classes" in limit for limit in limits(chosen, Training()))


def test_without_an_evaluation_the_card_says_so(tmp_path: Path) -> None:
    config = replace(CONFIG, results=(), dataset=None, pool=())
    path = write_card(tmp_path, config)
    card = ModelCard.load(path)
    assert "made without an evaluation" in card.text and "How well it works is not known" in card.text
    assert card.data.eval_results is None and "model-index" not in path.read_text()
    assert not (tmp_path / ".eval_results").exists()


@pytest.mark.parametrize(
    ("training", "sentence"),
    [
        (
            Training(unlabelled=True),
            "no labelled image was used, only the weights of those classifiers and unlabelled images of whoever "
            "trained it.",
        ),
        (
            Training(answers="probs", unlabelled=True, started_from="timm/a"),
            "no labelled image and no weights were used, only answers of those classifiers (probs), unlabelled images "
            "of whoever trained it and the network `timm/a`, from which it started.",
        ),
    ],
)
def test_what_else_it_learned_from_is_said(tmp_path: Path, training: Training, sentence: str) -> None:
    config = replace(CONFIG, method_config={"images": "/home/ada/family photos", "probe": "~/nets/a"})
    text = write_card(tmp_path, config, training=training).read_text()
    assert sentence in text and "no training image" not in text
    assert "| `images` | `family photos` |" in text and "| `probe` | `a` |" in text


def test_references_that_see_data_say_so(tmp_path: Path) -> None:
    text = write_card(tmp_path, CONFIG, training=Training(data_free=False)).read_text()
    assert "sees real training images" in text and "no training image" not in text


def test_a_baseline_that_is_its_own_baseline_is_listed_once(tmp_path: Path) -> None:
    config = replace(CONFIG, method="Average", results=(replace(OURS, method="Average"),) * 2)
    assert len(ModelCard.load(write_card(tmp_path, config)).data.eval_results) == 1
