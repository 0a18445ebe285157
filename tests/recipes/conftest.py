"""Scripts of benchmarks/ as modules."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def small_data(few_glyphs) -> None:
    """Recipes and benchmarks run to see that they run: on a fifth of the embedded data set."""


@pytest.fixture
def script(monkeypatch):
    """Imports a script by name, with its folder on the path as when it is run."""

    def load(name: str):
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.syspath_prepend(BENCHMARKS)
        monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up by name
        spec.loader.exec_module(module)
        return module

    return load
