"""Forked streams depend on seed and name alone."""

import torch

from hf_dfml.utils.seeding import fork


def test_same_name_same_numbers():
    assert torch.equal(torch.randn(5, generator=fork(1, "a", 2)), torch.randn(5, generator=fork(1, "a", 2)))


def test_seed_and_name_both_matter():
    draws = [torch.randn(5, generator=fork(*key)) for key in ((1, "a"), (2, "a"), (1, "b"))]
    assert len({tuple(draw.tolist()) for draw in draws}) == 3


def test_the_global_seed_is_untouched():
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    fork(9, "x")
    assert torch.equal(torch.randn(2), expected)
