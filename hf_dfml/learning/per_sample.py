r"""Squares of per-sample gradients, without the gradients.

One backward pass gives the slope of each image's loss at the outputs of every layer. What a convolution or a linear
layer does to its weight is then known from its inputs :math:`a` and slopes :math:`g` at `T` places: the gradient of
one image is :math:`G = \sum_t g_t a_t^\top` (Goodfellow, arXiv 1510.01799, for one place). Of it only the squared
length of each row is wanted, which is also that of :math:`g^\top (a a^\top) g`: whichever is smaller is made, for a
few images at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

BYTES_AT_ONCE = 64 << 20
"""Of the patches of a convolution's inputs."""


def squared_gradients(
    losses: Callable[[Tensor], Tensor], params: Mapping[str, Tensor], images: Tensor
) -> dict[str, Tensor]:
    """For each output of a layer, the squares of the per-sample gradients of its weights: mean over the weights, sum
    over the images.

    Only for weights that are used once, by a two-dimensional convolution or a linear layer whose input has the images
    along its first axis; the other names are left out.

    Args:
        losses: of each image, `(B, ...)` -> `(B,)`; images do not depend on each other.
        params: weights by name, the very tensors that `losses` uses; without `requires_grad`.
        images: `(B, ...)`, floating point.

    Returns:
        `(len(weight),)` by name.
    """
    watch = _Watch(params, len(images))
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        with watch:
            total = losses(leaf).sum()
        # All slopes come by hooks, on the way to the images.
        torch.autograd.grad(total, leaf)
    return {name: found for name, found in watch.found.items() if watch.uses[name] == 1 and name not in watch.unknown}


class _Watch(TorchFunctionMode):
    """Notes every use of the weights in a forward pass, and works out their squares in the backward pass."""

    def __init__(self, params: Mapping[str, Tensor], images: int) -> None:
        super().__init__()
        self.names = {id(value): name for name, value in params.items()}
        self.images = images
        self.uses: Counter[str] = Counter()
        self.unknown: set[str] = set()
        self.found: dict[str, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = [self.names[id(value)] for value in (*args, *kwargs.values()) if id(value) in self.names]
        if given and isinstance(out, Tensor):
            rows = _rows_of_layer(func, args, kwargs)
            x = args[0]
            if rows is None or self.names.get(id(args[1])) != given[0] or len(given) > 1 or len(x) != self.images:
                self.unknown.update(given)
            else:
                self._hook(given[0], x.detach(), out, rows)
        elif given and isinstance(out, (tuple, list)):
            self.unknown.update(given)
        return out

    def _hook(self, name: str, x: Tensor, out: Tensor, rows: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.uses[name] += 1
        version = x._version

        def on_slope(slope: Tensor) -> None:
            if x._version != version:
                # Whoever changed the input in place has no need of it.
                self.unknown.add(name)
            elif self.uses[name] == 1 and name not in self.unknown:
                with torch.no_grad():
                    self.found[name] = rows(x, slope)

        out.register_hook(on_slope)


def _rows_of_layer(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """What makes squares from the inputs and slopes of a call; None if it is neither of the two kinds of layer."""
    if len(args) < 2:
        return None
    if func is F.linear:
        return _rows_of_linear
    if func is not F.conv2d:
        return None
    settings = dict(zip(("stride", "padding", "dilation", "groups"), args[3:], strict=False)) | dict(kwargs)
    stride, padding, dilation = (settings.get(name, usual) for name, usual in _USUAL.items())
    weight: Tensor = args[1]
    kernel = (weight.shape[2], weight.shape[3])
    if isinstance(padding, str):
        across = [d * (k - 1) for d, k in zip(_pair(dilation), kernel, strict=True)]
        if padding == "valid":
            padding = 0
        elif all(width % 2 == 0 for width in across):
            padding = (across[0] // 2, across[1] // 2)
        else:
            return None
    groups = settings.get("groups", 1)
    at = {"stride": _pair(stride), "padding": _pair(padding), "dilation": _pair(dilation)}
    return lambda x, slope: _rows_of_convolution(x, slope, kernel, groups, at)


_USUAL = {"stride": 1, "padding": 0, "dilation": 1}


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


def _rows_of_linear(x: Tensor, slope: Tensor) -> Tensor:
    """`(B, ..., I)` and `(B, ..., O)` -> `(O,)`."""
    places = x.reshape(len(x), -1, x.shape[-1])
    return _row_squares(slope.reshape(*places.shape[:2], -1).mT, places).sum(0) / x.shape[-1]


def _rows_of_convolution(
    x: Tensor, slope: Tensor, kernel: tuple[int, int], groups: int, at: Mapping[str, tuple[int, int]]
) -> Tensor:
    """`(B, C, H, W)` and `(B, O, h, w)` -> `(O,)`."""
    size = x.shape[1] // groups * kernel[0] * kernel[1]
    of_image = x.element_size() * groups * size * slope.shape[2] * slope.shape[3]
    total = slope.new_zeros(slope.shape[1])
    for some, slopes in zip(*(each.split(max(1, BYTES_AT_ONCE // of_image)) for each in (x, slope)), strict=True):
        if kernel == (1, 1) and at["padding"] == (0, 0):
            patches = some[:, :, :: at["stride"][0], :: at["stride"][1]].flatten(2)
        else:
            patches = F.unfold(some, kernel, **at)
        # Channels of a group are next to each other, in the patches as in the outputs.
        patches = patches.unflatten(1, (groups, size)).flatten(0, 1)
        parts = slopes.flatten(2).unflatten(1, (groups, -1)).flatten(0, 1)
        total += _row_squares(parts, patches.mT).view(len(some), -1).sum(0)
    return total / size


def _row_squares(slopes: Tensor, inputs: Tensor) -> Tensor:
    """Squared length of each row of `slopes @ inputs`: `(N, O, T)` and `(N, T, I)` -> `(N, O)`."""
    _, outputs, places = slopes.shape
    width = inputs.shape[2]
    if places == 1:
        return slopes.square().squeeze(2) * inputs.square().sum(2)
    if places * (outputs + width) < outputs * width:
        return ((slopes @ (inputs @ inputs.mT)) * slopes).sum(2).clamp_min(0)
    return (slopes @ inputs).square().sum(2)
