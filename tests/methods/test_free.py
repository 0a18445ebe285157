"""FREE on tiny pools: what a step leaves in the bank, the warm-up, the ablation's four settings, exact resume."""

import json
from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from hf_dfml.methods.base import Context
from hf_dfml.methods.free import FREE, FREEConfig
from hf_dfml.networks import create_network
from hf_dfml.pool import ModelPool
from hf_dfml.settings import flat
from hf_dfml.trainer import RunConfig, Trainer
from hf_dfml.utils.checkpoint import load_tree, save_tree
from hf_dfml.utils.seeding import spawn
from tests.methods.pools import without_seconds

TINY = {
    "adaptation_steps": 2,
    "images_per_class": 4,
    "latent_dim": 8,
    "generator_width": 4,
    "teachers_per_step": 3,
    "shift": 1,
    "replay_queries": 2,
    "replay_batch": 2,
    "replay_patience": 1,
    "inner_steps": 2,
    "warmup": 1,
    "steps": 4,
}


def write_member(folder, arch="conv4", classes=3, size=16, seed=0, names=None):
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    network = create_network(arch, num_classes=classes, image_size=size, generator=generator)
    save_file(network.state_dict(), folder / "model.safetensors")
    settings = {"input_size": [3, size, size], "mean": [0.5] * 3, "std": [0.25] * 3}
    settings["fixed_input_size"] = arch.startswith("conv4")
    config = {"architecture": arch, "num_classes": classes, "pretrained_cfg": settings}
    (folder / "config.json").write_text(json.dumps(config | ({"label_names": names} if names else {})))


@pytest.fixture
def pool(tmp_path):
    """Four conv4 networks of three classes each, whose names overlap."""
    for member in range(4):
        names = [f"class-{(member + k) % 5}" for k in range(3)]
        write_member(tmp_path / "pool" / f"member-{member}", seed=member, names=names)
    return ModelPool.from_dir(tmp_path / "pool")


def network_of(ways=3, size=16):
    return create_network("conv4_16", num_classes=ways, image_size=size, generator=torch.Generator().manual_seed(9))


def method_of(pool, network=None, seed=0, **changes):
    """A method that has been set up, and its context after the warm-up."""
    method = FREE(FREEConfig(**{**TINY, **changes}), network or network_of())
    context = Context(torch.Generator().manual_seed(seed), step=1)
    method.setup(pool, context)
    return method, context


def test_every_recovered_task_is_in_the_bank_after_a_step(pool):
    """The released code stores the last of the four only."""
    method, context = method_of(pool)
    method.step(context)
    assert len(method.newest) == 3 and len(method.bank) == 3 * 3 * 4
    for task in method.newest:
        for label, name in enumerate(task.class_names):
            stored = {tuple(image.flatten().tolist()) for image in method.bank[name]}
            ours = (task.images[task.labels == label] * 255).round().to(torch.uint8)
            assert {tuple(image.flatten().tolist()) for image in ours} <= stored


def test_the_last_task_alone_is_stored_as_in_the_released_code_if_asked_for(pool):
    (every, of_all), (last, of_last) = method_of(pool), method_of(pool, stored_tasks="last")
    every.step(of_all)
    last.step(of_last)
    assert len(last.bank) == 3 * 4 and len(last.newest) == 1
    (kept,) = last.newest
    assert torch.equal(kept.images, every.newest[-1].images) and set(last.bank.class_names) == set(kept.class_names)


def test_the_warm_up_trains_the_meta_generator_alone(pool):
    method, context = method_of(pool, warmup=2)
    before = {name: value.clone() for name, value in method.model.state_dict().items()}
    generators = [method.meta_generator.network.linear.weight.clone()]
    for context.step in (0, 1):
        metrics = method.step(context)
        generators.append(method.meta_generator.network.linear.weight.clone())
        assert set(metrics) == {"generator_loss", "recovery_seconds"}
        assert len(method.bank) == 0 and method.newest == [] and method.pictures(None) == []
    assert all(not torch.equal(a, b) for a, b in pairwise(generators))
    assert all(torch.equal(value, before[name]) for name, value in method.model.state_dict().items())
    context.step = 2
    metrics = method.step(context)
    assert metrics["bank_images"] == 36 and metrics["replay_batches"] > 0 and "gradient_inner_product" in metrics
    assert not torch.equal(method.model.fc.weight, before["fc.weight"])


