"""Residual networks: ResNet-10 and -18 of Chen et al. (ICLR 2019) with a CIFAR stem, and ResNet-12."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hf_dfml.networks.timm_network import TimmNetwork, build_with_settings, default_settings, register


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (a 1x1 convolution where the number of channels changes)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU()
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` -> `(B, C', H // stride, W // stride)`."""
        out = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        return self.act(out + self.downsample(x))


class PooledBlock(nn.Module):
    """Three 3x3 convolutions, a shortcut, 2x2 max pooling: the block of ResNet-12."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 2) -> None:
        super().__init__()
        channels = (in_channels, out_channels, out_channels)
        self.convs = nn.ModuleList(nn.Conv2d(c, out_channels, 3, padding=1, bias=False) for c in channels)
        self.bns = nn.ModuleList(nn.BatchNorm2d(out_channels) for _ in channels)
        self.act = nn.LeakyReLU(0.1)
        self.downsample = _shortcut(in_channels, out_channels, 1)
        self.pool = nn.MaxPool2d(stride)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` -> `(B, C', H // stride, W // stride)`."""
        out = x
        for index, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            out = bn(conv(out))
            if index < 2:
                out = self.act(out)
        return self.pool(self.act(out + self.downsample(x)))


class ResNet(TimmNetwork):
    """A stem, four stages, global average pooling, a linear classifier, with timm's API.

    Args:
        block: `BasicBlock` or `PooledBlock`.
        depths: blocks of each stage.
        stem: whether a convolution and batch norm (stride 1, neither ReLU nor pooling) come first.
        strides: of the first block of each stage.
        num_classes: outputs; 0 for none.
        in_chans: input channels.
        widths: channels of each stage.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[PooledBlock],
        depths: tuple[int, ...],
        stem: bool,
        strides: tuple[int, ...],
        num_classes: int = 5,
        in_chans: int = 3,
        widths: tuple[int, ...] = (64, 128, 256, 512),
    ) -> None:
        super().__init__()
        channels = widths[0] if stem else in_chans
        self.stem = (
            nn.Sequential(nn.Conv2d(in_chans, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels))
            if stem
            else nn.Identity()
        )
        stages = []
        for depth, stride, width in zip(depths, strides, widths, strict=True):
            blocks = [block(channels, width, stride), *(block(width, width, 1) for _ in range(depth - 1))]
            stages.append(nn.Sequential(*blocks))
            channels = width
        self.stages = nn.Sequential(*stages)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.num_features = self.head_hidden_size = channels
        self.reset_classifier(num_classes)
        self.draw_convolutions()

    def forward_features(self, x: Tensor) -> Tensor:
        """`(B, 3, H, W)` -> maps of the last stage."""
        return self.stages(self.stem(x))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


def _resnet(variant: str, pretrained: bool, pretrained_cfg: Any = None, **kwargs: Any) -> ResNet:
    # Fully convolutional: the network takes images of any size.
    settings = default_settings(classifier="fc", first_conv="stem.0") | {"fixed_input_size": False}
    kwargs.pop("img_size", None)
    return build_with_settings(ResNet, variant, pretrained, pretrained_cfg=pretrained_cfg or settings, **kwargs)


@register
def resnet10(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-10 with a CIFAR stem."""
    return _resnet(
        "resnet10", pretrained, block=BasicBlock, depths=(1,) * 4, stem=True, strides=(1, 2, 2, 2), **kwargs
    )


@register
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-18 with a CIFAR stem."""
    return _resnet(
        "resnet18_cifar", pretrained, block=BasicBlock, depths=(2,) * 4, stem=True, strides=(1, 2, 2, 2), **kwargs
    )


@register
def resnet12(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-12 of the few-shot literature, 64-128-256-512 channels."""
    return _resnet(
        "resnet12", pretrained, block=PooledBlock, depths=(1,) * 4, stem=False, strides=(2, 2, 2, 2), **kwargs
    )
