"""Small pools and contexts for the tests of methods that work on weights."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import save_file

from hf_dfml.methods.base import Context
from hf_dfml.networks import create_network
from hf_dfml.pool import ModelPool
from tests.pool.members import WAYS, write_pool


def make_pool(folder: Path, count: int) -> ModelPool:
    """`count` random conv4_16 members for 16-pixel images of three classes."""
    return ModelPool.from_dir(write_pool(folder / "pool", count))


def make_mixed_pool(folder: Path, residual: str = "resnet10") -> ModelPool:
    """Two members that share a class name and nothing else: architecture, classes, input size, normalisation.

    Neither lists its classes in ascending order.
    """
    _write_network(folder / "mixed" / "conv", "conv4_16", 16, ["wolf", "ant", "cat"], mean=0.4, seed=1)
    names = ["emu", "cat", "bee", "yak", "dog"]
    _write_network(folder / "mixed" / "residual", residual, 20, names, mean=0.6, seed=2)
    return ModelPool.from_dir(folder / "mixed")


def _write_network(folder: Path, arch: str, size: int, names: list[str], *, mean: float, seed: int) -> None:
    folder.mkdir(parents=True)
    network = create_network(
        arch, num_classes=len(names), image_size=size, generator=torch.Generator().manual_seed(seed)
    )
    save_file(network.state_dict(), folder / "model.safetensors")
    settings = {"input_size": [3, size, size], "mean": [mean] * 3, "std": [0.25] * 3}
    settings["fixed_input_size"] = arch.startswith("conv4")
    config = {"architecture": arch, "num_classes": len(names), "label_names": names, "pretrained_cfg": settings}
    (folder / "config.json").write_text(json.dumps(config))


def make_model(seed: int = 0) -> torch.nn.Module:
    """A fresh network of the members' shape."""
    return create_network("conv4_16", num_classes=WAYS, image_size=16, generator=torch.Generator().manual_seed(seed))


def make_context(seed: int = 0) -> Context:
    return Context(generator=torch.Generator().manual_seed(seed), seed=seed)


def run_steps(method, context, first: int, last: int) -> list[dict[str, float]]:
    metrics = []
    for step in range(first, last):
        context.step = step
        metrics.append(method.step(context))
    return metrics


def without_seconds(metrics: list[dict[str, float]]) -> list[dict[str, float]]:
    """What two equal runs have the same: all but how long they took."""
    return [{name: value for name, value in row.items() if name != "recovery_seconds"} for row in metrics]


class OnceOnly:
    """A pool that refuses to load a member a second time."""

    def __init__(self, pool: ModelPool) -> None:
        self.pool = pool
        self.loads: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self.pool)

    def __getitem__(self, index):
        return self.pool[index]

    def load(self, index: int):
        self.loads[index] += 1
        if self.loads[index] > 1:
            raise PermissionError(f"member {index} is gone: it was loaded before")
        return self.pool.load(index)


def parameters(state, model) -> torch.Tensor:
    return torch.cat([state[name].flatten() for name, _ in model.named_parameters()])
