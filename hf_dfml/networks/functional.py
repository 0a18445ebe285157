"""Forward passes with explicit parameters and explicit batch-norm statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BatchNorm = Literal["support", "running", "transductive"]
"""Whose statistics normalise the queries of an episode: the support set's, the stored ones, all queries' together."""

Source = Literal["running", "batch"] | int
"""Statistics of one forward pass: the stored ones, the batch's, or those of the first `n` images of the batch."""


@contextmanager
def batch_norm_from(model: nn.Module, source: Source, *, second_order: bool = True) -> Iterator[None]:
    """Let every batch norm of `model` use the statistics of `source` inside the block; stored ones are never changed.

    Works under `torch.func.vmap`, `grad` and double backward, and inside another such block.

    Args:
        model: any network; its batch norms may be PyTorch's or timm's fused batch norm and activation.
        source: `running`, `batch`, or a number `n`: the first `n` images (the support set) normalise the whole batch.
        second_order: whether second derivatives may be taken; without, `batch` is faster.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    # An instance attribute hides the class's forward; only inside another such block is there one already.
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        object.__setattr__(layer, "forward", partial(_normalise, layer, source=source, second_order=second_order))
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                object.__delattr__(layer, "forward")
            else:
                object.__setattr__(layer, "forward", forward)


def _normalise(layer: _BatchNorm, x: Tensor, *, source: Source, second_order: bool) -> Tensor:
    if source == "running":
        out = F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, False, 0.0, layer.eps)
    elif source == "batch" and not second_order:
        out = F.batch_norm(x, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)
    elif source == "batch":
        # Scale and shift stay outside of the fused kernel: with them inside, second derivatives under vmap come out
        # wrong (by up to 4 % in conv4; torch 2.15, against finite differences), and MAML's outer gradient needs them.
        out = F.batch_norm(x, None, None, None, None, True, 0.0, layer.eps)
        if layer.affine:
            out = torch.addcmul(_per_channel(layer.bias, x), out, _per_channel(layer.weight, x))
    else:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        variance, mean = torch.var_mean(x[:source], dim=axes, correction=0, keepdim=True)
        scale = torch.rsqrt(variance + layer.eps)
        shift = -mean * scale
        if layer.affine:
            weight = _per_channel(layer.weight, x)
            scale, shift = scale * weight, torch.addcmul(_per_channel(layer.bias, x), shift, weight)
        out = torch.addcmul(shift, x, scale)
    # timm's fused layer has its activation in itself.
    return layer.act(layer.drop(out)) if isinstance(layer, BatchNormAct2d) else out


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """`(C,)` in the shape and precision that multiply `x` `(B, C, ...)`."""
    return values.to(x.dtype).view(-1, *(1,) * (x.dim() - 2))


def normalise(model: nn.Module, images: Tensor) -> Tensor:
    """Images in [0, 1] -> the network's own scale, by the mean and std of its `pretrained_cfg` (timm's key)."""
    settings: dict = model.pretrained_cfg  # type: ignore[assignment]
    mean, std = _scale(tuple(settings["mean"]), tuple(settings["std"]), images.dtype, images.device)
    return (images - mean) / std


@lru_cache(maxsize=32)
def _scale(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    # Kept, because a copy from host to device in every forward pass would stall an accelerator.
    as_tensor = partial(torch.tensor, dtype=dtype, device=device)
    return as_tensor(mean).view(-1, 1, 1), as_tensor(std).view(-1, 1, 1)


def functional_forward(
    model: nn.Module,
    params: dict[str, Tensor],
    images: Tensor,
    *,
    source: Source = "batch",
    features: bool = False,
    second_order: bool = True,
) -> Tensor:
    """Forward pass of `model` with the given parameters.

    Args:
        model: a network with timm's API and `pretrained_cfg` (mean and std).
        params: parameters (and buffers) by name; those not given come from `model`.
        images: `(B, 3, H, W)` in [0, 1].
        source: whose batch-norm statistics are used.
        features: give the penultimate features instead of the logits.
        second_order: whether second derivatives may be taken; see `batch_norm_from`.

    Returns:
        Logits `(B, N)`, or features `(B, D)`.
    """
    target = _Features(model) if features else model
    state = {f"model.{name}": value for name, value in params.items()} if features else params
    images = normalise(model, images)
    if images.device.type == "cpu":
        # Channels last in memory, as `contiguous(memory_format=...)` would do were it known to vmap. Layers keep it:
        # conv4's evaluation takes 0.4 times as long on a CPU, an adaptation of 10 steps 0.6 times.
        images = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    with batch_norm_from(model, source, second_order=second_order):
        return torch.func.functional_call(target, state, (images,))


class _Features(nn.Module):
    """A network whose forward pass stops before the classifier."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        maps = self.model.forward_features(images)  # type: ignore[operator]
        return self.model.forward_head(maps, pre_logits=True)  # type: ignore[operator]
