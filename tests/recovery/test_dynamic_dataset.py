"""PURER's shared images: whose gradient moves which of them, in what order, by how much."""

from functools import partial

import pytest
import torch

from hf_dfml.networks import create_network
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.teacher import Teacher
from hf_dfml.recovery.dynamic_dataset import DynamicDataset, DynamicDatasetConfig
from hf_dfml.recovery.objective import inversion_loss
from hf_dfml.recovery.pixels import Pixels
from hf_dfml.utils.checkpoint import load_tree, save_tree

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.25, 0.2)


def _seeded(seed):
    return torch.Generator().manual_seed(seed)


def teacher_of(names, seed=0, size=16, arch="conv4", mean=(0.5, 0.4, 0.3), **model_args):
    network = create_network(
        arch, num_classes=len(names), image_size=size, generator=_seeded(seed), **({"width": 8} | model_args)
    )
    entry = PoolEntry(
        id=f"org/{seed}",
        num_classes=len(names),
        input_size=(3, size, size),
        mean=mean,
        std=(0.2, 0.2, 0.2),
        label_names=tuple(names),
    )
    return Teacher(entry, network)


def dataset_of(*teachers, size=16, **changes):
    config = DynamicDatasetConfig(**{"images_per_class": 4, "shift": 0, **changes})
    dataset = DynamicDataset(config, size, MEAN, STD)
    dataset.begin([name for teacher in teachers for name in teacher.class_names], _seeded(0), "cpu")
    return dataset


def plain_descent(dataset):
    """SGD of rate 1 in place of Adam: a step is minus the gradient."""
    dataset.optimizer = torch.optim.SGD([dataset.pixels.values], 1.0)
    return dataset


def loaders(teachers):
    return [partial(lambda teacher: teacher, teacher) for teacher in teachers]


def moved(teachers, further=None, **changes):
    """How far one step moves pixels that are nowhere near the bounds: the gradient."""
    dataset = plain_descent(dataset_of(*ALL, **changes))
    with torch.no_grad():
        dataset.pixels.values.mul_(0.1)
    before = dataset.pixels.values.detach().clone()
    dataset.learn(loaders(teachers), _seeded(1), further and partial(further, dataset))
    return before - dataset.pixels.values.detach(), dataset, before


ALL = [
    teacher_of(["wolf", "ant", "cat"], 1),
    teacher_of(["emu", "cat", "bee", "ant"], 2),
    teacher_of(["bee", "ant"], 3),
]


