"""What answers tell of images, in closed form, and which drawn images members of one kind or the other tell of."""

import math

import pytest
import torch

from hf_dfml.pool import BlackBoxPool, QueryBudgetError
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.queries import QueryCount
from hf_dfml.recovery.information import (
    IMAGES_OF_A_KIND,
    MOST_ASKED,
    asked_members,
    entropy,
    information,
    information_of_drawn,
    questions,
)
from hf_dfml.recovery.procedural import DRAWN


def test_information_is_the_entropy_of_the_mean_answer_less_the_mean_entropy():
    assert float(entropy(torch.tensor([0.5, 0.5, 0.0]))) == pytest.approx(math.log(2))
    labels = torch.eye(4)[torch.tensor([0, 0, 1, 2])]
    assert float(information(labels)) == pytest.approx(1.5 * math.log(2)), "of labels, their histogram's entropy"
    assert float(information(labels[:2])) == 0, "the same answer to all images"
    unsure = torch.full((4, 4), 0.25)
    assert float(information(unsure)) == pytest.approx(0)
    assert 0 < float(information((labels + unsure) / 2)) < float(information(labels))


def boxes(members: int, knows: str, output: str = "probs", budget: int | None = None) -> BlackBoxPool:
    """Black boxes that tell images of one kind apart by their brightness, and answer the same to all others."""
    entries = [PoolEntry(id=f"m-{index}", num_classes=4, input_size=(3, 16, 16)) for index in range(members)]

    def ask(entry, images):
        grey = (images.amax(1) - images.amin(1)).flatten(1).amax(1) < 1e-3
        seen = grey if knows == "strokes" else ~grey
        mean = images.flatten(1).mean(1)
        order = mean.argsort().argsort() * 4 // len(images)
        return torch.where(seen[:, None], torch.eye(4)[order], torch.eye(4)[0])

    return BlackBoxPool(entries, ask, output, QueryCount(budget))


@pytest.mark.parametrize("output", ["logits", "probs", "topk", "label"])
@pytest.mark.parametrize("kind", DRAWN)
def test_answers_of_every_sort_tell_which_images_the_members_know(kind, output):
    told = information_of_drawn(boxes(3, kind, output), 16, 0, torch.device("cpu"))
    (other,) = (each for each in DRAWN if each != kind)
    assert told[kind] > 0.1 and told[other] == pytest.approx(0, abs=1e-6)


def test_at_most_so_many_members_spread_over_the_pool_are_asked_and_each_image_counts():
    assert asked_members(3) == [0, 1, 2] and questions(3) == 3 * IMAGES_OF_A_KIND * len(DRAWN)
    pool = boxes(3 * MOST_ASKED, "strokes", budget=questions(3 * MOST_ASKED))
    information_of_drawn(pool, 16, 0, torch.device("cpu"))
    assert pool.queries.members == {f"m-{3 * index}": IMAGES_OF_A_KIND * len(DRAWN) for index in range(MOST_ASKED)}
    with pytest.raises(QueryBudgetError):
        information_of_drawn(pool, 16, 0, torch.device("cpu"))


def test_the_images_follow_the_seed():
    def seen(seed):
        pool, images = boxes(1, "strokes"), []
        pool._ask = lambda entry, some: images.append(some) or torch.full((len(some), 4), 0.25)
        information_of_drawn(pool, 16, seed, torch.device("cpu"))
        return torch.cat(images)

    assert torch.equal(seen(0), seen(0)) and not torch.equal(seen(0), seen(1))
