"""FIVE: the k steps and the first-order meta-gradient re-computed by hand, and that it learns to recover."""

import copy

import pytest
import torch
import torch.nn.functional as F

from hf_dfml.networks import create_network
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.teacher import Teacher
from hf_dfml.recovery.meta_generator import MetaGenerator, MetaGeneratorConfig
from hf_dfml.utils.checkpoint import load_tree, save_tree
from hf_dfml.utils.seeding import spawn

TINY = {"images_per_class": 2, "latent_dim": 8, "generator_width": 4, "shift": 0, "flip": False}


def teacher_of(seed, arch="conv4", classes=3, size=16, **model_args):
    network = create_network(
        arch, num_classes=classes, image_size=size, generator=torch.Generator().manual_seed(seed), **model_args
    )
    entry = PoolEntry(
        id=f"org/{arch}-{seed}",
        architecture=arch,
        num_classes=classes,
        input_size=(3, size, size),
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.2, 0.2),
    )
    return Teacher(entry, network)


def meta_of(seed=0, size=16, **changes):
    meta = MetaGenerator(MetaGeneratorConfig(**{**TINY, **changes}), size)
    meta.reset_parameters(torch.Generator().manual_seed(seed))
    return meta


def weights(meta):
    return torch.cat([parameter.detach().flatten() for parameter in meta.network.parameters()])


def plain_descent(meta):
    """SGD of rate 1 in place of Adam: a step is minus the meta-gradient."""
    meta.optimizer = torch.optim.SGD(meta.network.parameters(), 1.0)
    return meta


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_images_and_gradient_are_those_after_the_last_step(steps):
    """Without shift and flip the augmentation is the identity, so a few lines of PyTorch say what must come out."""
    meta, teacher = plain_descent(meta_of(adaptation_steps=steps, adaptation_lr=0.01, latent_lr=0.1)), teacher_of(0)
    reference, before = copy.deepcopy(meta.network), weights(meta)

    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    (stream,) = spawn(torch.Generator().manual_seed(5), 1)
    latent = torch.randn(6, 8, generator=stream).requires_grad_()
    groups = [{"params": list(reference.parameters()), "lr": 0.01}, {"params": [latent], "lr": 0.1}]
    optimizer = torch.optim.Adam(groups, betas=(0.5, 0.999))
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(teacher(reference(latent)), labels).backward()
        optimizer.step()
    images = reference(latent)
    loss = F.cross_entropy(teacher(images), labels)
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(reference.parameters()))])

    (task,), metrics = meta.recover([teacher], torch.Generator().manual_seed(5))
    assert torch.allclose(task.images, images, atol=1e-6) and not task.images.requires_grad
    assert task.labels.equal(labels) and task.class_names == teacher.class_names and task.member == teacher.entry.id
    assert metrics["generator_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert torch.allclose(before - weights(meta), gradient, atol=1e-5) and gradient.norm() > 1e-3


def test_the_meta_gradient_is_the_mean_over_the_teachers():
    teachers, together = [teacher_of(seed) for seed in range(3)], plain_descent(meta_of())
    before, alone = weights(together), []
    generator = torch.Generator().manual_seed(1)
    for teacher in teachers:
        single = plain_descent(meta_of())
        single.recover([teacher], generator)
        alone.append(weights(single) - before)
    together.recover(teachers, torch.Generator().manual_seed(1))
    assert torch.allclose(weights(together) - before, torch.stack(alone).mean(0), atol=1e-6)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


def test_the_meta_generator_keeps_its_own_statistics_and_the_teacher_is_left_alone():
    """Adaptation works on a copy: the meta-generator moves by its one step only."""
    meta, teacher = meta_of(meta_generator_lr=0.0), teacher_of(0)
    before = {name: value.clone() for name, value in meta.network.state_dict().items()}
    taught = {name: value.clone() for name, value in teacher.state_dict().items()}
    meta.recover([teacher], torch.Generator().manual_seed(1))
    assert all(torch.equal(value, before[name]) for name, value in meta.network.state_dict().items())
    assert all(torch.equal(value, taught[name]) for name, value in teacher.state_dict().items())


FAST = {"adaptation_lr": 0.01, "latent_lr": 0.01, "images_per_class": 4}


def relative(seed):
    """A teacher whose weights are near to those of all others that this function makes."""
    teacher, generator = teacher_of(3, width=8), torch.Generator().manual_seed(seed)
    for parameter in teacher.parameters():
        spread = 0.2 * parameter.std() if parameter.std() > 0 else 0.0
        parameter += spread * torch.randn(parameter.shape, generator=generator)
    return teacher


@pytest.fixture(scope="module")
def trained():
    """A meta-generator after 25 meta-steps on two teachers, and how well their tasks were recovered at each."""
    meta = meta_of(seed=3, meta_generator_lr=0.01, **FAST)
    teachers, generator = [relative(100), relative(101)], torch.Generator().manual_seed(3)
    return meta, [meta.recover(teachers, generator)[1]["generator_loss"] for _ in range(25)]


def test_the_same_few_steps_recover_better_and_better(trained):
    """Measured over four seeds: 0.68 to 0.94 of the first losses, with this one 0.78."""
    _, losses = trained
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_a_teacher_never_met_is_recovered_better_than_from_fresh_weights(trained):
    """Five steps from the meta-learned weights against five from fresh ones; measured: 0.76 to 0.95 of the loss."""
    losses = {}
    for name, meta in (("learned", trained[0]), ("fresh", meta_of(seed=3, **FAST))):
        runs = [(copy.deepcopy(meta), relative(200 + k), torch.Generator().manual_seed(k)) for k in range(3)]
        losses[name] = sum(one.recover([teacher], stream)[1]["generator_loss"] for one, teacher, stream in runs)
    assert losses["learned"] < 0.9 * losses["fresh"]


def test_the_optimiser_of_the_meta_generator_persists():
    """The released code makes a new Adam for every step, whose moments then are of one gradient only."""
    meta, generator = meta_of(), torch.Generator().manual_seed(0)
    for _ in range(3):
        meta.recover([teacher_of(0)], generator)
    assert {int(state["step"]) for state in meta.optimizer.state.values()} == {3}


def test_a_resumed_meta_generator_goes_on_exactly(tmp_path):
    meta, teachers, generator = meta_of(), [teacher_of(0), teacher_of(1)], torch.Generator().manual_seed(4)
    meta.recover(teachers, generator)
    save_tree(tmp_path / "state", meta.state_dict())
    resumed, stream = meta_of(seed=8), generator.get_state()
    resumed.load_state_dict(load_tree(tmp_path / "state"))
    runs = []
    for one in (meta, resumed):
        generator.set_state(stream)
        tasks = [task.images for _ in range(2) for task in one.recover(teachers, generator)[0]]
        runs.append((torch.stack(tasks), weights(one)))
    assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1])


