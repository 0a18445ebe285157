"""One reader: an image has the same pixels by every route; what cannot be read is refused with a reason."""

from __future__ import annotations

import base64
import io
import json
import struct
import threading
from http.client import HTTPConnection
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hf_dfml import MetaModel
from hf_dfml.classifier.server import ClassifierServer
from hf_dfml.data import open_data
from hf_dfml.networks import create_network
from hf_dfml.utils.images import FORMATS, UNREADABLE, read_image
from hf_dfml.utils.inputs import as_batch

SIZE = (7, 5)
TURNS = {1: 0, 3: 2, 6: -1, 8: 1}
"""Quarter turns, counter-clockwise, that make an image upright, by its EXIF orientation; 2, 4, 5, 7 are mirrored."""
MODES = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"],
    "JPEG": ["L", "RGB", "CMYK", "YCbCr"],
    "WEBP": ["RGB", "RGBA"],
    "GIF": ["L", "P"],
    "BMP": ["1", "L", "P", "RGB"],
    "PPM": ["1", "L", "RGB"],
    "JPEG2000": ["L", "LA", "RGB", "RGBA"],
}
"""The formats that are read, and the modes that Pillow writes them in."""
WITH_EXIF = ("PNG", "TIFF", "JPEG", "WEBP")


def drawn(seed: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", orientation: int | None = None, **options) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    if orientation:
        exif[0x0112] = orientation
        options["exif"] = exif
    image.save(file, kind, **options)
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
        Image.open(io.BytesIO(content)).copy(),
        {"bytes": content, "path": None},
        {"bytes": None, "path": str(folder / "x.bin")},
        {"bytes": content, "path": "elsewhere.png"},
        datasets.Image().decode_example({"bytes": content, "path": None}),
    ]


class Watching(ClassifierServer):
    """A served classifier that keeps the pixels which its network is shown."""

    def forward(self, id, images):
        self.shown = images.clone()
        return super().forward(id, images)


@pytest.fixture(scope="module")
def server():
    network = create_network("conv4_16", num_classes=2, image_size=16, generator=torch.Generator().manual_seed(0))
    classifier = MetaModel.of(network, method="test").adapt(torch.rand(2, 3, 16, 16), ["a", "b"])
    server = Watching(classifier, "mine", port=0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def over_http(server: Watching, content: bytes) -> list[torch.Tensor]:
    """What a served model is shown of an image: as the body of a request, and in base64 in JSON."""
    shown = []
    for body, kind in (
        (content, "image/png"),
        (json.dumps({"inputs": base64.b64encode(content).decode()}).encode(), "application/json"),
        (json.dumps({"inputs": [base64.b64encode(content).decode()]}).encode(), "application/json"),
    ):
        connection = HTTPConnection(*server.server_address[:2], timeout=20)
        connection.request("POST", "/models/mine", body, {"Content-Type": kind})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
        connection.close()
        shown.append(server.shown)
    return shown


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("routes")


@settings(max_examples=70, deadline=None)
@given(
    seed=st.integers(0, 999),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kind=st.sampled_from(sorted(MODES)),
    mode=st.integers(0, 7),
    orientation=st.sampled_from([None, *range(1, 9)]),
    clear=st.booleans(),
)
def test_every_route_gives_the_same_pixels(folder, server, seed, shape, kind, mode, orientation, clear):
    mode = MODES[kind][mode % len(MODES[kind])]
    image = Image.fromarray(drawn(seed, *shape, 4))
    image = image.convert("RGB").convert(mode) if mode == "YCbCr" else image.convert(mode)
    options = {"transparency": 1} if clear and mode == "P" and kind in ("PNG", "GIF") else {}
    content = encoded(image, kind, orientation if kind in WITH_EXIF else None, **options)
    found = [as_batch([item], SIZE) for item in routes(content, folder)]
    found += [as_batch(np.array([str(folder / "x.bin")]), SIZE)]
    assert all(torch.equal(batch, found[0]) for batch in found)
    assert all(torch.equal(batch, as_batch([content], (16, 16))) for batch in over_http(server, content))
    if mode in ("L", "RGB") and kind in ("PNG", "TIFF", "BMP", "PPM") and orientation in (None, *TURNS):
        # Of these an array or a tensor holds all that the file holds.
        array = np.rot90(np.array(image), TURNS[orientation or 1] if kind in WITH_EXIF else 0)
        tensor = torch.from_numpy(array.copy())
        tensor = tensor[None] if mode == "L" else tensor.permute(2, 0, 1)
        for item in (array, [array], array[None] if mode == "RGB" else array, tensor, tensor[None]):
            assert torch.equal(as_batch(item, SIZE), found[0])
        # Resized as floats, rounded to no level: a level apart at most.
        for dtype in (torch.float32, torch.float64):
            floats = tensor.to(dtype) / 255
            for item in (floats, floats[None], floats[0].numpy() if mode == "L" else floats.movedim(0, -1).numpy()):
                torch.testing.assert_close(as_batch(item, SIZE), found[0], atol=1.01 / 255, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999), mode=st.sampled_from(["HSV", "RGBX", "YCbCr", "PA", "La", "RGBa", "I;16", "1", "CMYK"])
)
def test_pil_images_of_any_mode_are_what_they_look_like(seed, mode):
    image = Image.fromarray(drawn(seed, *SIZE, 4))
    by_way_of = {"PA": ["P", "PA"], "La": ["LA", "La"], "I;16": ["L", "I;16"], "RGBa": ["RGBa"]}.get(
        mode, ["RGB", mode]
    )
    for each in by_way_of:
        image = image.convert(each)
    if mode == "I;16":
        return torch.testing.assert_close(
            read(image), torch.from_numpy(np.array(image) / 65535).float().expand(3, -1, -1)
        )
    upright = image.convert({"PA": "RGBA", "La": "LA", "RGBa": "RGBA"}.get(mode, "RGB"))
    assert torch.equal(read(image), read(encoded(upright)))
    return None


