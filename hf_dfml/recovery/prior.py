"""A public network's batch-norm statistics as an image prior, for members that have no batch norm of their own.

Inversion of a network without batch norm (most transformers, ConvNeXt) has nothing that tells photographs from noise
which the member is as sure of. The statistics of any network that was trained on photographs do: their distance,
measured on the images that are recovered, stands in for the member's own (the setting of LoRA Recycle).
"""

from __future__ import annotations

from torch import Tensor

from hf_dfml.networks.info import network_info
from hf_dfml.pool.teacher import Teacher
from hf_dfml.recovery.objective import FurtherTerm, watch_batch_norm


class ImagePrior:
    """The prior of a network.

    Args:
        network: a frozen public network with batch norm.
        weight: of its distance, beside the other terms of the objective.

    Raises:
        ValueError: if the network has no batch norm.
    """

    def __init__(self, network: Teacher, weight: float) -> None:
        if not network_info(network.network).has_batch_norm:
            raise ValueError(
                f"{network.entry.id} ({network.architecture}) has no batch norm, and so no statistics for --prior: "
                "name a network that has, such as resnet18 or tf_efficientnet_lite0."
            )
        self.network, self.weight = network, weight

    def term(self, teacher: Teacher) -> FurtherTerm | None:
        """The term of recoveries from a member; None for one that has batch norm itself."""
        return None if network_info(teacher.network).has_batch_norm else self._distance

    def _distance(self, images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        """`weight` times R_BN of the prior's network on `(B, 3, H, W)` in [0, 1]."""
        with watch_batch_norm(self.network) as distance:
            self.network(images)
        return self.weight * distance.total(logits)
