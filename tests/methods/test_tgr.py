"""TGR end to end on tiny pools, and the trainer's promises: exact resume, graceful stop, clear refusals."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from hf_dfml.cli import main
from hf_dfml.learning.filter_fisher import filter_fisher, standardised_dissimilarities
from hf_dfml.learning.probe import load_probe
from hf_dfml.learning.recognition import confusion, unfamiliarity
from hf_dfml.methods import tgr
from hf_dfml.methods.base import Context
from hf_dfml.methods.tgr import TGR, TGRConfig
from hf_dfml.networks import create_network
from hf_dfml.pipeline import run
from hf_dfml.pool import ModelPool
from hf_dfml.recovery.inversion import recover
from hf_dfml.run_config import RunConfig
from hf_dfml.utils.checkpoint import load_tree, save_tree
from hf_dfml.utils.seeding import fork
from tests.methods.pools import make_model
from tests.methods.tiny_tgr import TINY, trainer_of
from tests.pool.members import write_member
from tests.processes.launch import ROOT


@pytest.fixture
def pool(tmp_path):
    """Four members of three classes each, whose names overlap."""
    for member in range(4):
        names = [f"class-{(member + k) % 5}" for k in range(3)]
        write_member(tmp_path / "pool" / f"m-{member}", seed=member, label_names=names)
    return ModelPool.from_dir(tmp_path / "pool")


def test_every_recovered_task_is_in_the_bank_after_a_step(pool, tmp_path):
    """FREE's released code keeps the last one only."""
    trainer = trainer_of(pool, tmp_path / "run", grouping="none", teachers_per_step=3)
    method, context = trainer.method, Context(torch.Generator().manual_seed(0))
    method.setup(trainer.pool, context)
    method.step(context)
    assert len(method.newest) == 3
    assert len(method.bank) == 3 * 3 * 4
    for task in method.newest:
        for label, name in enumerate(task.class_names):
            stored = {tuple(image.flatten().tolist()) for image in method.bank[name]}
            ours = (task.images[task.labels == label] * 255).round().to(torch.uint8)
            assert {tuple(image.flatten().tolist()) for image in ours} <= stored


def test_an_interrupted_run_ends_in_the_same_weights(pool, tmp_path):
    whole = trainer_of(pool, tmp_path / "whole")
    expected = whole.fit()

    first = trainer_of(pool, tmp_path / "parts")
    plain_step = first.method.step

    def step_then_stop(context):
        metrics = plain_step(context)
        if context.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return metrics

    first.method.step = step_then_stop
    stopped = first.fit()
    assert not stopped.finished and stopped.progress.step == 2
    resumed = trainer_of(pool, tmp_path / "parts").fit()
    assert resumed.finished
    for name, value in expected.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert [row["loss"] for row in resumed.progress.history] == [row["loss"] for row in expected.progress.history]


def test_kill_nine_and_resume_gives_the_same_file(pool, tmp_path):
    def options(folder, *more):
        options = {**TINY, "steps": 6, "pool": tmp_path / "pool", "output_dir": folder}
        options |= {"checkpoint_every": 1, "ways": 3}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return [*words, "--log_with", "none", *more]

    def to_the_end(*words):
        """In this process: only the run that is killed needs one of its own, which takes seconds to start."""
        with pytest.raises(SystemExit) as end:
            main(["train", "tgr", *words])
        assert end.value.code in (0, None)

    to_the_end(*options(tmp_path / "whole"))
    command = [sys.executable, str(ROOT / "recipes" / "tgr.py"), *options(tmp_path / "killed")]
    victim = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed" / "checkpoints").glob("step-00000[2-9]")) and time.monotonic() < deadline:
        time.sleep(0.005)
    victim.kill()
    victim.wait()
    assert not (tmp_path / "killed" / "model.safetensors").exists(), "the run was over before it was killed"
    to_the_end(*options(tmp_path / "killed", "--resume_from_checkpoint", "latest"))
    whole, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_a_folder_with_a_run_is_not_overwritten(pool, tmp_path):
    trainer_of(pool, tmp_path / "run", steps=1).fit()
    with pytest.raises(FileExistsError, match="already holds a run .up to step-000001.*--resume_from"):
        trainer_of(pool, tmp_path / "run", resume=None, steps=1).fit()


