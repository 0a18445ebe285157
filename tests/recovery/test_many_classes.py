"""Members of many classes: some of them, in parts, within a memory."""

from __future__ import annotations

import torch

from hf_dfml.methods.pool_images import PoolImagesConfig, classes_shown, recover_member
from hf_dfml.recovery.joint import JointConfig, joint_classes, recover_jointly
from hf_dfml.recovery.many_classes import chosen_classes, images_at_once, in_parts
from tests.methods.pools import make_context, make_mixed_pool, make_pool

FAST = {"recovery_steps": 2, "images_per_class": 2, "classes_per_member": 2}


def test_all_classes_are_shown_without_a_draw_and_some_by_chance():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert chosen_classes(5, 5, generator) == chosen_classes(5, 0, generator) == [0, 1, 2, 3, 4]
    assert torch.equal(generator.get_state(), before), "stored pools keep their random streams"
    drawn = [tuple(chosen_classes(1000, 20, generator)) for _ in range(2)]
    assert all(len(set(some)) == 20 and list(some) == sorted(some) and some[-1] < 1000 for some in drawn)
    assert drawn[0] != drawn[1]


def test_parts_hold_every_class_as_often_as_asked_and_no_more_images_than_fit():
    for most in (1, 3, 4, 7, 100):
        parts = in_parts([2, 4, 9], 5, most)
        assert all(len(some) * count <= most for some, count in parts)
        shown = [label for some, count in parts for label in some * count]
        assert sorted(shown) == [2] * 5 + [4] * 5 + [9] * 5


def test_a_recovery_shows_some_classes_under_their_own_numbers(tmp_path):
    pool = make_mixed_pool(tmp_path)
    found = recover_member(pool, PoolImagesConfig(**FAST, recoveries=2), 16, make_context(), 1)
    assert found["images"].shape == (8, 3, 16, 16)
    halves = [set(part.tolist()) for part in found["labels"].split(4)]
    assert all(len(half) == 2 and half <= set(range(5)) for half in halves)


def test_joint_recovery_shows_some_classes_of_each_member_a_few_at_a_time(tmp_path):
    pool = make_mixed_pool(tmp_path)
    shown = classes_shown(pool, PoolImagesConfig(**FAST), seed=0)
    assert shown == classes_shown(pool, PoolImagesConfig(**FAST), seed=0) and [len(some) for some in shown] == [2, 2]
    names = joint_classes(pool, shown)
    assert set(names) <= {name for entry in pool for name in entry.class_names} and 3 <= len(names) <= 4
    images = recover_jointly(
        pool,
        JointConfig(images=2, updates=3),
        16,
        torch.Generator().manual_seed(0),
        shown=shown,
        at_once=[2, 2],
    )
    assert images.shape == (len(names), 2, 3, 16, 16)
    start = recover_jointly(pool, JointConfig(images=2, updates=0), 16, torch.Generator().manual_seed(0), shown=shown)
    assert ((images - start).abs().flatten(1).sum(1) > 0).all(), "every class is moved"


def test_fewer_images_at_once_where_memory_is_short(tmp_path):
    teacher = make_pool(tmp_path, 1).load(0)
    assert images_at_once(teacher, 50, 1e-9) == 50, "few images are never split"
    assert images_at_once(teacher, 1000, 1e-9) == 1
    some = images_at_once(teacher, 100_000, 0.01)
    assert 1 < some < images_at_once(teacher, 100_000, 0.02)
