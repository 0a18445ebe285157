"""A meta-model, a member and all members are adapted in the same words; scikit-learn takes the estimator."""

from __future__ import annotations

from dataclasses import fields
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_dfml import Classifier, FewShotClassifier, MetaModel, ModelPool, adapt
from hf_dfml.classifier.files import is_classifier
from hf_dfml.evaluation.heads import Adaptation, class_means
from tests.classifier.conftest import CLASSES, labels, make_meta, pictures
from tests.hub_server import HubServer
from tests.pool.members import write_member, write_pool

QUERIES = pictures(1, 2)


@pytest.fixture
def pool(tmp_path: Path) -> ModelPool:
    return ModelPool.from_dir(write_pool(tmp_path / "pool", 3))


def test_each_is_adapted_by_its_name_and_by_itself(pool: ModelPool, tmp_path: Path) -> None:
    meta = make_meta()
    meta.save_pretrained(tmp_path / "meta")
    support = pictures(0, 2), labels(2)
    for named, given, kind in (
        (tmp_path / "meta", meta, "meta-model"),
        (tmp_path / "pool" / "m-1", pool.load("m-1"), "member"),
        (tmp_path / "pool", pool, "pool"),
    ):
        by_name, by_itself = adapt(named, *support), adapt(given, *support)
        assert by_name.origin.kind == by_itself.origin.kind == kind
        assert torch.equal(by_name.predict_proba(QUERIES), by_itself.predict_proba(QUERIES))
        assert by_name.origin.name == Path(named).name, "of a folder's path the world need not know more"
    assert adapt(pool[:1], *support).origin.name == "m-0"
    both = f"dir:{tmp_path / 'pool' / 'm-0'},{tmp_path / 'pool' / 'm-2'}"
    assert adapt(both, *support).origin.name == "dir:m-0,m-2"


@pytest.mark.parametrize("named", ["{hub}/{id}", "{hub}/{id}/tree/v1", "https://huggingface.co/{id}", "hf-hub:{id}"])
def test_the_address_of_a_page_names_a_meta_model_and_a_classifier(hub: HubServer, named: str) -> None:
    meta = make_meta()
    meta.push_to_hub("me/tgr")
    classifier = meta.adapt(pictures(0, 2), labels(2))
    classifier.push_to_hub("me/insects")
    for repo in hub.repos.values():
        repo.tags["v1"] = repo.branches["main"]
    address = named.format(hub=hub.url, id="me/tgr")
    assert torch.equal(MetaModel.from_pretrained(address).network.fc.bias, meta.network.fc.bias)
    by_address = adapt(address, pictures(0, 2), labels(2))
    assert by_address.origin.name == "me/tgr" and not is_classifier(address)
    assert torch.equal(by_address.predict_proba(QUERIES), classifier.predict_proba(QUERIES))
    address = named.format(hub=hub.url, id="me/insects")
    assert is_classifier(address) and Classifier.from_pretrained(address).classes == classifier.classes


@pytest.mark.parametrize("representation", ["features", "answers"])
def test_all_members_side_by_side(pool: ModelPool, representation) -> None:
    classifier = adapt(pool, pictures(0, 2), labels(2), representation=representation)

    def seen(images: torch.Tensor) -> torch.Tensor:
        if representation == "features":
            parts = [F.normalize(teacher.features(images), dim=-1) for teacher in pool.stream()]
        else:
            parts = [teacher(images).softmax(-1) for teacher in pool.stream()]
        return F.normalize(torch.cat(parts, -1), dim=-1)

    means = class_means(seen(classifier.support), classifier.ways, 3)
    queries = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = (10 * seen(queries) @ F.normalize(means, dim=-1).T).softmax(-1)
    torch.testing.assert_close(classifier.predict_proba(queries), expected)


def test_few_members_show_features_and_many_answers(pool: ModelPool, tmp_path: Path) -> None:
    support = pictures(0, 2), labels(2)
    assert adapt(pool, *support).members.seen == "features"
    assert adapt(pool.as_black_box(), *support).members.seen == "answers"
    many = ModelPool.from_dir(write_pool(tmp_path / "many", 10))
    assert adapt(many, *support).members.seen == "answers"
    with pytest.raises(ValueError, match="Black boxes show no features"):
        adapt(pool.as_black_box(), *support, representation="features")


