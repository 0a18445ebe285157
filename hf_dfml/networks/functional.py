"""Forward passes with explicit parameters and explicit batch-norm statistics."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_dfml.networks.info import batch_norms, network_info
from hf_dfml.utils.images import to_unit

BatchNorm = Literal["support", "running", "transductive"]
"""Whose statistics normalise the queries of an episode: the support set's, the stored ones, all queries' together."""

BatchStatistics = Literal["support", "transductive"]
"""Those of them that an episode has itself: while a network learns, nothing moves the stored ones."""

Source = Literal["running", "batch"] | int
"""Statistics of one forward pass: the stored ones, the batch's, or those of the first `n` images of the batch."""

Result = TypeVar("Result")

PIXELS_AT_ONCE = 25 * 32 * 32
"""Pixels (of one channel) of the images that a CPU is given at once, where they do not depend on each other."""


@contextmanager
def batch_norm_from(model: nn.Module, source: Source, *, second_order: bool = True) -> Iterator[None]:
    """Let every batch norm of `model` use the statistics of `source` inside the block; stored ones are never changed.

    Works under `torch.func.vmap`, `grad` and double backward, and inside another such block.

    Args:
        model: any network; its batch norms may be PyTorch's or timm's fused batch norm and activation.
        source: `running`, `batch`, or a number `n`: the first `n` images (the support set) normalise the whole batch.
        second_order: whether second derivatives may be taken under `vmap`; without, `batch` is faster.
    """
    forwards: dict[nn.Module, Callable[[Tensor], Tensor]] = {
        layer: partial(_normalise, layer, source=source, second_order=second_order)
        for layer in batch_norms(model).values()
    }
    if second_order and source in ("batch", "running") and torch.is_grad_enabled():
        forwards |= {layer: partial(_layer_norm, layer) for layer in _layer_norms(model)}
    # An instance attribute hides the class's forward; only inside another such block is there one already.
    before = {layer: vars(layer).get("forward") for layer in forwards}
    for layer, forward in forwards.items():
        object.__setattr__(layer, "forward", forward)
    try:
        yield
    finally:
        for layer, hidden in before.items():
            if hidden is None:
                object.__delattr__(layer, "forward")
            else:
                object.__setattr__(layer, "forward", hidden)


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
        variance, mean = variance_and_mean(x[:source])
        scale = torch.rsqrt(variance + layer.eps)
        shift = -mean * scale
        if layer.affine:
            weight = _per_channel(layer.weight, x)
            scale, shift = scale * weight, torch.addcmul(_per_channel(layer.bias, x), shift, weight)
        out = torch.addcmul(shift, x, scale)
    # timm's fused layer has its activation in itself; whoever has one has timm loaded.
    fused = sys.modules.get("timm.layers")
    return layer.act(layer.drop(out)) if fused is not None and isinstance(layer, fused.BatchNormAct2d) else out


def _layer_norms(model: nn.Module) -> list[nn.LayerNorm]:
    """Those that are nothing but layer norm; whoever has one of timm's has timm loaded."""
    timm = sys.modules.get("timm.layers")
    kinds = [nn.LayerNorm, *((timm.LayerNorm, timm.LayerNorm2d) if timm is not None else ())]
    return [layer for layer in model.modules() if type(layer) in kinds]  # type: ignore[misc]


def _layer_norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    """As of batch norm: with scale and shift inside, second derivatives under vmap come out wrong."""
    channels_first = type(layer).__name__ == "LayerNorm2d"
    out = F.layer_norm(x.movedim(1, -1) if channels_first else x, layer.normalized_shape, None, None, layer.eps)
    if layer.weight is not None:
        out = out * layer.weight.to(out.dtype)
    if layer.bias is not None:
        out = out + layer.bias.to(out.dtype)
    return out.movedim(-1, 1) if channels_first else out


