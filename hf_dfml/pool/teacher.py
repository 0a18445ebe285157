"""A pool member as the methods see it: a frozen classifier of images in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hf_dfml.networks.folding import folded
from hf_dfml.networks.info import network_info
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.teacher_pool import Member
from hf_dfml.utils.images import resize, to_unit
from hf_dfml.utils.outside import about


class Teacher(Member, nn.Module):
    """A frozen member in eval mode that resizes and normalises images as it was trained with.

    Gradients flow to the images, never to the weights. `train()` changes nothing, so that batch norm always uses the
    member's running statistics, whatever module the teacher is put into.

    Args:
        entry: the member's metadata; needs `input_size`, `mean`, `std` and `num_classes`.
        network: its network: any that `network_info` knows.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, entry: PoolEntry, network: nn.Module) -> None:
        super().__init__()
        if entry.input_size is None or entry.mean is None or entry.std is None or entry.num_classes is None:
            raise ValueError(f"Member {entry.id} has no input size or normalisation yet: resolve its entry first.")
        self.entry = entry
        self.network = network
        self.register_buffer("mean", torch.tensor(entry.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(entry.std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the member is, and its logits will be."""
        return self.mean.device

    @property
    def architecture(self) -> str:
        """The network's name."""
        return self.entry.architecture or type(self.network).__name__

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: `(B, 3, h, w)` in [0, 1] (or uint8), of any size.

        Returns:
            Logits `(B, num_classes)`.
        """
        with about(self.entry.id):
            return network_info(self.network).logits(self._prepare(images))

    def features(self, images: Tensor) -> Tensor:
        """The penultimate features: `(B, 3, h, w)` in [0, 1] -> `(B, D)`, what the classifier layer is given."""
        with about(self.entry.id):
            return network_info(self.network).features(self._prepare(images))

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What `features` and the call give, `(B, D)` and `(B, num_classes)`, in one pass of the images."""
        with about(self.entry.id):
            return network_info(self.network).features_and_logits(self._prepare(images))

    def folded(self, *, watched: bool = False) -> Teacher:
        """The same member by fewer passes: batch norms are part of the convolutions before them where that can be.

        Args:
            watched: whether the statistics that its batch norms see will be asked for; see `folding.folded`.
        """
        image = self.mean.new_zeros(1, *self.entry.input_size)  # type: ignore[misc]
        return Teacher(self.entry, folded(self.network, lambda: self(image), watched=watched)).to(self.mean)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode: a member is never trained."""
        super().train(False)
        return self

    def _prepare(self, images: Tensor) -> Tensor:
        """What the network itself takes: images `(B, 3, h, w)` in its size and on its scale."""
        _, height, width = self.entry.input_size  # type: ignore[misc]
        pixels = (resize(to_unit(images), (height, width)) - self.mean) / self.std
        # Channels last: max pooling on a CPU is several times faster so. Permuted, as vmap knows no memory formats.
        return pixels.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) if pixels.device.type == "cpu" else pixels
