"""Which tensor axes of a network are indexed by the same channels.

Reordering the channels of a layer changes nothing if every axis that they index is reordered with it: the layer's own
outputs, the batch norm behind it, the inputs of the layers that read it and, along a residual stream, everything that
is added to it. `channel_groups` finds these sets by tracing the network once.
"""

from __future__ import annotations

import copy
import math
import operator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp


@dataclass(frozen=True)
class TiedAxis:
    """One axis of one tensor that a group of channels indexes.

    Attributes:
        tensor: the tensor's name in the state dict.
        axis: which of its axes.
        cells: entries of the axis that belong to one channel, side by side: 1, or H * W behind a flatten.
    """

    tensor: str
    axis: int
    cells: int = 1


@dataclass
class ChannelGroup:
    """Channels that can only be reordered together.

    Attributes:
        width: how many channels.
        axes: every tensor axis that they index.
        writers: `(weight name, bias name or None)` of the layers that compute these channels and whose own inputs
            belong to earlier groups or to the image.
    """

    width: int
    axes: list[TiedAxis] = field(default_factory=list)
    writers: list[tuple[str, str | None]] = field(default_factory=list)


_UNITWISE_MODULES: tuple[type[nn.Module], ...] = (
    nn.Identity,
    nn.ReLU,
    nn.LeakyReLU,
    nn.ReLU6,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Tanh,
    nn.Sigmoid,
    nn.Dropout,
    nn.Dropout2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Flatten,
)
_UNITWISE_FUNCTIONS: set[Any] = {
    torch.flatten,
    torch.relu,
    torch.mean,
    torch.tanh,
    F.relu,
    F.leaky_relu,
    F.gelu,
    F.silu,
    F.dropout,
    F.max_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    F.adaptive_max_pool2d,
}
_UNITWISE_METHODS = {"flatten", "view", "reshape", "mean", "relu", "contiguous", "clone"}
_ADDITIONS: set[Any] = {operator.add, operator.iadd, torch.add}


def channel_groups(network: nn.Module, input_size: tuple[int, ...]) -> list[ChannelGroup]:
    """The groups of channels of `network`, in the order in which a forward pass needs them.

    Inputs of the network and its outputs are in no group: pixels and class slots are never reordered. Convolutions
    (also depthwise ones), linear layers, batch norm, activations, pooling, flattening and sums are understood.

    Args:
        network: the network; a copy is traced on the CPU, the network itself is not touched.
        input_size: the size of one input without the batch axis, `(3, H, W)` for images.

    Raises:
        ValueError: if the network holds an operation whose effect on channels is not known here.
    """
    network = copy.deepcopy(network).cpu().eval()
    tracer = _Tracer()
    graph = tracer.trace(network)
    ShapeProp(fx.GraphModule(network, graph)).propagate(torch.zeros(1, *input_size))
    finder = _Finder(network)
    for node in graph.nodes:
        finder.visit(node)
    return finder.groups()


