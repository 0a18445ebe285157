"""ICFIL: calibration of an adapted meta-model by images inverted from itself (PURER, CVPR 2023, at meta-test).

Inversion Calibration Following Inner Loop. There is no public code; what the paper's description leaves open has the
defaults of this file's `ICFILConfig`.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_dfml.evaluation.heads.base import Adapted
from hf_dfml.evaluation.heads.finetune import Finetune
from hf_dfml.learning.inner_loop import InnerLoop, Parameters, adapt
from hf_dfml.learning.optimisation import calibrate_batch_norm
from hf_dfml.networks.functional import BatchNorm, Source, functional_forward
from hf_dfml.networks.info import network_info
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.teacher import Teacher
from hf_dfml.recovery.inversion import RecoveryConfig, recover
from hf_dfml.recovery.task import Task
from hf_dfml.settings import Settings, option, part
from hf_dfml.utils.seeding import fork


class ICFILConfig(Settings):
    """How a pseudo support set is inverted from the adapted model, and how the model is calibrated by it.

    With 200 steps of inversion for each support set an evaluation takes minutes where fine-tuning takes seconds.
    """

    inversion: RecoveryConfig = part(
        RecoveryConfig,
        recovery="pixels",
        recovery_lr=0.25,
        images_per_class=5,
        bn_weight=0.01,
        tv_weight=1e-4,
        l2_weight=1e-5,
        shift=2,
        flip=False,
    )
    temperature: float = option(0.1, "tau of the contrastive loss.", above=0)
    calibration_steps: int = option(10, "Adam steps on all layers but the last.", least=0)
    calibration_lr: float = option(1e-3, "Learning rate of these steps.", above=0)
    head_steps: int = option(10, "SGD steps of the last layer on the support set after it.", least=0)
    head_lr: float = option(0.01, "Learning rate of these steps.", above=0)
    inversion_seed: int = option(0, "Seed of the inversion, the same for each support set.")


class ICFIL(Finetune):
    """SGD on all parameters, followed by the calibration; an optimiser with threads of its own takes one at a time."""

    name = "icfil"
    help = "SGD and PURER's calibration, slow"
    Options = ICFILConfig
    vectorises = False
    by_default = False
    compared_with = "finetune"

    def fit(self, support: Tensor, labels: Tensor, *, under_vmap: bool = False) -> Adapted:
        """As in the base class."""
        params = super().fit(support, labels, under_vmap=under_vmap)
        return calibrate(self.network, params, support, labels, bn=self.how.bn, config=self.options)  # type: ignore[arg-type]

    def fit_each(self, support: Tensor, labels: Tensor) -> list[Adapted]:
        """As in the base class."""
        return [self.fit(images, labels) for images in support]


def calibrate(
    network: nn.Module,
    params: Parameters,
    support: Tensor,
    labels: Tensor,
    *,
    bn: BatchNorm,
    config: ICFILConfig,
) -> Parameters:
    """Calibrate a network that has been adapted to a support set.

    1. Invert the adapted network to pseudo images of the same classes (episode inversion).
    2. Pull the features of the real images to the pseudo features of their class and from those of the others.
    3. Fit the last layer to the support set again.

    Args:
        network: whose forward pass is used; with a linear last layer. It is not changed.
        params: the adapted parameters by name.
        support: `(S, 3, H, W)` in [0, 1].
        labels: `(S,)` in 0..N-1.
        bn: whose statistics normalise the queries; all but `running` take the support set's here.
        config: steps, learning rates and weights.

    Returns:
        The calibrated parameters by name, without a graph.
    """
    source: Source = "running" if bn == "running" else len(support)
    with torch.enable_grad():
        pseudo = invert(network, params, support, labels, bn=bn, config=config)
        in_classifier = network_info(network).in_classifier
        body = {
            name: value.detach().clone().requires_grad_() for name, value in params.items() if not in_classifier(name)
        }
        optimizer = torch.optim.Adam(list(body.values()), config.calibration_lr)
        both = torch.cat([support, pseudo.images])
        for _ in range(config.calibration_steps):
            features = functional_forward(network, {**params, **body}, both, source=source, features=True)
            real, inverted = features[: len(support)], features[len(support) :]
            loss = contrastive_loss(real, labels, inverted, pseudo.labels, temperature=config.temperature)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    calibrated = {**params, **{name: value.detach() for name, value in body.items()}}
    loop = InnerLoop(config.head_steps, config.head_lr, bn, "head", second_order=False)
    return adapt(network, calibrated, support, labels, loop)


def invert(
    network: nn.Module, params: Parameters, support: Tensor, labels: Tensor, *, bn: BatchNorm, config: ICFILConfig
) -> Task:
    """Pseudo images of each class: the adapted network taken for a teacher.

    A meta-model that works on batch statistics stores none of its own. Its teacher then has those of the support set,
    under the adapted parameters.
    """
    adapted = copy.deepcopy(network)
    adapted.load_state_dict({**adapted.state_dict(), **{name: value.detach() for name, value in params.items()}})
    if bn != "running":
        calibrate_batch_norm(adapted, support)
    info = network_info(network)
    entry = PoolEntry(
        id="the adapted meta-model",
        num_classes=info.num_classes,
        input_size=info.input_size,
        mean=info.mean,
        std=info.std,
    )
    shots = int(labels.bincount().max())
    config = replace(config, images_per_class=max(config.inversion.images_per_class, shots))
    size = int(support.shape[-1])
    return recover(Teacher(entry, adapted), config.inversion, size, fork(config.inversion_seed, "icfil"))


def contrastive_loss(
    real: Tensor, real_labels: Tensor, pseudo: Tensor, pseudo_labels: Tensor, *, temperature: float
) -> Tensor:
    r"""How far real features are from the pseudo features of their own class, against those of the other classes.

    .. math:: -\frac1S \sum_i \log \frac{\exp(\cos(z_i, \hat z_{y_i}) / \tau)}{\sum_c \exp(\cos(z_i, \hat z_c) / \tau)}

    Args:
        real: anchors :math:`z_i`, `(S, D)`.
        real_labels: `(S,)` in 0..N-1.
        pseudo: `(P, D)`; :math:`\hat z_c` is the mean direction of class c.
        pseudo_labels: `(P,)` in 0..N-1; each class occurs.
        temperature: :math:`\tau`.

    Returns:
        A scalar.
    """
    ways = int(pseudo_labels.max()) + 1
    members = F.one_hot(pseudo_labels, ways).to(pseudo.dtype)
    centres = F.normalize(members.T @ F.normalize(pseudo, dim=-1), dim=-1)
    return F.cross_entropy(F.normalize(real, dim=-1) @ centres.T / temperature, real_labels)
