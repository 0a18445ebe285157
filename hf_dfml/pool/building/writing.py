"""A member's folder, written so that it is either complete or not there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from hf_dfml.networks.info import network_info
from hf_dfml.pool.building.member_card import member_card
from hf_dfml.pool.entry import CONFIG_NAME, WEIGHTS_NAME, MemberError
from hf_dfml.pool.formats.reading import read_entry
from hf_dfml.utils.checkpoint import save_tensors


def member_config(
    network: nn.Module,
    architecture: str,
    label_names: list[str],
    *,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    model_args: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The `config.json` of a network of timm's (or ours) that classifies RGB images, in timm's layout.

    Args:
        network: built for these classes and this size.
        architecture: its name in timm.
        label_names: in the order of its outputs.
        image_size: height and width in pixels.
        mean: per channel, of pixels in [0, 1].
        std: likewise.
        model_args: what it was built with beside that.
    """
    own = network_info(network).settings
    return {
        "architecture": architecture,
        "num_classes": len(label_names),
        "num_features": network_info(network).num_features,
        "label_names": label_names,
        "model_args": model_args or {},
        "pretrained_cfg": {
            "input_size": [3, image_size, image_size],
            "fixed_input_size": bool(own.get("fixed_input_size", False)),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": list(mean),
            "std": list(std),
            "num_classes": len(label_names),
            "first_conv": own.get("first_conv"),
            "classifier": own.get("classifier"),
        },
    }


def write_member(
    folder: Path,
    network: nn.Module,
    config: dict[str, Any],
    verify: Callable[[Path], None] | None = None,
    note: str = "",
) -> None:
    """Write `config.json`, `model.safetensors` and a card.

    Args:
        folder: appears when it is complete.
        network: its weights.
        config: the content of `config.json`.
        verify: is given the written folder before it appears under its name; nothing appears if it raises.
        note: a sentence of the card.

    Raises:
        MemberError: if the config is not that of a usable member.
    """
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)  # Only now: a build that fails before its first member leaves nothing.
    try:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
        save_tensors(state, temporary / WEIGHTS_NAME, metadata={"format": "pt"})
        (temporary / CONFIG_NAME).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        entry = read_entry(folder.name, temporary)
        if entry.problem is not None:
            raise MemberError(entry.id, entry.problem)
        (temporary / "README.md").write_text(member_card(folder.name, entry, note), encoding="utf-8")
        if verify is not None:
            verify(temporary)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
