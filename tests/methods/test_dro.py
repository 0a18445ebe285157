"""DRO: Algorithms 1 to 3, the ball, the stream, and exact resume."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from hf_dfml.learning.wasserstein import worst_embedding
from hf_dfml.methods import dro
from hf_dfml.methods.dro import DRO, DROConfig
from hf_dfml.pool import ModelPool
from hf_dfml.utils.checkpoint import load_tree, save_tree
from tests.methods.pools import OnceOnly, make_context, make_model, make_pool, parameters, run_steps
from tests.pool.members import write_member, write_pool

SMALL = DROConfig(epochs=3, embedding_dim=6)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return make_pool(tmp_path_factory.mktemp("dro"), 10)


def started(pool, config=SMALL, seed=0):
    method, context = DRO(config, make_model()), make_context(seed)
    method.setup(pool, context)
    return method, context


def weights(method):
    return parameters(method.model.state_dict(), method.model)


def test_one_offline_step_is_algorithm_1_written_out(pool):
    config = replace(
        SMALL,
        ball_steps=2,
        lr=0.02,
        sigma=2.0,
        gamma=0.7,
        ball_radius=1e6,
        ball_step_size=0.05,
        gamma_unit="likelihood",
    )
    method, context = started(pool, config)
    weight, bias = method.hyper.weight.detach().clone(), method.hyper.bias.detach().clone()
    embeddings = method.embeddings.clone()
    draws = torch.Generator().set_state(context.generator.get_state())
    i = method.training[0]
    method.iterate(i, method.targets[i], context.generator)

    j = method.validation[int(torch.randint(len(method.validation), (1,), generator=draws))]
    noise = torch.randn(6, generator=draws)
    # The gradients of |W e + b - theta|^2 / sigma^2, by hand.
    residual = 2 * (weight @ embeddings[i] + bias - method.targets[i]) / 4.0
    phi_weight = weight - 0.02 * torch.outer(residual, embeddings[i])
    phi_bias = bias - 0.02 * residual
    new_i = embeddings[i] - 0.02 * weight.T @ residual
    point = embeddings[j] + 0.01 * noise
    for _ in range(2):
        climb = 2 * phi_weight.T @ (phi_weight @ point + phi_bias - method.targets[j]) / 4.0
        point = point + 0.05 * (climb - 2 * 0.7 * (point - embeddings[j]))
    residual = 2 * (phi_weight @ point + phi_bias - method.targets[j]) / 4.0
    assert torch.allclose(method.hyper.weight, weight - 0.02 * torch.outer(residual, point), atol=1e-5)
    assert torch.allclose(method.hyper.bias, bias - 0.02 * residual, atol=1e-5)
    assert torch.allclose(method.embeddings[i], new_i, atol=1e-5)
    assert torch.allclose(method.embeddings[j], embeddings[j] - 0.02 * phi_weight.T @ residual, atol=1e-5)


def test_an_online_step_keeps_the_inner_step(pool):
    config = replace(SMALL, ball_steps=0)
    offline, context = started(pool, config)
    online, online_context = started(pool, replace(config, online=True))
    # Both draw the same split; the online stream's first member is given to the offline method by hand.
    i, before = online.training[0], online.hyper.bias.detach().clone()
    run_steps(online, online_context, 0, 1)
    j = next(j for j in online.validation if not torch.equal(online.embeddings[j], offline.embeddings[j]))
    target_i, target_j = offline.targets[i], offline.targets[j]
    e_i, e_j, weight = offline.embeddings[i], offline.embeddings[j], offline.hyper.weight.detach()
    residual_i = 2 * (weight @ e_i + before - target_i)
    phi_weight, phi_bias = weight - 0.03 * torch.outer(residual_i, e_i), before - 0.03 * residual_i
    residual_j = 2 * (phi_weight @ e_j + phi_bias - target_j)
    assert torch.allclose(online.hyper.bias, phi_bias - 0.03 * residual_j, atol=1e-5)


def test_the_product_is_the_network_of_the_mean_embedding(pool):
    method, context = started(pool)
    run_steps(method, context, 0, 1)
    with torch.no_grad():
        expected = method.hyper(method.embeddings.mean(0))
    assert torch.allclose(weights(method), expected)
    snapshot = method.snapshot(context)
    assert not snapshot.training and torch.allclose(parameters(snapshot.state_dict(), snapshot), expected)


def test_running_statistics_are_the_members_average(pool):
    method, _ = started(pool)
    for name in ("blocks.0.bn.running_mean", "blocks.3.bn.running_var"):
        members = torch.stack([pool.load(index).network.state_dict()[name] for index in range(len(pool))])
        assert torch.allclose(method.model.state_dict()[name], members.mean(0), atol=1e-6)


def test_gamma_has_no_effect_in_the_trap_and_an_effect_outside_it(pool):
    def trained(gamma, **changes):
        method, context = started(pool, replace(SMALL, gamma=gamma, **changes))
        run_steps(method, context, 0, 1)
        return weights(method)

    trap = {"ball_steps": 1, "ball_noise": 0.0, "ball_step_size": 0.1}
    assert torch.equal(trained(0.5, **trap), trained(10.0, **trap))
    assert not torch.allclose(trained(0.5), trained(10.0), atol=1e-6)


def test_gamma_decides_how_far_the_search_goes(pool):
    """Above the curvature the distance falls as gamma grows; below it, or if the step overshoots, the radius binds."""

    def distance(gamma, **changes):
        method, context = started(pool, replace(SMALL, gamma=gamma, **changes))
        return run_steps(method, context, 0, 1)[0]["wasserstein"]

    distances = [distance(gamma) for gamma in (10.0, 50.0, 200.0)]
    assert all(near < 0.5 * far for far, near in pairwise(distances)), distances
    assert distance(0.1) == pytest.approx(1, abs=1e-3)
    fixed = [distance(gamma, ball_step_size=3.0) for gamma in (2.0, 10.0)]
    assert fixed == pytest.approx([1.0, 1.0], abs=0.05)


@pytest.mark.parametrize("unit", ["curvature", "likelihood"])
def test_every_search_has_the_price_of_the_hyper_network_that_it_searches(pool, monkeypatch, unit):
    """The curvature grows within an epoch; a price of its beginning would be below it, where there is no maximum."""
    method, context = started(pool, replace(SMALL, gamma=3.0, gamma_unit=unit))
    prices, curvatures = [], []

    def search(loss, embedding, ball, generator):
        prices.append(ball.gamma)
        curvatures.append(torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, embedding))[-1].item() / 2)
        return worst_embedding(loss, embedding, ball, generator)

    monkeypatch.setattr(dro, "worst_embedding", search)
    run_steps(method, context, 0, 2)
    assert max(curvatures) > 2 * curvatures[0]
    expected = [3 * each for each in curvatures] if unit == "curvature" else [3.0] * len(prices)
    assert prices == pytest.approx(expected, rel=1e-3)


def test_the_explored_ball_is_logged_and_never_wider_than_the_radius(pool):
    method, context = started(pool, replace(SMALL, ball_radius=0.2, gamma=0.0))
    rows = run_steps(method, context, 0, 3)
    distances = [row["wasserstein"] for row in rows]
    assert distances[0] > 0 and max(distances) <= 0.2 + 1e-6 and rows[-1]["at_radius"] == 1.0
    still, context = started(pool, replace(SMALL, ball_steps=0))
    assert all(row["wasserstein"] < 1e-6 and not row["at_radius"] for row in run_steps(still, context, 0, 1))


def test_it_learns_to_predict_the_members_it_validates_on(pool):
    method, context = started(pool, replace(SMALL, epochs=60, ball_radius=0.05))
    losses = [row["outer_loss"] for row in run_steps(method, context, 0, method.num_steps)]
    assert method.num_steps == 60
    assert max(losses[-3:]) < 0.1 * losses[0]


def test_the_losses_are_those_of_before(pool):
    """A stored curve: a change of these numbers is a change of the method."""
    method, context = started(pool)
    rows = run_steps(method, context, 0, 3)
    assert [row["outer_loss"] for row in rows] == pytest.approx([131.844, 71.451, 24.657], rel=0.01)
    assert [row["bounding_gamma"] for row in rows] == pytest.approx([1.396, 6.790, 6.781], rel=0.01)


def test_online_every_member_is_loaded_exactly_once(pool):
    stream = OnceOnly(pool)
    method, context = started(stream, replace(SMALL, online=True))
    assert method.name == "DRO (online)" and method.num_steps == 8
    assert sorted(stream.loads) == sorted(method.validation), "before the stream starts, validation members alone"
    for step in range(8):
        run_steps(method, context, step, step + 1)
        assert set(stream.loads) == set(method.validation) | set(method.training[: step + 1])
    assert stream.loads == dict.fromkeys(range(10), 1)


@pytest.mark.parametrize("changes", [{}, {"online": True}, {"online": True, "align": True}])
def test_resume_is_exact(pool, tmp_path, changes):
    config = replace(SMALL, **changes)
    whole, context = started(pool, config)
    run_steps(whole, context, 0, 2)
    save_tree(tmp_path / "state", {"method": whole.state_dict(), "draws": context.generator.get_state()})
    run_steps(whole, context, 2, 3)

    state = load_tree(tmp_path / "state")
    resumed, context = DRO(config, make_model(seed=9)), make_context(seed=9)
    context.generator.set_state(state["draws"])
    resumed.load_state_dict(state["method"], pool, context)
    assert resumed.num_steps == whole.num_steps
    run_steps(resumed, context, 2, 3)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_a_resumed_stream_does_not_read_what_is_gone(pool, tmp_path):
    config = replace(SMALL, online=True)
    stream = OnceOnly(pool)
    method, context = started(stream, config)
    run_steps(method, context, 0, 3)
    save_tree(tmp_path / "state", method.state_dict())
    resumed = DRO(config, make_model())
    resumed.load_state_dict(load_tree(tmp_path / "state"), stream, context)
    run_steps(resumed, context, 3, 8)
    assert stream.loads == dict.fromkeys(range(10), 1)


def test_aligned_members_lie_nearer_to_the_first_validation_member(pool):
    def distances(method):
        reference = method.targets[method.validation[0]]
        return torch.stack([(method.targets[index] - reference).norm() for index in range(len(pool))])

    raw, aligned = distances(started(pool)[0]), distances(started(pool, replace(SMALL, align=True))[0])
    assert (aligned <= raw).all() and (aligned < raw - 0.1).sum() == len(pool) - 1


def test_members_of_different_networks_are_named_before_anything_is_loaded(tmp_path):
    write_pool(tmp_path, 2)
    write_member(tmp_path / "wide", architecture="conv4")
    mixed = OnceOnly(ModelPool.from_dir(tmp_path))
    with pytest.raises(
        ValueError, match=r"found 2: conv4_16 with 3 outputs.*: m-0, m-1; conv4 with 3 outputs.*: wide"
    ):
        started(mixed)
    assert not mixed.loads


def test_a_meta_model_of_another_head_size_is_named(pool):
    from hf_dfml.networks import create_network

    method = DRO(SMALL, create_network("conv4_16", num_classes=5, image_size=16))
    with pytest.raises(
        ValueError, match=r"'the meta-model' and 'm-\d' cannot be fused: 'fc.weight' has shape \(5, 16\)"
    ):
        method.setup(pool, make_context())


def test_a_pool_of_one_is_too_small(pool):
    with pytest.raises(ValueError, match="expected at least 2, the pool has 1"):
        started(pool[:1])


def test_a_rate_that_diverges_stops_the_run(pool):
    method, context = started(pool, replace(SMALL, lr=1e6, epochs=20))
    with pytest.raises(FloatingPointError, match="lower --lr"):
        run_steps(method, context, 0, method.num_steps)
