"""A linear classifier of a network's L2-normalised features, as one network that timm knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_dfml.networks.functional import with_state
from hf_dfml.networks.info import NetworkInfo, Representation, network_info, set_input
from hf_dfml.networks.timm_network import (
    TimmNetwork,
    build_with_settings,
    create_model,
    default_settings,
    is_model,
    register_any,
)

ARCHITECTURE = "linear_on_features"
"""Its name in timm."""


class LinearOnFeatures(TimmNetwork):
    """What a backbone makes of an image, scaled to length 1, and one linear layer.

    Args:
        backbone: whose penultimate features are taken.
        num_features: their length.
        num_classes: outputs.
        answers: classes of each member of a pool whose probabilities are predicted from the features and taken in
            their place (`hf_dfml.learning.answers`); empty: the features are taken.
        with_features: whether features and answers, each of length 1, are taken side by side.
        flips: whether an image is seen together with its mirror image: what is made of both, each of length 1, is
            added up.
        mirror: the network that sees the mirror images, where its batch-norm statistics are others; else the backbone.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        num_classes: int,
        *,
        answers: Sequence[int] = (),
        with_features: bool = False,
        flips: bool = False,
        mirror: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.mirror, self.flips, self.answers = backbone, mirror, flips, list(answers)
        self.with_features = with_features
        self.answer_heads = nn.Linear(num_features, sum(answers)) if answers else None
        self.global_pool = nn.Identity()
        width = sum(answers) + (num_features if with_features or not answers else 0)
        self.num_features = self.head_hidden_size = width
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised images `(B, 3, H, W)` -> `(B, num_features)` of length 1."""
        seen = self._see(self.backbone, x)
        return F.normalize(seen + self._see(self.mirror or self.backbone, x.flip(-1)), dim=-1) if self.flips else seen

    def _see(self, backbone: nn.Module, x: Tensor) -> Tensor:
        features = F.normalize(network_info(backbone).features(x), dim=-1)
        if self.answer_heads is None:
            return features
        logits = self.answer_heads(features)
        answers = F.normalize(torch.cat([part.softmax(-1) for part in logits.split(self.answers, -1)], -1), dim=-1)
        return F.normalize(torch.cat([features, answers], -1), dim=-1) if self.with_features else answers


def with_linear_layer(
    network: nn.Module,
    weight: Tensor,
    bias: Tensor,
    *,
    representation: Representation = "features",
    flips: bool = False,
    statistics: Mapping[str, Tensor] | None = None,
    mirror_statistics: Mapping[str, Tensor] | None = None,
) -> LinearOnFeatures:
    """A classifier of what `network` makes of images. `network` stays as it is; its parameters are shared.

    Args:
        network: any classifier that `network_info` knows.
        weight: `(N, D)`.
        bias: `(N,)`.
        representation: what is classified: its features, the answers that it predicts, or both.
        flips: see `LinearOnFeatures`.
        statistics: batch-norm statistics by name, in place of those of `network`.
        mirror_statistics: likewise, of the mirror images.
    """
    info = network_info(network)
    backbone = with_state(network, statistics or {})
    mirror = with_state(network, mirror_statistics) if mirror_statistics else None
    if type(info) is NetworkInfo:
        network_info(backbone).reset_classifier(0)
        if mirror is not None:
            network_info(mirror).reset_classifier(0)
    sizes = info.answers if representation != "features" else ()
    width = info.num_features if sizes else weight.shape[1]
    with torch.random.fork_rng(devices=[]):
        made = LinearOnFeatures(
            backbone,
            width,
            weight.shape[0],
            answers=sizes,
            with_features=representation == "both",
            flips=flips,
            mirror=mirror,
        )
    if made.answer_heads is not None:
        heads = network.get_submodule(info.linear_classifier())
        made.answer_heads.load_state_dict(heads.state_dict())
    made.fc.load_state_dict({"weight": weight, "bias": bias})
    own = {"architecture": ARCHITECTURE, "fixed_input_size": info.settings.get("fixed_input_size", False)}
    set_input(made, info.input_size, info.mean, info.std, **own, num_classes=len(weight), classifier="fc")
    return made.to(weight.device).eval()


def _build(
    backbone: str = "conv4",
    num_classes: int = 5,
    answers: Sequence[int] = (),
    with_features: bool = False,
    flips: bool = False,
    mirror_backbone: bool = False,
    **arguments: Any,
) -> LinearOnFeatures:
    if not is_model(backbone):
        raise ValueError(f"backbone='{backbone}': expected a name from timm.list_models().")
    parts = [create_model(backbone, num_classes=0, **arguments) for _ in range(1 + mirror_backbone)]
    width, mirror = network_info(parts[0]).num_features, parts[1] if mirror_backbone else None
    taken: dict[str, Any] = {"answers": answers, "with_features": with_features}
    return LinearOnFeatures(parts[0], width, num_classes, **taken, flips=flips, mirror=mirror)


@register_any
def linear_on_features(pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> LinearOnFeatures:
    """`backbone` (a name of timm's), the arguments of `LinearOnFeatures`, and those of the backbone."""
    settings = pretrained_cfg or default_settings(classifier="fc", first_conv="") | {"fixed_input_size": False}
    return build_with_settings(_build, ARCHITECTURE, pretrained, pretrained_cfg=settings, **kwargs)
