"""One reader: an image has the same pixels by every route; what cannot be read is refused with a reason."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hf_dfml.utils.images import FORMATS, UNREADABLE, read_image
from hf_dfml.utils.inputs import as_batch

SIZE = (7, 5)
TURNS = {1: 0, 3: 2, 6: -1, 8: 1}
"""Quarter turns, counter-clockwise, that make an image upright, by its EXIF orientation."""


def drawn(seed: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", orientation: int | None = None) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    image.save(file, kind, **({"exif": exif} if orientation else {}))
    return file.getvalue()


def read(item) -> torch.Tensor:
    """At its own size, which is `SIZE`."""
    return read_image(item, SIZE)


def routes(content: bytes, folder: Path) -> list:
    """All ways to hand over an encoded image."""
    (folder / "x.bin").write_bytes(content)
    return [
        content,
        folder / "x.bin",
        str(folder / "x.bin"),
        Image.open(io.BytesIO(content)),
        {"bytes": content, "path": None},
        {"bytes": None, "path": str(folder / "x.bin")},
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("routes")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"]),
    kind=st.sampled_from(["PNG", "TIFF"]),
    orientation=st.sampled_from([None, *TURNS]),
)
def test_every_route_gives_the_same_pixels(folder, seed, shape, mode, kind, orientation):
    image = Image.fromarray(drawn(seed, *shape, 4)).convert(mode)
    content = encoded(image, "TIFF" if mode == "CMYK" else kind, orientation)
    found = [as_batch([item], SIZE) for item in routes(content, folder)]
    assert all(torch.equal(batch, found[0]) for batch in found)
    if mode in ("L", "RGB"):  # Of these an array or a tensor holds all that the file holds.
        array = np.rot90(np.array(image), TURNS[orientation or 1])
        tensor = torch.from_numpy(array.copy())
        tensor = tensor[None] if mode == "L" else tensor.permute(2, 0, 1)
        for item in (array, [array], array[None] if mode == "RGB" else array, tensor, tensor[None]):
            assert torch.equal(as_batch(item, SIZE), found[0])
        # Resized as floats, rounded to no level: a level apart at most.
        torch.testing.assert_close(as_batch(tensor.float() / 255, SIZE), found[0], atol=1.01 / 255, rtol=0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), top=st.sampled_from([300, 4095, 65535]))
def test_sixteen_bits_are_the_same_in_files_arrays_and_tensors(folder, seed, top):
    values = np.random.default_rng(seed).integers(0, top + 1, SIZE, dtype=np.uint16)
    values[0, 0] = top
    expected = torch.from_numpy(values.astype(np.float32) / 65535).expand(3, -1, -1)
    pgm = b"P5 5 7 65535\n" + values.astype(">u2").tobytes()
    for content in (encoded(Image.fromarray(values)), encoded(Image.fromarray(values), "TIFF"), pgm):
        assert all(torch.equal(read(item), expected) for item in routes(content, folder))
    assert torch.equal(read(encoded(Image.fromarray(values.astype(np.int32)), "TIFF")), expected)
    for kind in (np.uint16, ">u2", np.int32, np.uint32, np.int64):
        assert torch.equal(read(values.astype(kind)), expected)
    for dtype in (torch.uint16, torch.int32, torch.int64):
        assert torch.equal(read(torch.from_numpy(values.astype(np.int64)).to(dtype)[None]), expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999))
def test_floats_are_the_same_in_files_arrays_and_tensors(folder, seed):
    values = np.random.default_rng(seed).random(SIZE, dtype=np.float32)
    expected = torch.from_numpy(values).expand(3, -1, -1)
    for item in (*routes(encoded(Image.fromarray(values), "TIFF"), folder), Image.fromarray(values)):
        assert torch.equal(read(item), expected)
    for item in (values, values.astype(np.float64), torch.from_numpy(values)[None]):
        assert torch.equal(read(item), expected)


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0.0, 255.0]], np.float32),
        np.array([[-2.1, 2.6]], np.float32),
        np.array([[0.0, np.nan]], np.float32),
        np.array([[0, 255]], np.int32),
        np.array([[-1, 300]], np.int32),
        np.array([[0, 70000]], np.int32),
    ],
)
def test_pixels_of_an_unknown_range_are_refused_by_every_route(folder, values):
    content = encoded(Image.fromarray(values), "TIFF")
    tensor = torch.from_numpy(values)[None]
    for item in (*routes(content, folder), values, tensor):
        with pytest.raises(ValueError, match="pixels (range|are).*(Divide|convert them to uint8)"):
            read(item)


def test_eight_bits_are_resized_as_pillow_does_by_every_route():
    array = drawn(0, 20, 30)
    expected = np.array(Image.fromarray(array).resize((5, 7), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for item in (encoded(Image.fromarray(array)), Image.fromarray(array), array, tensor):
        assert np.array_equal(read(item).numpy(), expected)
    assert np.array_equal((as_batch(tensor[None], SIZE)[0] * 255).round().numpy(), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(orientation):
    upright = drawn(1, *SIZE)
    lying = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    content = encoded(Image.fromarray(np.ascontiguousarray(lying)), orientation=orientation)
    assert np.array_equal(read(content).permute(1, 2, 0).numpy(), upright)
    assert np.array_equal(read(Image.open(io.BytesIO(content))).permute(1, 2, 0).numpy(), upright)


def test_what_is_transparent_lies_over_white():
    clear = Image.new("RGBA", SIZE[::-1], (200, 0, 0, 0))
    half = Image.new("RGBA", SIZE[::-1], (0, 0, 0, 128))
    palette = Image.new("P", SIZE[::-1], 3)
    palette.putpalette([0] * 768)
    file = io.BytesIO()
    palette.save(file, "GIF", transparency=3)
    assert read(clear).unique().tolist() == read(file.getvalue()).unique().tolist() == [255]
    assert read(half).unique().tolist() == [127] and read(half.convert("LA")).unique().tolist() == [127]
    assert read(clear.convert("RGBa")).unique().tolist() == [255]


def test_files_show_their_first_frame_and_pil_images_the_present_one():
    frames = [Image.new("RGB", SIZE[::-1], colour) for colour in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert read(file.getvalue())[:, 0, 0].tolist() == [255, 0, 0]
    opened = Image.open(file)
    opened.seek(1)
    assert read(opened)[:, 0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0", "convert HEIC files to JPEG or PNG"),
        ("a.jpg", b"\0\0\0\x18ftypheic\0\0\0\0", "convert HEIC files"),
        ("a.svg", b"<?xml version='1.0'?>\n<svg/>", "export SVG drawings as PNG"),
        ("a.jpg", b"\0\0\0\x18ftypavif\0\0\0\0", "convert AVIF files"),
        ("a.nef", b"raw", "export raw camera files as JPEG"),
        ("a.png", b"", "it is empty"),
        ("a.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.png", b"\n<!DOCTYPE html><html>", "it is a web page"),
        ("a.txt", b"plain words", "expected one of the formats BMP"),
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "export drawings and documents as PNG"),
    ],
)
def test_what_is_no_image_has_a_reason(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is not readable as an image: .*({reason})"):
        read(tmp_path / name)
    with pytest.raises(ValueError, match="The image is not readable as an image: "):
        read(content)


def test_formats_whose_decoders_start_programs_are_not_read():
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN) and "EPS" not in FORMATS and ".eps" in UNREADABLE


def test_large_images_are_refused_before_they_are_decoded(tmp_path):
    Image.new("1", (14000, 14000)).save(tmp_path / "huge.png")
    Image.new("1", (40, 30)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"huge\.png is not readable as an image: .*(196000000|14000 x 14000) pixels"):
        read(tmp_path / "huge.png")
    with pytest.raises(ValueError, match="an image of 40 x 30 pixels is too large: 1000 pixels are the limit"):
        read_image(tmp_path / "small.png", SIZE, max_pixels=1000)


def test_a_long_text_in_a_file_is_a_reason(tmp_path):
    text = PngInfo()
    text.add_text("comment", "x" * (2 << 20), zip=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "chatty.png", pnginfo=text)
    with pytest.raises(ValueError, match=r"chatty\.png is not readable as an image: Decompressed data too large"):
        read(tmp_path / "chatty.png")


@settings(max_examples=150, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM"]))
def test_damaged_files_are_read_or_refused(data, kind):
    content = bytearray(encoded(Image.fromarray(drawn(0, 9, 9)), kind))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert read_image(content, SIZE, max_pixels=1 << 16).shape == (3, *SIZE)
    except ValueError as error:
        assert str(error).startswith("The image is not readable as an image: ")


def test_damaged_exif_is_a_reason():
    exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHII", 8, 1, 0x0112, 3, 1 << 30, 1 << 30)
    file = io.BytesIO()
    Image.fromarray(drawn(0, *SIZE)).save(file, "JPEG", exif=exif)
    try:
        assert read(file.getvalue()).shape == (3, *SIZE)
    except ValueError as error:
        assert "is not readable as an image" in str(error)


@pytest.mark.parametrize("item", [None, {"bytes": None, "path": None}])
def test_missing_cells_are_named(item):
    with pytest.raises(ValueError, match=r"Image 1 is missing \(None\)"):
        as_batch([np.zeros((2, 2)), item], SIZE)
