"""Low-rank adapters beside the frozen layers of a network, trained with the library `peft`, and added to its weights.

A layer of weights W is trained as W + B A, where A and B have few rows or columns (Hu et al., ICLR 2022, arXiv
2106.09685, section 4.1). The scale of the product is 1, B starts at zero, so that the network starts as it is.
"""

from __future__ import annotations

import copy
import importlib.util
import re
from typing import Any

import torch
from torch import Tensor, nn

from hf_dfml.networks.info import network_info


def check_peft() -> None:
    """Make sure that `peft` is installed.

    Raises:
        ModuleNotFoundError: if it is not; says how to install it.
    """
    try:
        found = importlib.util.find_spec("peft")
    except ValueError:  # Where something else stands in its place.
        found = None
    if found is None:
        raise ModuleNotFoundError(
            "--train_student lora needs peft, which is not installed: pip install 'hf_dfml[lora]' (or pip install "
            "peft)."
        )


def adaptable_layers(network: nn.Module) -> list[str]:
    """Names of the layers outside of the classifier that get an adapter: linear ones and dense convolutions.

    None are grouped convolutions, whose adapters peft cannot add to the weights, dilated ones, whose dilation it
    ignores, and layers of other classes, which may do more with their weights or pad in another way (timm's
    `Conv2dSame`, `ScaledStdConv2d`).
    """
    in_classifier = network_info(network).in_classifier
    return [
        name
        for name, layer in network.named_modules()
        if not in_classifier(f"{name}.")
        and (
            type(layer) is nn.Linear
            or (
                type(layer) is nn.Conv2d
                and layer.groups == 1
                and layer.dilation == (1, 1)
                and layer.padding_mode == "zeros"
            )
        )
    ]


def with_adapters(network: nn.Module, rank: int, generator: torch.Generator) -> nn.Module:
    """A twin of `network` whose layers have adapters; it shares all tensors of the network, which are frozen.

    Args:
        network: any of timm's.
        rank: of the adapters.
        generator: seeds them, on the CPU.

    Raises:
        ModuleNotFoundError: if peft is not installed.
        ValueError: if the network has no layer for an adapter.
    """
    check_peft()
    from peft import LoraConfig, inject_adapter_in_model

    names = adaptable_layers(network)
    if not names:
        raise ValueError(
            f"--train_student lora: {network_info(network).architecture} has neither linear layers nor dense "
            "convolutions that an adapter can be put beside: use all, last_stage, head or beside."
        )
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    twin = copy.deepcopy(network, shared)
    # All names as one pattern, as peft takes a name in a list for the end of any other.
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules="|".join(map(re.escape, names)))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return inject_adapter_in_model(config, twin)


def adapters_of(twin: nn.Module) -> dict[str, Tensor]:
    """The tensors of the adapters, by name: all that is trained of a network `with_adapters`."""
    return {name: value.detach() for name, value in twin.named_parameters() if value.requires_grad}


@torch.no_grad()
def merged(network: nn.Module, twin: nn.Module) -> nn.Module:
    """A copy of `network` that answers as its twin `with_adapters` does: each layer's weights are W + B A."""
    from peft.tuners.lora import LoraLayer

    plain = copy.deepcopy(network)
    layers: dict[str, Any] = {name: layer for name, layer in twin.named_modules() if isinstance(layer, LoraLayer)}
    for name, layer in layers.items():
        for adapter in layer.active_adapters:
            plain.get_parameter(f"{name}.weight").add_(layer.get_delta_weight(adapter))
    return plain
