"""A frozen backbone and, beside its features, the answers of a pool that a branch predicts: one network for both.

What a backbone of millions of photographs knows is not to be forgotten for what a small pool knows. So the backbone
stays as it is, a branch learns the members' answers from its features, and the network's features are both side by
side, each centred and of length 1, the answers weighted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from hf_dfml.networks.functional import with_state
from hf_dfml.networks.info import network_info, set_input
from hf_dfml.networks.timm_network import TimmNetwork, default_settings

ARCHITECTURE = "answers_beside_backbone"
"""Its name in timm."""


class Branch(nn.Sequential):
    """Two layers on features `(B, D)`, whitened channel by channel by batch norm: `(B, width)`.

    Args:
        num_features: D.
        hidden: outputs of the first layer.
        width: outputs of the second.
    """

    def __init__(self, num_features: int, hidden: int, width: int) -> None:
        super().__init__(
            nn.BatchNorm1d(num_features, affine=False),
            nn.Linear(num_features, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, width),
        )
        self.num_features, self.hidden = num_features, hidden


class AnswersBesideBackbone(TimmNetwork):
    """See the module's docstring.

    Args:
        backbone: whose penultimate features are taken; without a classifier.
        branch: from its features.
        width: of what the branch gives.
        answers: classes of each member, K altogether.
        num_classes: outputs.

    Attributes:
        answer_heads: rows of all members' heads, on what the branch gives at length 1.
        weight: of the answers' part of the features.
    """

    feature_mean: Tensor
    answer_mean: Tensor
    weight: Tensor

    def __init__(
        self, backbone: nn.Module, branch: Branch, width: int, answers: Sequence[int], num_classes: int
    ) -> None:
        super().__init__()
        self.backbone, self.branch, self.answers = backbone, branch, list(answers)
        outputs, own = sum(answers), network_info(backbone).num_features if answers else 0
        self.answer_heads = nn.Linear(width, outputs, bias=False)
        self.register_buffer("feature_mean", torch.zeros(own))
        self.register_buffer("answer_mean", torch.zeros(outputs))
        self.register_buffer("weight", torch.ones(()))
        self.global_pool = nn.Identity()
        self.num_features = self.head_hidden_size = own + outputs
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised images `(B, 3, H, W)` -> `(B, D + K)`."""
        return self.beside(network_info(self.backbone).features(x))

    def beside(self, features: Tensor) -> Tensor:
        """The backbone's features `(B, D)` -> `(B, D + K)`."""
        ours, theirs = features - self.feature_mean, self.predicted(features) - self.answer_mean
        return torch.cat([F.normalize(ours, dim=-1), self.weight * F.normalize(theirs, dim=-1)], -1)

    def predicted(self, features: Tensor) -> Tensor:
        """The members' probabilities, of the backbone's features `(B, D)`: `(B, K)`."""
        logits = self.answer_heads(F.normalize(self.branch(features), dim=-1))
        return torch.cat([part.softmax(-1) for part in logits.split(self.answers, -1)], -1)


def answers_beside(
    backbone: nn.Module,
    branch: Branch,
    rows: Tensor,
    answers: Sequence[int],
    *,
    weight: float,
    seen: Tensor,
    num_classes: int,
) -> AnswersBesideBackbone:
    """The network of a trained branch; it shares the tensors of the backbone.

    Args:
        backbone: one of timm's.
        branch: trained on its features.
        rows: `(K, width)` of the heads; times the scale of their cosines.
        answers: classes of each member.
        weight: of the answers.
        seen: the backbone's features `(N, D)` of the images that the branch was trained on, whose means are taken out.
        num_classes: outputs of the network.
    """
    info = network_info(backbone)
    own = with_state(backbone, {})
    arguments = info.settings.get("model_args") or {}
    set_input(own, info.input_size, info.mean, info.std)
    network_info(own).reset_classifier(0)
    hidden, width = branch.hidden, rows.shape[1]
    with torch.random.fork_rng(devices=[]):
        copied = Branch(branch.num_features, hidden, width)
        made = AnswersBesideBackbone(own, copied, width, answers, num_classes)
    copied.load_state_dict(branch.state_dict())
    made.to(rows.device).eval()
    with torch.no_grad():
        made.answer_heads.weight.copy_(rows)
        made.weight.fill_(weight)
        made.feature_mean.copy_(seen.float().mean(0))
        made.answer_mean.copy_(torch.cat([made.predicted(part.float()) for part in seen.split(1000)]).mean(0))
    model_args = {
        "backbone": info.architecture,
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
    hidden: int = 512,
    width: int = 256,
    answers: Sequence[int] = (5,),
    num_classes: int = 5,
    **arguments: Any,
) -> AnswersBesideBackbone:
    if not timm.is_model(backbone):
        raise ValueError(f"backbone='{backbone}': expected a name from timm.list_models().")
    network = timm.create_model(backbone, num_classes=0, **arguments)
    branch = Branch(network_info(network).num_features, hidden, width)
    return AnswersBesideBackbone(network, branch, width, answers, num_classes)


@register_model
def answers_beside_backbone(pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> nn.Module:
    """`backbone` (a name of timm's), `hidden`, `width`, `answers`, and the arguments of the backbone."""
    settings = pretrained_cfg or default_settings(classifier="fc", first_conv="") | {"fixed_input_size": False}
    return build_model_with_cfg(_build, ARCHITECTURE, pretrained, pretrained_cfg=settings, **kwargs)
