"""Batch norm folded into the convolution before it: of a frozen network the same outputs by fewer passes.

A frozen batch norm is `gain * y + offset` for each channel of the convolution's output y, which a kernel and a bias
do as well (Jacob et al., CVPR 2018, section 3.2). Which batch norm follows which convolution is seen in a forward
pass, so that networks of any library are folded; what is not certain to be such a pair stays as it is.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from hf_dfml.networks.info import batch_norms

SMALLEST = 1e-3
"""Scale of a batch norm from which the statistics before it still follow from those after it."""
BESIDE_SHIFT = 0.01
"""The same beside its shift: with a smaller scale single precision would lose more than five digits."""


def folded(network: nn.Module, forward: Callable[[], Tensor], *, watched: bool = False) -> nn.Module:
    """A copy of a network in eval mode whose batch norms are part of the convolutions before them.

    Args:
        network: frozen, with running statistics.
        forward: a forward pass of `network` as its copy will be used; of one image, say.
        watched: whether the statistics of the batch norms' inputs will be asked for (`FoldedBatchNorm.before`): then
            a layer in which a channel's scale is near zero, or small beside its shift, stays as it is.

    Returns:
        The copy; its outputs are those of `network` but for rounding. Where nothing can be folded, it is only a copy.
    """
    watch = _Pairs()
    with torch.no_grad(), watch:
        forward()
    convolutions = {id(module.weight): name for name, module in network.named_modules() if type(module) is nn.Conv2d}
    norms = {
        id(module.running_mean): name
        for name, module in batch_norms(network).items()
        if module.running_mean is not None and not module.training and not (watched and _loses_its_input(module))
    }
    twin = copy.deepcopy(network)
    for weight, mean in watch.pairs():
        if weight in convolutions and mean in norms:
            _fold(twin, convolutions[weight], norms[mean], copies=watched and watch.overwritten(mean))
    return twin


class FoldedBatchNorm(nn.Module):
    """What stays of a batch norm that is part of the convolution before it: what else its layer does, and its numbers.

    Args:
        layer: the batch norm, in eval mode.
        copies: whether what it gives is another tensor than what it is given: what follows writes into it, and the
            statistics of what it is given are asked for.

    Attributes:
        running_mean: `(C,)` its own.
        running_var: likewise.
    """

    running_mean: Tensor
    running_var: Tensor
    gain: Tensor
    offset: Tensor

    def __init__(self, layer: _BatchNorm, *, copies: bool = False) -> None:
        super().__init__()
        self.copies = copies
        # timm's fused layer has its activation in itself.
        rest = [getattr(layer, part) for part in ("drop", "act") if isinstance(getattr(layer, part, None), nn.Module)]
        self.rest = nn.Sequential(*rest)
        gain, offset = affine(layer)
        values = {"gain": gain, "offset": offset, "running_mean": layer.running_mean, "running_var": layer.running_var}
        for name, value in values.items():
            assert value is not None
            self.register_buffer(name, value.to(layer.running_mean), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The convolution's output with the batch norm in it -> that of the layer."""
        return self.rest(x.clone() if self.copies else x)

    def before(self, variance: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Variance and mean `(C,)` of what the batch norm would have been given, from those of what is given here."""
        return variance / self.gain.square(), (mean - self.offset) / self.gain


class _Pairs(TorchFunctionMode):
    """Notes which convolution's output is the input of which batch norm, and of nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[int, tuple[Tensor, int]] = {}  # the tensor is kept, so that no other has its id
        self.readers: Counter[int] = Counter()
        self.norms: list[tuple[int, int]] = []
        self.normed: dict[int, Tensor] = {}  # what a batch norm gave
        self.times: Counter[int] = Counter()

    def pairs(self) -> list[tuple[int, int]]:
        """Ids of the convolutions' kernels and of the batch norms' running means, each used once."""
        found = [(self.outputs[output][1], mean) for output, mean in self.norms if self.readers[output] == 1]
        return [pair for pair in found if self.times[pair[0]] == self.times[pair[1]] == 1]

    def overwritten(self, mean: int) -> bool:
        """Whether what follows a batch norm, given by its running mean, has written into what it gave."""
        given = self.normed[mean]
        return given.is_inference() or given._version > 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if isinstance(out, (Tensor, tuple, list)):
            self.readers.update(id(value) for value in (*args, *kwargs.values()) if id(value) in self.outputs)
        if func is F.conv2d and len(args) > 1:
            self.outputs[id(out)] = (out, id(args[1]))
            self.times[id(args[1])] += 1
        elif func is F.batch_norm and len(args) > 2:
            self.times[id(args[1])] += 1
            self.normed[id(args[1])] = out
            if id(args[0]) in self.outputs:
                self.norms.append((id(args[0]), id(args[1])))
        return out


@torch.no_grad()
def _fold(network: nn.Module, convolution: str, norm: str, *, copies: bool) -> None:
    """Put a batch norm into a convolution; in its place stays what else its layer does."""
    before, layer = network.get_submodule(convolution), network.get_submodule(norm)
    assert isinstance(before, nn.Conv2d) and isinstance(layer, _BatchNorm)
    gain, offset = affine(layer)
    bias = before.bias.double() * gain + offset if before.bias is not None else offset
    kernel = before.weight.double() * gain.view(-1, 1, 1, 1)
    before.weight = nn.Parameter(kernel.to(before.weight), requires_grad=False)
    before.bias = nn.Parameter(bias.to(before.weight), requires_grad=False)
    parent, _, own = norm.rpartition(".")
    setattr(network.get_submodule(parent), own, FoldedBatchNorm(layer, copies=copies))


def _loses_its_input(layer: _BatchNorm) -> bool:
    """Whether a channel's output says too little of its input."""
    if layer.weight is None:
        return False
    scale = layer.weight.abs()
    beside = scale < BESIDE_SHIFT * layer.bias.abs() if layer.bias is not None else scale < 0
    return bool(((scale < SMALLEST) | beside).any())


def affine(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Gain and offset `(C,)` of a batch norm in eval mode, in double precision."""
    assert layer.running_mean is not None and layer.running_var is not None
    gain = torch.rsqrt(layer.running_var.double() + layer.eps)
    if layer.weight is not None:
        gain = gain * layer.weight.double()
    offset = -layer.running_mean.double() * gain
    if layer.bias is not None:
        offset = offset + layer.bias.double()
    return gain, offset
