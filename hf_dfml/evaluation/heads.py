"""From a support set to a classifier: fine-tuning (and its calibration), prototypes, logistic regression."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_dfml.evaluation.icfil import ICFILConfig, calibrate
from hf_dfml.learning.inner_loop import InnerLoop, adapt, adapt_each, query_outputs
from hf_dfml.networks.functional import BatchNorm, functional_forward
from hf_dfml.networks.info import network_info

Head = Literal["finetune", "prototype", "mirrored", "linear", "icfil"]
"""How a network becomes a classifier: SGD on all parameters, nearest class mean, the same with every image seen
together with its mirror image, logistic regression on features, SGD followed by PURER's calibration
(`hf_dfml.evaluation.icfil`)."""

HEADS: tuple[Head, ...] = ("finetune", "prototype", "mirrored", "linear", "icfil")
ON_FEATURES: tuple[Head, ...] = ("prototype", "mirrored", "linear")
"""The heads that leave the network as it is."""
BATCH_NORMS: tuple[BatchNorm, ...] = ("support", "running", "transductive")

COSINE_SCALE = 10.0
"""Cosines are multiplied by this to serve as logits. It sharpens probabilities and never changes a prediction."""


@dataclass(frozen=True)
class Adaptation:
    """How a network is adapted to a support set; the defaults are the papers' steps with a non-transductive norm."""

    bn: BatchNorm = field(
        default="support",
        metadata={"help": "Statistics that normalise the queries: of the support set, stored, or of all queries."},
    )
    head: Head = field(default="finetune", metadata={"help": f"One of {', '.join(HEADS)}."})
    steps: int = field(
        default=10, metadata={"help": "SGD steps of `finetune` (and before `icfil`) on the support set."}
    )
    lr: float = field(default=0.01, metadata={"help": "Learning rate of these steps."})

    def __post_init__(self) -> None:
        if self.bn not in BATCH_NORMS:
            raise ValueError(f"bn='{self.bn}': expected one of {', '.join(BATCH_NORMS)}.")
        if self.head not in HEADS:
            raise ValueError(f"head='{self.head}': expected one of {', '.join(HEADS)}.")
        if self.steps < 0 or self.lr <= 0:
            raise ValueError(f"Fine-tuning needs 0 or more steps at a positive rate, found {self.steps} at {self.lr}.")


class Adapted(NamedTuple):
    """What a support set leaves behind.

    Attributes:
        params: the adapted parameters of the network by name; empty where the network stays as it is.
        weight: `(N, D)` of a head on L2-normalised features; None after fine-tuning.
        bias: `(N,)` likewise.
    """

    params: dict[str, Tensor]
    weight: Tensor | None = None
    bias: Tensor | None = None


