"""Pool distillation on tiny pools: what a student is asked for, its exact resume, its interrupted setup."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from hf_dfml import MetaModel
from hf_dfml.arguments import parse
from hf_dfml.data import dataset_info
from hf_dfml.evaluation import selection
from hf_dfml.learning.distillation import neighbour_loss
from hf_dfml.methods import ensemble_view as pool_view
from hf_dfml.methods import pool_distillation
from hf_dfml.methods.catalogue import METHODS
from hf_dfml.methods.pool_distillation import PoolDistillation, PoolDistillationConfig, features_of
from hf_dfml.networks import create_network
from hf_dfml.pipeline import run
from hf_dfml.pool import ModelPool
from hf_dfml.run_config import RunConfig
from hf_dfml.trainer import Trainer
from tests.methods.pools import make_context, make_mixed_pool, make_pool, run_steps
from tests.pool.members import write_member

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "hf_dfml" / "presets" / "pool-distillation-cifar-fs-cpu.yaml"
TINY = {
    "recovery_steps": 2,
    "images_per_class": 4,
    "recoveries": 1,
    "num_images": 48,
    "landmarks": 32,
    "target_dim": 16,
    "crop_padding": 2,
    "steps": 4,
    "batch_size": 16,
}


def make_method(size: int = 16, arch: str = "conv4_16", **changes) -> PoolDistillation:
    network = create_network(arch, num_classes=3, image_size=size, generator=torch.Generator().manual_seed(5))
    return PoolDistillation(PoolDistillationConfig(**{**TINY, **changes}), network)


def trainer_of(pool, folder, resume=None, **changes) -> Trainer:
    config = RunConfig(output_dir=str(folder), checkpoint_every=1, resume_from_checkpoint=resume, log_with="none")
    return Trainer(make_method(**changes), pool, config, Accelerator(cpu=True))


def test_members_of_different_architecture_size_and_labels_all_take_part(tmp_path):
    pool = make_mixed_pool(tmp_path)
    method, context = make_method(size=20), make_context()
    method.setup(pool, context)
    assert method.images.shape == (48, 3, 20, 20) and method.images.dtype == torch.uint8
    assert method.targets.shape == (48, 16) and method.targets.dtype == torch.float16
    alone = make_method(size=20)
    alone.setup(pool[:1], context)
    assert not torch.equal(alone.targets, method.targets)
    assert 0.5 < method.agreement <= 1
    before = [parameter.clone() for parameter in method.model.blocks.parameters()]
    metrics = method.step(context)
    assert metrics["target_agreement"] == method.agreement and metrics["direction_loss"] > 0
    assert not any(map(torch.equal, before, method.model.blocks.parameters()))


def test_the_student_starts_from_the_best_member_of_its_kind(tmp_path):
    for seed, (name, arch, accuracy) in enumerate(
        [("weak", "conv4_16", 0.4), ("best", "conv4_16", 0.9), ("z-other", "conv4", 0.95)]
    ):
        write_member(tmp_path / name, architecture=arch, seed=seed, dfml={"val_accuracy": accuracy})
    pool = ModelPool.from_dir(tmp_path)
    best = next(index for index, entry in enumerate(pool) if entry.id == "best")
    method, random = make_method(), make_method(start="random")
    before = method.model.get_classifier().weight.clone()
    pool_distillation.start_from_member(method.model, pool)
    weights = pool.load(best).network.state_dict()
    assert torch.equal(method.model.blocks[0].conv.weight, weights["blocks.0.conv.weight"])
    assert torch.equal(method.model.get_classifier().weight, before)
    random.setup(pool[:1], make_context())
    assert pool[0].id == "best" and not torch.equal(
        random.model.blocks[0].conv.weight, weights["blocks.0.conv.weight"]
    )


def test_members_that_give_probabilities_only_take_part_through_those(tmp_path):
    """Three probabilities, centred: the targets have two dimensions."""
    method = make_method(target_outputs="probabilities", target_dim=4)
    method.setup(make_pool(tmp_path, 1), make_context())
    lengths = torch.linalg.vector_norm(method.targets.float(), dim=0)
    assert (lengths[:2] > 0.1).all() and (lengths[2:] < 0.01).all()
    assert method.agreement > 0.999
    assert method.step(make_context())["loss"] > 0


def test_the_loss_is_zero_for_a_student_that_reproduces_the_targets():
    method = make_method(target_dim=16, neighbour_target_temperature=0.05)
    images = torch.rand(12, 3, 16, 16)
    assert method.width == 16
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0))).Q
    with torch.no_grad():
        features = features_of(method.model, images)
        method.objective["map"].weight.copy_(rotation)
        assert method.losses(images, F.normalize(features) @ rotation.T).abs().max() < 1e-6
        other = torch.randn(12, 16, generator=torch.Generator().manual_seed(1))
        assert (method.losses(images, F.normalize(other)) > 0.05).all()


def test_neighbours_are_those_of_targets_that_are_equalised_further():
    method = make_method(target_dim=16, whiten=0.1, neighbour_equalise=0.5)
    generator = torch.Generator().manual_seed(2)
    images, found = torch.rand(12, 3, 16, 16, generator=generator), torch.randn(12, 16, generator=generator)
    method.spread = torch.logspace(0, -3, 16)
    targets = F.normalize(found * method.spread**-0.05)
    config = method.config
    with torch.no_grad():
        wanted = neighbour_loss(
            features_of(method.model, images),
            found * method.spread**-0.25,
            config.neighbour_temperature,
            config.neighbour_target_temperature,
        )
        torch.testing.assert_close(method.losses(images, targets)[2], wanted)
        method.spread = torch.ones(16)
        assert (method.losses(images, targets)[2] - wanted).abs() > 0.01


def test_both_losses_fall_to_a_part_of_what_they_are_in_the_first_pass(tmp_path):
    """Measured over ten seeds: the direction to at most 0.033 of it, the similarity to at most 0.161."""
    pool, context = make_pool(tmp_path, 2), make_context()
    method = make_method(steps=30, num_images=64)
    method.setup(pool, context)
    history = run_steps(method, context, 0, 30)
    for name, share in (("direction_loss", 0.07), ("similarity_loss", 0.3)):
        assert history[-1][name] < share * history[0][name], name


def test_the_rate_goes_up_once_and_down_to_almost_zero(tmp_path):
    method, context = make_method(steps=10), make_context()
    method.setup(make_pool(tmp_path, 1), context)
    rates = [row["lr"] for row in run_steps(method, context, 0, 10)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert 0.95 * 3e-3 < max(rates) <= 3e-3 and rates[-1] < 0.01 * 3e-3 and 1 <= top <= 4


def test_an_interrupted_run_ends_in_the_same_weights(tmp_path):
    pool = make_pool(tmp_path, 2)
    whole = trainer_of(pool, tmp_path / "whole").fit()

    class Killed(Exception):
        pass

    first = trainer_of(pool, tmp_path / "parts")
    plain_step = first.method.step

    def step_or_die(context):
        if context.step == 2:
            raise Killed
        return plain_step(context)

    first.method.step = step_or_die
    with pytest.raises(Killed):
        first.fit()
    resumed = trainer_of(pool, tmp_path / "parts", resume="latest").fit()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert [row["loss"] for row in resumed.progress.history] == [row["loss"] for row in whole.progress.history]


def test_images_that_another_run_has_recovered_are_not_recovered_again(tmp_path, monkeypatch):
    pool, recovered = make_pool(tmp_path, 2), []
    plain_recover = pool_view.recover

    def counted_recover(teacher, *arguments, **options):
        recovered.append(teacher.entry.id)
        return plain_recover(teacher, *arguments, **options)

    monkeypatch.setattr(pool_view, "recover", counted_recover)
    context = replace(make_context(), cache=tmp_path / "cache")
    sets = {}
    for name, options in {
        "first": {},
        "other_rate": {"lr": 1e-4},
        "more_steps": {"recovery_steps": 3},
    }.items():
        before = len(recovered)
        method = make_method(**options)
        method.setup(pool, context)
        sets[name] = (len(recovered) - before, method.images)
    assert [count for count, _ in sets.values()] == [2, 0, 2]
    assert torch.equal(sets["first"][1], sets["other_rate"][1])
    assert not torch.equal(sets["first"][1], sets["more_steps"][1])
    before = len(recovered)
    make_method().setup(pool, replace(context, seed=context.seed + 1))
    make_method().setup(pool[:1], context)
    assert len(recovered) - before == 2  # Another seed both, one member of the same seed none.


def test_an_interrupted_setup_goes_on_and_ends_in_the_same_targets(tmp_path, monkeypatch):
    pool = make_pool(tmp_path, 4)
    whole = trainer_of(pool, tmp_path / "whole", steps=0)
    whole.fit()
    recovered, seen = [], []
    recover, products = pool_view.recover, pool_view.ensemble_products

    def counted_recover(teacher, *arguments, **options):
        recovered.append(teacher.entry.id)
        if len(recovered) == 3:
            raise KeyboardInterrupt
        return recover(teacher, *arguments, **options)

    def counted_products(members, *arguments):
        seen.append(len(recovered))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return products(members, *arguments)

    monkeypatch.setattr(pool_view, "recover", counted_recover)
    monkeypatch.setattr(pool_view, "ensemble_products", counted_products)
    monkeypatch.setattr(pool_view, "MEMBERS_AT_ONCE", 2)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            trainer_of(pool, tmp_path / "parts", steps=0).fit()
    last = trainer_of(pool, tmp_path / "parts", steps=0)
    last.fit()
    assert recovered == ["m-0", "m-1", "m-2", "m-2", "m-3"], "no member twice but the interrupted one"
    assert seen == [5, 5, 5], "the first two members' part was kept, the other one interrupted"
    assert torch.equal(last.method.images, whole.method.images)
    torch.testing.assert_close(last.method.targets, whole.method.targets, atol=2e-3, rtol=0)


def test_a_second_setup_in_another_order_of_draws_gives_the_same(tmp_path):
    """Nothing in the setup comes from the run's generator, whose state is saved after it."""
    pool = make_pool(tmp_path, 2)
    methods = [make_method(), make_method()]
    for method, draws in zip(methods, (0, 7), strict=True):
        context = make_context()
        torch.rand(draws, generator=context.generator)
        before = context.generator.get_state()
        method.setup(pool, context)
        assert torch.equal(context.generator.get_state(), before)
    assert torch.equal(methods[0].targets, methods[1].targets)
    assert torch.equal(methods[0].objective["map"].weight, methods[1].objective["map"].weight)


