"""Inner loops against loops written out by hand, in float64."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from hf_dfml.data.episodes import Episodes
from hf_dfml.learning.inner_loop import (
    InnerLoop,
    adapt,
    meta_gradient,
    outer_loss,
    query_outputs,
    unroll,
)
from hf_dfml.networks import create_network, functional_forward
from hf_dfml.networks.info import without_fused_attention

WAYS, SHOTS, QUERIES, EPISODES = 3, 2, 4, 3


@pytest.fixture(scope="module")
def model():
    return create_network(
        "conv4", num_classes=WAYS, image_size=16, width=4, generator=torch.Generator().manual_seed(0)
    ).double()


@pytest.fixture(scope="module")
def episodes():
    generator = torch.Generator().manual_seed(1)

    def images(count):
        return torch.rand(EPISODES, WAYS * count, 3, 16, 16, generator=generator, dtype=torch.float64)

    def labels(count):
        return torch.arange(WAYS).repeat_interleave(count).expand(EPISODES, -1)

    return Episodes(images(SHOTS), labels(SHOTS), images(QUERIES), labels(QUERIES))


def by_hand(model, episodes, index, loop):
    """One episode with autograd and explicit in-order steps; gives query loss and its gradient."""
    params = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    source = "running" if loop.bn == "running" else "batch"
    current = dict(params)
    for _ in range(loop.steps):
        moving = [name for name in current if loop.scope == "all" or name.startswith("fc.")]
        loss = F.cross_entropy(
            functional_forward(model, current, episodes.support[index], source=source), episodes.support_labels[index]
        )
        slopes = torch.autograd.grad(loss, [current[name] for name in moving], create_graph=loop.second_order)
        current |= {name: current[name] - loop.lr * slope for name, slope in zip(moving, slopes, strict=True)}
    logits = query_outputs(model, current, episodes.support[index], episodes.query[index], loop.bn)
    loss = F.cross_entropy(logits, episodes.query_labels[index])
    return logits.detach(), loss.item(), torch.autograd.grad(loss, list(params.values()))


@pytest.mark.parametrize("bn", ["support", "running", "transductive"])
@pytest.mark.parametrize("scope", ["all", "head"])
def test_predictions_of_all_episodes_at_once_are_those_of_a_loop(model, episodes, bn, scope):
    loop = InnerLoop(3, 0.1, bn, scope, second_order=False)
    params = {name: value.detach() for name, value in model.named_parameters()}

    def predict(support, labels, query, under_vmap=False):
        adapted = adapt(model, params, support, labels, loop, under_vmap=under_vmap)
        return query_outputs(model, adapted, support, query, bn, under_vmap=under_vmap)

    tensors = (episodes.support, episodes.support_labels, episodes.query)
    together = torch.func.vmap(partial(predict, under_vmap=True))(*tensors)
    for index in range(EPISODES):
        expected = by_hand(model, episodes, index, replace(loop, second_order=True))[0]
        assert torch.allclose(together[index], expected, atol=1e-10)
        with torch.no_grad():
            assert torch.allclose(predict(*(part[index] for part in tensors)), expected, atol=1e-10)


@pytest.mark.parametrize("bn", ["support", "running", "transductive"])
@pytest.mark.parametrize("second_order", [True, False])
def test_meta_gradient_is_the_sum_over_episodes(model, episodes, bn, second_order):
    loop = InnerLoop(2, 0.1, bn, "all", second_order)
    gradients, loss, _ = meta_gradient(model, dict(model.named_parameters()), episodes, loop, chunk_size=2)
    expected = [by_hand(model, episodes, index, loop) for index in range(EPISODES)]
    assert loss == pytest.approx(sum(entry[1] for entry in expected) / EPISODES)
    for position, gradient in enumerate(gradients.values()):
        assert torch.allclose(gradient, sum(entry[2][position] for entry in expected), atol=1e-9)


@pytest.mark.parametrize("bn", ["support", "running"])
@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "convnext_atto"])
def test_second_derivatives_through_layer_norm_are_the_same_side_by_side(episodes, arch, bn):
    """PyTorch's fused layer norm with its scale and shift gives others under vmap."""
    small = {"embed_dim": 12, "depth": 2, "num_heads": 2, "patch_size": 16, "img_size": 32}
    if arch.startswith("convnext"):
        small = {"depths": (1, 1, 1, 1), "dims": (4, 6, 8, 12)}
    large = {
        name: getattr(episodes, name).repeat_interleave(2, -1).repeat_interleave(2, -2)
        for name in ("support", "query")
    }
    episodes, generator = replace(episodes, **large), torch.Generator().manual_seed(0)
    network = create_network(arch, num_classes=WAYS, image_size=32, generator=generator, **small).double().eval()
    without_fused_attention(network)
    with torch.no_grad():
        for value in network.parameters():
            value += 0.2 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
    params, loop = dict(network.named_parameters()), InnerLoop(2, 0.5, bn)
    one, three = (meta_gradient(network, params, episodes, loop, chunk_size=size)[0] for size in (1, 3))
    for name, gradient in one.items():
        torch.testing.assert_close(three[name], gradient, rtol=1e-8, atol=1e-8, msg=name)


