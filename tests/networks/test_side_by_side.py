"""Several networks side by side against one after the other, in float64."""

import pytest
import torch
from torch import nn

from hf_dfml.networks import batch_norm_from, create_network, normalise
from hf_dfml.networks.functional import with_parameters
from hf_dfml.networks.side_by_side import apart, beside, how_many, joined, side_by_side

COUNT, BATCH = 3, 4


def networks(arch):
    each = [
        create_network(arch, image_size=16, width=4, generator=torch.Generator().manual_seed(seed)).double().eval()
        for seed in range(COUNT)
    ]
    for seed, network in enumerate(each):
        generator = torch.Generator().manual_seed(seed)
        for name, value in network.named_buffers():
            if value.dim():
                value.copy_(0.5 + torch.rand(value.shape, generator=generator) * (1 if name.endswith("var") else 0.1))
    return each


@pytest.mark.parametrize("arch", ["conv4", "conv4_global"])
@pytest.mark.parametrize("source", ["batch", "running"])
def test_logits_and_gradients_are_those_of_each_alone(arch, source):
    each = networks(arch)
    images = torch.rand(COUNT, BATCH, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    values = joined([{**dict(network.named_parameters()), **dict(network.named_buffers())} for network in each])
    model = each[0]
    trained = [name for name, _ in model.named_parameters()]
    leaves = {name: value.detach().requires_grad_(name in trained) for name, value in values.items()}
    with side_by_side(model, COUNT), batch_norm_from(model, source):
        together = with_parameters(model, leaves, lambda: model(beside(normalise(model, images))))
    gradients = torch.autograd.grad(together.square().sum(), [leaves[name] for name in trained])
    parts = apart(dict(zip(trained, gradients, strict=True)), COUNT)

    for index, network in enumerate(each):
        with batch_norm_from(network, source):
            alone = network(normalise(network, images[index]))
        assert torch.allclose(together.unflatten(1, (COUNT, -1))[:, index], alone, atol=1e-12)
        for name, gradient in zip(
            trained, torch.autograd.grad(alone.square().sum(), list(network.parameters())), strict=True
        ):
            assert torch.allclose(parts[index][name], gradient, rtol=1e-8, atol=1e-10), name


def test_apart_is_the_inverse_of_joined():
    each = [dict(network.named_parameters()) for network in networks("conv4")]
    for before, after in zip(each, apart(joined(each), COUNT), strict=True):
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_network_is_as_before_after_the_block():
    network = networks("conv4")[0]
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    before = network(images)
    with pytest.raises(RuntimeError), side_by_side(network, 2):
        network(images)
    assert torch.equal(network(images), before)


def test_one_network_of_any_kind_stays_as_it_is():
    network = nn.Sequential(nn.Linear(4, 3), nn.Conv1d(5, 5, 1))
    x = torch.rand(2, 5, 4)
    with side_by_side(network, 1):
        inside = network(x)
    assert torch.equal(inside, network(x))


def test_small_episodes_of_conv4_are_put_side_by_side():
    assert how_many(create_network("conv4"), 5 * 32 * 32) == 9
    assert how_many(create_network("conv4"), 10 * 32 * 32) == 4
    assert how_many(create_network("conv4", image_size=84), 25 * 84 * 84) == 1
    assert how_many(create_network("resnet10"), 5 * 32 * 32) == 1
