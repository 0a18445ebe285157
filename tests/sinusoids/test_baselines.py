"""Fresh weights and the average of a pool as methods."""

import pytest
import torch

from hf_dfml.learning.fusion import average_state
from hf_dfml.methods.base import NoOptions
from hf_dfml.methods.weight_space import run_without_trainer
from hf_dfml.sinusoids.baselines import PoolAverage, RandomInit
from tests.methods.pools import OnceOnly, make_context, make_model, make_pool
from tests.pool.members import state_of


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return make_pool(tmp_path_factory.mktemp("baselines"), 4)


def same(first, second, atol=0.0):
    return all(torch.allclose(first[name].float(), tensor.float(), atol=atol) for name, tensor in second.items())


def test_random_init_looks_at_nothing(pool):
    empty_handed = OnceOnly(pool)
    model = run_without_trainer(RandomInit(NoOptions(), make_model()), empty_handed, make_context())
    assert same(model.state_dict(), make_model().state_dict()) and not empty_handed.loads


def test_the_average_is_that_of_all_members_each_loaded_once(pool):
    once = OnceOnly(pool)
    model = run_without_trainer(PoolAverage(NoOptions(), make_model()), once, make_context())
    assert same(model.state_dict(), average_state([state_of(seed) for seed in range(4)]), atol=1e-6)
    assert len(once.loads) == 4


def test_state_is_the_model(pool):
    method = PoolAverage(NoOptions(), make_model())
    method.setup(pool, make_context())
    again = PoolAverage(NoOptions(), make_model(seed=5))
    again.load_state_dict(method.state_dict(), pool, make_context())
    assert same(again.model.state_dict(), method.model.state_dict())
