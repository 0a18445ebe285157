"""A linear classifier of a network's L2-normalised features, as one network that timm knows."""

from __future__ import annotations

from typing import Any

import timm
import torch.nn.functional as F
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from hf_dfml.networks.functional import with_state
from hf_dfml.networks.info import NetworkInfo, network_info, set_input
from hf_dfml.networks.timm_network import TimmNetwork, default_settings

ARCHITECTURE = "linear_on_features"
"""Its name in timm."""


class LinearOnFeatures(TimmNetwork):
    """Features of a backbone, scaled to length 1, and one linear layer.

    Args:
        backbone: whose penultimate features are taken.
        num_features: their length.
        num_classes: outputs.
        flips: whether an image is seen together with its mirror image: the features of both, each of length 1, are
            added up.
        mirror: the network that sees the mirror images, where its batch-norm statistics are others; else the backbone.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        num_classes: int,
        flips: bool = False,
        mirror: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.mirror, self.flips = backbone, mirror, flips
        self.global_pool = nn.Identity()
        self.num_features = self.head_hidden_size = num_features
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised images `(B, 3, H, W)` -> features `(B, num_features)` of length 1."""
        features = network_info(self.backbone).features(x)
        if self.flips:
            mirrored = network_info(self.mirror or self.backbone).features(x.flip(-1))
            features = F.normalize(features, dim=-1) + F.normalize(mirrored, dim=-1)
        return F.normalize(features, dim=-1)


def with_linear_layer(
    network: nn.Module,
    weight: Tensor,
    bias: Tensor,
    *,
    flips: bool = False,
    statistics: dict[str, Tensor] | None = None,
    mirror_statistics: dict[str, Tensor] | None = None,
) -> LinearOnFeatures:
    """A classifier of the features of `network`, which stays as it is; its parameters are shared.

    Args:
        network: any classifier that `network_info` knows.
        weight: `(N, D)`.
        bias: `(N,)`.
        flips: see `LinearOnFeatures`.
        statistics: batch-norm statistics by name, in place of those of `network`.
        mirror_statistics: likewise, of the mirror images.
    """
    info = network_info(network)
    backbone = with_state(network, statistics or {})
    mirror = with_state(network, mirror_statistics) if mirror_statistics else None
    if type(info) is NetworkInfo:
        for part in (backbone, mirror):
            if part is not None:
                part.reset_classifier(0)
    made = LinearOnFeatures(backbone, weight.shape[1], weight.shape[0], flips, mirror)
    made.fc.weight.data, made.fc.bias.data = weight.detach().clone(), bias.detach().clone()
    own = {"architecture": ARCHITECTURE, "fixed_input_size": info.settings.get("fixed_input_size", False)}
    set_input(made, info.input_size, info.mean, info.std, **own, num_classes=len(weight), classifier="fc")
    return made.eval()


def _build(
    backbone: str = "conv4", num_classes: int = 5, flips: bool = False, mirror_backbone: bool = False, **arguments: Any
) -> LinearOnFeatures:
    if not timm.is_model(backbone):
        raise ValueError(f"backbone='{backbone}': expected a name from timm.list_models().")
    parts = [timm.create_model(backbone, num_classes=0, **arguments) for _ in range(1 + mirror_backbone)]
    width = network_info(parts[0]).num_features
    return LinearOnFeatures(parts[0], width, num_classes, flips, *parts[1:])


@register_model
def linear_on_features(pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> LinearOnFeatures:
    """`backbone` (a name of timm's), `flips`, `mirror_backbone`, and the arguments of the backbone."""
    settings = pretrained_cfg or default_settings(classifier="fc", first_conv="") | {"fixed_input_size": False}
    return build_model_with_cfg(_build, ARCHITECTURE, pretrained, pretrained_cfg=settings, **kwargs)
