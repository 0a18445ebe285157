"""Members that are fine-tuned from a public network: a tiny random one that lies in a folder."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from hf_dfml.data.few_shot import FewShotDataset
from hf_dfml.networks import create_network
from hf_dfml.pool import ModelPool
from hf_dfml.pool.backbone import open_backbone, started_from
from hf_dfml.pool.building.build import build_pool
from hf_dfml.pool.building.training import PoolRecipe
from hf_dfml.pool.building.writing import member_config, write_member

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
RECIPE = replace(PoolRecipe.fine_tuning(), epochs=6, batch_size=8, lr=0.01)
HEAD = ("fc.weight", "fc.bias")


@pytest.fixture(scope="module")
def dataset() -> FewShotDataset:
    """Eight classes of ten noisy images of 32 pixels, each class with a colour of its own."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(20, 236, (8, 3, 1, 1), generator=generator).repeat_interleave(10, 0)
    noise = torch.randint(-20, 20, (80, 3, 32, 32), generator=generator)
    names = tuple(f"colour-{index}" for index in range(8))
    labels = torch.arange(8).repeat_interleave(10)
    return FewShotDataset("colours", "train", (colours + noise).to(torch.uint8), labels, names, (0.4,) * 3, (0.3,) * 3)


def backbone(folder, arch: str = "resnet10t", **args):
    network = create_network(arch, num_classes=7, image_size=32, generator=torch.Generator().manual_seed(1), **args)
    names = [f"n{index:08d}" for index in range(7)]
    write_member(folder, network, member_config(network, arch, names, image_size=32, mean=MEAN, std=STD))
    return folder


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    return backbone(tmp_path_factory.mktemp("backbones") / "public")


def test_a_network_that_was_resized_once_is_resized_again(tmp_path):
    """A transformer that says its image size among its arguments takes no other by itself."""
    arch, generator = "vit_tiny_patch16_224", torch.Generator().manual_seed(0)
    args = {"img_size": 32, "embed_dim": 8, "depth": 1, "num_heads": 1, "patch_size": 8}
    network = create_network(arch, num_classes=7, image_size=32, generator=generator, **args)
    names = [f"n{index}" for index in range(7)]
    config = member_config(network, arch, names, image_size=32, mean=MEAN, std=STD, model_args=args)
    write_member(tmp_path / "vit", network, config)
    start = open_backbone(str(tmp_path / "vit"))
    network = started_from(start, num_classes=3, image_size=64, generator=generator)
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 3)


@pytest.mark.parametrize("trained", ["head", "last_stage", "all"])
def test_what_is_not_trained_is_the_backbones(public, dataset, tmp_path, trained):
    pool = build_pool(
        dataset,
        output=tmp_path,
        num_models=2,
        ways=(2, 4),
        backbone=str(public),
        trained=trained,
        recipe=RECIPE,
    )
    start = open_backbone(str(public)).network.state_dict()
    assert {entry.num_classes for entry in pool} <= {2, 3, 4}
    for index, entry in enumerate(pool):
        assert entry.id == f"colours-resnet10t-{trained}-{index:03d}" and entry.mean == MEAN and entry.std == STD
        weights = pool.load(index).network.state_dict()
        changed = {name for name in start if name not in HEAD and not torch.equal(weights[name], start[name])}
        stages = {name.rpartition("layer")[2][0] if name.startswith("layer") else "stem" for name in changed}
        assert stages == {"head": set(), "last_stage": {"4"}, "all": {"stem", "1", "2", "3", "4"}}[trained]
        # The stored accuracy is that of the stored weights on the images that were held out.
        teacher = pool.load(index)
        right = [
            (teacher(dataset.by_class(name)[8:]).argmax(1) == label).float().mean().item()
            for label, name in enumerate(entry.class_names)
        ]
        assert entry.val_accuracy == pytest.approx(sum(right) / len(right)) and entry.val_accuracy > 0.6
    build = json.loads((pool[0].location / "config.json").read_text())["dfml"]["build"]
    assert build["from"] == "public" and build["trained"] == trained
    assert "Fine-tuned from `public`" in (pool[0].location / "README.md").read_text()
    # The same command goes on, and one with another part trained makes members of its own.
    again = build_pool(
        dataset, output=tmp_path, num_models=2, ways=(2, 4), backbone=str(public), trained=trained, recipe=RECIPE
    )
    assert [entry.id for entry in again] == [entry.id for entry in pool]


def test_a_transformer_is_fine_tuned_at_another_size(dataset, tmp_path):
    where = backbone(tmp_path / "vit", "vit_tiny_patch16_224", depth=2, embed_dim=12, patch_size=8)
    # Its arguments are not those of its name: noted by hand, as a user's own network has them in its config.
    config = json.loads((where / "config.json").read_text())
    config["model_args"] = {"depth": 2, "embed_dim": 12, "patch_size": 8}
    (where / "config.json").write_text(json.dumps(config))
    large = replace(dataset, images=dataset.images.repeat_interleave(2, 2).repeat_interleave(2, 3))
    pool = build_pool(
        large, output=tmp_path / "pool", num_models=1, ways=2, backbone=str(where), trained="last_stage", recipe=RECIPE
    )
    assert pool[0].input_size == (3, 64, 64) and pool.check(0) is None
    assert pool.load(0)(torch.rand(2, 3, 48, 48)).shape == (2, 2)


def test_a_backbone_of_one_size_is_refused_at_another(tmp_path):
    teacher = open_backbone(str(backbone(tmp_path / "conv", "conv4")))
    with pytest.raises(ValueError, match=r"takes images of 32x32 pixels only: set image_size to 32"):
        started_from(teacher, num_classes=2, image_size=48, generator=torch.Generator())


def test_several_networks_are_no_backbone(public, tmp_path):
    for name in ("a", "b"):
        backbone(tmp_path / name, "conv4_16")
    with pytest.raises(ValueError, match="holds 2 networks"):
        open_backbone(str(tmp_path))
    assert len(ModelPool.from_dir(public)) == 1
