"""Copies of a network that compute the same with their channels in another order."""

import torch
from torch import Tensor

from hf_dfml.learning.channels import ChannelGroup


def permute_channels(state: dict[str, Tensor], groups: list[ChannelGroup], orders: list[Tensor]) -> dict[str, Tensor]:
    """The same function with its channels in another order: new channel k of group g is old channel `orders[g][k]`."""
    state = dict(state)
    for group, order in zip(groups, orders, strict=True):
        for tied in group.axes:
            cells = torch.arange(tied.cells)
            index = (order[:, None] * tied.cells + cells).flatten()
            state[tied.tensor] = state[tied.tensor].index_select(tied.axis, index)
    return state