def test_a_checkpoint_from_before_an_option_was_made_had_its_default(pool, tmp_path):
    trainer_of(pool, tmp_path / "run", steps=1).fit()
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step-000001")
    state = load_tree(checkpoint)
    del state["method_config"]["igr_order"]
    save_tree(checkpoint, state)
    assert trainer_of(pool, tmp_path / "run", steps=1).fit().finished
    with pytest.raises(ValueError, match="other values of igr_order"):
        trainer_of(pool, tmp_path / "run", steps=2, igr_order="second").fit()


def test_a_run_is_not_resumed_with_other_hyper_parameters(pool, tmp_path):
    trainer_of(pool, tmp_path / "run", steps=1).fit()
    with pytest.raises(ValueError, match="other values of igr_strength, shift"):
        trainer_of(pool, tmp_path / "run", steps=2, shift=1, igr_strength=0.5).fit()


def test_old_checkpoints_go_and_the_setup_is_cleared(pool, tmp_path):
    trainer_of(pool, tmp_path / "run").fit()
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-000004", "step-000005"]
    assert not (tmp_path / "run" / "setup").exists()


def test_an_interrupted_setup_recovers_no_member_twice(pool, tmp_path, monkeypatch):
    from hf_dfml.methods import tgr

    recovered = []

    def counted(teacher, *arguments):
        recovered.append(teacher.entry.id)
        if len(recovered) == 3:
            raise KeyboardInterrupt
        return recover(teacher, *arguments)

    recover = tgr.recover
    monkeypatch.setattr(tgr, "recover", counted)
    with pytest.raises(KeyboardInterrupt):
        trainer_of(pool, tmp_path / "run", steps=0).fit()
    trainer_of(pool, tmp_path / "run", steps=0).fit()
    assert recovered == ["m-0", "m-1", "m-2", "m-2", "m-3"]


def test_a_loss_that_is_not_a_number_names_the_last_checkpoint(pool, tmp_path, capsys):
    trainer = trainer_of(pool, tmp_path / "run", outer_lr=1e30)
    with pytest.raises(FloatingPointError, match=r"Step \d: The meta-gradient is not finite"):
        trainer.fit()
    assert re.search(r"broke off after step \d. The last checkpoint is .*step-00000\d: go on", capsys.readouterr().err)


@pytest.mark.parametrize("grouping", ["dissimilar", "similar"])
def test_groups_hold_unlike_members_unless_like_ones_are_asked_for(pool, tmp_path, monkeypatch, grouping):
    """Six members of two planted kinds: odd and even ones."""
    kinds = torch.tensor([0, 1, 0, 1, 0, 1])
    planted = (kinds[:, None] != kinds).float() + 0.01 * (1 - torch.eye(6))
    monkeypatch.setattr(tgr, "dissimilarities", lambda _: planted)
    method = trainer_of(pool, tmp_path / "run", grouping=grouping, num_groups=2).method
    method.setup(pool, Context(torch.Generator().manual_seed(0)))
    mixed = [len({member % 2 for member in group}) == 2 for group in method.groups]
    assert sorted(sum(method.groups, [])) == list(range(6))
    assert all(mixed) if grouping == "dissimilar" else not any(mixed)


def test_the_best_snapshot_on_validation_is_chosen_not_the_last(pool, tmp_path):
    trainer = trainer_of(pool, tmp_path / "run")
    scores = iter([10.0, 30.0, 20.0, 5.0, 15.0])
    seen = []

    def validate(model):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"1-shot": next(scores)}

    trainer.validate = validate
    trainer.config = RunConfig(**{**vars(trainer.config), "validate_every": 1})
    outcome = trainer.fit()
    assert outcome.progress.best_step == 2
    assert all(torch.equal(value, seen[1][name]) for name, value in outcome.model.state_dict().items())
    stored = load_tree(tmp_path / "run" / "checkpoints" / "step-000005")
    assert torch.equal(stored["best"]["fc.weight"], seen[1]["fc.weight"])


