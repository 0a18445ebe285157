"""A planted token is in nothing that a run writes or prints."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest

from hf_dfml.cli import main
from hf_dfml.pool.black_box import sending
from hf_dfml.pool.sources import client
from hf_dfml.utils.provenance import hide_secrets
from tests.methods.tiny_tgr import TINY
from tests.pool.members import write_pool

pytestmark = pytest.mark.usefixtures("few_glyphs")
TOKEN = "hf_plantedPLANTEDplantedPLANTED0123"
OTHER = "sesame-planted-for-services"


@pytest.fixture
def planted(monkeypatch):
    """Whether a text or bytes hold one of the tokens."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_DFML_SERVE_TOKEN", OTHER)

    def held(content: str | bytes) -> bool:
        content = content.encode() if isinstance(content, str) else content
        return TOKEN.encode() in content or OTHER.encode() in content

    return held


def ran(*words: object) -> object:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code


def test_a_run_with_a_tracker_writes_and_prints_no_token(planted, tmp_path, capfd, caplog):
    caplog.set_level("DEBUG")
    options = {**TINY, "steps": 1, "pool": write_pool(tmp_path / "pool", 4), "output_dir": tmp_path / "run"}
    options |= {"dataset": "glyphs", "episodes": 4, "validation_episodes": 2, "shots": 1, "baselines": "false"}
    options |= {"ways": 3, "arch": "conv4_16", "log_with": "tensorboard", "validate_every": 1}
    assert ran("train", "tgr", *(word for name, value in options.items() for word in (f"--{name}", value))) in (
        0,
        None,
    )
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    names = {path.name for path in written}
    assert {"results.json", "README.md", "config.json", "pool.lock.json", "tree.json"} <= names
    assert any(name.startswith("events.out") for name in names)
    assert [path for path in written if planted(path.read_bytes())] == []
    printed = capfd.readouterr()
    assert not planted(printed.out + printed.err + caplog.text)
    command = json.loads((tmp_path / "run" / "results.json").read_text())[0]["command"]
    assert "train tgr" in command or "pytest" in command


@pytest.mark.parametrize(
    "pool",
    [
        f"http://ada:{TOKEN}@127.0.0.1:9/models",
        f"http://127.0.0.1:9/models?token={OTHER}",
        f"./{TOKEN}",
    ],
)
def test_a_refusal_prints_no_token(planted, pool, capfd, caplog, monkeypatch):
    for module in (sending, client):  # Nobody listens there, however often they are asked.
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: None, monotonic=time.monotonic))
    code = ran("pool", "ls", pool)
    printed = capfd.readouterr()
    assert code not in (0, None) and not planted(f"{printed.out}{printed.err}{caplog.text}{code}")


def test_tokens_in_use_are_hidden_whatever_they_look_like(planted):
    text = f"{OTHER} and {TOKEN} at http://x/y?a=b&c=d"
    assert hide_secrets(text) == "HIDDEN and HIDDEN at http://x/y?HIDDEN"
    assert hide_secrets("no secrets in org/name@main?") == "no secrets in org/name@main?"
