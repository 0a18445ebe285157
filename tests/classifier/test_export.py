"""ONNX: the same probabilities for any number of images, with the names of the classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_dfml import Classifier, MetaModel, ModelPool, adapt
from hf_dfml.classifier import export
from tests.classifier.conftest import CLASSES, labels, pictures
from tests.pool.members import write_pool


def answers_of(path: Path, images: torch.Tensor) -> tuple[np.ndarray, dict[str, str]]:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnxruntime")
    session = runtime.InferenceSession(path)
    return session.run(["probabilities"], {"images": images.numpy()})[0], session.get_modelmeta().custom_metadata_map


def exported(classifier: Classifier, path: Path) -> None:
    for name in export.NEEDED:
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'hf_dfml[onnx]'")
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    classifier.export_onnx(path)
    found, metadata = answers_of(path, images)
    np.testing.assert_allclose(found, classifier.predict_proba(images).numpy(), atol=1e-4)
    assert answers_of(path, images[:1])[0].shape == (1, 3)
    assert json.loads(metadata["classes"]) == CLASSES


@pytest.mark.parametrize(("head", "bn", "flips"), [("finetune", "support", False), ("prototype", "support", True)])
def test_onnxruntime_gives_the_same_probabilities(meta: MetaModel, tmp_path: Path, head, bn, flips) -> None:
    exported(meta.adapt(pictures(0, 2), labels(2), head=head, bn=bn, flips=flips), tmp_path / "out" / "m.onnx")


def test_all_members_in_one_file(tmp_path: Path) -> None:
    pool = ModelPool.from_dir(write_pool(tmp_path / "pool", 2))
    exported(adapt(pool, pictures(0, 2), labels(2), representation="answers"), tmp_path / "m.onnx")


def test_what_cannot_be_exported_is_said(meta: MetaModel, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ValueError, match="transductive"):
        meta.adapt(pictures(0, 2), labels(2), bn="transductive").export_onnx(tmp_path / "m.onnx")
    monkeypatch.setattr(export, "NEEDED", ("onnx", "no_such_package"))
    with pytest.raises(ModuleNotFoundError, match=r"no_such_package: pip install 'hf_dfml\[onnx\]'"):
        meta.adapt(pictures(0, 2), labels(2)).export_onnx(tmp_path / "m.onnx")
