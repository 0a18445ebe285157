"""Pixels, and the one reader of images: files, their bytes, PIL images, arrays, tensors, cells of tables.

Pixels are float in [0, 1] at every public boundary, uint8 where many are stored. Whatever an image comes as,
`read_image` brings it to three channels:

| image | how it is read |
|---|---|
| 8 bits a channel, palette, CMYK | as RGB; grey has three equal channels |
| 16 bits | divided by 65,535 |
| integers of more bits | divided by 65,535 if the largest is from 256 to 65,535; others are refused |
| floats | as they are if in [0, 1]; others are refused |
| transparent | over white |
| with an EXIF orientation | upright |
| animated, several pages | the first frame of a file, the present frame of a PIL image |

Images of 8 bits are resized by Pillow to 8 bits, as in the preprocessing of timm and transformers, others as floats.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

ImageLike = Tensor | np.ndarray | Image.Image | Path | str | bytes | Mapping[str, Any]
"""A tensor `(C, H, W)` or a NumPy array `(H, W, C)` or `(H, W)` of 1 or 3 channels; a PIL image of any mode; an image
file or its bytes; or a table's cell that is not decoded, `{"bytes": ..., "path": ...}`."""

MAX_PIXELS = 1 << 27
"""Of one image, 134 million: a small file can hold many more, and its pixels would fill the memory."""

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Those of Pillow that are read (JPEG includes the MPO of phones); decoders of others start programs or are rare."""

UNREADABLE = {
    **dict.fromkeys((".heic", ".heif"), "convert HEIC files to JPEG or PNG"),
    ".avif": "convert AVIF files to JPEG or PNG",
    **dict.fromkeys((".svg", ".svgz"), "export SVG drawings as PNG"),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw"), "export raw camera files as JPEG"),
    **dict.fromkeys((".psd", ".xcf", ".eps", ".pdf", ".ai"), "export drawings and documents as PNG"),
}
"""What to do with files of these endings, which are not read."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by the value of the EXIF tag `Orientation`."""
_ORIENTATION = 0x0112


def to_unit(images: Tensor) -> Tensor:
    """uint8 pixels -> float in [0, 1], same shape; floats are returned as they are.

    Raises:
        ValueError: for pixels of another type, whose range is not known.
    """
    if images.is_floating_point():
        return images
    if images.dtype != torch.uint8:
        raise ValueError(f"Images are {images.dtype}: expected floats in [0, 1], or uint8 from 0 to 255.")
    return images.float() / 255


def to_uint8(images: Tensor) -> Tensor:
    """Float in [0, 1] -> uint8 pixels, rounded to the nearest level, same shape; uint8 is returned as it is."""
    if images.dtype == torch.uint8:
        return images
    return (images.detach() * 255).round_().clamp_(0, 255).to(torch.uint8)


