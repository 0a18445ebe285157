"""`hf dfml ...`: the Hub's command line finds the repository's entry, installs it and passes the words on."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_dfml.version import __version__

ROOT = Path(__file__).parents[1]
extensions = pytest.importorskip("huggingface_hub.cli.extensions", reason="this huggingface_hub has no extensions")


class GitHub:
    """Serves the files of this repository as GitHub does those of OWNER/hf-dfml, and nothing else."""

    asked: list[str]

    def __init__(self) -> None:
        self.asked = []

    def request(self, method: str, url: str, **_: object) -> SimpleNamespace:
        self.asked.append(url)
        file = ROOT / url.partition("/HEAD/")[2] if "/HEAD/" in url else None
        there = url == "https://github.com/someone/hf-dfml" or bool(file and file.is_file())

        def raise_for_status() -> None:
            if not there:
                raise OSError(f"404: {url}")

        content = file.read_bytes() if file and file.is_file() else b""
        return SimpleNamespace(
            status_code=200 if there else 404,
            headers={},
            content=content,
            text=content.decode(errors="replace"),
            json=lambda: {},
            raise_for_status=raise_for_status,
        )


@pytest.fixture
def hf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Types a line of the Hub's command line; its exit code."""
    from huggingface_hub.cli.hf import main

    github = GitHub()
    monkeypatch.setattr(extensions, "get_session", lambda: github)
    monkeypatch.setattr(extensions, "EXTENSIONS_ROOT", tmp_path / "extensions")
    monkeypatch.setenv("HF_HUB_DISABLE_UPDATE_CHECK", "1")
    monkeypatch.setattr(extensions.constants, "HF_HUB_DISABLE_UPDATE_CHECK", True)

    def typed(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["hf", *words])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    typed.github = github  # type: ignore[attr-defined]
    return typed


@pytest.mark.skipif(sys.platform == "win32", reason="shell scripts are no extensions on Windows")
def test_hf_dfml_is_hf_dfml(hf, monkeypatch, tmp_path, capfd):
    assert hf("extensions", "install", "someone/hf-dfml") == 0
    assert any(url.endswith("/someone/hf-dfml/HEAD/hf-dfml") for url in hf.github.asked)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert hf("dfml", "--version") == 1
    assert "hf_dfml is not installed in this environment" in capfd.readouterr().err
    program = tmp_path / "bin" / "hf-dfml"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m hf_dfml.cli "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    assert hf("dfml", "--version") == 0
    assert capfd.readouterr().out == f"hf_dfml {__version__}\n"
    assert hf("dfml", "pool", "burn") == 2, "exit codes come through"
