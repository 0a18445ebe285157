"""Tiny pool members for the tests."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

import hf_dfml  # noqa: F401  (registers conv4_16 with timm)
from hf_dfml.pool import PoolEntry
from tests.hub_server import HubServer

WAYS = 3


def config_of(**changes: Any) -> dict[str, Any]:
    """A good member's config: conv4_16 on 16-pixel images of three classes."""
    config = {
        "architecture": "conv4_16",
        "num_classes": WAYS,
        "label_names": ["cat", "dog", "fox"],
        "model_args": {},
        "pretrained_cfg": {
            "input_size": [3, 16, 16],
            "fixed_input_size": True,
            "mean": [0.4, 0.5, 0.6],
            "std": [0.2, 0.25, 0.3],
            "num_classes": WAYS,
            "classifier": "fc",
            "first_conv": "blocks.0.conv",
        },
        "dfml": {"dataset": "pets", "classes": [4, 2, 9], "val_accuracy": 0.75},
    }
    return config | changes


def state_of(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights, and running statistics that are not the fresh ones, for that config."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = timm.create_model("conv4_16", num_classes=WAYS, img_size=16)
        with torch.no_grad():
            for _ in range(3):
                network(torch.randn(8, 3, 16, 16))
    return {name: tensor.contiguous() for name, tensor in network.state_dict().items()}


def write_member(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A member's folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config_of(**changes)))
    save_file(state_of(seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_pool(folder: Path, count: int) -> Path:
    """A folder of good members `m-0`, `m-1`, ..., each with weights of its own."""
    for index in range(count):
        write_member(folder / f"m-{index}", seed=index)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a member, to put into a repository."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def ids(pool: Iterable[PoolEntry]) -> list[str]:
    """The members' ids."""
    return [entry.id for entry in pool]


def requests_of(hub: HubServer) -> list[str]:
    """The requests since the last call."""
    seen = [f"{request.method} {request.path}" for request in hub.requests]
    hub.requests.clear()
    return seen


def images() -> torch.Tensor:
    """Two images of 16 pixels, the same each time."""
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