def variance_and_mean(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of each channel of `x` `(B, C, ...)`, in a shape that meets `x`."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    if x.device.type != "cpu":
        return torch.var_mean(x, dim=axes, correction=0, keepdim=True)
    # The one call takes 10 times as long on a CPU.
    mean = x.mean(axes, keepdim=True)
    return (x - mean).square().mean(axes, keepdim=True), mean


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """`(C,)` in the shape and precision that multiply `x` `(B, C, ...)`."""
    return values.to(x.dtype).view(-1, *(1,) * (x.dim() - 2))


def normalise(model: nn.Module, images: Tensor) -> Tensor:
    """Images in [0, 1], or uint8 -> the network's own scale, by its mean and std."""
    info, images = network_info(model), to_unit(images)
    mean, std = _scale(info.mean, info.std, images.dtype, images.device)
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
    params: Mapping[str, Tensor],
    images: Tensor,
    *,
    source: Source = "batch",
    features: bool = False,
    second_order: bool = True,
) -> Tensor:
    """Forward pass of `model` with the given parameters.

    Args:
        model: any classifier that `network_info` knows.
        params: parameters (and buffers) by name; those not given come from `model`.
        images: `(B, 3, H, W)` in [0, 1].
        source: whose batch-norm statistics are used.
        features: give the penultimate features instead of the logits.
        second_order: whether second derivatives may be taken under `vmap`; see `batch_norm_from`.

    Returns:
        Logits `(B, N)`, or features `(B, D)`.
    """
    forward = network_info(model).features if features else network_info(model).logits
    images = prepare(model, images)
    parts = _parts(model, images) if source == "running" else (images,)
    with batch_norm_from(model, source, second_order=second_order):
        return with_parameters(model, params, lambda: torch.cat([forward(part) for part in parts]))


def batch_statistics(model: nn.Module, params: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """The statistics by which `images` are normalised in a forward pass, under the names of the stored ones.

    With them among its parameters, `functional_forward(..., source="running")` normalises other images likewise, a few
    at a time. Not differentiable.
    """
    found: dict[str, Tensor] = {}

    def note(name: str, _: nn.Module, inputs: tuple[Tensor]) -> None:
        variance, mean = variance_and_mean(inputs[0])
        found[f"{name}.running_mean"], found[f"{name}.running_var"] = mean.flatten(), variance.flatten()

    hooks = [layer.register_forward_pre_hook(partial(note, name)) for name, layer in batch_norms(model).items()]
    try:
        with torch.no_grad():
            functional_forward(model, params, images, source="batch", second_order=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def with_state(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `model` with these parameters and buffers in place of its own; the other parameters are shared."""
    shared = {id(value): value for name, value in model.named_parameters() if name not in state}
    twin = copy.deepcopy(model, shared)
    twin.load_state_dict(state, strict=False)
    return twin


def prepare(model: nn.Module, images: Tensor) -> Tensor:
    """Images in [0, 1] -> what `model` itself takes: on its own scale, and on a CPU channels last in memory."""
    images = normalise(model, images)
    if images.device.type == "cpu":
        # As `contiguous(memory_format=...)` would do were it known to vmap. Layers keep it: conv4's evaluation takes
        # 0.4 times as long on a CPU, an adaptation of 10 steps 0.6 times.
        images = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return images


def with_parameters(model: nn.Module, params: Mapping[str, Tensor], work: Callable[[], Result]) -> Result:
    """`work()`, while `model` has the given parameters (and buffers); those not given are its own."""
    return torch.func.functional_call(_Owner(model), {f"model.{name}": value for name, value in params.items()}, work)


def _parts(model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """Images `(B, 3, H, W)` in as many parts as a CPU takes one after the other; in one part elsewhere.

    The outputs of a layer for 25 images of 32 x 32 pixels stay in its cache: conv4 takes half as long for 75 of them.
    A model without parameters asks others, which take their images in parts themselves.
    """
    if images.device.type != "cpu" or next(model.parameters(), None) is None:
        return (images,)
    return images.split(max(1, PIXELS_AT_ONCE // (images.shape[-2] * images.shape[-1])))


class _Owner(nn.Module):
    """A module whose forward pass is any work, so that `functional_call` is a scope for more than one forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], Result]) -> Result:
        return work()
