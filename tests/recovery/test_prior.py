"""A public network's batch norm as image prior for members that have none."""

import pytest
import torch

from hf_dfml.methods.pool_images import PoolImagesConfig, image_prior
from hf_dfml.networks import create_network
from hf_dfml.pool import ModelPool
from hf_dfml.pool.building.writing import member_config, write_member
from hf_dfml.recovery.inversion import RecoveryConfig, recover
from hf_dfml.recovery.joint import JointConfig, recover_jointly
from hf_dfml.recovery.objective import InversionWeights, watch_batch_norm
from hf_dfml.recovery.prior import ImagePrior

SETTINGS = {"image_size": 32, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
WITHOUT = "convnext_atto"


def write(folder, arch, names=("cat", "dog"), **arguments):
    network = create_network(arch, num_classes=len(names), image_size=32, generator=torch.Generator().manual_seed(3))
    write_member(folder, network, member_config(network, arch, list(names), **SETTINGS))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior")
    write(folder / "pool" / "without", WITHOUT)
    write(folder / "pool" / "with", "conv4_16", ("dog", "fox"))
    write(folder / "public", "resnet10", ("x", "y", "z"))
    return folder


@pytest.fixture
def pool(folders):
    return ModelPool.from_dir(folders / "pool")


@pytest.fixture
def prior(folders):
    return image_prior(PoolImagesConfig(prior=str(folders / "public"), prior_weight=1.0))


def distance(network, images):
    with torch.no_grad(), watch_batch_norm(network) as found:
        network(images)
    return float(found.total(images))


def test_images_of_a_member_without_batch_norm_come_nearer_to_the_priors_statistics(pool, prior):
    config = RecoveryConfig(
        recovery="pixels", recovery_steps=15, recovery_lr=0.1, images_per_class=4, objective=InversionWeights()
    )
    member = pool.load("without")

    def recovered(term):
        return recover(member, config, 32, torch.Generator().manual_seed(0), term).images

    assert distance(prior.network, recovered(prior.term(member))) < 0.97 * distance(prior.network, recovered(None))


def test_members_with_batch_norm_keep_to_their_own(pool, prior):
    assert prior.term(pool.load("with")) is None and prior.term(pool.load("without")) is not None
    alone = pool.filter(lambda entry: entry.id == "with")

    def jointly(of, given):
        return recover_jointly(of, JointConfig(2, 3), 32, torch.Generator().manual_seed(0), prior=given)

    assert jointly(alone, prior).equal(jointly(alone, None))
    assert not jointly(pool, prior).equal(jointly(pool, None))


def test_a_prior_without_batch_norm_is_refused(pool):
    with pytest.raises(ValueError, match=r"without \(convnext_atto\) has no batch norm.*such as resnet18"):
        ImagePrior(pool.load("without"), 1.0)


def test_the_priors_network_is_where_the_images_are(folders):
    config = PoolImagesConfig(prior=str(folders / "public"), prior_weight=1.0)
    assert image_prior(config, "meta").network.device == torch.device("meta")
