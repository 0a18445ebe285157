"""The element-wise average and its errors."""

import pytest
import torch

from hf_dfml.learning.fusion import average_state


def states(count):
    generator = torch.Generator().manual_seed(0)
    return [
        {"w": torch.randn(3, 2, generator=generator), "bn.num_batches_tracked": torch.tensor(10 * index + 1)}
        for index in range(count)
    ]


def test_it_is_the_mean_and_keeps_types():
    members = states(4)
    fused = average_state(members)
    assert torch.allclose(fused["w"], sum(member["w"] for member in members) / 4)
    assert fused["w"].dtype == torch.float32
    assert fused["bn.num_batches_tracked"].dtype == torch.int64 and fused["bn.num_batches_tracked"] == 16


def test_many_copies_average_to_the_very_same_member():
    member = states(1)[0]
    assert torch.equal(average_state([member] * 100)["w"], member["w"])


def test_a_generator_is_consumed_one_member_at_a_time():
    alive = []

    def stream():
        for member in states(5):
            alive.append(member)
            yield member
            # Nothing of the average may be the member's own memory.
            member["w"].fill_(float("nan"))

    assert torch.isfinite(average_state(stream())["w"]).all() and len(alive) == 5


def test_the_members_are_not_changed():
    members = states(2)
    before = members[0]["w"].clone()
    average_state(members)["w"].zero_()
    assert torch.equal(members[0]["w"], before)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"v": torch.zeros(3, 2)}, "'a' and 'b' cannot be fused: only 'b' has a tensor 'v'"),
        ({"w": torch.zeros(5, 2)}, r"'w' has shape \(3, 2\) in the first and \(5, 2\) in the second"),
        ({}, "only 'a' has a tensor 'w'"),
    ],
)
def test_members_that_differ_are_named(second, message):
    with pytest.raises(ValueError, match=message):
        average_state([{"w": torch.zeros(3, 2)}, second], ["a", "b"])


def test_nothing_to_average():
    with pytest.raises(ValueError, match="at least one state dict"):
        average_state([])
