"""Which network a meta-model is."""

import pytest

from hf_dfml.meta_network import Choice, choose_network, meta_network, num_parameters
from hf_dfml.networks import create_network
from hf_dfml.pool import ModelPool
from hf_dfml.run_config import RunConfig
from tests.pool.members import write_member, write_pool


def sized(size, **changes):
    settings = {"input_size": [3, size, size], "mean": [0.5] * 3, "std": [0.5] * 3, "fixed_input_size": True}
    return {"pretrained_cfg": settings, **changes}


def test_the_architecture_of_most_members_at_their_own_size(tmp_path):
    for name, size, arch in [("a", 16, "conv4_16"), ("b", 20, "conv4_16"), ("c", 64, "resnet10")]:
        write_member(tmp_path / name, **sized(size, architecture=arch))
    choice = choose_network(ModelPool.from_dir(tmp_path), RunConfig())
    assert (choice.arch, choice.image_size) == ("conv4_16", 20), "not the 64 pixels of the other architecture"
    assert choice.reason.startswith("like 2 of 3 members: ") and "--arch names another" in choice.reason


def test_of_architectures_that_are_as_common_the_smallest(tmp_path):
    for name, arch in [("a", "resnet10"), ("b", "conv4_64"), ("c", "conv4_16")]:
        write_member(tmp_path / name, **sized(16, architecture=arch))
    choice = choose_network(ModelPool.from_dir(tmp_path), RunConfig())
    assert choice.arch == "conv4_16" and "like 1 of 3 members, the smallest of those" in choice.reason


def test_what_is_asked_for_is_given_without_a_word(tmp_path):
    pool = ModelPool.from_dir(write_pool(tmp_path / "pool", 2))
    assert choose_network(pool, RunConfig(arch="conv4_64")) == Choice("conv4_64", 16)
    assert choose_network(pool, RunConfig(arch="conv4_64", image_size=24)) == Choice("conv4_64", 24)
    network = meta_network(pool, RunConfig(arch="conv4_64", image_size=24, ways=7))
    assert network.pretrained_cfg["input_size"] == (3, 24, 24) and network.num_classes == 7


def test_black_boxes_of_many_pixels_get_the_usual_small_network(tmp_path):
    write_member(tmp_path / "large", **sized(224))
    pool = ModelPool.from_dir(tmp_path).as_black_box("probs")
    choice = choose_network(pool, RunConfig())
    assert (choice.arch, choice.image_size) == ("conv4", 84) and choice.reason.startswith("as the members only answer")


def test_counting_parameters_takes_none_of_the_memory():
    assert num_parameters("conv4_16", 16) == sum(
        each.numel() for each in create_network("conv4_16", num_classes=1, image_size=16).parameters()
    )


def test_the_meta_networks_normalisation_is_the_mean_of_the_members(tmp_path):
    """Means from means, standard deviations from standard deviations, the largest size."""
    for index, (size, mean, std) in enumerate([(16, 0.2, 0.3), (20, 0.6, 0.1)]):
        settings = {"input_size": [3, size, size], "mean": [mean, 0.5, 0.5], "std": [std, 0.2, 0.2]}
        write_member(tmp_path / f"m-{index}", seed=index, pretrained_cfg=settings | {"fixed_input_size": True})
    network = meta_network(ModelPool.from_dir(tmp_path), RunConfig())
    settings = network.pretrained_cfg
    assert settings["input_size"][-1] == 20
    assert settings["mean"] == pytest.approx((0.4, 0.5, 0.5)) and settings["std"] == pytest.approx((0.2, 0.2, 0.2))
