r"""The gradient of conv4's cross-entropy written out, and its derivative along a direction, which MAML needs.

An outer step of MAML through `K` inner steps of learning rate :math:`\alpha` is

.. math:: v_k = v_{k+1} - \alpha H_k v_{k+1},\quad v_K = \nabla L_{query}(\theta_K),

(Finn et al., ICML 2017), with the Hessian :math:`H_k` of the support loss at :math:`\theta_k`. A product
:math:`H v` is the derivative of the gradient along :math:`v` (Pearlmutter, Neural Computation 1994): one more pass
forward and back, of tangents. Autograd's double backward does the same convolutions, but many more passes over whole
maps, and on a CPU some of its convolutions in a slow way. Here

- maxima are taken before the batch norm, which keeps the order within a channel (where its weight is negative, minima
  are): normalising, ReLU and all derivatives of both concern a quarter of the places;
- several episodes stand side by side, channels last in memory.

Networks of other architectures, statistics of a network's own and other devices take autograd's way
(`inner_loop.py`), whose numbers these are.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_dfml.networks.conv4 import Conv4

Named = dict[str, Tensor]


def applies_to(model: nn.Module, images: Tensor) -> bool:
    """Whether `Conv4Gradient` is for this network and these images: a conv4 that flattens its last maps, on a CPU."""
    return (
        type(model) is Conv4
        and isinstance(model.global_pool, nn.Identity)
        and isinstance(model.fc, nn.Linear)
        and images.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )


class Conv4Gradient:
    """The gradient of the mean cross-entropy of each of `E` conv4, whose parameters are side by side (`joined`).

    Batch norm takes the statistics of the batch. What `along` needs is kept only if `twice`.

    Args:
        model: the network; its own weights are not touched.
        params: of all `E` along the first axis.
        images: `(B, E * 3, H, W)` on the network's scale, channels last in memory (`beside`, `prepare`).
        labels: `(E, B)` integers.
        twice: whether `along` will be called.

    Attributes:
        logits: `(E, B, N)`.
        losses: `(E,)`.
        gradients: by name, in the shape of `params`; none for the biases of the convolutions, for which it is zero.
    """

    def __init__(
        self, model: Conv4, params: Mapping[str, Tensor], images: Tensor, labels: Tensor, *, twice: bool
    ) -> None:
        count = len(labels)
        maps = images.permute(0, 2, 3, 1)
        self._blocks: list[_Block] = []
        for index, module in enumerate(model.blocks):
            name = f"blocks.{index}"
            weight, scale, shift = (params[f"{name}.{part}"] for part in ("conv.weight", "bn.weight", "bn.bias"))
            block = _Block(name, maps, weight.detach(), scale.detach(), shift.detach(), module.bn.eps, count)
            self._blocks.append(block)
            maps = block.out
        self._head = _Head(maps, params["fc.weight"].detach(), params["fc.bias"].detach(), labels)
        self.logits, self.losses = self._head.logits, self._head.losses
        self.gradients, slope = self._head.backward()
        for index, block in reversed(list(enumerate(self._blocks))):
            found, slope = block.backward(slope, further=index > 0, keep=twice)
            self.gradients |= found

    def along(self, direction: Mapping[str, Tensor]) -> Named:
        """The Hessian of each loss times `direction`, by the names of `gradients`."""
        way: Tensor | None = None
        for block in self._blocks:
            way = block.forward_along(direction, way)
        assert way is not None
        products, slope = self._head.along(direction, way)
        for index, block in reversed(list(enumerate(self._blocks))):
            found, slope = block.backward_along(slope, further=index > 0)
            products |= found
        return products


class _Block:
    """Convolution, maxima, batch norm, ReLU of `E` networks side by side; maps are `(B, H, W, E * C)`.

    In the formulas y is the convolution's output, n = (y - mean) * rate, z = scale * n + shift; t is the tangent of y.
    """

    def __init__(
        self, name: str, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, eps: float, count: int
    ) -> None:
        self.name, self.x, self.scale, self.count = name, x, scale, count
        self.weight = _as_maps(weight)
        self.y = _convolution(x, self.weight, count)
        # Where the scale is negative, the largest output comes from the smallest value.
        signs = torch.where(scale < 0, -1.0, 1.0).to(x.dtype) if bool((scale < 0).any()) else None
        signed = _first(self.y if signs is None else self.y * signs)
        highest, places = F.max_pool2d(signed, 2, return_indices=True)
        self.peaks = _last(highest) if signs is None else _last(highest) * signs
        self.places = _in_memory(_last(places), self.y)
        self.mean, variance = torch.ops.aten.batch_norm_update_stats(_first(self.y), None, None, 0.0)
        self.rate = torch.rsqrt(variance + eps)
        self.number = self.y[..., 0].numel()
        gain = scale * self.rate
        self.out = torch.addcmul(shift - gain * self.mean, self.peaks, gain).clamp_min_(0)

    def backward(self, slope: Tensor, *, further: bool, keep: bool) -> tuple[Named, Tensor]:
        """Gradients of the parameters, and of `x` if `further`, from that of `out`."""
        mean, rate, number = self.mean, self.rate, self.number
        slope = _where_positive(slope, self.out)
        to_shift = _sum(slope)
        to_scale = rate * (_sum(slope * self.peaks) - mean * to_shift)
        gain = self.scale * rate
        # dy = gain * (slope at the maxima - to_shift / number - n * to_scale / number)
        of_y = -gain * rate * to_scale / number
        constant = -gain * to_shift / number - of_y * mean
        values = torch.addcmul(constant, self.peaks, of_y).addcmul_(slope, gain)
        slopes = torch.addcmul(constant, self.y, of_y, out=None if keep else self.y)
        slopes.view(-1).scatter_(0, self.places, values.view(-1))
        back, weight = _convolution_backward(slopes, self.x, self.weight, self.count, (further, True))
        if keep:
            self.slope, self.slopes, self.to_shift, self.to_scale = slope, slopes, to_shift, to_scale
        return self._named(weight, to_scale, to_shift), back

    def forward_along(self, direction: Mapping[str, Tensor], way: Tensor | None) -> Tensor:
        """The tangent of `out` from that of `x` (None: it does not move) and those of the parameters."""
        turn, self.stretch, lift = (
            direction[f"{self.name}.{part}"].detach() for part in ("conv.weight", "bn.weight", "bn.bias")
        )
        self.turn, self.way = _as_maps(turn), way
        self.t = _convolution(self.x, self.turn, self.count)
        if way is not None:
            self.t += _convolution(way, self.weight, self.count)
        mean, rate, number = self.mean, self.rate, self.number
        self.mean_t = _sum(self.t) / number
        self.mean_nt = rate * (_sum(self.y * self.t) / number - mean * self.mean_t)
        self.t_peaks = self.t.view(-1).index_select(0, self.places).view_as(self.out)
        # The tangent of n is rate * (t - mean(t) - n * mean(n t)), that of z: stretch * n + scale * it + lift
        of_n = self.stretch - self.scale * rate * self.mean_nt
        of_t = self.scale * rate
        constant = lift - of_t * self.mean_t - of_n * rate * mean
        z = torch.addcmul(constant, self.peaks, of_n * rate).addcmul_(self.t_peaks, of_t)
        return _where_positive(z, self.out)

    def backward_along(self, slope: Tensor, *, further: bool) -> tuple[Named, Tensor]:
        """The derivative of what `backward` gives; `slope` is that of the slope it was given."""
        mean, rate, number = self.mean, self.rate, self.number
        slope = _where_positive(slope, self.out)
        to_shift = _sum(slope)
        to_scale = rate * (
            _sum((slope * self.peaks).addcmul_(self.slope, self.t_peaks))
            - mean * to_shift
            - self.mean_t * self.to_shift
            - self.mean_nt * self.to_scale
        )
        gain = self.scale * rate
        gain_way = self.stretch * rate - self.scale * rate.square() * self.mean_nt
        # The derivative of dy = gain * (slope at the maxima - to_shift / number - n * to_scale / number)
        of_t = -gain * rate * self.to_scale / number
        of_n = (gain * rate * self.to_scale * self.mean_nt - gain_way * self.to_scale - gain * to_scale) / number
        of_y = of_n * rate
        constant = -(gain_way * self.to_shift + gain * to_shift) / number - of_t * self.mean_t - of_y * mean
        values = torch.addcmul(constant, self.peaks, of_y).addcmul_(self.t_peaks, of_t)
        values.addcmul_(self.slope, gain_way).addcmul_(slope, gain)
        slopes = torch.addcmul(constant, self.y, of_y).addcmul_(self.t, of_t)
        slopes.view(-1).scatter_(0, self.places, values.view(-1))
        back, weight = _convolution_backward(slopes, self.x, self.weight, self.count, (further, True))
        if self.way is not None:
            weight += _convolution_backward(self.slopes, self.way, self.weight, self.count, (False, True))[1]
        if further:
            back += _convolution_backward(self.slopes, self.x, self.turn, self.count, (True, False))[0]
        return self._named(weight, to_scale, to_shift), back

    def _named(self, weight: Tensor, scale: Tensor, shift: Tensor) -> Named:
        return {f"{self.name}.conv.weight": weight, f"{self.name}.bn.weight": scale, f"{self.name}.bn.bias": shift}


class _Head:
    """The linear classifiers of `E` networks on maps `(B, h, w, E * C)`, and the cross-entropy."""

    def __init__(self, maps: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> None:
        self.count, self.shape = len(labels), maps.shape
        self.weight = weight.unflatten(0, (self.count, -1))
        self.features = self._flatten(maps)
        self.logits = torch.baddbmm(bias.view(self.count, 1, -1), self.features, self.weight.mT)
        logarithms = self.logits.log_softmax(-1)
        self.losses = -logarithms.gather(-1, labels[..., None]).mean((1, 2))
        self.answers = logarithms.exp()
        self.slope = (self.answers - F.one_hot(labels, weight.shape[0] // self.count)) / labels.shape[1]

    def backward(self) -> tuple[Named, Tensor]:
        """Gradients of the parameters, and of the maps."""
        return self._named(self.slope.mT @ self.features, self.slope), self._maps(self.slope @ self.weight)

    def along(self, direction: Mapping[str, Tensor], way: Tensor) -> tuple[Named, Tensor]:
        """The derivative of what `backward` gives."""
        turn = direction["fc.weight"].detach().unflatten(0, (self.count, -1))
        moved = self._flatten(way)
        logits = torch.baddbmm(direction["fc.bias"].detach().view(self.count, 1, -1), self.features, turn.mT)
        logits.baddbmm_(moved, self.weight.mT)
        slope = self.answers * (logits - (self.answers * logits).sum(-1, keepdim=True)) / self.shape[0]
        weight = torch.baddbmm(self.slope.mT @ moved, slope.mT, self.features)
        return self._named(weight, slope), self._maps(torch.baddbmm(slope @ self.weight, self.slope, turn))

    def _flatten(self, maps: Tensor) -> Tensor:
        """`(B, h, w, E * C)` -> `(E, B, C * h * w)`, the order of PyTorch's `flatten`."""
        return maps.unflatten(3, (self.count, -1)).permute(3, 0, 4, 1, 2).flatten(2)

    def _maps(self, features: Tensor) -> Tensor:
        """The inverse of `_flatten`."""
        _, height, width, _ = self.shape
        return features.unflatten(2, (-1, height, width)).permute(1, 3, 4, 0, 2).flatten(3)

    def _named(self, weight: Tensor, slope: Tensor) -> Named:
        return {"fc.weight": weight.flatten(0, 1), "fc.bias": slope.sum(1).flatten()}


