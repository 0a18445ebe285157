"""Tests never reach the network, the user's caches or the user's token."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.hub_server import HubServer

# Before anything imports huggingface_hub or datasets: they read these once.
_HOME = tempfile.mkdtemp(prefix="hf_dfml_tests_")
for _name in [name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE_", "TRANSFORMERS_"))]:
    if _name != "HF_DFML_SHARED":
        del os.environ[_name]
os.environ.update(
    HF_HOME=_HOME,
    TORCH_HOME=f"{_HOME}/torch",
    HF_ENDPOINT="http://127.0.0.1:9",  # A port that nothing listens on.
    HF_TOKEN="",
    HF_HUB_DISABLE_IMPLICIT_TOKEN="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_XET="1",
)


def pytest_unconfigure() -> None:
    """Remove this process's caches."""
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums in the same order on every machine, and workers of xdist that do not fight for cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def glyphs_drawn_once() -> Iterator[None]:
    """The embedded data set is drawn once in a process: a split takes seconds, and its pixels are always the same."""
    from hf_dfml.data import glyphs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyphs, "_draw_class", cache(glyphs._draw_class))
        yield


@pytest.fixture
def few_glyphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded data set has the first 20 of its 100 images a class: as many as 5 shots and 15 queries take."""
    from hf_dfml.data import glyphs

    monkeypatch.setattr(glyphs, "draw_classes", partial(glyphs.draw_classes, images_per_class=20))


@pytest.fixture(autouse=True)
def private_hub_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty Hub cache for each test, so that none finds what another has downloaded."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", f"{_HOME}/{os.urandom(8).hex()}")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An empty Hub on this machine with pages of ten models, an empty cache, and its user logged in."""
    from huggingface_hub import constants

    from tests.hub_server import HubServer

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    with HubServer(page_size=10) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real data and pools beside the checkout (or `HF_DFML_SHARED`); skips where there is none."""
    folder = Path(os.environ.get("HF_DFML_SHARED", Path(__file__).parents[2] / "shared"))
    for part in ("pools", "data"):
        if not (folder / part).is_dir():
            pytest.skip(
                f"real data and pools are not at {folder} (no {part}/; HF_DFML_SHARED can name another folder)"
            )
    return folder