def test_a_snapshot_is_a_copy_with_the_running_statistics_of_training(tmp_path):
    method, context = make_method(start="random"), make_context()
    method.setup(make_pool(tmp_path, 1), context)
    fresh = method.snapshot(context)
    method.step(context)
    trained = method.snapshot(context)
    assert not trained.training
    assert torch.equal(fresh.blocks[0].bn.running_mean, torch.zeros(16))
    assert trained.blocks[0].bn.running_mean.abs().max() > 0
    method.step(context)
    assert not torch.equal(trained.blocks[0].conv.weight, method.model.blocks[0].conv.weight)


def test_too_few_images_are_refused_with_what_to_do(tmp_path):
    pool = make_pool(tmp_path, 1)
    with pytest.raises(ValueError, match="8 images make no batch of 16: raise --num_images"):
        make_method(num_images=8).setup(pool, make_context())
    with pytest.raises(ValueError, match="64 principal directions cannot be found from 32 images: lower --target_dim"):
        make_method(target_dim=64).setup(pool, make_context())


def test_a_loss_that_is_not_a_number_is_an_error(tmp_path):
    method, context = make_method(lr=1e30), make_context()
    method.setup(make_pool(tmp_path, 1), context)
    with pytest.raises(FloatingPointError, match="lower --lr"):
        run_steps(method, context, 0, 4)


