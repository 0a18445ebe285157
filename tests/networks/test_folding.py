"""Folded networks give the outputs of those they were made of, in float64."""

import pytest
import torch
from torch import nn

from hf_dfml.networks import create_network
from hf_dfml.networks.folding import folded
from hf_dfml.networks.info import batch_norms


def trained(network):
    """With statistics, scales and shifts as if it had seen data; some scales are negative."""
    generator = torch.Generator().manual_seed(1)
    for layer in batch_norms(network).values():
        for tensor in (layer.running_mean, layer.weight.data, layer.bias.data):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        layer.running_var.copy_(torch.rand(layer.running_var.shape, generator=generator) + 0.1)
    return network.double().eval()


@pytest.mark.parametrize("name", ["conv4", "resnet10", "timm/mobilenetv2_035", "timm/resnet18d"])
def test_all_batch_norms_are_folded_and_the_outputs_stay(name):
    if name.startswith("timm/"):
        import timm

        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = trained(timm.create_model(name.removeprefix("timm/"), num_classes=3))
    else:
        network = trained(create_network(name, num_classes=3, image_size=32))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        expected = network(images)
        twin = folded(network, lambda: network(images[:1]))
        assert torch.allclose(twin(images), expected, rtol=1e-8, atol=1e-10) and expected.std() > 1e-3
    assert batch_norms(network) and not batch_norms(twin)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class Branching(nn.Module):
    """Its convolution's output is read by a batch norm and by a sum."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) + y


class Shared(nn.Module):
    """One convolution, two batch norms."""

    def __init__(self):
        super().__init__()
        self.conv, self.one, self.other = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.other(self.conv(self.one(self.conv(x))))


@pytest.mark.parametrize("kind", [Branching, Shared])
def test_what_is_not_a_pair_stays(kind):
    network = trained(kind())
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    twin = folded(network, lambda: network(images))
    assert len(batch_norms(twin)) == len(batch_norms(network))
    assert torch.equal(twin(images), network(images))


@pytest.mark.parametrize(("scale", "shift"), [(0.0, 0.0), (1e-4, 0.0), (0.005, -1.0)])
def test_a_layer_whose_output_says_too_little_of_its_input_stays_where_that_is_asked_for(scale, shift):
    network = trained(create_network("conv4", num_classes=3, image_size=32))
    with torch.no_grad():
        network.blocks[1].bn.weight[3], network.blocks[1].bn.bias[3] = scale, shift
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    expected = {False: [], True: ["blocks.1.bn"]}
    for watched, names in expected.items():
        twin = folded(network, lambda: network(images), watched=watched)
        assert list(batch_norms(twin)) == names
        assert torch.allclose(twin(images), network(images), rtol=1e-8, atol=1e-10)
