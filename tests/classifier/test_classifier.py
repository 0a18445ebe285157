"""What a classifier says of itself: leave-one-out, evaluation, none of these."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hf_dfml import Classifier, MetaModel, adapt
from hf_dfml.classifier import classifier as classifier_module
from hf_dfml.evaluation.heads.icfil import ICFIL, ICFILConfig
from hf_dfml.networks import create_network
from hf_dfml.networks.functional import BatchNorm, functional_forward
from hf_dfml.utils import inputs
from hf_dfml.utils.images import read_image
from hf_dfml.utils.inputs import as_batch
from tests.classifier.conftest import CLASSES, labels, pictures
from tests.pool.members import write_pool


def test_its_network_answers_as_its_head_does(meta: MetaModel) -> None:
    queries = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for head, flips in (("finetune", False), ("prototype", False), ("prototype", True), ("linear", True)):
        for bn in ("support", "running", "transductive"):
            classifier = meta.adapt(pictures(0, 3), labels(3), head=head, bn=bn, flips=flips)  # type: ignore[arg-type]
            fitted, adapted = classifier.fitted
            with torch.no_grad():
                expected = fitted.logits(adapted, classifier.support, queries).softmax(-1)
            torch.testing.assert_close(classifier.predict_proba(queries), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("head", "bn"), [("prototype", "running"), ("prototype", "support"), ("finetune", "support")])
def test_leaving_one_out_is_learning_from_the_others(meta: MetaModel, head: str, bn: str) -> None:
    images, names = pictures(3, 3), ["ant", "bee", "bee", "bee", "cow", "ant", "ant", "cow", "bee"]  # Some are wrong.
    found = 0
    for row, image in enumerate(images):
        others = [images[i] for i in range(9) if i != row], [names[i] for i in range(9) if i != row]
        found += meta.adapt(*others, head=head, bn=bn).predict([image]) == [names[row]]  # type: ignore[arg-type]
    assert meta.adapt(images, names, head=head, bn=bn).leave_one_out() == (found, 9)  # type: ignore[arg-type]
    assert found < 9


def test_images_alone_in_their_class_are_not_left_out(meta: MetaModel) -> None:
    images = pictures(0, 3)
    classifier = meta.adapt([*images[:6], images[6]], [*labels(3)[:6], "cow"], head="prototype")
    assert classifier.leave_one_out().total == 6
    with pytest.raises(ValueError, match="Each class has one image"):
        meta.adapt(pictures(0), labels()).leave_one_out()
    with pytest.raises(ValueError, match="transductive"):
        meta.adapt(images, labels(3), bn="transductive").leave_one_out()


def test_accuracy_on_other_images(meta: MetaModel) -> None:
    classifier = meta.adapt(pictures(0, 3), labels(3), head="prototype", bn="running")
    assert classifier.evaluate(pictures(1, 4), labels(4)) == (12, 12)
    assert classifier.evaluate(pictures(1), ["bee", "ant", "cow"]) == (1, 3)
    with pytest.raises(ValueError, match="Label 'cat' is not one of the classifier's 3: 'ant', 'bee', 'cow'"):
        classifier.evaluate(pictures(1), ["cat", "ant", "cow"])


@pytest.mark.parametrize("bn", ["running", "transductive"])
def test_no_more_images_are_decoded_at_once_than_are_answered_at_once(
    meta: MetaModel, tmp_path: Path, monkeypatch, bn: BatchNorm
) -> None:
    """But where all queries give the statistics; a file that cannot be read makes no batch smaller."""
    classifier = meta.adapt(pictures(0, 3), labels(3), head="prototype", bn=bn)
    for number, (name, picture) in enumerate(zip(labels(3), pictures(1, 3), strict=True)):
        for file in (tmp_path / "test" / name / f"{number}.png", tmp_path / "all" / f"{number}.png"):
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.save(file)
    for folder in ("test/bee", "all"):
        (tmp_path / folder / "35.png").write_bytes(b"no image")
    files = sorted(tmp_path.glob("all/?.png"))
    at_once = 9 if bn == "transductive" else 4
    whole = as_batch(files, (16, 16))
    expected = torch.cat([classifier.predict_proba(part) for part in whole.split(at_once)])
    features = torch.cat([classifier.features(part) for part in whole.split(at_once)])
    monkeypatch.setattr(classifier_module, "QUERIES_AT_ONCE", 4)
    decoded, answered = [], []

    def read(*given, **options):
        image = read_image(*given, **options)
        decoded.append(image)
        return image

    def answer(queries, features):
        answered.append(len(decoded))
        decoded.clear()
        return Classifier._of(classifier, queries, features)

    monkeypatch.setattr(inputs, "read_image", read)
    monkeypatch.setattr(classifier, "_of", answer)

    def most() -> int:
        found = max(answered)
        assert sum(answered) == 9 and not decoded
        answered.clear()
        return found

    for images in (tmp_path / "all", files, np.array([str(file) for file in files])):
        assert torch.equal(classifier.predict_proba(images), expected) and most() == at_once
    assert torch.equal(classifier.features(files), features) and most() == at_once
    assert len(classifier.nearest(files, 1)) == 9 and most() == at_once
    right = sum(CLASSES[way] == name for way, name in zip(expected.argmax(1).tolist(), labels(3), strict=True))
    assert classifier.evaluate(tmp_path / "test") == (right, 9) and most() == at_once
    assert classifier.evaluate(files, labels(3)) == (right, 9) and most() == at_once
    with pytest.raises(ValueError, match="Label 'cat' is not one"):
        classifier.evaluate(files, [*labels(3)[:8], "cat"])
    with pytest.raises(ValueError, match="There are 9 images but 3 labels"):
        classifier.evaluate(files, labels())
    assert not decoded, "labels are compared before the first image is decoded"


def test_moving_it_leaves_the_meta_model_where_it_is(meta: MetaModel) -> None:
    classifier = meta.adapt(pictures(0, 3), labels(3), head="prototype")
    assert classifier.to("meta").device.type == "meta"
    assert {value.device.type for value in meta.network.state_dict().values()} == {"cpu"}


def test_none_of_these_below_a_threshold(meta: MetaModel) -> None:
    classifier = meta.adapt(pictures(0, 3), labels(3), head="prototype")
    best = classifier.predict_proba(pictures(1)).amax(1)
    threshold = (best.min().item() + best.max().item()) / 2
    expected = [name if value >= threshold else None for name, value in zip(CLASSES, best.tolist(), strict=True)]
    assert classifier.predict(pictures(1), threshold=threshold) == expected
    assert None in expected and classifier.predict(pictures(1)) == CLASSES


def test_the_nearest_support_images(meta: MetaModel, tmp_path: Path) -> None:
    """By the cosine of features; an image of the support set is nearest to itself, also after it was stored."""
    queries = pictures(1)
    classifier = meta.adapt(pictures(0, 2), labels(2), head="finetune", bn="running")
    itself = classifier.nearest(pictures(0, 2), 1)
    assert [row for [(row, _)] in itself] == list(range(6)) and min(value for [(_, value)] in itself) > 0.999
    features = [
        functional_forward(classifier.network, {}, batch, source="running", features=True)
        for batch in (as_batch(queries, (16, 16)), classifier.support)
    ]
    cosines = torch.cosine_similarity(features[0][:, None], features[1][None], dim=-1)
    for row, ours in zip(cosines, classifier.nearest(queries, 2), strict=True):
        assert [index for index, _ in ours] == row.topk(2).indices.tolist()
        assert [value for _, value in ours] == pytest.approx(row.topk(2).values.tolist(), abs=1e-5)
    stored = classifier.save_pretrained(tmp_path / "with", store_support=True)
    again = Classifier.from_pretrained(stored).nearest(queries, 99)
    assert len(again[0]) == 6 and again[0][0][0] == classifier.nearest(queries, 1)[0][0][0]
    bare = Classifier.from_pretrained(classifier.save_pretrained(tmp_path / "without"))
    with pytest.raises(ValueError, match="support images were not stored"):
        bare.nearest(queries)
    with pytest.raises(ValueError, match="^k=0: expected 1 or more"):
        classifier.nearest(queries, 0)


def test_nearest_of_all_members_and_of_heads_on_features(meta: MetaModel, tmp_path: Path) -> None:
    for classifier in (
        meta.adapt(pictures(0, 2), labels(2), head="prototype", flips=True),
        adapt(write_pool(tmp_path / "pool", 3), pictures(0, 2), labels(2)),
    ):
        assert [row for [(row, _)] in classifier.nearest(pictures(0, 2), 1)] == list(range(6))


@pytest.mark.parametrize("head", ["finetune", "prototype", "linear", "icfil"])
def test_inference_mode_changes_nothing(head, monkeypatch):
    """A support set and a network that were made in it have tensors of which PyTorch takes no gradients."""
    monkeypatch.setattr(ICFIL, "Options", staticmethod(lambda: ICFILConfig(recovery_steps=2)))

    def of():
        network = create_network("conv4_16", num_classes=2, image_size=16, generator=torch.Generator().manual_seed(0))
        images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        return MetaModel.of(network, method="test"), images

    meta, images = of()
    expected = meta.adapt(images, [0, 0, 1, 1], head=head, steps=2).predict_proba(images)
    with torch.inference_mode():
        there = of()
        classifier = there[0].adapt(there[1], [0, 0, 1, 1], head=head, steps=2)
        torch.testing.assert_close(classifier.predict_proba(there[1]), expected)
        classifier.leave_one_out()
    afterwards = there[0].adapt(there[1], [0, 0, 1, 1], head=head, steps=2)
    torch.testing.assert_close(afterwards.predict_proba(images), expected)


def test_one_query_that_has_no_statistics_of_its_own_is_refused():
    """Where the network comes down to one position, a batch of one image has no variance."""
    network = create_network("resnet18", num_classes=2, image_size=32, generator=torch.Generator().manual_seed(0))
    classifier = MetaModel.of(network, method="test").adapt(torch.rand(2, 3, 32, 32), [0, 1], bn="transductive")
    with pytest.raises(ValueError, match="bn='transductive' takes its statistics from all queries together"):
        classifier.predict_proba(torch.rand(1, 3, 32, 32))
    assert classifier.predict_proba(torch.rand(2, 3, 32, 32)).shape == (2, 2)
