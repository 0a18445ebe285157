"""What our networks share so that timm's users find what they expect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn

OURS: list[str] = []
"""Names of the architectures that `register` made known to timm: their images' size is an argument, `img_size`."""


def register(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Make an architecture of this library known to timm under its function's name."""
    OURS.append(build.__name__)
    return register_model(build)


class TimmNetwork(nn.Module):
    """Features, pooling and a linear classifier, with timm's API.

    A network sets `global_pool` and `num_features`, calls `reset_classifier`, and has `forward_features`.
    """

    global_pool: nn.Module
    num_features: int
    forward_features: Callable[[Tensor], Tensor]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps -> logits, or the pooled features `(B, num_features)`."""
        x = torch.flatten(self.global_pool(x), 1)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images `(B, 3, H, W)` -> logits `(B, num_classes)`."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network a fresh last layer of `num_classes` outputs; none for 0."""
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()


def default_settings(classifier: str, first_conv: str) -> dict[str, Any]:
    """The `pretrained_cfg` (timm) of our networks: 32-pixel RGB, no weights to download."""
    return {
        "url": "",
        "num_classes": 5,
        "input_size": (3, 32, 32),
        "fixed_input_size": True,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": first_conv,
        "classifier": classifier,
    }
