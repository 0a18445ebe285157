"""MFGP: the bound rises, the product is near the members' mean, resume is exact."""

import pytest
import torch

from hf_dfml.methods.mfgp import MFGP, MFGPConfig
from hf_dfml.utils.checkpoint import load_tree, save_tree
from tests.methods.pools import make_context, make_model, make_pool, parameters, run_steps
from tests.pool.members import state_of

SMALL = MFGPConfig(
    steps=150, batch_size=4, embedding_dim=4, processes=3, inducing_points=5, noise_dim=6, base_dim=6, lr=0.02
)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return make_pool(tmp_path_factory.mktemp("mfgp"), 6)


def started(pool, config=SMALL):
    method, context = MFGP(config, make_model()), make_context()
    method.setup(pool, context)
    return method, context


def test_the_product_explains_the_members_better_than_a_fresh_network(pool):
    method, context = started(pool)
    bounds = [row["negative_bound"] for row in run_steps(method, context, 0, method.num_steps)]
    assert sum(bounds[-10:]) < sum(bounds[:10])
    model = method.snapshot(context)
    members = torch.stack([parameters(state_of(seed), model) for seed in range(6)])
    mean = members.mean(0)
    product = parameters(model.state_dict(), model)
    # The mean of Gaussian-distributed weights is their average; the distance of a member from it is the baseline.
    assert (product - mean).norm() < 0.5 * (members - mean).norm(dim=1).mean()


def test_the_processes_depend_on_the_embedding(pool):
    method, context = started(pool)
    run_steps(method, context, 0, 20)
    method.fusion.processes.eval()
    with torch.no_grad():
        w = method.fusion.processes(method.fusion.embeddings).mean
    assert w.shape == (6, 3) and w.std(0).min() > 0


def test_resume_is_exact_and_the_global_stream_is_left_alone(pool, tmp_path):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    whole, context = started(pool)
    run_steps(whole, context, 0, 3)
    save_tree(tmp_path / "state", {"method": whole.state_dict(), "draws": context.generator.get_state()})
    run_steps(whole, context, 3, 6)
    assert torch.equal(torch.random.get_rng_state(), before)

    state = load_tree(tmp_path / "state")
    resumed, context = MFGP(SMALL, make_model(seed=4)), make_context(seed=4)
    resumed.load_state_dict(state["method"], pool, context)
    context.generator.set_state(state["draws"])
    run_steps(resumed, context, 3, 6)
    for name, tensor in whole.snapshot(context).state_dict().items():
        assert torch.equal(tensor, resumed.snapshot(context).state_dict()[name]), name


def test_without_gpytorch_the_extra_is_named(pool, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gpytorch", None)
    with pytest.raises(ModuleNotFoundError, match=r"hf_dfml\[gp\]"):
        started(pool)
