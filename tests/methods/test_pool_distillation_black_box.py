"""Pool distillation of black boxes: what is asked and counted, a budget or a service that ends in the setup."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from hf_dfml.arguments import parse
from hf_dfml.methods import drawn_images, pool_images
from hf_dfml.methods.pool_distillation import PoolDistillation
from hf_dfml.pipeline import run
from hf_dfml.pool import BlackBoxPool, QueryBudgetError, ServiceError
from hf_dfml.recovery.information import questions
from hf_dfml.recovery.procedural import DRAWN
from hf_dfml.run_config import RunConfig
from hf_dfml.settings import flat
from hf_dfml.trainer import Trainer
from tests.methods.pools import make_context, make_pool
from tests.methods.test_pool_distillation import TINY, make_method
from tests.pool.members import WAYS

QUERIES = {"training_images": "recovered", "zero_order_directions": 3, "zero_order_at_once": 2}
RECOVERY = TINY["images_per_class"] * WAYS * TINY["recovery_steps"] * (3 + 1)
"""Images that one member is sent while its task is recovered: three directions and the centre, each step."""
TARGETS = TINY["num_images"]
MEMBER = RECOVERY + TARGETS


def trainer_of(pool, folder, resume=None, **changes):
    config = RunConfig(output_dir=str(folder), checkpoint_every=1, resume_from_checkpoint=resume, log_with="none")
    return Trainer(make_method(**QUERIES, **changes), pool, config, Accelerator(cpu=True))


def test_answers_of_black_boxes_teach_what_the_probabilities_of_white_ones_teach(tmp_path):
    pool = make_pool(tmp_path, 2)
    # Pixels would start from the members' own normalisation, which black boxes do not tell.
    options = {**QUERIES, "recovery": "generator", "generator_width": 4, "latent_dim": 8, "start": "random"}
    white, black = make_method(**options), make_method(**options)
    white.config = replace(white.config, **flat(white.config.training_set.for_black_boxes()))
    white.setup(pool, make_context())
    black.setup(pool.as_black_box("logits"), make_context())
    assert torch.equal(white.images, black.images) and len(white.images) == TARGETS
    torch.testing.assert_close(white.answers.float(), black.answers.float(), atol=5e-3, rtol=0)
    losses = [
        [method.step(replace(make_context(), step=step))["loss"] for step in range(4)] for method in (white, black)
    ]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=2e-2, atol=0)
    assert losses[1][-1] < losses[1][0]


@pytest.mark.parametrize("output", ["probs", "label"])
def test_every_image_sent_is_counted(tmp_path, output):
    pool = make_pool(tmp_path, 3).as_black_box(output)
    make_method(**QUERIES).setup(pool, make_context())
    assert pool.queries.members == {entry.id: MEMBER for entry in pool}


def test_a_step_sends_nothing(tmp_path):
    pool = make_pool(tmp_path, 2).as_black_box("probs", max_queries=2 * MEMBER)
    method, context = make_method(**QUERIES), make_context()
    method.setup(pool, context)
    method.step(context)
    assert pool.queries.total == 2 * MEMBER


@pytest.mark.parametrize("done", [1, 2, 3, 4])
def test_a_budget_that_ends_in_the_setup_keeps_what_was_told(tmp_path, capsys, done):
    """`done` of the four parts (the recoveries, then the targets, of two members) can be paid."""
    pool = make_pool(tmp_path, 2)
    whole = trainer_of(pool.as_black_box("probs"), tmp_path / "whole")
    assert whole.fit().finished
    costs = [0, RECOVERY, 2 * RECOVERY, 2 * RECOVERY + TARGETS, 2 * MEMBER]
    allowed = costs[done] - 1
    short = trainer_of(pool.as_black_box("probs", max_queries=allowed), tmp_path / "run")
    assert not short.fit().finished
    assert short.pool.queries.total == costs[done - 1], "nothing is spent on a part that would be cut short"
    out = capsys.readouterr().out
    assert f"Stopped during the setup: the budget of {allowed} queries does not suffice" in out
    assert "Go on with a larger --max_queries and --resume_from_checkpoint latest." in out
    more = trainer_of(pool.as_black_box("probs", max_queries=2 * MEMBER), tmp_path / "run", resume="latest")
    assert more.fit().finished, "what was told before is not asked, nor counted, again"
    assert more.pool.queries.members == whole.pool.queries.members
    for name, value in whole.method.model.state_dict().items():
        assert torch.equal(value, more.method.model.state_dict()[name]), name


def test_other_answers_do_not_go_on_from_the_same_parts(tmp_path):
    pool = make_pool(tmp_path, 2)
    short = trainer_of(pool.as_black_box("probs", max_queries=RECOVERY), tmp_path / "run")
    assert not short.fit().finished and short.pool.queries.total == RECOVERY
    labels = trainer_of(pool.as_black_box("label"), tmp_path / "run", resume="latest")
    assert labels.fit().finished and labels.pool.queries.total == 2 * MEMBER


def test_a_service_that_goes_away_leaves_the_finished_parts(tmp_path, capsys, monkeypatch):
    pool = make_pool(tmp_path, 2)
    plain_recover, asked = pool_images.recover, []

    def failing_recover(teacher, *arguments, **options):
        asked.append(teacher.entry.id)
        if len(asked) == 2:
            raise ServiceError("it went away.")
        return plain_recover(teacher, *arguments, **options)

    monkeypatch.setattr(pool_images, "recover", failing_recover)
    assert not trainer_of(pool.as_black_box("probs"), tmp_path / "run").fit().finished
    assert "Stopped during the setup: it went away. Go on with the same command" in capsys.readouterr().out
    assert trainer_of(pool.as_black_box("probs"), tmp_path / "run", resume="latest").fit().finished
    assert asked == ["m-0", "m-1", "m-1"]


def test_a_budget_for_the_training_set_alone_asks_about_procedural_images_and_nothing_else(tmp_path, capsys):
    members = make_pool(tmp_path, 2)
    pool = members.as_black_box("probs", max_queries=2 * TARGETS + questions(2) - 1)
    method, context = make_method(), make_context()
    method.setup(pool, context)
    assert pool.queries.members == {entry.id: TARGETS for entry in pool}
    assert "Training images: procedural. The budget is too small to ask" in capsys.readouterr().out
    assert [path.name for path in method.pictures(tmp_path / "pictures")] == ["training_set.png"]
    white = make_method(training_images="procedural")
    white.setup(members, make_context())
    assert torch.equal(white.images, method.images)
    # White-box members answer in bfloat16 where the machine computes with it.
    torch.testing.assert_close(white.answers.float(), method.answers.float(), atol=5e-3, rtol=0)
    losses = [method.step(replace(context, step=step))["loss"] for step in range(4)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", DRAWN)
def test_the_images_are_of_the_kind_that_answers_tell_most_of_which_is_asked_once(tmp_path, capsys, monkeypatch, kind):
    told = {each: 0.2 if each == kind else 0.1 for each in DRAWN}
    asked, plain = [], drawn_images.information_of_drawn
    monkeypatch.setattr(drawn_images, "information_of_drawn", lambda *how: (asked.append(plain(*how)), told)[1])
    pool, cost = make_pool(tmp_path, 2), TARGETS + questions(2) // 2

    def fit(resume=None):
        config = RunConfig(output_dir=str(tmp_path / "run"), resume_from_checkpoint=resume, log_with="none")
        boxes = pool.as_black_box("probs", max_queries=2 * cost)
        trainer = Trainer(make_method(), boxes, config, Accelerator(cpu=True))
        return trainer, trainer.fit().finished

    # The second member's answers are lost, with a service that goes away.
    with monkeypatch.context() as patched:
        answer = pool_images.answers_of
        patched.setattr(pool_images, "answers_of", lambda *how: answer(*how) if how[0].entry.id == "m-0" else away())
        trainer, finished = fit()
    assert not finished and trainer.pool.queries.total == TARGETS + questions(2) and len(asked) == 1
    trainer, finished = fit("latest")
    assert finished and len(asked) == 1, "a resumed run knows what it was told"
    assert trainer.pool.queries.members == {entry.id: cost for entry in pool}
    said = capsys.readouterr().out
    assert said.count(f"Training images: {kind}, which the members' answers tell most of.") == 2
    for choice in (kind, "drawn"):
        white = make_method(training_images=choice)
        white.setup(pool, make_context(trainer.config.seed))
        assert "The student starts from m-0" in capsys.readouterr().out
        assert torch.equal(white.images, trainer.method.images), "members that are seen whole are asked alike"


def away():
    raise ServiceError("it went away.")


def test_one_process_asks(tmp_path):
    context = replace(make_context(), processes=SimpleNamespace(count=2))
    with pytest.raises(ValueError, match="2 processes would ask black boxes and each count for itself: run one"):
        make_method(**QUERIES).setup(make_pool(tmp_path, 1).as_black_box("probs"), context)


def test_too_small_a_budget_for_anything_says_so(tmp_path):
    pool = make_pool(tmp_path, 1).as_black_box("probs", max_queries=RECOVERY - 1)
    assert isinstance(pool, BlackBoxPool)
    with pytest.raises(QueryBudgetError, match=f"the budget of {RECOVERY - 1} queries does not suffice: 0 images"):
        make_method(**QUERIES).setup(pool, make_context())


def test_the_recipe_takes_black_boxes(tmp_path):
    words = f"--pool {make_pool(tmp_path, 2)[0].location.parent} --black_box topk --top_k 2 --arch conv4_16 --ways 3"
    words += f" --log_with none --output_dir {tmp_path / 'run'} --zero_order_directions 3"
    words += "".join(f" --{name} {value}" for name, value in TINY.items())
    run(PoolDistillation, *parse(PoolDistillation, RunConfig, words.split()), argv=["test"])
    config = (tmp_path / "run" / "config.json").read_text()
    assert '"training_images": "drawn"' in config and '"joint_rounds": 0' in config
    card = (tmp_path / "run" / "README.md").read_text()
    queries = 2 * TARGETS + questions(2)
    assert f"| queries | {queries} images were sent to the classifiers, which returned topk |" in card
    assert (tmp_path / "run" / "model.safetensors").is_file()
