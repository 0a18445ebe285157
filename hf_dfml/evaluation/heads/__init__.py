"""From a support set to a classifier: one head a file; another one is another file here, or a user's own class."""

from importlib import import_module
from pkgutil import iter_modules

from hf_dfml.evaluation.heads.base import (
    HEADS,
    Adaptation,
    Adapted,
    Head,
    Representation,
    choices,
    find_head,
    heads_on_features,
)
from hf_dfml.evaluation.heads.features import FeatureHead, class_means, with_flips

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "HEADS",
    "Adaptation",
    "Adapted",
    "FeatureHead",
    "Head",
    "Representation",
    "choices",
    "class_means",
    "find_head",
    "heads_on_features",
    "with_flips",
]