def test_every_member_counts_the_same_whatever_its_place():
    """The released code adds the running sum once more for each member: the first of M counts M times."""
    alone = [moved([teacher])[0] for teacher in ALL]
    together = moved(ALL)[0]
    torch.testing.assert_close(together, sum(alone), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(moved(ALL[::-1])[0], together, rtol=1e-3, atol=1e-6)
    assert all(change.abs().max() > 1e-3 for change in alone)


def test_a_member_moves_the_images_of_its_classes_alone_and_shares_those_of_the_same_name():
    change, dataset, _ = moved([ALL[1]])
    touched = {name for name, part in zip(dataset.class_names, change, strict=True) if part.abs().max() > 0}
    assert dataset.class_names == ("wolf", "ant", "cat", "emu", "bee") and touched == {"emu", "cat", "bee", "ant"}
    assert len(dataset) == 5 * 4


def test_the_step_is_the_gradient_of_the_papers_objective():
    change, dataset, before = moved([ALL[0]])
    leaf = before.clone().requires_grad_()
    images = Pixels(before, MEAN, STD)
    shown = (images.mean + images.std * leaf)[[0, 1, 2]].flatten(0, 1)
    loss, _ = inversion_loss(ALL[0], shown, torch.arange(3).repeat_interleave(4), dataset.config.objective)
    torch.testing.assert_close(change, torch.autograd.grad(loss, leaf)[0], rtol=1e-3, atol=1e-6)
    weights = dataset.config.objective
    assert (weights.ce_weight, weights.bn_weight, weights.tv_weight, weights.l2_weight) == (1.0, 0.01, 1e-4, 1e-5)


def test_a_further_term_is_added_to_the_members():
    slope = 0.1 * torch.randn(5, 4, 3, 16, 16, generator=_seeded(3))
    plain, both = (moved([ALL[0]], further)[0] for further in (None, lambda d: (slope * d.pixels.values).sum()))
    torch.testing.assert_close(both - plain, slope, rtol=1e-3, atol=1e-6)


def test_labels_follow_the_members_order_of_classes_however_it_is_listed():
    """PURER-Plus hands out images in ascending and labels in listed order."""
    dataset = dataset_of(*ALL)
    with torch.no_grad():
        for grey in range(len(dataset.class_names)):
            dataset.pixels.values[grey] = (0.1 * (1 + grey) - dataset.pixels.mean) / dataset.pixels.std
    for teacher in ALL[:2]:
        images, labels = dataset.task_of(teacher.class_names)
        for label, name in enumerate(teacher.class_names):
            grey = 0.1 * (1 + dataset.class_names.index(name))
            torch.testing.assert_close(images[labels == label], torch.full((4, 3, 16, 16), grey))


def test_members_of_unsorted_classes_come_to_recognise_the_shared_images():
    teachers = [teacher_of(["wolf", "ant", "cat"], 1), teacher_of(["emu", "bee", "dog"], 2)]
    dataset = dataset_of(*teachers, bn_weight=0.0, shift=1)
    for step in range(40):
        dataset.learn(loaders(teachers), _seeded(step))
    for teacher in teachers:
        images = torch.cat([dataset.pick(name, torch.arange(4)) for name in teacher.class_names])
        assert (teacher(images).argmax(1) == torch.arange(3).repeat_interleave(4)).float().mean() > 0.9


def test_images_stay_images_for_members_of_any_size_and_scale():
    teachers = [teacher_of(["a", "b"], 1), teacher_of(["b", "c", "d"], 2, 24, "conv4_16", (0.1, 0.9, 0.5), width=16)]
    dataset = dataset_of(*teachers, size=20, recovery_lr=2.0)
    for step in range(5):
        metrics = dataset.learn(loaders(teachers), _seeded(step))
        assert 0 <= dataset.newest(100).min() and dataset.newest(100).max() <= 1
    assert metrics["inversion_loss"] > 0 and dataset.newest(100).shape == (16, 3, 20, 20)
    assert dataset["b"].shape == (4, 3, 20, 20) and dataset["b"].dtype == torch.uint8


def test_episodes_are_of_distinct_classes_and_images_and_learnable_ones_reach_the_pixels():
    dataset = dataset_of(*ALL)
    episodes = dataset.sample(6, _seeded(0), ways=4, shots=1, queries=3)
    assert episodes.query.shape == (6, 12, 3, 16, 16) and not episodes.query.requires_grad
    assert len(set(episodes.class_names)) > 1 and all(len(set(names)) == 4 for names in episodes.class_names)
    episode = dataset.learnable_episode(_seeded(0), ways=4, shots=1, queries=3)
    assert torch.equal(episode.support[0], episodes.support[0])
    (episode.support.sum() + episode.query.sum()).backward()
    reached = dataset.pixels.values.grad.flatten(1).abs().amax(1) > 0
    assert {dataset.class_names[k] for k in reached.nonzero().flatten()} == set(episode.class_names[0])
    with pytest.raises(ValueError, match="5 classes with at least 4 recovered images, expected 6"):
        dataset.sample(1, _seeded(0), ways=6, shots=1, queries=3)


def test_state_goes_to_disk_and_back_in_the_middle_of_learning(tmp_path):
    whole, first = dataset_of(*ALL), dataset_of(*ALL)
    for step in range(4):
        whole.learn(loaders(ALL), _seeded(step))
    for step in range(2):
        first.learn(loaders(ALL), _seeded(step))
    save_tree(tmp_path / "state", first.state_dict())
    second = DynamicDataset(whole.config, 16, MEAN, STD)
    second.load_state_dict(load_tree(tmp_path / "state"))
    for step in range(2, 4):
        second.learn(loaders(ALL), _seeded(step))
    assert second.class_names == whole.class_names
    assert torch.equal(second.pixels.values, whole.pixels.values)