class _Tracer(fx.Tracer):
    """Keeps batch norm whole: timm's fused variant branches on values that a trace does not know."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.modules.batchnorm._BatchNorm) or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class _Layout:
    """Axis 1 of an activation: which channels (an index into the union-find) and entries of the axis a channel."""

    channels: int
    cells: int = 1


@dataclass(frozen=True)
class _Writer:
    weight: str
    bias: str | None
    inputs: int
    outputs: int


class _Finder:
    """Walks a traced graph in order; a union-find joins the channels that sums tie together."""

    def __init__(self, network: nn.Module) -> None:
        self.modules = dict(network.named_modules())
        self.parent: list[int] = []
        self.width: list[int] = []
        self.axes: list[tuple[int, TiedAxis]] = []
        self.writers: list[_Writer] = []
        self.readings: list[int] = []
        self.layouts: dict[fx.Node, _Layout] = {}
        self.fixed = self.new_channels(0)

    def new_channels(self, width: int) -> int:
        self.parent.append(len(self.parent))
        self.width.append(width)
        return len(self.parent) - 1

    def root(self, channels: int) -> int:
        while self.parent[channels] != channels:
            channels = self.parent[channels]
        return channels

    def join(self, first: int, second: int) -> None:
        first, second = sorted((self.root(first), self.root(second)))
        self.parent[second] = first

    def visit(self, node: fx.Node) -> None:
        if node.op == "output":
            for source in node.all_input_nodes:
                self.join(self.fixed, self.layouts[source].channels)
        elif node.op == "placeholder":
            self.layouts[node] = _Layout(self.fixed)
        elif _shape(node) is None:
            return  # a number such as `x.shape[0]`: it carries no channels
        elif node.op == "call_module":
            self.layouts[node] = self.through_module(node, str(node.target), self.modules[str(node.target)])
        elif node.op == "call_function" and node.target in _ADDITIONS:
            self.layouts[node] = self.through_sum(node)
        elif (node.op == "call_function" and node.target in _UNITWISE_FUNCTIONS) or (
            node.op == "call_method" and node.target in _UNITWISE_METHODS
        ):
            self.layouts[node] = self.through_unitwise(node)
        else:
            raise _unknown(node, node.target)

    def through_module(self, node: fx.Node, name: str, module: nn.Module) -> _Layout:
        entering = self.layouts[node.all_input_nodes[0]]
        if isinstance(module, nn.Conv2d | nn.Linear):
            return self.through_layer(node, name, module, entering)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                if getattr(module, tensor) is not None:
                    self.axes.append((entering.channels, TiedAxis(f"{name}.{tensor}", 0, entering.cells)))
            return entering
        if isinstance(module, _UNITWISE_MODULES):
            return self.through_unitwise(node)
        raise _unknown(node, type(module).__name__)

    def through_layer(self, node: fx.Node, name: str, layer: nn.Conv2d | nn.Linear, entering: _Layout) -> _Layout:
        bias = f"{name}.bias" if layer.bias is not None else None
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            if not layer.groups == layer.in_channels == layer.out_channels:
                raise _unknown(node, f"a convolution in {layer.groups} groups")
            leaving = entering  # depthwise: each channel is scaled by its own kernel
        else:
            self.axes.append((entering.channels, TiedAxis(f"{name}.weight", 1, entering.cells)))
            self.readings.append(entering.channels)
            leaving = _Layout(self.new_channels(layer.weight.shape[0]))
            self.writers.append(_Writer(f"{name}.weight", bias, entering.channels, leaving.channels))
        self.axes.append((leaving.channels, TiedAxis(f"{name}.weight", 0)))
        if bias is not None:
            self.axes.append((leaving.channels, TiedAxis(bias, 0)))
        return leaving

    def through_sum(self, node: fx.Node) -> _Layout:
        terms = [self.layouts[source] for source in node.all_input_nodes if source in self.layouts]
        if len({_shape(source) for source in node.all_input_nodes}) > 1 or len({term.cells for term in terms}) > 1:
            raise _unknown(node, "a sum of tensors of different shapes")
        for term in terms[1:]:
            self.join(terms[0].channels, term.channels)
        return terms[0]

    def through_unitwise(self, node: fx.Node) -> _Layout:
        source = node.all_input_nodes[0]
        before, after = _shape(source), _shape(node)
        entering = self.layouts[source]
        # Either axis 1 stays (pooling, activations) or all axes behind the batch become one (flatten).
        if before is None or after is None or len(after) < 2 or after[1] not in (before[1], math.prod(before[1:])):
            raise _unknown(node, f"{node.target} from shape {before} to {after}")
        return _Layout(entering.channels, entering.cells * (after[1] // before[1]))

    def groups(self) -> list[ChannelGroup]:
        """Groups by when they are first read; by then everything that was added to them on the way is known."""
        fixed = self.root(self.fixed)
        order = {fixed: -1}
        for channels in self.readings:
            order.setdefault(self.root(channels), len(order))
        found = {root: ChannelGroup(self.width[root]) for root in order if root != fixed}
        for channels, axis in self.axes:
            if self.root(channels) in found:
                found[self.root(channels)].axes.append(axis)
        for writer in self.writers:
            outputs, inputs = self.root(writer.outputs), self.root(writer.inputs)
            if outputs in found and order[inputs] < order[outputs]:
                found[outputs].writers.append((writer.weight, writer.bias))
        return list(found.values())


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if meta is not None and isinstance(meta.shape, tuple) else None


def _unknown(node: fx.Node, what: object) -> ValueError:
    return ValueError(
        f"Channels cannot be followed through {what} (at '{node.name}'): optimal-transport fusion knows convolutions, "
        f"linear layers, batch norm, activations, pooling, flatten and sums; use the plain average instead."
    )
