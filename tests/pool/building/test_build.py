from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from hf_dfml.data.few_shot import FewShotDataset
from hf_dfml.pool import ModelPool
from hf_dfml.pool.building import training as member_training
from hf_dfml.pool.building.build import build_pool
from hf_dfml.pool.building.training import PoolRecipe, train_member

RECIPE = replace(PoolRecipe.fast(), epochs=3, batch_size=8, shift=1)
SETTINGS = {"arch": "conv4_16", "ways": 3, "recipe": RECIPE}


@pytest.fixture(scope="module")
def dataset() -> FewShotDataset:
    """Seven classes of ten noisy images, each class with a colour of its own."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(40, 216, (7, 3, 1, 1), generator=generator).repeat_interleave(10, 0)
    noise = torch.randint(-40, 40, (70, 3, 16, 16), generator=generator)
    names = tuple(f"colour-{index}" for index in range(7))
    labels = torch.arange(7).repeat_interleave(10)
    images = (colours + noise).to(torch.uint8)
    return FewShotDataset("colours", "train", images, labels, names, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def built(dataset, tmp_path_factory) -> ModelPool:
    return build_pool(dataset, output=tmp_path_factory.mktemp("pools") / "built", num_models=4, **SETTINGS)


def test_a_built_member_is_a_good_member(built, dataset):
    assert len(built) == 4 and all(entry.problem is None for entry in built)
    for entry in built:
        assert entry.dataset == "colours" and entry.input_size == (3, 16, 16) and entry.mean == dataset.mean
        assert [dataset.class_names[label] for label in entry.classes] == list(entry.label_names)
        assert len(set(entry.classes)) == 3
    assert len({entry.classes for entry in built}) > 1


def test_the_stored_accuracy_is_that_of_the_stored_weights(built, dataset):
    for index, entry in enumerate(built):
        teacher = built.load(index)
        right = [
            (teacher(dataset.by_class(name)[8:].float() / 255).argmax(1) == label).sum().item()
            for label, name in enumerate(teacher.class_names)
        ]
        assert entry.val_accuracy == pytest.approx(sum(right) / 6)


def test_plain_timm_loads_a_built_member(built):
    folder = built[0].location
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    pixels = torch.rand(2, 3, 16, 16)
    assert torch.equal(network(pixels), built.load(0).network(pixels))
    assert (folder / "README.md").read_text().startswith("---\nlibrary_name: timm\n")


def test_an_interrupted_build_ends_bit_for_bit_as_the_uninterrupted_one(built, dataset, tmp_path):
    complete = built[0].location.parent
    output = tmp_path / "built"
    build_pool(dataset, output=output, num_models=2, **SETTINGS)
    shutil.rmtree(output / "colours-conv4_16-000")
    partial = output / ".colours-conv4_16-002.partial"  # What a kill leaves behind.
    partial.mkdir()
    (partial / "config.json").write_text("{")
    torch.manual_seed(123)  # The global seed plays no part.
    pool = build_pool(dataset, output=output, num_models=4, **SETTINGS)
    assert [entry.id for entry in pool] == [entry.id for entry in built]
    assert bytes_of(output) == bytes_of(complete)


def test_finished_members_are_not_trained_again(built, dataset, monkeypatch):
    monkeypatch.setattr("hf_dfml.pool.building.build.train_member", None)
    again = build_pool(dataset, output=built[0].location.parent, num_models=4, **SETTINGS)
    assert list(again) == list(built)


def test_another_recipe_in_the_same_folder_is_refused(built, dataset):
    with pytest.raises(ValueError, match="was built with seed=0, not 1: give the settings"):
        build_pool(dataset, output=built[0].location.parent, num_models=4, seed=1, **SETTINGS)


def test_a_folder_of_another_split_or_of_other_classes_is_refused(built, dataset, monkeypatch):
    monkeypatch.setattr("hf_dfml.pool.building.build.train_member", None)
    test = replace(dataset, split="test")
    with pytest.raises(ValueError, match="was built with split='train', not 'test'"):
        build_pool(test, output=built[0].location.parent, num_models=4, **SETTINGS)
    others = replace(dataset, class_names=tuple(f"shade-{index}" for index in range(7)))
    with pytest.raises(ValueError, match=r"was built with classes=\['colour-.*, not \['shade-"):
        build_pool(others, output=built[0].location.parent, num_models=4, **SETTINGS)


def test_impossible_members_are_refused(dataset, tmp_path):
    with pytest.raises(ValueError, match=r"ways=8: data set 'colours' \(train\) has 7 classes"):
        build_pool(dataset, output=tmp_path, ways=8)
    scarce = replace(dataset, images=dataset.images[::10], labels=dataset.labels[::10])
    with pytest.raises(ValueError, match=r"Class 'colour-\d' of data set 'colours' has 1 images: too few"):
        build_pool(scarce, output=tmp_path, num_models=1, **SETTINGS)


def test_the_kept_weights_are_a_copy_of_the_best_epochs(dataset, monkeypatch):
    accuracies = iter([0.2, 0.9, 0.5, 0.9])
    states = []

    def scripted(network, *_, **__) -> float:
        states.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return next(accuracies)

    monkeypatch.setattr(member_training, "accuracy_of", scripted)
    network = timm.create_model("conv4_16", num_classes=2, img_size=16)
    data = (dataset.images[:20], dataset.labels[:20])
    scale = {"mean": dataset.mean, "std": dataset.std}
    train_member(network, data, data, **scale, recipe=RECIPE, generator=torch.Generator().manual_seed(0))
    kept = network.state_dict()
    assert all(torch.equal(kept[name], states[1][name]) for name in kept)
    assert not torch.equal(kept["fc.weight"], states[2]["fc.weight"])


def test_augmentation_shifts_and_mirrors_and_nothing_else():
    images = torch.arange(6 * 5 * 5 * 3, dtype=torch.uint8).view(6, 5, 5, 3)
    rows = torch.arange(6).repeat(20)
    generator = torch.Generator().manual_seed(0)

    def augmented(**changes) -> torch.Tensor:
        recipe = replace(PoolRecipe(), **changes)
        return member_training._augmented(images, rows, recipe, generator).permute(0, 2, 3, 1)

    assert torch.equal(augmented(), images[rows])
    mirrored = augmented(flip=True)
    same = (mirrored == images[rows]).flatten(1).all(1)
    flipped = (mirrored == images[rows].flip(2)).flatten(1).all(1)
    assert (same ^ flipped).all() and same.any() and flipped.any()
    # Shifting by up to 1 pixel with repeated edges: one of the nine windows of the padded image.
    padded = torch.nn.functional.pad(images.permute(0, 3, 1, 2).float(), (1, 1, 1, 1), mode="replicate")
    windows = [padded[:, :, y : y + 5, x : x + 5].permute(0, 2, 3, 1)[rows] for y in range(3) for x in range(3)]
    shifted = augmented(shift=1)
    matches = torch.stack([(shifted == window).flatten(1).all(1) for window in windows])
    assert (matches.sum(0) == 1).all() and matches.any(1).all()


def test_epochs_replace_those_of_the_recipe(dataset, tmp_path):
    pool = build_pool(dataset, output=tmp_path, num_models=1, epochs=1, **SETTINGS)
    config = json.loads((pool[0].location / "config.json").read_text())
    assert config["dfml"]["build"]["epochs"] == 1 and config["dfml"]["build"]["batch_size"] == RECIPE.batch_size


def test_published_recipes_are_those_of_the_papers():
    assert PoolRecipe() == PoolRecipe.published("conv4")
    conv4, resnet = PoolRecipe(), PoolRecipe.published("resnet10")
    assert (conv4.epochs, conv4.batch_size, conv4.optimizer, conv4.lr, conv4.clip) == (60, 128, "adam", 0.01, 50)
    assert (conv4.flip, conv4.shift, conv4.train_fraction) == (False, 0, 0.8)
    assert (resnet.optimizer, resnet.weight_decay, resnet.milestones) == ("sgd", 5e-4, (30, 50, 80))


def test_a_build_that_fails_leaves_nothing(dataset, tmp_path):
    for wrong, message in (
        ({"num_models": 0}, "num_models=0: a pool has at least one member"),
        ({"num_models": -1}, "num_models=-1"),
        ({"arch": "nonet"}, "Architecture 'nonet' is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            build_pool(dataset, output=tmp_path / "pools" / "new", **SETTINGS | wrong)
    assert not any(tmp_path.iterdir())
