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


def copy_source(folder: Path) -> None:
    """What a build reads, in another folder, so that no `build/` is left in the repository."""
    pytest.importorskip("setuptools")
    shutil.copytree(ROOT / "hf_dfml", folder / "hf_dfml", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy."""
    folder = tmp_path_factory.mktemp("source")
    copy_source(folder)
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


def test_a_script_beside_a_clone_of_that_name_imports_the_package(tmp_path):
    """`git clone .../hf_dfml; pip install -e hf_dfml; python try.py`: the clone's folder has the package's name."""
    clone, site = tmp_path / "hf_dfml", tmp_path / "site-packages"
    copy_source(clone)
    build = f"from setuptools.build_meta import build_editable; build_editable({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=clone, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    ZipFile(wheel).extractall(site)
    # Nothing is found but what the folder of the script and this site-packages bring.
    (tmp_path / "try.py").write_text(
        f"import site; site.addsitedir({str(site)!r}); import hf_dfml; print(hf_dfml.__file__)"
    )
    run = subprocess.run([sys.executable, "-ES", "try.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(clone / "hf_dfml" / "__init__.py")


def test_optional_libraries_have_an_extra_each():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert {"onnx", "demo", "gp", "lora", "docs", "peers", "test", "quality"} <= set(config["options.extras_require"])
