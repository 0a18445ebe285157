"""Heads that leave the network as it is: linear classifiers of its L2-normalised features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_dfml.evaluation.heads.base import Adapted, Head
from hf_dfml.learning.answers import representation_of
from hf_dfml.learning.inner_loop import query_outputs
from hf_dfml.networks.info import Representation
from hf_dfml.networks.linear_on_features import with_linear_layer


class FeatureHead(Head):
    """A linear classifier of features; a subclass defines `classifier`.

    Attributes:
        by_class_means: whether the logits are multiples of the cosines to the class means. These add up over the parts
            of a concatenated feature, so that the features of a large pool need not be in memory together.
    """

    on_features = True
    by_class_means: ClassVar[bool] = False

    @staticmethod
    @abstractmethod
    def classifier(features: Tensor, labels: Tensor, ways: int) -> tuple[Tensor, Tensor]:
        """Weights `(N, D)` and biases `(N,)` from L2-normalised features `(S, D)` with labels `(S,)` in 0..N-1."""

    def fit(self, support: Tensor, labels: Tensor, *, under_vmap: bool = False) -> Adapted:
        """As in the base class."""
        features = F.normalize(self._seen(self.features)(support), dim=-1)
        return dict(zip(("weight", "bias"), self.classifier(features, labels, self.ways), strict=True))

    def logits(self, adapted: Adapted, support: Tensor, query: Tensor, *, under_vmap: bool = False) -> Tensor:
        """As in the base class."""
        extract = partial(
            query_outputs, self.network, self.params, bn=self.how.bn, features=True, under_vmap=under_vmap
        )
        return F.linear(F.normalize(self._seen(extract)(support, query), dim=-1), adapted["weight"], adapted["bias"])

    def as_network(self, adapted: Adapted, support: Tensor) -> nn.Module:
        """As in the base class."""
        mirrored = self.statistics(self.params, support.flip(-1)) if self.how.flips else None
        return with_linear_layer(
            self.network,
            adapted["weight"],
            adapted["bias"],
            representation=self.how.representation,
            flips=self.how.flips,
            statistics=self.statistics(self.params, support),
            mirror_statistics=mirrored,
        )

    def leave_one_out(self, support: Tensor, labels: Tensor, rows: Sequence[int]) -> Tensor:
        """As in the base class; under stored statistics each image is seen once."""
        if self.how.bn != "running":
            return super().leave_one_out(support, labels, rows)
        features = F.normalize(self._seen(self.features)(support), dim=-1)
        found = []
        for row in rows:
            others = torch.arange(len(features), device=features.device) != row
            weight, bias = self.classifier(features[others], labels[others], self.ways)
            found.append(F.linear(features[row : row + 1], weight, bias).argmax(-1))
        return torch.cat(found)

    def _seen(self, extract: Callable[..., Tensor]) -> Callable[..., Tensor]:
        seen = represented(self.network, extract, self.how.representation)
        return with_flips(seen) if self.how.flips else seen


def represented(
    network: nn.Module, extract: Callable[..., Tensor], representation: Representation
) -> Callable[..., Tensor]:
    """What a network's features, which `extract` gives, are to heads on features: see `representation_of`."""
    if representation == "features":
        return extract
    return lambda *images: representation_of(network, extract(*images), representation)


def with_flips(extract: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Features `(B, D)` of images together with those of their mirror images, each L2-normalised, from `extract`.

    All arguments are images `(..., W)` and are mirrored together.
    """
    return lambda *images: with_mirrored(extract(*images), extract(*(part.flip(-1) for part in images)))


def with_mirrored(features: Tensor, mirrored: Tensor) -> Tensor:
    """Features `(B, D)` of images together with those of their mirror images, each L2-normalised."""
    return F.normalize(features, dim=-1) + F.normalize(mirrored, dim=-1)


def class_means(features: Tensor, labels: Tensor, ways: int) -> Tensor:
    """Mean feature of each class.

    Args:
        features: `(..., S, D)`.
        labels: `(..., S)` in 0..N-1; each class occurs.
        ways: N.

    Returns:
        `(..., N, D)`.

    Examples:
        >>> class_means(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), 2).tolist()
        [[2.0], [5.0]]
    """
    members = (labels[..., None] == torch.arange(ways, device=labels.device)).to(features.dtype)
    return members.transpose(-1, -2) @ features / members.sum(-2)[..., None]
