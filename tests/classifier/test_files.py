"""Saved, published and loaded it answers the same; what is unsound is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from hf_dfml import Classifier, MetaModel, ModelPool, adapt
from hf_dfml.classifier import files
from hf_dfml.evaluation.heads import HEADS, Head
from hf_dfml.pool.entry import MemberError
from tests.classifier.conftest import labels, pictures
from tests.hub_server import HubServer
from tests.pool.members import write_pool

QUERIES = pictures(1, 2)
WAYS = [
    ("finetune", "support", False),
    ("finetune", "transductive", False),
    ("prototype", "support", True),
    ("prototype", "running", True),
    ("prototype", "transductive", True),
    ("linear", "running", False),
]


@pytest.mark.parametrize(("head", "bn", "flips"), WAYS)
def test_loaded_it_answers_bit_for_bit(meta: MetaModel, tmp_path: Path, head, bn, flips) -> None:
    classifier = meta.adapt(pictures(0, 2), labels(2), head=head, bn=bn, flips=flips)
    folder = classifier.save_pretrained(tmp_path / "mine")
    again = Classifier.from_pretrained(folder)
    assert torch.equal(again.predict_proba(QUERIES), classifier.predict_proba(QUERIES))
    assert (again.classes, again.how, again.size, again.shots) == (
        classifier.classes,
        classifier.how,
        (16, 16),
        (2, 2, 2),
    )
    assert again.origin == classifier.origin and again.origin.method == "TGR"
    assert again.support is None and not (folder / "support.safetensors").exists()
    assert oct((folder / "model.safetensors").stat().st_mode)[-3:] == "644"


def test_the_outcome_of_leave_one_out_is_kept(meta: MetaModel, tmp_path: Path) -> None:
    classifier = meta.adapt(pictures(0, 2), labels(2), head="prototype")
    unmeasured = Classifier.from_pretrained(classifier.save_pretrained(tmp_path / "mine"))
    with pytest.raises(ValueError, match="cannot be learnt again"):
        unmeasured.leave_one_out()
    assert "was not measured" in (tmp_path / "mine" / "README.md").read_text()
    found = classifier.leave_one_out()
    again = Classifier.from_pretrained(classifier.save_pretrained(tmp_path / "mine"))
    assert again.leave_one_out() == found
    assert f"**{found}**" in (tmp_path / "mine" / "README.md").read_text()


def test_labels_keep_their_kind(meta: MetaModel, tmp_path: Path) -> None:
    classifier = meta.adapt(pictures(0, 2), [7, 7, 3, 3, 5, 5])
    assert Classifier.from_pretrained(classifier.save_pretrained(tmp_path / "mine")).classes == (3, 5, 7)
    with pytest.raises(ValueError, match=r"Label \('a', 1\) is a tuple"):
        meta.adapt(pictures(0)[:2], [("a", 1), ("b", 1)]).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="Two classes have one name, '1'"):
        meta.adapt(pictures(0)[:2], [1, "1"]).save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists() and not list(tmp_path.glob(".*"))


def test_support_images_are_stored_on_demand(meta: MetaModel, tmp_path: Path) -> None:
    classifier = meta.adapt(pictures(0, 2), labels(2))
    again = Classifier.from_pretrained(classifier.save_pretrained(tmp_path / "mine", store_support=True))
    assert torch.equal(again.support, classifier.support) and torch.equal(again.ways, classifier.ways)
    assert load_file(tmp_path / "mine" / "support.safetensors")["images"].dtype == torch.uint8
    fine = meta.adapt(torch.rand(2, 3, 16, 16), ["a", "b"])
    again = Classifier.from_pretrained(fine.save_pretrained(tmp_path / "fine", store_support=True))
    assert torch.equal(again.support, fine.support), "pixels between two levels stay as they are"


def write_resnet(folder: Path) -> Path:
    """A tiny member of transformers with two classes."""
    import transformers

    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], id2label={0: "x", 1: "y"}
    )
    transformers.ResNetForImageClassification(config).eval().save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_no_file_says_where_a_member_of_transformers_lay(tmp_path: Path) -> None:
    classifier = adapt(write_resnet(tmp_path / "resnet"), pictures(0, 2), labels(2), head="finetune")
    # As transformers has it of a network that it read from a folder.
    classifier.network.config.name_or_path = str(tmp_path / "resnet")
    folder = classifier.save_pretrained(tmp_path / "mine")
    assert "_name_or_path" not in json.loads((folder / "config.json").read_text())
    for file in folder.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    again = Classifier.from_pretrained(folder)
    assert torch.equal(again.predict_proba(QUERIES), classifier.predict_proba(QUERIES))


def test_what_else_belongs_to_it_comes_from_the_hub_too(tmp_path: Path, hub: HubServer) -> None:
    classifier = adapt(write_resnet(tmp_path / "resnet"), pictures(0, 2), labels(2), head="finetune")
    classifier.push_to_hub("me/insects", store_support=True)
    again = Classifier.from_pretrained("me/insects")
    assert torch.equal(again.predict_proba(QUERIES), classifier.predict_proba(QUERIES))
    assert torch.equal(again.support, classifier.support)
    assert (
        "transformers reads it without `hf_dfml`"
        in hub.repos["me/insects"].at("main").files["README.md"].content.decode()
    )


def test_only_a_classifier_is_replaced(meta: MetaModel, tmp_path: Path) -> None:
    classifier = meta.adapt(pictures(0, 2), labels(2))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="notes holds something else than a classifier"):
        classifier.save_pretrained(tmp_path / "notes")
    meta.save_pretrained(tmp_path / "meta")
    with pytest.raises(FileExistsError):
        classifier.save_pretrained(tmp_path / "meta")
    classifier.save_pretrained(tmp_path / "mine", store_support=True)
    classifier.save_pretrained(tmp_path / "mine")
    assert not (tmp_path / "mine" / "support.safetensors").exists(), "nothing of the earlier one is mixed in"


def test_a_head_that_is_more_than_a_network_is_refused(meta: MetaModel, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(HEADS["prototype"], "as_network", Head.as_network)
    classifier = meta.adapt(pictures(0, 2), labels(2), head="prototype")
    assert classifier.predict(pictures(1)) == ["ant", "bee", "cow"]
    for keep in (classifier.save_pretrained, classifier.export_onnx):
        with pytest.raises(ValueError, match="as_network"):
            keep(tmp_path / "mine")


def test_unsound_folders_are_refused_in_one_line(meta: MetaModel, tmp_path: Path) -> None:
    folder = meta.adapt(pictures(0, 2), labels(2)).save_pretrained(tmp_path / "mine")
    good = json.loads((folder / "config.json").read_text())

    def refused(message: str, **changes) -> None:
        block = {**good[files.BLOCK], **changes}
        (folder / "config.json").write_text(json.dumps({**good, files.BLOCK: block}))
        with pytest.raises(MemberError, match=message):
            Classifier.from_pretrained(folder)

    refused("in format 2, this is .*install a newer version", format=2)
    for size in (None, [0, 0], [16], [16, 16.5], [16, 1 << 40]):
        refused("cannot be read: size is .* expected height and width of 1 to 4096 pixels", size=size)
    refused("cannot be read: head='nonsense'", how={**good[files.BLOCK]["how"], "head": "nonsense"})
    refused("has 2 classes but 3 outputs", classes=["ant", "bee"])
    refused("takes 'pixels' of a pool's members", seen="pixels")
    meta.save_pretrained(tmp_path / "meta")
    for name in (tmp_path / "meta", "zoo:cifar-fs"):
        remedy = f"{Path(name).name} is a meta-model, .*: `hf-dfml adapt {name} --support PHOTOS --save my-classifier`"
        with pytest.raises(MemberError, match=f"^{remedy} makes a classifier of it$"):
            Classifier.from_pretrained(name)
    member = write_pool(tmp_path / "pool", 1) / "m-0"
    with pytest.raises(MemberError, match="^m-0 is not a classifier: its config.json has no block"):
        Classifier.from_pretrained(member)
    with pytest.raises(FileNotFoundError, match="expected a classifier's folder or a Hub id"):
        Classifier.from_pretrained("./nowhere")


def test_published_and_loaded_it_answers_the_same(meta: MetaModel, hub: HubServer) -> None:
    classifier = meta.adapt(pictures(0, 2), labels(2), head="prototype")
    assert classifier.push_to_hub("me/insects").endswith("/me/insects")
    stored = hub.repos["me/insects"].at("main").files
    assert set(stored) - {".gitattributes"} == {"config.json", "model.safetensors", "README.md"}
    card = ModelCard(stored["README.md"].content.decode())
    assert 'from_pretrained("me/insects")' in card.text and "hf-hub:me/insects" in card.text
    again = Classifier.from_pretrained("me/insects")
    assert torch.equal(again.predict_proba(QUERIES), classifier.predict_proba(QUERIES))
    assert files.is_classifier("me/insects") and files.is_classifier("hf:me/insects")
    assert not files.is_classifier("hf:me/birds") and not files.is_classifier("dir:me/insects")


@pytest.mark.parametrize("count", [2, 11])
def test_all_members_are_stored_with_their_layer(tmp_path: Path, count: int) -> None:
    pool = ModelPool.from_dir(write_pool(tmp_path / "pool", count))
    classifier = adapt(pool, pictures(0, 2), labels(2))
    assert classifier.members.seen == ("features" if count < 10 else "answers")
    folder = classifier.save_pretrained(tmp_path / "mine")
    card = (folder / "README.md").read_text()
    assert card.count("\n- `m-") == count and card.count("<details>") == card.count("</details>") == (count > 10)
    works_with = "features" if count < 10 else "answers of the pool's members"
    assert f"| works with | {works_with} |" in card
    shutil.rmtree(tmp_path / "pool")
    folder = folder.rename(tmp_path / "moved")
    again = Classifier.from_pretrained(folder)
    assert torch.equal(again.predict_proba(QUERIES), classifier.predict_proba(QUERIES))
    assert again.origin.pool == tuple(entry.id for entry in pool)
    state = load_file(folder / "m-0" / "model.safetensors")
    save_file({name: value + 1 for name, value in state.items()}, folder / "m-0" / "model.safetensors")
    with pytest.raises(MemberError, match="m-0"):
        Classifier.from_pretrained(folder).predict(QUERIES)


def test_large_members_are_referred_to(tmp_path: Path, hub: HubServer, monkeypatch) -> None:
    monkeypatch.setattr(files, "SMALL", 1000)
    pool = ModelPool.from_dir(write_pool(tmp_path / "pool", 2))
    classifier = adapt(pool, pictures(0, 2), labels(2))
    folder = classifier.save_pretrained(tmp_path / "mine")
    assert not (folder / "m-0").exists()
    assert torch.equal(Classifier.from_pretrained(folder).predict_proba(QUERIES), classifier.predict_proba(QUERIES))
    with pytest.raises(ValueError, match="member m-0 is neither on the Hub nor small"):
        classifier.push_to_hub("me/both")
    assert hub.repos == {}, "refused before anything is made"
    shutil.rmtree(tmp_path / "pool")
    with pytest.raises(MemberError, match="^m-0 has no folder .* or beside the lock file$"):
        Classifier.from_pretrained(folder)


def test_a_published_classifier_on_members_brings_them(tmp_path: Path, hub: HubServer) -> None:
    pool = ModelPool.from_dir(write_pool(tmp_path / "pool", 2))
    classifier = adapt(pool, pictures(0, 2), labels(2))
    classifier.push_to_hub("me/both")
    shutil.rmtree(tmp_path / "pool")
    again = Classifier.from_pretrained("me/both")
    assert torch.equal(again.predict_proba(QUERIES), classifier.predict_proba(QUERIES))
    assert str(tmp_path) not in hub.repos["me/both"].at("main").files["pool.lock.json"].content.decode()


def test_a_second_push_leaves_nothing_of_the_first_and_all_of_others(
    meta: MetaModel, tmp_path: Path, hub: HubServer
) -> None:
    usual = {"config.json", "model.safetensors", "README.md"}

    def published() -> set[str]:
        return set(hub.repos["me/insects"].at("main").files) - {".gitattributes"}

    of_others = {"photos/support.safetensors.txt": b"mine", "m-2/model.safetensors": b"mine", "LICENSE": b"mine"}
    hub.add_repo("me/insects", of_others)
    classifier = meta.adapt(pictures(0, 2), labels(2))
    classifier.push_to_hub("me/insects", store_support=True)
    assert published() == usual | {"support.safetensors", *of_others}
    adapt(ModelPool.from_dir(write_pool(tmp_path / "pool", 2)), pictures(0, 2), labels(2)).push_to_hub("me/insects")
    members = {f"m-{index}/{name}" for index in range(2) for name in ("config.json", "model.safetensors")}
    assert published() == usual | {"pool.lock.json", *members, *of_others}
    classifier.push_to_hub("me/insects")
    assert published() == usual | set(of_others)
