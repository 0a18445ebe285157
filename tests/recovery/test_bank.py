"""The bank: first in first out, names survive, episodes cross teachers."""

from dataclasses import replace

import pytest
import torch

from hf_dfml.pool.names import class_keys
from hf_dfml.recovery.bank import MemoryBank
from hf_dfml.recovery.task import Task


def task(names, values, member="m", each=2):
    """A task whose images of class k all have the grey level values[k] / 255."""
    images = torch.tensor(values).repeat_interleave(each).view(-1, 1, 1, 1).expand(-1, 3, 4, 4) / 255
    return Task(images, torch.arange(len(names)).repeat_interleave(each), tuple(names), member)


def test_the_oldest_images_leave_first():
    bank = MemoryBank(capacity=3)
    bank.add(task(["cat"], [10]))
    bank.add(task(["cat"], [20]))
    assert bank["cat"][:, 0, 0, 0].tolist() == [10, 20, 20]


def test_classes_of_the_same_name_share_their_place():
    bank = MemoryBank(capacity=10)
    bank.add(task(["cat", "dog"], [1, 2], member="a"))
    bank.add(task(["dog", "emu"], [3, 4], member="b"))
    assert bank.class_names == ("cat", "dog", "emu")
    assert bank["dog"][:, 0, 0, 0].tolist() == [2, 2, 3, 3]


def test_what_members_spell_otherwise_is_one_class_also_after_a_resume():
    bank = MemoryBank(capacity=10)
    for names, values in ((["Tabby", "dog"], [1, 2]), (["n02123045", "Polar_bear"], [3, 4]), (["Cat", "cat"], [7, 8])):
        bank.add(replace(task(names, values), keys=class_keys(tuple(names))))
    bank.add(task(["m-1#0"], [9]))
    again, older = MemoryBank(capacity=10), MemoryBank(capacity=10)
    again.load_state_dict(bank.state_dict())
    older.load_state_dict({"images": bank.state_dict()["images"]})
    known = ("Tabby", "dog", "Polar_bear", "Cat", "cat", "m-1#0")
    for each in (bank, again, older):
        each.add(replace(task(["polar bear", "tabby"], [5, 6]), keys=("polar bear", "tabby")))
        each.add(task(["m_1#0"], [0]))
        assert each.class_names == (*known, "m_1#0"), "two of one member, and those without names, stay apart"
        assert each["Tabby"][:, 0, 0, 0].tolist() == [1, 1, 3, 3, 6, 6]


def test_unsorted_labels_find_their_class():
    shuffled = task(["cat", "dog"], [1, 2])
    order = torch.tensor([3, 0, 2, 1])
    bank = MemoryBank(capacity=10)
    bank.add(Task(shuffled.images[order], shuffled.labels[order], shuffled.class_names, "m"))
    assert set(bank["cat"][:, 0, 0, 0].tolist()) == {1} and set(bank["dog"][:, 0, 0, 0].tolist()) == {2}


def test_episodes_cross_teachers_and_never_repeat_an_image():
    bank = MemoryBank(capacity=100)
    for member in range(3):
        images = torch.rand(2 * 6, 3, 4, 4)
        bank.add(Task(images, torch.arange(2).repeat_interleave(6), (f"{member}a", f"{member}b"), str(member)))
    episodes = bank.sample(20, torch.Generator().manual_seed(0), ways=3, shots=2, queries=4)
    assert episodes.support.shape == (20, 6, 3, 4, 4) and episodes.query.shape == (20, 12, 3, 4, 4)
    assert any(len({name[0] for name in names}) > 1 for names in episodes.class_names)
    for index, names in enumerate(episodes.class_names):
        assert len(set(names)) == 3
        for label, name in enumerate(names):
            both = torch.cat(
                [
                    episodes.support[index][episodes.support_labels[index] == label],
                    episodes.query[index][episodes.query_labels[index] == label],
                ]
            )
            stored = {tuple(image.flatten().tolist()) for image in bank[name].float() / 255}
            assert {tuple(image.flatten().tolist()) for image in both} == stored


def test_too_few_classes_is_a_sentence():
    bank = MemoryBank(capacity=10)
    bank.add(task(["cat"], [1]))
    with pytest.raises(ValueError, match="0 classes with at least 20 recovered images, expected 5"):
        bank.sample(1, torch.Generator(), ways=5, shots=5, queries=15)


def test_state_survives():
    bank, again = MemoryBank(capacity=5), MemoryBank(capacity=5)
    bank.add(task(["cat", "dog"], [7, 8]))
    again.load_state_dict(bank.state_dict())
    assert again.class_names == bank.class_names and torch.equal(again["dog"], bank["dog"])


def test_restrict_keeps_images_and_relabels():
    part = task(["a", "b", "c"], [1, 2, 3]).restrict([2, 0])
    assert part.class_names == ("c", "a")
    found = zip((part.images[:, 0, 0, 0] * 255).round().tolist(), part.labels.tolist(), strict=True)
    assert list(found) == [(1, 1), (1, 1), (3, 0), (3, 0)]


def test_a_budget_in_bytes_is_shared_out_among_the_classes_and_the_newest_stay():
    image = 3 * 4 * 4
    bank = MemoryBank(capacity=10, max_bytes=12 * image)
    for step in range(4):
        grey = torch.full((2, 3, 4, 4), step / 10)
        bank.add(Task(grey, torch.tensor([0, 1]), (f"a{step % 2}", f"b{step % 2}"), "m"))
    assert [bank.count(name) for name in bank.class_names] == [2, 2, 2, 2]
    for step in range(4, 10):
        bank.add(Task(torch.full((2, 3, 4, 4), step / 10), torch.tensor([0, 1]), ("a0", "b0"), "m"))
    assert bank.count("a0") == 3 and bank["a0"][:, 0, 0, 0].tolist() == [178, 204, 230]
    assert sum(bank[name].untyped_storage().nbytes() for name in bank.class_names) <= 12 * image