def _first(maps: Tensor) -> Tensor:
    """`(B, H, W, C)` -> `(B, C, H, W)`, the same memory."""
    return maps.permute(0, 3, 1, 2)


def _last(maps: Tensor) -> Tensor:
    """`(B, C, H, W)` -> `(B, H, W, C)`, contiguous."""
    return maps.permute(0, 2, 3, 1).contiguous()


def _as_maps(weight: Tensor) -> Tensor:
    """A kernel in the layout of the maps, which every convolution would make of it."""
    return weight.contiguous(memory_format=torch.channels_last)


def _convolution(x: Tensor, weight: Tensor, count: int) -> Tensor:
    return _last(F.conv2d(_first(x), weight, padding=1, groups=count))


def _convolution_backward(
    slope: Tensor, x: Tensor, weight: Tensor, count: int, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of `x` and of `weight`, where they are wanted, from that of the output."""
    one = (1, 1)
    to_x, to_weight, _ = torch.ops.aten.convolution_backward(
        _first(slope), _first(x), weight, None, one, one, one, False, (0, 0), count, (*wanted, False)
    )
    return _last(to_x) if wanted[0] else slope, to_weight


def _in_memory(places: Tensor, y: Tensor) -> Tensor:
    """Places within each map, as pooling gives them, `(B, h, w, C)` -> places in the memory of `y` `(B, H, W, C)`."""
    images, height, width, channels = y.shape
    first = torch.arange(images).mul_(height * width * channels).view(-1, 1, 1, 1) + torch.arange(channels)
    return torch.add(first, places, alpha=channels, out=places).view(-1)


def _where_positive(values: Tensor, out: Tensor) -> Tensor:
    """ReLU's derivative, given what came out of it."""
    return torch.ops.aten.threshold_backward(values, out, 0)


def _sum(maps: Tensor) -> Tensor:
    """Over all but the channels."""
    return maps.flatten(0, 2).sum(0)
