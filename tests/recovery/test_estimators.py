"""Estimators beside the sphere: unbiased where they look, exact where they can be, remembering, counted."""

import math

import pytest
import torch
from scipy.fft import dctn, idctn

from hf_dfml.recovery.gradient_source import ESTIMATORS, ZeroOrderGradient
from hf_dfml.recovery.inversion import RecoveryConfig, recover
from hf_dfml.utils.images import to_uint8, to_unit
from tests.recovery.test_gradient_source import _seeded, linear, teacher  # noqa: F401

SIZE, DIMENSIONS = 8, 3 * 8 * 8


def estimate(source, slope, seed=0, images=None):
    """The estimate of `slope` itself (a source gives the gradient of the batch's mean)."""
    images = torch.rand(slope.shape, generator=_seeded(9), dtype=slope.dtype) if images is None else images
    return len(slope) * source(linear(slope), images, _seeded(seed))[1]


def slopes(count=2, seed=1):
    return torch.randn(count, 3, SIZE, SIZE, generator=_seeded(seed), dtype=torch.float64)


def low(images, frequencies):
    """What is left of images of their lowest frequencies, by scipy."""
    waves = dctn(images.numpy(), axes=(-2, -1), norm="ortho")
    waves[..., frequencies:, :] = 0
    waves[..., frequencies:] = 0
    return torch.from_numpy(idctn(waves, axes=(-2, -1), norm="ortho"))


def cosine(first, second):
    return torch.cosine_similarity(first.flatten(1), second.flatten(1))


@pytest.mark.parametrize(
    ("options", "frequencies"),
    [
        ({"central": True}, SIZE),
        ({"orthogonal": True}, SIZE),
        ({"frequencies": 3}, 3),
        ({"frequencies": 3, "orthogonal": True, "central": True}, 3),
    ],
)
def test_the_mean_of_many_estimates_is_the_gradients_projection(options, frequencies):
    slope = slopes()
    wanted, m = low(slope, frequencies), 3 * frequencies**2
    draws, q = 300, 9
    source = ZeroOrderGradient(q, mu=0.01, directions_at_once=4, **options)
    mean = sum(estimate(source, slope, seed) for seed in range(draws)) / draws
    error = ((mean - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)).max()
    noise = math.sqrt(m / q / draws)  # Of the mean, relative; its square is a mean of about m terms.
    assert error < 1.35 * noise
    few = sum(estimate(source, slope, seed) for seed in range(3)) / 3
    assert ((few - wanted).norm() / wanted.norm()) > 4 * noise, "a few draws are noisy: the test can tell"
    torch.testing.assert_close(low(few, frequencies), few)  # Nothing outside of the subspace.


def test_as_many_orthogonal_directions_as_dimensions_are_the_gradient():
    slope = slopes()
    full = ZeroOrderGradient(DIMENSIONS, mu=0.01, directions_at_once=DIMENSIONS, orthogonal=True)
    torch.testing.assert_close(estimate(full, slope), slope, rtol=1e-6, atol=1e-8)
    # More at once than there are dimensions: frames of as many as fit.
    waves = ZeroOrderGradient(2 * 27, mu=0.01, directions_at_once=50, orthogonal=True, frequencies=3)
    torch.testing.assert_close(estimate(waves, slope), low(slope, 3), rtol=1e-6, atol=1e-8)
    # More frequencies than there are: all of them.
    all_of_them = ZeroOrderGradient(DIMENSIONS, 0.01, DIMENSIONS, orthogonal=True, frequencies=99)
    torch.testing.assert_close(estimate(all_of_them, slope), slope, rtol=1e-6, atol=1e-8)


def test_central_differences_are_exact_for_quadratics():
    slope = slopes()
    images = torch.rand(slope.shape, generator=_seeded(3), dtype=slope.dtype)

    def curved(batch):
        return linear(slope)(batch) + 5 * (batch - images).square().sum((-3, -2, -1))

    straight, bent, forward = (
        ZeroOrderGradient(20, mu=0.5, central=central)(losses, images, _seeded(0))[1]
        for central, losses in ((True, linear(slope)), (True, curved), (False, curved))
    )
    torch.testing.assert_close(bent, straight)
    assert (forward - straight).norm() > 0.1 * straight.norm()


