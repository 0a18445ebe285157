"""A linear layer on normalised features: its closed form, what is shared, and that timm builds it again."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F

from hf_dfml.learning.answers import AnswerHeads, predicted_answers, with_answers
from hf_dfml.networks import create_network
from hf_dfml.networks.info import network_info
from hf_dfml.networks.linear_on_features import ARCHITECTURE, with_linear_layer


def fresh(arch: str, size: int = 16) -> torch.nn.Module:
    return create_network(arch, num_classes=4, image_size=size, generator=torch.Generator().manual_seed(0)).eval()


@pytest.mark.parametrize(("arch", "size"), [("conv4_16", 16), ("resnet10t", 32), ("mobilenetv3_small_050", 32)])
@pytest.mark.parametrize("flips", [False, True])
def test_logits_are_the_layer_of_the_features(arch: str, size: int, flips: bool) -> None:
    network = fresh(arch, size)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, size, size, generator=generator)
    features = F.normalize(network_info(network).features(images), dim=-1)
    if flips:
        features = F.normalize(features + F.normalize(network_info(network).features(images.flip(-1)), dim=-1), dim=-1)
    weight, bias = torch.randn(2, features.shape[1], generator=generator), torch.randn(2, generator=generator)
    made = with_linear_layer(network, weight, bias, flips=flips)
    torch.testing.assert_close(made(images), F.linear(features, weight, bias), rtol=0, atol=1e-5)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    again = timm.create_model(ARCHITECTURE, backbone=arch, num_classes=2, flips=flips, **size_of(arch, size))
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.eval()(images), made(images))


def size_of(arch: str, size: int) -> dict[str, int]:
    return {"img_size": size} if arch.startswith("conv4") else {}


def test_other_statistics_leave_the_networks_own() -> None:
    network = fresh("conv4_16")
    changed = {name: value + 1 for name, value in network.named_buffers() if name.endswith("running_mean")}
    made = with_linear_layer(network, torch.eye(16), torch.zeros(16), statistics=changed)
    assert not network.blocks[0].bn.running_mean.any() and (made.backbone.blocks[0].bn.running_mean == 1).all()
    assert made.backbone.blocks[0].conv.weight is network.blocks[0].conv.weight


@pytest.mark.parametrize("both", [False, True])
def test_predicted_answers_take_the_features_place_or_join_them(both: bool) -> None:
    heads = AnswerHeads(16, [("a", "b"), ("b", "c", "d")], "member", 5.0, torch.Generator().manual_seed(1))
    network = with_answers(fresh("conv4_16"), heads)
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    features = network_info(network).features(images)
    expected = F.normalize(predicted_answers(network, features), dim=-1)
    if both:
        expected = F.normalize(torch.cat([F.normalize(features, dim=-1), expected], dim=-1), dim=-1)
    width = expected.shape[1]
    made = with_linear_layer(
        network, torch.eye(width), torch.zeros(width), representation="both" if both else "answers"
    )
    torch.testing.assert_close(made(images), expected)
    again = timm.create_model(
        ARCHITECTURE, backbone="conv4_16", img_size=16, num_classes=width, answers=[2, 3], with_features=both
    )
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.eval()(images), made(images))


def test_an_unknown_backbone_is_named() -> None:
    with pytest.raises(ValueError, match=r"backbone='conv5': expected a name from timm\.list_models"):
        timm.create_model(ARCHITECTURE, backbone="conv5")
