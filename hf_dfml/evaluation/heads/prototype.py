"""Nearest class mean by cosine (Snell et al., "Prototypical Networks", NeurIPS 2017, with a frozen network)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from hf_dfml.evaluation.heads.features import FeatureHead, class_means

COSINE_SCALE = 10.0
"""Cosines are multiplied by this to serve as logits. It sharpens probabilities and never changes a prediction."""


class Prototype(FeatureHead):
    """Nearest class mean by cosine."""

    name = "prototype"
    help = "nearest class mean by cosine"
    by_default = True
    by_class_means = True

    @staticmethod
    def classifier(features: Tensor, labels: Tensor, ways: int) -> tuple[Tensor, Tensor]:
        """The directions of the class means, without biases."""
        means = F.normalize(class_means(features, labels, ways), dim=-1)
        return COSINE_SCALE * means, means.new_zeros(ways)
