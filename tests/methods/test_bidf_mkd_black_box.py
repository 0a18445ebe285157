"""BiDf-MKD of black boxes: the same as by queries of white ones; stopped by its budget, resumed exactly; refusals."""

import pytest
import torch
from accelerate import Accelerator

from hf_dfml.arguments import parse
from hf_dfml.methods.bidf_mkd import BiDfMKD, BiDfMKDConfig
from hf_dfml.methods.catalogue import METHODS
from hf_dfml.pipeline import run
from hf_dfml.recovery.gradient_source import ESTIMATORS, ZeroOrderGradient
from hf_dfml.run_config import RunConfig
from hf_dfml.trainer import Trainer
from hf_dfml.utils.checkpoint import load_tree
from tests.methods.pools import make_context, make_model, make_pool, run_steps, without_seconds
from tests.methods.test_bidf_mkd import TINY

QUERIES = {"zero_order_directions": 3, "zero_order_at_once": 2, "replay_max_batches": 2}
IMAGES = 9
EPISODE = 2 * IMAGES * (2 * (3 + 1) + 1)
"""Two sets of nine images, two steps of three directions and the centre, one distillation."""


def fresh(**changes):
    return BiDfMKD(BiDfMKDConfig(**{**TINY, **QUERIES, **changes}), make_model())


def trainer_of(folder, pool, steps=9, resume=None, **changes):
    config = RunConfig(
        output_dir=str(folder), checkpoint_every=100, log_with="none", resume_from_checkpoint=resume, seed=3
    )
    return Trainer(fresh(steps=steps, **changes), pool, config, Accelerator(cpu=True))


def weights(method):
    return torch.cat([value.flatten() for value in method.model.state_dict().values()])


def test_a_black_box_that_tells_logits_teaches_what_queries_of_the_white_box_teach(tmp_path):
    pool = make_pool(tmp_path, 2)
    rows, ends = [], []
    for teachers, changes in ((pool, {"gradient": "zero_order"}), (pool.as_black_box("logits"), {})):
        method, context = fresh(recovery="generator", generator_width=4, latent_dim=8, **changes), make_context()
        method.setup(teachers, context)
        rows.append(run_steps(method, context, 0, 4))
        ends.append(weights(method))
        assert method.name == "BiDf-MKD (zero-order)"
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)
    assert [row["replay_loss"] for row in rows[0]] == [row["replay_loss"] for row in rows[1]]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("output", ["probs", "label"])
def test_every_image_sent_is_counted_and_known_in_advance(tmp_path, estimator, output):
    method, context = fresh(zero_order_estimator=estimator, shift=0, flip=False), make_context()
    pool = make_pool(tmp_path, 2).as_black_box(output)
    required = []
    method.setup(pool, context)
    pool.queries.require, require = required.append, pool.queries.require
    row = method.step(context)
    pool.queries.require = require
    # The first is what the episode is foreseen to cost, the others are what is sent piece by piece.
    assert required[0] == sum(required[1:]) == pool.queries.total == row["queries"]
    if estimator == "sphere":
        assert pool.queries.total == EPISODE


def test_the_budget_stops_the_run_with_a_checkpoint_and_more_of_it_goes_on(tmp_path, capsys):
    pool = make_pool(tmp_path, 3)
    whole = trainer_of(tmp_path / "whole", pool.as_black_box("probs"))
    assert whole.fit().finished
    episodes = sum(row["api_episode"] for row in whole.progress.history)
    assert episodes >= 3 and whole.pool.queries.total == episodes * EPISODE

    allowed = 2 * EPISODE + 7
    short = trainer_of(tmp_path / "run", pool.as_black_box("probs", max_queries=allowed))
    outcome = short.fit()
    assert not outcome.finished and short.pool.queries.total == 2 * EPISODE, "no query of an episode cut short"
    done = outcome.progress.step
    out = capsys.readouterr().out
    assert f"Stopped after step {done} of 9: the budget of {allowed} queries does not suffice" in out
    assert f"larger --max_queries (or end here, with --steps {done})" in out
    state = load_tree(tmp_path / "run" / "checkpoints" / f"step-{done:06d}")
    assert sum(state["queries"].values()) == 2 * EPISODE

    # The same budget: nothing is lost, nothing is sent.
    same = trainer_of(tmp_path / "run", pool.as_black_box("probs", max_queries=allowed), resume="latest")
    assert same.fit().progress.step == done and same.pool.queries.total == 2 * EPISODE
    # A larger one: as if there had been no stop.
    more = trainer_of(tmp_path / "run", pool.as_black_box("probs", max_queries=10**9), resume="latest")
    assert more.fit().finished
    assert without_seconds(more.progress.history) == without_seconds(whole.progress.history)
    assert torch.equal(weights(more.method), weights(whole.method)) and more.pool.queries.members == (
        whole.pool.queries.members
    )


