"""Methods by the name that a user types: those of this library, and classes of files of the user's own."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

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


def is_file(name: str) -> bool:
    """Whether a name is that of a class in a file (`my_method.py:MyMethod`) rather than one of `METHODS`."""
    return ".py" in name or ":" in name or "/" in name


def find_method(name: str) -> type[Method]:
    """The class of a method.

    Args:
        name: a key of `METHODS`, with dashes or underscores, or `path/to/my_method.py:MyMethod`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be imported or has no such class, or the class is not a `Method` that can be run.
    """
    if is_file(name):
        return _of_file(name)
    module = name.replace("-", "_")
    if module not in METHODS:
        raise ValueError(f"'{name}' is not a method: expected {', '.join(METHODS)}, or FILE.py:CLASS.")
    return getattr(importlib.import_module(f"hf_dfml.methods.{module}"), METHODS[module])


def _of_file(name: str) -> type[Method]:
    from hf_dfml.methods.base import Method

    file, colon, wanted = name.rpartition(":")
    path = Path(file if colon else name)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}: give a method of your own as FILE.py:CLASS.")
    module = _import(path)
    own = [
        key
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    found = f"its methods are {', '.join(own)}" if own else "it has no subclass of hf_dfml.methods.base.Method"
    chosen = getattr(module, wanted, None) if colon else None
    if chosen is None:
        asked = f"{path} has no class '{wanted}'" if colon else f"{name} does not say which class of the file to run"
        raise ValueError(f"{asked}: {found}. Expected FILE.py:CLASS.")
    if not (isinstance(chosen, type) and issubclass(chosen, Method)):
        raise ValueError(f"{wanted} of {path} is not a subclass of hf_dfml.methods.base.Method: {found}.")
    missing = sorted(chosen.__abstractmethods__)
    if missing:
        raise ValueError(f"{wanted} of {path} lacks {' and '.join(missing)}, which each method must define.")
    return chosen


def _import(path: Path) -> ModuleType:
    """Run a file as a module; what lies beside it can be imported by it, as by a script."""
    name = f"hf_dfml_own_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file: expected a name that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    sys.modules[name] = module  # Where dataclasses look up the names of their annotations.
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module
