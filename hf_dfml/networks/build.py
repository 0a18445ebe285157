"""A network by name, with explicit randomness and its own normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hf_dfml.networks.info import network_info, set_input
from hf_dfml.networks.timm_network import OURS, create_model, is_model
from hf_dfml.settings import meant


def create_network(
    arch: str,
    *,
    num_classes: int = 5,
    image_size: int = 32,
    in_chans: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    generator: torch.Generator | None = None,
    **model_args: Any,
) -> nn.Module:
    """A fresh network of timm's or ours.

    Args:
        arch: a name that timm knows; `OURS` among them.
        num_classes: outputs.
        image_size: height and width of its images.
        in_chans: channels of its images.
        mean: per channel, of pixels in [0, 1]; kept in its `pretrained_cfg`. By default 0.5.
        std: likewise.
        generator: seeds the initial weights; the global seed is left as it was. Without one the weights follow it.
        model_args: passed on to the architecture.

    Raises:
        ValueError: if timm knows no such architecture.
    """
    check_architecture(arch)
    arguments: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans, **model_args}
    if arch in OURS:
        arguments["img_size"] = image_size
    else:
        # timm builds networks of a fixed size, such as ViTs, for this one.
        arguments["pretrained_cfg_overlay"] = {"input_size": (in_chans, image_size, image_size)}
    with torch.random.fork_rng(devices=[], enabled=generator is not None):
        if generator is not None:
            # Not torch.manual_seed, which would seed the accelerators as well and leave them so.
            torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        network: nn.Module = create_model(arch, **arguments)
    half = (0.5,) * in_chans
    further: dict[str, Any] = {"num_classes": num_classes}
    if arch not in OURS and network_info(network).settings.get("fixed_input_size"):
        further["model_args"] = {**model_args, "img_size": image_size}
    set_input(network, (in_chans, image_size, image_size), mean or half, std or half, **further)
    return network


def check_architecture(arch: str) -> None:
    """Make sure that timm knows an architecture, ours included.

    Raises:
        ValueError: if it does not.
    """
    if not is_model(arch):
        raise ValueError(
            f"Architecture '{arch}' is unknown: expected one of {', '.join(OURS)}, or a name from "
            f"timm.list_models().{meant(arch, [*OURS, 'auto'])}"
        )
