"""Pool distillation on tiny pools: what a student is asked for, its exact resume, its interrupted setup."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from accelerate import Accelerator

from hf_dfml import MetaModel
from hf_dfml.arguments import parse
from hf_dfml.data import dataset_info
from hf_dfml.evaluation import selection
from hf_dfml.learning.ancestry import start_from_pool
from hf_dfml.learning.answers import answer_loss, predicted_answers, probabilities
from hf_dfml.learning.optimisation import one_cycle
from hf_dfml.learning.student import features_of
from hf_dfml.methods import pool_images
from hf_dfml.methods.catalogue import METHODS
from hf_dfml.methods.pool_distillation import PoolDistillation, PoolDistillationConfig
from hf_dfml.networks import create_network
from hf_dfml.pipeline import run
from hf_dfml.pool import ModelPool
from hf_dfml.run_config import RunConfig
from hf_dfml.trainer import Trainer
from hf_dfml.utils.images import to_unit
from tests.methods.pools import make_context, make_mixed_pool, make_pool, run_steps
from tests.pool.members import write_member

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "hf_dfml" / "presets" / "pool-distillation-cifar-fs-cpu.yaml"
TINY = {
    "recovery_steps": 2,
    "images_per_class": 4,
    "recoveries": 1,
    "num_images": 48,
    "joint_rounds": 1,
    "joint_updates": 2,
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


def test_a_coarse_start_of_joint_recovery_is_an_option_and_is_cached_by_itself(tmp_path):
    pool, context = make_pool(tmp_path / "pool", 2), replace(make_context(), cache=tmp_path / "cache")
    rounds = {}
    for share in (0.0, 1.0, 0.0):
        config = make_method(joint_coarse=share).config.training_set
        images = pool_images.recover_round(pool, config, 16, context, 0)["images"]
        blocks = images.unflatten(-1, (8, 2)).unflatten(-3, (8, 2))
        assert torch.equal(blocks, blocks[..., :1, :, :1].expand_as(blocks)) == (share == 1)
        assert torch.equal(rounds.setdefault(share, images), images)


def test_members_of_different_architecture_size_and_labels_all_take_part(tmp_path):
    pool = make_mixed_pool(tmp_path)
    method, context = make_method(size=20), make_context()
    method.setup(pool, context)
    assert method.images.shape == (48, 3, 20, 20) and method.images.dtype == torch.uint8
    assert method.answers.shape == (48, 8) and method.answers.dtype == torch.float16
    for part, member in zip(method.answers.split(method.heads.sizes, -1), pool.stream(), strict=True):
        with torch.no_grad():
            wanted = member(to_unit(method.images)).softmax(-1)
        torch.testing.assert_close(part.float(), wanted, atol=1e-3, rtol=0)
    before = [parameter.clone() for parameter in method.model.blocks.parameters()]
    metrics = method.step(context)
    assert metrics["loss"] > 0
    assert not any(map(torch.equal, before, method.model.blocks.parameters()))


def test_the_temperature_softens_what_is_learnt(tmp_path):
    losses, pool = [], make_pool(tmp_path, 2)
    for temperature in (1.0, 4.0):
        method = make_method(temperature=temperature)
        method.setup(pool, make_context())
        images, answers = to_unit(method.images[:8]), method.answers[:8].float()
        logits = method.heads(features_of(method.model, images))
        wanted = probabilities(answers.log() / temperature, method.heads.sizes)
        wanted_loss = answer_loss(logits, wanted, method.heads.sizes)
        torch.testing.assert_close(method.loss(images, answers), wanted_loss, atol=1e-3, rtol=0)  # Half precision.
        losses.append(float(method.loss(images, answers).detach()))
    assert losses[1] < losses[0], "softer answers are nearer to the heads' start"


def test_the_learning_rate_follows_one_cycle_within_a_pass_too(tmp_path, monkeypatch):
    method, context = make_method(steps=2, lr=0.1), make_context()
    method.setup(make_pool(tmp_path, 2), context)
    seen = []
    step = method.optimizer.step
    monkeypatch.setattr(
        method.optimizer, "step", lambda: (seen.append(method.optimizer.param_groups[0]["lr"]), step())
    )
    run_steps(method, context, 0, 2)
    assert seen == pytest.approx([0.1 * one_cycle(batch / 6) for batch in range(6)]) and len(set(seen)) == 6


def test_the_student_starts_from_the_best_member_of_its_kind(tmp_path):
    for seed, (name, arch, accuracy) in enumerate(
        [("weak", "conv4_16", 0.4), ("best", "conv4_16", 0.9), ("z-other", "conv4", 0.95)]
    ):
        write_member(tmp_path / name, architecture=arch, seed=seed, dfml={"val_accuracy": accuracy})
    pool = ModelPool.from_dir(tmp_path)
    best = next(index for index, entry in enumerate(pool) if entry.id == "best")
    method, random = make_method(), make_method(start="random")
    before = method.model.get_classifier().weight.clone()
    assert start_from_pool(method.model, pool).startswith("The student starts from best, the best of")
    weights = pool.load(best).network.state_dict()
    assert torch.equal(method.model.blocks[0].conv.weight, weights["blocks.0.conv.weight"])
    assert torch.equal(method.model.get_classifier().weight, before)
    random.setup(pool[:1], make_context())
    assert pool[0].id == "best" and not torch.equal(
        random.model.blocks[0].conv.weight, weights["blocks.0.conv.weight"]
    )


def test_the_rate_goes_up_once_and_down_to_almost_zero(tmp_path):
    method, context = make_method(steps=10), make_context()
    method.setup(make_pool(tmp_path, 1), context)
    rates = [row["lr"] for row in run_steps(method, context, 0, 10)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert 0.95e-2 < max(rates) <= 1e-2 and rates[-1] < 1e-4 and 1 <= top <= 4


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
    plain_recover = pool_images.recover

    def counted_recover(teacher, *arguments, **options):
        recovered.append(teacher.entry.id)
        return plain_recover(teacher, *arguments, **options)

    monkeypatch.setattr(pool_images, "recover", counted_recover)
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
    assert torch.equal(methods[0].answers, methods[1].answers)
    assert torch.equal(methods[0].heads.rows, methods[1].heads.rows)


def test_too_few_images_are_refused_with_what_to_do(tmp_path):
    pool = make_pool(tmp_path, 1)
    with pytest.raises(ValueError, match="8 images make no batch of 16: raise --num_images"):
        make_method(num_images=8).setup(pool, make_context())
    with pytest.raises(ValueError, match="Nothing is recovered: set recoveries or joint_rounds"):
        make_method(recoveries=0, joint_rounds=0).setup(pool, make_context())


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


def test_a_run_is_validated_and_examined_by_prototypes_under_running_statistics(few_glyphs, tmp_path, monkeypatch):
    names = list(dataset_info("glyphs").classes["train"])
    for index in range(2):
        write_member(tmp_path / "pool" / f"m-{index}", seed=index, label_names=names[index : index + 3])
    validated, chosen_from = [], []
    evaluate, evaluate_each = selection.evaluate, selection.evaluate_each

    def watched(model, dataset, protocol, **options):
        if options["method"] == "validation":
            validated.append((protocol.head, protocol.bn, protocol.representation, dataset.split))
        return evaluate(model, dataset, protocol, **options)

    def watched_each(model, dataset, protocols, **options):
        chosen_from.extend((protocol.representation, dataset.split) for protocol in protocols)
        return evaluate_each(model, dataset, protocols, **options)

    monkeypatch.setattr("hf_dfml.evaluation.selection.evaluate", watched)
    monkeypatch.setattr("hf_dfml.evaluation.selection.evaluate_each", watched_each)
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
    words += ["--output_dir", str(tmp_path / "run"), "--log_with", "none", "--representation", "answers"]
    rows = run(PoolDistillation, *parse(PoolDistillation, RunConfig, words), argv=["test"])
    assert validated[:2] == [("prototype", "running", "answers", "validation")] * 2
    assert set(chosen_from) == {(each, "validation") for each in ("features", "answers", "both")}
    ours = [(row.head, row.bn, row.representation) for row in rows if row.method == "Pool distillation"]
    assert ours[0] == ("prototype", "running", "answers")
    assert {("finetune", "support", "features"), ("prototype", "support", "features")} <= set(ours)
    members = [row.representation for row in rows if row.method == "All 2 members + prototype"]
    assert set(members) == {"features", "answers"}
    folder = tmp_path / "run"
    assert {"classes.png", "training_set.png"} <= {path.name for path in (folder / "pictures").iterdir()}
    stored = json.loads((folder / "config.json").read_text())["hf_dfml"]
    assert stored["method_config"]["scale"] == 10 and stored["answers"] == [3, 3]
    assert tuple(stored["adapt"][key] for key in ("head", "bn", "representation")) in ours
    meta = MetaModel.from_pretrained(folder)
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert torch.equal(plain.get_classifier().weight, meta.network.get_classifier().weight)
    how = {"head": "prototype", "bn": "running", "representation": "answers"}
    classifier = meta.adapt(torch.rand(4, 3, 16, 16), ["a", "a", "b", "b"], **how)
    assert set(classifier.predict(torch.rand(3, 3, 20, 20))) <= {"a", "b"}


def test_any_architecture_with_timms_interface_can_be_the_student(tmp_path):
    method, context = make_method(size=20, arch="resnet10"), make_context()
    method.setup(make_mixed_pool(tmp_path), context)
    assert method.step(context)["loss"] > 0 and method.student.width == method.model.num_features


@pytest.mark.parametrize("answer_heads", ["member", "name"])
def test_the_heads_learn_the_members_answers(tmp_path, answer_heads):
    """Measured over ten seeds: the divergence falls to at most 0.01 of that of the first pass."""
    context, method = make_context(), make_method(steps=30, num_images=64, answer_heads=answer_heads)
    method.setup(make_pool(tmp_path, 2), context)
    history = run_steps(method, context, 0, 30)
    assert history[-1]["loss"] < 0.1 * history[0]["loss"]


def test_a_snapshot_is_a_copy_that_predicts_the_heads_answers(tmp_path):
    method, context = make_method(start="random"), make_context()
    method.setup(make_mixed_pool(tmp_path), context)
    fresh = method.snapshot(context)
    method.step(context)
    trained = method.snapshot(context)
    assert not trained.training and trained.num_classes == 8
    assert torch.equal(fresh.blocks[0].bn.running_mean, torch.zeros(16))
    assert trained.blocks[0].bn.running_mean.abs().max() > 0
    images = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        features = features_of(trained, images)
        wanted = probabilities(method.heads(features_of(method.model, images)), method.heads.sizes)
        torch.testing.assert_close(predicted_answers(trained, features), wanted)
        with pytest.raises(ValueError, match="predicts no answers"):
            predicted_answers(method.model, features)
    method.step(context)
    assert not torch.equal(trained.blocks[0].conv.weight, method.model.blocks[0].conv.weight)


def test_an_interrupted_setup_goes_on_and_ends_in_the_same_training_set(tmp_path, monkeypatch):
    pool = make_pool(tmp_path, 3)
    whole = trainer_of(pool, tmp_path / "whole", steps=0, joint_rounds=2)
    whole.fit()
    done, stops = [], {2, 6, 9}

    def watched(name):
        plain = getattr(pool_images, name)

        def work(*arguments, **options):
            done.append(name)
            if len(done) in stops:
                raise KeyboardInterrupt
            return plain(*arguments, **options)

        monkeypatch.setattr(pool_images, name, work)

    for name in ("recover", "recover_jointly", "_ask"):
        watched(name)
    for _ in stops:
        with pytest.raises(KeyboardInterrupt):
            trainer_of(pool, tmp_path / "parts", steps=0, joint_rounds=2).fit()
    last = trainer_of(pool, tmp_path / "parts", steps=0, joint_rounds=2)
    last.fit()
    assert done == ["recover"] * 4 + ["recover_jointly"] * 3 + ["_ask"] * 4, "only interrupted parts come twice"
    assert torch.equal(last.method.images, whole.method.images)
    assert torch.equal(last.method.answers, whole.method.answers)


def test_the_representation_follows_the_number_of_members(tmp_path):
    pool = make_pool(tmp_path, 11)
    chosen = [PoolDistillation.config_for(PoolDistillationConfig(), part).representation for part in (pool, pool[:10])]
    assert chosen == ["both", "features"]
    asked = PoolDistillation.config_for(PoolDistillationConfig(representation="features"), pool)
    assert asked.representation == "features"
