"""The product: adapting to any classes, coming back from disk and from the Hub as it was, refusing what is unsound."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard, ModelHubMixin, constants
from PIL import Image
from safetensors.torch import load_file, save_file

from hf_dfml import Classifier, MetaModel
from hf_dfml.evaluation import Adaptation, Result
from hf_dfml.networks import create_network
from hf_dfml.pool import PoolEntry
from tests.hub_server import HubServer

SIZE = 16
SHA = "0123456789" * 4
ROW = Result(
    "TGR", "cifar-fs", 5, 1, "support", "finetune", 600, "accuracy", 38.5, 0.8, 0, "test", 12.5, "python x.py"
)


@pytest.fixture
def meta() -> MetaModel:
    """A meta-model of three outputs, with running statistics of its own; 0.1 is a rate at which it learns quickly."""
    generator = torch.Generator().manual_seed(1)
    network = create_network(
        "conv4_16", num_classes=3, image_size=SIZE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), generator=generator
    )
    with torch.no_grad():
        network.train()(torch.randn(32, 3, SIZE, SIZE, generator=generator))
    return MetaModel.of(
        network,
        method="TGR",
        method_config={"lr": 1e-3, "layers": [1, 2]},
        pool=[PoolEntry(id="local"), PoolEntry(id="org/a", revision=SHA)],
        dataset="cifar-fs",
        results=[ROW, replace(ROW, shots=5)],
        adapt=Adaptation(lr=0.1),
    )


def spots(classes: int, each: int, seed: int = 0) -> tuple[torch.Tensor, list[int]]:
    """`each` noisy images of each of `classes` patterns, which do not depend on `seed`."""
    patterns = torch.rand(classes, 1, 3, 4, 4, generator=torch.Generator().manual_seed(42))
    patterns = patterns.repeat_interleave(4, -1).repeat_interleave(4, -2)
    noise = 0.05 * torch.randn(classes, each, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    return (patterns + noise).clamp(0, 1).flatten(0, 1), torch.arange(classes).repeat_interleave(each).tolist()


def saved(meta: MetaModel, folder: Path) -> Path:
    meta.save_pretrained(folder)
    return folder


def accuracy(classifier: Classifier, images: torch.Tensor, labels: list) -> float:
    return sum(ours == label for ours, label in zip(classifier.predict(images), labels, strict=True)) / len(labels)


@pytest.mark.parametrize("head", ["finetune", "prototype", "linear"])
@pytest.mark.parametrize("bn", ["support", "running", "transductive"])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_any_number_of_classes_is_learnt(meta: MetaModel, head: str, bn: str, classes: int) -> None:
    classifier = meta.adapt(*spots(classes, 5), head=head, bn=bn, steps=20, lr=0.03)
    probabilities = classifier.predict_proba(spots(classes, 10, seed=1)[0])
    assert probabilities.shape == (10 * classes, classes)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(10 * classes))
    assert accuracy(classifier, *spots(classes, 10, seed=1)) >= 0.8


@pytest.mark.parametrize("head", ["finetune", "prototype", "linear"])
def test_one_image_a_class_is_enough_to_run(meta: MetaModel, head: str) -> None:
    images, labels = spots(4, 1)
    assert set(meta.adapt(images, labels, head=head).predict(spots(4, 3, seed=1)[0])) <= set(labels)


def test_labels_come_back_as_they_were_given(meta: MetaModel) -> None:
    images, labels = spots(2, 4)
    for names in (["wolf", "ant"], [7, 3], [(1, 2), None], [torch.float32, torch.int64]):
        classifier = meta.adapt(images, [names[label] for label in labels], head="prototype")
        assert classifier.predict(images) == [names[label] for label in labels]
    assert meta.adapt(images, ["wolf"] * 4 + ["ant"] * 4).classes == ("ant", "wolf")
    assert meta.adapt(images, torch.tensor([7] * 4 + [3] * 4)).classes == (3, 7)


def test_the_most_probable_classes_come_with_their_probabilities(meta: MetaModel) -> None:
    images, labels = spots(3, 4)
    classifier = meta.adapt(images, ["abc"[label] for label in labels], head="prototype")
    probabilities = classifier.predict_proba(images)
    for rows, count in ((classifier.top_k(images, 2), 2), (classifier.top_k(images), 3)):
        assert [len(row) for row in rows] == [count] * len(images)
        for row, expected, first in zip(rows, probabilities, classifier.predict(images), strict=True):
            assert row[0][0] == first and [value for _, value in row] == sorted(expected.tolist())[::-1][:count]
            assert all(expected["abc".index(name)].item() == value for name, value in row)
    with pytest.raises(ValueError, match="k=0: expected 1 or more"):
        classifier.top_k(images, 0)


def test_order_of_the_support_set_does_not_matter(meta: MetaModel) -> None:
    images, labels = spots(3, 3)
    queries = spots(3, 4, seed=1)[0]
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    straight = meta.adapt(images, labels).predict_proba(queries)
    shuffled = meta.adapt(images[order], [labels[index] for index in order]).predict_proba(queries)
    torch.testing.assert_close(straight, shuffled, rtol=1e-3, atol=1e-4)


def test_predictions_do_not_depend_on_what_else_is_asked_unless_transductive(meta: MetaModel) -> None:
    images, labels = spots(3, 3)
    queries = spots(3, 100, seed=1)[0]  # More than fit one batch.
    for bn, depends in (("support", False), ("running", False), ("transductive", True)):
        classifier = meta.adapt(images, labels, bn=bn)
        apart, together = classifier.predict_proba(queries[-2:]), classifier.predict_proba(queries)[-2:]
        assert ((apart - together).abs().max() > 1e-3) == depends, bn


def test_adapting_leaves_the_meta_model_as_it_was(meta: MetaModel) -> None:
    before = {name: value.clone() for name, value in meta.network.state_dict().items()}
    images, labels = spots(5, 2)
    first = meta.adapt(images, labels)
    expected = first.predict_proba(images)
    meta.adapt(images.flip(0), labels, bn="running")
    assert all(torch.equal(before[name], value) for name, value in meta.network.state_dict().items())
    assert torch.equal(first.predict_proba(images), expected)


def test_folders_of_pictures(meta: MetaModel, tmp_path: Path) -> None:
    images, labels = spots(2, 3)
    names = ["cat", "dog"]
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        pixels = (image * 255).round().byte()
        for folder in (tmp_path / "train" / names[label], tmp_path / "new"):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    classifier = meta.adapt(tmp_path / "train", head="prototype")
    assert classifier.classes == ("cat", "dog")
    assert classifier.predict(tmp_path / "new") == [names[label] for label in labels]


def test_grey_mixed_and_large_images(meta: MetaModel) -> None:
    support = [
        torch.zeros(1, 8, 8),
        Image.new("L", (40, 20), 0),
        torch.ones(3, 30, 9),
        Image.new("RGBA", (5, 5), "white"),
    ]
    classifier = meta.adapt(support, ["dark", "dark", "bright", "bright"], head="prototype", bn="running")
    assert classifier.predict([Image.new("RGB", (99, 99), "black"), torch.ones(1, 4, 4)]) == ["dark", "bright"]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.rand(3, 3, 8, 8), ["a", "b"], "3 images but 2 labels"),
        (torch.rand(2, 3, 8, 8), ["a", "a"], "of class 'a': a classifier needs at least two"),
        (torch.rand(2, 3, 8, 8), None, "Labels are missing"),
        (torch.rand(2, 2, 8, 8), ["a", "b"], "2 channels"),
        ([], [], "no images"),
    ],
)
def test_unusable_support_sets_are_refused(meta: MetaModel, images, labels, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        meta.adapt(images, labels)


def test_saved_and_loaded_it_is_the_same(meta: MetaModel, tmp_path: Path) -> None:
    folder = saved(meta, tmp_path / "model")
    again = MetaModel.from_pretrained(folder)
    assert again.config == meta.config
    state = again.network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in meta.network.state_dict().items())
    images, labels = spots(4, 2)
    expected = meta.adapt(images, labels).predict_proba(images)
    assert torch.equal(again.adapt(images, labels).predict_proba(images), expected)
    assert all(parameter.requires_grad for parameter in again.network.parameters())  # It may be trained further.


def test_timm_loads_the_folder(meta: MetaModel, tmp_path: Path) -> None:
    folder = saved(meta, tmp_path / "model")
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    pixels = torch.rand(2, 3, SIZE, SIZE)
    assert torch.equal(network(pixels), meta.network(pixels))
    assert tuple(network.pretrained_cfg["mean"]) == (0.4, 0.5, 0.6)


def test_config_tells_where_the_model_came_from(meta: MetaModel, tmp_path: Path) -> None:
    block = json.loads((saved(meta, tmp_path) / "config.json").read_text())["hf_dfml"]
    assert (block["method"], block["method_config"]) == ("TGR", {"lr": 1e-3, "layers": [1, 2]})
    assert block["pool"] == [{"id": "local", "revision": None}, {"id": "org/a", "revision": SHA}]
    adapt = {"bn": "support", "head": "finetune", "steps": 10, "lr": 0.1, "flips": False}
    assert block["adapt"] == adapt | {"representation": "features"}
    assert (block["dataset"], len(block["results"])) == ("cifar-fs", 2)


def test_a_model_of_an_earlier_version_whose_head_was_mirrored_is_read(meta: MetaModel, tmp_path: Path) -> None:
    folder = saved(meta, tmp_path / "old")
    change_config(folder, adapt={"bn": "running", "head": "mirrored", "steps": 10, "lr": 0.01})
    assert MetaModel.from_pretrained(folder).config.adapt == Adaptation(bn="running", head="prototype", flips=True)


def test_flips_are_taken_in_adapt_and_change_predictions(meta: MetaModel) -> None:
    images, labels = spots(3, 2)
    queries = spots(3, 5, seed=1)[0]
    both = [
        meta.adapt(images, labels, head="prototype", bn="running", flips=flips).predict_proba(queries)
        for flips in (False, True)
    ]
    assert not torch.allclose(*both)
    mirrored = meta.adapt(images.flip(-1), labels, head="prototype", bn="running", flips=True)
    torch.testing.assert_close(mirrored.predict_proba(queries), both[1])


def test_a_network_that_could_not_be_rebuilt_is_refused_when_it_is_made() -> None:
    network = create_network("conv4", num_classes=3, image_size=SIZE, width=8)
    with pytest.raises(ValueError, match="model_args"):
        MetaModel.of(network, method="TGR")
    assert MetaModel.of(network, method="TGR", model_args={"img_size": SIZE, "width": 8}).config.num_features == 8


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["hf_dfml"] |= changes
    path.write_text(json.dumps(content))


def test_unsound_models_are_refused_in_one_line(meta: MetaModel, tmp_path: Path) -> None:
    nan = saved(meta, tmp_path / "nan")
    state = load_file(nan / "model.safetensors")
    save_file({**state, "fc.bias": torch.full((3,), float("nan"))}, nan / "model.safetensors")
    other = saved(meta, tmp_path / "other")
    save_file({**state, "fc.bias": torch.zeros(4)}, other / "model.safetensors")
    cut = saved(meta, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-100])
    pickled = saved(meta, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    endless = saved(meta, tmp_path / "endless")
    change_config(endless, adapt={"bn": "support", "head": "finetune", "steps": 10**9, "lr": 0.1})
    headless = saved(meta, tmp_path / "headless")
    change_config(headless, adapt={"bn": "support", "head": "svm", "steps": 1, "lr": 0.1})
    rows = saved(meta, tmp_path / "rows")
    change_config(rows, results=[{"method": "x"}])
    plain = saved(meta, tmp_path / "plain")
    content = json.loads((plain / "config.json").read_text())
    del content["hf_dfml"]
    (plain / "config.json").write_text(json.dumps(content))
    for folder, message in (
        (nan, "NaN"),
        (other, "fc.bias is"),
        (cut, "damaged or cut off"),
        (pickled, "pickle"),
        (endless, "1000000000, at most"),
        (headless, "head='svm'"),
        (rows, "result rows"),
        (plain, "no block 'hf_dfml'"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            MetaModel.from_pretrained(folder)
        assert folder.name in str(caught.value) and "\n" not in str(caught.value)


def test_what_another_version_has_written_is_refused_with_a_sentence(meta: MetaModel, tmp_path: Path) -> None:
    for changes, message in (
        (
            {"format": 2, "version": "9.9"},
            r"was written by hf_dfml 9.9 in format 2. This is hf_dfml .* up to 1: install",
        ),
        ({"format": "new"}, "in format new"),
        ({"metod": "TGR"}, "has unknown keys: metod. Expected adapt, answers, dataset, format, method,"),
    ):
        folder = saved(meta, tmp_path / str(len(message)))
        change_config(folder, **changes)
        with pytest.raises(ValueError, match=message):
            MetaModel.from_pretrained(folder)


def test_a_model_from_before_formats_had_numbers_is_read(meta: MetaModel, tmp_path: Path) -> None:
    path = saved(meta, tmp_path) / "config.json"
    content = json.loads(path.read_text())
    assert content["hf_dfml"].pop("format") == 1
    path.write_text(json.dumps(content))
    assert MetaModel.from_pretrained(tmp_path).config == meta.config


def test_arrays_are_images_with_their_channels_last(meta: MetaModel) -> None:
    images, labels = spots(2, 3)
    pixels = (images * 255).round().byte()
    expected = meta.adapt(pixels, labels).predict_proba(pixels)
    arrays = pixels.permute(0, 2, 3, 1).numpy()
    classifier = meta.adapt(arrays, np.array(labels))
    assert classifier.classes == (0, 1) and torch.equal(classifier.predict_proba(arrays), expected)
    assert torch.equal(classifier.predict_proba(list(arrays)), expected)


def test_a_file_that_is_no_image_is_left_out_by_name(meta: MetaModel, tmp_path: Path, caplog) -> None:
    images, labels = spots(2, 2)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "ab"[label]
        folder.mkdir(exist_ok=True)
        Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    sound = meta.adapt(tmp_path).predict_proba(images)
    (tmp_path / "a" / "broken.png").write_bytes(b"no picture")
    assert torch.equal(meta.adapt(tmp_path).predict_proba(images), sound)
    assert "broken.png is not readable" in caplog.text
    for file in (tmp_path / "b").iterdir():
        file.write_bytes(b"no picture either")
    with pytest.raises(ValueError, match="Class 'b' has no readable image"):
        meta.adapt(tmp_path)


def test_they_say_what_they_are(meta: MetaModel) -> None:
    about = "conv4_16, 3x16x16, learnt from 2 members, head=finetune, bn=support"
    assert repr(meta) == f"MetaModel(TGR, {about})"
    classifier = meta.adapt(*spots(2, 1), head="prototype")
    assert repr(classifier) == "Classifier(2 classes: 0, 1; head=prototype, bn=support)"
    assert repr(meta.adapt(*spots(6, 1))).startswith("Classifier(6 classes: 0, 1, 2, 3, 4, ...; ")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_missing_folders_are_named(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere|a/b/c"):
        MetaModel.from_pretrained(name)


def test_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no meta-model"):
        MetaModel.from_pretrained(tmp_path)


def test_published_and_loaded_it_is_the_same(meta: MetaModel, hub: HubServer, tmp_path: Path) -> None:
    folder = saved(meta, tmp_path / "run")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "tree.safetensors").write_bytes(b"large and private")
    (folder / "pictures").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "pictures" / "recovered.png")
    url = meta.push_to_hub("org/tgr")
    assert url.endswith("/org/tgr")
    files = hub.repos["org/tgr"].at("main").files
    expected = {
        "config.json",
        "model.safetensors",
        "README.md",
        "pictures/recovered.png",
        ".eval_results/cifar-fs.yaml",
    }
    assert set(files) - {".gitattributes"} == expected
    card = ModelCard(files["README.md"].content.decode())
    assert 'from_pretrained("org/tgr")' in card.text and "this-repository" not in card.text
    for name in ("org/tgr", "org/tgr@main"):
        again = MetaModel.from_pretrained(name)
        assert again.config == meta.config
        state = again.network.state_dict()
        assert all(torch.equal(state[key], value) for key, value in meta.network.state_dict().items())


def test_config_and_weights_are_of_one_commit(meta: MetaModel, hub: HubServer) -> None:
    meta.push_to_hub("org/tgr")
    old = hub.repos["org/tgr"].at("main").sha
    with torch.no_grad():
        meta.network.fc.bias.add_(1)
    meta.push_to_hub("org/tgr")
    pinned, newest = MetaModel.from_pretrained("org/tgr", revision=old), MetaModel.from_pretrained("org/tgr")
    torch.testing.assert_close(newest.network.fc.bias, pinned.network.fc.bias + 1)
    before = len(hub.requests)
    MetaModel.from_pretrained(f"org/tgr@{old}")
    assert len(hub.requests) == before  # A commit that is in the cache costs no request.


def test_what_was_used_by_its_tag_is_found_offline(meta: MetaModel, hub: HubServer, monkeypatch) -> None:
    meta.push_to_hub("org/tgr")
    hub.repos["org/tgr"].tags["v1"] = hub.repos["org/tgr"].branches["main"]
    expected = MetaModel.from_pretrained("org/tgr", revision="v1").network.fc.bias
    with torch.no_grad():
        meta.network.fc.bias.add_(1)
    meta.push_to_hub("org/tgr")
    newest = MetaModel.from_pretrained("org/tgr").network.fc.bias
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(MetaModel.from_pretrained("org/tgr", revision="v1").network.fc.bias, expected)
    assert torch.equal(MetaModel.from_pretrained("org/tgr@v1").network.fc.bias, expected)
    assert torch.equal(MetaModel.from_pretrained("org/tgr").network.fc.bias, newest)


def test_a_public_repository_does_not_take_what_should_be_private(meta: MetaModel, hub: HubServer) -> None:
    meta.push_to_hub("org/tgr")
    with pytest.raises(ValueError, match="org/tgr exists and is public"):
        meta.push_to_hub("org/tgr", private=True)
    meta.push_to_hub("org/secret", private=True)
    assert hub.repos["org/secret"].private


def test_a_private_model_is_read_with_its_token_from_a_cache_of_ones_own(
    meta: MetaModel, hub: HubServer, tmp_path: Path, monkeypatch
) -> None:
    meta.push_to_hub("me/secret", private=True)
    monkeypatch.setenv("HF_TOKEN", "")
    here = {"cache_dir": tmp_path / "mine"}
    with pytest.raises(ValueError, match="me/secret is no repository on .*, or a private one"):
        MetaModel.from_pretrained("me/secret", **here)
    assert MetaModel.from_pretrained("me/secret", token=hub.token, **here).config == meta.config
    assert list((tmp_path / "mine").glob("models--me--secret/snapshots/*/model.safetensors"))
    sent = len(hub.requests)
    assert MetaModel.from_pretrained("me/secret", local_files_only=True, **here).config == meta.config
    assert len(hub.requests) == sent
    with pytest.raises(ValueError, match="is not in the local cache .* and HF_HUB_OFFLINE or local_files_only is set"):
        MetaModel.from_pretrained("me/secret", local_files_only=True)
    with pytest.raises(ValueError, match="force_download=True needs the Hub"):
        MetaModel.from_pretrained("me/secret", local_files_only=True, force_download=True)


def test_a_forced_download_takes_nothing_from_the_cache(meta: MetaModel, hub: HubServer) -> None:
    meta.push_to_hub("org/tgr")
    sha = hub.repos["org/tgr"].at("main").sha
    MetaModel.from_pretrained("org/tgr", revision=sha)
    before = len(hub.requests)
    MetaModel.from_pretrained("org/tgr", revision=sha)
    assert len(hub.requests) == before
    MetaModel.from_pretrained("org/tgr", revision=sha, force_download=True)
    assert sum("model.safetensors" in request.path for request in hub.requests[before:]) >= 1


def test_a_repository_without_a_config_is_named(hub: HubServer) -> None:
    hub.add_repo("org/empty", {"README.md": b"nothing yet"})
    with pytest.raises(ValueError, match="org/empty has no config.json"):
        MetaModel.from_pretrained("org/empty")


def test_it_is_saved_and_published_as_models_of_other_libraries_are(
    meta: MetaModel, hub: HubServer, tmp_path: Path
) -> None:
    assert isinstance(meta, ModelHubMixin) and meta._hub_mixin_info.model_card_data.library_name == "hf-dfml"
    meta.save_pretrained(tmp_path / "tgr", push_to_hub=True, repo_id="org/tgr")
    card = ModelCard(hub.repos["org/tgr"].at("main").files["README.md"].content.decode())
    assert card.data.library_name == "hf-dfml" and {"hf-dfml", "hf_dfml"} <= set(card.data.tags)
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / "tgr" / name).stat().st_mode & 0o777 == 0o644
    assert meta.folder == tmp_path / "tgr"


def test_unknown_repository_is_named(hub: HubServer) -> None:
    with pytest.raises(ValueError, match="org/none is no repository.*there is no folder of that name"):
        MetaModel.from_pretrained("org/none")


def test_a_name_that_cannot_be_looked_for_may_be_a_folder_mistyped() -> None:
    with pytest.raises(ConnectionError, match="There is no folder runs/qickstart, and the Hub .* be reached to look"):
        MetaModel.from_pretrained("runs/qickstart")


def test_a_second_push_leaves_nothing_of_the_first(meta: MetaModel, hub: HubServer, tmp_path: Path) -> None:
    folder = saved(meta, tmp_path / "run")
    (folder / "pictures").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "pictures" / "recovered.png")
    (folder / "pool.lock.json").write_text('{"members": []}')
    (folder / "results.json").write_text("[]")
    (folder / "support.safetensors").write_bytes(b"photos")
    of_others = {"notes.md": b"mine", "pictures/logo.png": b"mine", ".eval_results/imagenet-by-other.yaml": b"theirs"}
    hub.add_repo("org/tgr", {"support.safetensors": b"photos", **of_others})
    meta.push_to_hub("org/tgr")
    assert {".eval_results/cifar-fs.yaml", "pool.lock.json", "results.json", "pictures/recovered.png"} <= set(
        hub.repos["org/tgr"].at("main").files
    )
    MetaModel.of(meta.network, method="DRO").push_to_hub("org/tgr")
    files = hub.repos["org/tgr"].at("main").files
    assert set(files) - {".gitattributes"} == {"config.json", "model.safetensors", "README.md", *of_others}


def test_what_was_loaded_from_the_hub_and_pushed_back_loses_nothing(meta: MetaModel, hub: HubServer) -> None:
    """Of a repository config and weights are fetched; what was not fetched is no sign that it is to be deleted."""
    beside = {"results.json": b"[]", "pool.lock.json": b'{"members": []}', "pictures/recovered.png": b"png"}
    meta.push_to_hub("org/tgr")
    hub.add_repo("org/tgr", beside)
    MetaModel.from_pretrained("org/tgr").push_to_hub("org/tgr")
    assert beside.keys() <= hub.repos["org/tgr"].at("main").files.keys()