def test_low_frequencies_need_fewer_queries_for_smooth_gradients():
    slope = low(slopes(20), 3)
    sphere, waves = (cosine(estimate(ZeroOrderGradient(9, 0.01, **o), slope), slope) for o in ({}, {"frequencies": 3}))
    assert waves.mean() > 1.8 * sphere.mean()  # sqrt(192 / 27) = 2.7 but for the overlap of directions.


def test_memory_is_the_projection_on_the_last_estimate_and_the_new_directions():
    slope = slopes()
    source = ZeroOrderGradient(12, mu=0.01, directions_at_once=12, orthogonal=True, memory=True)
    last = estimate(source, slope, 0)
    for seed in range(1, 6):
        new = estimate(source, slope, seed)
        # A projection: what is missing is orthogonal to it, and it holds all that the last one held.
        torch.testing.assert_close(((slope - new) * new).sum((1, 2, 3)), torch.zeros(2).double(), atol=1e-6, rtol=0)
        held = torch.nn.functional.normalize(last.flatten(1), dim=1)
        torch.testing.assert_close((new.flatten(1) * held).sum(1), (slope.flatten(1) * held).sum(1))
        last = new


@pytest.mark.parametrize("options", [{}, {"orthogonal": True}, {"central": True}])
def test_memory_adds_up_where_the_gradient_stays(options):
    slope = slopes(20)
    source = ZeroOrderGradient(10, mu=0.01, directions_at_once=5, memory=True, **options)
    found = [cosine(estimate(source, slope, seed), slope).mean().item() for seed in range(12)]
    assert found == sorted(found)
    # Nine new directions a step, of 192 dimensions.
    missing = (1 - 9 / DIMENSIONS) ** 12
    assert found[-1] == pytest.approx(math.sqrt(1 - missing), rel=0.06) and found[0] < 0.3


def test_memory_is_forgotten_when_asked_and_by_other_images():
    slope, other = slopes(), slopes(3, seed=5)
    source = ZeroOrderGradient(10, mu=0.01, memory=True)
    first = estimate(source, slope)
    assert not torch.allclose(estimate(source, slope), first)
    source.forget()
    torch.testing.assert_close(estimate(source, slope), first)
    torch.testing.assert_close(estimate(source, other), estimate(ZeroOrderGradient(10, mu=0.01, memory=True), other))


def test_a_stale_memory_costs_one_direction_and_no_more():
    slope, turned = slopes(20, seed=1), slopes(20, seed=2)
    source = ZeroOrderGradient(20, mu=0.01, memory=True)
    estimate(source, slope)
    stale = cosine(estimate(source, turned, seed=1), turned).mean()
    fresh = cosine(estimate(ZeroOrderGradient(20, mu=0.01), turned, seed=1), turned).mean()
    assert stale > 0.9 * fresh


def test_each_recovery_begins_without_the_memory_of_the_last(teacher):  # noqa: F811
    config = RecoveryConfig(recovery="pixels", recovery_steps=3, images_per_class=2, bn_weight=0.0, shift=0)
    source = ZeroOrderGradient(5, memory=True)
    first, second = (recover(teacher, config, 16, _seeded(1), source=source).images for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_queries_are_counted(name):
    source = ZeroOrderGradient(10, directions_at_once=4, **ESTIMATORS[name])
    asked = []

    def losses(images):
        asked.append(images.numel() // DIMENSIONS)
        return images.sum((-3, -2, -1))

    for calls in (1, 2):
        source(losses, torch.rand(6, 3, SIZE, SIZE), _seeded(calls))
        assert source.queries == sum(asked) == calls * 6 * source.queries_per_image
    assert max(asked) <= 4 * 6


def test_differences_survive_eight_bits():
    """PNG rounds pixels to 1 / 255: the paper's length drowns in it, the resolution's does not."""
    slope = slopes(40).float()
    images = 0.3 + 0.4 * torch.rand(slope.shape, generator=_seeded(4))

    def over_png(batch):
        return linear(slope)(to_unit(to_uint8(batch)))

    found = [
        cosine(ZeroOrderGradient(20, resolution=step)(over_png, images, _seeded(0))[1], slope).mean().item()
        for step in (0.0, 1 / 255)
    ]
    unrounded = cosine(ZeroOrderGradient(20)(linear(slope), images, _seeded(0))[1], slope).mean().item()
    assert found[0] < 0.5 * unrounded and found[1] > 0.85 * unrounded


@pytest.mark.parametrize("wrong", [{"frequencies": -1}, {"resolution": -0.1}])
def test_negative_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match="expected no negative number"):
        ZeroOrderGradient(**wrong)
