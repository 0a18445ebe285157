"""The wheel holds all that the library reads, and works in a folder that is not the repository's."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
DATA = (".json", ".md", ".yaml", ".safetensors", ".typed")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no `build/` is left in the repository."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "hf_dfml", folder / "hf_dfml", ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder / "dist"), str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.mark.slow
def test_all_data_files_are_in_the_wheel(wheel):
    files = [path for path in (ROOT / "hf_dfml").rglob("*") if path.suffix in (*DATA, ".py") and path.is_file()]
    expected = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    assert expected - set(ZipFile(wheel).namelist()) == set()


@pytest.mark.slow
def test_the_wheel_learns_classes_in_an_empty_folder_without_a_network(wheel, tmp_path):
    installed = tmp_path / "installed"
    words = ["install", "--quiet", "--no-deps", "--target", str(installed), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    program = """
import sys, hf_dfml
from PIL import Image
from hf_dfml.cli import main
for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
    import pathlib; pathlib.Path("photos", name).mkdir(parents=True)
    for index in range(5):
        Image.new("RGB", (40 + index, 40), colour).save(f"photos/{name}/{index}.png")
assert hf_dfml.__file__.startswith(sys.argv[1]), hf_dfml.__file__
main(["adapt", "zoo:cifar-fs", "--support", "photos", "--query", "photos/red"])
"""
    environment = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", program, str(installed)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("red") >= 5 and "10 of 10" in run.stderr
    version = [sys.executable, "-m", "hf_dfml.cli", "--version"]
    said = subprocess.run(version, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert said.startswith("hf_dfml ")


def test_optional_libraries_have_an_extra_each():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert {"onnx", "demo", "gp", "docs", "peers", "test", "quality"} <= set(config["options.extras_require"])
