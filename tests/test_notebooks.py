"""The notebooks: outputs stripped, small, and their code runs (at a tiny size here; whole where tests may be slow)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
SIZES = "MEMBERS, EPOCHS, PASSES, IMAGES, EPISODES = "
TINY = {f"{SIZES}20, 6, 8, 3000, 100": f"{SIZES}2, 1, 1, 200, 2"}


def cells(notebook: Path) -> list[str]:
    """The code of a notebook, a string for each cell."""
    return [
        "".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"
    ]


@pytest.fixture
def ipython(monkeypatch, tmp_path):
    """An empty folder to work in, and a display that takes what is shown."""
    shown: list = []
    display = ModuleType("IPython.display")
    display.Image, display.display = str, shown.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.chdir(tmp_path)
    return shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
    for cell in json.loads(path.read_text())["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)


def run_cells(path: Path, changes: dict[str, str]) -> dict:
    names: dict = {}
    for code in cells(path):
        for old, new in changes.items():
            code = code.replace(old, new)
        exec(compile(code, path.name, "exec"), names)
    return names


def test_the_quickstart_runs_at_a_tiny_size(ipython, capsys):
    path = next(each for each in NOTEBOOKS if each.stem == "quickstart")
    (old,) = TINY
    assert sum(old in code for code in cells(path)) == 1, "the line of sizes is what makes it tiny"
    names = run_cells(path, TINY)
    assert len(names["pool"]) == 2 and len(names["meta"].config.pool) == 2
    assert ipython, "pictures of what was recovered"
    assert {row.method for row in names["rows"]} >= {"Pool distillation", "Best member + prototype"}
    assert len(names["classifier"].classes) == 3 and Path("runs/notebook/classifier/config.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_notebook_runs_whole(path, ipython):
    names = run_cells(path, {})
    assert names["classifier"].leave_one_out().mean > 0.4  # Of three or five classes.
