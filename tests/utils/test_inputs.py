"""Every way to hand over images leads to the same pixels; what is no image is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_dfml.utils.inputs import as_batch, as_labels, list_class_folders, list_images, read_files

SIZE = (6, 8)


@pytest.fixture
def pixels() -> torch.Tensor:
    """Two RGB images of the wanted size, `(2, 3, 6, 8)` uint8."""
    return torch.randint(0, 256, (2, 3, *SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def to_pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def test_tensors_pil_images_files_and_folders_are_the_same(pixels: torch.Tensor, tmp_path: Path) -> None:
    expected = pixels.float() / 255
    pictures = [to_pil(image) for image in pixels]
    for index, picture in enumerate(pictures):
        picture.save(tmp_path / f"{index}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("neither")
    ways = (pixels, expected, list(pixels), list(expected), pictures, [tmp_path / "0.png", str(tmp_path / "1.png")])
    for images in (*ways, tmp_path, str(tmp_path), [pictures[0], pixels[1]]):
        assert torch.equal(as_batch(images, SIZE), expected)
    assert torch.equal(as_batch(pictures[0], SIZE), expected[:1])
    assert torch.equal(as_batch(pixels[0], SIZE), expected[:1])


def test_arrays_have_their_channels_last(pixels: torch.Tensor) -> None:
    expected = pixels.float() / 255
    array = pixels.permute(0, 2, 3, 1).numpy()
    for images in (array, list(array), array.astype(np.float32) / np.float32(255)):
        assert torch.equal(as_batch(images, SIZE), expected)
    assert torch.equal(as_batch(array[0], SIZE), expected[:1])
    assert torch.equal(as_batch(array[:, :, ::-1], SIZE), expected.flip(-1))  # A view that runs backwards.
    assert torch.equal(as_batch(array[0, :, :, 0], SIZE), expected[:1, :1].expand(1, 3, *SIZE))
    with pytest.raises(ValueError, match=r"\(H, W, C\).*found the shape \(2, 3, 6, 8\)"):
        as_batch(pixels.numpy(), SIZE)


def test_grey_has_three_equal_channels(pixels: torch.Tensor) -> None:
    grey = pixels[:, :1]
    expected = (grey.float() / 255).expand(2, 3, *SIZE)
    assert torch.equal(as_batch(grey, SIZE), expected)
    assert torch.equal(as_batch([Image.fromarray(image[0].numpy()) for image in grey], SIZE), expected)


def test_mixed_sizes_become_one() -> None:
    images = [torch.full((3, 4, 4), 0.25), torch.full((1, 50, 20), 0.75)]
    batch = as_batch(images, SIZE)
    assert batch.shape == (2, 3, *SIZE)
    torch.testing.assert_close(batch.mean(dim=(1, 2, 3)), torch.tensor([0.25, 0.75]))


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 4, 6, 8), ValueError, "4 channels.*expected 3"),
        (torch.zeros(2, 6, 8, 3), ValueError, "6 channels"),
        ([torch.zeros(6, 8)], ValueError, r"tensor \(C, H, W\)"),
        (torch.zeros(0, 3, 6, 8), ValueError, "no images"),
        ([], ValueError, "no images"),
        (torch.full((1, 3, 6, 8), 2.0), ValueError, r"range from 2 to 2: expected floats in \[0, 1\]"),
        (torch.full((1, 3, 6, 8), float("nan")), ValueError, "nan"),
        (torch.zeros(1, 3, 6, 8, dtype=torch.int64), ValueError, "int64.*uint8"),
        ([3.5], TypeError, "found a float"),
        ("nowhere.png", FileNotFoundError, r"nowhere\.png"),
    ],
)
def test_what_is_no_image_is_refused(images, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        as_batch(images, SIZE)


def test_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 not much more")
    with pytest.raises(ValueError, match=r"broken\.jpg is not readable"):
        as_batch(tmp_path, SIZE)


def test_files_that_can_be_read_are_read(pixels: torch.Tensor, tmp_path: Path, caplog) -> None:
    for index, image in enumerate(pixels):
        to_pil(image).save(tmp_path / f"{index}.png")
    (tmp_path / "05.png").write_bytes(b"not much")
    images, files = read_files(list_images(tmp_path), SIZE)
    assert torch.equal(images, pixels.float() / 255) and [file.name for file in files] == ["0.png", "1.png"]
    assert caplog.text.count("Left out") == 1 and "05.png" in caplog.text
    with pytest.raises(ValueError, match=r"None of the 1 image files can be read: .*05\.png"):
        read_files([tmp_path / "05.png"], SIZE)


def test_class_folders_give_labels(tmp_path: Path) -> None:
    for name in ("dog/b.png", "cat/z.JPG", "cat/a.png", "cat/readme.md", ".cache/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files, labels = list_class_folders(tmp_path)
    assert [file.relative_to(tmp_path).as_posix() for file in files] == ["cat/a.png", "cat/z.JPG", "dog/b.png"]
    assert labels == ["cat", "cat", "dog"]
    assert [file.name for file in list_images(tmp_path / "cat")] == ["a.png", "z.JPG"]


def test_folders_without_what_is_needed_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        list_class_folders(tmp_path / "nowhere")
    (tmp_path / "x.png").touch()
    with pytest.raises(ValueError, match="no class folders"):
        list_class_folders(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="Class 'empty' has no image"):
        list_class_folders(tmp_path)
    with pytest.raises(ValueError, match="holds no image"):
        list_images(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no folder"):
        list_images(tmp_path / "nowhere")


def test_what_is_left_out_of_folders_is_named(tmp_path: Path, caplog) -> None:
    for name in ("cat/a.jfif", "cat/b.HEIC", "cat/notes.txt", "cat/more/c.png", "cat/.hidden", "loose.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    files, _ = list_class_folders(tmp_path)
    assert [file.name for file in files] == ["a.jfif"]
    named = [record.getMessage().removeprefix(f"Left out: {tmp_path}/") for record in caplog.records]
    assert named[0] == "loose.png: it lies beside the class folders." and len(named) == 4
    assert named[1].startswith("cat/b.HEIC is not readable as an image: convert HEIC files")
    assert named[2].startswith("cat/notes.txt: names of images end in .png")
    assert named[3] == (
        f"Not searched: 1 sub-folder ({tmp_path}/cat/more). Move their images into {tmp_path}/cat to learn from them."
    )


def test_links_to_nothing_are_left_out(tmp_path: Path, caplog) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert [file.name for file in list_images(tmp_path)] == ["a.png"]
    assert "gone.png is not a file" in caplog.text


@pytest.mark.parametrize(
    "labels",
    [
        [torch.tensor(0), torch.tensor(1)],
        torch.tensor([0, 1]),
        np.array([0, 1]),
        [np.int64(0), np.int64(1)],
        [np.array(0), np.array(1)],
        (0, 1),
    ],
)
def test_labels_are_plain_values(labels) -> None:
    assert as_labels(labels) == [0, 1] and all(type(label) is int for label in as_labels(labels))


def test_labels_may_be_text_or_tuples() -> None:
    assert as_labels(np.array(["cat", "nan"])) == ["cat", "nan"] and as_labels([("a", 1), "b"]) == [("a", 1), "b"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.eye(2), r"shape \(2, 2\): expected one label an image; of one-hot rows .* give labels.argmax\(1\)"),
        (np.array([[0], [1]]), r"of a column labels\[:, 0\]"),
        ([torch.tensor([0, 1])], r"Label 0 has the shape \(2,\)"),
        ([[1, 0], [0, 1]], r"Label 0 is \[1, 0\], a list: expected one label an image"),
        (np.array([0.0, np.nan]), r"Label 1 is missing \(nan\): give every image a label"),
        ("cat", "Labels are a str: expected a list"),
    ],
)
def test_what_is_no_label_is_refused(labels, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_labels(labels)


def test_a_folder_one_level_too_high_is_answered_with_the_right_one(tmp_path):
    for name in ("train/cat", "train/dog", "new"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name / "a.png")
    with pytest.raises(ValueError, match=r"and train there holds folders itself \(cat, dog\): name .*train if"):
        list_class_folders(tmp_path)
