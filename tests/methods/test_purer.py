"""PURER on tiny pools: the curriculum's switch, the adversarial term, heterogeneous members, exact resume."""

import copy
from types import SimpleNamespace

import pytest
import torch

from hf_dfml.learning.fusion import average_state
from hf_dfml.methods import purer
from hf_dfml.methods.purer import PURER, PURERConfig
from hf_dfml.networks import create_network
from hf_dfml.pool import ModelPool
from hf_dfml.settings import flat
from hf_dfml.utils.checkpoint import load_tree, save_tree
from hf_dfml.utils.seeding import spawn
from tests.methods.pools import make_context, make_mixed_pool, make_model, make_pool, run_steps, without_seconds
from tests.pool.members import write_member

TINY = {"images_per_class": 4, "replay_queries": 3, "replay_batch": 2, "warmup": 2, "patience": 2, "shift": 1}


def method_of(pool, model=None, seed=0, **changes):
    method = PURER(PURERConfig(**{**TINY, **changes}), model or make_model())
    context = make_context(seed)
    method.setup(pool, context)
    return method, context


def test_the_defaults_are_the_released_scripts():
    config = SimpleNamespace(**flat(PURERConfig()))
    assert (config.steps, config.warmup, config.patience, config.adversarial_weight) == (60_000, 4000, 6, 10.0)
    assert (config.recovery_lr, config.bn_weight, config.tv_weight, config.l2_weight) == (0.25, 0.01, 1e-4, 1e-5)
    assert (config.inner_steps, config.inner_lr, config.outer_lr, config.replay_batch) == (1, 0.01, 1e-3, 4)


def test_every_class_name_of_the_pool_has_its_images(tmp_path):
    method, _ = method_of(make_mixed_pool(tmp_path))
    assert method.bank.class_names == ("wolf", "ant", "cat", "emu", "bee", "yak", "dog")
    assert all(method.bank[name].shape == (4, 3, 16, 16) for name in method.bank.class_names)