def test_folders_and_tables_give_the_pixels_of_their_files(folder):
    """A user's own images: class folders, a column of images, a column of bytes, rounded to the levels of 8 bits."""
    files = []
    for seed, (kind, modes) in enumerate(MODES.items()):
        for mode in modes:
            image = Image.fromarray(drawn(seed, 6 + seed, 9, 4))
            image = image.convert("RGB").convert(mode) if mode == "YCbCr" else image.convert(mode)
            files.append(encoded(image, kind, 6 if kind in WITH_EXIF else None))
    values = np.random.default_rng(0).random((6, 4), dtype=np.float32)
    files += [encoded(Image.fromarray(values), "TIFF"), encoded(Image.fromarray((values * 65535).astype(np.uint16)))]
    expected = (as_batch(files, (16, 16)) * 255).round().to(torch.uint8)
    names = ["a", "b"] * (len(files) // 2) + ["a"] * (len(files) % 2)
    for number, (name, content) in enumerate(zip(names, files, strict=True)):
        (folder / "classes" / name).mkdir(parents=True, exist_ok=True)
        (folder / "classes" / name / f"{number:03d}.png").write_bytes(content)
    cells = [{"bytes": content, "path": None} for content in files]
    for kind, column in (("image", datasets.Image()), ("bytes", datasets.Value("binary"))):
        (folder / kind).mkdir()
        features = datasets.Features({"image": column, "label": datasets.ClassLabel(names=["a", "b"])})
        rows = {"image": cells if kind == "image" else files, "label": [int(name == "b") for name in names]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / kind / "train.parquet")
    order = sorted(range(len(files)), key=lambda row: names[row])
    for kind in ("classes", "image", "bytes"):
        found = open_data(folder / kind, "train", image_size=16)
        assert found.labels.tolist() == sorted(int(name == "b") for name in names)
        assert torch.equal(found.images, expected[order]), kind


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


def test_a_transparent_level_of_sixteen_bits_lies_over_white():
    values = np.arange(35, dtype=np.uint16).reshape(SIZE) * 1000
    found = read(encoded(Image.fromarray(values), transparency=3000))
    assert found[:, 0, 3].tolist() == [1, 1, 1] and found[0, 0, 4].item() == pytest.approx(4000 / 65535)
    assert (found == 1).sum() == 3


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
