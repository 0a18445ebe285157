"""What a transformers member's `preprocessor_config.json` does to an image, in our convention: RGB pixels in [0, 1].

Every key is understood, is harmless, or is a reason to leave the member out: a teacher that is shown other pixels than
it was trained on gives wrong answers without an error.
"""

from __future__ import annotations

import re
from typing import Any

from hf_dfml.pool.entry import MemberError
from hf_dfml.pool.formats.checks import check_input

_UNDERSTOOD = frozenset(
    "size crop_size do_center_crop do_pad pad_size size_divisor resize_short do_rescale rescale_factor rescale_offset "
    "do_normalize image_mean image_std include_top do_flip_channel_order image_processor_type "
    "feature_extractor_type".split()
)
_HARMLESS = frozenset(
    # How an image comes to the member's size: here every image is resized to it as a whole.
    "do_resize resample interpolation crop_pct default_to_square do_thumbnail do_align_long_axis "
    # Images are RGB tensors with channels first already.
    "do_convert_rgb data_format input_data_format return_tensors num_channels "
    # Label maps of segmentation.
    "do_reduce_labels reduce_labels segmentation_maps "
    # Where and by which class it is run.
    "device disable_grouping use_fast backend processor_class _processor_class transformers_version model_input_names "
    "_valid_processor_keys".split()
)
# Processors of which a test compares our pixels with theirs. A type that is missing from a config is taken for one of
# them; a type that is not among them may do anything.
_KNOWN_TYPES = frozenset(
    "Beit Bit CLIP ConvNext DeiT Donut EfficientNet Levit MobileNetV1 MobileNetV2 MobileViT PPLCNet "
    "Perceiver PoolFormer Pvt Segformer Siglip TextNet ViT".split()
)
_OWN_KEYS = {
    "rescale_offset": ("EfficientNet",),
    "include_top": ("EfficientNet",),
    "do_flip_channel_order": ("MobileViT",),
    "resize_short": ("PPLCNet",),
    "size_divisor": ("PPLCNet", "TextNet"),
}
"""Keys that these processors alone know; the others pass them over."""
_CROPPING = frozenset("Bit CLIP DeiT Levit MobileNetV1 MobileNetV2 MobileViT PPLCNet Perceiver PoolFormer".split())
"""Those that crop unless they are told not to."""
_NEVER_CROPPING = frozenset(["Segformer"])
_ENLARGING = frozenset("Levit PoolFormer".split())
"""Those that make an image larger than the size that is told, for the crop that follows."""


def preprocessing(id: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The entry's `input_size`, `mean`, `std` and `channels`.

    Args:
        id: the member.
        settings: the content of its `preprocessor_config.json`.

    Raises:
        MemberError: if the file has a key, or a value, whose effect on the pixels is not known.
    """
    kind = _kind(id, settings)
    for key, value in settings.items():
        if value and key not in _UNDERSTOOD | _HARMLESS:
            raise MemberError(id, f"preprocessor_config.json sets '{key[:80]}', whose effect is not known")
        if value and key in _OWN_KEYS and kind is None:
            raise MemberError(id, f"preprocessor_config.json sets '{key}' but names no image_processor_type")
    settings = {key: value for key, value in settings.items() if kind in _OWN_KEYS.get(key, (kind,))}
    flips = kind == "PPLCNet" or _flag(settings, "do_flip_channel_order", kind == "MobileViT")
    # MobileViT's processor has a mean and a std but never applies them.
    normalises = kind != "MobileViT" and _flag(settings, "do_normalize", True)
    # pixels * scale + shift for each channel, which becomes (pixels - mean) / std with positive std.
    mean, std = [0.0] * 3, [1.0] * 3
    if normalises:
        mean, std = (_three(settings.get(key)) for key in ("image_mean", "image_std"))
    checked = check_input(id, [3, *_sides(id, settings, kind)], mean, std)
    scale = 255.0
    if _flag(settings, "do_rescale", True):
        factor = settings.get("rescale_factor", 1 / 255)
        if not isinstance(factor, int | float) or not 1e-6 < factor < 1e3:
            raise MemberError(id, f"rescale_factor is {factor!r}, expected a positive number")
        scale *= factor
    offset = 1.0 if settings.get("rescale_offset") else 0.0  # EfficientNet: pixels in [-1, 1].
    # EfficientNet for classification divides by the std once more.
    again = checked["std"]
    if not _flag(settings, "include_top", kind == "EfficientNet"):
        again = (1.0, 1.0, 1.0)
    elif not normalises:
        again = _three(settings.get("image_std"))
        again = check_input(id, checked["input_size"], mean, again)["std"]
    checked["mean"] = tuple((value + offset) / scale for value in checked["mean"])
    checked["std"] = tuple(value * more / scale for value, more in zip(checked["std"], again, strict=True))
    return checked | {"channels": "bgr" if flips else "rgb"}


def _kind(id: str, settings: dict[str, Any]) -> str | None:
    """The processor without the endings that its versions have had: `ViTImageProcessorFast` -> `ViT`."""
    name = settings.get("image_processor_type", settings.get("feature_extractor_type"))
    if name is None:
        return None
    kind = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", str(name))
    if kind not in _KNOWN_TYPES:
        raise MemberError(id, f"its images are made by '{str(name)[:80]}', whose effect is not known")
    return kind


def _flag(settings: dict[str, Any], key: str, default: bool) -> bool:
    return bool(settings.get(key, default))  # A null is no there, too.


def _sides(id: str, settings: dict[str, Any], kind: str | None) -> tuple[Any, Any]:
    """Height and width of what a square image becomes."""
    size, crops = settings.get("size", {}), _flag(settings, "do_center_crop", kind in _CROPPING)
    crops = crops and kind not in _NEVER_CROPPING
    if crops and not settings.get("crop_size"):
        raise MemberError(id, "preprocessor_config.json crops images (do_center_crop) but has no 'crop_size'")
    if kind in _ENLARGING and not crops:
        raise MemberError(id, f"preprocessor_config.json of {kind} without do_center_crop enlarges images")
    if crops and kind != "Perceiver":  # Which crops first and resizes afterwards.
        size = settings["crop_size"]
    elif kind == "PPLCNet":
        size = settings.get("resize_short") or 256
    sides = _height_and_width(size)
    if kind == "Donut" and not settings.get("do_pad", True) and sides[0] != sides[1]:
        raise MemberError(id, "preprocessor_config.json of Donut without do_pad shrinks images to their 'size'")
    divisor = settings.get("size_divisor") or (32 if kind == "TextNet" else 1)
    if not crops and any(isinstance(side, int) and isinstance(divisor, int) and side % divisor for side in sides):
        found = " x ".join(map(str, sides))
        raise MemberError(
            id, f"preprocessor_config.json has size_divisor {divisor} and a size of {found}, no multiple"
        )
    padded = settings.get("pad_size") if settings.get("do_pad") else None
    if padded and _height_and_width(padded) != sides:
        raise MemberError(id, "preprocessor_config.json pads images to another size (do_pad, pad_size)")
    return sides


def _height_and_width(size: Any) -> tuple[Any, Any]:
    if not isinstance(size, dict):
        return size, size
    edge = size.get("shortest_edge")
    return size.get("height", edge), size.get("width", edge)


def _three(values: Any) -> Any:
    return [values] * 3 if isinstance(values, int | float) else values
