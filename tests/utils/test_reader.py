"""One reader: an image has the same pixels by every route; labels are one value an image."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_dfml.data.few_shot import square_pixels
from hf_dfml.utils.inputs import as_batch, as_labels, open_image

MODES = ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "I;16"]


def picture(mode: str, seed: int) -> Image.Image:
    draw = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(draw.integers(0, 65536, (6, 6), dtype=np.uint16))
    return Image.fromarray(draw.integers(0, 256, (6, 6, 4), dtype=np.uint8), "RGBA").convert(mode)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(MODES), st.integers(0, 1000), st.sampled_from([None, 1, 3, 6, 8]), st.sampled_from(["PNG", "TIFF"])
)
def test_every_route_gives_the_same_pixels(mode, seed, orientation, kind):
    image = picture(mode, seed)
    if mode == "CMYK":
        kind = "TIFF"
    file, options = io.BytesIO(), {}
    if orientation and kind == "PNG":
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    image.save(file, kind, **options)
    content = file.getvalue()
    routes = [content, {"bytes": content, "path": None}, Image.open(io.BytesIO(content)), open_image(content)]
    batches = [as_batch([route], (6, 6)) for route in routes]
    assert all(torch.equal(batch, batches[0]) for batch in batches[1:])
    stored = torch.from_numpy(np.array(square_pixels(content, 6))).float() / 255
    tolerance = 0.5 / 255 + 1e-6 if mode == "I;16" else 0
    torch.testing.assert_close(stored, batches[0][0], atol=tolerance, rtol=0)


def test_a_picture_that_lies_on_its_side_is_upright():
    image = Image.new("RGB", (6, 3), "red")
    image.putpixel((0, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned by 90 degrees clockwise.
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    batch = as_batch([file.getvalue()], (6, 3))
    assert batch[0, :, 0, 2].tolist() == [0, 0, 1] and batch[0, :, 0, 0].tolist() == [1, 0, 0]


def test_what_is_transparent_lies_over_white():
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    assert as_batch([clear], (4, 4)).unique().tolist() == [1.0]


@pytest.mark.parametrize(
    ("values", "low"), [(np.full((4, 4), 2.5, np.float32), "2.5"), (np.full((4, 4), 1 << 20), "1.04858e")]
)
def test_pixels_of_an_unknown_scale_are_refused(values, low):
    image = Image.fromarray(values.astype(np.float32 if values.dtype == np.float32 else np.int32))
    with pytest.raises(ValueError, match=f"pixels from {low}.*scale it first"):
        as_batch([image], (4, 4))


def test_a_bomb_is_left_out_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("1", (40, 40)).save(tmp_path / "huge.png")
    with pytest.raises(ValueError, match="huge.png is not readable as an image: .*decompression bomb"):
        as_batch([tmp_path / "huge.png"], (4, 4))


@pytest.mark.parametrize(
    "labels",
    [[torch.tensor(0), torch.tensor(1)], np.array([0, 1]), torch.tensor([0, 1]), [np.int64(0), np.int64(1)], [0, 1]],
)
def test_labels_are_plain_values(labels):
    assert as_labels(labels) == [0, 1] and all(type(label) is int for label in as_labels(labels))


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.eye(2), ValueError, r"shape \(2, 2\): expected one label an image"),
        (np.array([0.0, np.nan]), ValueError, "Label 1 is missing"),
        ([["a"], ["b"]], TypeError, "Label 0 is a list"),
    ],
)
def test_what_is_no_label_is_refused(labels, error, message):
    with pytest.raises(error, match=message):
        as_labels(labels)
