"""Members that are worth nothing are found by what they answer to images that show nothing."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor

from hf_dfml.pool import ModelPool
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.recovery.soundness import reasons, unsound_members
from tests.methods.pools import make_pool

NAMES = [f"class-{index}" for index in range(8)]
MEMBERS, WAYS, IMAGES = 12, 4, 200


def members(seed: int = 0) -> tuple[list[PoolEntry], list[Tensor]]:
    """Members that see the same eight properties of an image, each with an error of its own."""
    generator = torch.Generator().manual_seed(seed)
    properties = 2 * torch.randn(IMAGES, len(NAMES), generator=generator)
    entries, answers = [], []
    for index in range(MEMBERS):
        own = torch.randperm(len(NAMES), generator=generator)[:WAYS].tolist()
        entries.append(PoolEntry(id=f"m-{index}", num_classes=WAYS, label_names=tuple(NAMES[each] for each in own)))
        answers.append((properties[:, own] + torch.randn(IMAGES, WAYS, generator=generator)).softmax(-1))
    return entries, answers


def found(entries: list[PoolEntry], answers: list[Tensor]) -> dict[int, str]:
    return reasons(entries, answers, [entry.id for entry in entries])


def test_good_members_are_all_kept():
    for seed in range(5):
        assert found(*members(seed)) == {}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda answers: answers.mean(0).expand_as(answers), "answers nearly the same to every image"),
        (lambda answers: answers.log().mul(1e6).softmax(-1), "is certain of every image"),
        (lambda answers: answers.roll(1, 1), "disagrees with the members that know the same classes"),
    ],
)
def test_bad_members_are_found_and_no_other(spoil, said):
    entries, answers = members()
    for index in (3, 7, 8):
        answers[index] = spoil(answers[index])
    spoilt = found(entries, answers)
    assert set(spoilt) == {3, 7, 8} and all(said in reason for reason in spoilt.values())


def test_a_copy_is_left_out_and_its_original_kept():
    entries, answers = members()
    entries.append(PoolEntry(id="copy", num_classes=WAYS, label_names=entries[4].label_names))
    answers.append(answers[4] + 1e-5)
    assert found(entries, answers) == {MEMBERS: "is a copy of m-4: the same answers"}
    digests = [str(index) for index in range(MEMBERS)] + ["4"]
    assert reasons(entries, answers, digests) == {MEMBERS: "is a copy of m-4: the same weights"}
    # Other names of the same outputs are other classes.
    entries[-1] = PoolEntry(id="copy", num_classes=WAYS, label_names=("a", "b", "c", "d"))
    assert found(entries, answers) == {}


def test_members_that_share_no_class_are_not_compared():
    entries, answers = members()
    alone = [PoolEntry(id=entry.id, num_classes=WAYS) for entry in entries]
    answers[2] = answers[2].roll(1, 1)
    assert found(alone, answers) == {}


def test_untrained_members_are_kept_where_all_are_but_copies_are_named(tmp_path):
    pool = make_pool(tmp_path, 3)
    first = pool[0].location
    assert unsound_members(pool, torch.Generator().manual_seed(0)) == {}
    shutil.copytree(first, first.parent / "zz-copy")
    again = ModelPool.from_dir(first.parent)
    assert unsound_members(again, torch.Generator().manual_seed(0)) == {
        "zz-copy": f"is a copy of {pool[0].id}: the same weights"
    }
