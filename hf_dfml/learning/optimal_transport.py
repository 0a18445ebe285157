"""Optimal-transport fusion: reorder the channels of each network to match a reference, then average.

Source: Singh and Jaggi, "Model Fusion via Optimal Transport" (NeurIPS 2020), the baseline OTA of DRO (UAI 2022,
supplement 1.1). Beyond the paper, which assumes neither: biases and batch norm (scale, shift and statistics) travel
with their channels, and channels that a residual connection ties together share one transport plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from hf_dfml.learning.channels import ChannelGroup, TiedAxis
from hf_dfml.learning.fusion import State, average_state, check_same_tensors, member_label

Solver = Literal["emd", "sinkhorn"]


def fuse_ot(
    states: Iterable[Mapping[str, Tensor]],
    reference: Mapping[str, Tensor],
    groups: Sequence[ChannelGroup],
    *,
    solver: Solver = "emd",
    regularisation: float = 0.01,
    names: Sequence[str] | None = None,
) -> State:
    """Align every network to the reference and average.

    The outputs of the last layer stay where they are: class slots of different tasks do not correspond.

    Args:
        states: state dicts of one architecture, the reference's among them if it is to count. They are aligned and
            summed as they come: a generator never has more than one in memory.
        reference: the state dict whose order of channels the others take.
        groups: the architecture's channels, from `channel_groups`.
        solver: exact (`emd`) or entropic (`sinkhorn`) transport, both by POT.
        regularisation: entropy weight of `sinkhorn`, relative to the largest cost of a layer.
        names: how errors call the members.

    Raises:
        ValueError: if the members' tensors differ in name or shape.
    """

    def aligned() -> Iterator[State]:
        for index, state in enumerate(states):
            check_same_tensors(reference, state, "the reference", member_label(names, index))
            yield align_state(state, reference, groups, solver, regularisation)[0]

    return average_state(aligned(), names)


def align_state(
    state: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    groups: Sequence[ChannelGroup],
    solver: Solver = "emd",
    regularisation: float = 0.01,
) -> tuple[State, list[Tensor]]:
    """Transport the channels of `state` onto those of `reference`, group after group in forward order.

    A channel is compared by its incoming weights, whose input side is aligned already, and its bias; cost is the
    Euclidean distance.

    Returns:
        the aligned state dict and, for each group, the plan `T` `(C, C)`, scaled so that its columns sum to 1.
    """
    aligned, plans = dict(state), []
    for group in groups:
        plan = transport_plan(_rows(aligned, group), _rows(reference, group), solver, regularisation)
        for tied in group.axes:
            aligned[tied.tensor] = _transport(aligned[tied.tensor], tied, plan)
        plans.append(plan)
    return aligned, plans


def transport_plan(
    rows: Tensor, reference_rows: Tensor, solver: Solver = "emd", regularisation: float = 0.01
) -> Tensor:
    """Transport plan `T` between channels given by feature rows, both `(C, D)`.

    `T[i, k]` is the share of channel i in the reference's channel k. Mass is uniform on both sides and `T` is scaled
    by C, so rows and columns sum to 1; the exact plan is a permutation.

    Returns:
        `(C, C)` float64 on the CPU.
    """
    import ot

    cost = torch.cdist(rows.double().cpu(), reference_rows.double().cpu())
    count = len(cost)
    mass = torch.full((count,), 1 / count, dtype=torch.float64)
    if solver == "emd":
        plan = ot.emd(mass, mass, cost)
    else:
        # In the log domain: at the small entropies that give near-permutations the plain iteration divides by zero.
        scale = cost.max().clamp(min=torch.finfo(torch.float64).tiny)
        options = {"method": "sinkhorn_log", "numItermax": 100_000, "stopThr": 1e-7}
        plan = ot.sinkhorn(mass, mass, cost / scale, regularisation, **options)
    return plan * count


def _rows(state: Mapping[str, Tensor], group: ChannelGroup) -> Tensor:
    parts = []
    for weight, bias in group.writers:
        parts.append(state[weight].flatten(1))
        if bias is not None:
            parts.append(state[bias][:, None])
    return torch.cat(parts, dim=1)


def _transport(tensor: Tensor, tied: TiedAxis, plan: Tensor) -> Tensor:
    """Apply `T^T` to one axis; the cells of a channel (its positions behind a flatten) move together."""
    leading = tensor.movedim(tied.axis, 0)
    channels = leading.reshape(len(plan), -1).double()
    moved = plan.T.to(channels.device) @ channels
    return moved.reshape(leading.shape).movedim(0, tied.axis).to(tensor.dtype).contiguous()