def test_the_warm_up_has_no_boundary_term(pool):
    """With the term, the adapted generator depends on the meta-model; without, it does not."""
    other = create_network("conv4_16", num_classes=3, image_size=16, generator=torch.Generator().manual_seed(33))
    for step, alike in ((0, True), (1, False)):
        weights = []
        for network in (network_of(), other):
            method, context = method_of(pool, network, boundary_weight=20.0)
            context.step = step
            method.step(context)
            weights.append(method.meta_generator.network.linear.weight)
        assert torch.equal(*weights) is alike


def test_a_run_that_is_all_warm_up_is_refused():
    with pytest.raises(ValueError, match="20 steps of warm-up.* --steps above 20"):
        FREE(FREEConfig(steps=20), network_of())


ROWS = {
    "FREE baseline (k=2)": {"five": False, "bell": "none"},
    "FREE with FIVE (k=2)": {"bell": "erm"},
    "FREE with BELL (k=2)": {"five": False},
    "FREE (k=2)": {},
}
"""The rows of the paper's Table 5."""


def test_the_four_rows_of_the_ablation_differ_as_they_should(pool):
    """`five` decides what is recovered, `bell` what is learned from it; neither touches the other's part."""
    images, learned = {}, {}
    for row, changes in ROWS.items():
        # No replay, so that what is learned is the one step of BELL or ERM.
        method, context = method_of(pool, replay_queries=100, **changes)
        before = method._position()
        metrics = method.step(context)
        assert method.name == row
        images[row] = torch.stack([task.images for task in method.newest])
        learned[row] = method._position()
        assert metrics["bell_share"] == (0 if changes.get("bell") == "none" else 1)
        assert torch.equal(before, learned[row]) is (changes.get("bell") == "none")
    baseline, five, bell, both = images.values()
    assert torch.equal(both, five) and torch.equal(baseline, bell) and not torch.allclose(both, bell, atol=1e-3)
    assert all(not torch.equal(a, b) for a, b in pairwise(learned.values()))


def test_the_share_of_bell_is_its_part_of_the_steps_movement(pool):
    """With the replay in the step, the share lies between; the printed rates of the paper are not seen beside it."""
    shares = {}
    for name, changes in {
        "released": {},
        "paper": {"bell": "paper"},
        "printed": {"bell": "paper", "bell_lr": 1e-3, "bell_epsilon": 1e-3},
    }.items():
        method, context = method_of(pool, **changes)
        shares[name] = method.step(context)["bell_share"]
    assert 0.1 < shares["released"] < 0.9 and 0.02 < shares["paper"] < 0.9
    assert shares["printed"] < 1e-3


def test_the_papers_rule_moves_by_epsilon_and_the_released_one_by_adam(pool):
    """Epsilon scales the paper's step; Adam's first step is its learning rate for each weight with a gradient."""
    moved = {}
    for epsilon in (1.0, 0.25):
        method, context = method_of(pool, replay_queries=100, bell="paper", bell_epsilon=epsilon)
        before = method._position()
        method.step(context)
        moved[epsilon] = method._position() - before
    assert torch.allclose(moved[0.25], 0.25 * moved[1.0], atol=1e-7) and moved[1.0].norm() > 1e-3
    method, context = method_of(pool, replay_queries=100)
    before = method._position()
    method.step(context)
    steps = (method._position() - before).abs()
    assert steps.max() == pytest.approx(1e-3, rel=1e-3) and steps.median() == pytest.approx(1e-3, rel=1e-2)


def test_bell_has_its_own_moments_or_those_of_the_replay(pool):
    own, context = method_of(pool, replay_queries=100)
    shared, other = method_of(pool, replay_queries=100, bell_optimizer="shared")
    own.step(context), shared.step(other)
    assert own.optimizer.state == {} and own.bell_optimizer.state
    assert shared.bell_optimizer is shared.optimizer and shared.optimizer.state
    assert "bell_optimizer" in own.state_dict() and "bell_optimizer" not in shared.state_dict()


def test_the_generator_of_the_baseline_goes_from_teacher_to_teacher(pool):
    """The second teacher starts from what the first one left, as if the first had been the step before."""
    first, second = pool.load(0), pool.load(1)
    together, context = method_of(pool, five=False)
    apart, other = method_of(pool, five=False)
    stream = context.generator.get_state()
    together.meta_generator.recover([first, second], context.generator)
    streams = spawn(torch.Generator().set_state(stream), 2)
    for teacher, each in zip((first, second), streams, strict=True):
        apart.meta_generator._adapt(apart.meta_generator.network, teacher, each, None)
    ours, theirs = (one.meta_generator.network.state_dict() for one in (together, apart))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_bell_of_a_vanishing_rate_learns_what_erm_does(pool):
    """By SGD, since Adam would enlarge what is rounding in the gradients that are zero."""
    weights = []
    for changes in ({"bell": "erm"}, {"bell": "paper", "bell_lr": 1e-4, "bell_epsilon": 1e4 / 3}):
        method, context = method_of(pool, replay_queries=100, **changes)
        method.bell_optimizer = torch.optim.SGD(method.model.parameters(), 1.0)
        method.step(context)
        weights.append(method._position())
    assert torch.allclose(*weights, atol=1e-3) and not torch.allclose(weights[0], network_position(), atol=1e-2)