def resize(images: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Bilinear, antialiased, differentiable resize of `(B, C, H, W)` floats; a no-op where the size fits already.

    Args:
        images: `(B, C, H, W)`.
        size: the new `(height, width)`, or one number for both.
    """
    target = (size, size) if isinstance(size, int) else tuple(size)
    if tuple(images.shape[-2:]) == target:
        return images
    return F.interpolate(images, size=target, mode="bilinear", align_corners=False, antialias=True)


def read_image(
    item: ImageLike, size: tuple[int, int] | None = None, *, name: str = "The image", max_pixels: int = MAX_PIXELS
) -> Tensor:
    """One image of any kind, as the module's docstring states.

    Args:
        item: the image.
        size: height and width that it is resized to (bilinear, antialiased, without keeping its aspect), or None.
        name: what errors call an image that is no file.
        max_pixels: height times width that a file may have.

    Returns:
        `(3, H, W)`: uint8 of an image of 8 bits a channel, else float32 in [0, 1].

    Raises:
        ValueError: if it cannot be read, has other channels, or pixels outside their range.
        TypeError: for anything but an image.
        FileNotFoundError: for a path where there is nothing.
    """
    if isinstance(item, Mapping) and {"bytes", "path"} & set(item):
        item = item["path"] if item.get("bytes") is None else item["bytes"]  # type: ignore[assignment]
    if isinstance(item, np.ndarray):
        item = channels_first(item)
    if isinstance(item, Tensor):
        if item.dim() != 3:
            raise ValueError(f"{name} has the shape {tuple(item.shape)}: expected a tensor (C, H, W).")
        return read_pixels(item[None], size or (item.shape[1], item.shape[2]), name)[0]
    if item is None:
        raise ValueError(f"{name} is missing (None): leave it out.")
    if not isinstance(item, Image.Image | str | Path | bytes):
        kinds = "a tensor, a NumPy array, a PIL image, a path or the bytes of a file"
        raise TypeError(f"{name} is not an image: expected {kinds}, found a {type(item).__name__}.")
    name = str(item) if isinstance(item, str | Path) else name
    try:
        return _from_pil(item, size) if isinstance(item, Image.Image) else _from_file(item, size, max_pixels)
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to.
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        raise ValueError(f"{name} is not readable as an image: {reason}.") from error


def read_pixels(images: Tensor, size: tuple[int, int], name: str = "The image") -> Tensor:
    """Tensors by the same rules: `(B, C, H, W)` of 1 or 3 channels -> `(B, 3, *size)`; see `read_image`."""
    if images.shape[1] not in (1, 3):
        raise ValueError(
            f"{name} has {images.shape[1]} channels (shape {tuple(images.shape)}): expected 3 (RGB) or 1 (grey), "
            "before height and width. Of RGBA give a PIL image, or leave out the fourth channel."
        )
    if not images.numel():
        raise ValueError(f"There are no images: found the shape {tuple(images.shape)}.")
    images = images.expand(-1, 3, -1, -1)
    if images.dtype != torch.uint8:
        try:
            return resize(_in_unit(images), size).clamp(0, 1)
        except ValueError as error:
            raise ValueError(f"{name} cannot be used: {error}.") from None
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    arrays = images.cpu().permute(0, 2, 3, 1).contiguous().numpy()
    return torch.stack([_from_rgb(Image.fromarray(array), size) for array in arrays]).to(images.device)


def channels_first(array: np.ndarray) -> Tensor:
    """`(H, W)`, `(H, W, C)` or `(B, H, W, C)` -> `(1, H, W)`, `(C, H, W)` or `(B, C, H, W)`.

    Raises:
        ValueError: for another shape, or values that are no numbers.
    """
    if array.ndim not in (2, 3, 4) or (array.ndim > 2 and array.shape[-1] not in (1, 3)):
        raise ValueError(
            f"A NumPy image is (H, W, C) with 1 or 3 channels, or (H, W), and a batch (B, H, W, C); found the shape "
            f"{array.shape}. Channels come first in a torch tensor only; of RGBA give a PIL image, or array[..., :3]."
        )
    if array.dtype.kind not in "biuf":
        raise ValueError(f"Pixels are {array.dtype}: expected uint8, or floats in [0, 1].")
    # Long integers and long floats are unknown to torch; the copy is plain, as an array may be read-only or mirrored.
    kinds = {"u": np.int64 if array.itemsize > 2 else array.dtype.newbyteorder("="), "f": np.float32}
    pixels = torch.from_numpy(np.array(array, kinds.get(array.dtype.kind, array.dtype.newbyteorder("=")), order="C"))
    return pixels[None] if array.ndim == 2 else pixels.movedim(-1, -3)


def what_else(head: bytes) -> str | None:
    """What a file is of which no image can be read, by its first bytes, and what to do; None if that is not known."""
    start = head[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer: fetch the file with `git lfs pull`"
    if head[4:8] == b"ftyp":
        return UNREADABLE[".avif" if head[8:12] in (b"avif", b"avis") else ".heic"]
    if b"<svg" in start:
        return UNREADABLE[".svg"]
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is a web page: download the image itself"
    return None


def _from_file(item: str | Path | bytes, size: tuple[int, int] | None, max_pixels: int) -> Tensor:
    """An image file, or its bytes; errors are reasons, to which the name is added."""
    path = None if isinstance(item, bytes) else Path(item)
    if path and not path.is_file():
        raise FileNotFoundError(f"There is no image file {path}.")
    with open(path, "rb") if path else io.BytesIO(item) as file:  # type: ignore[arg-type]
        if reason := what_else(file.read(256)):
            raise ValueError(reason)
        file.seek(0)
        try:
            image = Image.open(file, formats=FORMATS)
        except Image.UnidentifiedImageError:
            suffix = path.suffix.lower() if path else ""
            raise ValueError(UNREADABLE.get(suffix, f"expected one of the formats {', '.join(FORMATS)}")) from None
        if image.width * image.height > max_pixels:
            raise ValueError(
                f"an image of {image.width} x {image.height} pixels is too large: {max_pixels} pixels are the limit"
            )
        return _from_pil(image, size)


def _from_pil(image: Image.Image, size: tuple[int, int] | None) -> Tensor:
    """A PIL image of any mode."""
    image.load()  # First, as some decoders turn the image themselves.
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    if turn is not None:
        image = image.transpose(turn)
    size = size or (image.height, image.width)
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.array(image)
        values = values.astype(values.dtype.newbyteorder("="))
        pixels = _in_unit(torch.from_numpy(values).expand(1, 3, -1, -1))
        if isinstance(clear := image.info.get("transparency"), int):  # A level that a grey PNG of 16 bits may name.
            pixels = pixels.masked_fill(torch.from_numpy(values == clear), 1.0)
        return resize(pixels, size).clamp(0, 1)[0]
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        paper = Image.new("RGB", image.size, "white")
        paper.paste(image, mask=image)
        return _from_rgb(paper, size)
    return _from_rgb(image.convert("RGB"), size)


def _from_rgb(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """`(3, *size)` uint8 of a PIL image in mode RGB."""
    if image.size != (size[1], size[0]):
        # Pillow widens the bilinear filter with the reduction, which is what "antialiased" means elsewhere.
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # A copy, because Pillow's array is read-only.


def _in_unit(images: Tensor) -> Tensor:
    """Pixels of another type than uint8 as float32 in [0, 1]; errors are reasons, to which the name is added."""
    if images.dtype == torch.bool:
        return images.float()
    kind = str(images.dtype).removeprefix("torch.")
    if images.is_complex():
        raise ValueError(f"pixels are {kind}: expected floats in [0, 1], or uint8")
    values = images.float()
    if images.dtype == torch.uint16:
        return values / 65535
    low, high = values.amin().item(), values.amax().item()
    if images.is_floating_point():
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise ValueError(
                f"pixels range from {low:.3g} to {high:.3g}: expected floats in [0, 1]. Divide those from 0 to 255 by "
                "255, and do not normalise them: the model does"
            )
        return values
    if low < 0 or high < 256 or high > 65535:
        raise ValueError(
            f"pixels are {kind} from {low:.0f} to {high:.0f}, which does not say whether they have 8 or 16 bits: "
            "convert them to uint8 (0 to 255) or uint16 (0 to 65,535)"
        )
    return values / 65535
