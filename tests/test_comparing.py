"""Comparison on a user's own images: leave-one-out, paired episodes, and what is said about the difference."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hf_dfml import comparing
from hf_dfml.cli import main
from hf_dfml.comparing import Comparison, compare, leave_one_out, verdict
from hf_dfml.data.folders import open_data
from hf_dfml.meta_model import MetaModel
from hf_dfml.pool import ModelPool
from hf_dfml.pool.teacher import Teacher
from hf_dfml.utils.images import to_unit
from tests.methods.pools import make_model
from tests.pool.members import write_member, write_pool


@pytest.fixture
def photos(tmp_path):
    """Three classes of five images, whose colours differ and overlap."""
    draw = torch.Generator().manual_seed(0)
    for way, name in enumerate(("ant", "bee", "cow")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(5):
            noise = torch.randint(0, 120, (16, 16, 3), generator=draw, dtype=torch.uint8)
            noise[..., way] += 60
            Image.fromarray(noise.numpy()).save(tmp_path / "photos" / name / f"{index}.png")
    return tmp_path / "photos"


def test_leave_one_out_is_that_of_a_plain_loop():
    draw = torch.Generator().manual_seed(1)
    features, labels = torch.randn(30, 5, generator=draw), torch.randint(0, 4, (30,), generator=draw)
    labels[0] = 4  # The only one of its class.
    features += F.one_hot(labels, 5) * 1.5
    found = leave_one_out(features, labels)
    normal = F.normalize(features, dim=-1)
    for index in range(30):
        kept = torch.arange(30) != index
        ways = labels[kept].unique()
        means = torch.stack([normal[kept & (labels == way)].mean(0) for way in ways])
        nearest = ways[F.cosine_similarity(means, normal[index], dim=-1).argmax()]
        assert found[index] == (nearest == labels[index])
    assert not found[0] and 0.3 < found.float().mean() < 1


def test_everything_named_is_ranked_on_the_same_episodes(photos, tmp_path):
    pool = write_pool(tmp_path / "pool", 3)
    MetaModel.of(make_model(5), method="TGR").save_pretrained(tmp_path / "meta")
    options = {"pool": str(pool), "models": [str(tmp_path / "meta")], "backbone": str(pool / "m-0"), "episodes": 30}
    rows = compare(photos, shots=[1, 2, 9], **options)
    assert [row.name for row in rows if "member" in row.name.lower() or "m-0" in row.name]
    assert {row.name for row in rows} == {
        "Best member",
        "All 3 members, features",
        "All 3 members, answers",
        "TGR (meta)",
        "Backbone m-0",
    }
    assert all(row.images == 15 and set(row.accuracy) == {1, 2} for row in rows), "9 of 5 images cannot be shown"
    with_most_shots = [row.accuracy[2] for row in rows]
    assert with_most_shots == sorted(with_most_shots, reverse=True) and rows[0].behind[1] == (0, 0)
    # The best member is m-0: the same features on the same episodes.
    by_name = {row.name: row for row in rows}
    assert replace(by_name["Best member"], name="") == replace(by_name["Backbone m-0"], name="")
    for row in rows[1:]:
        assert row.behind[2][0] >= 0, "the first one is ahead by the figure that the verdict names"
        assert row.behind[2][0] == pytest.approx(rows[0].accuracy[2] - row.accuracy[2], abs=1e-3)


def test_the_member_that_stands_for_the_best_says_why(photos, tmp_path):
    for index in range(2):
        write_member(tmp_path / "pool" / f"m-{index}", seed=index, dfml={})
    rows = compare(photos, pool=str(tmp_path / "pool"), episodes=2)
    assert [row.name for row in rows if "First" in row.name] == ["First member (no accuracy stored)"]


def test_the_best_with_the_most_shots_is_recommended(photos, monkeypatch):
    """By the sum over shots it would be A, which is behind where the verdict looks."""
    accuracy = {("A", 1): 0.9, ("A", 2): 0.4, ("B", 1): 0.5, ("B", 2): 0.6}
    names = "AB"

    def scored(features, support, query, labels, truth):
        shots = support.shape[1] // (int(labels.max()) + 1)
        return torch.full((len(support),), accuracy[names[int(features[0, 0])], shots])

    contestants = [
        comparing.Contestants(16, lambda through, name=name: {name: torch.full((15, 2), float(names.index(name)))})
        for name in names
    ]
    monkeypatch.setattr(comparing, "_contestants", lambda *_: contestants)
    monkeypatch.setattr(comparing, "_accuracies", scored)
    rows = compare(photos, shots=[1, 2], episodes=3)
    assert [row.name for row in rows] == ["B", "A"]
    assert verdict(rows).startswith("Use B: with 2 images a class it is 20.0 ± 0.0 points ahead of A")


def row(name, points, interval):
    return Comparison(name, 5, 10, {5: 60.0}, {5: 1.0}, {5: (points, interval)})


def test_a_difference_within_its_interval_is_called_chance():
    first = row("A", 0.0, 0.0)
    assert "Use A: with 5 images a class it is 3.0 ± 1.0 points ahead of B, more than chance." == verdict(
        [first, row("B", 3.0, 1.0)]
    )
    assert "may be chance" in verdict([first, row("B", 0.5, 1.0)])
    few = [Comparison(name, right, 4, {}, {}, {}) for name, right in (("A", 3), ("B", 2))]
    assert "A has 3 and B 2 of 4 images right" in verdict(few)


def test_the_command_prints_a_table_or_json(photos, tmp_path, capsys):
    pool = str(write_pool(tmp_path / "pool", 2))
    words = ["compare", "--support", str(photos), "--pool", pool, "--shots", "1", "2", "--episodes", "10"]
    with pytest.raises(SystemExit) as code:
        main(words)
    printed = capsys.readouterr().out
    assert code.value.code in (0, None) and "15 images of" in printed and "2-shot (%)" in printed
    assert "Use " in printed.replace("\n", " ")
    with pytest.raises(SystemExit):
        main([*words, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert len(found["rows"]) == 3 and found["verdict"]
    with pytest.raises(SystemExit, match="Nothing to compare"):
        main(["compare", "--support", str(photos)])


def test_a_meta_model_is_evaluated_on_ones_own_images(photos, tmp_path, capsys):
    MetaModel.of(make_model(5), method="TGR").save_pretrained(tmp_path / "meta")
    words = ["evaluate", str(tmp_path / "meta"), "--data", str(photos), "--shots", "1", "--episodes", "4"]
    with pytest.raises(SystemExit, match="photos has 0 classes with at least 16 images; 5 ways of 1 shot"):
        main(words)
    with pytest.raises(SystemExit):
        main([*words, "--ways", "3", "--queries", "2"])
    (row,) = json.loads((tmp_path / "meta" / "evaluations" / "results.json").read_text())
    assert (row["dataset"], row["ways"], row["shots"], row["episodes"]) == ("photos", 3, 1, 4)
    with pytest.raises(SystemExit, match="Name the images: --dataset"):
        main([*words, "--dataset", "glyphs"])


def test_a_pool_and_a_classifier_are_evaluated_in_the_same_words(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pool(tmp_path / "pool", 2)
    words = ["--data", str(photos), "--shots", "1", "--ways", "3", "--queries", "2", "--episodes", "4"]
    with pytest.raises(SystemExit):
        main(["evaluate", "pool", *words])
    rows = json.loads((tmp_path / "evaluations" / "results.json").read_text())
    assert {"Random init", "All 2 members + prototype"} <= {row["method"] for row in rows}
    assert {(row["dataset"], row["ways"], row["episodes"]) for row in rows} == {("photos", 3, 4)}
    assert sorted(path.name for path in (tmp_path / "pool").iterdir()) == ["m-0", "m-1"], "nothing is added to a pool"
    with pytest.raises(SystemExit, match="leave --pool, --head and"):
        main(["evaluate", "pool", *words, "--head", "linear"])
    capsys.readouterr()
    classifier = MetaModel.of(make_model(5), method="TGR").adapt(photos)
    classifier.save_pretrained(tmp_path / "mine")
    with pytest.raises(SystemExit):
        main(["evaluate", "mine", "--data", str(photos)])
    assert capsys.readouterr().out == f"Of the images in {photos}: {classifier.evaluate(photos)}.\n"


def test_each_member_sees_each_image_once(photos, tmp_path, monkeypatch):
    """And what is made of that pass is what passes of its own would give, bit for bit."""
    shown, prepare = [], Teacher._prepare
    monkeypatch.setattr(
        Teacher, "_prepare", lambda self, images: shown.append((self.entry.id, len(images))) or prepare(self, images)
    )
    given = []
    monkeypatch.setattr(comparing, "leave_one_out", lambda features, labels: given.append(features) or labels > 0)
    folder = write_pool(tmp_path / "pool", 3)
    rows = compare(photos, pool=str(folder), shots=[1, 2], episodes=4)
    members = [ModelPool.from_dir(folder).load(index) for index in range(3)]
    assert sorted(name for name, count in shown if count == 15) == ["m-0", "m-1", "m-2"]
    images = to_unit(open_data(photos, "train", image_size=16).images)
    with torch.no_grad():
        features = [member.features(images) for member in members]
        answers = [member(images).softmax(-1) for member in members]
    expected = [features[0], torch.cat([F.normalize(part, dim=-1) for part in features], 1), torch.cat(answers, 1)]
    assert len(rows) == len(given) == 3 and all(map(torch.equal, given, expected))
