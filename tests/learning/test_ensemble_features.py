"""The compact joint representation: inner products are those of the features side by side."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hf_dfml.learning.ensemble_features import (
    TargetConfig,
    add_products,
    ensemble_products,
    ensemble_targets,
    representation,
)
from hf_dfml.utils.images import to_unit
from tests.methods.pools import make_mixed_pool

IMAGES = torch.randint(256, (60, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PCA = TargetConfig(target_dim=40, landmarks=60)
PCA_10 = replace(PCA, target_dim=10)
RANDOM = TargetConfig(target_dim=2048, projection="random")


@pytest.fixture
def members(tmp_path):
    """A conv4_16 and a resnet10 of other size and labels, and a function that gives probabilities."""
    pool = make_mixed_pool(tmp_path)
    teachers = [pool.load(0), pool.load(1)]
    return [*enumerate(teachers), (2, lambda images: teachers[1](images).softmax(-1))]


def side_by_side(members):
    with torch.no_grad():
        parts = [representation(member, to_unit(IMAGES)) for _, member in members]
    return torch.cat(parts, dim=1) / len(parts) ** 0.5


def test_a_representation_has_length_one_and_features_are_the_penultimate_ones(members):
    images = to_unit(IMAGES)
    with torch.no_grad():
        rows = representation(members[0][1], images)
        assert torch.allclose(rows, F.normalize(members[0][1].features(images), dim=-1))
    assert torch.allclose(rows.norm(dim=-1), torch.ones(60))


def test_probabilities_are_as_good_as_logits_up_to_their_mean(members):
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    rows = representation(lambda images: logits.softmax(-1), torch.zeros(7, 3, 4, 4))
    assert torch.allclose(rows, F.normalize(logits - logits.mean(-1, keepdim=True), dim=-1), atol=1e-5)
    certain = representation(lambda images: torch.eye(3), torch.zeros(3, 3, 4, 4))
    assert certain.isfinite().all() and (certain.argmax(-1) == torch.arange(3)).all()


def test_principal_directions_keep_every_inner_product_when_there_are_enough(members):
    config = replace(PCA, target_dim=60)
    targets, agreement, _ = ensemble_targets(ensemble_products(members, IMAGES, config, 0), config)
    joint = side_by_side(members)
    assert targets.dtype == torch.float16 and targets.shape == (60, 60)
    torch.testing.assert_close(targets.float() @ targets.float().T, joint @ joint.T, atol=3e-3, rtol=0)
    assert agreement > 0.9999


def test_principal_directions_are_those_of_the_features_side_by_side(members):
    """Of all rank-12 representations theirs has the smallest error: the tail of the singular values."""
    config = replace(PCA, target_dim=12)
    targets, _, _ = ensemble_targets(ensemble_products(members, IMAGES, config, 0), config)
    joint = side_by_side(members).double()
    error = torch.linalg.matrix_norm(targets.double() @ targets.double().T - joint @ joint.T)
    tail = torch.linalg.svdvals(joint)[12:].square().square().sum().sqrt()
    assert float(tail) * 0.99 < float(error) < float(tail) * 1.05 + 2e-3


def test_equalised_directions_have_variances_to_a_smaller_power(members):
    plain, agreement, spread = ensemble_targets(ensemble_products(members, IMAGES, PCA_10, 0), PCA_10)
    config = replace(PCA_10, whiten=0.5)
    equal, same, _ = ensemble_targets(ensemble_products(members, IMAGES, config, 0), config)
    variances = plain.double().square().sum(0)  # All images are landmarks: these are the eigenvalues.
    torch.testing.assert_close(spread.double(), variances / variances[0], atol=1e-3, rtol=2e-2)
    expected = F.normalize(plain.double() * (variances / variances[0]) ** -0.25, dim=-1)
    torch.testing.assert_close(equal.double() @ equal.double().T, expected @ expected.T, atol=5e-3, rtol=0)
    assert torch.allclose(equal.float().norm(dim=-1), torch.ones(60), atol=2e-3)
    assert same == agreement  # It says what the projection has lost.


def test_images_that_are_no_landmarks_are_projected_on_the_landmarks_directions(members):
    config = replace(PCA, target_dim=10, landmarks=30)
    targets, _, _ = ensemble_targets(ensemble_products(members, IMAGES, config, 0), config)
    joint = side_by_side(members).double()
    _, _, directions = torch.linalg.svd(joint[:30], full_matrices=False)
    expected = joint @ directions[:10].T
    torch.testing.assert_close(targets.double() @ targets.double().T, expected @ expected.T, atol=3e-3, rtol=0)


def test_random_projections_are_right_up_to_their_standard_deviation(members):
    """The standard deviation of a cosine is at most 1 / sqrt(d) = 0.022; the largest of 1,800 pairs 5 times it."""
    targets, agreement, _ = ensemble_targets(ensemble_products(members, IMAGES, RANDOM, 0), RANDOM)
    joint = side_by_side(members)
    error = targets.float() @ targets.float().T - joint @ joint.T
    assert error.abs().max() < 5 / 2048**0.5
    assert error.square().mean().sqrt() < 1.1 / 2048**0.5
    assert targets.shape == (60, 2048) and 0 < agreement < 1


def test_better_targets_agree_better(members):
    agreements = []
    for dim in (2, 8, 40):
        config = replace(PCA, target_dim=dim)
        agreements.append(ensemble_targets(ensemble_products(members, IMAGES, config, 0), config)[1])
    assert agreements == sorted(agreements) and agreements[0] < 0.95 and agreements[2] > 0.99


@pytest.mark.parametrize("config", [PCA, RANDOM], ids=["pca", "random"])
def test_members_in_parts_and_images_in_chunks_are_all_at_once(members, config, monkeypatch):
    at_once, agreement, _ = ensemble_targets(ensemble_products(members, IMAGES, config, 0), config)
    monkeypatch.setattr("hf_dfml.learning.ensemble_features.PIXELS_AT_ONCE", 7 * 20 * 20)
    parts = [ensemble_products([member], IMAGES, config, 0) for member in members]
    in_parts, again, _ = ensemble_targets(add_products(parts), config)
    products = [targets.float() @ targets.float().T for targets in (at_once, in_parts)]
    torch.testing.assert_close(*products, atol=2e-3, rtol=0)
    assert again == pytest.approx(agreement, abs=1e-3)


def test_members_are_let_go_before_the_next_one_is_asked_for(members):
    """A thousand members are never in memory together."""
    import gc
    import weakref

    class BlackBox:
        def __call__(self, images):
            return torch.full((len(images), 3), 1 / 3)

    earlier = []

    def stream():
        for index in range(3):
            gc.collect()
            assert all(member() is None for member in earlier[:-1])
            box = BlackBox()
            earlier.append(weakref.ref(box))
            yield index, box
            del box

    assert ensemble_products(stream(), IMAGES, PCA, 0).members == 3
