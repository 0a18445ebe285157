"""A run that could never replay an episode is refused before any work; FREE, TGR and BiDf-MKD ran without replay."""

import pytest

from hf_dfml.methods.catalogue import find_method
from hf_dfml.networks import create_network
from tests.methods.pools import make_context, make_pool

METHODS = ["free", "tgr", "bidf_mkd"]


@pytest.mark.parametrize("name", METHODS)
def test_a_pool_of_fewer_classes_than_an_episode_is_refused(name, tmp_path):
    method_class = find_method(name)
    network = create_network("conv4_16", num_classes=5, image_size=16)
    with pytest.raises(ValueError, match="The pool knows 3 classes, episodes have 5: ask for fewer --ways"):
        method_class(method_class.Config(), network).setup(make_pool(tmp_path, 2), make_context())


@pytest.mark.parametrize("name", METHODS)
def test_a_bank_that_holds_no_episode_is_refused(name):
    method_class = find_method(name)
    network = create_network("conv4_16", num_classes=3, image_size=16)
    config = method_class.Config(bank_per_class=10, replay_shots=1, replay_queries=15)
    with pytest.raises(ValueError, match="bank_per_class=10: an episode of 1 shots and 15 queries takes 16 images"):
        method_class(config, network)
