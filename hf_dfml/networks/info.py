"""What a network says of itself, whichever library it comes from: timm, transformers, or this one (timm's API).

The only file that knows the differences between their networks.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Representation = Literal["features", "answers", "both"]
"""What a classifier on top of a network works with: penultimate features, the probabilities that a student of a pool
predicts its members to answer (`hf_dfml.learning.answers`), or both, each of length 1, side by side."""

REPRESENTATION_IN_WORDS: dict[Representation, str] = {
    "features": "features",
    "answers": "answers of the pool's members",
    "both": "features and answers of the pool's members, side by side",
}
"""For people who see the value alone."""


def network_info(network: nn.Module) -> NetworkInfo:
    """What `network` says of itself. Costs nothing: each answer is looked up when it is asked for.

    Args:
        network: an image classifier of timm's or ours, or a `...ForImageClassification` of transformers.

    Examples:
        >>> from hf_dfml.networks import create_network
        >>> info = network_info(create_network("conv4", num_classes=5, image_size=32))
        >>> info.image_size, info.num_features, list(info.classifiers), info.has_batch_norm
        (32, 128, ['fc'], True)
    """
    # Whoever has a network of transformers has its module loaded; importing it here would take seconds.
    modelling = sys.modules.get("transformers.modeling_utils")
    if modelling is not None and isinstance(network, modelling.PreTrainedModel):
        return TransformersInfo(network)
    return NetworkInfo(network)


def batch_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """The batch-norm layers of `network` by name; timm's fused batch norm and activation is one."""
    return {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}


def set_input(
    network: nn.Module, input_size: Sequence[int], mean: Sequence[float], std: Sequence[float], **further: Any
) -> None:
    """Note in `network` which images it takes: what `network_info` gives back.

    Args:
        network: any classifier.
        input_size: `(C, H, W)`.
        mean: per channel, of pixels in [0, 1].
        std: likewise.
        further: more keys of timm's `pretrained_cfg`.
    """
    known = vars(network).get("pretrained_cfg") or {}
    given = {"input_size": tuple(input_size), "mean": tuple(mean), "std": tuple(std)}
    vars(network)["pretrained_cfg"] = {**known, **further, **given}


def without_fused_attention(network: nn.Module) -> None:
    """Let a network of timm's compute attention step by step: PyTorch's fused kernels have no second derivative."""
    for module in network.modules():
        if "fused_attn" in vars(module):
            vars(module)["fused_attn"] = False


