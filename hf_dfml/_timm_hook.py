"""Makes `conv4` and its kin known to timm without importing timm, which takes longer than everything else here."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

NETWORKS = "hf_dfml.networks"


def register_networks() -> None:
    """Register our networks now where timm is loaded already, and whenever somebody imports it."""
    if "timm" in sys.modules:
        _tell_timm()
    sys.meta_path.insert(0, _AfterTimm())


def _tell_timm() -> None:
    importlib.import_module(NETWORKS)
    importlib.import_module(f"{NETWORKS}.timm_network").register_with_timm()


class _AfterTimm(importlib.abc.MetaPathFinder):
    """Finds timm as everyone else would, whenever it is imported, and imports our networks behind it."""

    def __init__(self) -> None:
        self._asking_others = False

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "timm" or self._asking_others:
            return None
        self._asking_others = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._asking_others = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader)
        return spec


class _Then(importlib.abc.Loader):
    """A loader that runs another one and then imports our networks."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _tell_timm()
