"""A small meta-model and images that it can learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hf_dfml import MetaModel
from hf_dfml.networks import create_network

CLASSES = ["ant", "bee", "cow"]


def make_meta(arch: str = "conv4_16", size: int = 16) -> MetaModel:
    """With running statistics of its own, unlike those of any support set."""
    generator = torch.Generator().manual_seed(1)
    network = create_network(arch, num_classes=3, image_size=size, mean=(0.4, 0.5, 0.6), generator=generator)
    with torch.no_grad():
        network.train()(torch.randn(32, 3, size, size, generator=generator))
    return MetaModel.of(network, method="TGR")


def pictures(seed: int, each: int = 1) -> list[Image.Image]:
    """`each` noisy pictures of each class, 20 x 25 pixels, whose colours tell the classes apart."""
    random = np.random.default_rng(seed)
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])
    noise = random.integers(-40, 40, (3, each, 25, 20, 3))
    return [
        Image.fromarray((colour + image).astype(np.uint8))
        for colour, row in zip(colours, noise, strict=True)
        for image in row
    ]


def labels(each: int = 1) -> list[str]:
    return [name for name in CLASSES for _ in range(each)]


@pytest.fixture(scope="session")
def meta() -> MetaModel:
    return make_meta()
