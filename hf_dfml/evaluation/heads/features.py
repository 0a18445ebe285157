"""Heads that leave the network as it is: linear classifiers of its L2-normalised features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_dfml.evaluation.heads.base import Adaptation, Adapted, Head
from hf_dfml.learning.answers import representation_of
from hf_dfml.learning.inner_loop import query_outputs
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
        return self._fitted(views(self.features, self.how.flips, support), labels)

    def logits(self, adapted: Adapted, support: Tensor, query: Tensor, *, under_vmap: bool = False) -> Tensor:
        """As in the base class."""
        return self._classified(adapted, views(self._of_queries(under_vmap), self.how.flips, support, query))

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
        features = self._normalised(views(self.features, self.how.flips, support))
        found = []
        for row in rows:
            others = torch.arange(len(features), device=features.device) != row
            weight, bias = self.classifier(features[others], labels[others], self.ways)
            found.append(F.linear(features[row : row + 1], weight, bias).argmax(-1))
        return torch.cat(found)

    @classmethod
    def shares_passes(cls) -> bool:
        """Whether `logits_of_each` may stand in for `fit` and `logits`: not where a subclass has its own."""
        return cls.fit is FeatureHead.fit and cls.logits is FeatureHead.logits

    def _of_queries(self, under_vmap: bool) -> Callable[[Tensor, Tensor], Tensor]:
        """Support and queries -> features of the queries."""
        return partial(query_outputs, self.network, self.params, bn=self.how.bn, features=True, under_vmap=under_vmap)

    def _fitted(self, seen: Sequence[Tensor], labels: Tensor) -> Adapted:
        """`fit`, from the network's features of each view of the support set."""
        found = self.classifier(self._normalised(seen), labels, self.ways)
        return dict(zip(("weight", "bias"), found, strict=True))

    def _classified(self, adapted: Adapted, seen: Sequence[Tensor]) -> Tensor:
        """`logits`, from the network's features of each view of the queries."""
        return F.linear(self._normalised(seen), adapted["weight"], adapted["bias"])

    def _normalised(self, seen: Sequence[Tensor]) -> Tensor:
        return F.normalize(combined(self.network, seen, self.how), dim=-1)


def logits_of_each(
    heads: Sequence[FeatureHead], support: Tensor, labels: Tensor, query: Tensor, *, under_vmap: bool = False
) -> list[Tensor]:
    """Logits `(Q, N)` of several heads that are fitted to one support set; all are made of the same passes.

    Args:
        heads: of one network and one batch norm, each of which `shares_passes`.
        support: `(S, 3, H, W)` in [0, 1].
        labels: `(S,)` in 0..N-1.
        query: `(Q, 3, H, W)` in [0, 1].
        under_vmap: whether the call comes from inside `torch.func.vmap`.
    """
    first, flips = heads[0], any(head.how.flips for head in heads)
    supports = views(first.features, flips, support)
    queries = views(first._of_queries(under_vmap), flips, support, query)
    return [head._classified(head._fitted(supports, labels), queries) for head in heads]


def views(extract: Callable[..., Tensor], flips: bool, *images: Tensor) -> list[Tensor]:
    """What `extract` gives of images, and with `flips` of their mirror images; all arguments are mirrored together."""
    seen = [extract(*images)]
    return [*seen, extract(*(part.flip(-1) for part in images))] if flips else seen


def combined(network: nn.Module, seen: Sequence[Tensor], how: Adaptation) -> Tensor:
    """What a head on features works with.

    Args:
        network: whose features they are.
        seen: its features `(B, D)` of images and, at least where `how.flips`, of their mirror images.
        how: says what is made of them.
    """
    found = [representation_of(network, features, how.representation) for features in seen[: 1 + how.flips]]
    return with_mirrored(*found) if how.flips else found[0]


def with_flips(extract: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Features `(B, D)` of images together with those of their mirror images, each L2-normalised, from `extract`.

    All arguments are images `(..., W)` and are mirrored together.
    """
    return lambda *images: with_mirrored(*views(extract, True, *images))


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