def test_second_order_is_not_first_order(model, episodes):
    params = dict(model.named_parameters())
    full, _, _ = meta_gradient(model, params, episodes, InnerLoop(2, 0.1, second_order=True))
    first, _, _ = meta_gradient(model, params, episodes, InnerLoop(2, 0.1, second_order=False))
    assert not torch.allclose(full["fc.weight"], first["fc.weight"], rtol=1e-3)


def test_the_head_alone_moves_in_anil(model, episodes):
    params = dict(model.named_parameters())
    adapted = adapt(model, params, episodes.support[0], episodes.support_labels[0], InnerLoop(2, 0.1, scope="head"))
    moved = {name for name in params if not torch.equal(adapted[name], params[name])}
    assert moved == {"fc.weight", "fc.bias"}


def test_steps_lower_the_support_loss(model, episodes):
    params = dict(model.named_parameters())

    def loss(parameters):
        return F.cross_entropy(
            functional_forward(model, parameters, episodes.support[0]), episodes.support_labels[0]
        ).item()

    assert loss(adapt(model, params, episodes.support[0], episodes.support_labels[0], InnerLoop(10, 0.1))) < loss(
        params
    )


@pytest.mark.parametrize("bn", ["support", "transductive"])
def test_the_outer_loss_reaches_the_images_through_the_unrolled_steps(model, episodes, bn):
    """Against central differences: PURER moves images along this gradient."""
    loop = InnerLoop(3, 0.1, bn)
    tensors = [episodes.support[0], episodes.support_labels[0], episodes.query[0], episodes.query_labels[0]]
    params = {name: value.detach() for name, value in model.named_parameters()}

    def loss(part, images):
        given = list(tensors)
        given[part] = images
        return outer_loss(model, params, loop, *given)[0]

    generator = torch.Generator().manual_seed(3)
    for part in (0, 2):
        leaf = tensors[part].clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(part, leaf), leaf)
        direction = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
        step = 1e-6 * direction
        difference = (loss(part, tensors[part] + step) - loss(part, tensors[part] - step)) / 2e-6
        assert (slope * direction).sum().item() == pytest.approx(difference.item(), rel=1e-4) and slope.abs().max() > 0


def test_to_first_order_the_outer_loss_reaches_the_queries_alone(model, episodes):
    """The steps are constants, also where the images that they are taken on have a gradient."""
    support, query = (images[0].clone().requires_grad_() for images in (episodes.support, episodes.query))
    params = {name: value.detach() for name, value in model.named_parameters()}
    loop = InnerLoop(2, 0.1, second_order=False)
    loss, _ = outer_loss(model, params, loop, support, episodes.support_labels[0], query, episodes.query_labels[0])
    to_support, to_query = torch.autograd.grad(loss, [support, query], allow_unused=True)
    assert to_support is None and to_query.abs().max() > 0


def test_unrolled_steps_on_a_quadratic_have_a_closed_form():
    """L = h theta^2 / 2: theta_k = (1 - lr h)^k theta_0, whose derivative only second order sees."""
    theta = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    for second_order, slope in ((True, 0.7**4), (False, 1.0)):
        end = unroll(
            lambda params: 3 * params["theta"] ** 2 / 2, {"theta": theta}, steps=4, lr=0.1, second_order=second_order
        )["theta"]
        assert end.item() == pytest.approx(2 * 0.7**4)
        assert torch.autograd.grad(end, theta)[0].item() == pytest.approx(slope)
