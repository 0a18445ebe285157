"""The references that see data: marked as such, and they learn from it."""

from dataclasses import replace

import pytest
import torch

from hf_dfml.methods.maml_reference import MAML, OML, MAMLConfig
from hf_dfml.networks import create_network
from hf_dfml.pool import PoolEntry
from hf_dfml.utils.checkpoint import load_tree, save_tree
from tests.methods.pools import make_context, run_steps

pytestmark = pytest.mark.usefixtures("few_glyphs")
SMALL = MAMLConfig(
    train_dataset="glyphs", steps=3, train_shots=1, train_queries=2, meta_batch=2, inner_steps=1, outer_lr=0.01
)
CLASSES = ("latin A", "latin B")


def network(seed=0):
    return create_network("conv4_16", num_classes=2, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def stream():
    from hf_dfml.data import dataset_info

    names = dataset_info("glyphs").classes["train"]
    return [
        PoolEntry(id=f"m-{k}", architecture="conv4_16", num_classes=2, label_names=names[k : k + 2]) for k in range(3)
    ]


def test_they_say_that_they_see_data():
    assert not MAML.data_free and not OML.data_free
    assert "sees data" in MAML.name and "sees data" in OML.name


def test_resume_is_exact(stream, tmp_path):
    whole, context = MAML(SMALL, network()), make_context()
    whole.setup(stream, context)
    run_steps(whole, context, 0, 1)
    draws = context.generator.get_state()
    save_tree(tmp_path / "state", whole.state_dict())
    resumed, again = MAML(SMALL, network(seed=1)), make_context(seed=1)
    resumed.load_state_dict(load_tree(tmp_path / "state"), stream, again)
    again.generator.set_state(draws)
    run_steps(whole, context, 1, 2)
    run_steps(resumed, again, 1, 2)
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, dict(resumed.model.named_parameters())[name]), name


def test_online_episodes_hold_arrived_tasks_only(stream):
    method, context = OML(MAMLConfig(**{**vars(SMALL), "steps": 2}), network()), make_context()
    method.setup(stream, context)
    assert method.num_steps == 6
    images = {
        k: {image.numpy().tobytes() for name in stream[k].label_names for image in method.dataset.by_class(name)}
        for k in range(3)
    }
    for step in range(6):
        context.step = step
        arrived = set().union(*(images[k] for k in method.stream[: step // 2 + 1]))
        support = (method.episodes(context).support * 255).round().to(torch.uint8)
        assert all(image.numpy().tobytes() in arrived for image in support.flatten(0, 1))


def test_a_snapshot_has_statistics_of_real_images(stream):
    method, context = MAML(SMALL, network()), make_context()
    method.setup(stream, context)
    snapshot = method.snapshot(context)
    assert snapshot.blocks[0].bn.num_batches_tracked > 0
    assert not torch.equal(snapshot.blocks[0].bn.running_mean, method.model.blocks[0].bn.running_mean)


def test_a_pool_of_other_classes_is_named(stream):
    foreign = [replace(stream[0], id="zoo", label_names=("cat", "dog"))]
    with pytest.raises(ValueError, match="member 'zoo' has 'cat', expected training classes of 'glyphs'"):
        OML(MAMLConfig(train_dataset="glyphs", train_shots=1, train_queries=2), network()).setup(
            foreign, make_context()
        )
