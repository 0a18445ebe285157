"""Transport fusion as a method."""

import pytest
import torch

from hf_dfml.learning.channels import channel_groups
from hf_dfml.methods.baselines import OTA, OTAConfig
from hf_dfml.methods.weight_space import run_without_trainer
from hf_dfml.pool import ModelPool
from hf_dfml.sinusoids.pool import StatePool
from tests.learning.permuting import permute_channels
from tests.methods.pools import make_context, make_model, make_pool
from tests.pool.members import state_of, write_member


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return make_pool(tmp_path_factory.mktemp("baselines"), 4)


def same(first, second, atol=0.0):
    return all(torch.allclose(first[name].float(), tensor.float(), atol=atol) for name, tensor in second.items())


def test_ota_undoes_the_order_of_the_channels():
    """A pool of one network in five orders of its channels fuses to that network, whichever is the reference."""
    model = make_model()
    state = state_of(seed=3)
    groups = channel_groups(model, (3, 16, 16))
    generator = torch.Generator().manual_seed(0)
    orders = [[torch.randperm(group.width, generator=generator) for group in groups] for _ in range(5)]
    pool = StatePool(model, [permute_channels(state, groups, order) for order in orders], input_size=(3, 16, 16))
    for reference in (0, 4):
        method = OTA(OTAConfig(reference=reference), make_model(seed=1))
        fused = run_without_trainer(method, pool, make_context()).state_dict()
        assert same(fused, pool.states[reference], atol=1e-5)


def test_the_reference_is_drawn_from_the_generator(pool):
    states = [
        run_without_trainer(OTA(OTAConfig(), make_model()), pool, make_context(seed)).state_dict()
        for seed in (0, 0, 1)
    ]
    drawn = [int(torch.randint(4, (1,), generator=make_context(seed).generator)) for seed in (0, 1)]
    assert drawn[0] != drawn[1], "two seeds that draw different references"
    assert same(states[0], states[1]) and not same(states[0], states[2], atol=1e-3)


def test_different_networks_are_named(tmp_path):
    write_member(tmp_path / "a")
    write_member(tmp_path / "b", num_classes=5, label_names=list("vwxyz"), dfml={})
    with pytest.raises(ValueError, match=r"conv4_16 with 3 outputs for 3x16x16 inputs: a; .*5 outputs.*: b"):
        OTA(OTAConfig(), make_model()).setup(ModelPool.from_dir(tmp_path), make_context())
