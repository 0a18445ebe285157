"""Several networks of one architecture -> one: the element-wise average of their tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]


def average_state(states: Iterable[Mapping[str, Tensor]], names: Sequence[str] | None = None) -> State:
    """Element-wise mean of state dicts ("VA" in DRO's tables, "Average" in the later papers).

    Members are summed as they come, so that a generator of them never has more than one in memory. Integer tensors
    (batch norm counts its batches in one) get the rounded mean. Sums are float64: 100 equal members average to that
    member.

    Args:
        states: one state dict a member, all with the same names and shapes.
        names: how errors call the members; `member 0`, `member 1`, ... by default.

    Raises:
        ValueError: if there is no member or their tensors differ in name or shape.

    Examples:
        >>> average_state([{"w": torch.tensor([1.0])}, {"w": torch.tensor([4.0])}])
        {'w': tensor([2.5000])}
    """
    first: Mapping[str, Tensor] = {}
    total: State = {}
    count = 0
    for state in states:
        if not count:
            first = state
            total = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in state.items()}
        check_same_tensors(first, state, member_label(names, 0), member_label(names, count))
        for name, tensor in state.items():
            total[name] += tensor.double()
        count += 1
    if not count:
        raise ValueError("Nothing to average: expected at least one state dict, found none.")
    return {
        name: (total[name] / count if tensor.is_floating_point() else (total[name] / count).round()).to(tensor.dtype)
        for name, tensor in first.items()
    }


def check_same_tensors(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], first_name: str, second_name: str
) -> None:
    """Make sure that two networks have the same tensors, name by name and shape by shape.

    Raises:
        ValueError: naming both and the first tensor in which they differ.
    """
    odd = sorted(first.keys() ^ second.keys())
    if odd:
        owner = first_name if odd[0] in first else second_name
        raise ValueError(
            f"'{first_name}' and '{second_name}' cannot be fused: only '{owner}' has a tensor '{odd[0]}'; "
            f"keep members of one architecture."
        )
    for name, tensor in first.items():
        if tensor.shape != second[name].shape:
            raise ValueError(
                f"'{first_name}' and '{second_name}' cannot be fused: '{name}' has shape {tuple(tensor.shape)} in the "
                f"first and {tuple(second[name].shape)} in the second; keep members of one architecture and head size."
            )


def member_label(names: Sequence[str] | None, index: int) -> str:
    """How an error calls a member."""
    return names[index] if names is not None else f"member {index}"