def test_the_switch_follows_the_meta_models_accuracy(tmp_path, monkeypatch):
    """Nothing in the warm-up of 2, on once at its end, then after every 2 steps without a better accuracy."""
    scripted = iter([0.9, 0.9, 0.3, 0.4, 0.4, 0.4, 0.1, 0.2, 0.2, 0.1])
    monkeypatch.setattr(purer, "replay_step", lambda *args, **options: (1.0, next(scripted)))
    method, context = method_of(make_pool(tmp_path, 1))
    metrics = run_steps(method, context, 0, 10)
    assert [row["adversarial"] for row in metrics] == [0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
    assert method.switch.due  # 0.2 and 0.1 are no better than 0.2: the next step would be one.


def test_without_the_curriculum_the_images_are_moved_by_inversion_alone(tmp_path, monkeypatch):
    """The switch goes on as it does; what it would do is left out."""
    monkeypatch.setattr(purer, "replay_step", lambda *args, **options: (1.0, 0.0))
    pool, pixels, switched = make_pool(tmp_path, 2), {}, {}
    for name, changes in {"on": {}, "off": {"curriculum": False}, "no weight": {"adversarial_weight": 0.0}}.items():
        method, context = method_of(pool, warmup=0, shift=0, **changes)
        switched[name] = [row["adversarial"] for row in run_steps(method, context, 0, 1)]
        pixels[name] = method.bank.pixels.values.detach().clone()
    assert switched == {"on": [1.0], "off": [0.0], "no weight": [1.0]}
    assert torch.allclose(pixels["off"], pixels["no weight"], atol=1e-5)
    assert not torch.allclose(pixels["on"], pixels["off"], atol=1e-3)


def test_the_adversarial_term_is_minus_ten_times_the_outer_loss_of_an_episode(tmp_path, monkeypatch):
    """With plain descent the images of the first adversarial step differ by 10 times that loss's gradient."""
    monkeypatch.setattr(purer, "replay_step", lambda *args, **options: (1.0, 0.0))
    pool = make_pool(tmp_path, 2)

    def after_a_step(**changes):
        method, context = method_of(pool, shift=0, warmup=0, **changes)
        method.bank.optimizer = torch.optim.SGD([method.bank.pixels.values], 1e-2)
        with torch.no_grad():
            method.bank.pixels.values.mul_(0.1)
        before = copy.deepcopy(method.bank.pixels.values.detach())
        state = context.generator.get_state()
        loss = method._episode_loss(*spawn(context.generator, 1))
        expected = torch.autograd.grad(loss, method.bank.pixels.values)[0]
        context.generator.set_state(state)
        method.step(context)
        return (method.bank.pixels.values.detach() - before) / 1e-2, expected

    hard, slope = after_a_step()
    plain, _ = after_a_step(adversarial_weight=0.0)
    torch.testing.assert_close(hard - plain, 10 * slope, rtol=1e-2, atol=1e-4)
    assert slope.abs().max() > 1e-3


def test_first_order_maml_still_sends_the_adversarial_gradient_to_the_support_images(tmp_path):
    method, context = method_of(make_pool(tmp_path, 1), second_order=False, replay_shots=3, replay_queries=1)
    loss = method._episode_loss(context.generator)
    (slope,) = torch.autograd.grad(loss, method.bank.pixels.values)
    assert (slope.flatten(2).abs().amax(2) > 0).all(), "all four images of each class, three of them support"
    assert all(parameter.grad is None for parameter in method.model.parameters())


def test_members_are_drawn_for_each_update(tmp_path, monkeypatch):
    method, context = method_of(make_pool(tmp_path, 5), members_per_step=2)
    learn, asked = method.bank.learn, []

    def recorded(teachers, *rest):
        asked.append(tuple(load().entry.id for load in teachers))
        return learn(teachers, *rest)

    monkeypatch.setattr(method.bank, "learn", recorded)
    run_steps(method, context, 0, 8)
    assert all(len(set(ids)) == 2 for ids in asked) and len({id for ids in asked for id in ids}) == 5
    every, context = method_of(make_pool(tmp_path / "all", 3))
    monkeypatch.setattr(every.bank, "learn", lambda teachers, *rest: asked.append(len(list(teachers))) or {})
    every.step(context)
    assert asked[-1] == 3


def test_it_starts_from_the_pools_average_if_asked_to(tmp_path):
    pool = make_pool(tmp_path, 3)
    method, _ = method_of(pool, average=True)
    expected = average_state(pool.load(index).network.state_dict() for index in range(3))
    assert all(torch.equal(value, expected[name]) for name, value in method.model.state_dict().items())
    with pytest.raises(ValueError, match="members of one architecture and head size"):
        method_of(make_mixed_pool(tmp_path), average=True)


def test_members_of_any_architecture_size_and_classes_teach_together(tmp_path):
    """conv4 of 3 classes at 16 pixels and resnet10 of 5 at 20; the meta-model takes 20 and tells 4 apart."""
    model = create_network("conv4_global", num_classes=4, image_size=20, generator=torch.Generator().manual_seed(0))
    method, context = method_of(make_mixed_pool(tmp_path), model, recovery_lr=0.1)
    before = copy.deepcopy(model.state_dict())
    metrics = run_steps(method, context, 0, 4)
    assert all(row["inversion_loss"] > 0 for row in metrics) and metrics[2]["adversarial"] == 1
    assert all(row["recovery_seconds"] > 0 for row in metrics)
    assert not torch.equal(model.state_dict()["fc.weight"], before["fc.weight"])
    assert method.bank["yak"].shape == (4, 3, 20, 20)
    assert method.snapshot(context)(torch.rand(2, 3, 20, 20)).shape == (2, 4)
    assert [path.name for path in method.pictures(tmp_path / "pictures")] == ["recovered.png"]


def test_a_resumed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    pool = make_pool(tmp_path, 3)
    whole, context = method_of(pool, members_per_step=2, patience=1)
    expected = run_steps(whole, context, 0, 9)
    first, context = method_of(pool, members_per_step=2, patience=1)
    begun = run_steps(first, context, 0, 5)
    save_tree(tmp_path / "state", {"method": first.state_dict(), "generator": context.generator.get_state()})
    state = load_tree(tmp_path / "state")

    second, context = PURER(first.config, make_model(seed=5)), make_context(seed=9)
    second.load_state_dict(state["method"], pool, context)
    context.generator.set_state(state["generator"])
    assert without_seconds(begun + run_steps(second, context, 5, 9)) == without_seconds(expected)
    assert sum(row["adversarial"] for row in expected[5:]) > 0
    assert torch.equal(second.bank.pixels.values, whole.bank.pixels.values)
    ours, theirs = second.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_classes_are_one_by_their_keys_and_those_without_names_stay_apart_after_a_resume(tmp_path):
    for index, names in enumerate((["Polar_bear", "dog", "fox"], ["polar bear", "Cat", "cat"], None)):
        write_member(tmp_path / "pool" / f"m-{index}", seed=index, label_names=names)
    pool = ModelPool.from_dir(tmp_path / "pool")
    method, context = method_of(pool)
    # A member of two spellings of one class keeps its own names.
    assert method.bank.class_names[:6] == ("polar bear", "dog", "fox", "Cat", "cat", "m-2#0")
    state = method.state_dict()
    for earlier in (False, True):
        if earlier:
            state["bank"]["class_names"][0] = "Polar_bear"
        again, context = PURER(method.config, make_model()), make_context()
        again.load_state_dict(state, pool, context)
        assert again.bank.class_names == method.bank.class_names
        again.step(context)


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(ValueError, match="images_per_class=4: an episode of 5 shots and 3 queries takes 8 images"):
        PURER(PURERConfig(**TINY, replay_shots=5), make_model())
    many = create_network("conv4_16", num_classes=20, image_size=16)
    with pytest.raises(ValueError, match="knows 3 classes, episodes have 20"):
        method_of(make_pool(tmp_path, 2), many)
