"""Which few-shot data sets there are: where each lies, its columns, its class split by name, its normalisation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType

SPLITS = ("train", "validation", "test")

CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DatasetInfo:
    """What the library knows of a few-shot data set before it reads a single image.

    Attributes:
        name: what the user types.
        hub_id: repository on the Hub whose class names are ours, `None` where there is none.
        folder: name of the set's folder below `data_dir`.
        image_column: column of the images.
        label_column: column of the classes, a `ClassLabel` or strings.
        merged_splits: splits of the repository that hold our images. They are merged, because few-shot splits go by
            class and not by image; those that a copy does not have are passed over.
        image_size: height and width in pixels that images are brought to.
        mean: RGB mean of pixels in [0, 1], for normalisation.
        std: RGB standard deviation of pixels in [0, 1].
    """

    name: str
    hub_id: str | None
    folder: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_column: str = "image"
    label_column: str = "label"
    merged_splits: tuple[str, ...] = ("train", "test")

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """Class names of `train`, `validation` and `test`; no class is in two of them."""
        return _classes(self.name)


@cache
def _classes(name: str) -> Mapping[str, tuple[str, ...]]:
    text = (resources.files(__package__) / "classes" / f"{name}.json").read_text(encoding="utf-8")
    return MappingProxyType({split: tuple(names) for split, names in json.loads(text).items()})


_INFOS = (
    # Bertinetto et al., "Meta-learning with differentiable closed-form solvers" (ICLR 2019): 64/16/20 classes.
    DatasetInfo(
        name="cifar-fs",
        hub_id="uoft-cs/cifar100",
        folder="cifar100",
        image_column="img",
        label_column="fine_label",
        image_size=32,
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
    ),
    # Ravi and Larochelle, "Optimization as a model for few-shot learning" (ICLR 2017): 64/16/20 classes.
    # The repository's `test` split adds images of ImageNet's own validation set, which mini-ImageNet has not.
    DatasetInfo(
        name="mini-imagenet",
        hub_id="timm/mini-imagenet",
        folder="mini-imagenet",
        merged_splits=("train", "validation"),
        image_size=84,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    # Chen et al., "A closer look at few-shot classification" (ICLR 2019): 100/50/50 classes by index modulo 4.
    DatasetInfo(
        name="cub",
        hub_id="bentrevett/caltech-ucsd-birds-200-2011",
        folder="cub",
        image_size=84,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    # Vinyals et al., "Matching networks for one shot learning" (NeurIPS 2016): 1028/172/423 characters.
    # Known copies on the Hub number the characters instead of naming them, so there is no repository to fall back to.
    DatasetInfo(
        name="omniglot",
        hub_id=None,
        folder="omniglot",
        image_size=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    # Drawn by `hf_dfml.data.glyphs`, so there is nothing to read.
    DatasetInfo(
        name="glyphs",
        hub_id=None,
        folder="glyphs",
        merged_splits=(),
        image_size=32,
        mean=(0.214, 0.231, 0.211),
        std=(0.190, 0.204, 0.185),
    ),
)

DATASETS: Mapping[str, DatasetInfo] = MappingProxyType({info.name: info for info in _INFOS})
"""Every data set by the name that `--dataset` takes."""


def dataset_info(name: str) -> DatasetInfo:
    """What is known of the data set `name`.

    Raises:
        ValueError: if there is no such set.

    Examples:
        >>> info = dataset_info("cifar-fs")
        >>> info.hub_id, [len(info.classes[split]) for split in SPLITS]
        ('uoft-cs/cifar100', [64, 16, 20])
    """
    if name not in DATASETS:
        raise ValueError(f"Data set '{name}' is unknown: expected one of {', '.join(DATASETS)}.")
    return DATASETS[name]