class NetworkInfo:
    """What a network with timm's API says of itself; `TransformersInfo` says the same of the others."""

    def __init__(self, network: nn.Module) -> None:
        self.network: Any = network

    @property
    def settings(self) -> Mapping[str, Any]:
        """Timm's `pretrained_cfg`: `architecture`, `input_size`, `mean`, `std` and more."""
        return self.network.pretrained_cfg

    @property
    def architecture(self) -> str:
        """Its name."""
        return self.settings["architecture"]

    @property
    def input_size(self) -> tuple[int, int, int]:
        """`(C, H, W)` of its images."""
        channels, height, width = self.settings["input_size"]
        return channels, height, width

    @property
    def image_size(self) -> int:
        """Height and width of its images, where they are square."""
        return int(self.input_size[-1])

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, of pixels in [0, 1]."""
        return tuple(self.settings["mean"])

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, of pixels in [0, 1]."""
        return tuple(self.settings["std"])

    @property
    def num_classes(self) -> int:
        """Length of its logits."""
        return int(self.network.num_classes)

    @property
    def answers(self) -> tuple[int, ...]:
        """Classes of each pool member whose answers its logits predict (`hf_dfml.learning.answers`); else empty."""
        return tuple(self.settings.get("answers", ()))

    @property
    def classifiers(self) -> dict[str, nn.Module]:
        """The last layer by name; two of a distilled network, which averages their logits."""
        found = self.network.get_classifier()
        layers = found if isinstance(found, tuple) else (found,)
        return {name: module for name, module in self.network.named_modules() if any(module is it for it in layers)}

    @property
    def num_features(self) -> int:
        """Length of the penultimate features."""
        layer = next(iter(self.classifiers.values()))
        if isinstance(layer, nn.Linear):
            return layer.in_features
        if isinstance(layer, nn.Conv2d):
            return layer.in_channels
        return int(self.network.head_hidden_size)

    @property
    def has_batch_norm(self) -> bool:
        """Whether any layer normalises by the statistics of a batch."""
        return bool(batch_norms(self.network))

    @property
    def patch_size(self) -> tuple[int, int] | None:
        """Height and width of the patches that the first layer cuts images into, in pixels of the network's input.

        None where its windows overlap, as they do in most convolutional networks.
        """
        channels = self.input_size[0]
        layers = (module for module in self.network.modules() if isinstance(module, nn.Conv2d))
        first = next((layer for layer in layers if layer.in_channels == channels), None)
        if first is None or first.kernel_size != first.stride or first.padding != (0, 0) or max(first.stride) == 1:
            return None
        height, width = first.stride
        return height, width

    def in_classifier(self, name: str) -> bool:
        """Whether the parameter or buffer `name` belongs to the last layer."""
        return name.startswith(tuple(f"{layer}." for layer in self.classifiers))

    def linear_classifier(self) -> str:
        """The name of the last layer.

        Raises:
            ValueError: if it is not one linear layer.
        """
        layers = self.classifiers
        (name, layer), *more = layers.items()
        if more or not isinstance(layer, nn.Linear):
            kinds = " and a ".join(type(layer).__name__ for layer in layers.values())
            raise ValueError(
                f"The last layer of {type(self.network).__name__} is a {kinds}: expected one Linear layer."
            )
        return name

    def reset_classifier(self, num_classes: int) -> None:
        """Give the network a fresh last layer of `num_classes` outputs, drawn from torch's global generator."""
        self.network.reset_classifier(num_classes)

    def logits(self, pixels: Tensor) -> Tensor:
        """Normalised images `(B, C, H, W)` -> logits `(B, num_classes)`."""
        return self.network(pixels)

    def features(self, pixels: Tensor) -> Tensor:
        """Normalised images `(B, C, H, W)` -> penultimate features `(B, num_features)`."""
        return self.network.forward_head(self.network.forward_features(pixels), pre_logits=True)

    def features_and_logits(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """What `features` and `logits` give, in one pass."""
        maps = self.network.forward_features(pixels)
        return self.network.forward_head(maps, pre_logits=True), self.network.forward_head(maps)

    def maps_and_features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `(B, C, h, w)` of the middle of the network, and what `features` gives, in one pass.

        The maps are the last ones that are larger than those of the end; of a network whose maps keep their size, such
        as a vision transformer, those after two thirds of its depth.

        Raises:
            ValueError: if the network does not say what is in its middle (timm's `forward_intermediates`).
        """
        if not hasattr(self.network, "forward_intermediates"):
            raise ValueError(
                f"{self.architecture} does not give the maps of its middle: use another network of timm's, or "
                "--train_student head, last_stage or all."
            )
        end, maps = self.network.forward_intermediates(pixels)
        places = [each.shape[-2] * each.shape[-1] for each in maps]
        larger = [each for each, count in zip(maps, places, strict=True) if count > places[-1]]
        middle = larger[-1] if larger else maps[2 * len(maps) // 3]
        return middle, self.network.forward_head(end, pre_logits=True)


class TransformersInfo(NetworkInfo):
    """What an image classifier of transformers says of itself (`TimmWrapperForImageClassification` included)."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What `set_input` noted; a wrapped timm network brings its own.

        Raises:
            ValueError: if there is nothing: a model of transformers does not hold its preprocessing.
        """
        noted = vars(self.network).get("pretrained_cfg")
        if noted is None and self.network.config.model_type == "timm_wrapper":
            noted = self.network.timm_model.pretrained_cfg
        if noted is None:
            raise ValueError(
                f"{type(self.network).__name__} does not hold the size, mean and std of its images (they are in its "
                "preprocessor_config.json): load it through a ModelPool, or call set_input(network, ...)."
            )
        return noted

    @property
    def architecture(self) -> str:
        """The class's name."""
        return type(self.network).__name__

    @property
    def num_classes(self) -> int:
        """Length of its logits."""
        return int(self.network.config.num_labels)

    @property
    def classifiers(self) -> dict[str, nn.Module]:
        """The last layer with one output per class: what it is given are the features.

        Raises:
            ValueError: if there is none.
        """
        outputs = self.num_classes
        found: dict[str, nn.Module] = {}
        for name, module in self.network.named_modules():
            if (isinstance(module, nn.Linear) and module.out_features == outputs) or (
                isinstance(module, nn.Conv2d) and module.out_channels == outputs
            ):
                found = {name: module}
        if not found:
            raise ValueError(
                f"{self.architecture} has no layer with {outputs} outputs, so that its features are unknown."
            )
        return found

    def reset_classifier(self, num_classes: int) -> None:
        """Give the network a fresh linear last layer of `num_classes` outputs."""
        name, width = self.linear_classifier(), self.num_features
        self.network.set_submodule(name, nn.Linear(width, num_classes))
        self.network.config.num_labels = self.network.num_labels = num_classes

    def logits(self, pixels: Tensor) -> Tensor:
        """Normalised images `(B, C, H, W)` -> logits `(B, num_classes)`."""
        return self.network(pixel_values=pixels).logits

    def features(self, pixels: Tensor) -> Tensor:
        """What the classifier is given, averaged over tokens or places: `(B, num_features)`."""
        return self.features_and_logits(pixels)[0]

    def features_and_logits(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """What `features` and `logits` give, in one pass."""
        seen: list[Tensor] = []
        (layer,) = self.classifiers.values()
        hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            logits = self.network(pixel_values=pixels).logits
        finally:
            hook.remove()
        given = seen[-1]
        if given.dim() == 4:
            return given.mean(dim=(2, 3)), logits
        return given.mean(dim=1) if given.dim() == 3 else given, logits
