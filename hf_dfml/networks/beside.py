"""A frozen backbone and, beside its features, the answers of a pool that a branch predicts: one network for both.

What a backbone of millions of photographs knows is not to be forgotten for what a small pool knows. So the backbone
stays as it is, a branch learns the members' answers from the maps of its middle, which still hold what the backbone's
own classes do not need, and the network's features are both side by side, each of length 1, the answers weighted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_dfml.networks.functional import with_state
from hf_dfml.networks.info import network_info, set_input
from hf_dfml.networks.timm_network import (
    TimmNetwork,
    build_with_settings,
    create_model,
    default_settings,
    is_model,
    register_any,
)

ARCHITECTURE = "answers_beside_backbone"
"""Its name in timm."""


MIDDLE = 8
"""Height and width of the branch's maps at most; larger ones are averaged."""


class Branch(nn.Sequential):
    """Three convolutions on maps `(B, C, h, w)`, which batch norm brings to one scale: `(B, width)`.

    Args:
        channels: C.
        hidden: channels between the convolutions.
        width: channels of the last one, averaged over all places.
    """

    def __init__(self, channels: int, hidden: int, width: int) -> None:
        layers: list[nn.Module] = [nn.BatchNorm2d(channels, affine=False)]
        for before, after, stride in ((channels, hidden, 1), (hidden, hidden, 2), (hidden, width, 2)):
            layers += [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.channels, self.hidden = channels, hidden


class AnswersBesideBackbone(TimmNetwork):
    """See the module's docstring.

    Args:
        backbone: whose penultimate features are taken; without a classifier.
        branch: from the maps of its middle.
        width: of what the branch gives.
        answers: classes of each member, K altogether.
        num_classes: outputs.

    Attributes:
        answer_heads: rows of all members' heads, on what the branch gives at length 1.
        weight: of the answers' part of the features.
    """

    weight: Tensor

    def __init__(
        self, backbone: nn.Module, branch: Branch, width: int, answers: Sequence[int], num_classes: int
    ) -> None:
        super().__init__()
        self.backbone, self.branch, self.answers = backbone, branch, list(answers)
        self.answer_heads = nn.Linear(width, sum(answers), bias=False)
        self.register_buffer("weight", torch.ones(()))
        self.global_pool = nn.Identity()
        self.num_features = self.head_hidden_size = network_info(backbone).num_features + sum(answers)
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised images `(B, 3, H, W)` -> `(B, D + K)`."""
        maps, features = network_info(self.backbone).maps_and_features(x)
        logits = self.answer_heads(F.normalize(self.branch(middle(maps)), dim=-1))
        answers = torch.cat([part.softmax(-1) for part in logits.split(self.answers, -1)], -1)
        return torch.cat([F.normalize(features, dim=-1), self.weight * F.normalize(answers, dim=-1)], -1)


def middle(maps: Tensor) -> Tensor:
    """Maps `(B, C, h, w)` as a branch takes them: 8 x 8 at most."""
    return F.adaptive_avg_pool2d(maps, MIDDLE) if maps.shape[-1] > MIDDLE else maps


def answers_beside(
    backbone: nn.Module,
    branch: Branch,
    rows: Tensor,
    answers: Sequence[int],
    *,
    weight: float,
    num_classes: int,
) -> AnswersBesideBackbone:
    """The network of a trained branch; it shares the tensors of the backbone.

    Args:
        backbone: one of timm's.
        branch: trained on the maps of its middle.
        rows: `(K, width)` of the heads; times the scale of their cosines.
        answers: classes of each member.
        weight: of the answers.
        num_classes: outputs of the network.
    """
    info = network_info(backbone)
    own = with_state(backbone, {})
    arguments = info.settings.get("model_args") or {}
    set_input(own, info.input_size, info.mean, info.std)
    network_info(own).reset_classifier(0)
    hidden, width = branch.hidden, rows.shape[1]
    with torch.random.fork_rng(devices=[]):
        copied = Branch(branch.channels, hidden, width)
        made = AnswersBesideBackbone(own, copied, width, answers, num_classes)
    copied.load_state_dict(branch.state_dict())
    made.to(rows.device).eval()
    with torch.no_grad():
        made.answer_heads.weight.copy_(rows)
        made.weight.fill_(weight)
    model_args = {
        "backbone": info.architecture,
        "channels": branch.channels,
        "hidden": hidden,
        "width": width,
        "answers": list(answers),
        **arguments,
    }
    further: dict[str, Any] = {"architecture": ARCHITECTURE, "model_args": model_args, "classifier": "fc"}
    further["fixed_input_size"] = "img_size" in arguments
    set_input(made, info.input_size, info.mean, info.std, num_classes=num_classes, **further)
    return made


def _build(
    backbone: str = "conv4",
    channels: int = 64,
    hidden: int = 128,
    width: int = 256,
    answers: Sequence[int] = (5,),
    num_classes: int = 5,
    **arguments: Any,
) -> AnswersBesideBackbone:
    if not is_model(backbone):
        raise ValueError(f"backbone='{backbone}': expected a name from timm.list_models().")
    network = create_model(backbone, num_classes=0, **arguments)
    return AnswersBesideBackbone(network, Branch(channels, hidden, width), width, answers, num_classes)


@register_any
def answers_beside_backbone(pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> nn.Module:
    """`backbone` (a name of timm's), `channels`, `hidden`, `width`, `answers`, and the arguments of the backbone."""
    settings = pretrained_cfg or default_settings(classifier="fc", first_conv="") | {"fixed_input_size": False}
    return build_with_settings(_build, ARCHITECTURE, pretrained, pretrained_cfg=settings, **kwargs)
