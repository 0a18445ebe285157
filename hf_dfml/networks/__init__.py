"""What a model is: networks registered with timm, the generator, functional forward passes."""

import importlib
import pkgutil

from hf_dfml.networks.build import create_network
from hf_dfml.networks.conv4 import Conv4
from hf_dfml.networks.functional import BatchNorm, batch_norm_from, functional_forward, normalise
from hf_dfml.networks.generator import Generator
from hf_dfml.networks.info import NetworkInfo, network_info
from hf_dfml.networks.resnet import ResNet

# Each file of this folder registers its architectures itself: a new one is named nowhere else.
for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")

__all__ = [
    "BatchNorm",
    "Conv4",
    "Generator",
    "NetworkInfo",
    "ResNet",
    "batch_norm_from",
    "create_network",
    "functional_forward",
    "network_info",
    "normalise",
]
