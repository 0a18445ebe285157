r"""The gradient of conv4's cross-entropy written out, and its derivative along a direction, which MAML needs.

An outer step of MAML through `K` inner steps of learning rate :math:`\alpha` is

.. math:: v_k = v_{k+1} - \alpha H_k v_{k+1},\quad v_K = \nabla L_{query}(\theta_K),

(Finn et al., ICML 2017), with the Hessian :math:`H_k` of the support loss at :math:`\theta_k`. A product
:math:`H v` is the derivative of the gradient along :math:`v` (Pearlmutter, Neural Computation 1994): one more pass
forward and back, of tangents. Autograd's double backward does the same convolutions, but many more passes over whole
maps, and on a CPU some of its convolutions in a slow way. Here

- maxima are taken before the batch norm, which keeps the order within a channel (where its weight is negative, minima
  are): normalising, ReLU and all derivatives of both concern a quarter of the places;
- the first layer's statistics, and what they add to its gradients, follow from the covariance of the images' patches,
  which is computed once for all steps;
- several episodes stand side by side, channels last in memory.

Networks of other architectures, statistics of a network's own and other devices take autograd's way
(`inner_loop.py`), whose numbers these are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

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
    )


class Conv4Gradient:
    """The gradient of the mean cross-entropy of each of `E` conv4, whose parameters are side by side (`joined`).

    Batch norm takes the statistics of the batch. What `along` needs is kept only if `twice`. Autocast changes nothing:
    in bfloat16 the gradient of a replayed batch has a cosine of 0.95 with this one.

    Args:
        model: a conv4 (`applies_to`); its own weights are not touched.
        params: of all `E` along the first axis.
        images: `(B, E * 3, H, W)` on the network's scale, channels last in memory (`beside`, `prepare`).
        labels: `(E, B)` integers.
        twice: whether `along` will be called.
        patches: of the images, where several gradients are taken on them.

    Attributes:
        logits: `(E, B, N)`.
        losses: `(E,)`.
        gradients: by name, in the shape of `params`; none for the biases of the convolutions, for which it is zero.
    """

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)
    def __init__(
        self,
        model: nn.Module,
        params: Mapping[str, Tensor],
        images: Tensor,
        labels: Tensor,
        *,
        twice: bool,
        patches: Patches | None = None,
    ) -> None:
        count = len(labels)
        maps = images.permute(0, 2, 3, 1)
        self._blocks: list[_Block] = []
        blocks: Any = model.blocks
        for index, module in enumerate(blocks):
            name = f"blocks.{index}"
            weight, scale, shift = (params[f"{name}.{part}"] for part in ("conv.weight", "bn.weight", "bn.bias"))
            given = (name, maps, weight.detach(), scale.detach(), shift.detach(), module.bn.eps, count)
            block = _Block(*given) if index or patches is None else _FirstBlock(patches, *given)
            self._blocks.append(block)
            maps = block.out
        self._head = _Head(maps, params["fc.weight"].detach(), params["fc.bias"].detach(), labels)
        self.logits, self.losses = self._head.logits, self._head.losses
        self.gradients, slope = self._head.backward()
        for index, block in reversed(list(enumerate(self._blocks))):
            found, slope = block.backward(slope, further=index > 0, keep=twice)
            self.gradients |= found

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)
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


class Patches:
    """Mean and covariance of the 3x3 patches of images, from which the first layer's statistics follow in closed form.

    The same for all steps on a support set, whose images do not change; in double precision.

    Args:
        images: `(B, E * 3, H, W)`.
        count: E.
    """

    @torch.no_grad()
    def __init__(self, images: Tensor, count: int) -> None:
        patches = F.unfold(images, 3, padding=1).unflatten(1, (count, -1)).permute(1, 2, 0, 3).flatten(2).double()
        self.mean = patches.mean(2)
        self.covariance = patches @ patches.mT / patches.shape[2] - self.mean[:, :, None] * self.mean[:, None]

    def of_outputs(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Of the outputs of kernels `(E * C, 3, 3, 3)`: means `(E * C,)`, covariances with patches `(E * C, 27)`."""
        kernels = weight.flatten(1).unflatten(0, (len(self.mean), -1)).double()
        means = (kernels @ self.mean[:, :, None]).flatten()
        return means.to(weight), (kernels @ self.covariance).flatten(0, 1).to(weight)

    def means(self, channels: int) -> Tensor:
        """`(channels, 27)`: the mean patch that each of the outputs sees."""
        return self.mean.repeat_interleave(channels // len(self.mean), 0)


class _Block:
    """Convolution, maxima, batch norm, ReLU of `E` networks side by side; maps are `(B, H, W, E * C)`.

    In the formulas y is the convolution's output, n = (y - mean) * rate, z = scale * n + shift; t is the tangent of y;
    gain = scale * rate is the factor of y in z, gain_way the tangent of gain.
    """

    def __init__(
        self, name: str, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, eps: float, count: int
    ) -> None:
        self.name, self.x, self.count = name, x, count
        self.weight = _as_maps(weight)
        y = _convolution(x, self.weight, count)
        self.shape, self.number = y.shape, y[..., 0].numel()
        # Where the scale is negative, the largest output comes from the smallest value.
        signs = torch.where(scale < 0, -1.0, 1.0).to(x.dtype) if bool((scale < 0).any()) else None
        highest, places = F.max_pool2d(_first(y if signs is None else y * signs), 2, return_indices=True)
        self.peaks = _last(highest) if signs is None else _last(highest) * signs
        self.places = _in_memory(_last(places), y)
        self.mean, variance = self._statistics(y)
        self.rate = torch.rsqrt(variance + eps)
        self.gain = scale * self.rate
        constant = torch.addcmul(shift, self.gain, self.mean, value=-1)
        self.out = torch.addcmul(constant, self.peaks, self.gain).clamp_min_(0)

    def backward(self, slope: Tensor, *, further: bool, keep: bool) -> tuple[Named, Tensor]:
        """Gradients of the parameters, and of `x` if `further`, from that of `out`."""
        slope = _where_positive(slope, self.out)
        to_shift = _sum(slope)
        to_scale = self.rate * torch.addcmul(_sum(slope * self.peaks), self.mean, to_shift, value=-1)
        self.slope, self.to_shift, self.to_scale = slope, to_shift, to_scale
        # dy = gain * (slope at the maxima - to_shift / number - n * to_scale / number)
        self.of_y = self.gain * self.rate * to_scale / -self.number
        weight, back = self._through_convolution(further, keep)
        return self._named(weight, to_scale, to_shift), back

    def forward_along(self, direction: Mapping[str, Tensor], way: Tensor | None) -> Tensor:
        """The tangent of `out` from that of `x` (None: it does not move) and those of the parameters."""
        turn, stretch, lift = (
            direction[f"{self.name}.{part}"].detach() for part in ("conv.weight", "bn.weight", "bn.bias")
        )
        self.turn, self.way = _as_maps(turn), way
        t = _convolution(self.x, self.turn, self.count)
        if way is not None:
            t += _convolution(way, self.weight, self.count)
        self.t_peaks = t.view(-1).index_select(0, self.places).view_as(self.out)
        self.mean_t, together = self._statistics_along(t)
        self.mean_nt = self.rate * together
        # The tangent of n is rate * (t - mean(t) - n * mean(n t)), that of z: stretch * n + scale * it + lift
        self.gain_way = self.rate * torch.addcmul(stretch, self.gain, self.mean_nt, value=-1)
        constant = torch.addcmul(lift, self.gain, self.mean_t, value=-1).addcmul_(self.gain_way, self.mean, value=-1)
        z = torch.addcmul(constant, self.peaks, self.gain_way).addcmul_(self.t_peaks, self.gain)
        return _where_positive(z, self.out)

    def backward_along(self, slope: Tensor, *, further: bool) -> tuple[Named, Tensor]:
        """The derivative of what `backward` gives; `slope` is that of the slope it was given."""
        slope = _where_positive(slope, self.out)
        to_shift = _sum(slope)
        products = _sum((slope * self.peaks).addcmul_(self.slope, self.t_peaks))
        for one, other in ((self.mean, to_shift), (self.mean_t, self.to_shift), (self.mean_nt, self.to_scale)):
            products.addcmul_(one, other, value=-1)
        to_scale = self.rate * products
        # The derivative of dy = gain * (slope at the maxima - to_shift / number - n * to_scale / number), which is
        # gain_way * the old slope + gain * the new one + the old of_y * (t - mean(t)) + of_y * (y - mean) + constant
        of_n = torch.addcmul(self.gain * to_scale, self.gain_way, self.to_scale) / -self.number
        of_y = self.rate * of_n.addcmul_(self.of_y, self.mean_nt, value=-1)
        constant = torch.addcmul(self.gain * to_shift, self.gain_way, self.to_shift) / -self.number
        weight, back = self._through_convolution_along(slope, of_y, constant, further)
        return self._named(weight, to_scale, to_shift), back

    def _statistics(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of y, of which is kept what the derivatives need."""
        self.y = y
        return torch.ops.aten.batch_norm_update_stats(_first(y), None, None, 0.0)

    def _statistics_along(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of t and its covariance with y."""
        self.t = t
        mean = _sum(t) / self.number
        return mean, _sum(self.y * t) / self.number - self.mean * mean

    def _through_convolution(self, further: bool, keep: bool) -> tuple[Tensor, Tensor]:
        """Gradients of the weight and, if `further`, of `x`."""
        constant = (self.gain * self.to_shift / -self.number).addcmul_(self.of_y, self.mean, value=-1)
        everywhere = [(self.of_y, self.y, self.peaks)]
        self.slopes = self._slopes(constant, everywhere, [(self.gain, self.slope)], out=None if keep else self.y)
        back, weight = _convolution_backward(self.slopes, self.x, self.weight, self.count, (further, True))
        return weight, back

    def _through_convolution_along(
        self, slope: Tensor, of_y: Tensor, constant: Tensor, further: bool
    ) -> tuple[Tensor, Tensor]:
        """The derivative of what `_through_convolution` gives."""
        constant.addcmul_(self.of_y, self.mean_t, value=-1).addcmul_(of_y, self.mean, value=-1)
        everywhere = [(of_y, self.y, self.peaks), (self.of_y, self.t, self.t_peaks)]
        slopes = self._slopes(constant, everywhere, [(self.gain_way, self.slope), (self.gain, slope)])
        back, weight = _convolution_backward(slopes, self.x, self.weight, self.count, (further, True))
        if self.way is not None:
            weight += _convolution_backward(self.slopes, self.way, self.weight, self.count, (False, True))[1]
        if further:
            back += _convolution_backward(self.slopes, self.x, self.turn, self.count, (True, False))[0]
        return weight, back

    def _slopes(
        self,
        constant: Tensor,
        everywhere: Sequence[tuple[Tensor, Tensor, Tensor]],
        at_maxima: Sequence[tuple[Tensor, Tensor]],
        out: Tensor | None = None,
    ) -> Tensor:
        """Slopes of the convolution's output: a constant, multiples of maps, and at the maxima of others as well.

        Args:
            constant: of each channel.
            everywhere: a factor of each channel, maps of all places, their values at the maxima.
            at_maxima: a factor of each channel, maps of the maxima.
            out: where to write the result, perhaps the first of the maps.
        """
        (factor, maps, peaks), *others = everywhere
        values, slopes = torch.addcmul(constant, peaks, factor), torch.addcmul(constant, maps, factor, out=out)
        for factor, maps, peaks in others:
            values.addcmul_(peaks, factor)
            slopes.addcmul_(maps, factor)
        for factor, peaks in at_maxima:
            values.addcmul_(peaks, factor)
        slopes.view(-1).scatter_(0, self.places, values.view(-1))
        return slopes

    def _named(self, weight: Tensor, scale: Tensor, shift: Tensor) -> Named:
        return {f"{self.name}.conv.weight": weight, f"{self.name}.bn.weight": scale, f"{self.name}.bn.bias": shift}


class _FirstBlock(_Block):
    """The block on the images, whose patches are known: what batch norm adds to slopes need not be spread over maps.

    Three quarters of all places are in this block's maps.
    """

    def __init__(self, patches: Patches, *arguments: Any) -> None:
        self.patches = patches
        super().__init__(*arguments)

    def _statistics(self, y: Tensor) -> tuple[Tensor, Tensor]:
        mean, self.covariance = self.patches.of_outputs(self.weight)
        return mean, (self.covariance * self.weight.flatten(1)).sum(1).clamp_min_(0)

    def _statistics_along(self, t: Tensor) -> tuple[Tensor, Tensor]:
        mean, self.covariance_t = self.patches.of_outputs(self.turn)
        return mean, (self.covariance * self.turn.flatten(1)).sum(1)

    def _through_convolution(self, further: bool, keep: bool) -> tuple[Tensor, Tensor]:
        # By each output's slope at the maxima, by their mean, and by y.
        self.at_maxima = self._of_maxima(self.slope)
        self.mean_patch = self.patches.means(len(self.gain)).to(self.gain)
        constant = self.to_shift[:, None] * self.mean_patch
        weight = self.at_maxima - constant - (self.rate * self.to_scale)[:, None] * self.covariance
        return (self.gain[:, None] * weight).view_as(self.weight), self.slope

    def _through_convolution_along(
        self, slope: Tensor, of_y: Tensor, constant: Tensor, further: bool
    ) -> tuple[Tensor, Tensor]:
        weight = self.gain_way[:, None] * self.at_maxima + self.gain[:, None] * self._of_maxima(slope)
        everywhere = constant[:, None] * self.mean_patch
        everywhere += of_y[:, None] * self.covariance + self.of_y[:, None] * self.covariance_t
        return (weight + self.number * everywhere).view_as(self.weight), slope

    def _of_maxima(self, slope: Tensor) -> Tensor:
        """The gradient `(E * C, 27)` of the kernels by slopes that are zero but at the maxima."""
        slopes = slope.new_zeros(self.shape)
        slopes.view(-1).scatter_(0, self.places, slope.view(-1))
        return _convolution_backward(slopes, self.x, self.weight, self.count, (False, True))[1].flatten(1)


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
    return torch.add(_first_places(y.shape), places, alpha=y.shape[-1], out=places).view(-1)


@lru_cache(maxsize=32)
def _first_places(shape: torch.Size) -> Tensor:
    """Where each map of each channel begins in the memory of maps `(B, H, W, C)`: `(B, 1, 1, C)`."""
    images, height, width, channels = shape
    return torch.arange(images).mul_(height * width * channels).view(-1, 1, 1, 1) + torch.arange(channels)


def _where_positive(values: Tensor, out: Tensor) -> Tensor:
    """ReLU's derivative, given what came out of it."""
    return torch.ops.aten.threshold_backward(values, out, 0)


def _sum(maps: Tensor) -> Tensor:
    """Over all but the channels."""
    return maps.flatten(0, 2).sum(0)
