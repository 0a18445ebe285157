"""The DCGAN-style generator that BiDf-MKD, FREE and TGR recover tasks with (that of CMI, Fang et al., IJCAI 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_dfml.utils.compiling import has_compiler


class UpsampledConv2d(nn.Conv2d):
    """A 3x3 convolution of what has been enlarged by two (nearest neighbours), as one transposed convolution.

    An enlarged image has each pixel four times, so that neighbouring weights of the kernel meet the same pixel and may
    be added first: a transposed convolution by a 4x4 kernel with stride two, of 16 products a pixel in place of 36. It
    takes 0.5 times as long on a CPU with 64 channels; the numbers are the same but for rounding.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`(B, in, H, W)` -> `(B, out, 2 H, 2 W)`."""
        box = self.weight.new_ones(1, 1, 2, 2)
        sums = F.conv2d(self.weight.flatten(0, 1)[:, None], box, padding=1).unflatten(0, self.weight.shape[:2])
        kernel = sums.squeeze(2).flip(2, 3).transpose(0, 1)
        return F.conv_transpose2d(input, kernel, self.bias, stride=2, padding=1)


class Generator(nn.Module):
    """A linear layer, two doublings of the resolution, a sigmoid.

    Args:
        latent_dim: length of the input (nz).
        width: channels of the last hidden layer (ngf); the first has twice as many.
        image_size: height and width of the images, divisible by 4.
        channels: of the images.
    """

    def __init__(self, latent_dim: int = 256, width: int = 64, image_size: int = 32, channels: int = 3) -> None:
        super().__init__()
        if image_size % 4:
            raise ValueError(f"The generator doubles twice: image_size must be divisible by 4, found {image_size}.")
        self.latent_dim, self.side = latent_dim, image_size // 4
        self.linear = nn.Linear(latent_dim, 2 * width * self.side**2)
        self.maps = nn.Sequential(
            nn.BatchNorm2d(2 * width),
            nn.Identity(),  # Keeps the numbers in the names of the layers.
            UpsampledConv2d(2 * width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2),
            nn.Identity(),
            UpsampledConv2d(2 * width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, channels, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, latent: Tensor) -> Tensor:
        """`(B, latent_dim)` -> images `(B, channels, image_size, image_size)` in [0, 1]."""
        maps = self.linear(latent).unflatten(1, (-1, self.side, self.side))
        if maps.device.type == "cpu":
            # Layers keep the layout; a pass, forward and backward, takes 0.6 times as long on a CPU.
            maps = maps.contiguous(memory_format=torch.channels_last)
        return self.maps(maps)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights: N(0, 0.02) for convolutions and the linear layer, N(1, 0.02) for batch-norm scales.

        The numbers are drawn on the CPU, so that they do not depend on the device.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                centre = 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0
                drawn = torch.randn(module.weight.shape, generator=generator)
                module.weight.copy_(centre + 0.02 * drawn)
                if module.bias is not None:
                    module.bias.zero_()
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()


def compile_generator(network: Generator) -> None:
    """Let `network` run compiled; the names of its weights stay. All generators of a shape share what is compiled.

    Raises:
        ValueError: on a CPU without a C++ compiler.
    """
    if next(network.parameters()).device.type == "cpu" and not has_compiler():
        raise ValueError(
            "A generator is compiled by a C++ compiler, and none was found: install g++, or do not compile."
        )
    network.compile()
