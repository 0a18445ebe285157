"""Channels that belong together, transport plans, and fusion with a permuted copy."""

import pytest
import timm
import torch
from torch import nn

from hf_dfml.learning.channels import channel_groups
from hf_dfml.learning.optimal_transport import align_state, fuse_ot, transport_plan
from hf_dfml.networks import create_network
from hf_dfml.sinusoids.mlp import Mlp
from tests.learning.permuting import permute_channels

IMAGE = (3, 32, 32)


def lively(network, seed=0):
    """The network with every tensor away from its initial value, so that each of them matters to the function."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.is_floating_point() and tensor.dim() == 1:
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    return network.eval()


def network(arch, seed=0):
    return lively(create_network(arch, generator=torch.Generator().manual_seed(seed)), seed)


def state_of(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def shuffled(groups, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(group.width, generator=generator) for group in groups]


@pytest.fixture
def images():
    return torch.randn(4, *IMAGE, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("arch", ["conv4", "resnet10", "resnet12", "resnet18_cifar"])
def test_fusion_with_a_permuted_copy_is_the_original_function(arch, images):
    model = network(arch)
    with torch.no_grad():
        expected = model(images)
    original = state_of(model)
    groups = channel_groups(model, IMAGE)
    copy = permute_channels(original, groups, shuffled(groups))

    # The copy is the same function in other weights; a naive average of the two is another function.
    assert expected.std(0).min() > 1e-3
    model.load_state_dict(copy)
    with torch.no_grad():
        assert torch.allclose(model(images), expected, atol=1e-4 * expected.abs().max())
    average = {name: (original[name] + copy[name]) / 2 for name in original}
    model.load_state_dict(average)
    with torch.no_grad():
        assert (model(images) - expected).abs().max() > 0.1 * expected.std(0).max()

    fused = fuse_ot([original, copy], original, groups)
    model.load_state_dict(fused)
    with torch.no_grad():
        assert (model(images) - expected).abs().max() <= 1e-5
    for name, tensor in original.items():
        assert torch.allclose(fused[name].float(), tensor.float(), atol=1e-6), name


@pytest.mark.parametrize("name", ["resnet50", "mobilenetv2_100"])
def test_networks_of_timm_with_bottlenecks_and_depthwise_convolutions_are_followed(name, images):
    model = lively(timm.create_model(name, num_classes=5))
    groups = channel_groups(model, IMAGE)
    original = state_of(model)
    with torch.no_grad():
        expected = model(images)
    model.load_state_dict(permute_channels(original, groups, shuffled(groups)))
    with torch.no_grad():
        assert torch.allclose(model(images), expected, atol=1e-3 * expected.abs().max())


def test_groups_of_a_residual_stream_hold_all_that_is_added():
    groups = channel_groups(network("resnet10"), IMAGE)
    # A stem and four stages of one block: an inner group for each block, a stream for each stage.
    assert [group.width for group in groups] == [64, 64, 128, 128, 256, 256, 512, 512]
    stem, inner = groups[0], groups[1]
    tensors = {tied.tensor for tied in stem.axes}
    written = [name for name in tensors if any(t.tensor == name and t.axis == 0 for t in stem.axes)]
    convolutions = [name for name in written if network("resnet10").state_dict()[name].dim() == 4]
    assert len(convolutions) == 2, "the stem and the second convolution of the first block write the same stream"
    assert len(inner.writers) == 1 and len(groups[3].writers) == 2, (
        "a stage's stream is compared by block and shortcut"
    )


def test_classes_and_pixels_are_in_no_group():
    model = network("conv4")
    for group in channel_groups(model, IMAGE):
        for tied in group.axes:
            assert tied.tensor != "fc.bias"
            assert not (tied.tensor == "fc.weight" and tied.axis == 0)
            assert not (tied.tensor == "blocks.0.conv.weight" and tied.axis == 1)


def test_output_units_are_never_aligned():
    model = network("conv4")
    original = state_of(model)
    swapped = dict(original)
    order = torch.tensor([1, 0, 2, 3, 4])
    swapped["fc.weight"], swapped["fc.bias"] = original["fc.weight"][order], original["fc.bias"][order]
    fused = fuse_ot([original, swapped], original, channel_groups(model, IMAGE))
    assert torch.allclose(fused["fc.weight"], (original["fc.weight"] + swapped["fc.weight"]) / 2, atol=1e-6)
    assert torch.allclose(fused["fc.bias"], (original["fc.bias"] + swapped["fc.bias"]) / 2, atol=1e-6)


def test_a_flattened_map_moves_as_a_whole():
    model = network("conv4")
    last = channel_groups(model, IMAGE)[-1]
    cells = {tied.cells for tied in last.axes if tied.tensor == "fc.weight"}
    assert last.width == 32 and cells == {4}, "32 pixels are 2x2 cells after four halvings"


@pytest.mark.parametrize("solver", ["emd", "sinkhorn"])
def test_plans_are_doubly_stochastic(solver):
    model = network("conv4")
    groups = channel_groups(model, IMAGE)
    aligned, plans = align_state(state_of(network("conv4", seed=5)), state_of(model), groups, solver, 0.05)
    assert len(plans) == 4
    for plan in plans:
        assert (plan >= 0).all()
        assert torch.allclose(plan.sum(0), torch.ones(32, dtype=torch.float64), atol=1e-5)
        assert torch.allclose(plan.sum(1), torch.ones(32, dtype=torch.float64), atol=1e-5)
    assert {name: tensor.shape for name, tensor in aligned.items()} == {n: t.shape for n, t in state_of(model).items()}


def test_the_exact_plan_is_the_cheapest_assignment():
    from scipy.optimize import linear_sum_assignment

    generator = torch.Generator().manual_seed(3)
    rows, reference = (torch.randn(12, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    plan = transport_plan(rows, reference)
    best = linear_sum_assignment(torch.cdist(rows, reference).numpy())[1]
    assert torch.equal(plan.argmax(1), torch.as_tensor(best)) and torch.allclose(
        plan.max(1).values, torch.ones_like(plan[0])
    )


def test_sinkhorn_at_small_entropy_gives_back_the_permutation():
    rows = torch.randn(10, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(5))
    plan = transport_plan(rows[order], rows, "sinkhorn", 0.01)
    assert torch.equal(plan.argmax(1), order) and plan.max(1).values.min() > 0.99


def test_the_regularisation_of_a_fusion_is_that_of_its_plans():
    model = network("conv4_16")
    original, groups = state_of(model), channel_groups(model, IMAGE)
    copy = permute_channels(original, groups, shuffled(groups))

    def distance(regularisation):
        fused = fuse_ot([original, copy], original, groups, solver="sinkhorn", regularisation=regularisation)
        return sum(float((fused[name] - tensor).float().norm()) for name, tensor in original.items())

    assert distance(0.002) < 0.1 * distance(10.0), "a large one mixes all channels"


def test_one_input_is_told_apart_by_its_bias():
    # With a single input a unit's incoming weights are one number; the bias tells units of equal weight apart.
    model = Mlp()
    with torch.no_grad():
        model.layers[0].weight.fill_(1.0)
    groups = channel_groups(model, (1,))
    original = state_of(model)
    fused = fuse_ot([original, permute_channels(original, groups, shuffled(groups))], original, groups)
    for name, tensor in original.items():
        assert torch.allclose(fused[name], tensor, atol=1e-6), name


def test_an_unknown_operation_is_named():
    class Softmaxed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.fc = nn.Linear(8, 5)

        def forward(self, x):
            return self.fc(torch.softmax(self.conv(x), dim=1).mean((2, 3)))

    with pytest.raises(ValueError, match="softmax.*use the plain average"):
        channel_groups(Softmaxed(), IMAGE)


def test_tracing_leaves_the_network_as_it_was():
    model = network("resnet10").train()
    before = state_of(model)
    channel_groups(model, IMAGE)
    assert model.training and all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
