"""Data-free meta-learning: a pool of pretrained classifiers in, one few-shot-ready model out, no data in between.

>>> import hf_dfml, timm
>>> timm.create_model("conv4").num_features
128
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hf_dfml._timm_hook import register_networks
from hf_dfml.version import __version__

if TYPE_CHECKING:
    from hf_dfml.adapting import FewShotClassifier, adapt
    from hf_dfml.classifier import Classifier
    from hf_dfml.meta_model import MetaModel
    from hf_dfml.pool import ModelPool


__all__ = ["Classifier", "FewShotClassifier", "MetaModel", "ModelPool", "__version__", "adapt"]

_HOMES = {
    "Classifier": "hf_dfml.classifier",
    "FewShotClassifier": "hf_dfml.adapting",
    "MetaModel": "hf_dfml.meta_model",
    "ModelPool": "hf_dfml.pool",
    "adapt": "hf_dfml.adapting",
}

register_networks()


def __getattr__(name: str) -> Any:
    """Import the public classes when they are first asked for, so that `import hf_dfml` costs nothing."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hf_dfml' has no attribute '{name}'")


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
