"""What the systems that recover tasks share: the loss of distillation, and the snapshot of the meta-model."""

import pytest
import torch
import torch.nn.functional as F

from hf_dfml.learning.distillation import distillation_loss
from hf_dfml.learning.optimisation import parameters_of
from hf_dfml.methods.inversion import STATISTICS_IMAGES, distillation_of
from hf_dfml.networks.functional import functional_forward, normalise
from hf_dfml.recovery.task import Task
from tests.methods.pools import make_context, make_model, make_pool
from tests.methods.tiny_tgr import trainer_of


@pytest.fixture
def pool(tmp_path):
    return make_pool(tmp_path, 3)


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_the_students_cross_entropy_counts_as_much_as_its_weight_says(pool, tmp_path, weight):
    config = trainer_of(pool, tmp_path / "run", distillation_ce=weight, shift=0, flip=False).method.config
    model, teacher = make_model(), pool.load(0)
    task = Task(torch.rand(6, 3, 16, 16), torch.arange(6) // 2, ("a", "b", "c"), "m")
    params = parameters_of(model)
    parts = config.distillation, config.inversion, torch.Generator()
    found = distillation_of(model, teacher, task, [0, 1, 2], *parts)(params)
    logits = functional_forward(model, params, task.images, source="batch")
    kd = distillation_loss(teacher(task.images), logits)
    torch.testing.assert_close(found, kd + weight * F.cross_entropy(logits, task.labels))


def test_a_snapshot_has_the_statistics_of_the_newest_recovered_images(pool, tmp_path):
    trainer = trainer_of(pool, tmp_path / "run", grouping="none")
    method, context = trainer.method, make_context()
    method.setup(pool, context)
    method.step(context)
    snapshot = method.snapshot(context)
    images = method.bank.newest(STATISTICS_IMAGES)
    with torch.no_grad():
        maps = snapshot.blocks[0].conv(normalise(snapshot, images))
    torch.testing.assert_close(snapshot.blocks[0].bn.running_mean, maps.mean((0, 2, 3)), atol=1e-4, rtol=1e-4)
    assert not torch.equal(method.model.blocks[0].bn.running_mean, snapshot.blocks[0].bn.running_mean)


def test_what_is_validated_is_what_is_stored(pool, tmp_path):
    """With the statistics of its snapshot, and also where nothing is validated."""
    for validate in (True, False):
        trainer = trainer_of(pool, tmp_path / f"run-{validate}", steps=1)
        seen = []

        def score(model, seen=seen):
            seen.append({name: value.clone() for name, value in model.state_dict().items()})
            return {"1-shot": 50.0}

        trainer.validate = score if validate else None
        outcome = trainer.fit()
        expected = seen[-1] if validate else trainer.method.snapshot(trainer.context).state_dict()
        stored = outcome.model.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in stored.items())
        fresh = make_model(9).state_dict()["blocks.0.bn.running_mean"]
        assert not torch.equal(stored["blocks.0.bn.running_mean"], fresh)
