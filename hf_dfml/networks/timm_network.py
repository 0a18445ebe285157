"""What our networks share so that timm's users find what they expect.

timm is imported where somebody needs it, as that takes longer than to adapt or to classify an image: a network of ours
is built without it, and is the same one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Build = Callable[..., nn.Module]

OURS: list[str] = []
"""Names of the architectures of `register`: their images' size is an argument, `img_size`."""

_BUILDS: dict[str, Build] = {}


def register(build: Build) -> Build:
    """Make an architecture whose images' size is an argument known to timm under its function's name."""
    OURS.append(build.__name__)
    return register_any(build)


def register_any(build: Build) -> Build:
    """Make an architecture known to timm under its function's name: now where timm is loaded, else once it is."""
    _BUILDS[build.__name__] = build
    if "timm.models" in sys.modules:
        _give_to_timm(build)
    return build


def register_with_timm() -> None:
    """Make known to timm, which has just been imported, what was registered before."""
    for build in _BUILDS.values():
        _give_to_timm(build)


def _give_to_timm(build: Build) -> None:
    from timm import models

    if not models.is_model(build.__name__) or models.model_entrypoint(build.__name__) is not build:
        models.register_model(build)


def is_model(arch: str) -> bool:
    """Whether timm knows an architecture, ours included, and the tag of its weights, if it has one (`x.a1_in1k`)."""
    if arch in _BUILDS:
        return True
    import timm

    try:
        return timm.is_model(arch) and ("." not in arch or timm.get_pretrained_cfg(arch) is not None)
    except RuntimeError:  # For a tag that it does not know.
        return False


def create_model(arch: str, **arguments: Any) -> nn.Module:
    """`timm.create_model`; a network of ours is built without importing timm."""
    if arch in _BUILDS and "timm" not in sys.modules:
        return _BUILDS[arch](**{name: value for name, value in arguments.items() if value is not None})
    import timm

    return timm.create_model(arch, **arguments)


def build_with_settings(
    make: Build,
    variant: str,
    pretrained: bool,
    *,
    pretrained_cfg: dict[str, Any],
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    **arguments: Any,
) -> Any:
    """Timm's `build_model_with_cfg`, and without timm what it does for a network whose weights are not loaded."""
    if pretrained or "timm" in sys.modules:
        from timm.models import build_model_with_cfg

        arguments |= {"pretrained_cfg": pretrained_cfg, "pretrained_cfg_overlay": pretrained_cfg_overlay}
        return build_model_with_cfg(make, variant, pretrained, **arguments)
    settings = {"architecture": variant, **pretrained_cfg, **(pretrained_cfg_overlay or {})}
    channels, *size = settings["input_size"]
    defaults = {"num_classes": settings["num_classes"], "in_chans": channels}
    defaults |= {"img_size": tuple(size)} if settings["fixed_input_size"] else {}
    network = make(**{**defaults, **arguments})
    vars(network)["pretrained_cfg"] = vars(network)["default_cfg"] = settings
    return network


class TimmNetwork(nn.Module):
    """Features, pooling and a linear classifier, with timm's API.

    A network sets `global_pool` and `num_features`, calls `reset_classifier`, and has `forward_features`.
    """

    global_pool: nn.Module
    num_features: int
    forward_features: Callable[[Tensor], Tensor]

    def draw_convolutions(self) -> None:
        """Draw the weights of all convolutions, by their fan-out (He et al., ICCV 2015)."""
        for module in self.modules():
            # Drawing on the meta device, where there is nothing to draw, would import PyTorch's compiler.
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))

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