def test_teachers_may_differ_in_architecture_classes_and_size():
    teachers = [teacher_of(0), teacher_of(1, "conv4_16", classes=5, size=32), teacher_of(2, "resnet10", classes=2)]
    tasks, _ = meta_of(size=20).recover(teachers, torch.Generator().manual_seed(0))
    assert [tuple(task.images.shape) for task in tasks] == [(6, 3, 20, 20), (10, 3, 20, 20), (4, 3, 20, 20)]
    assert all(0 <= task.images.min() and task.images.max() <= 1 for task in tasks)


def test_each_teacher_has_its_own_further_term():
    """A term that darkens images, for the second teacher only."""
    meta, seen = meta_of(adaptation_lr=0.02, adaptation_steps=20), []

    def dark(images, labels, logits):
        seen.append((images.shape, labels.shape, logits.shape))
        return 100 * images.mean()

    teacher = teacher_of(0)
    tasks, _ = meta.recover([teacher, teacher], torch.Generator().manual_seed(0), [None, dark])
    assert tasks[1].images.mean() < 0.5 * tasks[0].images.mean()
    assert seen == [((6, 3, 16, 16), (6,), (6, 3))] * 21


def test_batch_norm_and_total_variation_have_their_weights():
    teacher = teacher_of(0)

    def loss(**changes):
        return meta_of(adaptation_steps=0, **changes).recover([teacher], torch.Generator().manual_seed(0))[1][
            "generator_loss"
        ]

    plain = loss()
    assert loss(bn_weight=1.0) - plain == pytest.approx((loss(bn_weight=3.0) - plain) / 3, rel=1e-4)
    assert loss(bn_weight=1.0) > plain + 0.1 and loss(tv_weight=1.0) > plain + 0.1


def test_an_adam_begun_anew_moves_every_weight_by_its_learning_rate():
    """As in the released code: the first step of an Adam is the sign of the gradient."""
    meta, generator = meta_of(meta_generator_adam="renewed", meta_generator_lr=1e-3), torch.Generator().manual_seed(0)
    for _ in range(2):
        before = weights(meta)
        meta.recover([teacher_of(0)], generator)
        moved = (weights(meta) - before).abs()
        assert moved[moved > 1e-5].median().item() == pytest.approx(1e-3, rel=1e-3)
        assert (moved > 0.9e-3).float().mean() > 0.9
    assert {int(state["step"]) for state in meta.optimizer.state.values()} == {1}
