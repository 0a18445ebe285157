"""timm and transformers read a stored classifier: the right names, the same answers. A meta-model they refuse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from hf_dfml import Classifier, MetaModel
from tests.classifier.conftest import CLASSES, labels, make_meta, pictures

QUERIES = pictures(1, 2)
WAYS = [
    ("finetune", "support", False),
    ("prototype", "support", True),
    ("prototype", "running", True),
    ("linear", "running", False),
]


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: "-".join(map(str, way)))
def stored(request, tmp_path_factory, meta: MetaModel) -> tuple[Classifier, Path]:
    head, bn, flips = request.param
    classifier = meta.adapt(pictures(0, 2), labels(2), head=head, bn=bn, flips=flips)
    return classifier, classifier.save_pretrained(tmp_path_factory.mktemp("classifiers") / "mine")


def logits_of(network: torch.nn.Module) -> torch.Tensor:
    """By timm's own preprocessing, as its config says."""
    config = timm.data.resolve_data_config({}, model=network)
    transform = timm.data.create_transform(**config)
    with torch.no_grad():
        return network.eval()(torch.stack([transform(image) for image in QUERIES]))


def test_timm_gives_the_same_logits(stored: tuple[Classifier, Path]) -> None:
    classifier, folder = stored
    network = timm.create_model(f"local-dir:{folder}", pretrained=True)
    probabilities = logits_of(network).softmax(-1)
    torch.testing.assert_close(probabilities, classifier.predict_proba(QUERIES), rtol=0, atol=1e-5)
    assert network.pretrained_cfg["label_names"] == CLASSES


def test_transformers_answers_with_the_names(stored: tuple[Classifier, Path]) -> None:
    from transformers import pipeline

    classifier, folder = stored
    rows = pipeline("image-classification", model=str(folder))(QUERIES)
    found = torch.tensor([[{each["label"]: each["score"] for each in row}[name] for name in CLASSES] for row in rows])
    torch.testing.assert_close(found, classifier.predict_proba(QUERIES), rtol=0, atol=1e-5)


def test_a_fine_tuned_network_of_timms_needs_no_hf_dfml(tmp_path: Path) -> None:
    classifier = make_meta("resnet10t", 32).adapt(pictures(0, 2), labels(2), head="finetune", bn="support")
    folder = classifier.save_pretrained(tmp_path / "mine")
    program = f"""
import sys, timm, torch
from transformers import AutoModelForImageClassification
images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
network = timm.create_model("local-dir:{folder}", pretrained=True).eval()
model = AutoModelForImageClassification.from_pretrained("{folder}")
assert "hf_dfml" not in sys.modules and model.config.id2label == {dict(enumerate(CLASSES))}
with torch.no_grad():
    assert torch.allclose(network(images), model(images).logits, atol=1e-5)
    print(*network(images).flatten().tolist())
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    with torch.no_grad():
        expected = classifier.network(images).flatten()
    torch.testing.assert_close(torch.tensor([float(word) for word in found.stdout.split()]), expected)
    assert "read it without `hf_dfml`" in (folder / "README.md").read_text()


def test_what_other_libraries_would_get_wrong_they_refuse(meta: MetaModel, tmp_path: Path) -> None:
    from transformers import pipeline

    meta.save_pretrained(tmp_path / "meta")
    meta.adapt(pictures(0, 2), labels(2), bn="transductive").save_pretrained(tmp_path / "transductive")
    for name, kind in (("meta", "hf_dfml_meta_model"), ("transductive", "hf_dfml_transductive_classifier")):
        with pytest.raises(ValueError, match=f"model type `{kind}` but Transformers does not recognize"):
            pipeline("image-classification", model=str(tmp_path / name))
