"""A small meta-model, a stored classifier, and picture files, some of which cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_dfml import MetaModel
from tests.classifier.conftest import CLASSES, labels, make_meta, pictures


@pytest.fixture(scope="session")
def meta_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "my-meta"
    make_meta().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def classifier_folder(meta_folder: Path) -> Path:
    classifier = MetaModel.from_pretrained(meta_folder).adapt(pictures(0, 3), labels(3), head="prototype")
    classifier.leave_one_out()
    return classifier.save_pretrained(meta_folder.parent / "my-classifier", store_support=True)


@pytest.fixture
def photos(tmp_path: Path) -> dict[str, list[str]]:
    """Two files of each class, three of `new` (one of each class), and two of `bad` that cannot be read."""
    files: dict[str, list[str]] = {name: [] for name in CLASSES}
    for number, (name, picture) in enumerate(zip(labels(2), pictures(0, 2), strict=True)):
        files[name].append(str(tmp_path / f"{name}-{number}.png"))
        picture.save(files[name][-1])
    files["new"] = [str(tmp_path / f"new-{name}.png") for name in CLASSES]
    for file, picture in zip(files["new"], pictures(1), strict=True):
        picture.save(file)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 300)
    files["bad"] = [str(tmp_path / "broken.png"), str(tmp_path / "phone.heic")]
    return files
