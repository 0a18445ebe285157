"""The hyper-network: one linear map a layer."""

import torch

from hf_dfml.learning.wasserstein import largest_curvature
from hf_dfml.networks import create_network
from hf_dfml.networks.hyper_network import HyperNetwork


def shapes_of(network):
    return {name: parameter.shape for name, parameter in network.named_parameters()}


def test_dro_sizes():
    # 51 x P for embeddings of 50 numbers: 400,911 for conv4 with 16 filters (DRO, section 5.3).
    hyper = HyperNetwork(shapes_of(create_network("conv4_16")), embedding_dim=50)
    assert hyper.num_targets == 7861
    assert sum(parameter.numel() for parameter in hyper.parameters()) == 400_911


def test_split_undoes_flatten():
    network = create_network("conv4_16")
    hyper = HyperNetwork(shapes_of(network), embedding_dim=3)
    again = hyper.split(hyper.flatten(network.state_dict()))
    assert again.keys() == shapes_of(network).keys()
    assert all(torch.equal(again[name], parameter) for name, parameter in network.named_parameters())


def test_it_is_affine_in_the_embedding_and_independent_of_the_global_seed():
    shapes = {"w": torch.Size([4, 5]), "b": torch.Size([4])}
    first, second = (HyperNetwork(shapes, 3, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    a, b = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(first(a + b) - first(b), first(a) - first(torch.zeros(3)), atol=1e-6)
    torch.testing.assert_close(first(torch.stack([a, b]))[1], first(b))


def test_the_initial_curvature_does_not_grow_with_the_network():
    for size in (1000, 100_000):
        hyper = HyperNetwork({"w": torch.Size([size])}, 50, torch.Generator().manual_seed(0))
        assert 0.9 < largest_curvature(hyper.weight) < 1.6
