"""How alike members are by what they take each other's images for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_dfml.learning.recognition import confusion, unfamiliarity
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.teacher import Teacher


class Colours(torch.nn.Module):
    """Takes an image for the class whose colour channel is brightest; `order` says which channels it knows."""

    def __init__(self, order):
        super().__init__()
        self.order, self.fc = list(order), torch.nn.Linear(1, 1)

    def forward(self, images):
        return 50 * images.mean((2, 3))[:, self.order]


def member(order):
    entry = PoolEntry(
        id=f"knows-{order}", num_classes=len(order), input_size=(3, 4, 4), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    return Teacher(entry, Colours(order))


def of_colours(channels, count=3):
    """Images that are pure in one channel, `count` of each, and their labels."""
    images = torch.zeros(len(channels) * count, 3, 4, 4, dtype=torch.uint8)
    labels = torch.arange(len(channels)).repeat_interleave(count)
    for row, label in enumerate(labels.tolist()):
        images[row, channels[label]] = 255
    return images, labels


def test_a_confusion_is_the_mean_answer_to_each_class():
    images, labels = of_colours([2, 0])
    found = confusion(member([0, 2]), [(images, labels, 3)])
    assert torch.allclose(found, torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]), atol=1e-6)


def test_members_that_know_the_same_are_nearer_than_those_that_do_not():
    known = [[0, 1], [1, 0], [1, 2]]
    shown = [(*of_colours(order), len(order)) for order in known]
    matrix = unfamiliarity([confusion(member(order), shown) for order in known])
    assert matrix[0, 1] == pytest.approx(0, abs=1e-6), "the order of the classes does not matter"
    # Channel 1 comes back to the first as itself. Channel 0 is either class for the third, which does not know it, and
    # what it is taken for there is either class for the first: half of a half comes back.
    assert matrix[0, 2].item() == pytest.approx(1 - (1 + 1 / 4) / 2, abs=1e-6) and matrix[0, 2] == matrix[2, 0]


@given(
    sizes=st.lists(st.integers(2, 5), min_size=1, max_size=5),
    sharpness=st.floats(0, 20),
    seed=st.integers(0, 2**16),
)
def test_it_is_a_dissimilarity_for_any_answers_and_numbers_of_classes(sizes, sharpness, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = unfamiliarity(
        [(sharpness * torch.randn(sum(sizes), size, generator=generator)).softmax(-1) for size in sizes]
    )
    assert matrix.shape == (len(sizes), len(sizes)) and torch.equal(matrix, matrix.T)
    assert (matrix.diagonal() == 0).all() and matrix.min() >= 0 and matrix.max() <= 1
