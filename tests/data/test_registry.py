import json

import pytest

from hf_dfml.data import DATASETS, SPLITS, dataset_info

CLASS_COUNTS = {
    "cifar-fs": (64, 16, 20),
    "mini-imagenet": (64, 16, 20),
    "cub": (100, 50, 50),
    "omniglot": (1028, 172, 423),
    "glyphs": (64, 16, 20),
}
CLASS_FILES = {
    "cifar-fs": "cifar_fs_classes.json",
    "mini-imagenet": "classes.json",
    "cub": "classes.json",
    "omniglot": "vinyals_classes.json",
}


def test_every_set_has_its_number_of_classes_and_no_class_twice():
    assert set(DATASETS) == set(CLASS_COUNTS)
    for name, counts in CLASS_COUNTS.items():
        classes = dataset_info(name).classes
        assert tuple(classes) == SPLITS
        assert tuple(len(classes[split]) for split in SPLITS) == counts
        names = [class_name for split in SPLITS for class_name in classes[split]]
        assert len(names) == len(set(names))


@pytest.mark.parametrize("name", CLASS_FILES)
def test_class_lists_are_those_beside_the_parquet_files(name, shared_dir):
    info = dataset_info(name)
    published = json.loads((shared_dir / "data" / info.folder / CLASS_FILES[name]).read_text())
    assert {split: list(names) for split, names in info.classes.items()} == published


def test_cifar_fs_is_the_split_of_bertinetto_et_al():
    classes = dataset_info("cifar-fs").classes
    assert {"whale", "poppy", "rocket", "pickup_truck"} <= set(classes["test"])
    assert {"beaver", "otter", "sea", "tractor"} <= set(classes["validation"])


def test_cub_split_goes_by_index_modulo_four():
    classes = dataset_info("cub").classes
    for split, rests in (("train", {0, 2}), ("validation", {1}), ("test", {3})):
        assert {(int(name[:3]) - 1) % 4 for name in classes[split]} == rests


def test_unknown_set_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="Data set 'imagenet-fs' is unknown: expected one of cifar-fs, mini-imagenet"):
        dataset_info("imagenet-fs")