class Adapter:
    """Adapts one network to support sets of `ways` classes.

    Its methods run under `torch.func.vmap` but for the heads `linear` and `icfil`.

    A head for another number of classes than the network has is rebuilt from each support set (`prototype_weights`).
    The network itself is never changed.

    Args:
        network: any that `network_info` knows.
        ways: N, classes of a support set.
        how: head, batch norm, steps and rate.
        icfil: how `icfil` inverts and calibrates.

    Raises:
        ValueError: if the head must be rebuilt and the network's last layer is not linear.
    """

    def __init__(self, network: nn.Module, ways: int, how: Adaptation, icfil: ICFILConfig | None = None) -> None:
        self.ways, self.how, self.icfil = ways, how, icfil or ICFILConfig()
        self.rebuilds = how.head not in ON_FEATURES and network_info(network).num_classes != ways
        # Dropout is off in an evaluation; a copy leaves the caller's network in its own mode.
        self.network = copy.deepcopy(network).eval() if self.rebuilds or network.training else network
        if self.rebuilds:
            device = next(network.parameters()).device
            with torch.random.fork_rng(devices=[]):
                network_info(self.network).reset_classifier(ways)
            self.network.to(device)
        self.params = {name: value.detach() for name, value in self.network.named_parameters()}
        self.head_name = self._head_name() if self.rebuilds else ""
        self.loop = InnerLoop(how.steps, how.lr, how.bn, second_order=False)

    def fit(self, support: Tensor, labels: Tensor, *, under_vmap: bool = False) -> Adapted:
        """Adapt to a support set `(S, 3, H, W)` in [0, 1] with labels `(S,)` in 0..N-1; perhaps inside of `vmap`."""
        if self.how.head not in ON_FEATURES:
            params = self._start(support, labels)
            params = adapt(self.network, params, support, labels, self.loop, under_vmap=under_vmap)
            if self.how.head == "icfil":
                params = calibrate(self.network, params, support, labels, bn=self.how.bn, config=self.icfil)
            return Adapted(params)
        extract = mirrored(self.features) if self.how.head == "mirrored" else self.features
        features = F.normalize(extract(support), dim=-1)
        if self.how.head == "linear":
            return Adapted({}, *logistic_regression(features, labels))
        means = F.normalize(class_means(features, labels, self.ways), dim=-1)
        return Adapted({}, COSINE_SCALE * means, means.new_zeros(self.ways))

    def fit_each(self, support: Tensor, labels: Tensor) -> list[Adapted]:
        """`fit` to each of some support sets `(E, S, 3, H, W)` with the same labels; never inside of `vmap`."""
        if self.how.head != "finetune":
            return [self.fit(images, labels) for images in support]
        starts = [self._start(images, labels) for images in support]
        params = adapt_each(self.network, starts, support, labels.expand(len(support), -1), self.loop)
        return [Adapted(each) for each in params]

    def _start(self, support: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The parameters from which fine-tuning starts."""
        if not self.rebuilds:
            return self.params
        weight, bias = prototype_weights(self.features(support), labels, self.ways)
        return self.params | {f"{self.head_name}.weight": weight, f"{self.head_name}.bias": bias}

    def logits(self, adapted: Adapted, support: Tensor, query: Tensor, *, under_vmap: bool = False) -> Tensor:
        """Logits `(Q, N)` of queries `(Q, 3, H, W)` in [0, 1]; the support set is what `fit` was given."""
        if adapted.weight is None:
            return query_outputs(self.network, adapted.params, support, query, self.how.bn, under_vmap=under_vmap)
        extract = partial(
            query_outputs, self.network, self.params, bn=self.how.bn, features=True, under_vmap=under_vmap
        )
        features = (mirrored(extract) if self.how.head == "mirrored" else extract)(support, query)
        return F.linear(F.normalize(features, dim=-1), adapted.weight, adapted.bias)

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features `(B, D)`, under the batch's own statistics unless `bn` is `running`."""
        source: Literal["running", "batch"] = "running" if self.how.bn == "running" else "batch"
        return functional_forward(self.network, self.params, images, source=source, features=True)

    def _head_name(self) -> str:
        try:
            return network_info(self.network).linear_classifier()
        except ValueError as error:
            raise ValueError(
                f"Fine-tuning for {self.ways} classes needs one linear layer at the end; use head='prototype' or "
                f"head='linear'. {error}"
            ) from error


def mirrored(extract: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Features `(B, D)` of images together with those of their mirror images, each L2-normalised, from `extract`.

    All arguments are images `(..., W)` and are mirrored together.
    """

    def both(*images: Tensor) -> Tensor:
        views = (images, [part.flip(-1) for part in images])
        first, second = (F.normalize(extract(*view), dim=-1) for view in views)
        return first + second

    return both


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


def prototype_weights(features: Tensor, labels: Tensor, ways: int) -> tuple[Tensor, Tensor]:
    r"""A linear layer that ranks classes by the squared distance to their means: weights `(N, D)`, biases `(N,)`.

    Proto-MAML (Triantafillou et al., "Meta-Dataset", ICLR 2020, section 3) with two changes that leave the ranking as
    it is. The logits :math:`-s\lVert f - \mu_c\rVert^2` are taken relative to the mean of all classes. And :math:`s`
    makes the mean squared distance of two classes 1 (in the original :math:`s = 1`), so that fine-tuning starts from
    moderate probabilities whatever the length of the features. (5-shot 10-way on CIFAR-FS validation classes, one pool
    member, running statistics: 33 % before fine-tuning; after it 12 % with the original, 33 % with this.)
    """
    means = class_means(features, labels, ways)
    centre = means.mean(0)
    distance = 2 * ways / (ways - 1) * (means - centre).square().sum(-1).mean()
    scale = 1 / distance.clamp_min(1e-12)
    bias = centre.square().sum() - means.square().sum(-1)
    return 2 * scale * (means - centre), scale * bias


def logistic_regression(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `(N, D)` and biases `(N,)` of scikit-learn's `LogisticRegression` (C = 1) on features `(S, D)`."""
    from sklearn.linear_model import LogisticRegression

    basis = None
    if features.shape[0] < features.shape[1]:
        # The ridge penalty is the same in any orthonormal basis and the solution lies in the span of the support
        # features, so that S coordinates stand for D exactly.
        basis, coordinates = torch.linalg.qr(features.T.double())
        inputs = coordinates.T
    else:
        inputs = features.double()
    model = LogisticRegression(max_iter=1000).fit(inputs.cpu().numpy(), labels.cpu().numpy())
    weight = torch.from_numpy(model.coef_).to(inputs)
    bias = torch.from_numpy(model.intercept_).to(inputs)
    if len(weight) == 1:
        # Two classes have one logit, that of the second class against the first.
        weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
    if basis is not None:
        weight = weight @ basis.T
    return weight.to(features.dtype), bias.to(features.dtype)
