"""The patch prior: steps across the joints of a member's patches, in single and in joint recovery."""

import pytest
import torch

from hf_dfml.methods.base import Context
from hf_dfml.methods.pool_images import PoolImagesConfig, recover_member
from hf_dfml.networks.info import network_info
from hf_dfml.pool import ModelPool
from hf_dfml.recovery.inversion import RecoveryConfig, recover
from hf_dfml.recovery.joint import JointConfig, recover_jointly
from hf_dfml.recovery.objective import InversionWeights, inversion_loss
from hf_dfml.recovery.patches import patch_in_images, patch_joints
from tests.recovery.test_prior import write

CUTS, CONVOLVES = "test_vit", "conv4_16"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patches")
    write(folder / "cuts", CUTS)
    write(folder / "convolves", CONVOLVES, ("dog", "fox"))
    return folder


@pytest.fixture
def pool(folder):
    return ModelPool.from_dir(folder)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_value_is_one_norm_for_each_joint():
    rows = torch.tensor([0.0, 0.1, 0.5, 0.5, 1.0, 0.9]).view(6, 1).expand(1, 3, 6, 4)
    # Joints after rows 2 and 4: steps of .4 and .5 in 4 columns of 3 channels; none from column to column.
    torch.testing.assert_close(patch_joints(rows, (2, 2)), torch.tensor((0.4 + 0.5) * 12**0.5))
    both = rows[:, :, :4].repeat(5, 1, 1, 1)
    torch.testing.assert_close(patch_joints(both, (2, 4)), torch.tensor(0.4 * (12 * 5) ** 0.5))
    assert patch_joints(rows, (6, 4)) == 0, "one patch has no joint"


def test_only_pixels_at_joints_have_a_gradient():
    images = rand(2, 3, 12, 12).requires_grad_()
    patch_joints(images, (4, 6)).backward()
    moved = images.grad.abs().sum((0, 1)) > 0
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[[3, 4, 7, 8]] = True
    expected[:, [5, 6]] = True
    assert moved.equal(expected)


def test_joints_within_a_pixel_are_at_its_nearest_border_and_each_counts_once():
    images = rand(1, 3, 7, 7).requires_grad_()
    patch_joints(images, (3.5, 0.4)).backward()  # 3.5 -> 4; patches of less than a pixel: every border.
    moved = images.grad.abs().sum((0, 1)) > 0
    assert moved.all(), "every border of a column is a joint"
    flat = images.detach().mean(3, keepdim=True).expand(-1, -1, -1, 7).requires_grad_()
    patch_joints(flat, (3.5, 0.4)).backward()
    assert (flat.grad.abs().sum((0, 1, 3)) > 0).nonzero().flatten().tolist() == [3, 4]


def test_patches_are_those_of_the_first_layer_in_the_pixels_of_the_images(pool):
    cuts, convolves = pool.load("cuts"), pool.load("convolves")
    assert network_info(cuts.network).patch_size == (16, 16)
    assert patch_in_images(cuts, torch.zeros(1, 3, 32, 32)) == (16, 16)
    assert patch_in_images(cuts, torch.zeros(1, 3, 48, 12)) == (24, 6)
    assert patch_in_images(convolves, torch.zeros(1, 3, 32, 32)) is None


def test_the_loss_has_the_weighted_term_for_members_with_patches_only(pool):
    images, labels = rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1])

    def loss(member, weight):
        return inversion_loss(pool.load(member), images, labels, InversionWeights(patch_weight=weight))[0]

    torch.testing.assert_close(loss("cuts", 0.5), loss("cuts", 0.0) + 0.5 * patch_joints(images, (16, 16)))
    assert loss("convolves", 0.5) == loss("convolves", 0.0)


def steps(images):
    """The largest step across the joints of patches of 16 pixels, beside the mean step elsewhere."""
    away = (images[..., 1:, :] - images[..., :-1, :]).abs().mean((0, 1, 3))
    return float(away[15] / away.mean())


def test_recovered_images_break_less_at_joints(pool):
    def alone(member, weight):
        objective = InversionWeights(patch_weight=weight)
        config = RecoveryConfig(
            recovery="pixels", recovery_steps=8, recovery_lr=0.1, images_per_class=2, shift=0, objective=objective
        )
        return recover(pool.load(member), config, 32, torch.Generator().manual_seed(0)).images

    def jointly(of, weight):
        config = JointConfig(2, 8, shift=0, weights=InversionWeights(patch_weight=weight))
        return recover_jointly(of, config, 32, torch.Generator().manual_seed(0)).flatten(0, 1)

    cuts = pool.filter(lambda entry: entry.id == "cuts")
    assert steps(alone("cuts", 1.0)) < 0.8 * steps(alone("cuts", 0.0))
    assert steps(jointly(cuts, 1.0)) < 0.8 * steps(jointly(cuts, 0.0))
    assert alone("convolves", 1.0).equal(alone("convolves", 0.0))


def test_a_kept_recovery_is_made_again_only_where_patches_change_it(pool, tmp_path):
    context = Context(torch.Generator(), cache=tmp_path / "kept")
    for weight in (0.0, 1.0):
        config = PoolImagesConfig(recovery_steps=1, images_per_class=1, patch_weight=weight)
        for index in range(2):
            recover_member(pool, config, 32, context, index)
    assert len(list((tmp_path / "kept").iterdir())) == 3
