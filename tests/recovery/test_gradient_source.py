"""Gradients by autograd and by queries: exact, unbiased, as good as theory says, and counted."""

import pytest
import torch

from hf_dfml.networks import Generator, create_network
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.teacher import Teacher
from hf_dfml.recovery.gradient_source import ZeroOrderGradient, autograd_gradient
from hf_dfml.recovery.inversion import RecoveryConfig, recover


@pytest.fixture(scope="module")
def teacher():
    network = create_network(
        "conv4", num_classes=3, image_size=16, width=8, generator=torch.Generator().manual_seed(3)
    )
    entry = PoolEntry(id="t", num_classes=3, input_size=(3, 16, 16), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    return Teacher(entry, network)


def linear(slope):
    """l(x_b) = <c_b, x_b>, whose gradient of the batch's mean is c / B."""
    return lambda images: (images * slope).sum((-3, -2, -1))


def test_autograd_gives_the_gradient_of_the_mean():
    images, slope = torch.rand(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    loss, gradient = autograd_gradient(linear(slope), images, torch.Generator())
    torch.testing.assert_close(gradient, slope / 4)
    assert loss.item() == pytest.approx(linear(slope)(images).mean().item()) and not loss.requires_grad
    with torch.no_grad():  # Also where the caller keeps no graph.
        torch.testing.assert_close(autograd_gradient(linear(slope), images, torch.Generator())[1], slope / 4)


def test_the_estimate_is_unbiased_on_linear_losses():
    """The mean of n estimates is c but for noise, whose variance per component is at most d |c|^2 / (q n d)."""
    slope = torch.randn(2, 3, 4, 4, generator=_seeded(1), dtype=torch.float64)
    images = torch.rand(2, 3, 4, 4, generator=_seeded(2), dtype=torch.float64)
    source = ZeroOrderGradient(directions=20, mu=0.01)
    generator = torch.Generator().manual_seed(0)
    draws = 400
    mean = sum(source(linear(slope), images, generator)[1] for _ in range(draws)) / draws
    error = (2 * mean - slope).flatten(1).norm(dim=1) / slope.flatten(1).norm(dim=1)
    # d = 48: the relative error of one estimate is about sqrt(d / q) = 1.55, of the mean of 400 about 0.078.
    assert error.max() < 0.12
    biased = sum(source(linear(slope), images, generator)[1] for _ in range(5)) / 5
    assert (2 * biased - slope).norm() / slope.norm() > 0.3, "a few draws are noisy: the test can tell"


@pytest.mark.parametrize("directions", [25, 100])
def test_one_estimate_has_the_cosine_and_length_of_theory(directions):
    slope = torch.randn(30, 3, 16, 16, generator=_seeded(2))  # d = 768
    _, gradient = ZeroOrderGradient(directions, mu=0.01)(linear(slope), torch.rand(30, 3, 16, 16), _seeded(1))
    cosine = torch.cosine_similarity(gradient.flatten(1), slope.flatten(1)).mean().item()
    assert cosine == pytest.approx((directions / 768) ** 0.5, rel=0.1)
    length = (30 * gradient.flatten(1).norm(dim=1) / slope.flatten(1).norm(dim=1)).mean().item()
    assert length == pytest.approx((768 / directions) ** 0.5, rel=0.15)


def test_an_image_is_estimated_from_its_own_losses(teacher):
    """Every version of the batch keeps the labels in their places, however many directions go together."""
    labels = torch.tensor([2, 0, 1, 2])

    def losses(images):
        logits = teacher(images.flatten(0, -4)).unflatten(0, images.shape[:-3])
        return -logits.log_softmax(-1)[..., torch.arange(4), labels]

    images = torch.rand(4, 3, 16, 16, generator=_seeded(0))
    _, exact = autograd_gradient(losses, images, torch.Generator())
    estimates = [
        sum(ZeroOrderGradient(200, 0.01, at_once)(losses, images, _seeded(seed))[1] for seed in range(20))
        for at_once in (7, 64)
    ]
    for estimate in estimates:
        cosine = torch.cosine_similarity(estimate.flatten(1), exact.flatten(1))
        assert cosine.min() > 0.85  # 4000 directions in 768 dimensions: sqrt(4000 / 4768) = 0.92.


def test_no_graph_reaches_the_loss_and_every_image_asked_for_is_counted():
    seen, graphs = [], []

    def losses(images):
        seen.append(images.numel() // (3 * 4 * 4))
        graphs.append(images.requires_grad or torch.is_grad_enabled())
        return images.sum((-3, -2, -1))

    source = ZeroOrderGradient(directions=10, directions_at_once=4)
    for calls in (1, 2):
        source(losses, torch.rand(6, 3, 4, 4, requires_grad=True), _seeded(calls))
        assert source.queries == sum(seen) == calls * 6 * (10 + 1)
    assert max(seen) == 4 * 6 and not any(graphs)


def test_the_same_generator_gives_the_same_estimate_and_another_call_another_one():
    images, losses = torch.rand(2, 3, 4, 4), linear(torch.randn(2, 3, 4, 4))
    generator, again = _seeded(5), _seeded(5)
    first, second = (ZeroOrderGradient(3)(losses, images, generator)[1] for _ in range(2))
    assert torch.equal(ZeroOrderGradient(3)(losses, images, again)[1], first) and not torch.equal(first, second)


@pytest.mark.parametrize("wrong", [{"directions": 0}, {"mu": 0.0}, {"directions_at_once": 0}])
def test_an_estimate_from_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="needs directions and a positive length"):
        ZeroOrderGradient(**wrong)


def test_the_chain_rule_gives_the_generator_its_jacobian_times_the_estimate(teacher):
    """What a recovery does with g^ is J^T g^; with the white box's own gradient it is the white box's descent."""
    generator = Generator(latent_dim=6, width=4, image_size=16)
    generator.reset_parameters(_seeded(0))
    latent, labels = torch.randn(5, 6, generator=_seeded(1)), torch.tensor([0, 1, 2, 0, 1])

    def losses(images):
        return torch.nn.functional.cross_entropy(teacher(images), labels, reduction="none")

    parameters = list(generator.parameters())
    direct = torch.autograd.grad(losses(generator(latent)).mean(), parameters)
    images = generator(latent)
    images.backward(autograd_gradient(losses, images.detach(), torch.Generator())[1])
    for parameter, expected in zip(parameters, direct, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["pixels", "generator"])
def test_a_recovery_by_queries_returns_the_images_of_the_lowest_loss_it_has_seen(teacher, kind):
    """And not those of the lowest surrogate <x, g^>, as the released code does."""
    config = RecoveryConfig(
        recovery=kind, recovery_steps=25, recovery_lr=0.05, images_per_class=2, generator_width=4, latent_dim=8,
        bn_weight=0.0, shift=0, flip=False,
    )  # fmt: skip
    source = ZeroOrderGradient(directions=60, mu=0.01)
    met = []

    def recorded(losses, images, generator):
        met.append(losses(images).mean().item())
        return source(losses, images, generator)

    task = recover(teacher, config, 16, _seeded(2), source=recorded)
    labels = torch.arange(3).repeat_interleave(2)
    kept = torch.nn.functional.cross_entropy(teacher(task.images), labels).item()
    assert kept == pytest.approx(min(met), rel=1e-4) and min(met) < met[0] - 0.2
    assert source.queries == 25 * 6 * 61


def test_some_outputs_of_a_teacher_are_recovered_under_their_own_names():
    network = create_network("conv4_16", num_classes=5, image_size=16, generator=_seeded(4))
    entry = PoolEntry(
        id="t",
        num_classes=5,
        input_size=(3, 16, 16),
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        label_names=("a", "b", "c", "d", "e"),
    )
    teacher = Teacher(entry, network)
    config = RecoveryConfig(
        recovery="pixels", recovery_steps=60, recovery_lr=0.1, images_per_class=3, bn_weight=0.0, shift=1
    )
    task = recover(teacher, config, 16, _seeded(0), outputs=[1, 4])
    assert task.class_names == ("b", "e") and task.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert teacher(task.images).argmax(1).tolist() == [1, 1, 1, 4, 4, 4]


def _seeded(seed):
    return torch.Generator().manual_seed(seed)