def test_without_a_data_set_there_is_a_model_and_the_card_says_so(pool, tmp_path):
    config = RunConfig(
        pool=str(tmp_path / "pool"), output_dir=str(tmp_path / "run"), ways=3, log_with="none", checkpoint_every=2
    )
    assert run(TGR, TGRConfig(**TINY), config, argv=["test"]) == []
    card = (tmp_path / "run" / "README.md").read_text()
    assert "nothing was validated" in card and "model-index" not in card
    assert (tmp_path / "run" / "pictures" / "recovered.png").is_file()
    from hf_dfml import MetaModel

    classifier = MetaModel.from_pretrained(tmp_path / "run").adapt(torch.rand(4, 3, 16, 16), ["a", "a", "b", "b"])
    assert set(classifier.predict(torch.rand(3, 3, 20, 20))) <= {"a", "b"}


def test_heterogeneous_numbers_of_classes_are_restricted(pool, tmp_path):
    trainer = trainer_of(pool, tmp_path / "run", grouping="none", replay_shots=1)
    trainer.method.model = create_network("conv4_16", num_classes=2, image_size=16)
    trainer.method.optimizer = torch.optim.Adam(trainer.method.model.parameters(), 1e-3)
    context = Context(torch.Generator().manual_seed(0))
    trainer.method.setup(trainer.pool, context)
    assert trainer.method.step(context)["loss"] > 0


def test_a_pool_that_was_not_named_is_asked_for(tmp_path):
    with pytest.raises(ValueError, match="No pool was named: give --pool"):
        run(TGR, TGRConfig(), RunConfig(output_dir=str(tmp_path)))


def test_the_members_are_embedded_by_filters_if_that_is_asked_for(pool, tmp_path):
    """The matrix is that of the images that were recovered, which are kept."""
    config = TGRConfig(**{**TINY, "embedding": "filters", "keep_embedded": True, "probe_size": 20})
    method, context = TGR(config, make_model(9)), Context(torch.Generator().manual_seed(0), seed=3)
    method.setup(pool, context)
    probe, found = load_probe("average", pool, 20), []
    for index in range(len(pool)):
        generator = fork(3, "embedding", index)
        task = recover(pool.load(index), config.inversion, method.size, generator)
        found.append(filter_fisher(probe, task.images, generator))
    assert torch.allclose(method.dissimilarity, standardised_dissimilarities(torch.stack(found)), atol=1e-6)
    assert method.dissimilarity.max() > 0.1 and sorted(sum(method.groups, [])) == list(range(len(pool)))


def test_members_are_grouped_by_each_others_answers_if_that_is_asked_for(pool, tmp_path):
    """No probe is loaded; the matrix is that of the images that were recovered, whether they are kept or not."""
    config = TGRConfig(**{**TINY, "embedding": "answers", "probe": "no-such-probe"})
    assert TGR.config_for(config, pool) == config, "a probe that nobody asks is not looked for"
    method = TGR(config, make_model(9))
    method.setup(pool, Context(torch.Generator().manual_seed(0), seed=3))
    tasks = [
        recover(pool.load(index), config.inversion, method.size, fork(3, "embedding", index))
        for index in range(len(pool))
    ]
    shown = [(task.images, task.labels, len(entry.class_names)) for task, entry in zip(tasks, pool, strict=True)]
    found = [confusion(pool.load(index), shown) for index in range(len(pool))]
    assert torch.allclose(method.dissimilarity, unfamiliarity(found), atol=1e-6)
    assert method.dissimilarity.max() > 0.1 and sorted(sum(method.groups, [])) == list(range(len(pool)))
    keeping = TGR(replace(config, keep_embedded=True), make_model(9))
    keeping.setup(pool, Context(torch.Generator().manual_seed(0), seed=3))
    assert torch.equal(keeping.dissimilarity, method.dissimilarity)
    assert len(keeping.bank) == sum(len(task.images) for task in tasks) and len(method.bank) == 0
