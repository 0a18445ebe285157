"""Several conv4 as one network: their channels side by side, each a group of every convolution.

On a CPU the support set of one episode is too small for its kernels, but a convolution in groups is slower than the
same work in one group where maps are large. Episodes of second-order replay a second (conv4 with 32 channels, 32 x 32
pixels, five inner steps, one thread): with 5 support images 6.7 one after the other and 9.9 by twelve, with 10 images
5.3 and 6.6 by four, with 25 images 3.5 and 3.3 by two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from hf_dfml.networks.conv4 import Conv4

PIXELS_AT_ONCE = 45 * 32 * 32
"""Pixels (of one channel) of all images side by side."""


def how_many(model: nn.Module, pixels: int) -> int:
    """Copies of `model` side by side that make the best use of a CPU.

    One of any network but conv4: others may mix channels in ways that are not known here, and are large enough.

    Args:
        model: the network, on its device.
        pixels: of one channel of the images that each copy is given.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    return max(1, PIXELS_AT_ONCE // pixels) if on_cpu and isinstance(model, Conv4) else 1


@contextmanager
def side_by_side(model: nn.Module, count: int) -> Iterator[None]:
    """Let `model` be `count` networks inside the block, with parameters from `joined`.

    It takes images `(B, count * 3, H, W)` (`beside`) and gives logits `(B, count * N)`.
    """
    # Alone a network of any kind stays as it is.
    modules = list(model.modules()) if count > 1 else []
    convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
    linears = [module for module in modules if isinstance(module, nn.Linear)]
    for convolution in convolutions:
        convolution.groups *= count
    for linear in linears:
        # An instance attribute hides the class's forward.
        object.__setattr__(linear, "forward", partial(_linears, linear, count))
    try:
        yield
    finally:
        for convolution in convolutions:
            convolution.groups //= count
        for linear in linears:
            object.__delattr__(linear, "forward")


def joined(each: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The parameters (and buffers) of all networks side by side, along the first axis; of one as they are."""
    if len(each) == 1:
        return dict(each[0])
    return {name: torch.cat([params[name] for params in each]) for name, value in each[0].items() if value.dim()}


def apart(params: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """The parameters of each network: the inverse of `joined`."""
    parts = {name: value.chunk(count) for name, value in params.items()}
    return [{name: part[index] for name, part in parts.items()} for index in range(count)]


def beside(images: Tensor) -> Tensor:
    """Images `(count, B, 3, H, W)` of each network -> `(B, count * 3, H, W)`, channels last in memory."""
    return images.permute(1, 3, 4, 0, 2).flatten(3).contiguous().permute(0, 3, 1, 2)


def _linears(layer: nn.Linear, count: int, x: Tensor) -> Tensor:
    """`(B, count * D)` -> `(B, count * N)`."""
    weight, bias = layer.weight.unflatten(0, (count, -1)), layer.bias.view(count, 1, -1)
    return torch.baddbmm(bias, x.unflatten(1, (count, -1)).transpose(0, 1), weight.mT).transpose(0, 1).flatten(1)
