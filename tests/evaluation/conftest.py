"""A small data set whose images a network can tell apart, and a network of the same size."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from hf_dfml.data.few_shot import FewShotDataset
from hf_dfml.networks import create_network
from hf_dfml.utils import progress

CLASSES, PER_CLASS, SIZE = 8, 20, 16


@pytest.fixture(scope="session")
def dataset() -> FewShotDataset:
    """Eight classes of twenty noisy images of a random picture each: neither chance nor 100 % is near."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.rand(CLASSES, 1, 3, 4, 4, generator=generator).repeat_interleave(4, -1).repeat_interleave(4, -2)
    noise = torch.randn(CLASSES, PER_CLASS, 3, SIZE, SIZE, generator=generator)
    images = ((0.3 * prototypes + 0.35 + 0.15 * noise).clamp(0, 1) * 255).to(torch.uint8)
    return FewShotDataset(
        name="spots",
        split="validation",
        images=images.flatten(0, 1),
        labels=torch.arange(CLASSES).repeat_interleave(PER_CLASS),
        class_names=tuple(f"spot{k}" for k in range(CLASSES)),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )


@pytest.fixture
def network() -> nn.Module:
    """A conv4_16 for 16-pixel images of three classes, with running statistics of its own."""
    generator = torch.Generator().manual_seed(1)
    network = create_network("conv4_16", num_classes=3, image_size=SIZE, generator=generator)
    network.train()
    with torch.no_grad():
        network(torch.randn(32, 3, SIZE, SIZE, generator=generator))
    return network.eval()


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is shown, and at once; the tests' own environment turns it off."""
    monkeypatch.setattr(progress, "SECONDS", 1e-3)
    monkeypatch.setattr(sys.modules["huggingface_hub.utils.tqdm"], "are_progress_bars_disabled", lambda _: False)


def images_seen(network: nn.Module) -> list[int]:
    """The images that a network will be shown, a number for each pass through its first convolution."""
    seen: list[int] = []
    network.blocks[0].conv.register_forward_pre_hook(lambda layer, inputs: seen.append(len(inputs[0])))
    return seen
