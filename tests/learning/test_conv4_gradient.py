"""Conv4's gradient written out, and its derivative, against autograd in float64."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from hf_dfml.learning.conv4_gradient import Conv4Gradient, Patches, applies_to
from hf_dfml.networks import create_network, functional_forward
from hf_dfml.networks.functional import normalise
from hf_dfml.networks.side_by_side import apart, beside, joined

WAYS, IMAGES, SIZE = 3, 5, 20
"""20 pixels: the third block leaves a row and a column of its five out."""


def network(name="conv4", size=SIZE):
    return create_network(
        name, num_classes=WAYS, image_size=size, width=4, generator=torch.Generator().manual_seed(0)
    ).double()


@pytest.fixture
def given():
    """A model, parameters of two networks far from each other, their images and labels."""
    model, generator = network(), torch.Generator().manual_seed(1)

    def drawn(value):
        return value.detach() + 0.3 * torch.randn(value.shape, generator=generator, dtype=value.dtype)

    params = [{name: drawn(value) for name, value in model.named_parameters()} for _ in range(2)]
    # Where a weight of batch norm is negative, minima count.
    params[0]["blocks.0.bn.weight"][1] = -0.8
    params[1]["blocks.2.bn.weight"][0] = -0.5
    images = torch.rand(2, IMAGES, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    labels = torch.randint(WAYS, (2, IMAGES), generator=generator)
    return model, params, images, labels


def by_autograd(model, params, images, labels, direction):
    """Logits, loss, gradient and Hessian times direction of one network."""
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    logits = functional_forward(model, leaves, images)
    loss = F.cross_entropy(logits, labels)
    gradients = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    along = sum((slope * direction[name]).sum() for name, slope in zip(leaves, gradients, strict=True))
    products = torch.autograd.grad(along, list(leaves.values()))
    return (
        logits.detach(),
        loss.detach(),
        dict(zip(leaves, gradients, strict=True)),
        dict(zip(leaves, products, strict=True)),
    )


@pytest.mark.parametrize("known", [False, True], ids=["maps", "patches"])
def test_gradient_and_hessian_products_are_those_of_autograd(given, known):
    model, params, images, labels = given
    together = beside(normalise(model, images))
    patches = Patches(together, 2) if known else None
    found = Conv4Gradient(model, joined(params), together, labels, twice=True, patches=patches)
    generator = torch.Generator().manual_seed(2)
    ways = [
        {name: torch.randn(value.shape, generator=generator, dtype=value.dtype) for name, value in each.items()}
        for each in params
    ]
    for each in ways:
        each |= {name: torch.zeros_like(value) for name, value in each.items() if name.endswith("conv.bias")}
    products = apart(found.along(joined(ways)), 2)
    gradients = apart(found.gradients, 2)
    for index in range(2):
        logits, loss, slopes, hessian = by_autograd(model, params[index], images[index], labels[index], ways[index])
        assert torch.allclose(found.logits[index], logits, atol=1e-12)
        assert found.losses[index].item() == pytest.approx(loss.item(), abs=1e-12)
        idle = {name for name in slopes if name.endswith("conv.bias")}
        assert set(gradients[index]) == set(products[index]) == set(slopes) - idle
        assert all(slopes[name].abs().max() < 1e-12 for name in idle)
        for name in gradients[index]:
            assert torch.allclose(gradients[index][name], slopes[name], atol=1e-11), name
            assert torch.allclose(products[index][name], hessian[name], atol=1e-10), name
            assert hessian[name].abs().max() > 1e-3


def test_the_hessian_is_symmetric(given):
    model, params, images, labels = given
    found = Conv4Gradient(model, joined(params), beside(normalise(model, images)), labels, twice=True)
    generator = torch.Generator().manual_seed(3)
    one, other = (
        {name: torch.randn(slope.shape, generator=generator, dtype=slope.dtype) for name, slope in each.items()}
        for each in (found.gradients, found.gradients)
    )
    there = sum((product * other[name]).sum().item() for name, product in found.along(one).items())
    back = sum((product * one[name]).sum().item() for name, product in found.along(other).items())
    assert there == pytest.approx(back, rel=1e-10) and abs(there) > 1e-3


def test_without_a_second_derivative_the_gradient_is_the_same(given):
    model, params, images, labels = given
    both = [
        Conv4Gradient(model, joined(params), beside(normalise(model, images)), labels, twice=twice).gradients
        for twice in (True, False)
    ]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])


@pytest.mark.parametrize(
    ("model", "answer"),
    [(network(), True), (network("conv4_global"), False), (create_network("resnet10", num_classes=3), False)],
    ids=["conv4", "conv4_global", "resnet10"],
)
def test_it_is_for_conv4_that_flattens_its_maps(model, answer):
    assert applies_to(model, torch.zeros(1, 3, 32, 32)) is answer


def test_autocast_changes_nothing(given):
    model, params, images, labels = given
    model, images = model.float(), images.float()
    together = beside(normalise(model, images))
    params = {name: value.float() for name, value in joined(params).items()}
    found = []
    for precision in (torch.autocast("cpu", torch.bfloat16), nullcontext()):
        with precision:
            step = Conv4Gradient(model, params, together, labels, twice=True)
            found.append([*step.gradients.values(), *step.along(params).values()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