def network_position():
    return torch.cat([value.detach().flatten() for value in network_of().parameters()])


def test_fewer_steps_of_adaptation_have_a_name_of_their_own(pool):
    assert FREE(FREEConfig(adaptation_steps=2), network_of()).name == "FREE (k=2)"
    assert FREE(FREEConfig(adaptation_steps=5), network_of()).name == "FREE"


@pytest.mark.parametrize("five", [True, False])
def test_state_that_was_stored_goes_on_exactly(pool, tmp_path, five):
    method, context = method_of(pool, five=five, warmup=0)
    method.step(context)
    assert method.bell_optimizer.state
    save_tree(tmp_path / "state", method.state_dict())
    stream = context.generator.get_state()
    resumed = FREE(method.config, network_of())
    resumed.load_state_dict(load_tree(tmp_path / "state"), pool, Context(torch.Generator()))
    runs = []
    for one in (method, resumed):
        again = Context(torch.Generator(), step=2)
        again.generator.set_state(stream)
        runs.append(without_seconds([one.step(again) for _ in range(2)]))
    assert runs[0] == runs[1] and runs[0][0] != runs[0][1]
    for name, value in method.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_an_interrupted_run_ends_in_the_same_weights(pool, tmp_path):
    """Stopped in the warm-up, where the meta-generator and its optimiser are all there is."""

    def trainer_of(folder, resume=None):
        settings = RunConfig(
            output_dir=str(folder), checkpoint_every=1, resume_from_checkpoint=resume, log_with="none"
        )
        method = FREE(FREEConfig(**{**TINY, "warmup": 2}), network_of())
        return Trainer(method, pool, settings, Accelerator(cpu=True))

    whole = trainer_of(tmp_path / "whole").fit()
    first = trainer_of(tmp_path / "parts")
    step = first.method.step

    def step_then_stop(context):
        first._stop = "the test stops it"
        return step(context)

    first.method.step = step_then_stop
    assert first.fit().progress.step == 1
    resumed = trainer_of(tmp_path / "parts", "latest").fit()
    assert resumed.finished
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize("five", [True, False])
def test_members_may_differ_in_architecture_classes_and_size(tmp_path, five):
    """Also in more classes than the meta-model has outputs; a picture of them shows the same images."""
    write_member(tmp_path / "pool" / "few", "conv4", classes=2, size=32)
    write_member(tmp_path / "pool" / "many", "conv4_16", classes=5, size=16)
    write_member(tmp_path / "pool" / "other", "resnet10", classes=3, size=16)
    pool = ModelPool.from_dir(tmp_path / "pool").resolve()
    method, context = method_of(pool, network_of(size=20), five=five, teachers_per_step=6, boundary_weight=0.5)
    metrics = method.step(context)
    assert {task.member for task in method.newest} == {"few", "many", "other"}
    assert all(task.images.shape[1:] == (3, 20, 20) for task in method.newest)
    assert set(method.bank.class_names) == {f"few#{k}" for k in range(2)} | {f"many#{k}" for k in range(5)} | {
        f"other#{k}" for k in range(3)
    }
    assert metrics["loss"] > 0 and metrics["replay_batches"] > 0
    written = method.pictures(tmp_path / "pictures")
    assert [path.name for path in written] == ["recovered.png", "teachers.png"] and all(p.is_file() for p in written)


def test_the_defaults_are_the_papers():
    config = flat(FREEConfig())
    expected = {
        "steps": 1000,
        "warmup": 20,
        "teachers_per_step": 4,
        "adaptation_steps": 5,
        "adaptation_lr": 1e-3,
        "latent_lr": 1e-3,
        "meta_generator_lr": 1e-3,
        "bell_adam_lr": 1e-3,
        "bell_scale": 67.0,
        "outer_lr": 1e-3,
        "images_per_class": 20,
        "ce_weight": 1.0,
        "bn_weight": 0.0,
        "boundary_weight": 1.0,
        "bank_per_class": 400,
        "replay_batch": 10,
        "replay_patience": 10,
        "inner_steps": 5,
        "inner_lr": 0.01,
        "distillation_ce": 0.0,
        "five": True,
        "bell": "released",
    }
    assert {name: config[name] for name in expected} == expected
