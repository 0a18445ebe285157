"""Methods by the name that a user types: those of this library, and classes of files of the user's own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from hf_dfml.utils.own_code import class_of_file, is_file

if TYPE_CHECKING:
    from hf_dfml.methods.base import Method

METHODS = {
    "bidf_mkd": "BiDfMKD",
    "dro": "DRO",
    "free": "FREE",
    "pool_distillation": "PoolDistillation",
    "purer": "PURER",
    "tgr": "TGR",
}
"""File of `hf_dfml/methods` and its class."""


def find_method(name: str) -> type[Method]:
    """The class of a method.

    Args:
        name: a key of `METHODS`, with dashes or underscores, or `path/to/my_method.py:MyMethod`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be imported or has no such class, or the class is not a `Method` that can be run.
    """
    if is_file(name):
        from hf_dfml.methods.base import Method

        return class_of_file(name, Method, "method")  # type: ignore[type-abstract]
    module = name.replace("-", "_")
    if module not in METHODS:
        raise ValueError(f"'{name}' is not a method: expected {', '.join(METHODS)}, or FILE.py:CLASS.")
    return getattr(importlib.import_module(f"hf_dfml.methods.{module}"), METHODS[module])
