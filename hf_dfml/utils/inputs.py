"""Images as people have them (files, PIL images, arrays, tensors, cells of tables) -> one batch in [0, 1].

Whatever way an image comes, it is read by `open_image` and `rgb`:

| what it is | how it is read |
|---|---|
| 8 bits a channel, palettes, CMYK | as RGB; grey has three equal channels |
| 16 bits, and 32-bit integers from 0 to 65,535 | divided by 65,535 |
| floats | as they are, in [0, 1]; others are refused |
| transparent | over white |
| with an EXIF orientation | upright |
| animated | its first frame |
"""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from hf_dfml.utils.images import resize, to_unit

logger = logging.getLogger(__name__)

ImageLike = Tensor | np.ndarray | Image.Image | Path | str
"""A tensor `(C, H, W)` or a NumPy array `(H, W, C)` or `(H, W)`, float in [0, 1] or uint8, of 1 or 3 channels; or a
PIL image of any mode, or an image file."""

Images = Tensor | np.ndarray | Sequence[ImageLike] | ImageLike
"""A batch `(B, C, H, W)` (NumPy: `(B, H, W, C)`), a sequence of images, one image, or a folder of image files."""

UNREADABLE = {f".{kind.lower()}": kind for kind in ("HEIC", "HEIF", "AVIF", "SVG", "RAW", "DNG", "CR2")}
"""Images that Pillow does not read by itself, by the end of their names."""

_FAULTS = (OSError, SyntaxError, ValueError, struct.error, EOFError, Image.DecompressionBombError)
"""What Pillow raises for a file that is no image, is damaged, or is too large."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


def as_batch(images: Images, size: tuple[int, int]) -> Tensor:
    """Images of any sizes and kinds as one batch.

    Args:
        images: see `Images`; the files of a folder are taken in the order of `list_images`.
        size: height and width that each is resized to (bilinear, antialiased, without keeping its aspect). Files and
            PIL images are resized by Pillow to 8 bits a channel, as in the preprocessing of timm and transformers.

    Returns:
        `(B, 3, H, W)` float in [0, 1]; grey images have three equal channels.

    Raises:
        ValueError: for another number of channels, pixels outside [0, 1], a file that is no image, or no image at all.
        TypeError: for anything but an image.
        FileNotFoundError: for a path where there is nothing.
    """
    if isinstance(images, str | Path) and Path(images).is_dir():
        images = list_images(images)
    if isinstance(images, np.ndarray):
        images = _channels_first(images)
    if isinstance(images, Tensor) and images.dim() == 4:
        return resize(_as_unit(images), size).clamp(0, 1)
    items = [images] if isinstance(images, Tensor | Image.Image | str | Path) else list(images)
    if not items:
        raise ValueError("There are no images: expected at least one.")
    return torch.cat([resize(_as_unit(_read(item, size)), size).clamp(0, 1) for item in items])


def read_files(files: Sequence[Path], size: tuple[int, int]) -> tuple[Tensor, list[Path]]:
    """Those of some image files that can be read; a warning names each of the others.

    Args:
        files: the files.
        size: as in `as_batch`.

    Returns:
        A batch as `as_batch` gives it, and the files that it is of.

    Raises:
        ValueError: if none can be read.
        FileNotFoundError: if one does not exist.
    """
    batches, kept = [], []
    problem = "there are none"
    for file in files:
        try:
            batches.append(as_batch([file], size))
            kept.append(file)
        except ValueError as error:
            problem = str(error)
            logger.warning("Left out: %s", problem)
    if not batches:
        raise ValueError(f"None of the {len(files)} image files can be read: {problem}")
    return torch.cat(batches), kept


def list_images(folder: Path | str) -> list[Path]:
    """The image files of a folder, sorted by name; other files and sub-folders are passed over.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no image file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    files = _image_files(folder)
    if not files:
        raise ValueError(
            f"The folder {folder} holds no image: expected files such as {', '.join(SUFFIXES[:3])} in it (its "
            "sub-folders are not searched)."
        )
    return files


def list_class_folders(folder: Path | str) -> tuple[list[Path], list[str]]:
    """The image files below a folder of class folders and the class of each, which is its folder's name.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has no sub-folders, or a class has no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}: expected one with a folder of images for each class.")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise ValueError(
            f"{folder} has no class folders: expected one folder of images for each class, such as {folder.name}/cat."
        )
    files: list[Path] = []
    labels: list[str] = []
    for path in classes:
        found = _image_files(path)
        if not found:
            raise ValueError(f"Class '{path.name}' has no image in {path}: add at least one, or remove the folder.")
        files += found
        labels += [path.name] * len(found)
    return files, labels


def _image_files(folder: Path) -> list[Path]:
    """Image files of a folder, sorted by name; a warning names the other files, but for hidden ones."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    for path in files:
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            kind = UNREADABLE.get(suffix)
            reason = (
                f"convert {kind} files to JPEG or PNG" if kind else f"names of images end in {', '.join(SUFFIXES)}"
            )
            logger.warning("Left out: %s: %s", path, reason)
    return [path for path in files if path.suffix.lower() in SUFFIXES]


def _read(item: object, size: tuple[int, int]) -> Tensor:
    """One image as `(1, C, H, W)`, of the wanted size if Pillow resizes it."""
    if isinstance(item, Tensor):
        if item.dim() != 3:
            raise ValueError(f"An image is a tensor (C, H, W), found one of shape {tuple(item.shape)}.")
        return item[None]
    if isinstance(item, np.ndarray):
        return _read(_channels_first(item), size)
    if isinstance(item, Image.Image | bytes | dict | str | Path):
        pixels = rgb(open_image(item), name=str(item) if isinstance(item, str | Path) else "The image")
        return as_timm_resizes(pixels, size)[None]
    raise TypeError(f"Expected a tensor, a NumPy array, a PIL image or a path, found a {type(item).__name__}.")


