"""What networks of timm, of transformers and of this library say of themselves, asked in the same words."""

import pytest
import timm
import torch
import transformers
from torch import nn
from transformers import AutoModelForImageClassification

from hf_dfml.networks import create_network, functional_forward, network_info, normalise
from hf_dfml.networks.info import batch_norms, set_input

VIT = transformers.ViTConfig(
    image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
)
RESNET = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
WRAPPER = transformers.TimmWrapperConfig(architecture="test_resnet")
DISTILLED = {"embed_dim": 24, "depth": 1, "num_heads": 2, "img_size": 32, "num_classes": 6}

NETWORKS = {
    "conv4": lambda: create_network("conv4", num_classes=6, image_size=32),
    "resnet12": lambda: create_network("resnet12", num_classes=6, image_size=32),
    "convolutional timm": lambda: timm.create_model("test_efficientnet", num_classes=6),
    "head of several layers": lambda: timm.create_model("test_mambaout", num_classes=6),
    "timm transformer": lambda: timm.create_model("test_vit", num_classes=6),
    "distilled": lambda: distilled(),
    "transformers vit": lambda: of_transformers(VIT),
    "transformers resnet": lambda: of_transformers(RESNET),
    "transformers around timm": lambda: of_transformers(WRAPPER),
}


def distilled() -> nn.Module:
    network = timm.create_model("deit_tiny_distilled_patch16_224", **DISTILLED)
    set_input(network, (3, 32, 32), (0.5,) * 3, (0.5,) * 3)
    return network


def of_transformers(config: transformers.PretrainedConfig) -> nn.Module:
    config.num_labels = 6
    network = AutoModelForImageClassification.from_config(config, attn_implementation="eager")
    if config is not WRAPPER:
        set_input(network, (3, 32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_the_classifier_makes_logits_of_the_features(name):
    network = NETWORKS[name]().eval()
    info = network_info(network)
    pixels = torch.randn(2, *info.input_size)
    with torch.no_grad():
        features, logits = info.features(pixels), info.logits(pixels)
        layers = list(info.classifiers.values())
        if name != "distilled":  # There the two layers see tokens of their own.
            torch.testing.assert_close(layers[0](features), logits)
    assert features.shape == (2, info.num_features) and logits.shape == (2, info.num_classes) == (2, 6)
    assert len(layers) == (2 if name == "distilled" else 1)
    assert all(network.get_submodule(key) is layer for key, layer in info.classifiers.items())
    assert info.has_batch_norm == any("BatchNorm" in type(module).__name__ for module in network.modules())
    assert len(info.mean) == len(info.std) == 3


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_of_the_classifier_are_the_ones_that_features_do_not_depend_on(name):
    network = NETWORKS[name]().eval()
    info = network_info(network)
    info.features(torch.randn(2, *info.input_size)).sum().backward()
    unused = {key for key, parameter in network.named_parameters() if parameter.grad is None}
    inside = {key for key, _ in network.named_parameters() if info.in_classifier(key)}
    assert inside == unused


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "distilled"])
def test_a_fresh_classifier_has_as_many_outputs_as_asked_for(name):
    network = NETWORKS[name]().eval()
    info = network_info(network)
    before = info.num_features
    info.reset_classifier(3)
    with torch.no_grad():
        assert info.logits(torch.zeros(1, *info.input_size)).shape == (1, 3)
    assert (info.num_classes, info.num_features) == (3, before)
    assert isinstance(network.get_submodule(info.linear_classifier()), nn.Linear)


def test_a_network_with_two_last_layers_has_no_linear_classifier():
    with pytest.raises(ValueError, match="VisionTransformerDistilled is a Linear and a Linear: expected one Linear"):
        network_info(NETWORKS["distilled"]()).linear_classifier()


@pytest.mark.parametrize("name", ["transformers vit", "transformers resnet"])
@pytest.mark.parametrize("features", [False, True])
def test_functional_forward_takes_networks_of_transformers(name, features):
    network = NETWORKS[name]().eval()
    info, images = network_info(network), torch.rand(2, 3, 32, 32)
    params = {key: value.detach() + 0.01 for key, value in network.named_parameters()}
    found = functional_forward(network, params, images, source="running", features=features)
    network.load_state_dict(network.state_dict() | params)
    expected = (info.features if features else info.logits)(normalise(network, images))
    torch.testing.assert_close(found, expected)


def test_what_transformers_does_not_hold_must_be_noted():
    network = AutoModelForImageClassification.from_config(VIT)
    with pytest.raises(ValueError, match="ViTForImageClassification does not hold the size, mean and std"):
        _ = network_info(network).mean
    set_input(network, [3, 32, 32], [0.1, 0.2, 0.3], [1, 1, 1])
    assert network_info(network).input_size == (3, 32, 32) and network_info(network).mean == (0.1, 0.2, 0.3)
    assert network_info(NETWORKS["transformers around timm"]()).input_size == (3, 160, 160)


def test_timm_s_fused_batch_norms_count_and_layer_norms_do_not():
    assert len(batch_norms(timm.create_model("test_efficientnet"))) > 5
    assert not network_info(timm.create_model("test_vit")).has_batch_norm