def test_black_boxes_answer_as_their_models_do(pool: ModelPool, tmp_path: Path) -> None:
    support = pictures(0, 2), labels(2)
    boxes = adapt(pool.as_black_box("probs"), *support)
    seen = adapt(pool, *support, representation="answers")
    torch.testing.assert_close(boxes.predict_proba(QUERIES), seen.predict_proba(QUERIES))
    again = Classifier.from_pretrained(boxes.save_pretrained(tmp_path / "mine"))
    torch.testing.assert_close(again.predict_proba(QUERIES), seen.predict_proba(QUERIES))


def test_a_member_that_cannot_be_used_is_left_out(pool: ModelPool, tmp_path: Path, caplog) -> None:
    write_member(tmp_path / "pool" / "m-9", architecture="conv5")
    classifier = adapt(tmp_path / "pool", pictures(0, 2), labels(2))
    assert classifier.origin.pool == ("m-0", "m-1", "m-2") and "m-9" in caplog.text


def test_a_member_can_be_fine_tuned_and_a_pool_cannot(pool: ModelPool) -> None:
    support = pictures(0, 2), labels(2)
    assert adapt(pool.load(0), *support, head="finetune", bn="support", lr=0.1).predict(pictures(1)) == CLASSES
    with pytest.raises(ValueError, match="head='finetune' adapts one network, and this is a pool of 3 members"):
        adapt(pool, *support, head="finetune")
    with pytest.raises(ValueError, match="bn='support': the members of a pool normalise by their own"):
        adapt(pool, *support, bn="support")


def test_a_member_of_transformers(tmp_path: Path) -> None:
    import transformers

    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        id2label={0: "cat", 1: "dog"},
        label2id={"cat": 0, "dog": 1},
    )
    folder = tmp_path / "pool" / "resnet"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.ResNetForImageClassification(config).eval().save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    for head in ("prototype", "finetune"):
        classifier = adapt(tmp_path / "pool", pictures(0, 2), labels(2), head=head)
        assert classifier.size == (32, 32)
        again = Classifier.from_pretrained(classifier.save_pretrained(tmp_path / head))
        assert torch.equal(again.predict_proba(QUERIES), classifier.predict_proba(QUERIES))
    rows = transformers.pipeline("image-classification", model=str(tmp_path / "finetune"))(QUERIES)
    found = torch.tensor([[{each["label"]: each["score"] for each in row}[name] for name in CLASSES] for row in rows])
    torch.testing.assert_close(found, again.predict_proba(QUERIES), rtol=0, atol=1e-4)


def test_scikit_learn_takes_the_estimator(pool: ModelPool) -> None:
    from sklearn.base import clone, is_classifier
    from sklearn.model_selection import GridSearchCV, cross_val_score

    images, names = np.stack([np.asarray(picture) for picture in pictures(0, 4)]), np.array(labels(4))
    estimator = FewShotClassifier(pool.load(0))
    assert is_classifier(estimator)
    scores = cross_val_score(estimator, images, names, cv=4)
    assert scores.shape == (4,) and scores.mean() > 0.9
    search = GridSearchCV(FewShotClassifier(pool), {"head": ["prototype", "linear"]}, cv=2).fit(images, names)
    assert (
        search.best_estimator_.predict(np.stack([np.asarray(picture) for picture in pictures(1)])).tolist() == CLASSES
    )
    copied = clone(estimator.set_params(flips=True))
    assert copied.get_params() == estimator.get_params() and copied.model is estimator.model
    with pytest.raises(ValueError, match="'depth' is not a parameter: expected model, head"):
        estimator.set_params(depth=3)


def test_its_answers_are_those_of_the_classifier() -> None:
    meta = make_meta()
    estimator = FewShotClassifier(meta, head="prototype").fit(pictures(0, 2), labels(2))
    assert estimator.classes_.tolist() == CLASSES
    expected = meta.adapt(pictures(0, 2), labels(2), head="prototype").predict_proba(QUERIES)
    np.testing.assert_array_equal(estimator.predict_proba(QUERIES), expected.numpy())
    assert estimator.score(QUERIES, labels(2)) == np.mean(estimator.predict(QUERIES) == np.array(labels(2)))


def test_how_to_adapt_is_said_in_the_same_words_everywhere() -> None:
    """The arguments of each are the fields of `Adaptation`, so that none can be forgotten in one place."""
    words = {each.name for each in fields(Adaptation)}
    assert set(signature(MetaModel.adapt).parameters) - {"self", "images", "labels"} == words
    assert set(signature(adapt).parameters) - {"model", "images", "labels", "device", "hub"} == words
    assert set(signature(FewShotClassifier).parameters) - {"model"} == words
    assert list(FewShotClassifier("m").get_params()) == list(signature(FewShotClassifier).parameters)