def open_image(item: Image.Image | bytes | dict[str, Any] | Path | str) -> Image.Image:
    """The decoded image of a file, of its bytes, of a table's cell (`{"bytes": ..., "path": ...}`), or as it is.

    Raises:
        ValueError: if it cannot be decoded, or has more pixels than Pillow's limit against decompression bombs.
        FileNotFoundError: if there is no such file.
    """
    if isinstance(item, dict):
        content = item.get("bytes")
        item = content if content is not None else str(item.get("path") or "")
    if isinstance(item, Image.Image):
        return item
    name = "The image" if isinstance(item, bytes) else str(item)
    if not isinstance(item, bytes):
        path = Path(item)
        if not path.is_file():
            raise FileNotFoundError(f"There is no image file {path}.")
        if path.suffix.lower() in UNREADABLE:
            raise ValueError(
                f"{path} is not readable: convert {UNREADABLE[path.suffix.lower()]} files to JPEG or PNG."
            )
    try:
        with Image.open(io.BytesIO(item) if isinstance(item, bytes) else item) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except _FAULTS as error:
        raise ValueError(f"{name} is not readable as an image: {' '.join(str(error).split())[:200]}") from error


def rgb(image: Image.Image, name: str = "The image") -> Tensor:
    """`(3, H, W)` of a PIL image of any mode: uint8, or float in [0, 1] where it has more than 8 bits a channel.

    Raises:
        ValueError: if floats are outside [0, 1], or integers outside 16 bits.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.array(image).astype(np.float32)
        top = 1.0 if image.mode == "F" else 65535.0
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= top):
            kind = "floats in [0, 1]" if image.mode == "F" else "integers from 0 to 65,535"
            raise ValueError(f"{name} has pixels from {low:g} to {high:g}: expected {kind}; scale it first.")
        return torch.from_numpy(values / top)[None].expand(3, -1, -1)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # A copy, because Pillow's array is read-only.
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def as_timm_resizes(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """`(3, h, w)` of pixels `(3, H, W)`: those of 8 bits by Pillow, whose filter widens with the reduction; floats as
    they are.
    """
    if pixels.dtype != torch.uint8 or tuple(pixels.shape[1:]) == size:
        return pixels
    plain = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    # A copy, because Pillow's array is read-only.
    return torch.from_numpy(np.array(plain.resize(size[::-1], Image.Resampling.BILINEAR))).permute(2, 0, 1)


def as_labels(labels: Sequence[Hashable] | Tensor | np.ndarray) -> list[Any]:
    """One label an image, as Python's own values: numbers of tensors and arrays become numbers.

    Raises:
        ValueError: for one-hot rows, columns `(S, 1)`, or labels that are missing (NaN).
        TypeError: for labels that cannot be compared, such as lists.
    """
    if isinstance(labels, Tensor | np.ndarray) and labels.ndim != 1:
        raise ValueError(
            f"Labels have the shape {tuple(labels.shape)}: expected one label an image, (S,); of one-hot rows give "
            "labels.argmax(1)."
        )
    names = [name.item() if isinstance(name, Tensor | np.generic) else name for name in labels]
    for index, name in enumerate(names):
        if not isinstance(name, Hashable):
            raise TypeError(
                f"Label {index} is a {type(name).__name__}: expected text, a number, or another single value."
            )
        if name != name:
            raise ValueError(f"Label {index} is missing ({name}): give every image a label, or leave the image out.")
    return names


def _channels_first(array: np.ndarray) -> Tensor:
    """`(H, W)`, `(H, W, C)` or `(B, H, W, C)` -> `(1, H, W)`, `(C, H, W)` or `(B, C, H, W)`."""
    if array.ndim not in (2, 3, 4) or (array.ndim > 2 and array.shape[-1] not in (1, 3)):
        raise ValueError(
            f"A NumPy image is (H, W, C) with 1 or 3 channels, or (H, W), and a batch (B, H, W, C); found the shape "
            f"{array.shape}. Channels come first in a torch tensor only."
        )
    # A copy in plain order: the array may be read-only or mirrored.
    pixels = torch.from_numpy(np.array(array, order="C"))
    return pixels[None] if array.ndim == 2 else pixels.movedim(-1, -3)


def _as_unit(images: Tensor) -> Tensor:
    """`(B, C, H, W)` of 1 or 3 channels -> `(B, 3, H, W)` float in [0, 1]."""
    if images.shape[1] not in (1, 3):
        raise ValueError(
            f"Images have {images.shape[1]} channels (shape {tuple(images.shape)}): expected 3 (RGB) or 1 (grey), "
            "before height and width."
        )
    if not images.numel():
        raise ValueError(f"There are no images: found a tensor of shape {tuple(images.shape)}.")
    if images.dtype == torch.uint8:
        images = to_unit(images)
    elif not images.is_floating_point():
        raise ValueError(f"Images are {images.dtype}: expected floats in [0, 1], or uint8.")
    else:
        images = images.float()
        low, high = images.amin().item(), images.amax().item()
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise ValueError(
                f"Pixels range from {low:.3g} to {high:.3g}: expected floats in [0, 1]; the model normalises them."
            )
    return images.expand(-1, 3, -1, -1)
