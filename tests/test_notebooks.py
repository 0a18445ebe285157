"""The notebooks: outputs stripped, small, and their code runs (at a tiny size here; whole where tests may be slow)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hf_dfml.methods.pool_distillation import PoolDistillationConfig

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
SIZES = "MEMBERS, EPOCHS, PASSES, IMAGES, EPISODES = "
TINY = {f"{SIZES}20, 6, 8, 3000, 100": f"{SIZES}2, 1, 1, 200, 2"}
TINY_POOL = {
    "num_models=6,": "num_models=2, epochs=1,",
    "run(PoolDistillation, distillation_config()": "run(PoolDistillation, tiny()",
}


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


def tiny() -> PoolDistillationConfig:
    """Pool distillation for seconds."""
    return PoolDistillationConfig(
        steps=1, num_images=200, recoveries=1, recovery_steps=2, images_per_class=2, joint_rounds=0, flip=False
    )


def run_cells(path: Path, changes: dict[str, str]) -> dict:
    """The names that are left when the cells have run; each text of `changes` must be in one of them."""
    for old in changes:
        assert sum(old in code for code in cells(path)) == 1, f"{old}: this is what makes it tiny"
    names: dict = {"tiny": tiny}
    for code in cells(path):
        for old, new in changes.items():
            code = code.replace(old, new)
        exec(compile(code, path.name, "exec"), names)
    return names


def test_the_quickstart_runs_at_a_tiny_size(few_glyphs, ipython, capsys):
    path = next(each for each in NOTEBOOKS if each.stem == "quickstart")
    names = run_cells(path, TINY)
    assert len(names["pool"]) == 2 and len(names["meta"].config.pool) == 2
    assert ipython, "pictures of what was recovered"
    assert {row.method for row in names["rows"]} >= {"Pool distillation", "Best member + prototype"}
    assert len(names["classifier"].classes) == 3 and Path("runs/notebook/classifier/config.json").is_file()


def test_your_pool_runs_at_a_tiny_size(few_glyphs, ipython, capsys):
    path = next(each for each in NOTEBOOKS if each.stem == "your_pool")
    names = run_cells(path, TINY_POOL)
    assert {"Best member", "All 2 members"} & {row.name.split(",")[0].split(" (")[0] for row in names["rows"]}
    assert "can be used" in capsys.readouterr().out
    assert len(names["classifier"].classes) == 5 and Path("runs/your-pool/classifier/config.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_notebook_runs_whole(path, ipython):
    names = run_cells(path, {})
    assert names["classifier"].leave_one_out().mean > 0.4  # Of three or five classes.
