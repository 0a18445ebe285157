"""Classes of a user's own files, named on the command line as FILE.py:CLASS."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TypeVar

Base = TypeVar("Base")


def is_file(name: str) -> bool:
    """Whether a name is that of a class in a file (`my_method.py:MyMethod`) rather than a name of this library."""
    return ".py" in name or ":" in name or "/" in name


def class_of_file(name: str, base: type[Base], kind: str) -> type[Base]:
    """A class of a user's own file, which is run as a module.

    Args:
        name: `path/to/file.py:CLASS`.
        base: what it must be a subclass of.
        kind: what messages call it ("method").

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be imported or has no such class, or the class leaves something of `base` undefined.
    """
    file, colon, wanted = name.rpartition(":")
    path = Path(file if colon else name)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}: give a {kind} of your own as FILE.py:CLASS.")
    module = _import(path)
    own = [
        key
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    wanted_base = f"{base.__module__}.{base.__qualname__}"
    found = f"its {kind}s are {', '.join(own)}" if own else f"it has no subclass of {wanted_base}"
    chosen = getattr(module, wanted, None) if colon else None
    if chosen is None:
        asked = f"{path} has no class '{wanted}'" if colon else f"{name} does not say which class of the file to run"
        raise ValueError(f"{asked}: {found}. Expected FILE.py:CLASS.")
    if not (isinstance(chosen, type) and issubclass(chosen, base)):
        raise ValueError(f"{wanted} of {path} is not a subclass of {wanted_base}: {found}.")
    missing = sorted(chosen.__abstractmethods__)  # type: ignore[attr-defined]
    if missing:
        raise ValueError(f"{wanted} of {path} lacks {' and '.join(missing)}, which each {kind} must define.")
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
