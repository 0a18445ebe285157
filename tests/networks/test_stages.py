"""Which part of a network is trained, and the network cut before it."""

from __future__ import annotations

import pytest
import torch

from hf_dfml.networks import create_network
from hf_dfml.networks.stages import freeze, split, train_mode, trained_parameters

SIZE = 32


def network(arch: str) -> torch.nn.Module:
    return create_network(arch, num_classes=3, image_size=SIZE, generator=torch.Generator().manual_seed(0)).eval()


@pytest.mark.parametrize(
    ("arch", "first"),
    [
        ("conv4", "blocks.3.conv.weight"),
        ("resnet18", "layer4.0.conv1.weight"),
        ("tf_efficientnet_lite0", "blocks.6.0.conv_pw.weight"),
        ("convnext_atto", "stages.3.downsample.0.weight"),
    ],
)
def test_the_last_stage_ends_the_network_and_is_cut_off_exactly(arch, first):
    model = network(arch)
    names = trained_parameters(model, "last_stage")
    assert names == [name for name, _ in model.named_parameters()][-len(names) :] and names[0] == first
    freeze(model, "last_stage")
    parts = split(model)
    pixels = torch.rand(3, 3, SIZE, SIZE)
    assert parts is not None and first.startswith(parts.cut)
    torch.testing.assert_close(parts.rest(parts(pixels)), model(pixels))
    # What is learnt behind the cut is the whole network's.
    with torch.no_grad():
        parts.rest.get_parameter(first).mul_(2)
    parts.join()
    torch.testing.assert_close(parts.rest(parts(pixels)), model(pixels))


def test_a_transformer_has_no_cut_but_its_last_blocks_are_trained():
    model = create_network("vit_tiny_patch16_224", image_size=SIZE)
    freeze(model, "last_stage")
    assert {name.split(".")[1] for name in trained_parameters(model, "last_stage") if "blocks" in name} == {
        *("8", "9", "10", "11")
    }
    assert split(model) is None


def test_only_the_head_is_trained_and_frozen_batch_norm_keeps_its_statistics():
    model = network("conv4")
    freeze(model, "head")
    assert [name for name, value in model.named_parameters() if value.requires_grad] == ["fc.weight", "fc.bias"]
    before = model.blocks[0].bn.running_mean.clone()
    train_mode(model)
    model(torch.rand(4, 3, SIZE, SIZE))
    assert torch.equal(model.blocks[0].bn.running_mean, before) and model.fc.training


def test_another_part_is_refused():
    with pytest.raises(ValueError, match="expected head, last_stage or all"):
        trained_parameters(network("conv4"), "half")


def test_nothing_is_dropped_at_random():
    """Else a resumed run would go on with other numbers than one that was not stopped."""
    network = create_network(
        "vit_tiny_patch16_224",
        num_classes=3,
        image_size=16,
        img_size=16,
        patch_size=8,
        embed_dim=12,
        depth=2,
        num_heads=2,
        drop_rate=0.5,
        drop_path_rate=0.5,
    )
    images = torch.rand(4, 3, 16, 16)
    network.train()
    assert not torch.equal(network(images), network(images))
    train_mode(network)
    assert torch.equal(network(images), network(images)) and network.training
