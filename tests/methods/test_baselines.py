"""Random, best, average and transport fusion as methods."""

import pytest
import torch

from hf_dfml.learning.channels import channel_groups
from hf_dfml.learning.fusion import average_state
from hf_dfml.methods.base import NoOptions
from hf_dfml.methods.baselines import OTA, BestMember, OTAConfig, PoolAverage, RandomInit
from hf_dfml.methods.weight_space import run_without_trainer
from hf_dfml.pool import ModelPool
from hf_dfml.sinusoids.pool import StatePool
from tests.learning.permuting import permute_channels
from tests.methods.pools import OnceOnly, make_context, make_model, make_pool
from tests.pool.members import state_of, write_member


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return make_pool(tmp_path_factory.mktemp("baselines"), 4)


def same(first, second, atol=0.0):
    return all(torch.allclose(first[name].float(), tensor.float(), atol=atol) for name, tensor in second.items())


def test_random_init_looks_at_nothing(pool):
    empty_handed = OnceOnly(pool)
    model = run_without_trainer(RandomInit(NoOptions(), make_model()), empty_handed, make_context())
    assert same(model.state_dict(), make_model().state_dict()) and not empty_handed.loads


def test_the_best_member_is_that_of_the_highest_accuracy(tmp_path):
    for index, accuracy in enumerate((0.5, 0.9, 0.7)):
        write_member(tmp_path / f"m-{index}", seed=index, dfml={"val_accuracy": accuracy})
    pool = ModelPool.from_dir(tmp_path)
    model = run_without_trainer(BestMember(NoOptions(), make_model()), pool, make_context())
    assert same(model.state_dict(), state_of(seed=1))


def test_a_pool_without_accuracies_has_no_best_member(tmp_path):
    write_member(tmp_path / "m-0", dfml={})
    with pytest.raises(ValueError, match="None of the 1 members stores a val_accuracy"):
        BestMember(NoOptions(), make_model()).setup(ModelPool.from_dir(tmp_path), make_context())


def test_the_average_is_that_of_all_members_each_loaded_once(pool):
    once = OnceOnly(pool)
    model = run_without_trainer(PoolAverage(NoOptions(), make_model()), once, make_context())
    assert same(model.state_dict(), average_state([state_of(seed) for seed in range(4)]), atol=1e-6)
    assert len(once.loads) == 4


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


@pytest.mark.parametrize("method_class", [PoolAverage, OTA])
def test_different_networks_are_named(tmp_path, method_class):
    write_member(tmp_path / "a")
    write_member(tmp_path / "b", num_classes=5, label_names=list("vwxyz"), dfml={})
    with pytest.raises(ValueError, match=r"conv4_16 with 3 outputs for 3x16x16 inputs: a; .*5 outputs.*: b"):
        method_class(method_class.Config(), make_model()).setup(ModelPool.from_dir(tmp_path), make_context())


def test_state_is_the_model(pool):
    method = PoolAverage(NoOptions(), make_model())
    method.setup(pool, make_context())
    again = PoolAverage(NoOptions(), make_model(seed=5))
    again.load_state_dict(method.state_dict(), pool, make_context())
    assert same(again.model.state_dict(), method.model.state_dict())
