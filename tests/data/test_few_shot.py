import os
import time

import numpy as np
import pytest
import torch

from hf_dfml.data import dataset_info, load_dataset


def flat(level: int, size: int = 32) -> np.ndarray:
    return np.full((size, size, 3), level, dtype=np.uint8)


def levels(images: torch.Tensor) -> list[int]:
    assert torch.equal(images, images[:, :1, :1, :1].expand_as(images))
    return images[:, 0, 0, 0].tolist()


def write_cifar(folder, write_parquet, **options):
    """Two images of each test class, one in each Parquet file, and one of a training class that nobody may decode."""
    names = dataset_info("cifar-fs").classes["test"]
    for part, offset in (("train", 0), ("test", 100)):
        rows = [(name, flat(offset + k)) for k, name in enumerate(names)]
        write_parquet(folder, "cifar-fs", [("apple", flat(255)), *rows[::-1]], part=part, **options)
    return names


@pytest.mark.parametrize("as_strings", [False, True])
def test_files_are_merged_and_only_the_splits_classes_are_kept(tmp_path, write_parquet, no_network, as_strings):
    names = write_cifar(tmp_path / "cifar100", write_parquet, as_strings=as_strings)
    dataset = load_dataset("cifar-fs", "test", data_dir=tmp_path)
    assert dataset.class_names == names and len(dataset) == 40
    assert dataset.images.dtype == torch.uint8 and dataset.images.shape == (40, 3, 32, 32)
    assert dataset.labels.tolist() == [k for k in range(20) for _ in range(2)]
    assert levels(dataset.images) == [level for k in range(20) for level in (k, 100 + k)]
    assert levels(dataset.by_class(names[7])) == [7, 107]


def test_loading_writes_nothing_beside_the_data(tmp_path, write_parquet, private_datasets_cache):
    write_cifar(tmp_path / "data" / "cifar100", write_parquet)

    def listing():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}

    before = listing()
    load_dataset("cifar-fs", "test", data_dir=tmp_path / "data")
    assert listing() == before
    assert any(private_datasets_cache.rglob("*.arrow"))


def test_environment_variable_stands_in_for_data_dir(tmp_path, write_parquet, monkeypatch):
    write_cifar(tmp_path / "cifar100", write_parquet)
    monkeypatch.setenv("HF_DFML_DATA", str(tmp_path))
    assert len(load_dataset("cifar-fs", "test")) == 40


def test_images_of_other_sizes_and_modes_are_brought_to_one(tmp_path, write_parquet):
    # A checkerboard of single pixels: antialiasing averages it to grey, skipping pixels would keep black or white.
    board = (np.indices((128, 64)).sum(0) % 2 * 255).astype(np.uint8)
    names = dataset_info("cub").classes["validation"]
    write_parquet(tmp_path / "cub", "cub", [(name, board) for name in names])
    own = load_dataset("cub", "validation", data_dir=tmp_path)
    assert own.images.shape == (50, 3, 84, 84) and own.image_size == 84
    small = load_dataset("cub", "validation", data_dir=tmp_path, image_size=16)
    assert small.images.shape == (50, 3, 16, 16)
    inner = small.images[:, :, 1:-1, 1:-1].float()
    assert (inner - 127.5).abs().max() < 12


def test_glyphs_are_resized_too():
    assert load_dataset("glyphs", "validation", image_size=20).images.shape == (1600, 3, 20, 20)


def test_missing_folder_says_where_it_looked_and_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_dataset("cifar-fs", "test", data_dir=tmp_path)
    assert "'cifar-fs'" in str(error.value) and str(tmp_path / "cifar100") in str(error.value)
    assert "does not exist: put its Parquet files there, or leave out data_dir" in str(error.value)


def test_folder_without_parquet_files_is_named(tmp_path):
    (tmp_path / "omniglot").mkdir()
    with pytest.raises(FileNotFoundError, match="'omniglot' is expected in .*omniglot, which holds no Parquet file"):
        load_dataset("omniglot", "test", data_dir=tmp_path)


def test_omniglot_needs_a_folder():
    with pytest.raises(FileNotFoundError, match="'omniglot' has no repository on the Hub.*give data_dir"):
        load_dataset("omniglot", "test")


def test_unreachable_hub_names_the_repository_and_the_way_round(monkeypatch):
    import datasets

    def unreachable(path):
        raise ConnectionError(f"Couldn't reach '{path}' on the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(FileNotFoundError, match=r"'cub' could not be had from the Hub \('bentrevett/.*give data_dir"):
        load_dataset("cub", "test")


def test_missing_column_is_named_with_those_found(tmp_path, write_parquet):
    names = dataset_info("cub").classes["test"]
    write_parquet(tmp_path / "cub", "cub", [(names[0], flat(0))], label_column="species")
    with pytest.raises(ValueError, match="'cub' in .* has no column 'label': found image, species"):
        load_dataset("cub", "test", data_dir=tmp_path)


def test_class_without_images_is_named(tmp_path, write_parquet):
    names = dataset_info("cub").classes["test"]
    write_parquet(tmp_path / "cub", "cub", [(name, flat(0)) for name in names if name != names[3]])
    with pytest.raises(ValueError, match=f"'cub' has no image of class '{names[3]}'"):
        load_dataset("cub", "test", data_dir=tmp_path)


def test_unknown_splits_classes_and_sizes_are_refused():
    with pytest.raises(ValueError, match="'glyphs' has no split 'val': choose one of train, validation, test"):
        load_dataset("glyphs", "val")
    with pytest.raises(ValueError, match="image_size=0"):
        load_dataset("glyphs", "test", image_size=0)
    with pytest.raises(ValueError, match=r"'glyphs' \(test\) has no class 'whale'"):
        load_dataset("glyphs", "test").by_class("whale")


REAL = {
    "cifar-fs": ((9600, 3, 32, 32), 600, 600),
    "mini-imagenet": ((1600, 3, 84, 84), 100, 100),
    "cub": ((2950, 3, 84, 84), 41, 60),
    "omniglot": ((3440, 3, 32, 32), 20, 20),
}


@pytest.mark.parametrize("name", REAL)
def test_real_sets_have_their_published_sizes(name, shared_dir, no_network):
    shape, smallest, largest = REAL[name]
    start = time.perf_counter()
    dataset = load_dataset(name, "validation", data_dir=shared_dir / "data")
    assert time.perf_counter() - start < 60, "a validation split takes about a second on one core"
    sizes = torch.bincount(dataset.labels)
    assert dataset.images.shape == shape
    assert (int(sizes.min()), int(sizes.max())) == (smallest, largest)
    assert len(sizes) == len(dataset.class_names)
    if name in ("cifar-fs", "cub"):
        mean = dataset.images.float().mean((0, 2, 3)) / 255
        assert (mean - torch.tensor(dataset.mean)).abs().max() < 0.05, "the normalisation is not that of these images"
    if name == "omniglot":
        grey = (dataset.images > 20) & (dataset.images < 235)
        assert grey.float().mean() > 0.02, "black-and-white drawings were made smaller without antialiasing"


def test_an_empty_environment_variable_means_the_hub(monkeypatch):
    monkeypatch.setitem(os.environ, "HF_DFML_DATA", "")
    with pytest.raises(FileNotFoundError, match="has no repository on the Hub"):
        load_dataset("omniglot", "test")