def test_the_configuration_that_was_measured_is_the_default():
    method, config = parse(PoolDistillation, RunConfig, ["--config", str(CONFIG), "--pool", "x"])
    assert method == PoolDistillationConfig()
    assert config.dataset == "cifar-fs" and config.output_dir == f"runs/{CONFIG.stem}" and config.num_members == 0
    assert METHODS["pool_distillation"] == PoolDistillation.__name__


def test_a_run_is_validated_and_examined_by_prototypes_under_running_statistics(tmp_path, monkeypatch):
    names = list(dataset_info("glyphs").classes["train"])
    for index in range(2):
        write_member(tmp_path / "pool" / f"m-{index}", seed=index, label_names=names[index : index + 3])
    validated = []
    evaluate = selection.evaluate

    def watched(model, dataset, protocol, **options):
        if options["method"] == "validation":
            validated.append((protocol.head, protocol.bn, dataset.split))
        return evaluate(model, dataset, protocol, **options)

    monkeypatch.setattr("hf_dfml.evaluation.selection.evaluate", watched)
    words = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
    words += [
        "--pool",
        str(tmp_path / "pool"),
        "--dataset",
        "glyphs",
        "--ways",
        "3",
        "--shots",
        "1",
        "--episodes",
        "3",
    ]
    words += ["--validation_episodes", "2", "--validate_every", "2", "--arch", "conv4_16", "--flip", "false"]
    words += ["--output_dir", str(tmp_path / "run"), "--log_with", "none"]
    rows = run(PoolDistillation, *parse(PoolDistillation, RunConfig, words), argv=["test"])
    assert validated[:2] == [("prototype", "running", "validation")] * 2 and len(validated) == 2 + 6
    ours = [(row.how, row.bn) for row in rows if row.method == "Pool distillation"]
    assert ours[0] == ("prototype", "running") and len(ours) == len(set(ours))
    assert {
        ("finetune, 10 x 0.01", "support"),
        ("finetune, 10 x 0.01", "transductive"),
        ("prototype", "support"),
    } <= set(ours)
    folder = tmp_path / "run"
    assert {"recovered.png", "training_set.png"} <= {path.name for path in (folder / "pictures").iterdir()}
    stored = json.loads((folder / "config.json").read_text())["hf_dfml"]
    assert stored["method_config"]["gram_weight"] == 40 and (
        stored["adapt"]["head"],
        stored["adapt"]["bn"],
        stored["adapt"]["flips"],
    ) in [(row.head, row.bn, row.flips) for row in rows]
    classifier = MetaModel.from_pretrained(folder).adapt(torch.rand(4, 3, 16, 16), ["a", "a", "b", "b"])
    assert set(classifier.predict(torch.rand(3, 3, 20, 20))) <= {"a", "b"}


def test_any_architecture_with_timms_interface_can_be_the_student(tmp_path):
    method, context = make_method(size=20, arch="resnet10"), make_context()
    method.setup(make_mixed_pool(tmp_path), context)
    assert method.step(context)["loss"] > 0 and method.width == method.model.num_features


def test_targets_do_not_depend_on_how_many_members_are_saved_together(tmp_path, monkeypatch):
    pool = make_pool(tmp_path, 3)
    one, three = make_method(projection="random"), make_method(projection="random")
    three.setup(pool, make_context())
    monkeypatch.setattr(pool_view, "MEMBERS_AT_ONCE", 1)
    one.setup(pool, make_context())
    torch.testing.assert_close(one.targets, three.targets, atol=2e-3, rtol=0)
