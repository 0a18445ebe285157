"""Functional forward passes: explicit parameters, explicit batch-norm statistics."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from hf_dfml.networks import batch_norm_from, create_network, functional_forward, normalise


@pytest.fixture
def model():
    network = create_network("conv4", generator=torch.Generator().manual_seed(0), image_size=16).double()
    with torch.no_grad():
        for block in network.blocks:
            block.bn.running_mean.normal_(0, 0.1)
            block.bn.running_var.uniform_(0.5, 2)
            block.bn.weight.uniform_(0.5, 2)
            block.bn.bias.normal_()
    return network.eval()


def images(count):
    return torch.rand(count, 3, 16, 16, dtype=torch.float64)


def test_running_is_the_ordinary_evaluation(model):
    x = images(4)
    assert torch.allclose(functional_forward(model, {}, x, source="running"), model(normalise(model, x)))


def test_batch_is_the_ordinary_training_mode_without_its_side_effect(model):
    x = images(4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ours = functional_forward(model, {}, x, source="batch")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.allclose(ours, model.train()(normalise(model, x)))


@torch.no_grad()
def test_a_number_takes_the_statistics_of_the_first_images(model):
    """Layer by layer: fix each layer's running statistics to those of the support set, then evaluate the queries."""
    x = images(9)
    both = functional_forward(model, {}, x, source=5)
    with batch_norm_from(model, "batch"):
        support = model(normalise(model, x[:5]))
    assert torch.allclose(both[:5], support)

    support, query = normalise(model, x[:5]), normalise(model, x[5:])
    for block in model.blocks:
        support, query = block.conv(support), block.conv(query)
        mean, variance = support.mean((0, 2, 3)), support.var((0, 2, 3), unbiased=False)
        support, query = (
            F.relu(F.max_pool2d(F.batch_norm(maps, mean, variance, block.bn.weight, block.bn.bias), 2))
            for maps in (support, query)
        )
    assert torch.allclose(both[5:], model.fc(query.flatten(1)))


def test_queries_depend_on_each_other_only_when_transductive(model):
    x = images(9)
    other = torch.cat([x[:6], images(3)])
    for source, same in (("running", True), (5, True), ("batch", False)):
        a, b = functional_forward(model, {}, x, source=source), functional_forward(model, {}, other, source=source)
        assert torch.allclose(a[5], b[5]) is same


def episode_loss(model, params, support, support_labels, query, query_labels, source):
    """Two inner steps of MAML, then the query loss, with torch.func."""

    def loss(current):
        return F.cross_entropy(functional_forward(model, current, support, source="batch"), support_labels)

    for _ in range(2):
        slopes = torch.func.grad(loss)(params)
        params = {name: value - 0.1 * slopes[name] for name, value in params.items()}
    logits = functional_forward(model, params, torch.cat([support, query]), source=source)[len(support) :]
    return F.cross_entropy(logits, query_labels)


def maml_written_out(params, support, support_labels, query, query_labels, source):
    """The same with nothing of ours: conv4 and its batch norms as formulas, autograd with a kept graph."""

    def norm(x, weight, bias, count):
        mean = x[:count].mean((0, 2, 3), keepdim=True)
        variance = (x[:count] - mean).square().mean((0, 2, 3), keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * weight[:, None, None] + bias[:, None, None]

    def conv4(params, x, count):
        x = (x - 0.5) / 0.5
        for block in (f"blocks.{index}" for index in range(4)):
            x = F.conv2d(x, params[f"{block}.conv.weight"], params[f"{block}.conv.bias"], padding=1)
            x = F.max_pool2d(F.relu(norm(x, params[f"{block}.bn.weight"], params[f"{block}.bn.bias"], count)), 2)
        return x.flatten(1) @ params["fc.weight"].T + params["fc.bias"]

    for _ in range(2):
        loss = F.cross_entropy(conv4(params, support, len(support)), support_labels)
        slopes = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        params = {name: value - 0.1 * slope for (name, value), slope in zip(params.items(), slopes, strict=True)}
    both = torch.cat([support, query])
    logits = conv4(params, both, len(both) if source == "batch" else source)[len(support) :]
    return F.cross_entropy(logits, query_labels)


@pytest.mark.parametrize("source", ["batch", 5])
def test_mamls_gradient_under_vmap_is_that_of_a_loop_written_out(model, source):
    labels = torch.arange(5)
    tasks = [(images(5), labels, images(10), labels.repeat(2)) for _ in range(3)]
    params = dict(model.named_parameters())

    stacked = [torch.stack(part) for part in zip(*tasks, strict=True)]
    losses = torch.func.vmap(lambda *task: episode_loss(model, params, *task, source))(*stacked)
    expected = torch.stack([maml_written_out(params, *task, source) for task in tasks])
    assert torch.allclose(losses, expected, atol=1e-12)

    ours = torch.autograd.grad(losses.sum(), list(params.values()))
    theirs = torch.autograd.grad(expected.sum(), list(params.values()))
    # The biases before a batch norm have no gradient but rounding.
    assert all(torch.allclose(a, b, rtol=1e-7, atol=1e-12) for a, b in zip(ours, theirs, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("source", ["running", "batch", 4])
def test_every_kind_of_batch_norm_agrees_under_vmap(source):
    """Flat, without scale and shift, and timm's, which brings its activation along."""
    network = nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.BatchNorm2d(6, affine=False),
        timm.layers.BatchNormAct2d(6),
        nn.Flatten(),
        nn.BatchNorm1d(6 * 36),
    ).double()
    x = torch.randn(3, 7, 2, 8, 8, dtype=torch.float64)
    with batch_norm_from(network, source):
        together = torch.func.vmap(network)(x)
        assert torch.allclose(together, torch.stack([network(part) for part in x]))
    if source == 4:
        assert together[0, :4].mean(0).abs().max() < 1e-8 < together[0].mean(0).abs().max()
    if source == "batch":
        assert torch.allclose(together[0], network(x[0]))


def test_layers_are_as_before_after_the_block(model):
    x = images(3)
    before = model(x)
    with pytest.raises(RuntimeError), batch_norm_from(model, "batch"):
        inside = model(x)
        assert not torch.allclose(inside, before)
        functional_forward(model, {}, x, source="running")
        assert torch.equal(model(x), inside)
        model(x[:, :2])
    assert torch.equal(model(x), before)


def test_timms_fused_batch_norm_keeps_its_activation():
    network = timm.create_model("resnetv2_18", num_classes=3).eval()
    x = torch.rand(2, 3, 32, 32)
    expected = network(x)
    with batch_norm_from(network, "running"):
        assert torch.allclose(network(x), expected, atol=1e-5)


def test_features_are_what_the_classifier_is_given(model):
    x = images(3)
    features = functional_forward(model, {}, x, source="running", features=True)
    assert torch.allclose(model.fc(features), functional_forward(model, {}, x, source="running"))


def test_given_parameters_replace_the_models(model):
    x = images(2)
    zero = {"fc.weight": torch.zeros_like(model.fc.weight), "fc.bias": torch.arange(5.0).double()}
    assert torch.equal(functional_forward(model, zero, x, source="running"), torch.arange(5.0).double().expand(2, 5))


def test_pooling_before_relu_is_the_published_block():
    network = create_network("conv4").eval()
    block = network.blocks[0]
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(block(x), nn.functional.max_pool2d(torch.relu(block.bn(block.conv(x))), 2))
