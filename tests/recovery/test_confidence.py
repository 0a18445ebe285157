"""How sure a pool is of recovered images."""

from __future__ import annotations

import torch

from hf_dfml.recovery.confidence import ASKED, confidence
from tests.methods.pools import make_mixed_pool, make_pool

IMAGES = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_it_is_the_mean_probability_of_members_that_know_the_class(tmp_path):
    pool = make_mixed_pool(tmp_path)  # Two members share `cat`; one alone knows `yak`.
    conv, residual = (pool[index].label_names for index in range(2))
    found = confidence(pool, IMAGES, ["cat", "yak"])
    with torch.no_grad():
        answers = [pool.load(index)(IMAGES.flatten(0, 1)).softmax(-1).unflatten(0, (2, 3)) for index in range(2)]
    cats = (answers[0][0, :, conv.index("cat")] + answers[1][0, :, residual.index("cat")]) / 2
    torch.testing.assert_close(found, torch.stack([cats, answers[1][1, :, residual.index("yak")]]))


def test_a_class_that_no_member_knows_has_none(tmp_path):
    found = confidence(make_pool(tmp_path, 1), IMAGES, ["CAT", "gnu"])
    assert found[0].isfinite().all() and found[1].isnan().all()


def test_few_members_are_asked(tmp_path):
    pool = make_pool(tmp_path, ASKED + 2)
    assert torch.equal(confidence(pool, IMAGES, ["cat", "dog"]), confidence(pool[:ASKED], IMAGES, ["cat", "dog"]))
    assert pool.cache.loads == ASKED, "no member beyond these is read"