def test_a_step_that_the_budget_cuts_in_the_middle_leaves_no_trace(tmp_path):
    """A source of gradients whose cost is not known beforehand."""
    source = ZeroOrderGradient(3)
    pool = make_pool(tmp_path, 2).as_black_box(max_queries=EPISODE + EPISODE // 2)
    method = BiDfMKD(
        BiDfMKDConfig(**TINY), make_model(), lambda losses, images, generator: source(losses, images, generator)
    )
    context = make_context()
    method.setup(pool, context)
    method.step(context)
    method.switch.due = True
    before, bank, switch = weights(method), len(method.bank), method.switch.state_dict()
    context.step = 1
    with pytest.raises(RuntimeError, match="does not suffice"):
        method.step(context)
    assert torch.equal(weights(method), before) and len(method.bank) == bank
    assert method.switch.state_dict() == switch
    assert EPISODE < pool.queries.total <= EPISODE + EPISODE // 2, "half of the episode was sent"


def test_stopping_at_the_budget_can_be_the_end(tmp_path):
    words = f"--pool {make_pool(tmp_path, 2)[0].location.parent} --black_box topk --top_k 2 --max_queries {EPISODE}"
    words += " --recovery pixels --recovery_steps 2 --images_per_class 3 --distillation_steps 2 --replay_queries 3"
    words += " --replay_batch 2 --replay_max_batches 3 --replay_patience 9 --zero_order_directions 3 --ways 3"
    words += f" --arch conv4_16 --log_with none --output_dir {tmp_path / 'run'} --checkpoint_every 100"

    def go(*more):
        run(BiDfMKD, *parse(BiDfMKD, RunConfig, [*words.split(), *more]), argv=["test"])
        return sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())

    last = go("--steps", "50")[-1]
    assert not (tmp_path / "run" / "model.safetensors").exists()
    go("--steps", str(int(last.removeprefix("step-"))), "--resume_from_checkpoint", "latest")
    config = (tmp_path / "run" / "config.json").read_text()
    assert '"gradient": "zero_order"' in config and "BiDf-MKD (zero-order)" in config
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_terms_that_answers_do_not_give_are_refused_before_any_query(tmp_path):
    pool = make_pool(tmp_path, 1).as_black_box()
    with pytest.raises(ValueError, match="black boxes have no other.*found bn_weight"):
        fresh(bn_weight=1.0).setup(pool, make_context())
    assert pool.queries.total == 0


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"bidf_mkd", "pool_distillation"}))
def test_methods_that_look_into_teachers_refuse_black_boxes_before_any_work(name, tmp_path, monkeypatch):
    from importlib import import_module

    from hf_dfml import pipeline

    method = getattr(import_module(f"hf_dfml.methods.{name}"), METHODS[name])
    monkeypatch.setattr(pipeline, "open_pool", lambda config: pytest.fail("work was done"))
    words = ["--pool", "x", "--black_box", "probs", "--output_dir", str(tmp_path / "run"), "--log_with", "none"]
    with pytest.raises(ValueError, match="needs the weights of its teachers, and a black-box pool gives answers only"):
        run(method, *parse(method, RunConfig, words), argv=["test"])
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="needs the weights"):
        pool = make_pool(tmp_path, 1).as_black_box()
        Trainer(method(method.Config(), make_model()), pool, RunConfig(), Accelerator(cpu=True))
