"""A classifier's picture shows its support set, and other images as it classifies them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hf_dfml import Classifier, MetaModel
from hf_dfml.classifier import picture
from hf_dfml.classifier.picture import draw_features
from hf_dfml.cli import main
from tests.classifier.conftest import CLASSES, labels, pictures


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    """A folder of one picture of each class and a file that is none."""
    (tmp_path / "new").mkdir()
    for name, image in zip("abc", pictures(1), strict=True):
        image.save(tmp_path / "new" / f"{name}.png")
    (tmp_path / "new" / "d.png").write_bytes(b"nothing")
    return tmp_path / "new"


def test_support_and_answers_are_drawn(meta: MetaModel, queries: Path, tmp_path: Path, monkeypatch) -> None:
    classifier = meta.adapt(pictures(0, 2), labels(2), head="prototype", bn="running")
    seen: dict = {}

    def drawn(support, names, asked, path, **options):
        seen.update(support=support, names=names, asked=asked, **options)
        return path

    monkeypatch.setattr(picture, "feature_map", drawn)
    draw_features(classifier, tmp_path / "map.png", [queries])
    assert seen["names"] == labels(2) and seen["query_labels"] == CLASSES
    assert torch.equal(seen["support"], classifier.features(classifier.support))
    torch.testing.assert_close(seen["asked"], classifier.features(pictures(1)))
    assert seen["title"] == "6 example images (large) and 3 images as classified"
    draw_features(classifier, tmp_path / "map.png")
    assert seen["asked"].shape == (0, seen["support"].shape[1]) and seen["title"] == "6 example images (large)"


def test_a_stored_classifier_without_its_images_says_so(meta: MetaModel, tmp_path: Path) -> None:
    meta.adapt(pictures(0, 2), labels(2), head="prototype", bn="running").save_pretrained(tmp_path / "kept")
    with pytest.raises(ValueError, match="support images were not stored"):
        draw_features(Classifier.from_pretrained(tmp_path / "kept"), tmp_path / "map.png")


def test_adapt_draws_it(meta: MetaModel, queries: Path, tmp_path: Path, capsys) -> None:
    meta.save_pretrained(tmp_path / "meta")
    for index, (name, image) in enumerate(zip(labels(2), pictures(0, 2), strict=True)):
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "photos" / name / f"{index}.png")
    words = ["adapt", tmp_path / "meta", "--support", tmp_path / "photos", "--query", queries]
    with pytest.raises(SystemExit) as stop:
        main([*map(str, words), "--picture", str(tmp_path / "out" / "map.png")])
    assert not stop.value.code and (tmp_path / "out" / "map.png").stat().st_size > 5000
    assert f"Wrote the picture to {tmp_path / 'out' / 'map.png'}." in capsys.readouterr().err
