"""Networks: names, sizes and layouts that the rest of the world relies on."""

import importlib
import json
import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from hf_dfml.networks import Generator, create_network, functional_forward, network_info
from hf_dfml.networks.generator import UpsampledConv2d


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("arch", "arguments", "count"),
    [
        ("conv4", {}, 29541),
        ("conv4", {"img_size": 84}, 32901),
        ("conv4", {"global_pool": "max"}, 29061),
        ("conv4_global", {"img_size": 84}, 29061),
        ("conv4_16", {}, 7861),
        ("conv4_16", {"img_size": 84}, 9541),
        ("conv4_64", {"in_chans": 1}, 113_221),  # 9*64 + 3*64 + 3 * (9*64*64 + 3*64) + 256*5 + 5
        ("resnet10", {}, 4_905_792 - (49 - 9) * 3 * 64 + 513 * 5),  # CloserLook's, whose stem is 7x7
        ("resnet18_cifar", {}, 11_173_962 - 513 * 5),  # the usual one has 10 classes
    ],
)
def test_parameter_counts_are_the_papers(arch, arguments, count):
    assert parameters(timm.create_model(arch, num_classes=5, **arguments)) == count


def test_the_classifier_fits_the_images():
    assert timm.create_model("conv4", img_size=84)(torch.rand(2, 3, 84, 84)).shape == (2, 5)
    assert timm.create_model("conv4", img_size=(64, 32))(torch.rand(2, 3, 64, 32)).shape == (2, 5)
    anything = timm.create_model("conv4", global_pool="max")
    assert anything(torch.rand(2, 3, 84, 48)).shape == anything(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    with pytest.raises(ValueError, match="at least 16 pixels, found 15"):
        timm.create_model("conv4", img_size=15)


def test_images_of_one_channel_have_a_scale_of_one_channel():
    network = create_network("conv4_16", in_chans=1, image_size=28)
    assert functional_forward(network, {}, torch.rand(2, 1, 28, 28)).shape == (2, 5)
    assert network.pretrained_cfg["mean"] == (0.5,)


@pytest.mark.parametrize(("size", "count"), [(32, 2_328_899), (84, 14_730_691)])
def test_generator_has_the_published_size(size, count):
    assert parameters(Generator(image_size=size)) == count


def test_generator_gives_images_and_starts_from_its_seed():
    generator = Generator(latent_dim=8, width=4, image_size=16)
    latent = torch.randn(3, 8)
    generator.reset_parameters(torch.Generator().manual_seed(1))
    first = generator(latent)
    generator.reset_parameters(torch.Generator().manual_seed(1))
    assert first.shape == (3, 3, 16, 16) and 0 <= first.min() and first.max() <= 1
    assert torch.equal(generator(latent), first)
    assert generator.linear.weight.std().item() == pytest.approx(0.02, rel=0.2)


def test_a_transposed_convolution_is_the_convolution_of_an_enlarged_image():
    images = torch.randn(2, 3, 5, 4, dtype=torch.double, requires_grad=True)
    layer = UpsampledConv2d(3, 6, 3, padding=1).double()
    plain = F.conv2d(F.interpolate(images, scale_factor=2), layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(images), plain)
    towards = torch.randn_like(plain)
    wanted = torch.autograd.grad(plain, (images, layer.weight), towards)
    torch.testing.assert_close(torch.autograd.grad(layer(images), (images, layer.weight), towards), wanted)


@pytest.mark.parametrize("arch", ["resnet10", "resnet12", "resnet18_cifar"])
def test_residual_networks_have_timms_api(arch):
    network = timm.create_model(arch, num_classes=7).eval()
    maps = network.forward_features(torch.rand(2, 3, 32, 32))
    features = network.forward_head(maps, pre_logits=True)
    assert features.shape == (2, network.num_features)
    assert torch.equal(network.get_classifier()(features), network.forward_head(maps))
    network.reset_classifier(3)
    assert network(torch.rand(1, 3, 84, 84)).shape == (1, 3)


def test_a_folder_in_timms_layout_is_loaded_by_plain_timm(tmp_path):
    network = create_network("conv4", num_classes=3, image_size=48)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    settings = {"input_size": [3, 48, 48], "fixed_input_size": True, "mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"architecture": "conv4", "num_classes": 3, "pretrained_cfg": settings | {"classifier": "fc"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    x = torch.rand(2, 3, 48, 48)
    assert torch.equal(loaded.eval()(x), network.eval()(x))


def test_the_ready_pool_fits_by_name_and_shape(shared_dir):
    members = sorted((shared_dir / "pools" / "cifar-fs-conv4").glob("*/model.safetensors"))
    assert len(members) == 100
    network = timm.create_model("conv4")
    for weights in members:
        network.load_state_dict(load_file(weights), strict=True)


def test_initial_weights_follow_the_generator_and_not_the_global_seed():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = create_network("conv4", generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.rand(1), expected)
    second = create_network("conv4", generator=torch.Generator().manual_seed(5))
    assert torch.equal(first.fc.weight, second.fc.weight)


def test_an_unknown_architecture_is_named():
    with pytest.raises(ValueError, match="'conv5' is unknown: expected one of conv4"):
        create_network("conv5")


OURS_FIRST_AND_AGAIN = """
import hf_dfml, timm, sys
assert timm.create_model("conv4").num_features == 128
for name in [name for name in sys.modules if name.startswith("timm")]:
    del sys.modules[name]
import timm
"""


@pytest.mark.parametrize("order", ["import timm, hf_dfml", OURS_FIRST_AND_AGAIN], ids=["timm", "ours"])
def test_timm_knows_our_networks_in_any_order_of_imports(order):
    code = f"{order}\nassert timm.create_model('conv4').num_features == 128"
    subprocess.run([sys.executable, "-c", code], check=True)


WITHOUT_TIMM = """
import sys, torch
from hf_dfml.networks import create_network, network_info
from hf_dfml.networks.timm_network import OURS, create_model

def built():
    start = torch.Generator().manual_seed(3)
    networks = {arch: create_network(arch, num_classes=4, image_size=48, generator=start) for arch in sorted(OURS)}
    overlay = {"input_size": (3, 16, 32), "mean": (0.1, 0.2, 0.3), "num_classes": 7}
    networks["overlaid"] = create_model("conv4", pretrained_cfg_overlay=overlay, num_classes=None)
    with torch.device("meta"):
        networks["features"] = create_model("linear_on_features", backbone="conv4", img_size=32, num_classes=3)
    return networks

torch.manual_seed(0)
without = built()
assert not {"timm", "torchvision", "torch._dynamo"} & sys.modules.keys()
import timm
torch.manual_seed(0)
for arch, network in built().items():
    before = without[arch]
    assert network.pretrained_cfg.items() >= before.pretrained_cfg.items(), (arch, before.pretrained_cfg)
    stored = before.state_dict()
    assert list(stored) == list(network.state_dict())
    for name, tensor in network.state_dict().items():
        assert tensor.shape == stored[name].shape and (tensor.is_meta or torch.equal(tensor, stored[name])), name
assert set(OURS) < set(timm.list_models())
"""


def test_a_network_of_ours_is_the_same_with_and_without_timm():
    subprocess.run([sys.executable, "-c", WITHOUT_TIMM], check=True)


OF_ONES_OWN = """
from timm.models import build_model_with_cfg
from torch import nn
from hf_dfml.networks.timm_network import TimmNetwork, default_settings, register

class Tiny(TimmNetwork):
    def __init__(self, num_classes=5, in_chans=3, img_size=32):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 6, img_size // 2, img_size // 2)
        self.global_pool = nn.Identity()
        self.num_features = self.head_hidden_size = 24
        self.reset_classifier(num_classes)

    def forward_features(self, x):
        return self.conv(x)

@register
def tiny_of_ones_own(pretrained=False, pretrained_cfg=None, **kwargs):
    settings = pretrained_cfg or default_settings(classifier="fc", first_conv="conv")
    return build_model_with_cfg(Tiny, "tiny_of_ones_own", pretrained, pretrained_cfg=settings, **kwargs)
"""


def test_an_architecture_is_one_file(tmp_path, monkeypatch):
    """Which lies wherever it likes, and works in a pool's terms from then on."""
    (tmp_path / "tiny_network.py").write_text(OF_ONES_OWN)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("tiny_network")
    info = network_info(create_network("tiny_of_ones_own", num_classes=3, image_size=16))
    assert (info.image_size, info.num_classes, info.num_features, list(info.classifiers)) == (16, 3, 24, ["fc"])
    assert functional_forward(info.network, {}, torch.rand(2, 3, 16, 16), features=True).shape == (2, 24)
